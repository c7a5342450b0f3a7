//! Connections whose peer is a SPIFFE ID.
//!
//! A proxy is what its certificate says, never what it says of itself. The
//! listener's own certificate and the trust bundle are read anew at every
//! handshake, so that rotation needs no restart.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use spiffe::X509Context;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

pub use crate::svid::SvidError;
use crate::{
    Millis, Source, SourceError, SpiffeId,
    federation::{ByTrustDomain, Federation},
    files,
    handshakes::{Handshakes, MAX_HANDSHAKES},
    svid::{leaf_evidence, leaf_identity},
    throttle::Throttle,
};

/// A handshake that takes longer is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Handshakes have at most this part of the files that may be open: one in so many.
const HANDSHAKE_FILES: u64 = 8;
/// After a failed accept (usually: too many open files).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Who is at the other end; every request on the connection has it as an extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What the peer's certificate says.
    pub id: SpiffeId,
    /// Where it connected from.
    pub remote: SocketAddr,
    /// SHA-256 of its certificate's DER: `x5t#S256` before base64url. None
    /// where there is no TLS.
    pub certificate: Option<[u8; 32]>,
    /// SHA-256 of the part of its certificate that is signed: what is counted as one
    /// piece of evidence. Zeros where there is none.
    pub evidence_id: [u8; 32],
    /// When its certificate ends, in milliseconds since the Unix epoch; 0 where
    /// there is none.
    pub until_ms: Millis,
    /// The chain that it has shown, where it is of another trust domain.
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
}

/// Which identities may connect.
pub type Allowed = Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>;

/// Accepted connections, for tonic's `serve_with_incoming`. Dropping it stops
/// accepting.
pub type Incoming = ReceiverStream<io::Result<MtlsStream>>;

/// Why a connection was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum Refused {
    #[error("our own identity is not available: {0}")]
    Source(#[from] SourceError),
    #[error("our own certificate or trust bundle can't be used: {0}")]
    Own(String),
    #[error("the handshake failed: {0}")]
    Handshake(io::Error),
    #[error("the handshake took longer than 3 s")]
    Timeout,
    #[error("the peer sent no certificate")]
    NoCertificate,
    #[error(transparent)]
    Svid(#[from] SvidError),
    #[error("{0} is of another trust domain")]
    Foreign(SpiffeId),
    #[error("{0} is not among the proxies that may connect")]
    Unknown(SpiffeId),
}

/// Why a plaintext listener isn't opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaintextError {
    /// Plaintext leaves the machine.
    #[error("{0} is not a loopback address: plaintext is for development on one machine")]
    NotLoopback(SocketAddr),
    /// The listener has no address.
    #[error("the listener's address can't be read: {0}")]
    Io(#[from] io::Error),
}

/// Accepts mutually authenticated TLS connections from `allowed` identities of
/// our own trust domain, for HTTP/2. Must be called within a tokio runtime.
pub fn serve_incoming(listener: TcpListener, source: Source, allowed: Allowed) -> Incoming {
    serve(listener, source, allowed, b"h2", None)
}

/// As [`serve_incoming`], from every workload of our trust domain and of those beside
/// it, and for HTTP/1.
pub fn serve_workloads(listener: TcpListener, source: Source, federation: Federation) -> Incoming {
    let beside = Some(federation).filter(|it| !it.is_empty());
    serve(listener, source, Arc::new(|_| true), b"http/1.1", beside)
}

fn serve(
    listener: TcpListener,
    source: Source,
    allowed: Allowed,
    protocol: &'static [u8],
    beside: Option<Federation>,
) -> Incoming {
    let acceptor = Arc::new(Acceptor {
        provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
        source,
        allowed,
        protocol,
        beside,
        current: Mutex::new(None),
        warnings: Throttle::new(Instant::now()),
    });
    accept(listener, move |stream, remote| {
        let acceptor = Arc::clone(&acceptor);
        async move {
            match acceptor.handshake(stream, remote).await {
                Ok(stream) => Some(stream),
                Err(refused) => {
                    acceptor.warn(remote, &refused);
                    None
                }
            }
        }
    })
}

/// Accepts unauthenticated connections on loopback, all as the one `peer`. For
/// development, by an explicit flag only.
///
/// # Errors
/// When the listener is not on a loopback address.
pub fn plaintext_incoming(
    listener: TcpListener,
    peer: SpiffeId,
) -> Result<Incoming, PlaintextError> {
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        return Err(PlaintextError::NotLoopback(address));
    }
    tracing::warn!(%address, %peer, "PLAINTEXT: anybody on this machine can be this proxy");
    Ok(accept(listener, move |stream, remote| {
        let peer = Peer {
            id: peer.clone(),
            remote,
            certificate: None,
            evidence_id: [0; 32],
            until_ms: 0,
            chain: Arc::default(),
        };
        async move {
            Some(MtlsStream {
                peer,
                transport: Transport::Plain(stream),
            })
        }
    }))
}

fn accept<F, R>(listener: TcpListener, handshake: F) -> Incoming
where
    F: Fn(TcpStream, SocketAddr) -> R + Send + 'static,
    R: Future<Output = Option<MtlsStream>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    let handshakes = Handshakes::new(files::share(MAX_HANDSHAKES, HANDSHAKE_FILES));
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, %remote, "TCP_NODELAY could not be set");
            }
            let place = handshakes.enter(remote.ip());
            let handshake = handshake(stream, remote);
            let sender = sender.clone();
            tokio::spawn(async move {
                let done = tokio::select! {
                    done = handshake => done,
                    () = place.lost() => {
                        tracing::debug!(%remote, "a handshake gave way to a newer one");
                        None
                    }
                };
                // Whoever has been authenticated gives way to nobody.
                drop(place);
                if let Some(stream) = done {
                    // Fails only when the server is gone, and then so is this.
                    let _ = sender.send(Ok(stream)).await;
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

struct Acceptor {
    provider: Arc<CryptoProvider>,
    source: Source,
    allowed: Allowed,
    /// What is spoken within TLS (RFC 7301).
    protocol: &'static [u8],
    /// Trust domains that are believed beside our own; never of proxies.
    beside: Option<Federation>,
    /// The configuration of the context that it was made from.
    current: Mutex<Option<Current>>,
    warnings: Throttle,
}

#[derive(Clone)]
struct Current {
    context: Arc<X509Context>,
    config: Arc<ServerConfig>,
    own: SpiffeId,
}

impl Acceptor {
    /// Anybody can cause this one, so it comes ten times in a second at most.
    fn warn(&self, remote: SocketAddr, refused: &Refused) {
        if let Some(suppressed) = self.warnings.pass(Instant::now()) {
            tracing::warn!(%remote, reason = %refused, suppressed, "a connection was refused");
        }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
    ) -> Result<MtlsStream, Refused> {
        let current = self.current()?;
        let handshake = TlsAcceptor::from(current.config).accept(stream);
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| Refused::Timeout)?
            .map_err(Refused::Handshake)?;
        let (_, connection) = stream.get_ref();
        let leaf = connection
            .peer_certificates()
            .and_then(|chain| chain.first())
            .ok_or(Refused::NoCertificate)?;
        let certificate = Some(capability::sha256(leaf));
        let id = leaf_identity(leaf)?;
        let evidence = leaf_evidence(leaf)?;
        let own = id.trust_domain() == current.own.trust_domain();
        let beside = |it: &Federation| it.has(id.trust_domain());
        if !own && !self.beside.as_ref().is_some_and(beside) {
            return Err(Refused::Foreign(id));
        }
        if !(self.allowed)(&id) {
            return Err(Refused::Unknown(id));
        }
        let chain = match connection.peer_certificates() {
            Some(chain) if !own => chain.iter().map(|it| it.clone().into_owned()).collect(),
            _ => Arc::default(),
        };
        tracing::debug!(peer = %id, %remote, "connected");
        Ok(MtlsStream {
            peer: Peer {
                id,
                remote,
                certificate,
                evidence_id: evidence.signed,
                until_ms: evidence.until_ms,
                chain,
            },
            transport: Transport::Tls(Box::new(stream)),
        })
    }

    /// The TLS configuration of our present identity, made anew when it has changed.
    fn current(&self) -> Result<Current, Refused> {
        let context = self.source.context()?;
        let mut slot = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = slot.as_ref()
            && Arc::ptr_eq(&current.context, &context)
        {
            return Ok(current.clone());
        }
        let own = self.source.own_id()?;
        let config = self.config(&context, &own)?;
        let current = Current {
            context,
            config: Arc::new(config),
            own,
        };
        *slot = Some(current.clone());
        Ok(current)
    }

    fn config(&self, context: &X509Context, own: &SpiffeId) -> Result<ServerConfig, Refused> {
        let unusable = |error: &dyn std::error::Error| Refused::Own(error.to_string());
        let svid = self.source.svid()?;
        // Only our own trust domain's authorities: a foreign one could else
        // sign a name of ours.
        let bundle = context
            .bundle_set()
            .get(svid.spiffe_id().trust_domain())
            .ok_or_else(|| Refused::Own(format!("no bundle for {}", own.trust_domain())))?;
        let mut roots = RootCertStore::empty();
        for authority in bundle.authorities() {
            roots
                .add(CertificateDer::from(authority.as_bytes().to_vec()))
                .map_err(|error| unusable(&error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|error| unusable(&error))?;
        let verifier: Arc<dyn ClientCertVerifier> = match &self.beside {
            None => verifier,
            Some(beside) => Arc::new(ByTrustDomain::new(own.clone(), verifier, beside.clone())),
        };
        let chain = svid
            .cert_chain()
            .iter()
            .map(|certificate| CertificateDer::from(certificate.as_bytes().to_vec()))
            .collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(
            svid.private_key().as_bytes().to_vec(),
        ));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| unusable(&error))?;
        config.alpn_protocols = vec![self.protocol.to_vec()];
        // A resumed session would skip the check against today's bundle.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// One accepted connection.
pub struct MtlsStream {
    peer: Peer,
    transport: Transport,
}

enum Transport {
    Tls(Box<TlsStream<TcpStream>>),
    Plain(TcpStream),
}

impl MtlsStream {
    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Connected for MtlsStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for MtlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for MtlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
