//! The consumer of a Workload API: the built-in one or SPIRE's, by the same code.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64ct::Encoding as _;
use spiffe::{
    JwtSource, JwtSourceBuilder, SpiffeId as WireId, WorkloadApiClient, WorkloadApiError,
    X509Context, X509Source, X509SourceBuilder, X509Svid, transport::Endpoint,
    x509_source::SvidPicker,
};

use crate::SpiffeId;

/// A JWT-SVID is fetched within this time or not at all.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a Workload API gave us nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The socket's path can't be made absolute.
    #[error("{socket} is not a usable socket path: {source}")]
    Path {
        /// What was configured.
        socket: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It did not answer in time, or refused.
    #[error(
        "the workload api at {socket} gave no identity: {reason}; is it running, and has it an entry for this process?"
    )]
    Unavailable {
        /// Where it was asked.
        socket: PathBuf,
        /// Its reason, or what the crate says.
        reason: String,
    },
    /// It sent something that is no SPIFFE ID.
    #[error("the workload api sent an identity that is not a spiffe id")]
    BadIdentity,
}

/// Our own identity and the trust bundles, kept current in the background.
#[derive(Clone)]
pub struct Source {
    inner: Arc<Inner>,
}

struct Inner {
    socket: PathBuf,
    x509: X509Source,
    jwt: JwtSource,
}

/// Picks the one identity that the configuration names.
struct Named(WireId);

impl SvidPicker for Named {
    fn pick_svid(&self, svids: &[Arc<X509Svid>]) -> Option<usize> {
        svids.iter().position(|svid| *svid.spiffe_id() == self.0)
    }
}

impl Source {
    /// Connects as the caller's default identity and waits for the first
    /// X.509-SVID and bundles.
    ///
    /// # Errors
    /// When there is no answer within `timeout`, or none for us.
    pub async fn connect(socket: &Path, timeout: Duration) -> Result<Self, SourceError> {
        Self::connect_with(socket, None, timeout).await
    }

    /// Connects as one identity of those that this process has.
    ///
    /// # Errors
    /// When there is no answer within `timeout`, or `id` isn't ours.
    pub async fn connect_as(
        socket: &Path,
        id: &SpiffeId,
        timeout: Duration,
    ) -> Result<Self, SourceError> {
        Self::connect_with(socket, Some(id), timeout).await
    }

    async fn connect_with(
        socket: &Path,
        id: Option<&SpiffeId>,
        timeout: Duration,
    ) -> Result<Self, SourceError> {
        let socket = absolute(socket)?;
        let unavailable = |reason: String| SourceError::Unavailable {
            socket: socket.clone(),
            reason,
        };
        let mut x509 = X509SourceBuilder::new()
            .client_factory(client_factory(&socket))
            .initial_sync_timeout(timeout);
        if let Some(id) = id {
            let wanted = WireId::new(id.as_str()).map_err(|_| SourceError::BadIdentity)?;
            x509 = x509.picker(Named(wanted));
        }
        let jwt = JwtSourceBuilder::new()
            .client_factory(client_factory(&socket))
            .initial_sync_timeout(timeout);
        let (x509, jwt) = tokio::join!(x509.build(), jwt.build());
        Ok(Self {
            inner: Arc::new(Inner {
                x509: x509.map_err(|error| unavailable(error.to_string()))?,
                jwt: jwt.map_err(|error| unavailable(error.to_string()))?,
                socket,
            }),
        })
    }

    /// Who we are, by our current X.509-SVID.
    ///
    /// # Errors
    /// When the Workload API has withdrawn our identity.
    pub fn own_id(&self) -> Result<SpiffeId, SourceError> {
        SpiffeId::parse(&self.svid()?.spiffe_id().to_string()).map_err(|_| SourceError::BadIdentity)
    }

    /// The JWT bundles of every trust domain that the Workload API has sent.
    pub(crate) fn jwt(&self) -> &JwtSource {
        &self.inner.jwt
    }

    /// Fetches a JWT-SVID of our own for one audience.
    ///
    /// # Errors
    /// When the Workload API doesn't answer or refuses.
    pub async fn fetch_jwt_svid(&self, audience: &str) -> Result<String, SourceError> {
        let fetch = self.inner.jwt.fetch_jwt_svid([audience]);
        match tokio::time::timeout(FETCH_TIMEOUT, fetch).await {
            Ok(Ok(svid)) => Ok(svid.token().to_owned()),
            Ok(Err(error)) => Err(self.unavailable(error.to_string())),
            Err(_) => Err(self.unavailable("no answer in 5 s".to_owned())),
        }
    }

    /// Our own X.509-SVID as it is now, with its key.
    ///
    /// # Errors
    /// When the Workload API has withdrawn our identity.
    pub fn x509_credentials(&self) -> Result<X509Credentials, SourceError> {
        credentials(&*self.svid()?, &*self.context()?)
    }

    pub(crate) fn svid(&self) -> Result<Arc<X509Svid>, SourceError> {
        self.inner
            .x509
            .svid()
            .map_err(|error| self.unavailable(error.to_string()))
    }

    pub(crate) fn context(&self) -> Result<Arc<X509Context>, SourceError> {
        self.inner
            .x509
            .x509_context()
            .map_err(|error| self.unavailable(error.to_string()))
    }

    fn unavailable(&self, reason: String) -> SourceError {
        SourceError::Unavailable {
            socket: self.inner.socket.clone(),
            reason,
        }
    }
}

/// An X.509-SVID of the calling process, with its key.
pub struct X509Credentials {
    /// Its chain and its private key, as PEM. The key is a secret.
    pub pem: zeroize::Zeroizing<String>,
    /// The authorities of its trust domain, each as DER.
    pub authorities: Vec<Vec<u8>>,
}

/// Fetches the default X.509-SVID of the calling process, without keeping a
/// connection: it is not renewed.
///
/// # Errors
/// When the Workload API doesn't answer within 5 s or refuses.
pub async fn fetch_x509_svid(socket: &Path) -> Result<X509Credentials, SourceError> {
    let socket = absolute(socket)?;
    let fetch = async {
        let client = WorkloadApiClient::connect(Endpoint::Unix(socket.clone())).await?;
        client.fetch_x509_context().await
    };
    let context = match tokio::time::timeout(FETCH_TIMEOUT, fetch).await {
        Ok(Ok(context)) => context,
        Ok(Err(error)) => {
            let reason = error.to_string();
            return Err(SourceError::Unavailable { socket, reason });
        }
        Err(_) => {
            let reason = "no answer in 5 s".to_owned();
            return Err(SourceError::Unavailable { socket, reason });
        }
    };
    let svid = context.default_svid().ok_or(SourceError::BadIdentity)?;
    credentials(svid, &context)
}

fn credentials(svid: &X509Svid, context: &X509Context) -> Result<X509Credentials, SourceError> {
    let bundle = context.bundle_set().get(svid.spiffe_id().trust_domain());
    let authorities = bundle.ok_or(SourceError::BadIdentity)?;
    let authorities = authorities.authorities().iter();
    let mut pem = zeroize::Zeroizing::new(pem_block("PRIVATE KEY", svid.private_key().as_bytes()));
    for certificate in svid.cert_chain() {
        pem.push_str(&pem_block("CERTIFICATE", certificate.as_bytes()));
    }
    Ok(X509Credentials {
        pem,
        authorities: authorities.map(|it| it.as_bytes().to_vec()).collect(),
    })
}

/// RFC 7468.
fn pem_block(label: &str, der: &[u8]) -> String {
    let base64 = zeroize::Zeroizing::new(base64ct::Base64::encode_string(der));
    let lines = base64.as_bytes().chunks(64);
    let lines: Vec<&str> = lines
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    let body = zeroize::Zeroizing::new(lines.join("\n"));
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        *body
    )
}

/// Fetches one JWT-SVID of the calling process, without keeping a connection.
///
/// # Errors
/// When the Workload API doesn't answer within 5 s or refuses.
pub async fn fetch_jwt_svid(socket: &Path, audience: &str) -> Result<String, SourceError> {
    let socket = absolute(socket)?;
    // The crate's own word for this says nothing of the file.
    if let Err(error) = std::fs::metadata(&socket) {
        let reason = error.to_string();
        return Err(SourceError::Unavailable { socket, reason });
    }
    let fetch = async {
        let client = WorkloadApiClient::connect(Endpoint::Unix(socket.clone())).await?;
        client.fetch_jwt_token([audience], None).await
    };
    let reason = match tokio::time::timeout(FETCH_TIMEOUT, fetch).await {
        Ok(Ok(token)) => return Ok(token),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in 5 s".to_owned(),
    };
    Err(SourceError::Unavailable { socket, reason })
}

fn absolute(socket: &Path) -> Result<PathBuf, SourceError> {
    std::path::absolute(socket).map_err(|source| SourceError::Path {
        socket: socket.into(),
        source,
    })
}

type ClientFuture =
    std::pin::Pin<Box<dyn Future<Output = Result<WorkloadApiClient, WorkloadApiError>> + Send>>;

/// Paths go in as paths: the crate's URI syntax has no room for every one.
fn client_factory(socket: &Path) -> Arc<dyn Fn() -> ClientFuture + Send + Sync> {
    let endpoint = Endpoint::Unix(socket.to_owned());
    Arc::new(move || Box::pin(WorkloadApiClient::connect(endpoint.clone())))
}
