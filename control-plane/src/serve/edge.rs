//! What Envoy is told: settings from the config file, the module inline, and
//! who heard it.

use crate::config::{Config, Edge};
use crate::decide::DecisionsService;
use crate::state::Core;
use capability::decide::Mode;
use capability::gates::TokenCheck;
use identity::SpiffeId;
use ledger::model::Command;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xds::{Ads, Kind, Nack, Observer};

/// The filter's module, as it was read.
pub struct Module {
    /// What Envoy gets.
    pub inner: xds::Module,
    /// SHA-256 of it, hex.
    pub sha256: String,
    modified: Option<SystemTime>,
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

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|meta| meta.modified())
        .ok()
}

/// The server of Envoy's configuration, with this config and module.
///
/// # Errors
/// What the settings can't be.
pub fn ads(core: &Arc<Core>, module: &Module) -> Result<Ads, String> {
    let settings = settings(core, &module.inner)?;
    Ads::new(&settings, Arc::new(Witness::start(core.clone())))
        .map_err(|error| format!("what Envoy should be told is not usable: {error}"))
}

fn settings(core: &Core, module: &xds::Module) -> Result<xds::Settings, String> {
    let config = &core.config;
    let edge = &config.edge;
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
    let readers = reads.then(|| plugin_config(config, &keys, "read"));
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
        plugin_config: plugin_config(config, &keys, own),
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
/// what this instance has to do with them.
fn plugin_config(config: &Config, keys: &[serde_json::Value], bodies: &str) -> serde_json::Value {
    let edge = &config.edge;
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
            told
        })
        .collect();
    let sites: Vec<_> = edge
        .sites
        .iter()
        .map(|site| json!({ "name": site.name, "origin": site.origin, "resource": site.resource }))
        .collect();
    json!({
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
        "sites": sites,
    })
}

/// Pushes the module again when its file changes, and with it the keys when they
/// do; what can't be used is said and the last one stays.
pub fn watch_module(
    core: Arc<Core>,
    ads: Ads,
    first: Module,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> watch::Receiver<Option<String>> {
    let (show, shown) = watch::channel(Some(first.sha256.clone()));
    let stop = stop.clone();
    tasks.spawn(async move {
        let path = core.config.edge.module.clone();
        let mut current = first;
        let mut known = kids(&core);
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! { () = stop.cancelled() => return, _ = tick.tick() => {} }
            if let Err(error) = core.keys.reload() {
                tracing::error!(%error, "the changed list of keys can't be used; the last one stays");
            }
            // They change with the time as well.
            let now_known = kids(&core);
            if now_known != known && push(&core, &ads, &current).await {
                known = now_known;
            }
            if modified(&path).is_none() || modified(&path) == current.modified {
                continue;
            }
            // A file that is still being written changes again; wait for it to rest.
            let seen = modified(&path);
            tokio::time::sleep(Duration::from_millis(300)).await;
            if modified(&path) != seen {
                continue;
            }
            match Module::read(&core.config.edge) {
                Ok(module) if module.sha256 == current.sha256 => current.modified = module.modified,
                Ok(module) => {
                    if push(&core, &ads, &module).await {
                        show.send_replace(Some(module.sha256.clone()));
                        current = module;
                    }
                }
                Err(error) => {
                    tracing::error!(
                        error,
                        "the changed module is not pushed; proxies keep the last one"
                    );
                    current.modified = seen;
                }
            }
        }
    });
    shown
}

/// The ids of the keys that proxies have to know.
fn kids(core: &Core) -> Vec<String> {
    let known = core.keys.known(core.now() / 1000);
    let kid = |key: &serde_json::Value| key.get("kid")?.as_str().map(str::to_owned);
    known.iter().filter_map(kid).collect()
}

/// The entry comes before the push: what runs is never unknown to the log.
async fn push(core: &Core, ads: &Ads, module: &Module) -> bool {
    let body = json!({ "keys": kids(core), "module": module.sha256, "config": core.config.version, "policy": core.policies.version(), "exempt": core.config.edge.exempt.told_to_journal() });
    if let Err(error) = core
        .ledger
        .commit(Command::Note {
            kind: "config",
            body,
        })
        .await
    {
        tracing::error!(%error, "a new module or other keys could not be recorded, so they are not pushed");
        return false;
    }
    let settings = settings(core, &module.inner);
    let updated =
        settings.and_then(|settings| ads.update(&settings).map_err(|error| error.to_string()));
    match updated {
        Ok(_) => {
            tracing::info!(
                sha256 = module.sha256,
                "another module, or other keys, are pushed"
            );
            true
        }
        Err(error) => {
            tracing::error!(error, "a new module or other keys can't be pushed");
            false
        }
    }
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
        .add_service(decisions.into_server());
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
        () = stop.cancelled() => {}
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

/// Writes down what proxies accepted and refused, in the order it happened; the
/// server itself logs it.
struct Witness {
    core: Arc<Core>,
    notes: mpsc::UnboundedSender<serde_json::Value>,
}

impl Witness {
    fn start(core: Arc<Core>) -> Self {
        let (notes, mut queue) = mpsc::unbounded_channel::<serde_json::Value>();
        let own = core.clone();
        tokio::spawn(async move {
            while let Some(body) = queue.recv().await {
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
        Self { core: own, notes }
    }

    fn note(&self, body: serde_json::Value) {
        // The task ends with the process only.
        let _ = self.notes.send(body);
    }
}

impl Observer for Witness {
    fn connected(&self, peer: &SpiffeId, node: &str) {
        self.note(json!({ "proxy": peer.as_str(), "event": "connected", "node": node }));
    }

    fn disconnected(&self, peer: &SpiffeId, node: &str) {
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
