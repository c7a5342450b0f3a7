//! The wire between Envoy and the control plane: only proxies that are known by
//! their certificates are served.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use spiffe::WorkloadApiClient;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use wasm_test::system::{AGENT, Options, PROXY};

use super::rig::{Rig, eventually};

/// The start of every HTTP/2 connection, with empty SETTINGS.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Believes every server: here the server is the one that checks.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A certificate with its key, as this process gets it from the Workload API.
type Identity = (Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>);

async fn own_identity(rig: &Rig) -> Identity {
    let endpoint = format!("unix:{}", rig.system.workload_api().display());
    let client = WorkloadApiClient::connect_to(endpoint).await.unwrap();
    let svid = client.fetch_x509_svid().await.unwrap();
    assert_eq!(svid.spiffe_id().to_string(), AGENT, "who this process is");
    let chain = svid.cert_chain().iter();
    let chain = chain.map(|certificate| CertificateDer::from(certificate.as_bytes().to_vec()));
    (
        chain.collect(),
        PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec()),
    )
}

/// What the gRPC port says over TLS, with this identity or none.
async fn over_tls(rig: &Rig, identity: Option<Identity>) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some((chain, key)) => config.with_client_auth_cert(chain, key.into()).unwrap(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(grpc(rig)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    match TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
    {
        Ok(stream) => said(stream).await,
        Err(_) => Vec::new(),
    }
}

/// Says hello and returns everything until the other side closes.
async fn said(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Vec<u8> {
    let mut answer = Vec::new();
    if stream.write_all(HELLO).await.is_err() || stream.flush().await.is_err() {
        return answer;
    }
    let read = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    // Broken off is closed too; a connection that stays open is not.
    assert!(read.is_ok(), "the connection stays open: {answer:02x?}");
    answer
}

fn grpc(rig: &Rig) -> String {
    let bootstrap = std::fs::read_to_string(rig.system.state_dir().join("writ.toml")).unwrap();
    let line = bootstrap
        .lines()
        .find(|line| line.starts_with("grpc_listen"))
        .unwrap();
    line.split('"').nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_a_known_proxy_is_served() {
    let rig = Rig::start(Options::default()).await;
    // A SETTINGS frame would be a greeting: none of these gets one.
    let plain = TcpStream::connect(grpc(&rig)).await.unwrap();
    let greeting = |answer: &[u8]| answer.get(3) == Some(&4);
    assert!(!greeting(&said(plain).await), "plaintext was served");
    assert_eq!(over_tls(&rig, None).await, b"", "no certificate");
    let agent = own_identity(&rig).await;
    assert_eq!(
        over_tls(&rig, Some(agent)).await,
        b"",
        "an agent's certificate"
    );
    for why in [
        format!("{AGENT} is not among the proxies"),
        "peer sent no certificates".to_owned(),
        "the handshake failed".to_owned(),
    ] {
        eventually(&why, async || {
            let log = std::fs::read_to_string(rig.system.log("control-plane")).unwrap();
            let mut refused = log
                .lines()
                .filter(|line| line.contains("a connection was refused"));
            refused.any(|line| line.contains(&why))
        })
        .await;
    }
    // The one that is known is served all the same, and is the only one in the log.
    rig.good_request().await;
    let proxies = rig.entries_of("proxy");
    assert!(
        proxies.iter().all(|entry| entry["body"]["proxy"] == PROXY),
        "{proxies:?}"
    );
    let allowed = rig.entries_of("allow");
    assert!(
        allowed
            .iter()
            .all(|entry| entry["body"]["request"]["proxy"] == PROXY)
    );
    rig.finish().await;
}
