//! What the file says, once it has been read.

use super::exempt::Exempt;
use super::keys::Keys;
use capability::decide::Mode;
use capability::gates::TokenCheck;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Everything that `writ serve` is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[identity]`
    pub identity: Identity,
    /// `[[proxy]]`: SPIFFE IDs of the proxies that may connect.
    pub proxies: Vec<String>,
    /// `[[agent]]`
    pub agents: Vec<super::Agent>,
    /// Who may answer for agents; none: whom the config names elsewhere.
    pub owners: Vec<super::Owner>,
    /// `[[client]]`
    pub clients: Vec<super::Client>,
    /// `[[approver]]`
    pub approvers: Vec<policy::Approver>,
    /// `[token]`
    pub token: Token,
    /// `[keys]`
    pub keys: Keys,
    /// `[approval]`
    pub approval: ApprovalTimes,
    /// `[edge]`
    pub edge: Arc<Edge>,
    /// `[canary]`
    pub canary: Canary,
    /// `[policy]`
    pub policies: Vec<policy::Source>,
    /// `[ledger]`
    pub ledger: Ledger,
    /// `[limits]`
    pub limits: Limits,
    /// SHA-256 of the file, hex: what the log calls the version.
    pub version: String,
}

impl Config {
    /// What works and had better be otherwise, in a sentence each.
    #[must_use]
    pub fn advice(&self) -> Vec<String> {
        let issuer = host_of(&self.server.issuer);
        let sites = self.edge.all_sites();
        let same = sites.filter(|site| host_of(&site.origin).eq_ignore_ascii_case(issuer));
        same.map(|site| {
            format!(
                "server.issuer has the host of {}, `{issuer}`: browsers send an approver's session to every port of it, and the edge takes it out only where its filter is on; give the issuer a host of its own",
                site.origin
            )
        })
        .collect()
    }
}

/// A URL's host, without its port: what a cookie knows of it.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.split_once(']') {
        Some((address, _)) => address.trim_start_matches('['),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

/// Where the control plane listens and keeps things.
#[derive(Clone, Debug)]
pub struct Server {
    /// The issuer's URL: token endpoint, metadata and pages.
    pub issuer: String,
    /// HTTP listener.
    pub listen: SocketAddr,
    /// ADS and decisions: mTLS.
    pub grpc_listen: SocketAddr,
    /// Keys, journal, listings.
    pub data_dir: PathBuf,
    /// Prometheus' page, plain HTTP; nowhere without it.
    pub metrics_listen: Option<SocketAddr>,
    /// Unix socket for the command line.
    pub admin_socket: PathBuf,
    /// The token endpoint for agents that show their X.509-SVID: HTTPS.
    pub mtls_listen: Option<SocketAddr>,
    /// The URL that they know it by: scheme and authority.
    pub mtls_url: Option<String>,
    /// SPIFFE IDs of the resource servers that may introspect every token.
    pub introspection: Vec<String>,
    /// ADS and decisions without TLS; loopback only, by explicit flag.
    pub plaintext_grpc: bool,
    /// Whom the start's login link signs in.
    pub login_as: String,
    /// Who may stop and lift, and change agents.
    pub admins: Vec<String>,
}

/// The ledger.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// A second place, elsewhere, for the journal's head.
    pub head_copy: Option<PathBuf>,
    /// Where the log is.
    pub store: Store,
}

/// Files in `server.data_dir`, or a PostgreSQL database that holds the log and that
/// several replicas may share.
#[derive(Clone)]
pub struct Store {
    /// `postgres://…`; `None`: files.
    pub url: Option<String>,
    /// Connections of this replica.
    pub connections: usize,
    /// Whether the server must have a synchronous standby.
    pub replicated: bool,
    /// Whether a loopback address may be spoken to without TLS.
    pub plaintext_loopback: bool,
}

impl std::fmt::Debug for Store {
    // The URL may have a password in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("url", &self.url.as_ref().map(|_| "postgres://…"))
            .field("connections", &self.connections)
            .field("replicated", &self.replicated)
            .field("plaintext_loopback", &self.plaintext_loopback)
            .finish()
    }
}

/// Where identities come from.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The Workload API's socket: served there, or consumed from there.
    pub workload_api: PathBuf,
    /// Serve the built-in trust domain there; else it is SPIRE's.
    pub built_in: bool,
    /// The trust domain's name.
    pub trust_domain: String,
    /// The control plane's own SPIFFE ID.
    pub control_plane_id: String,
    /// One uid is one principal: for trying it out on one account.
    pub dev_single_uid: bool,
    /// Entries of the built-in trust domain.
    pub workloads: Vec<Workload>,
    /// Life of the built-in X.509-SVIDs and JWT-SVIDs, in seconds.
    pub svid_ttl_s: u64,
    /// Whose tokens count as evidence beside SVIDs.
    pub issuers: Vec<Issuer>,
    /// Whose SVIDs count beside our own trust domain's.
    pub federated: Vec<super::Federated>,
}

/// An OpenID Connect issuer, or one that makes its tokens alike.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// Its name, `iss`.
    pub issuer: String,
    /// The one `aud` of tokens for us.
    pub audience: String,
    /// Where its keys are.
    pub keys: identity::oidc::KeysFrom,
    /// PEM of the authorities of its TLS certificate.
    pub authorities: Option<PathBuf>,
    /// The bearer token that is shown when its keys are fetched.
    pub token_file: Option<PathBuf>,
    /// The longest life of its tokens, in seconds.
    pub lifetime_max_s: u64,
    /// Whose its tokens are.
    pub agents: Vec<Mapping>,
    /// Its users, where agents may act for them.
    pub users: Option<super::Users>,
    /// The line of the config that names it.
    pub line: usize,
}

/// Claims that make a token an agent's.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// The agent.
    pub spiffe_id: String,
    /// What they have to be, each to the letter.
    pub claims: BTreeMap<String, String>,
    /// The line of the config that names the agent.
    pub line: usize,
}

/// Who gets which SPIFFE ID from the built-in trust domain.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The ID.
    pub spiffe_id: String,
    /// The process's uid.
    pub uid: Option<u32>,
    /// Its executable.
    pub executable: Option<PathBuf>,
}

/// Capability tokens.
#[derive(Clone, Debug)]
pub struct Token {
    /// Seconds that a token lives.
    pub lifetime_s: u64,
    /// ± seconds that a proof's `iat` may be off at the token endpoint.
    pub proof_window_s: u64,
    /// Seconds that a broker session lives; 0: there are none.
    pub session_s: u64,
    /// The most seconds that a delegation lives; 0: there are none.
    pub delegation_s: u64,
    /// How often a delegation may be passed on.
    pub delegation_depth: u8,
}

/// How long approvals live.
#[derive(Clone, Debug)]
pub struct ApprovalTimes {
    /// Seconds that it may be pending.
    pub pending_s: u64,
    /// Seconds that a yes may be used.
    pub approved_s: u64,
    /// Seconds between two questions about a token that waits.
    pub poll_s: u64,
    /// Seconds for which nobody is asked again what a person has said no to; 0: no time.
    pub denied_s: u64,
}

/// What Envoy serves. A start keeps the one that was good, with all but what
/// `skip` leaves out: who gets it, and the modules, are no part of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    /// Envoy's listener.
    pub listen: SocketAddr,
    /// The URL that clients use.
    pub origin: String,
    /// TLS at the listener, with a client certificate of the trust domain
    /// demanded of every agent.
    pub client_certificates: bool,
    /// The protected resource (`aud`): the origin, or a URL under it.
    pub resource: String,
    /// `[[edge.site]]`: further origins on the same listener.
    pub sites: Vec<Site>,
    /// The filter's module.
    #[serde(skip)]
    pub module: PathBuf,
    /// Who checks a token's signature: the filter, or our own record alone.
    pub token_check: TokenCheck,
    /// p256 in wasm instead of the host's BoringSSL, by name only.
    pub portable_crypto: bool,
    /// Seconds that a request may be held in the proxy.
    pub hold_s: u64,
    /// Milliseconds that a decision may take.
    pub decision_deadline_ms: u64,
    /// ± seconds that a proof's `iat` may be off at the edge.
    pub proof_window_s: u64,
    /// Seconds after which routes that ask for a nonce are told the next one.
    pub nonce_s: u64,
    /// Milliseconds that a body which is read may take to come.
    pub body_deadline_ms: u64,
    /// The guarded routes, in matching order.
    pub routes: Vec<Route>,
    /// Groups of proxies, in the order in which they are asked.
    #[serde(skip)]
    pub groups: Vec<Group>,
    /// How a changed module or `[edge]` reaches the proxies.
    #[serde(skip)]
    pub rollout: Rollout,
    /// What passes without the filter, by name.
    pub exempt: Exempt,
    /// Whether Envoy answers with the resource metadata of RFC 9728.
    pub metadata: bool,
}

/// A group of proxies.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The identities that may be of it: the certificate decides.
    pub proxies: Vec<String>,
    /// Node ids that narrow it; none: all.
    pub nodes: Vec<String>,
    /// Values of `node.cluster` that narrow it; none: all.
    pub clusters: Vec<String>,
    /// Localities, `REGION/ZONE/SUB-ZONE`, that narrow it; none: all.
    pub localities: Vec<String>,
    /// The module that it is pinned to.
    pub module: Option<PathBuf>,
    /// The `[edge]` that it is pinned to.
    pub config: Option<Arc<Edge>>,
    /// The line of the config that names `proxies`.
    pub proxies_line: usize,
    /// The line of the config that names `module`.
    pub module_line: usize,
    /// The line of the config that names `config`.
    pub config_line: usize,
}

/// How a changed module or `[edge]` reaches the proxies.
#[derive(Clone, Debug, Default)]
pub struct Rollout {
    /// The groups that get it first.
    pub first: Vec<String>,
    /// Seconds for which it is watched at each step; 0: all get it at once.
    pub watch_s: u64,
}

/// One guarded route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Its name, for the log.
    pub name: String,
    /// It matches on this path prefix alone.
    pub path_prefix: String,
    /// `host:port` of the upstream.
    pub upstream: String,
    /// How its bodies are read; none is read without it.
    pub body: Option<BodyRead>,
    /// The site that it belongs to; none is `edge.origin`.
    pub site: Option<String>,
    /// What becomes of requests that are refused: to observe is never a default.
    pub mode: Mode,
    /// Where it observes, the enforcing routes whose upstream it leads to.
    pub shares_upstream_with: Vec<String>,
    /// Whether proofs have to have a nonce of ours.
    pub nonce: bool,
    /// Whether the upstream is shown the control plane's signed decision.
    pub decision_header: bool,
    /// The `aud` of that decision, when it is not the upstream's address.
    pub decision_audience: Option<String>,
}

/// How the bodies of a route are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BodyRead {
    /// The longest, in bytes.
    pub limit: usize,
    /// What policy is told of them: JSON pointers, each with the one kind that
    /// its value has to have.
    pub facts: BTreeMap<String, policy::FactKind>,
}

impl Edge {
    /// The route of a path, with or without its query, at the origin of this
    /// authority: the longest prefix, in whole segments, as Envoy has it.
    #[must_use]
    pub fn route_of(&self, authority: &str, path: &str) -> Option<&Route> {
        let path = path.split('?').next().unwrap_or_default();
        let mut sites = self.all_sites();
        let site = sites.find(|site| site.authority() == authority)?;
        let covers = |prefix: &str| {
            path.strip_prefix(prefix).is_some_and(|rest| {
                prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/')
            })
        };
        let matching = self.routes.iter().filter(|route| {
            route.site.as_deref().unwrap_or_default() == site.name && covers(&route.path_prefix)
        });
        matching.max_by_key(|route| route.path_prefix.len())
    }

    /// How the bodies of this path are read.
    #[must_use]
    pub fn body_of(&self, authority: &str, path: &str) -> Option<&BodyRead> {
        self.route_of(authority, path)?.body.as_ref()
    }

    /// The facts of all routes' bodies, each of one kind.
    #[must_use]
    pub fn facts(&self) -> BTreeMap<String, policy::FactKind> {
        let bodies = self.routes.iter().filter_map(|route| route.body.as_ref());
        bodies.flat_map(|body| body.facts.clone()).collect()
    }

    /// Whether any route reads bodies.
    #[must_use]
    pub fn reads_bodies(&self) -> bool {
        self.routes.iter().any(|route| route.body.is_some())
    }
}

/// One of several origins, each a protected resource of its own (RFC 9728).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Its name, by which routes call it; empty for `edge.origin`.
    pub name: String,
    /// The URL that clients use, in normal form.
    pub origin: String,
    /// The `aud` of its tokens: the origin, or a URL under it.
    pub resource: String,
}

impl Site {
    /// Its origin's `host[:port]`.
    #[must_use]
    pub fn authority(&self) -> &str {
        let parts = self.origin.split_once("://");
        parts.map_or(self.origin.as_str(), |(_, authority)| authority)
    }
}

impl Edge {
    /// All origins, `edge.origin` first.
    pub fn all_sites(&self) -> impl Iterator<Item = Site> + '_ {
        let first = Site {
            name: String::new(),
            origin: self.origin.clone(),
            resource: self.resource.clone(),
        };
        std::iter::once(first).chain(self.sites.iter().cloned())
    }

    /// The site of a route, by the name that the route gives.
    #[must_use]
    pub fn site_named(&self, name: Option<&str>) -> Option<Site> {
        let name = name.unwrap_or_default();
        self.all_sites().find(|site| site.name == name)
    }

    /// The site of exactly this origin, in normal form.
    #[must_use]
    pub fn site_of(&self, origin: &str) -> Option<Site> {
        self.all_sites().find(|site| site.origin == origin)
    }
}

impl Route {
    /// Whom a signed decision is for.
    #[must_use]
    pub fn audience(&self) -> String {
        let address = || format!("http://{}", self.upstream);
        self.decision_audience.clone().unwrap_or_else(address)
    }
}

impl Edge {
    /// The names of the routes on which nothing is refused.
    pub fn observed_routes(&self) -> Vec<&str> {
        let observed = |route: &&Route| route.mode == Mode::Observe;
        let routes = self.routes.iter().filter(observed);
        routes.map(|route| route.name.as_str()).collect()
    }
}

/// The canary, which tries what must not pass.
#[derive(Clone, Debug)]
pub struct Canary {
    /// Seconds between its rounds; 0: there is none.
    pub every_s: u64,
    /// Base URLs of the proxies that it tries; none: `edge.origin`.
    pub targets: Vec<String>,
}

/// Named limits; the defaults and ceilings are in docs/reference/limits.md.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Outstanding tokens per agent.
    pub outstanding_per_agent: usize,
    /// Outstanding tokens of all agents of one owner.
    pub outstanding_per_owner: usize,
    /// Exchanges of one agent a second.
    pub exchanges_per_agent: u64,
    /// The same of all agents of one owner.
    pub exchanges_per_owner: u64,
    /// Held requests per agent.
    pub held_per_agent: usize,
    /// Held requests in all.
    pub held_total: usize,
    /// Proofs of one agent that are remembered at the token endpoint.
    pub proofs_per_agent: usize,
    /// DPoP keys per piece of evidence.
    pub keys_per_evidence: usize,
    /// Discovered agents that are remembered.
    pub discovered_agents: usize,
    /// Approvals that are pending or approved.
    pub open_approvals: usize,
    /// Of one agent's.
    pub open_approvals_per_agent: usize,
    /// Questions in flight per proxy worker.
    pub questions_in_flight: usize,
    /// Requests whose bodies wait at a time, per proxy worker.
    pub bodies_at_once: usize,
    /// Sizes of what is read, at the edge and at the token endpoint.
    pub read: capability::Limits,
}
