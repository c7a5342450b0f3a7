//! Probes of the checks: inputs that a test composes, as JSON, and the gates.

use capability::action::Body;
use capability::gates::{self, EdgeConfig, RequestView, Site, TokenCheck};
use capability::jws::UnverifiedJws;
use capability::key::PublicKey;
use capability::proof::{Expected, UnverifiedProof};
use capability::url::{Origin, Target};
use capability::x509::Leaf;
use capability::{Limits, Portable, Verifier, sha256};
use serde_json::Value;

/// What a test composed is not what the probe takes.
const UNREADABLE: &str = "the probe can't read its input";

fn read<'a>(input: &'a Value, name: &str) -> Option<&'a str> {
    input.get(name)?.as_str()
}

fn bytes(input: &Value, name: &str) -> Option<Vec<u8>> {
    hex::decode(read(input, name)?).ok()
}

fn answer(input: &[u8], probe: impl Fn(&Value) -> Option<String>) -> String {
    let input = serde_json::from_slice(input).unwrap_or_default();
    probe(&input).unwrap_or_else(|| UNREADABLE.to_owned())
}

/// {`jwk`, `msg`, `sig`}, the latter two in hex: is the signature good?
pub fn verify(input: &[u8]) -> String {
    answer(input, |input| {
        let key = match PublicKey::from_jwk(input.get("jwk")?) {
            Ok(key) => key,
            Err(error) => return Some(format!("refused {error:?}")),
        };
        let (message, signature) = (bytes(input, "msg")?, bytes(input, "sig")?);
        let good = Portable.verify(key.algorithm(), &key, &message, &signature);
        Some(match good {
            Ok(true) => "good".to_owned(),
            Ok(false) => "bad".to_owned(),
            Err(fault) => format!("fault {fault:?}"),
        })
    })
}

/// {`jwk`, `jws`}: the payload of a JWS of no kind, in hex. A `kid` on either
/// side has to be on the other.
pub fn jws(input: &[u8]) -> String {
    answer(input, |input| {
        let jwk = input.get("jwk")?;
        let key = match PublicKey::from_jwk(jwk) {
            Ok(key) => key,
            Err(error) => return Some(format!("refused {error:?}")),
        };
        let jws = match UnverifiedJws::parse(read(input, "jws")?.as_bytes(), &Limits::default()) {
            Ok(jws) => jws,
            Err(malformed) => return Some(format!("refused {malformed:?}")),
        };
        if jws.kid() != read(jwk, "kid") {
            return Some("refused kid".to_owned());
        }
        Some(match jws.verify(&key, &Portable) {
            Ok(jws) => format!("ok {}", hex::encode(jws.payload)),
            Err(error) => format!("refused {error:?}"),
        })
    })
}

/// {`htu`, `request`}: do they match by RFC 9449, and by the strict rule, which
/// refuses some requests whatever the proof?
pub fn htu(input: &[u8]) -> String {
    answer(input, |input| {
        let (htu, request) = (read(input, "htu")?, read(input, "request")?);
        let by_rfc = Target::htu(request).is_ok_and(|request| request.is_htu(htu));
        Some(match Target::location(request) {
            Ok(request) => format!("{by_rfc} {}", request.is_htu(htu)),
            Err(error) => format!("{by_rfc} refused {error:?}"),
        })
    })
}

/// {`proof`, `method`, `url`, `now_ms`, `window_s`, and perhaps `access_token`,
/// `jkt`, `nonce`}: a proof against a request, at an endpoint of its own.
pub fn check_proof(input: &[u8]) -> String {
    answer(input, |input| {
        let target = match Target::location(read(input, "url")?) {
            Ok(target) => target,
            Err(error) => return Some(format!("refused {error:?}")),
        };
        let expected = Expected {
            method: read(input, "method")?,
            target: &target,
            now_ms: input.get("now_ms")?.as_u64()?,
            window_s: input.get("window_s")?.as_u64()?,
            ath: read(input, "access_token").map(|token| sha256(token.as_bytes())),
            jkt: read(input, "jkt"),
            nonce: read(input, "nonce"),
        };
        let proof = read(input, "proof")?;
        let proof = UnverifiedProof::parse(proof.as_bytes(), &Limits::default())
            .and_then(|proof| proof.check(&expected, &Portable));
        Some(match proof {
            Ok(proof) => format!("ok {} {} {}", proof.jti(), proof.jkt(), proof.iat_s()),
            Err(reason) => format!("refused {reason}"),
        })
    })
}

/// A line of JSON with config and surroundings, then the request's headers, a
/// line each: a name, `=`, and a value of any bytes but a line feed.
///
/// The JSON has `issuer`, `resource`, `origin`, `keys` (JWKs with `kid`), `now_ms`,
/// and perhaps `record`, `require_peer`, `peer` (a leaf certificate's words:
/// `sha256` in hex, `uri_sans`, `not_before_s`, `not_after_s`,
/// `signs_handshakes_only`), `body` (absent when unread, else its bytes in hex), and
/// `nonces`, of which the proof has to have one.
pub fn gates(input: &[u8]) -> String {
    let mut lines = input.split(|byte| *byte == b'\n');
    let surroundings = lines.next().unwrap_or_default();
    let headers: Vec<(Vec<u8>, Vec<u8>)> = lines
        .filter_map(|line| {
            let at = line.iter().position(|byte| *byte == b'=')?;
            let (name, value) = line.split_at_checked(at)?;
            Some((name.to_ascii_lowercase(), value.get(1..)?.to_vec()))
        })
        .collect();
    answer(surroundings, |around| {
        let config = config(around)?;
        let peer = around.get("peer").filter(|peer| !peer.is_null());
        let peer = match peer {
            Some(peer) => Some(leaf(peer)?),
            None => None,
        };
        let body = bytes(around, "body");
        let body = match body.as_deref() {
            None => Body::Unread,
            Some([]) => Body::Empty,
            Some(body) => Body::of(body),
        };
        let nonces = around.get("nonces").filter(|it| !it.is_null());
        let nonces = match nonces {
            Some(all) => Some(serde_json::from_value::<Vec<String>>(all.clone()).ok()?),
            None => None,
        };
        let request = RequestView {
            headers: &headers,
            peer: peer.as_ref(),
            body,
            nonces: nonces.as_deref(),
        };
        let now_ms = around.get("now_ms")?.as_u64()?;
        Some(match gates::check(&request, &config, now_ms, &Portable) {
            Ok(checked) => format!(
                "ok {:?}",
                (
                    checked.method(),
                    checked.authority(),
                    checked.path(),
                    checked.agent(),
                    checked.jti(),
                    checked.proof_jti(),
                    hex::encode(checked.token_hash()),
                )
            ),
            Err(refusal) => match refusal.authenticated {
                Some(known) => format!("refused {} to {}", refusal.reason, known.agent),
                None => format!("refused {}", refusal.reason),
            },
        })
    })
}

fn leaf(peer: &Value) -> Option<Leaf> {
    Some(Leaf {
        sha256: bytes(peer, "sha256")?.try_into().ok()?,
        uri_sans: serde_json::from_value(peer.get("uri_sans")?.clone()).ok()?,
        not_before_s: peer.get("not_before_s")?.as_u64()?,
        not_after_s: peer.get("not_after_s")?.as_u64()?,
        signs_handshakes_only: peer.get("signs_handshakes_only")?.as_bool()?,
    })
}

fn config(around: &Value) -> Option<EdgeConfig> {
    let origin = Origin::parse(read(around, "origin")?).ok()?;
    let keys = around.get("keys")?.as_array()?.iter();
    let keys = keys.map(|jwk| {
        let key = PublicKey::from_jwk(jwk).ok()?;
        Some((read(jwk, "kid")?.to_owned(), key))
    });
    let mut config = EdgeConfig::new(read(around, "issuer")?, read(around, "resource")?, origin);
    config.keys = keys.collect::<Option<_>>()?;
    let sites = around.get("sites").and_then(Value::as_array);
    let sites = sites.into_iter().flatten().map(|site| {
        Some(Site {
            origin: Origin::parse(read(site, "origin")?).ok()?,
            resource: read(site, "resource")?.to_owned(),
        })
    });
    config.sites = sites.collect::<Option<_>>()?;
    config.require_peer = around.get("require_peer") == Some(&Value::Bool(true));
    if around.get("record") == Some(&Value::Bool(true)) {
        config.token_check = TokenCheck::Record;
    }
    Some(config)
}
