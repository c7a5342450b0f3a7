//! The Envoys that Writ's is measured beside: the same listener, normalisation
//! and upstream, with nothing in front of it, with the calls alone that such a
//! filter needs, and with what people use instead. All take the same requests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64ct::{Base64UrlUnpadded, Encoding as _};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::{Value, json};

use super::answers::Answers;
use super::load;
use crate::Error;
use crate::child::Child;
use crate::ports;
use crate::system::System;

const DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);
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
/// Bytes of a question that are neither token nor proof, as counted for these very
/// requests: 196, and 44 of an earlier request's outcome, which may ride on it.
const QUESTION_REST: usize = 240;

/// What stands in front of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Bare,
    /// Nothing, and the access log that Writ's listener writes.
    Logged,
    /// A wasm filter that lets everything pass.
    Empty,
    /// A wasm filter with two signature checks by the host and a stream answer over
    /// mutual TLS, of the sizes that Writ's have, and Writ's access log.
    Calls,
    /// `jwt_authn` with one ES256 key.
    Jwt,
    /// That and `ext_authz`; mutual TLS to who answers it, or none.
    Peer { mutual: bool },
    /// Writ's filter with nobody to ask, so that it lets nothing pass.
    Alone,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Bare => "bare",
            Kind::Logged => "logged",
            Kind::Empty => "empty",
            Kind::Calls => "calls",
            Kind::Jwt => "jwt",
            Kind::Peer { mutual: false } => "peer",
            Kind::Peer { mutual: true } => "peer-tls",
            Kind::Alone => "alone",
        }
    }
}

/// A running Envoy.
pub struct Rival {
    /// The process.
    pub child: Child,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    /// From its start to its first answer.
    pub started_in: Duration,
}

/// What rivals are made of.
pub struct Parts<'a> {
    /// The system whose upstream, keys and Workload API they use.
    pub system: &'a System,
    /// That system's keys, as it publishes them.
    pub jwks: Value,
    /// Who answers them.
    pub answers: &'a Answers,
    /// The floor's module.
    pub floor_wasm: &'a Path,
    /// A request that each lets through.
    pub request: Vec<u8>,
}

impl Rival {
    /// Starts one with so many workers and waits until it answers, which has to be
    /// by letting a request through.
    pub async fn start(kind: Kind, workers: u32, parts: &Parts<'_>) -> Result<Rival, Error> {
        let port = ports::one()?;
        let config = bootstrap(kind, parts, port, filters(kind, parts)?)?;
        let dir = parts.system.state_dir();
        let name = format!("{}-{workers}", kind.name());
        let file = dir.join(format!("{name}.json"));
        std::fs::write(&file, config.to_string()).map_err(Error::file("write", &file))?;
        let mut command = Command::new(&parts.system.tools().envoy);
        command
            .arg("-c")
            .arg(&file)
            .arg("--concurrency")
            .arg(workers.to_string())
            .arg("--disable-hot-restart");
        let log = dir.join(format!("{name}.log"));
        let start = Instant::now();
        let child = Child::spawn("an Envoy to compare with", &mut command, &log)?;
        let mut rival = Rival {
            child,
            port,
            started_in: Duration::ZERO,
        };
        let request = Arc::new(vec![parts.request.clone()]);
        while !rival.answers(kind, &request).await? {
            if start.elapsed() > DEADLINE {
                return Err(rival.child.error("lets nothing through"));
            }
            tokio::time::sleep(POLL).await;
        }
        rival.started_in = start.elapsed();
        Ok(rival)
    }

    async fn answers(&mut self, kind: Kind, request: &Arc<Vec<Vec<u8>>>) -> Result<bool, Error> {
        self.child.still_running()?;
        let volley = load::fire(self.port, request, 1).await;
        Ok(volley.is_ok_and(|volley| volley.ok == 1 || kind == Kind::Alone && volley.refused == 1))
    }
}

fn filters(kind: Kind, parts: &Parts<'_>) -> Result<Vec<Value>, Error> {
    Ok(match kind {
        Kind::Bare | Kind::Logged => Vec::new(),
        Kind::Empty => vec![wasm("floor", parts.floor_wasm, &json!({"empty": true}))],
        Kind::Calls => vec![wasm("floor", parts.floor_wasm, &calls(parts)?)],
        Kind::Jwt => vec![jwt(parts)],
        Kind::Peer { .. } => vec![jwt(parts), authz()],
        Kind::Alone => vec![wasm("writ", &parts.system.module_file(), &alone(parts))],
    })
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
                "request_headers_to_remove": removed(kind),
            }],
        },
    });
    if matches!(kind, Kind::Logged | Kind::Calls | Kind::Alone) {
        set(&mut manager, "access_log", json!([access_log()]));
    }
    let upstream = parts.system.upstream()?.address().port();
    let mut clusters = vec![cluster("upstream", upstream, json!({}))];
    match kind {
        Kind::Bare | Kind::Logged | Kind::Empty | Kind::Jwt => {}
        // A port that nobody listens on.
        Kind::Alone => clusters.push(cluster("nobody", 1, http2())),
        Kind::Peer { mutual: false } => {
            clusters.push(cluster("answers", parts.answers.plain, http2()));
        }
        Kind::Calls | Kind::Peer { mutual: true } => {
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

/// Writ's filter takes the credentials off. Where only calls are counted, Envoy does.
fn removed(kind: Kind) -> Value {
    match kind {
        Kind::Calls => json!(["authorization", "dpop"]),
        _ => json!([]),
    }
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
        "observed": "%FILTER_STATE(wasm.writ.observed:PLAIN)%",
        "token_id": "%FILTER_STATE(wasm.writ.token_id:PLAIN)%",
        "question": "%FILTER_STATE(wasm.writ.question:PLAIN)%",
        "decision_us": "%FILTER_STATE(wasm.writ.decision_us:PLAIN)%",
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

/// What the floor is told: good signatures, and how long its questions are.
fn calls(parts: &Parts<'_>) -> Result<Value, Error> {
    // GrpcService { envoy_grpc: EnvoyGrpc { cluster_name: "answers" } }
    let upstream = "\n\u{9}\n\u{7}answers";
    let keys = [signing_key()?, signing_key()?];
    let checks: Vec<String> = keys
        .iter()
        .cycle()
        .take(SIGNATURES)
        .map(|key| Base64UrlUnpadded::encode_string(&check(key)))
        .collect();
    let text = String::from_utf8_lossy(&parts.request);
    let credentials = text.lines().filter_map(|line| line.split_once(": "));
    let credentials = credentials.filter(|(name, _)| ["authorization", "dpop"].contains(name));
    let question: usize = credentials.map(|(_, value)| value.len()).sum();
    Ok(json!({
        "upstream": upstream,
        "checks": checks,
        "question_bytes": question.saturating_add(QUESTION_REST),
    }))
}

fn wasm(name: &str, module: &Path, configuration: &Value) -> Value {
    let module: PathBuf = module.to_owned();
    let wasm = json!({"config": {
        "name": name,
        "root_id": name,
        "failure_policy": "FAIL_CLOSED",
        "configuration": {
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": configuration.to_string(),
        },
        "vm_config": {
            "runtime": "envoy.wasm.runtime.v8",
            "code": {"local": {"filename": module}},
        },
    }});
    json!({"name": name, "typed_config": typed("filters.http.wasm.v3.Wasm", wasm)})
}

/// As the control plane writes it, but for a cluster that nobody answers in.
fn alone(parts: &Parts<'_>) -> Value {
    json!({
        "version": 1,
        "issuer": parts.system.issuer(),
        "resource": parts.system.origin(),
        "origin": parts.system.origin(),
        "keys": parts.jwks.get("keys"),
        "cluster": "nobody",
    })
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

/// Takes the very tokens that Writ's filter takes, with the keys that sign them.
fn jwt(parts: &Parts<'_>) -> Value {
    let jwt = json!({
        "providers": {"bench": {
            "issuer": parts.system.issuer(),
            "audiences": [parts.system.origin()],
            "from_headers": [{"name": "authorization", "value_prefix": "DPoP "}],
            "local_jwks": {"inline_string": parts.jwks.to_string()},
        }},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "bench"}}],
    });
    json!({
        "name": "envoy.filters.http.jwt_authn",
        "typed_config": typed("filters.http.jwt_authn.v3.JwtAuthentication", jwt),
    })
}

fn authz() -> Value {
    let authz = json!({
        "transport_api_version": "V3",
        "grpc_service": {"envoy_grpc": {"cluster_name": "answers"}, "timeout": "2s"},
    });
    json!({
        "name": "envoy.filters.http.ext_authz",
        "typed_config": typed("filters.http.ext_authz.v3.ExtAuthz", authz),
    })
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
