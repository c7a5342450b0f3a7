//! The SPIFFE Workload API (SPIFFE_Workload_API.md).

use std::{collections::HashMap, pin::Pin, sync::Arc};

use base64ct::{Base64UrlUnpadded, Encoding};
use futures::{Stream, StreamExt, stream};
use prost_types::{ListValue, Struct, Value, value::Kind};
use spiffe::{JwtBundle, JwtBundleSet, JwtSvid, TrustDomain};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    Caller, MAX_JWT_SVID_BYTES, SpiffeId,
    proto::{
        JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
        ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse,
        X509svid, X509svidRequest, X509svidResponse, spiffe_workload_api_server::SpiffeWorkloadApi,
    },
    trust_domain::Shared,
};

/// Without it a caller may be a confused browser or proxy (Workload API, section 3).
const SECURITY_HEADER: &str = "workload.spiffe.io";
const MAX_AUDIENCES: usize = 16;
const MAX_AUDIENCE_BYTES: usize = 2048;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service; one for all connections.
pub(crate) struct WorkloadApi {
    shared: Arc<Shared>,
    shutdown: CancellationToken,
}

impl WorkloadApi {
    pub(crate) fn new(shared: Arc<Shared>, shutdown: CancellationToken) -> Self {
        Self { shared, shutdown }
    }

    /// The caller's identities, at least one.
    fn attest<T>(&self, request: &Request<T>) -> Result<Vec<SpiffeId>, Status> {
        let header = request.metadata().get(SECURITY_HEADER);
        if header.is_none_or(|value| value.as_bytes() != b"true") {
            return Err(Status::invalid_argument(
                "the metadata workload.spiffe.io: true is missing",
            ));
        }
        attest(&self.shared, request)
    }

    /// One message now and then silence: bundles don't change while we run.
    fn once<T: Send + 'static>(&self, message: T) -> Response<Replies<T>> {
        let replies = stream::iter([Ok(message)])
            .chain(stream::pending())
            .take_until(self.shutdown.clone().cancelled_owned());
        Response::new(Box::pin(replies))
    }

    fn x509_response(shared: &Shared, ids: &[SpiffeId]) -> Result<X509svidResponse, Status> {
        let svids = ids
            .iter()
            .map(|id| {
                let identity = shared.issue_x509(id)?;
                Ok(X509svid {
                    spiffe_id: identity.spiffe_id.to_string(),
                    x509_svid: identity.certificate_der,
                    x509_svid_key: identity.key_der,
                    bundle: shared.authority().bundle_der().to_vec(),
                    hint: String::new(),
                })
            })
            .collect::<Result<_, Status>>()?;
        Ok(X509svidResponse {
            svids,
            crl: Vec::new(),
            federated_bundles: HashMap::new(),
        })
    }
}

/// The process that a request came from.
fn caller<T>(request: &Request<T>) -> Result<&Caller, Status> {
    let caller = request.extensions().get::<Caller>();
    caller.ok_or_else(|| Status::permission_denied("no identity issued"))
}

/// The identities of the process that a request came from, at least one.
pub(crate) fn attest<T>(shared: &Shared, request: &Request<T>) -> Result<Vec<SpiffeId>, Status> {
    let ids = shared.identities(caller(request)?);
    if ids.is_empty() {
        return Err(Status::permission_denied("no identity issued"));
    }
    Ok(ids)
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Replies<X509svidResponse>;
    type FetchX509BundlesStream = Replies<X509BundlesResponse>;
    type FetchJWTBundlesStream = Replies<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let ids = self.attest(&request)?;
        let rotate_after = self.shared.authority().rotate_after();
        let state = (Arc::clone(&self.shared), ids, false);
        let replies = stream::unfold(state, move |(shared, ids, sent)| async move {
            if sent {
                tokio::time::sleep(rotate_after).await;
            }
            let reply = Self::x509_response(&shared, &ids);
            Some((reply, (shared, ids, true)))
        })
        .take_until(self.shutdown.clone().cancelled_owned());
        Ok(Response::new(Box::pin(replies)))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.attest(&request)?;
        Ok(self.once(X509BundlesResponse {
            crl: Vec::new(),
            bundles: HashMap::from([(
                self.shared.trust_domain().to_string(),
                self.shared.authority().bundle_der().to_vec(),
            )]),
        }))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let mut ids = self.attest(&request)?;
        let JwtsvidRequest {
            audience,
            spiffe_id,
        } = request.into_inner();
        if audience.is_empty() || audience.len() > MAX_AUDIENCES {
            return Err(Status::invalid_argument("ask for 1 to 16 audiences"));
        }
        if audience
            .iter()
            .any(|one| one.is_empty() || one.len() > MAX_AUDIENCE_BYTES)
        {
            return Err(Status::invalid_argument(
                "an audience must have 1 to 2048 bytes",
            ));
        }
        if !spiffe_id.is_empty() {
            ids.retain(|id| id.as_str() == spiffe_id);
            if ids.is_empty() {
                return Err(Status::permission_denied("no such identity issued"));
            }
        }
        let now = self.shared.now();
        let svids = ids
            .iter()
            .map(|id| {
                let svid = self
                    .shared
                    .jwt()
                    .issue(id, &audience, now)
                    .map_err(|fault| Status::internal(fault.to_string()))?;
                Ok(Jwtsvid {
                    spiffe_id: id.to_string(),
                    svid,
                    hint: String::new(),
                })
            })
            .collect::<Result<_, Status>>()?;
        Ok(Response::new(JwtsvidResponse { svids }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.attest(&request)?;
        Ok(self.once(JwtBundlesResponse {
            bundles: HashMap::from([(
                self.shared.trust_domain().to_string(),
                self.shared.jwt().jwks().as_bytes().to_vec(),
            )]),
        }))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        self.attest(&request)?;
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        if audience.is_empty() || svid.len() > MAX_JWT_SVID_BYTES {
            return Err(Status::invalid_argument(
                "an audience and a JWT-SVID of at most 8 KiB are needed",
            ));
        }
        let bundles = self.jwt_bundles()?;
        let verified = JwtSvid::parse_and_validate(&svid, &bundles, &[audience])
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(ValidateJwtsvidResponse {
            spiffe_id: verified.spiffe_id().to_string(),
            claims: claims_of(&svid),
        }))
    }
}

impl WorkloadApi {
    fn jwt_bundles(&self) -> Result<JwtBundleSet, Status> {
        let bundle = TrustDomain::new(self.shared.trust_domain().trust_domain())
            .ok()
            .and_then(|name| {
                JwtBundle::from_jwt_authorities(name, self.shared.jwt().jwks().as_bytes()).ok()
            })
            .ok_or_else(|| Status::internal("the trust domain's own keys can't be read"))?;
        let mut bundles = JwtBundleSet::new();
        bundles.add_bundle(bundle);
        Ok(bundles)
    }
}

/// The payload of a token that has been verified.
fn claims_of(token: &str) -> Option<Struct> {
    let payload = Base64UrlUnpadded::decode_vec(token.split('.').nth(1)?).ok()?;
    match value_of(serde_json::from_slice(&payload).ok()?).kind? {
        Kind::StructValue(claims) => Some(claims),
        _ => None,
    }
}

fn value_of(value: serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(flag) => Kind::BoolValue(flag),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::StringValue(text),
        serde_json::Value::Array(items) => Kind::ListValue(ListValue {
            values: items.into_iter().map(value_of).collect(),
        }),
        serde_json::Value::Object(members) => Kind::StructValue(Struct {
            fields: members
                .into_iter()
                .map(|(name, member)| (name, value_of(member)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}
