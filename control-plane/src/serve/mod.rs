//! `writ serve`: puts the rooms together, opens the doors, and closes them in
//! order.

pub(crate) mod admin_socket;
pub(crate) mod advice;
mod clock;
mod edge;
mod hardening;
pub(crate) mod http;
mod identities;
pub(crate) mod places;
pub(crate) mod probe;
mod ready;
mod rollout;
mod rotation;
pub(crate) mod signals;
mod store;
mod versions;

use crate::approval::{ApprovalDesk, expire};
use crate::canary::Canary;
use crate::clients::Clients;
use crate::config::{Config, ConfigError};
use crate::decide::{DecisionKey, DecisionsService};
use crate::edges::Edges;
use crate::exchange::{Exchange, Issuers};
use crate::fleet::Fleet;
use crate::keys::{self, KeyError, KeyRing};
use crate::metrics::Metrics;
use crate::nonces::EdgeNonces;
use crate::refusals::Refusals;
use crate::state::{Core, Start, system_clock};
use crate::warnings::Warnings;
use crate::web::{self, Logins, WebSettings};
use axum::Router;
use axum::routing::get;
use identities::identities_from;
use ledger::model::Command;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long open connections may take to finish once we are asked to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// What `writ serve` was told on the command line.
pub struct ServeOptions {
    /// The config file.
    pub config: PathBuf,
    /// Where to say that everything answers.
    pub ready_file: Option<PathBuf>,
    /// Print a one-time login link for the approver's page.
    pub print_login: bool,
    /// A database that goes before `ledger.store`.
    pub store: Option<String>,
}

/// Why the control plane does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The config file, all of it.
    #[error("the config is not usable; nothing was started:\n{}", .0.iter().map(|error| format!("  {error}\n")).collect::<String>())]
    Config(Vec<ConfigError>),
    /// The policy files, all of them.
    #[error("the policy is not usable; nothing was started:\n{}", .0.iter().map(|error| format!("  {error}\n")).collect::<String>())]
    Policy(Vec<policy::LoadError>),
    /// A directory of ours.
    #[error("can't make the directory `{0}`: {1}; make it writable for this user or name another")]
    Directory(PathBuf, std::io::Error),
    /// The signing key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The journal.
    #[error("the ledger at `{}`: {}\n{}", .0.display(), .1, advice::of(.0, .1))]
    Ledger(PathBuf, ledger::OpenError),
    /// Two keys, or a flag and a key, that do not go together.
    #[error(
        "--store and ledger.head_copy exclude each other: no head is kept of a log in a database; keep one with `writ audit verify URL`"
    )]
    HeadOfDatabase,
    /// A schedule of keys, and a flag that makes several replicas of it.
    #[error(
        "--store and keys.rotate_every_days: several replicas may share the database, and each would make keys that the others don't know; say keys.shared = true where all of them have the same `keys` directory, else rotate with `writ keys rotate`"
    )]
    KeysOfReplicas,
    /// The database that holds the log.
    #[error("the ledger's database (ledger.store): {0}")]
    Database(#[from] ledger::postgres::PostgresError),
    /// The built-in trust domain.
    #[error("the built-in trust domain: {0}")]
    TrustDomain(#[from] identity::TrustDomainError),
    /// The Workload API.
    #[error("the Workload API at `{0}`: {1}")]
    Source(PathBuf, identity::SourceError),
    /// A listener.
    #[error("can't listen on {0}: {1}; is the port taken? name another in the config file")]
    Listen(String, std::io::Error),
    /// The admin socket.
    #[error(
        "can't listen on the admin socket `{0}`: {1}; make its directory, stop who uses it, or name another in server.admin_socket"
    )]
    AdminSocket(PathBuf, std::io::Error),
    /// The filter's module or what Envoy is told.
    #[error("{0}")]
    Edge(String),
    /// The ready file.
    #[error("can't write the ready file `{0}`: {1}")]
    Ready(PathBuf, std::io::Error),
    /// The data directory.
    #[error(
        "others may enter the data directory `{0}` (mode {1:o}), which holds keys; make it 0700"
    )]
    Open(PathBuf, u32),
    /// A listener ended by itself.
    #[error("a listener failed, so everything was stopped; the log says which")]
    ListenerFailed,
    /// The audit log did not take the entry that this start has to have.
    #[error("the first entry of this start could not be made durable")]
    FirstEntry,
}

/// Runs until SIGINT or SIGTERM, then drains.
///
/// # Errors
/// Everything that is wrong before the doors open.
pub async fn serve(options: ServeOptions) -> Result<(), ServeError> {
    hardening::limit_resources();
    let mut config = Config::read_to_serve(&options.config).map_err(ServeError::Config)?;
    if options.store.is_some() {
        if config.ledger.head_copy.is_some() {
            return Err(ServeError::HeadOfDatabase);
        }
        if !config.keys.may_rotate_with_a_database() {
            return Err(ServeError::KeysOfReplicas);
        }
        config.ledger.store.url.clone_from(&options.store);
    }
    // What nobody has tried waits; the last good one is what all begin with.
    let module = edge::Module::read(&config.edge).map_err(ServeError::Edge)?;
    let begin = rollout::begin_with(&config, &module);
    let edges = Edges::new(&config, begin.edge.clone());
    let policies =
        policy::Policies::load_with(&config.policies, &config.approvers, &config.facts())
            .map_err(ServeError::Policy)?;
    // Before anything is started: a stop that comes now is not missed.
    signals::outlive_hangups();
    let stop = signals::stop_on_signal();
    let failed = CancellationToken::new();
    let tasks = TaskTracker::new();

    // What may be taken or missing comes before anything is made.
    let pinned = edge::pinned(&config.edge).map_err(ServeError::Edge)?;
    let issuers = Issuers::new(&config).map_err(ServeError::Edge)?;
    let clients = Clients::new(&config).map_err(ServeError::Edge)?;
    let http = bind(config.server.listen)?;
    let grpc = bind(config.server.grpc_listen)?;
    let mtls = config.server.mtls_listen.map(bind).transpose()?;
    let metrics = config.server.metrics_listen.map(bind).transpose()?;
    make_dir(&config.server.data_dir)?;
    let clock = system_clock();
    let place = keys::Place::of(&config)?;
    let keys = KeyRing::open(&place, clock() / 1000)?;
    let decision_key = DecisionKey::open(&place.dir)?;
    let edge_nonces = EdgeNonces::open(&place.dir, &config.server.issuer)?;
    let (ledger, begun) = match &config.ledger.store.url {
        Some(url) => store::in_database(url, &config, &clock).await?,
        None => store::embedded(&config, &clock)?,
    };

    // The built-in trust domain outlives everything that uses its identities.
    let identities = CancellationToken::new();
    let source = identities_from(&config, &clock, &identities).await?;
    let federation =
        crate::federated::federation(&config, source.clone()).map_err(ServeError::Edge)?;
    let in_files = config.ledger.store.url.is_none();
    let start = Start::at(clock(), ledger.now(), begun, in_files);
    let core = Arc::new(Core {
        started_ms: start.ms,
        is_first: begun,
        once_from_ms: start.once_from_ms,
        ledger,
        policies,
        keys,
        decision_key,
        edge_nonces,
        identity: source,
        federation,
        issuers,
        clients,
        refusals: Refusals::default(),
        seen: crate::seen::Seen::default(),
        bodies: crate::approval::Bodies::default(),
        fleet: Fleet::default(),
        metrics: Metrics::default(),
        warnings: Warnings::default(),
        clock,
        edges,
        config,
    });
    first_entry(&core, &begin).await?;
    crate::rights::declare(&core.config, &core.ledger)
        .await
        .map_err(|error| {
            ServeError::Edge(format!(
                "the agents of the config can't be registered: {error}"
            ))
        })?;
    rollout::say_pinned(&core, &pinned).await?;

    let ads = edge::ads(&core, &begin, &pinned).map_err(ServeError::Edge)?;
    let rollout = rollout::Rollout::new(core.clone(), ads.clone(), begin, pinned);
    let module_sha256 = rollout.run(module, &tasks, &stop);
    let logins = Logins::new();
    let desk: Arc<dyn web::Desk> = Arc::new(ApprovalDesk::new(core.clone(), ads.clone()));
    let exchange = Arc::new(Exchange::new(core.clone()).map_err(ServeError::Edge)?);

    // A fresh proof, or nonce, of this very second would be refused: let the second pass.
    let early_ms = start.second_ms.saturating_sub((core.clock)());
    tokio::time::sleep(Duration::from_millis(early_ms.min(1000))).await;
    crate::federated::fetch_bundles(&core).await;
    let http = listen(http, core.config.server.listen)?;
    let grpc = listen(grpc, core.config.server.grpc_listen)?;
    let metrics = match (metrics, core.config.server.metrics_listen) {
        (Some(socket), Some(address)) => Some(listen(socket, address)?),
        _ => None,
    };
    let pages = web::pages(
        desk.clone(),
        logins.clone(),
        WebSettings {
            secure_cookies: core.config.server.issuer.starts_with("https://"),
            dev_single_uid: core.config.identity.dev_single_uid,
            issuer: core.config.server.issuer.clone(),
            module_sha256: module_sha256.clone(),
            stop: stop.clone(),
        },
    );
    let router = pages
        .merge(crate::exchange::routes(exchange.clone()))
        .merge(health(core.clone()));
    tasks.spawn(serve_http(http, router, stop.clone(), failed.clone()));
    if let (Some(socket), Some(address)) = (mtls, core.config.server.mtls_listen) {
        let listener = listen(socket, address)?;
        let (source, beside) = (core.identity.clone(), core.federation.clone());
        let incoming = identity::mtls::serve_workloads(listener, source, beside);
        let router = crate::exchange::mtls_routes(exchange);
        tasks.spawn(http::serve_workloads(incoming, router, stop.clone()));
    }
    if let Some(listener) = metrics {
        let router = metrics_page(core.clone(), ads.clone());
        tasks.spawn(serve_http(listener, router, stop.clone(), failed.clone()));
    }
    let decisions = DecisionsService::new(core.clone());
    tasks.spawn(edge::serve_grpc(
        grpc,
        core.clone(),
        ads.clone(),
        decisions.clone(),
        stop.clone(),
        failed.clone(),
    ));
    tasks.spawn(until(stop.clone(), decisions.clone().end_what_is_stopped()));
    tasks.spawn(until(stop.clone(), decisions.sweep()));
    let module = module_sha256.clone();
    admin_socket::open(&core, desk, logins.clone(), module, &tasks, &stop)?;
    tasks.spawn(until(stop.clone(), expire(core.clone())));
    tasks.spawn(until(stop.clone(), crate::fresh::keep_fresh(core.clone())));
    tasks.spawn(until(stop.clone(), crate::seen::keep(core.clone())));
    if core.config.canary.every_s > 0 {
        let canary = Canary::new(core.clone()).map_err(ServeError::Edge)?;
        tasks.spawn(until(stop.clone(), canary.run()));
    }
    tasks.spawn(until(stop.clone(), flush_each_minute(core.clone())));
    tasks.spawn(until(stop.clone(), clock::watch(core.clone())));
    if core.config.keys.rotate_every_days > 0 {
        tasks.spawn(until(stop.clone(), rotation::run(core.clone())));
    }
    tasks.spawn(until(stop.clone(), rotation::watch_token(core.clone())));

    let login = (options.print_login || options.ready_file.is_some()).then(|| {
        format!(
            "{}/login#{}",
            core.config.server.issuer,
            logins.mint_for(&core.config.server.login_as, core.ledger.now())
        )
    });
    if options.print_login
        && let Some(login) = &login
    {
        use std::io::Write as _;
        // Who closed standard output wants no link; that is no reason to end.
        let _ = writeln!(
            std::io::stdout().lock(),
            "Sign in to approve (10 minutes, once): {login}"
        );
    }
    if let Some(path) = &options.ready_file {
        match ready::write(path, &core, login.as_deref(), &module_sha256) {
            Ok(()) => {}
            // What takes rights away is worth more than this file.
            Err(error) if core.ledger.is_full() && error.kind() == ErrorKind::StorageFull => {
                tracing::error!(path = %path.display(), %error, "no space is left for the ready file");
            }
            Err(error) => return Err(ServeError::Ready(path.clone(), error)),
        }
    }
    tracing::info!(issuer = core.config.server.issuer, grpc = %core.config.server.grpc_listen, "serving");

    stop.cancelled().await;
    tracing::info!("stopping: no new connections; what is under way may finish");
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!("some connections did not finish in time and are cut");
    }
    crate::seen::keep_all(&core).await;
    core.refusals.flush(&core.ledger).await;
    let note = Command::Note {
        kind: "shutdown",
        body: serde_json::json!({ "reason": "signal" }),
    };
    if let Err(error) = core.ledger.commit(note).await {
        tracing::error!(%error, "the last entry could not be recorded");
    }
    core.ledger.shutdown().await;
    identities.cancel();
    if failed.is_cancelled() {
        Err(ServeError::ListenerFailed)
    } else {
        Ok(())
    }
}

fn make_dir(dir: &Path) -> Result<(), ServeError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| ServeError::Directory(dir.to_owned(), error))?;
    let mode = std::fs::metadata(dir)
        .map_err(|error| ServeError::Directory(dir.to_owned(), error))?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o077 != 0 {
        Err(ServeError::Open(dir.to_owned(), mode))
    } else {
        Ok(())
    }
}

/// What this start runs on is an entry before anything is served.
async fn first_entry(core: &Core, begin: &edge::Release) -> Result<(), ServeError> {
    let own_uid = hardening::workloads_of_own_uid(&core.config);
    for workload in &own_uid {
        tracing::warn!(
            workload,
            "this workload has the control plane's own uid: it can read our keys, and nothing here binds it"
        );
    }
    for advice in core.config.advice() {
        tracing::warn!("{advice}");
    }
    for line in core.edges.told_exempt() {
        let text = format!("UNGUARDED by name, no token is asked for: {line}");
        tracing::warn!("{text}");
        core.warnings.raise(&format!("exempt {line}"), &text);
    }
    let observed = core.edges.observed_routes();
    for route in &observed {
        let text = format!("the route `{route}` only observes: NOTHING IS REFUSED on it");
        tracing::warn!(route, "{text}");
        core.warnings.raise(&format!("observe {route}"), &text);
    }
    let body = serde_json::json!({
        "exempt": core.edges.exempt_for_journal(),
        "config": core.config.version,
        "policy": core.policies.version(),
        "module": begin.module.sha256,
        "edge": begin.edge.version,
        "version": env!("CARGO_PKG_VERSION"),
        "dev_single_uid": core.config.identity.dev_single_uid,
        "plaintext_grpc": core.config.server.plaintext_grpc,
        "workloads_of_own_uid": own_uid,
        "observed_routes": observed,
    });
    match core
        .ledger
        .commit(Command::Note {
            kind: "config",
            body,
        })
        .await
    {
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::error!(%error, "the config entry could not be recorded");
            Err(ServeError::FirstEntry)
        }
    }
}

/// Takes the port; nobody can connect before [`listen`].
fn bind(address: SocketAddr) -> Result<TcpSocket, ServeError> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    };
    socket
        .and_then(|socket| {
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            Ok(socket)
        })
        .map_err(|error| ServeError::Listen(address.to_string(), error))
}

fn listen(socket: TcpSocket, address: SocketAddr) -> Result<TcpListener, ServeError> {
    socket
        .listen(BACKLOG)
        .map_err(|error| ServeError::Listen(address.to_string(), error))
}

fn health(core: Arc<Core>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        // Ready means that an entry can be made durable now; the ledger ends
        // the process when it can't write, so an open queue says that it can.
        .route(
            "/readyz",
            get(move || async move {
                let full = if core.ledger.is_full() {
                    "no space is left for the journal: only what takes rights away is taken\n"
                } else {
                    ""
                };
                format!("ready {}\n{full}", core.ledger.head().0)
            }),
        )
}

/// On a listener of its own: agents reach the issuer's, and are told nothing.
fn metrics_page(core: Arc<Core>, ads: xds::Ads) -> Router {
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    let page = move || async move {
        let connected = ads.status().iter().filter(|it| it.connected).count();
        let text = core.metrics.render(&core, connected);
        ([(axum::http::header::CONTENT_TYPE, TEXT)], text)
    };
    Router::new().route("/metrics", get(page))
}

async fn serve_http(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    failed: CancellationToken,
) {
    if let Err(error) = http::serve(listener, router, stop.clone()).await {
        tracing::error!(%error, "the HTTP listener ended");
        failed.cancel();
        stop.cancel();
    }
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! { () = stop.cancelled() => {}, () = work => {} }
}

async fn flush_each_minute(core: Arc<Core>) {
    let mut tick = tokio::time::interval(Duration::from_secs(60));
    loop {
        tick.tick().await;
        core.refusals.flush(&core.ledger).await;
    }
}
