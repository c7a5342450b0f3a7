//! Envoy's secret discovery over the real socket.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail loudly")]

mod common;

use std::time::Duration;

use common::{Domain, TIMEOUT, id};
use envoy_types::pb::{
    envoy::{
        config::core::v3::data_source::Specifier,
        extensions::transport_sockets::tls::v3::{Secret, secret::Type},
        service::{
            discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse},
            secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
        },
    },
    google::rpc::Status,
};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

struct Stream {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Stream {
    async fn open(domain: &Domain, names: &[&str]) -> Self {
        let (requests, receiver) = mpsc::channel(8);
        requests.send(request(names, "")).await.unwrap();
        let mut client = SecretDiscoveryServiceClient::new(domain.channel().await);
        let responses = client
            .stream_secrets(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Self {
            requests,
            responses,
        }
    }

    async fn next(&mut self) -> DiscoveryResponse {
        let next = tokio::time::timeout(TIMEOUT, self.responses.message());
        next.await.unwrap().unwrap().unwrap()
    }

    async fn silent_for(&mut self, time: Duration) {
        let next = tokio::time::timeout(time, self.responses.message()).await;
        assert!(next.is_err(), "an answer that nothing asked for: {next:?}");
    }
}

fn request(names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(ToString::to_string).collect(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
}

fn secrets(response: &DiscoveryResponse) -> Vec<Secret> {
    response
        .resources
        .iter()
        .map(|any| Secret::decode(any.value.as_slice()).unwrap())
        .collect()
}

fn text(source: Option<&envoy_types::pb::envoy::config::core::v3::DataSource>) -> String {
    match source.unwrap().specifier.as_ref().unwrap() {
        Specifier::InlineBytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
        _ => panic!("not inline"),
    }
}

#[tokio::test]
async fn the_names_that_spires_agent_has() {
    let domain = Domain::start();
    let own = id("control-plane").to_string();
    let mut stream = Stream::open(
        &domain,
        &["default", "ROOTCA", &own, "spiffe://writ.example"],
    )
    .await;
    let secrets = secrets(&stream.next().await);
    assert_eq!(secrets.len(), 4);
    for secret in &secrets {
        match (secret.name.as_str(), secret.r#type.as_ref().unwrap()) {
            ("ROOTCA" | "spiffe://writ.example", Type::ValidationContext(context)) => {
                assert_eq!(
                    text(context.trusted_ca.as_ref()),
                    domain.built_in.bundle_pem()
                );
            }
            (_, Type::TlsCertificate(certificate)) => {
                assert!(text(certificate.certificate_chain.as_ref()).contains("BEGIN CERTIFICATE"));
                assert!(text(certificate.private_key.as_ref()).contains("BEGIN PRIVATE KEY"));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn answers_come_on_change_and_only_then() {
    let domain = Domain::start();
    let quiet = Duration::from_millis(300);
    let mut stream = Stream::open(&domain, &["ROOTCA"]).await;
    let first = stream.next().await;
    // Acknowledged, refused, answered late: nothing to say.
    stream
        .requests
        .send(request(&["ROOTCA"], &first.nonce))
        .await
        .unwrap();
    let mut refusal = request(&["ROOTCA"], &first.nonce);
    refusal.error_detail = Some(Status {
        code: 13,
        message: "no".to_owned(),
        details: Vec::new(),
    });
    stream.requests.send(refusal).await.unwrap();
    stream
        .requests
        .send(request(&["default"], "stale"))
        .await
        .unwrap();
    stream.silent_for(quiet).await;
    // Other names are a change.
    stream
        .requests
        .send(request(&["default"], &first.nonce))
        .await
        .unwrap();
    let second = stream.next().await;
    assert_ne!(second.version_info, first.version_info);
    stream
        .requests
        .send(request(&["default"], &second.nonce))
        .await
        .unwrap();
    stream.silent_for(quiet).await;
}

#[tokio::test]
async fn certificates_are_rotated_and_bundles_are_not() {
    let domain = Domain::with(|settings| settings.x509_ttl = Duration::from_secs(2));
    let mut identity = Stream::open(&domain, &["default"]).await;
    let mut bundle = Stream::open(&domain, &["ROOTCA"]).await;
    let first = identity.next().await;
    bundle.next().await;
    let second = identity.next().await;
    assert_ne!(first.version_info, second.version_info);
    assert_ne!(first.nonce, second.nonce);
    bundle.silent_for(Duration::from_millis(500)).await;
}

#[tokio::test]
async fn nobody_gets_another_identity() {
    let domain = Domain::start();
    let mut client = SecretDiscoveryServiceClient::new(domain.channel().await);
    let proxy = id("proxy").to_string();
    for name in [proxy.as_str(), "other", ""] {
        let refused = client.fetch_secrets(request(&["default", name], "")).await;
        assert_eq!(
            refused.unwrap_err().code(),
            Code::PermissionDenied,
            "{name}"
        );
    }
    let many = ["default"; 17];
    let refused = client.fetch_secrets(request(&many, "")).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    let fetched = client.fetch_secrets(request(&[], "")).await.unwrap();
    assert_eq!(secrets(fetched.get_ref()).len(), 2);
    let delta = client
        .delta_secrets(tokio_stream::iter([DeltaDiscoveryRequest::default()]))
        .await;
    assert_eq!(delta.unwrap_err().code(), Code::Unimplemented);
}
