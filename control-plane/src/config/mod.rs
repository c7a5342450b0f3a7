//! The one config file: TOML, read by a parser that keeps positions, so that
//! every error names file and line, and all of them come at once.

mod beside;
mod body;
mod check;
mod clients;
mod exempt;
mod federated;
mod issuers;
mod keys;
mod people;
mod reader;
mod rolling;
mod sites;
mod types;
mod users;

pub use clients::Client;
pub use exempt::{Exempt, Preflight, Probe, Unguarded};
pub use federated::Federated;
pub use keys::{Keys, PinFrom, Pkcs11};
pub use people::{Agent, Owner};
pub use reader::ConfigError;
pub use types::{
    ApprovalTimes, BodyRead, Canary, Config, Edge, Group, Identity, Issuer, Ledger, Limits,
    Mapping, Rollout, Route, Server, Site, Store, Token, Workload,
};
pub use users::{UserClient, Users};

use beside::Whose;
use reader::{Reader, Table};
use rolling::{canary, groups, metrics_listen, mode, rollout};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Resource servers that may introspect.
const INTROSPECTION_MAX: usize = 1_024;

/// The longest life of a capability token, in seconds.
pub const TOKEN_LIFETIME_MAX_S: u64 = 300;

impl Config {
    /// Reads the file at `path` and the policy files that it names.
    ///
    /// # Errors
    /// Every problem found, each with file and line.
    pub fn read(path: &Path) -> Result<Self, Vec<ConfigError>> {
        let text = file_text(path)?;
        Self::parse(path, &text)
    }

    /// As [`Config::read`], and looks at what it names on this machine: what
    /// `serve` would otherwise stumble over when it has begun. It makes nothing.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn read_to_serve(path: &Path) -> Result<Self, Vec<ConfigError>> {
        let text = file_text(path)?;
        Self::parse_with(path, &text, Self::check_machine)
    }

    /// Parses `text`, which came from `path`.
    ///
    /// # Errors
    /// Every problem found, each with file and line.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Vec<ConfigError>> {
        Self::parse_with(path, text, |_, _| {})
    }

    fn parse_with(
        path: &Path,
        text: &str,
        look: impl Fn(&Self, &Reader<'_>),
    ) -> Result<Self, Vec<ConfigError>> {
        use sha2::{Digest, Sha256};
        let reader = Reader::new(path, text);
        let root = reader.root()?;
        let identity = identity(&root.table("identity"));
        let owners = people::owners(&root);
        let declared = owners.iter().map(|it| it.name.as_str()).collect();
        let mut config = Self {
            server: server(&root.table("server")),
            proxies: root.tables("proxy").iter().map(proxy).collect(),
            agents: (root.tables("agent").iter())
                .map(|it| agent(it, &declared))
                .collect(),
            owners,
            clients: clients::read(&root),
            approvers: root
                .tables("approver")
                .iter()
                .map(people::approver)
                .collect(),
            token: token(&root.table_or_empty("token")),
            keys: keys::read(&root.table_or_empty("keys")),
            approval: approval(&root.table_or_empty("approval")),
            edge: Arc::new(edge(&root.table("edge"), Whose::Config)),
            canary: canary(&root.table_or_empty("canary")),
            policies: policies(&root.table("policy"), path),
            ledger: ledger(&root.table_or_empty("ledger")),
            limits: limits(&root.table_or_empty("limits")),
            version: hex::encode(Sha256::digest(text.as_bytes())),
            identity,
        };
        root.finish();
        config.check(&reader);
        config.check_groups(&reader);
        config.check_issuers(&reader);
        config.check_federated(&reader);
        config.check_clients(&reader);
        config.check_places(&reader);
        config.check_certificates(&reader);
        config.check_keys(&reader);
        config.check_people(&reader);
        look(&config, &reader);
        reader.result(config)
    }

    /// What can be judged only from several keys together.
    fn check(&self, reader: &Reader) {
        let id_prefix = format!("spiffe://{}/", self.identity.trust_domain);
        if self.identity.built_in {
            for workload in &self.identity.workloads {
                if !workload.spiffe_id.is_empty() && !workload.spiffe_id.starts_with(&id_prefix) {
                    reader.error_at(
                        "identity.workload",
                        format!(
                            "`{}` is not in the trust domain `{}`",
                            workload.spiffe_id, self.identity.trust_domain
                        ),
                    );
                }
                if workload.spiffe_id == self.identity.control_plane_id {
                    reader.error_at(
                        "identity.workload",
                        "the control plane's own ID can't be given to a workload".into(),
                    );
                }
            }
        }
        if self.identity.built_in && !self.identity.dev_single_uid {
            self.check_uids(reader);
        }
        for proxy in &self.proxies {
            if self.agents.iter().any(|agent| agent.spiffe_id == *proxy) {
                reader.error_at(
                    "proxy",
                    format!("`{proxy}` is an agent as well; a proxy must not be one"),
                );
            }
        }
        let inside = |path: &PathBuf| path.starts_with(&self.server.data_dir);
        if self.ledger.head_copy.as_ref().is_some_and(inside) {
            reader.error_at(
                "ledger.head_copy",
                "a copy in server.data_dir is set back together with the journal; name a place elsewhere".into(),
            );
        }
        if self.server.plaintext_grpc && !self.server.grpc_listen.ip().is_loopback() {
            reader.error_at(
                "server.plaintext_grpc",
                "plaintext between proxy and control plane is for loopback only".into(),
            );
        }
        let mut edges = self.edges();
        if self.identity.dev_single_uid
            && !(self.server.listen.ip().is_loopback()
                && edges.all(|edge| edge.listen.ip().is_loopback()))
        {
            reader.error_at(
                "identity.dev_single_uid",
                "one uid for everything is for loopback only".into(),
            );
        }
        if self.server.issuer.starts_with("http://") && !self.server.listen.ip().is_loopback() {
            reader.error_at(
                "server.issuer",
                "an http issuer is for loopback only; put TLS in front and say https".into(),
            );
        }
    }
}

impl Config {
    /// An `executable` tells programs of one uid apart, but any process of that
    /// uid can start the program or look into it: to the kernel they are one.
    fn check_uids(&self, reader: &Reader) {
        let is_proxy = |workload: &&Workload| self.proxies.contains(&workload.spiffe_id);
        let (proxies, others): (Vec<_>, Vec<_>) =
            self.identity.workloads.iter().partition(is_proxy);
        for proxy in proxies {
            let same = |other: &&&Workload| other.uid.is_some() && other.uid == proxy.uid;
            if let (Some(other), Some(uid)) = (others.iter().find(same), proxy.uid) {
                reader.error_at("identity.workload", format!(
                    "`{}` is a proxy and has uid {uid}, as `{}` has: a process of that uid could be either; give the proxy a uid of its own",
                    proxy.spiffe_id, other.spiffe_id
                ));
            }
        }
    }
}

fn file_text(path: &Path) -> Result<String, Vec<ConfigError>> {
    std::fs::read_to_string(path).map_err(|error| {
        vec![ConfigError::file(
            path,
            format!("can't read the config file: {error}; name one with --config FILE"),
        )]
    })
}

fn server(table: &Table<'_>) -> Server {
    let login_as = table.text_or("login_as", "operator");
    let server = Server {
        issuer: table.origin("issuer"),
        listen: table.address("listen"),
        grpc_listen: table.address("grpc_listen"),
        data_dir: table.path("data_dir"),
        metrics_listen: metrics_listen(table),
        admin_socket: table.path("admin_socket"),
        plaintext_grpc: table.flag("plaintext_grpc", false),
        admins: people::admins(table, &login_as),
        login_as,
        mtls_listen: table.optional_address("mtls_listen"),
        mtls_url: table.optional_origin("mtls_url"),
        introspection: table.spiffe_ids("introspection", INTROSPECTION_MAX),
    };
    table.finish();
    server
}

fn ledger(table: &Table<'_>) -> Ledger {
    let url = table.optional_text("store");
    let connections = table.number("store_connections", 16, 5, 64);
    let store = Store {
        connections: usize::try_from(connections).unwrap_or_default(),
        replicated: table.flag("store_replicated", false),
        plaintext_loopback: table.flag("store_plaintext_loopback", false),
        url,
    };
    let is_url = |url: &String| ledger::postgres::is_url(url);
    if !store.url.as_ref().is_none_or(is_url) {
        table.error("store", "it has to begin with postgres://".into());
    }
    let ledger = Ledger {
        head_copy: table.optional_path("head_copy"),
        store,
    };
    table.finish();
    ledger
}

fn identity(table: &Table<'_>) -> Identity {
    let entries = table.tables("workload");
    let workloads = entries.iter().map(|entry| {
        let workload = Workload {
            spiffe_id: entry.spiffe_id("spiffe_id"),
            uid: entry
                .optional_number("uid", 0, u64::from(u32::MAX))
                .and_then(|uid| u32::try_from(uid).ok()),
            executable: entry.optional_path("executable"),
        };
        if !entry.has("uid") {
            // The admin socket turns these uids away, so they have to be known.
            entry.error(
                "spiffe_id",
                "an entry needs `uid`; `executable` narrows it further".into(),
            );
        }
        entry.finish();
        workload
    });
    let identity = Identity {
        workloads: workloads.collect(),
        workload_api: table.path("workload_api"),
        built_in: table.flag("built_in", true),
        trust_domain: table.text("trust_domain"),
        control_plane_id: table.spiffe_id("control_plane_id"),
        dev_single_uid: table.flag("dev_single_uid", false),
        svid_ttl_s: table.number("svid_ttl_s", 3600, 10, 86_400),
        issuers: issuers::read(table),
        federated: federated::read(table),
    };
    table.finish();
    identity
}

fn proxy(table: &Table<'_>) -> String {
    let id = table.spiffe_id("spiffe_id");
    table.finish();
    id
}

fn agent(table: &Table<'_>, declared: &BTreeSet<&str>) -> Agent {
    let agent = Agent {
        spiffe_id: table.spiffe_id("spiffe_id"),
        owner: table.text("owner"),
        active: table.flag("active", true),
    };
    people::check_owner(table, &agent.owner, declared);
    table.finish();
    agent
}

fn token(table: &Table<'_>) -> Token {
    let token = Token {
        lifetime_s: table.number("lifetime_s", 30, 1, TOKEN_LIFETIME_MAX_S),
        proof_window_s: table.number("proof_window_s", 60, 1, 300),
        session_s: table.number("session_s", 600, 0, 600),
        delegation_s: table.number("delegation_s", 900, 0, 3_600),
        delegation_depth: u8::try_from(table.number("delegation_depth", 3, 0, 8))
            .unwrap_or_default(),
    };
    table.finish();
    token
}

fn approval(table: &Table<'_>) -> ApprovalTimes {
    let times = ApprovalTimes {
        pending_s: table.number("pending_s", 15 * 60, 1, 24 * 3600),
        approved_s: table.number("approved_s", 10 * 60, 1, 24 * 3600),
        poll_s: table.number("poll_s", 5, 1, 60),
        denied_s: table.number("denied_s", 300, 0, 24 * 3600),
    };
    table.finish();
    times
}

/// `[edge]`, of this file, or of the one that a group is pinned to.
fn edge(table: &Table<'_>, whose: Whose) -> Edge {
    let (mut names, mut taken) = (BTreeSet::new(), BTreeSet::new());
    let (origin, resource, sites) = sites::read(table);
    let routes: Vec<Route> = table
        .tables("route")
        .iter()
        .map(|entry| {
            let route = Route {
                name: entry.text("name"),
                path_prefix: entry.text("path_prefix"),
                upstream: entry.host_port("upstream"),
                body: body::read(entry),
                site: entry.optional_text("site"),
                mode: mode(entry),
                shares_upstream_with: entry.texts("shares_upstream_with"),
                nonce: entry.flag("nonce", false),
                decision_header: entry.flag("decision_header", false),
                decision_audience: entry.optional_text("decision_audience"),
            };
            exempt::check_mode(entry, &route);
            if route.decision_audience.as_deref() == Some("") {
                entry.error("decision_audience", "this is empty".into());
            }
            if !route.path_prefix.is_empty() && !route.path_prefix.starts_with('/') {
                entry.error("path_prefix", "a path prefix starts with `/`".into());
            } else if let Some(error) = check::route(&route) {
                entry.error(check::route_key(&error), error.to_string());
            }
            let prefix = (route.site.clone(), route.path_prefix.clone());
            if !names.insert(route.name.clone()) || !taken.insert(prefix) {
                entry.error("name", "another route has this name or path prefix".into());
            }
            sites::check_name(entry, &sites, route.site.as_deref());
            entry.finish();
            route
        })
        .collect();
    if routes.is_empty() {
        table.error(
            "route",
            "no [[edge.route]]: there is nothing to guard".into(),
        );
    }
    body::check_kinds(table, &routes);
    let certificates = table.text_or("client_certificates", "none");
    if !matches!(certificates.as_str(), "none" | "required") {
        table.error(
            "client_certificates",
            format!("`{certificates}` is neither \"none\" nor \"required\""),
        );
    }
    let (module, rollout, groups) = match whose {
        // Not asked for, so not taken.
        Whose::Group => (PathBuf::new(), Rollout::default(), Vec::new()),
        Whose::Config => {
            let rollout = rollout(&table.table_or_empty("rollout"));
            let groups = groups(table, &rollout);
            (table.path("module"), rollout, groups)
        }
    };
    let exempt = exempt::read(table, &routes, &sites);
    let edge = Edge {
        routes,
        client_certificates: certificates == "required",
        groups,
        rollout,
        exempt,
        metadata: table.flag("metadata", false),
        listen: table.address("listen"),
        origin,
        resource,
        sites,
        module,
        token_check: check::token_check(table),
        portable_crypto: table.flag("portable_crypto", false),
        hold_s: table.number("hold_s", 25, 0, 55),
        decision_deadline_ms: table.number("decision_deadline_ms", 2_000, 100, 10_000),
        proof_window_s: table.number("proof_window_s", 300, 1, 300),
        nonce_s: table.number("nonce_s", 60, 1, 300),
        body_deadline_ms: table.number("body_deadline_ms", 10_000, 100, 60_000),
    };
    table.finish();
    edge
}

fn policies(table: &Table<'_>, config: &Path) -> Vec<policy::Source> {
    let base = config.parent().unwrap_or(Path::new("."));
    let names = table.texts("files");
    if names.is_empty() {
        table.error(
            "files",
            "no policy files: nothing would ever be allowed; name at least one".into(),
        );
    }
    let sources = names
        .into_iter()
        .filter_map(|name| match std::fs::read_to_string(base.join(&name)) {
            Ok(text) => Some(policy::Source { name, text }),
            Err(error) => {
                table.error(
                    "files",
                    format!(
                        "can't read the policy file `{}`: {error}",
                        base.join(&name).display()
                    ),
                );
                None
            }
        })
        .collect();
    table.finish();
    sources
}

fn limits(table: &Table<'_>) -> Limits {
    let size =
        |key, default, most| usize::try_from(table.number(key, default, 1, most)).unwrap_or(1);
    let within = |key, default: usize, least, most: usize| {
        let bounds = [default, most].map(|value| u64::try_from(value).unwrap_or(u64::MAX));
        usize::try_from(table.number(key, bounds[0], least, bounds[1])).unwrap_or(default)
    };
    let (default, ceiling) = (capability::Limits::default(), capability::Limits::CEILING);
    let limits = Limits {
        read: capability::Limits {
            header_block: within(
                "header_block",
                default.header_block,
                4_096,
                ceiling.header_block,
            ),
            token: within("token", default.token, 1_024, ceiling.token),
            proof: within("proof", default.proof, 1_024, ceiling.proof),
            json_depth: within("json_depth", default.json_depth, 8, ceiling.json_depth),
            json_members: within(
                "json_members",
                default.json_members,
                16,
                ceiling.json_members,
            ),
        },
        outstanding_per_agent: size("outstanding_per_agent", 1_024, 65_536),
        outstanding_per_owner: size("outstanding_per_owner", 65_536, 1_048_576),
        exchanges_per_agent: table.number("exchanges_per_agent", 200, 1, 1_000_000),
        exchanges_per_owner: table.number("exchanges_per_owner", 2_000, 1, 1_000_000),
        held_per_agent: size("held_per_agent", 16, 256),
        held_total: size("held_total", 1_024, 65_536),
        proofs_per_agent: within("proofs_per_agent", 32_768, 16, 262_144),
        keys_per_evidence: size("keys_per_evidence", 16, 256),
        discovered_agents: size("discovered_agents", 1_024, 65_536),
        open_approvals: size("open_approvals", 1_024, 65_536),
        open_approvals_per_agent: size("open_approvals_per_agent", 32, 1_024),
        questions_in_flight: size("questions_in_flight", 4_096, 65_536),
        bodies_at_once: size("bodies_at_once", 256, 4_096),
    };
    table.finish();
    limits
}

#[cfg(test)]
mod tests;
