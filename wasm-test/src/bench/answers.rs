//! The servers that other Envoys ask: one that answers on a stream (for the floor),
//! and an `ext_authz` that always says yes (for the peer), in plaintext and over
//! the same mutual TLS as Writ's own stream.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use spiffe::WorkloadApiClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use crate::Error;

/// The floor's method, as its filter calls it.
const ECHO: &str = "/floor/Echo";
/// A question begins with an id of so many bytes, and so does its answer.
const ID_BYTES: usize = 4;
/// Bytes of an answer of Writ's control plane, as counted for these very requests.
const ANSWER_BYTES: usize = 185;
/// Whether compressed, and the length, before each gRPC message.
const FRAME_HEAD: usize = 5;
/// A gRPC message: `CheckResponse { status: {}, ok_response: {} }`, which says yes.
const YES: &[u8] = &[0, 0, 0, 0, 4, 0x0a, 0, 0x1a, 0];

/// The running servers. Dropping them ends them; connections live on until
/// their peers go.
pub struct Answers {
    /// The port without TLS.
    pub plain: u16,
    /// The port with mutual TLS.
    pub mutual: u16,
    tasks: Vec<AbortHandle>,
}

impl Answers {
    /// Starts both, with this process's own SVID from `workload_api`.
    pub async fn start(workload_api: &Path) -> Result<Answers, Error> {
        let acceptor = TlsAcceptor::from(Arc::new(tls(workload_api).await?));
        let (plain_listener, plain) = listen().await?;
        let (mutual_listener, mutual) = listen().await?;
        let plain_task = tokio::spawn(accept(plain_listener, |stream| async { Some(stream) }));
        let mutual_task = tokio::spawn(accept(mutual_listener, move |stream| {
            let acceptor = acceptor.clone();
            async move { acceptor.accept(stream).await.ok() }
        }));
        Ok(Answers {
            plain,
            mutual,
            tasks: vec![plain_task.abort_handle(), mutual_task.abort_handle()],
        })
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn listen() -> Result<(TcpListener, u16), Error> {
    let failed = |problem: std::io::Error| Error::Setup(format!("cannot listen: {problem}"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    Ok((listener, port))
}

async fn accept<T, F>(listener: TcpListener, prepare: impl Fn(tokio::net::TcpStream) -> F)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = Option<T>> + Send + 'static,
{
    while let Ok((stream, _)) = listener.accept().await {
        drop(stream.set_nodelay(true));
        let prepared = prepare(stream);
        tokio::spawn(async move {
            if let Some(stream) = prepared.await {
                // A connection that breaks off shows in the figures' statuses.
                drop(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service_fn(answer))
                        .await,
                );
            }
        });
    }
}

async fn answer(
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let body = if request.uri().path() == ECHO {
        let mut asked = Vec::new();
        request
            .into_body()
            .map_frame(move |frame| frame.map_data(|data| answered(&mut asked, &data)))
            .boxed()
    } else {
        let _question = request.into_body().collect().await;
        let mut good = HeaderMap::new();
        good.insert("grpc-status", HeaderValue::from_static("0"));
        Full::new(Bytes::from_static(YES))
            .with_trailers(async { Some(Ok(good)) })
            .map_err(|never: Infallible| match never {})
            .boxed()
    };
    let mut response = Response::new(body);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    Ok(response)
}

/// The answers to all questions that are whole by now.
fn answered(asked: &mut Vec<u8>, more: &Bytes) -> Bytes {
    asked.extend_from_slice(more);
    let mut out = Vec::new();
    while let Some(([_, length @ ..], rest)) = asked.split_first_chunk::<FRAME_HEAD>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let (Some(id), Some(rest)) = (rest.get(..ID_BYTES), rest.get(length..)) else {
            break;
        };
        let size = u32::try_from(ANSWER_BYTES).unwrap_or_default();
        out.push(0);
        out.extend(size.to_be_bytes());
        out.extend(id);
        out.resize(out.len().saturating_add(ANSWER_BYTES - ID_BYTES), b'a');
        *asked = rest.to_vec();
    }
    Bytes::from(out)
}

/// TLS 1.3 with client certificates of the trust domain, as the control plane has it.
async fn tls(workload_api: &Path) -> Result<ServerConfig, Error> {
    let failed = |problem: &dyn std::fmt::Display| Error::WorkloadApi(problem.to_string());
    let client = WorkloadApiClient::connect_to(format!("unix:{}", workload_api.display()))
        .await
        .map_err(|e| failed(&e))?;
    let context = client.fetch_x509_context().await.map_err(|e| failed(&e))?;
    let svid = context
        .default_svid()
        .ok_or_else(|| Error::WorkloadApi("no X.509-SVID".to_owned()))?;
    let mut roots = RootCertStore::empty();
    for (_, bundle) in context.bundle_set().iter() {
        for authority in bundle.authorities() {
            let der = CertificateDer::from(authority.as_bytes().to_vec());
            roots.add(der).map_err(|e| failed(&e))?;
        }
    }
    let chain = svid.cert_chain().iter();
    let chain = chain.map(|der| CertificateDer::from(der.as_bytes().to_vec()));
    let key = PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|e| failed(&e))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| failed(&e))?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain.collect(), PrivateKeyDer::Pkcs8(key))
        .map_err(|e| failed(&e))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_whole_question_has_its_answer() {
        let question = |id: u8| [&[0, 0, 0, 0, 6, id, 0, 0, 0][..], b"qq"].concat();
        let both = [question(1), question(2)].concat();
        let mut asked = Vec::new();
        for at in 0..=both.len() {
            let (first, second) = both.split_at(at);
            let first = answered(&mut asked, &Bytes::copy_from_slice(first));
            let second = answered(&mut asked, &Bytes::copy_from_slice(second));
            let out = [first, second].concat();
            assert_eq!(out.len(), 2 * (FRAME_HEAD + ANSWER_BYTES), "cut at {at}");
            assert_eq!(out[1..6], [0, 0, 0, 185, 1]);
            assert_eq!(out[FRAME_HEAD + ANSWER_BYTES + 5], 2);
            assert!(asked.is_empty());
        }
    }
}
