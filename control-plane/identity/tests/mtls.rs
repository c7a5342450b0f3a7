//! Who gets in over mTLS, with certificates of every wrong kind.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod common;

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use common::{Domain, TIMEOUT, id};
use identity::mtls::{self, MtlsStream};
use rcgen::{
    CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::StreamExt;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

struct Edge {
    domain: Domain,
    address: SocketAddr,
    accepted: mpsc::Receiver<MtlsStream>,
}

impl Edge {
    async fn start(x509_ttl: Duration) -> Self {
        let domain = Domain::with(|settings| settings.x509_ttl = x509_ttl);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = id("proxy");
        let allowed: mtls::Allowed = Arc::new(move |peer| *peer == proxy);
        let mut incoming = mtls::serve_incoming(listener, domain.source().await, allowed);
        let (sender, accepted) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Some(stream) = incoming.next().await {
                sender.send(stream.unwrap()).await.unwrap();
            }
        });
        Self {
            domain,
            address,
            accepted,
        }
    }

    /// Connects and says a byte. `true`: the server took us and got it.
    async fn accepts(&mut self, client: Client) -> bool {
        let Ok(mut stream) = client.connect(self.address).await else {
            return false;
        };
        let _ = stream.write_all(b"x").await;
        let outcome = async {
            tokio::select! {
                accepted = self.accepted.recv() => accepted,
                // Refused: the server closes, it doesn't leave us hanging.
                end = stream.read_u8() => {
                    assert!(end.is_err());
                    None
                }
            }
        };
        let Some(mut accepted) = tokio::time::timeout(TIMEOUT, outcome).await.unwrap() else {
            return false;
        };
        assert_eq!(accepted.read_u8().await.unwrap(), b'x');
        assert_eq!(accepted.peer().id, id("proxy"));
        true
    }
}

/// A CA with its key, as on disk.
struct Ca(Issuer<'static, KeyPair>);

impl Ca {
    fn of(domain: &Domain) -> Self {
        let read = |name| fs::read_to_string(domain.settings.dir.join(name)).unwrap();
        let key = KeyPair::from_pem(&read("ca.key")).unwrap();
        Self(Issuer::from_ca_cert_pem(&read("ca.crt"), key).unwrap())
    }

    fn client(&self, change: impl FnOnce(&mut CertificateParams)) -> Client {
        let mut parameters = CertificateParams::default();
        parameters.not_before = date_time_ymd(2020, 1, 1);
        parameters.not_after = date_time_ymd(2099, 1, 1);
        parameters
            .distinguished_name
            .push(DnType::OrganizationName, "test");
        parameters.subject_alt_names = vec![uri(id("proxy").as_str())];
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        change(&mut parameters);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        Client {
            identity: Some((certificate.der().clone(), key.serialize_der())),
        }
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

struct Client {
    identity: Option<(CertificateDer<'static>, Vec<u8>)>,
}

impl Client {
    async fn connect(self, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer));
        let config = match self.identity {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
                config
                    .with_client_auth_cert(vec![certificate], key)
                    .unwrap()
            }
        };
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("control-plane").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }
}

/// The tests look at the server's certificate themselves.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

#[tokio::test]
async fn a_known_proxy_gets_in_and_nobody_else() {
    let mut edge = Edge::start(Duration::from_secs(3600)).await;
    let ca = Ca::of(&edge.domain);
    assert!(edge.accepts(ca.client(|_| {})).await, "the proxy itself");

    let foreign = Domain::start();
    let wrong: Vec<(&str, Client)> = vec![
        ("no certificate", Client { identity: None }),
        ("another trust domain's CA", Ca::of(&foreign).client(|_| {})),
        (
            "an identity that isn't a proxy's",
            ca.client(|p| p.subject_alt_names = vec![uri(id("agent/demo").as_str())]),
        ),
        (
            "a longer name",
            ca.client(|p| p.subject_alt_names = vec![uri(id("proxy-admin").as_str())]),
        ),
        (
            "another case",
            ca.client(|p| p.subject_alt_names = vec![uri(id("Proxy").as_str())]),
        ),
        (
            "another trust domain's name, signed by ours",
            ca.client(|p| p.subject_alt_names = vec![uri("spiffe://other.example/proxy")]),
        ),
        (
            "two URIs",
            ca.client(|p| p.subject_alt_names.push(uri(id("agent/demo").as_str()))),
        ),
        (
            "no URI",
            ca.client(|p| {
                p.subject_alt_names = vec![SanType::DnsName("proxy".try_into().unwrap())];
            }),
        ),
        (
            "no path",
            ca.client(|p| p.subject_alt_names = vec![uri("spiffe://writ.example")]),
        ),
        (
            "a CA",
            ca.client(|p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
        ),
        (
            "may sign certificates",
            ca.client(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ),
        (
            "may not sign handshakes",
            ca.client(|p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement]),
        ),
        (
            "expired",
            ca.client(|p| p.not_after = date_time_ymd(2021, 1, 1)),
        ),
        (
            "not yet valid",
            ca.client(|p| p.not_before = date_time_ymd(2098, 1, 1)),
        ),
    ];
    for (what, client) in wrong {
        assert!(!edge.accepts(client).await, "{what} got in");
    }
    assert!(edge.accepts(ca.client(|_| {})).await, "and the proxy again");
}

#[tokio::test]
async fn the_server_shows_todays_certificate() {
    let edge = Edge::start(Duration::from_secs(2)).await;
    let ca = Ca::of(&edge.domain);
    let authority = fs::read(edge.domain.settings.dir.join("ca.crt")).unwrap();
    let (_, authority) = x509_parser::pem::parse_x509_pem(&authority).unwrap();
    let authority = authority.parse_x509().unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let stream = ca.client(|_| {}).connect(edge.address).await.unwrap();
        let leaf = stream
            .get_ref()
            .1
            .peer_certificates()
            .unwrap()
            .first()
            .unwrap()
            .clone();
        let (_, certificate) = X509Certificate::from_der(&leaf).unwrap();
        certificate
            .verify_signature(Some(authority.public_key()))
            .unwrap();
        let names = certificate
            .subject_alternative_name()
            .unwrap()
            .unwrap()
            .value;
        assert_eq!(
            names.general_names,
            [GeneralName::URI(id("control-plane").as_str())]
        );
        seen.push(leaf);
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    assert_ne!(seen.first(), seen.last());
}

#[tokio::test]
async fn slow_handshakes_hold_nobody_up() {
    let mut edge = Edge::start(Duration::from_secs(3600)).await;
    let mut idle = Vec::new();
    // More than one address may have: the oldest give way.
    for _ in 0..80 {
        idle.push(TcpStream::connect(edge.address).await.unwrap());
    }
    let ca = Ca::of(&edge.domain);
    assert!(edge.accepts(ca.client(|_| {})).await);
    let closed = async |at: usize, within: Duration| {
        let read = tokio::time::timeout(within, idle.get(at).unwrap().readable());
        read.await.is_ok()
    };
    assert!(closed(0, Duration::from_secs(1)).await);
    assert!(!closed(79, Duration::from_millis(100)).await);
    // And nobody stays longer than three seconds.
    assert!(closed(79, Duration::from_secs(4)).await);
}

#[tokio::test]
async fn plaintext_is_for_loopback_alone() {
    let anywhere = TcpListener::bind("0.0.0.0:0").await.unwrap();
    assert!(mtls::plaintext_incoming(anywhere, id("proxy")).is_err());
    let loopback = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = loopback.local_addr().unwrap();
    let mut incoming = mtls::plaintext_incoming(loopback, id("proxy")).unwrap();
    let _client = TcpStream::connect(address).await.unwrap();
    let accepted = tokio::time::timeout(TIMEOUT, incoming.next())
        .await
        .unwrap();
    assert_eq!(accepted.unwrap().unwrap().peer().id, id("proxy"));
}
