//! Bundles that the Workload API sends: it says which keys, and the config says whose.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::{BundleFrom, ByTrustDomain, DomainSettings, Federation};
use crate::ca::Authority;
use crate::jwt::JwtAuthority;
use crate::proto::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use crate::proto::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest,
    X509svidResponse,
};
use crate::{EvidenceError, Source, SpiffeId};

const US: &str = "https://writ.example";
const OURS: usize = 0;
const PARTNER: usize = 1;
const THIRD: usize = 2;
const FILED: usize = 3;
const ALL: [usize; 4] = [OURS, PARTNER, THIRD, FILED];
/// Ours; one that the config has from the Workload API; one that it does not name; and one
/// that it has from a file. The Workload API sends all of them.
const NAMES: [&str; 4] = [
    "writ.example",
    "partner.example",
    "third.example",
    "filed.example",
];

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A trust domain with its keys.
struct Domain {
    name: SpiffeId,
    x509: Authority,
    jwt: JwtAuthority,
}

impl Domain {
    fn new(name: &str, dir: PathBuf) -> Self {
        std::fs::create_dir(&dir).unwrap();
        let name = SpiffeId::of_trust_domain(name).unwrap();
        let hour = Duration::from_secs(3600);
        Self {
            x509: Authority::open(&dir, &name, hour, now()).unwrap(),
            jwt: JwtAuthority::open(&dir, hour).unwrap(),
            name,
        }
    }
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.unwrap().as_millis()).unwrap()
}

fn agent(of: usize) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://{}/agent", NAMES[of])).unwrap()
}

/// A Workload API that knows all of them, as SPIRE's does that federates with three.
struct Api(Arc<Vec<Domain>>);

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn once<T: Send + 'static>(message: T) -> Result<Response<Replies<T>>, Status> {
    let replies = stream::iter([Ok(message)]).chain(stream::pending());
    Ok(Response::new(Box::pin(replies)))
}

impl Api {
    fn authorities(&self) -> HashMap<String, Vec<u8>> {
        let all = self.0.iter();
        all.map(|it| (it.name.to_string(), it.x509.bundle_der().to_vec()))
            .collect()
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Api {
    type FetchX509SVIDStream = Replies<X509svidResponse>;
    type FetchX509BundlesStream = Replies<X509BundlesResponse>;
    type FetchJWTBundlesStream = Replies<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        _: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let own = &self.0[OURS];
        let made = own.x509.issue(&agent(OURS), &[], now()).unwrap();
        let mut others = self.authorities();
        others.remove(own.name.as_str());
        once(X509svidResponse {
            svids: vec![X509svid {
                spiffe_id: made.spiffe_id.to_string(),
                x509_svid: made.certificate_der,
                x509_svid_key: made.key_der,
                bundle: own.x509.bundle_der().to_vec(),
                hint: String::new(),
            }],
            crl: Vec::new(),
            federated_bundles: others,
        })
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        once(X509BundlesResponse {
            crl: Vec::new(),
            bundles: self.authorities(),
        })
    }

    async fn fetch_jwtsvid(
        &self,
        _: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        Err(Status::unimplemented("nobody asks for one here"))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let all = self.0.iter();
        let all = all.map(|it| (it.name.to_string(), it.jwt.jwks().as_bytes().to_vec()));
        once(JwtBundlesResponse {
            bundles: all.collect(),
        })
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented("nobody asks for it here"))
    }
}

struct World {
    domains: Arc<Vec<Domain>>,
    source: Source,
    dir: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let all = NAMES.map(|name| Domain::new(name, dir.path().join(name)));
        let domains = Arc::new(Vec::from(all));
        let socket = dir.path().join("workload.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let serving = tonic::transport::Server::builder()
            .add_service(SpiffeWorkloadApiServer::new(Api(domains.clone())))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(serving);
        let source = Source::connect(&socket, Duration::from_secs(10)).await;
        Self {
            domains,
            source: source.unwrap(),
            dir,
        }
    }

    fn believing(&self, settings: &[(usize, BundleFrom)]) -> Federation {
        let settings = settings.iter().map(|(of, bundle)| DomainSettings {
            trust_domain: NAMES[*of].to_owned(),
            bundle: bundle.clone(),
            authorities_pem: None,
            lifetime_max_ms: DAY_MS,
        });
        Federation::new(self.source.clone(), settings.collect()).unwrap()
    }

    /// A JWT-SVID by the keys of one trust domain with the name of another.
    fn verified(&self, federation: &Federation, by: usize, of: usize) -> Result<(), EvidenceError> {
        let audience = [US.to_owned()];
        let token = self.domains[by].jwt.issue(&agent(of), &audience, now());
        let verified = federation.verify_jwt_svid(&token.unwrap(), US, now())?;
        assert_eq!(verified.agent, agent(of));
        Ok(())
    }

    /// The same of a certificate, as a connection shows it; why not, where it is refused.
    fn certified(&self, federation: &Federation, by: usize, of: usize) -> Result<(), String> {
        let own = &self.domains[OURS];
        let mut roots = rustls::RootCertStore::empty();
        let authority = CertificateDer::from(own.x509.bundle_der().to_vec());
        roots.add(authority).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let ours = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let all = ByTrustDomain::new(own.name.clone(), ours.build().unwrap(), federation.clone());
        let made = self.domains[by].x509.issue(&agent(of), &[], now()).unwrap();
        let leaf = CertificateDer::from(made.certificate_der);
        let verified = all.verify_client_cert(&leaf, &[], UnixTime::now());
        verified.map(|_| ()).map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn what_it_sends_of_a_domain_that_is_named_is_good_for_that_ones_names() {
    let world = World::start().await;
    let federation = world.believing(&[(PARTNER, BundleFrom::WorkloadApi)]);
    assert_eq!(federation.fetched().count(), 0, "nothing is fetched");
    for own in [OURS, PARTNER] {
        world.verified(&federation, own, own).unwrap();
        world.certified(&federation, own, own).unwrap();
    }
    // Each combination of who signs and whom it names; all four are sent.
    for by in ALL {
        for of in ALL {
            if by == of && [OURS, PARTNER].contains(&by) {
                continue;
            }
            let what = format!("{} names {}", NAMES[by], NAMES[of]);
            let said = world.verified(&federation, by, of);
            assert!(
                matches!(said, Err(EvidenceError::Signature)),
                "{what}: {said:?}"
            );
            let said = world.certified(&federation, by, of).unwrap_err();
            let named = [OURS, PARTNER].contains(&of);
            let why = if named {
                "UnknownIssuer"
            } else {
                "is not believed here"
            };
            assert!(said.contains(why), "{what}: {said}");
        }
    }
    // Where nobody is named nobody counts but ourselves.
    let alone = world.believing(&[]);
    world.verified(&alone, OURS, OURS).unwrap();
    world.certified(&alone, OURS, OURS).unwrap();
    let said = world.verified(&alone, PARTNER, PARTNER);
    assert!(matches!(said, Err(EvidenceError::Signature)), "{said:?}");
    let said = world.certified(&alone, PARTNER, PARTNER).unwrap_err();
    assert!(said.contains("is not believed here"), "{said}");
}

#[tokio::test]
async fn it_does_not_stand_in_for_another_place_nor_for_what_it_does_not_send() {
    let world = World::start().await;
    let file = world.dir.path().join("filed.json");
    let federation = world.believing(&[
        (FILED, BundleFrom::File(file.clone())),
        (OURS, BundleFrom::File(file)),
    ]);
    // The config has it from a file, which is not there yet: what is sent is no bundle of it.
    let said = world.verified(&federation, FILED, FILED);
    let unread = |said: &str| said.contains("the bundle of filed.example has not been read");
    let why = said.unwrap_err().to_string();
    assert!(unread(&why), "{why}");
    let said = world.certified(&federation, FILED, FILED).unwrap_err();
    assert!(unread(&said), "{said}");
    // Nor does a file speak for our own names.
    world.verified(&federation, OURS, OURS).unwrap();
    world.certified(&federation, OURS, OURS).unwrap();

    let settings = vec![DomainSettings {
        trust_domain: "unsent.example".to_owned(),
        bundle: BundleFrom::WorkloadApi,
        authorities_pem: None,
        lifetime_max_ms: DAY_MS,
    }];
    let unsent = Federation::new(world.source.clone(), settings).unwrap();
    let name = SpiffeId::parse("spiffe://unsent.example/agent").unwrap();
    let token = world.domains[THIRD]
        .jwt
        .issue(&name, &[US.to_owned()], now());
    let said = unsent.verify_jwt_svid(&token.unwrap(), US, now());
    assert!(matches!(said, Err(EvidenceError::Signature)), "{said:?}");
    let said = unsent.authorities("unsent.example", now()).unwrap_err();
    let why = "the workload api has no bundle of unsent.example";
    assert_eq!(said.to_string(), why);
}
