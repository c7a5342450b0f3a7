//! What Envoy is told: settings from the config file, the module inline, and
//! who heard it.

use super::versions::Holed;
use crate::config::{Config, Edge, Group, Site};
use crate::decide::DecisionsService;
use crate::edges::{Served, name_of};
use crate::state::Core;
use capability::decide::Mode;
use capability::gates::TokenCheck;
use identity::SpiffeId;
use ledger::model::Command;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use xds::{Ads, Kind, Nack, Observer};

/// The filter's module, as it was read.
#[derive(Clone)]
pub struct Module {
    /// What Envoy gets.
    pub inner: xds::Module,
    /// SHA-256 of it, hex.
    pub sha256: String,
    /// When its file was changed last.
    pub modified: Option<SystemTime>,
}

impl Module {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(edge: &Edge) -> Result<Self, String> {
        let path = &edge.module;
        // Asked for before reading: a change in between is seen the next time.
        let modified = modified(path);
        let inner = edge.read_module()?;
        let sha256 = inner.sha256_hex();
        tracing::info!(path = %path.display(), sha256, "the filter's module is read");
        Ok(Self {
            inner,
            sha256,
            modified,
        })
    }
}

/// When a file was changed last.
pub fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|meta| meta.modified())
        .ok()
}

/// The modules that groups are pinned to, by the groups' names.
pub type Pinned = BTreeMap<String, xds::Module>;

/// What proxies run: a module, and what it is told.
#[derive(Clone)]
pub struct Release {
    /// The module.
    pub module: Module,
    /// The `[edge]`.
    pub edge: Served,
}

impl Release {
    /// As filters say it.
    pub fn name(&self) -> String {
        name_of(&self.module.sha256, &self.edge)
    }

    /// What a group gets: this, but for what it is pinned to.
    ///
    /// # Errors
    /// What the settings can't be.
    pub fn settings_for(
        &self,
        core: &Core,
        group: Option<&str>,
        pinned: &Pinned,
    ) -> Result<xds::Settings, String> {
        let module = group.and_then(|it| pinned.get(it));
        let edge = group.and_then(|it| core.edges.pinned(it));
        settings(
            core,
            module.unwrap_or(&self.module.inner),
            edge.unwrap_or(&self.edge),
        )
    }
}

/// Reads them.
///
/// # Errors
/// What is wrong with a file.
pub fn pinned(edge: &Edge) -> Result<Pinned, String> {
    let mut all = Pinned::new();
    for group in &edge.groups {
        if let Some(path) = &group.module {
            all.insert(group.name.clone(), Edge::module_at(path)?);
        }
    }
    Ok(all)
}

/// The server of Envoy's configuration, with this release for all, as far as groups
/// are not pinned.
///
/// # Errors
/// What the settings can't be.
pub fn ads(core: &Arc<Core>, release: &Release, pinned: &Pinned) -> Result<Ads, String> {
    let others = release.settings_for(core, None, pinned)?;
    let mut groups = Vec::new();
    for group in &core.config.edge.groups {
        let own = release.settings_for(core, Some(&group.name), pinned)?;
        groups.push((for_envoy(group)?, own));
    }
    Ads::with_groups(&others, groups, Arc::new(Witness::start(core.clone())))
        .map_err(|error| format!("what Envoy should be told is not usable: {error}"))
}

fn for_envoy(group: &Group) -> Result<xds::Group, String> {
    let proxies = group.proxies.iter().map(|id| SpiffeId::parse(id));
    Ok(xds::Group {
        name: group.name.clone(),
        proxies: proxies
            .collect::<Result<_, _>>()
            .map_err(|error| format!("edge.group `{}`: {error}", group.name))?,
        nodes: group.nodes.clone(),
        clusters: group.clusters.clone(),
        localities: group.localities.clone(),
    })
}

/// Everything that Envoy is told, with this module and `[edge]`.
fn settings(core: &Core, module: &xds::Module, served: &Served) -> Result<xds::Settings, String> {
    let config = &core.config;
    let edge = &served.edge;
    let hold_ms = edge.hold_s.saturating_mul(1000);
    let sites = edge.sites.iter().map(|site| xds::Site {
        name: site.name.clone(),
        authority: authority(&site.origin),
    });
    let mut routes = Vec::new();
    for route in &edge.routes {
        let told = route.for_envoy();
        routes.push(told.ok_or_else(|| format!("`{}` is not host:port", route.upstream))?);
    }
    // Two instances of the filter, one behind the other, where any route reads
    // bodies; else one.
    let reads = edge.reads_bodies();
    let own = if reads { "before" } else { "pass" };
    let keys = core.keys.known(core.now() / 1000);
    let name = name_of(&module.sha256_hex(), served);
    let told = |bodies| plugin_config(config, edge, &keys, bodies, &name);
    let readers = reads.then(|| told("read"));
    let mut exempt = edge
        .exempt
        .for_envoy()
        .ok_or("an upstream of [[edge.unguarded]] is not host:port")?;
    exempt.metadata = edge.metadata_for_envoy(&config.server.issuer);
    Ok(xds::Settings {
        exempt,
        listener: xds::Listener {
            address: edge.listen.ip(),
            port: edge.listen.port(),
            client_certificates: edge.client_certificates,
        },
        authority: authority(&edge.origin),
        sites: sites.collect(),
        plugin_config: told(own),
        bodies_config: readers,
        start: core.started_ms,
        routes,
        module: module.clone(),
        hold_ms,
        stream_idle_ms: xds::default_stream_idle_ms(hold_ms.max(edge.decision_deadline_ms)),
        max_request_headers_kib: u32::try_from(config.limits.read.header_block.div_ceil(1024))
            .unwrap_or(32),
        access_log: xds::AccessLog::Stdout,
    })
}

/// An origin's `host[:port]`.
fn authority(origin: &str) -> String {
    let (_, authority) = origin.split_once("://").unwrap_or(("", origin));
    authority.to_owned()
}

/// The filter's own configuration; docs/reference/filter-config.md. `bodies` is
/// what this instance has to do with them, and `name` what it is to call itself.
fn plugin_config(
    config: &Config,
    edge: &Edge,
    keys: &[serde_json::Value],
    bodies: &str,
    name: &str,
) -> serde_json::Value {
    let routes: Vec<_> = edge
        .routes
        .iter()
        .map(|route| {
            let mode = match route.mode {
                Mode::Enforce => "enforce",
                Mode::Observe => "observe",
            };
            let mut told = json!({
                "name": route.name, "path_prefix": route.path_prefix,
                "mode": mode, "decision_header": route.decision_header,
            });
            if let (Some(body), Some(members)) = (&route.body, told.as_object_mut()) {
                let facts: Vec<&String> = body.facts.keys().collect();
                let body = json!({ "limit": body.limit, "facts": facts });
                members.insert("body".to_owned(), body);
            }
            if let (Some(told), Some(site)) = (told.as_object_mut(), &route.site) {
                told.insert("site".to_owned(), json!(site));
            }
            // Modules of before don't know it, and serve routes without it all the same.
            if let (Some(told), true) = (told.as_object_mut(), route.nonce) {
                told.insert("nonce".to_owned(), json!(true));
            }
            told
        })
        .collect();
    let sites: Vec<_> = edge
        .sites
        .iter()
        .map(|site| {
            let told =
                json!({ "name": site.name, "origin": site.origin, "resource": site.resource });
            with_metadata(edge, site, told)
        })
        .collect();
    let told = json!({
        "version": 1,
        "issuer": config.server.issuer,
        "resource": edge.resource,
        "origin": edge.origin,
        "keys": keys,
        "token_check": match (edge.token_check, bodies) {
            // A body takes one of few places while it comes: for agents alone, so
            // that the signature is checked before any of it is read.
            (TokenCheck::Edge, _) | (TokenCheck::Record, "read") => "edge",
            (TokenCheck::Record, _) => "record",
        },
        "crypto": if edge.portable_crypto { "portable" } else { "host" },
        "client_certificates": if edge.client_certificates { "required" } else { "none" },
        "cluster": xds::CONTROL_PLANE_CLUSTER,
        "decision_deadline_ms": edge.decision_deadline_ms,
        "hold_ms": edge.hold_s.saturating_mul(1000),
        "bodies": bodies,
        "body_deadline_ms": edge.body_deadline_ms,
        "limits": {
            "header_block": config.limits.read.header_block,
            "token": config.limits.read.token,
            "proof": config.limits.read.proof,
            "json_depth": config.limits.read.json_depth,
            "json_members": config.limits.read.json_members,
            "proof_window_s": edge.proof_window_s,
            "questions_in_flight": config.limits.questions_in_flight,
            "bodies_at_once": config.limits.bodies_at_once,
        },
        "routes": routes,
        "module": name,
        "sites": sites,
    });
    match edge.site_named(None) {
        Some(first) => with_metadata(edge, &first, told),
        None => told,
    }
}

/// What is told of an origin, and where its metadata is, where Envoy answers with that.
fn with_metadata(edge: &Edge, site: &Site, mut told: serde_json::Value) -> serde_json::Value {
    if let (Some(members), true) = (told.as_object_mut(), edge.metadata) {
        let url = format!("{}{}", site.origin, site.metadata_path());
        members.insert("resource_metadata".to_owned(), url.into());
    }
    told
}

/// The ids of the keys that proxies have to know.
pub fn kids(core: &Core) -> Vec<String> {
    let known = core.keys.known(core.now() / 1000);
    let kid = |key: &serde_json::Value| key.get("kid")?.as_str().map(str::to_owned);
    known.iter().filter_map(kid).collect()
}

/// ADS and decisions, over mTLS; in plaintext by the explicit flag alone.
pub async fn serve_grpc(
    listener: TcpListener,
    core: Arc<Core>,
    ads: Ads,
    decisions: DecisionsService,
    stop: CancellationToken,
    failed: CancellationToken,
) {
    let router = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .max_concurrent_streams(Some(1024))
        .add_service(ads.service())
        .add_service(decisions.clone().into_server());
    let incoming = match incoming(listener, &core) {
        Ok(incoming) => incoming,
        Err(error) => {
            tracing::error!(error, "the gRPC listener can't be opened");
            failed.cancel();
            stop.cancel();
            return;
        }
    };
    // The streams of proxies never end by themselves: they are cut at the stop.
    tokio::select! {
        served = router.serve_with_incoming(incoming) => {
            if let Err(error) = served {
                tracing::error!(%error, "the gRPC listener ended");
                failed.cancel();
                stop.cancel();
            }
        }
        () = async { stop.cancelled().await; decisions.end_holds().await } => {}
    }
}

fn incoming(listener: TcpListener, core: &Arc<Core>) -> Result<identity::mtls::Incoming, String> {
    if core.config.server.plaintext_grpc {
        let proxy = core
            .config
            .proxies
            .first()
            .ok_or("plaintext_grpc needs one [[proxy]] whose name it borrows")?;
        let peer = SpiffeId::parse(proxy).map_err(|error| error.to_string())?;
        return identity::mtls::plaintext_incoming(listener, peer)
            .map_err(|error| error.to_string());
    }
    let known = core.clone();
    let allowed = move |id: &SpiffeId| {
        known
            .config
            .proxies
            .iter()
            .any(|proxy| proxy == id.as_str())
    };
    Ok(identity::mtls::serve_incoming(
        listener,
        core.identity.clone(),
        Arc::new(allowed),
    ))
}

/// Notes of proxies that wait to be written: one that connects without end heaps up
/// no more.
const NOTES_WAITING: usize = 1_024;

/// Writes down what proxies accepted and refused, in the order it happened; the
/// server itself logs it.
struct Witness {
    core: Arc<Core>,
    notes: mpsc::Sender<serde_json::Value>,
    /// Those for which there was no room.
    left_out: Arc<AtomicU64>,
    holed: Holed,
}

impl Witness {
    fn start(core: Arc<Core>) -> Self {
        let (notes, mut queue) = mpsc::channel::<serde_json::Value>(NOTES_WAITING);
        let (own, left_out) = (core.clone(), Arc::new(AtomicU64::new(0)));
        let counted = left_out.clone();
        tokio::spawn(async move {
            while let Some(mut body) = queue.recv().await {
                let missing = counted.swap(0, Ordering::Relaxed);
                if let (Some(members), 1..) = (body.as_object_mut(), missing) {
                    members.insert("left_out".into(), missing.into());
                }
                if let Err(error) = core
                    .ledger
                    .commit(Command::Note {
                        kind: "proxy",
                        body,
                    })
                    .await
                {
                    tracing::error!(%error, "what a proxy said of its config could not be recorded");
                }
            }
        });
        Self {
            core: own,
            notes,
            left_out,
            holed: Holed::default(),
        }
    }

    fn note(&self, body: serde_json::Value) {
        // The task ends with the process only.
        if self.notes.try_send(body).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Observer for Witness {
    fn connected(&self, peer: &SpiffeId, node: &str) {
        self.core.fleet.came(peer.as_str(), node);
        self.note(json!({ "proxy": peer.as_str(), "event": "connected", "node": node }));
    }

    fn runs(&self, peer: &SpiffeId, node: &str, envoy: &str) {
        self.holed
            .runs(&self.core.warnings, peer.as_str(), node, envoy);
    }

    fn disconnected(&self, peer: &SpiffeId, node: &str) {
        self.holed.gone(&self.core.warnings, peer.as_str(), node);
        self.note(json!({ "proxy": peer.as_str(), "event": "disconnected", "node": node }));
    }

    fn acked(&self, peer: &SpiffeId, node: &str, kind: Kind, version: &str) {
        self.note(json!({ "proxy": peer.as_str(), "event": "ack", "node": node, "kind": format!("{kind:?}"), "version": version }));
    }

    fn nacked(&self, peer: &SpiffeId, node: &str, kind: Kind, nack: &Nack) {
        self.core.metrics.nacked(kind.as_str());
        let version = nack.version.as_str();
        let message: String = nack.error.chars().take(512).collect();
        self.note(json!({ "proxy": peer.as_str(), "event": "nack", "node": node, "kind": format!("{kind:?}"), "version": version, "message": message }));
    }
}
