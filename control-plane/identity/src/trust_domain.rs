//! The built-in trust domain: its settings, its keys, its socket.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::throttle::Throttle;
use crate::{
    Caller, SpiffeId, SpiffeIdError, WorkloadEntry,
    attest::identities,
    ca::{Authority, X509Identity},
    jwt::JwtAuthority,
    keyfile,
    proto::spiffe_workload_api_server::SpiffeWorkloadApiServer,
    sds::Secrets,
    socket,
    workload_api::WorkloadApi,
};

/// Milliseconds since the Unix epoch.
pub type Millis = u64;
/// Where the time comes from.
pub type Clock = Arc<dyn Fn() -> Millis + Send + Sync>;

/// An X.509-SVID lives between a second and a day.
const X509_TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
/// A JWT-SVID lives between a second and an hour.
const JWT_TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);
/// Requests on this socket are a few names or one token.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
const MAX_STREAMS_PER_CONNECTION: u32 = 64;

/// What the built-in trust domain is made of.
#[derive(Clone)]
pub struct TrustDomainSettings {
    /// The trust domain's bare name, such as `writ.example`.
    pub name: String,
    /// Where its keys are kept; made on the first start, for the owner alone.
    pub dir: PathBuf,
    /// The Unix socket of the Workload API.
    pub socket: PathBuf,
    /// The identity of this very process.
    pub self_id: SpiffeId,
    /// Who else has an identity.
    pub entries: Vec<WorkloadEntry>,
    /// Names and IP addresses that some of them are reached by, which their
    /// X.509-SVIDs name besides: clients look for them in a server's certificate.
    pub hosts: BTreeMap<SpiffeId, Vec<String>>,
    /// How long an X.509-SVID lives (1 s to 24 h); a new one is pushed at half of it.
    pub x509_ttl: Duration,
    /// How long a JWT-SVID lives (1 s to 1 h).
    pub jwt_ttl: Duration,
    /// Where the time comes from.
    pub clock: Clock,
}

/// Why the built-in trust domain can't be opened or served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustDomainError {
    /// The configured name is not a trust domain's.
    #[error("trust domain {name:?} is not a valid name: {source}")]
    Name {
        /// What was configured.
        name: String,
        /// What is wrong with it.
        source: SpiffeIdError,
    },
    /// An identity belongs elsewhere.
    #[error(
        "{id} is not a workload of trust domain {trust_domain}: write spiffe://{trust_domain}/PATH"
    )]
    ForeignId {
        /// The identity.
        id: SpiffeId,
        /// The trust domain that was configured.
        trust_domain: String,
    },
    /// An entry would give its identity to every process.
    #[error("the workload entry of {id} names neither a uid nor an executable: add one")]
    OpenEntry {
        /// The entry's identity.
        id: SpiffeId,
    },
    /// A lifetime is out of its range.
    #[error("{what} is {seconds} s: it must be from 1 s to {limit} s")]
    Lifetime {
        /// Which lifetime.
        what: &'static str,
        /// What was configured.
        seconds: u64,
        /// The longest one that is allowed.
        limit: u64,
    },
    /// A file or directory can't be used.
    #[error("{path} can't be used: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Keys lie open to other users.
    #[error("{path} may be read by others: run chmod go= on it, and make new keys if anybody did")]
    NotPrivate {
        /// The file or directory.
        path: PathBuf,
    },
    /// A stored file is not what it should be.
    #[error(
        "{path} is damaged or of another trust domain: restore it, or move the directory away to start a new trust domain"
    )]
    BadFile {
        /// Which one.
        path: PathBuf,
    },
    /// The authority's certificate is there and its key isn't.
    #[error(
        "{key} is missing but {certificate} is there: restore the key, or remove the certificate to start a new trust domain"
    )]
    KeyMissing {
        /// The missing key.
        key: PathBuf,
        /// The certificate that was found.
        certificate: PathBuf,
    },
    /// Another process answers on the socket.
    #[error("{socket} is served by another process: stop it or configure another path")]
    SocketInUse {
        /// The socket.
        socket: PathBuf,
    },
    /// Something that is no socket is in the way.
    #[error("{socket} exists and is not a socket: move it away or configure another path")]
    NotASocket {
        /// The path.
        socket: PathBuf,
    },
    /// A key or certificate could not be made.
    #[error("a key or certificate of the trust domain could not be made: {0}")]
    Crypto(#[from] rcgen::Error),
}

impl TrustDomainError {
    pub(crate) fn file(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }
}

/// The built-in trust domain, open but not yet served.
#[derive(Clone)]
pub struct BuiltIn {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    strangers: Throttle,
    settings: TrustDomainSettings,
    trust_domain: SpiffeId,
    authority: Authority,
    jwt: JwtAuthority,
}

impl Shared {
    pub(crate) fn now(&self) -> Millis {
        (self.settings.clock)()
    }

    pub(crate) fn trust_domain(&self) -> &SpiffeId {
        &self.trust_domain
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(crate) fn jwt(&self) -> &JwtAuthority {
        &self.jwt
    }

    pub(crate) fn identities(&self, caller: &Caller) -> Vec<SpiffeId> {
        let ids = identities(&self.settings.entries, &self.settings.self_id, caller);
        if ids.is_empty()
            && let Some(suppressed) = self.strangers.pass(std::time::Instant::now())
        {
            tracing::warn!(
                suppressed,
                uid = caller.uid,
                pid = caller.pid,
                executable_readable = caller.executable.is_some(),
                "no workload entry fits a caller of the workload api"
            );
        }
        ids
    }

    pub(crate) fn issue_x509(&self, id: &SpiffeId) -> Result<X509Identity, tonic::Status> {
        let hosts = self.settings.hosts.get(id).map_or(&[][..], Vec::as_slice);
        self.authority
            .issue(id, hosts, self.now())
            .map_err(|error| {
                tracing::error!(%error, %id, "an x.509-svid could not be made");
                tonic::Status::internal("an X.509-SVID could not be made")
            })
    }
}

impl BuiltIn {
    /// Checks the settings and opens the keys, making them on the first start.
    ///
    /// # Errors
    /// When a setting is wrong or the directory can't be used.
    pub fn open(settings: TrustDomainSettings) -> Result<Self, TrustDomainError> {
        let trust_domain =
            SpiffeId::of_trust_domain(&settings.name).map_err(|source| TrustDomainError::Name {
                name: settings.name.clone(),
                source,
            })?;
        check(&settings)?;
        keyfile::prepare_dir(&settings.dir)?;
        let authority = Authority::open(
            &settings.dir,
            &trust_domain,
            settings.x509_ttl,
            (settings.clock)(),
        )?;
        let jwt = JwtAuthority::open(&settings.dir, settings.jwt_ttl)?;
        Ok(Self {
            shared: Arc::new(Shared {
                strangers: Throttle::new(std::time::Instant::now()),
                settings,
                trust_domain,
                authority,
                jwt,
            }),
        })
    }

    /// The authority's certificate as PEM, for those who verify by hand.
    pub fn bundle_pem(&self) -> &str {
        self.shared.authority.bundle_pem()
    }

    /// Binds the socket and serves the Workload API and SDS on it until
    /// `shutdown`; the task ends when the last stream has.
    ///
    /// Any local process may connect: attestation decides what it gets. The
    /// directory of the socket must exist.
    ///
    /// # Errors
    /// When the socket can't be bound, or another process answers on it.
    pub fn serve(&self, shutdown: CancellationToken) -> Result<JoinHandle<()>, TrustDomainError> {
        let path = self.shared.settings.socket.clone();
        let listener = socket::bind(&path)?;
        let workload_api = SpiffeWorkloadApiServer::new(WorkloadApi::new(
            Arc::clone(&self.shared),
            shutdown.clone(),
        ))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let secrets = SecretDiscoveryServiceServer::new(Secrets::new(
            Arc::clone(&self.shared),
            shutdown.clone(),
        ))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let server = tonic::transport::Server::builder()
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
            .add_service(workload_api)
            .add_service(secrets)
            .serve_with_incoming_shutdown(listener.incoming(), shutdown.cancelled_owned());
        tracing::info!(socket = %path.display(), trust_domain = %self.shared.trust_domain, "workload api serves");
        Ok(tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the workload api stopped");
            }
            socket::remove(&path);
        }))
    }
}

fn check(settings: &TrustDomainSettings) -> Result<(), TrustDomainError> {
    let ids = settings
        .entries
        .iter()
        .map(|entry| &entry.spiffe_id)
        .chain([&settings.self_id]);
    for id in ids {
        if id.trust_domain() != settings.name || !id.is_workload() {
            return Err(TrustDomainError::ForeignId {
                id: id.clone(),
                trust_domain: settings.name.clone(),
            });
        }
    }
    for entry in &settings.entries {
        if entry.uid.is_none() && entry.executable.is_none() {
            return Err(TrustDomainError::OpenEntry {
                id: entry.spiffe_id.clone(),
            });
        }
    }
    let lifetimes = [
        ("the x.509-svid lifetime", settings.x509_ttl, X509_TTL),
        ("the jwt-svid lifetime", settings.jwt_ttl, JWT_TTL),
    ];
    for (what, lifetime, range) in lifetimes {
        if !range.contains(&lifetime) {
            return Err(TrustDomainError::Lifetime {
                what,
                seconds: lifetime.as_secs(),
                limit: range.end().as_secs(),
            });
        }
    }
    Ok(())
}
