//! Envoy's secret discovery (SDS v3) on the Workload API's socket, with the
//! names that SPIRE's agent uses.

use std::{pin::Pin, sync::Arc};

use envoy_types::{
    pb::{
        envoy::{
            config::core::v3::{DataSource, TypedExtensionConfig, data_source::Specifier},
            extensions::transport_sockets::tls::v3::{
                CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate,
                secret, spiffe_cert_validator_config::TrustDomain,
            },
            service::{
                discovery::v3::{
                    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
                    DiscoveryResponse,
                },
                secret::v3::secret_discovery_service_server::SecretDiscoveryService,
            },
        },
        google::protobuf::Any,
    },
    util::pack_any,
};
use futures::{Stream, StreamExt, stream};
use prost::{Message, Name};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{SpiffeId, trust_domain::Shared, workload_api::attest};

/// The caller's default X.509-SVID.
const DEFAULT_SVID: &str = "default";
/// The trust domain's bundle.
const ROOT_CA: &str = "ROOTCA";
/// Envoy's name for it.
const SPIFFE_VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";
const MAX_NAMES: usize = 16;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service; one for all connections.
pub(crate) struct Secrets {
    shared: Arc<Shared>,
    shutdown: CancellationToken,
}

impl Secrets {
    pub(crate) fn new(shared: Arc<Shared>, shutdown: CancellationToken) -> Self {
        Self { shared, shutdown }
    }
}

/// One stream: what was asked for last, and what was sent last.
struct Subscription {
    shared: Arc<Shared>,
    ids: Vec<SpiffeId>,
    requests: Streaming<DiscoveryRequest>,
    names: Option<Vec<String>>,
    sent: u64,
    refusal_said: bool,
    rotate_at: Option<Instant>,
}

enum Event {
    Asked(Box<DiscoveryRequest>),
    Rotate,
    Gone,
}

impl Subscription {
    /// The next response that is due; answers nothing that changes nothing.
    async fn next(&mut self) -> Option<Result<DiscoveryResponse, Status>> {
        loop {
            match self.event().await {
                Ok(Event::Asked(request)) => {
                    if self.wants_answer(&request) {
                        self.names = Some(request.resource_names);
                        return Some(self.respond());
                    }
                }
                Ok(Event::Rotate) => return Some(self.respond()),
                Ok(Event::Gone) => return None,
                Err(status) => return Some(Err(status)),
            }
        }
    }

    async fn event(&mut self) -> Result<Event, Status> {
        let rotate_at = self.rotate_at;
        let rotation = async {
            match rotate_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = self.requests.message() => {
                Ok(message?.map_or(Event::Gone, |request| Event::Asked(Box::new(request))))
            },
            () = rotation => Ok(Event::Rotate),
        }
    }

    fn wants_answer(&mut self, request: &DiscoveryRequest) -> bool {
        let Some(names) = &self.names else {
            return true;
        };
        if request.response_nonce != self.sent.to_string() {
            return false;
        }
        if let Some(error) = &request.error_detail {
            // The same secret again would be refused again.
            // Any workload can say this, at any length and as often as it likes.
            if !self.refusal_said {
                self.refusal_said = true;
                let error: String = error.message.chars().take(256).collect();
                tracing::warn!(?error, secrets = names.len(), "an envoy refused a secret");
            }
        }
        *names != request.resource_names
    }

    fn respond(&mut self) -> Result<DiscoveryResponse, Status> {
        let names = self.names.clone().unwrap_or_default();
        let (resources, rotates) = resources(&self.shared, &self.ids, &names)?;
        self.sent += 1;
        self.rotate_at = rotates.then(|| Instant::now() + self.shared.authority().rotate_after());
        Ok(response(resources, self.sent))
    }
}

fn response(resources: Vec<Any>, nonce: u64) -> DiscoveryResponse {
    let mut content = Sha256::new();
    for resource in &resources {
        content.update(resource.encode_to_vec());
    }
    let mut version = hex::encode(content.finalize());
    version.truncate(16);
    DiscoveryResponse {
        version_info: version,
        resources,
        type_url: Secret::type_url(),
        nonce: nonce.to_string(),
        ..Default::default()
    }
}

/// The secrets of these names, and whether any of them will be rotated.
fn resources(
    shared: &Shared,
    ids: &[SpiffeId],
    names: &[String],
) -> Result<(Vec<Any>, bool), Status> {
    if names.len() > MAX_NAMES {
        return Err(Status::invalid_argument("ask for at most 16 secrets"));
    }
    let all = [DEFAULT_SVID.to_owned(), ROOT_CA.to_owned()];
    let names = if names.is_empty() { &all } else { names };
    let mut secrets = Vec::with_capacity(names.len());
    let mut rotates = false;
    for name in names {
        let content = if name == ROOT_CA || name == shared.trust_domain().as_str() {
            bundle(shared)
        } else {
            rotates = true;
            let id = match name.as_str() {
                DEFAULT_SVID => ids.first(),
                _ => ids.iter().find(|id| id.as_str() == name),
            };
            let id = id.ok_or_else(|| {
                Status::permission_denied(
                    "a secret is neither default, ROOTCA, the trust domain nor an identity of the caller",
                )
            })?;
            identity(shared, id)?
        };
        secrets.push(pack_any(Secret {
            name: name.clone(),
            r#type: Some(content),
        }));
    }
    Ok((secrets, rotates))
}

fn identity(shared: &Shared, id: &SpiffeId) -> Result<secret::Type, Status> {
    let identity = shared.issue_x509(id)?;
    Ok(secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(identity.certificate_pem)),
        private_key: Some(inline(identity.key_pem)),
        ..Default::default()
    }))
}

/// The bundle as SPIRE's agent serves it: with Envoy's own validator for SPIFFE,
/// which also refuses leaves that are a CA's or may sign certificates, and those
/// of another trust domain whoever signed them.
fn bundle(shared: &Shared) -> secret::Type {
    let bundle = || Some(inline(shared.authority().bundle_pem().to_owned()));
    let validator = SpiffeCertValidatorConfig {
        trust_domains: vec![TrustDomain {
            name: shared.trust_domain().trust_domain().to_owned(),
            trust_bundle: bundle(),
            ..Default::default()
        }],
        ..Default::default()
    };
    secret::Type::ValidationContext(CertificateValidationContext {
        trusted_ca: bundle(),
        custom_validator_config: Some(TypedExtensionConfig {
            name: SPIFFE_VALIDATOR.to_owned(),
            typed_config: Some(pack_any(validator)),
        }),
        ..Default::default()
    })
}

fn inline(pem: String) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineBytes(pem.into_bytes())),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type StreamSecretsStream = Replies<DiscoveryResponse>;
    type DeltaSecretsStream = Replies<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let subscription = Subscription {
            ids: attest(&self.shared, &request)?,
            shared: Arc::clone(&self.shared),
            requests: request.into_inner(),
            names: None,
            sent: 0,
            refusal_said: false,
            rotate_at: None,
        };
        let replies = stream::unfold(Some(subscription), |subscription| async move {
            let mut subscription = subscription?;
            let reply = subscription.next().await?;
            let next = reply.is_ok().then_some(subscription);
            Some((reply, next))
        })
        .take_until(self.shutdown.clone().cancelled_owned());
        Ok(Response::new(Box::pin(replies)))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let ids = attest(&self.shared, &request)?;
        let names = request.into_inner().resource_names;
        let (resources, _) = resources(&self.shared, &ids, &names)?;
        Ok(Response::new(response(resources, 0)))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented(
            "delta SDS is not served: configure api_type GRPC",
        ))
    }
}
