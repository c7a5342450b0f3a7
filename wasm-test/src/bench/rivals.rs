//! The Envoys that Writ's is measured beside: the same listener, normalisation
//! and upstream, with nothing in front of it, with the least that such a filter
//! can cost, and with what people use instead.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64ct::{Base64UrlUnpadded, Encoding as _};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::{Value, json};

use super::answers::Answers;
use super::load::{self, Pace};
use crate::Error;
use crate::child::Child;
use crate::client::{DpopKey, now_s};
use crate::ports;
use crate::system::System;
use crate::upstream::REPORT;

const DEADLINE: Duration = Duration::from_secs(20);
/// Bytes that the floor's two checks are over: what of a token is signed has
/// 700, of a proof 400.
const CHECKED_BYTES: usize = 512;
/// Different signatures that the floor takes in turn, under two keys.
const SIGNATURES: usize = 64;
/// A P-256 SubjectPublicKeyInfo up to its point (RFC 5480).
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const PEER_ISSUER: &str = "https://issuer.example";

/// What stands in front of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Bare,
    /// Nothing, and the access log that Writ's listener writes.
    Logged,
    /// Two signature checks and a stream answer; mutual TLS to the answerer or none.
    Floor { mutual: bool },
    /// `jwt_authn` with one ES256 key and `ext_authz` over mutual TLS.
    Peer,
}

/// A running Envoy with one worker, and what it is sent.
pub struct Rival {
    /// The process.
    pub child: Child,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    /// A request of its own for every one; none: it takes the round's.
    pub request: Option<Vec<u8>>,
}

/// What rivals are made of.
pub struct Parts<'a> {
    /// The system whose upstream and Workload API they use.
    pub system: &'a System,
    /// Who answers them.
    pub answers: &'a Answers,
    /// The floor's module.
    pub floor_wasm: &'a Path,
}

impl Rival {
    /// Starts one and waits until it lets a request through.
    pub async fn start(kind: Kind, parts: &Parts<'_>) -> Result<Rival, Error> {
        let name = match kind {
            Kind::Bare => "bare",
            Kind::Logged => "logged",
            Kind::Floor { mutual: false } => "floor",
            Kind::Floor { mutual: true } => "floor-tls",
            Kind::Peer => "peer",
        };
        let port = ports::one()?;
        let (filters, request) = match kind {
            Kind::Bare | Kind::Logged => (Vec::new(), None),
            Kind::Floor { .. } => (vec![floor(parts.floor_wasm)?], None),
            Kind::Peer => {
                let key = DpopKey::generate()?;
                (peer(&key), Some(peer_request(&key, port)))
            }
        };
        let config = bootstrap(kind, parts, port, filters)?;
        let dir = parts.system.state_dir();
        let file = dir.join(format!("{name}.json"));
        std::fs::write(&file, config.to_string()).map_err(Error::file("write", &file))?;
        let mut command = Command::new(&parts.system.tools().envoy);
        command
            .arg("-c")
            .arg(&file)
            .args(["--concurrency", "1", "--disable-hot-restart"]);
        let log = dir.join(format!("{name}.log"));
        let child = Child::spawn("an Envoy to compare with", &mut command, &log)?;
        let mut rival = Rival {
            child,
            port,
            request,
        };
        rival.ready().await?;
        Ok(rival)
    }

    async fn ready(&mut self) -> Result<(), Error> {
        let plain = format!("GET {REPORT} HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes();
        let request = Arc::new(vec![self.request.clone().unwrap_or(plain)]);
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.child.still_running()?;
            let volley = load::fire(self.port, &request, 1, Pace::Saturate).await;
            if volley.is_ok_and(|volley| volley.ok == 1) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.child.error("lets nothing through"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// JSON is YAML, and needs no care with quotes.
fn bootstrap(
    kind: Kind,
    parts: &Parts<'_>,
    port: u16,
    mut filters: Vec<Value>,
) -> Result<Value, Error> {
    filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": typed("filters.http.router.v3.Router", json!({})),
    }));
    let mut manager = json!({
        "stat_prefix": "rival",
        "normalize_path": true,
        "merge_slashes": true,
        "http_filters": filters,
        "route_config": {
            "name": "rival",
            "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}],
            }],
        },
    });
    if kind == Kind::Logged {
        set(&mut manager, "access_log", json!([access_log()]));
    }
    let upstream = parts.system.upstream()?.address().port();
    let mut clusters = vec![cluster("upstream", upstream, json!({}))];
    match kind {
        Kind::Bare | Kind::Logged => {}
        Kind::Floor { mutual: false } => {
            clusters.push(cluster("answers", parts.answers.plain, http2()));
        }
        Kind::Floor { mutual: true } | Kind::Peer => {
            let mut more = http2();
            set(&mut more, "transport_socket", mutual_tls());
            clusters.push(cluster("answers", parts.answers.mutual, more));
            clusters.push(workload_api(&parts.system.workload_api()));
        }
    }
    Ok(json!({
        "node": {"id": "rival", "cluster": "rival"},
        "static_resources": {
            "listeners": [{
                "name": "rival",
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "filter_chains": [{"filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": typed(
                        "filters.network.http_connection_manager.v3.HttpConnectionManager",
                        manager,
                    ),
                }]}],
            }],
            "clusters": clusters,
        },
    }))
}

/// As the control plane configures it.
fn access_log() -> Value {
    let fields = json!({
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "request_id": "%STREAM_ID%",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ:PATH)%",
        "authority": "%REQ(:AUTHORITY)%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "reason": "%FILTER_STATE(wasm.writ.reason:PLAIN)%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "route": "%ROUTE_NAME%",
        "peer": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
        "bytes_sent": "%BYTES_SENT%",
        "duration_ms": "%DURATION%",
    });
    json!({
        "name": "envoy.access_loggers.stdout",
        "typed_config": typed(
            "access_loggers.stream.v3.StdoutAccessLog",
            json!({"log_format": {"json_format": fields}}),
        ),
    })
}

/// Sets a member of an object.
fn set(object: &mut Value, name: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
}

fn typed(name: &str, mut config: Value) -> Value {
    set(
        &mut config,
        "@type",
        json!(format!("type.googleapis.com/envoy.extensions.{name}")),
    );
    config
}

fn cluster(name: &str, port: u16, mut more: Value) -> Value {
    set(&mut more, "name", json!(name));
    set(&mut more, "type", json!("STATIC"));
    set(&mut more, "connect_timeout", json!("1s"));
    let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    set(&mut more, "load_assignment", endpoint(name, address));
    more
}

fn endpoint(name: &str, address: Value) -> Value {
    json!({
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
    })
}

fn http2() -> Value {
    let options = typed(
        "upstreams.http.v3.HttpProtocolOptions",
        json!({"explicit_http_config": {"http2_protocol_options": {}}}),
    );
    json!({"typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options,
    }})
}

fn workload_api(socket: &Path) -> Value {
    let mut cluster = http2();
    set(&mut cluster, "name", json!("workload_api"));
    set(&mut cluster, "type", json!("STATIC"));
    let address = json!({"pipe": {"path": socket}});
    set(
        &mut cluster,
        "load_assignment",
        endpoint("workload_api", address),
    );
    cluster
}

/// As in the bootstrap that users copy, but for whom it expects.
fn mutual_tls() -> Value {
    let sds = json!({
        "resource_api_version": "V3",
        "initial_fetch_timeout": "0s",
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "workload_api"}}],
        },
    });
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": typed("transport_sockets.tls.v3.UpstreamTlsContext", json!({
            "max_session_keys": 0,
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_3",
                    "tls_maximum_protocol_version": "TLSv1_3",
                },
                "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": sds}],
                "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": sds},
            },
        })),
    })
}

fn floor(module: &Path) -> Result<Value, Error> {
    let module: PathBuf = module.to_owned();
    // GrpcService { envoy_grpc: EnvoyGrpc { cluster_name: "answers" } }
    let upstream = "\n\u{9}\n\u{7}answers";
    let keys = [signing_key()?, signing_key()?];
    let checks: Vec<String> = keys
        .iter()
        .cycle()
        .take(SIGNATURES)
        .map(|key| Base64UrlUnpadded::encode_string(&check(key)))
        .collect();
    let configuration = json!({"upstream": upstream, "checks": checks}).to_string();
    let wasm = json!({"config": {
        "name": "floor",
        "root_id": "floor",
        "failure_policy": "FAIL_CLOSED",
        "configuration": {
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": configuration,
        },
        "vm_config": {
            "runtime": "envoy.wasm.runtime.v8",
            "code": {"local": {"filename": module}},
        },
    }});
    Ok(json!({"name": "floor", "typed_config": typed("filters.http.wasm.v3.Wasm", wasm)}))
}

fn signing_key() -> Result<SigningKey, Error> {
    SigningKey::from_slice(&rand::random::<[u8; 32]>())
        .map_err(|_| Error::Unexpected("random bytes were no P-256 key".to_owned()))
}

/// The serialised arguments of `verify_signature` for a good signature.
fn check(key: &SigningKey) -> Vec<u8> {
    let text = hex::encode(rand::random::<[u8; CHECKED_BYTES / 2]>()).into_bytes();
    let signature: Signature = key.sign(&text);
    let point = key.verifying_key().to_sec1_point(false);
    let spki = [&SPKI[..], point.as_bytes()].concat();
    let mut out = Vec::new();
    let signature = signature.to_der();
    let fields: [(u8, &[u8]); 4] = [
        (0x0a, b"sha256"),
        (0x12, &spki),
        (0x1a, signature.as_bytes()),
        (0x22, &text),
    ];
    for (tag, bytes) in fields {
        out.push(tag);
        // A varint of two bytes is long enough for every length here.
        let length = u16::try_from(bytes.len()).unwrap_or_default();
        out.extend([(length & 0x7f) as u8 | 0x80, (length >> 7) as u8]);
        out.extend(bytes);
    }
    out
}

fn peer(key: &DpopKey) -> Vec<Value> {
    let mut jwk = key.jwk().clone();
    set(&mut jwk, "kid", json!("bench"));
    set(&mut jwk, "alg", json!("ES256"));
    let jwks = json!({"keys": [jwk]}).to_string();
    let jwt = json!({
        "providers": {"bench": {
            "issuer": PEER_ISSUER,
            "audiences": ["https://resource.example"],
            "local_jwks": {"inline_string": jwks},
        }},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "bench"}}],
    });
    let authz = json!({
        "transport_api_version": "V3",
        "grpc_service": {"envoy_grpc": {"cluster_name": "answers"}, "timeout": "2s"},
    });
    vec![
        json!({
            "name": "envoy.filters.http.jwt_authn",
            "typed_config": typed("filters.http.jwt_authn.v3.JwtAuthentication", jwt),
        }),
        json!({
            "name": "envoy.filters.http.ext_authz",
            "typed_config": typed("filters.http.ext_authz.v3.ExtAuthz", authz),
        }),
    ]
}

/// A request with a bearer token about as long as a capability.
fn peer_request(key: &DpopKey, port: u16) -> Vec<u8> {
    let header = json!({"alg": "ES256", "kid": "bench", "typ": "JWT"});
    let now_s = now_s();
    let claims = json!({
        "iss": PEER_ISSUER,
        "aud": "https://resource.example",
        "sub": "spiffe://writ.example/agent/demo",
        "client_id": "spiffe://writ.example/agent/demo",
        "iat": now_s,
        "exp": now_s.saturating_add(3_600),
        "jti": "cap_0123456789abcdef0123456789abcdef",
        "txn": "txn_0123456789abcdef0123456789abcdef",
        "scope": "GET:http://127.0.0.1/files/report.txt",
    });
    let token = key.sign(&header, &claims);
    format!(
        "GET {REPORT} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {token}\r\n\r\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floors_arguments_are_a_message() {
        #[derive(Clone, PartialEq, prost::Message)]
        struct Arguments {
            #[prost(string, tag = "1")]
            hash: String,
            #[prost(bytes = "vec", tag = "2")]
            key: Vec<u8>,
            #[prost(bytes = "vec", tag = "3")]
            signature: Vec<u8>,
            #[prost(bytes = "vec", tag = "4")]
            text: Vec<u8>,
        }
        use prost::Message as _;
        let arguments = Arguments::decode(check(&signing_key().unwrap()).as_slice()).unwrap();
        assert_eq!(arguments.hash, "sha256");
        assert_eq!((arguments.key.len(), arguments.text.len()), (91, 512));
        assert_eq!(arguments.signature[0], 0x30);
    }
}
