//! The table of refused requests.

use base64ct::{Base64UrlUnpadded, Encoding as _};
use serde_json::{Value, json};
use wasm_test::client::{DpopKey, now_s, token_digest};
use wasm_test::upstream::REPORT;

use crate::rig::{Field, Rig, authorization, claims, field};

const NOTES: &str = "/files/notes.txt";

/// Where a refusal is to be found in the log.
#[derive(Clone, Copy, PartialEq)]
pub enum Logged {
    /// Counted by its reason: nobody was authenticated.
    Counted,
    /// An entry of its own: both signatures had verified.
    Entry,
    /// Envoy's own doing, before the filter is asked.
    ByEnvoy,
}
pub use Logged::{ByEnvoy, Counted, Entry};

/// One row: what is sent with a token for `GET REPORT`, and what comes of it.
pub struct Row {
    pub name: &'static str,
    pub bytes: fn(&Rig, &str) -> Vec<u8>,
    pub status: u16,
    pub reason: &'static str,
    pub logged: Logged,
}

const fn row(
    name: &'static str,
    (status, reason, logged): (u16, &'static str, Logged),
    bytes: fn(&Rig, &str) -> Vec<u8>,
) -> Row {
    Row {
        name,
        bytes,
        status,
        reason,
        logged,
    }
}

const MISSING: (u16, &str, Logged) = (401, "missing_credentials", Counted);
const MALFORMED: (u16, &str, Logged) = (401, "malformed_credentials", Counted);
const TOO_LARGE: (u16, &str, Logged) = (431, "too_large", Counted);
const MISMATCH: (u16, &str, Logged) = (403, "action_mismatch", Entry);

/// `GET REPORT` with these headers.
fn with(rig: &Rig, headers: &[Field]) -> Vec<u8> {
    rig.request("GET", REPORT, headers)
}

/// `GET REPORT` with this token and a right proof for it.
fn with_token(rig: &Rig, token: &str) -> Vec<u8> {
    rig.signed("GET", REPORT, token)
}

/// `GET REPORT` with the right token and this proof.
fn with_proof(rig: &Rig, token: &str, proof: impl Into<Vec<u8>>) -> Vec<u8> {
    with(rig, &[authorization(token), field("dpop", proof)])
}

/// The proof of `GET REPORT` with claims laid over the right ones.
fn claiming(rig: &Rig, token: &str, over: &Value) -> Vec<u8> {
    let url = rig.agent.url(REPORT);
    let proof = rig.agent.key().proof_with("GET", &url, Some(token), over);
    with_proof(rig, token, proof)
}

/// The proof of `GET REPORT` with members laid over its header.
fn heading(rig: &Rig, token: &str, over: Value) -> Vec<u8> {
    let key = rig.agent.key();
    let mut header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": key.jwk()});
    let members = header.as_object_mut().unwrap();
    members.extend(over.as_object().unwrap().clone());
    members.retain(|_, value| !value.is_null());
    let claims = json!({
        "jti": "x".repeat(22), "htm": "GET", "htu": rig.agent.url(REPORT),
        "iat": now_s(), "ath": token_digest(token),
    });
    with_proof(rig, token, key.sign(&header, &claims))
}

/// A token with members laid over its header, signed by the agent itself.
fn forged(rig: &Rig, token: &str, over: Value) -> Vec<u8> {
    let part = token.split('.').next().unwrap();
    let header = Base64UrlUnpadded::decode_vec(part).unwrap();
    let mut header: Value = serde_json::from_slice(&header).unwrap();
    header
        .as_object_mut()
        .unwrap()
        .extend(over.as_object().unwrap().clone());
    with_token(rig, &rig.agent.key().sign(&header, &claims(token)))
}

/// Another last letter, which is another signature of the same length.
fn last_but_one_changed(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let at = bytes.len() - 10;
    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    String::from_utf8(bytes).unwrap()
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!(1), |inner, _| json!([inner]))
}

pub const ROWS: &[Row] = &[
    // Which headers there are, and in what form.
    row("nothing at all", MISSING, |rig, _| with(rig, &[])),
    row("a proof alone", MISSING, |rig, token| {
        with(rig, &[field("dpop", rig.proof("GET", REPORT, token))])
    }),
    row("a token alone", MALFORMED, |rig, token| {
        with(rig, &[authorization(token)])
    }),
    row(
        "as a bearer token, with a proof",
        MALFORMED,
        |rig, token| {
            let bearer = field("authorization", format!("Bearer {token}"));
            with(
                rig,
                &[bearer, field("dpop", rig.proof("GET", REPORT, token))],
            )
        },
    ),
    row("as a bearer token, without one", MALFORMED, |rig, token| {
        with(rig, &[field("authorization", format!("Bearer {token}"))])
    }),
    row("basic", MALFORMED, |rig, token| {
        let basic = field("authorization", "Basic dTpw");
        with(
            rig,
            &[basic, field("dpop", rig.proof("GET", REPORT, token))],
        )
    }),
    row("two proofs in two headers", MALFORMED, |rig, token| {
        let mut both = rig.credentials("GET", REPORT, token);
        both.push(field("DPoP", rig.proof("GET", REPORT, token)));
        with(rig, &both)
    }),
    row("one proof twice", MALFORMED, |rig, token| {
        let mut both = rig.credentials("GET", REPORT, token);
        both.push(both[1].clone());
        with(rig, &both)
    }),
    row(
        "two proofs in one header",
        (401, "proof_malformed", Counted),
        |rig, token| {
            let proof = rig.proof("GET", REPORT, token);
            with_proof(rig, token, format!("{proof}, {proof}"))
        },
    ),
    row("two tokens in two headers", MALFORMED, |rig, token| {
        let mut both = rig.credentials("GET", REPORT, token);
        both.push(authorization(token));
        with(rig, &both)
    }),
    row(
        "a bearer token beside the token",
        MALFORMED,
        |rig, token| {
            let mut both = rig.credentials("GET", REPORT, token);
            both.push(field("authorization", "Bearer abc"));
            with(rig, &both)
        },
    ),
    row("two tokens joined by a comma", MALFORMED, |rig, token| {
        let joined = field("authorization", format!("DPoP {token}, DPoP {token}"));
        with(
            rig,
            &[joined, field("dpop", rig.proof("GET", REPORT, token))],
        )
    }),
    row("two spaces", MALFORMED, |rig, token| {
        let spaced = field("authorization", format!("DPoP  {token}"));
        with(
            rig,
            &[spaced, field("dpop", rig.proof("GET", REPORT, token))],
        )
    }),
    row("a scheme alone", MALFORMED, |rig, token| {
        let bare = field("authorization", "DPoP");
        with(rig, &[bare, field("dpop", rig.proof("GET", REPORT, token))])
    }),
    row("a token that is not UTF-8", MALFORMED, |rig, token| {
        let mut value = format!("DPoP {token}").into_bytes();
        value.extend([0xff, 0xfe]);
        let bad = field("authorization", value);
        with(rig, &[bad, field("dpop", rig.proof("GET", REPORT, token))])
    }),
    row("a proof that is not UTF-8", MALFORMED, |rig, token| {
        let mut proof = rig.proof("GET", REPORT, token).into_bytes();
        proof.extend([0xc3, 0x28]);
        with_proof(rig, token, proof)
    }),
    row("an empty proof", MALFORMED, |rig, token| {
        with_proof(rig, token, "")
    }),
    // Elsewhere than in their headers.
    row("credentials in a cookie", MISSING, |rig, token| {
        let proof = rig.proof("GET", REPORT, token);
        with(
            rig,
            &[field(
                "cookie",
                format!("authorization=DPoP {token}; dpop={proof}"),
            )],
        )
    }),
    row("a token in the query", MISSING, |rig, token| {
        let proof = field("dpop", rig.proof("GET", REPORT, token));
        rig.request("GET", &format!("{REPORT}?access_token={token}"), &[proof])
    }),
    row("a token in a form", MISSING, |rig, token| {
        let body = format!("access_token={token}");
        let headers = [
            field("content-type", "application/x-www-form-urlencoded"),
            field("content-length", body.len().to_string()),
            field("dpop", rig.proof("POST", REPORT, token)),
        ];
        [rig.request("POST", REPORT, &headers), body.into_bytes()].concat()
    }),
    row("credentials in trailers", MISSING, |rig, token| {
        let proof = rig.proof("POST", REPORT, token);
        let headers = [
            field("transfer-encoding", "chunked"),
            field("te", "trailers"),
        ];
        let body = format!("1\r\nx\r\n0\r\nauthorization: DPoP {token}\r\ndpop: {proof}\r\n\r\n");
        [rig.request("POST", REPORT, &headers), body.into_bytes()].concat()
    }),
    row("a proof in a trailer", MALFORMED, |rig, token| {
        let proof = rig.proof("POST", REPORT, token);
        let headers = [authorization(token), field("transfer-encoding", "chunked")];
        let body = format!("1\r\nx\r\n0\r\ndpop: {proof}\r\n\r\n");
        [rig.request("POST", REPORT, &headers), body.into_bytes()].concat()
    }),
    row("a proxy's header instead", MISSING, |rig, token| {
        let proof = field("dpop", rig.proof("GET", REPORT, token));
        with(
            rig,
            &[field("proxy-authorization", format!("DPoP {token}")), proof],
        )
    }),
    // Sizes and depths.
    row("a token of 5 KiB", TOO_LARGE, |rig, token| {
        with_token(rig, &format!("{token}{}", "A".repeat(5 * 1024)))
    }),
    row("a proof of 5 KiB", TOO_LARGE, |rig, token| {
        claiming(rig, token, &json!({"pad": "x".repeat(4 * 1024)}))
    }),
    row(
        "a header block of 40 KiB",
        (431, "", ByEnvoy),
        |rig, token| {
            let mut all = rig.credentials("GET", REPORT, token);
            all.push(field("x-pad", "x".repeat(40 * 1024)));
            with(rig, &all)
        },
    ),
    row(
        "a header block of 300 KiB",
        (431, "", ByEnvoy),
        |rig, token| {
            let mut all = rig.credentials("GET", REPORT, token);
            all.push(field("x-pad", "x".repeat(300 * 1024)));
            with(rig, &all)
        },
    ),
    row("150 headers", (431, "", ByEnvoy), |rig, token| {
        let mut all = rig.credentials("GET", REPORT, token);
        all.extend((0..150).map(|at| field(&format!("x-h{at}"), "x")));
        with(rig, &all)
    }),
    row(
        "JSON 17 deep in a proof",
        (401, "proof_malformed", Counted),
        |rig, token| heading(rig, token, json!({"deep": nested(17)})),
    ),
    row(
        "JSON 400 deep in a proof",
        (401, "proof_malformed", Counted),
        |rig, token| claiming(rig, token, &json!({"deep": nested(400)})),
    ),
    row(
        "JSON 400 deep in a token",
        (401, "token_malformed", Counted),
        |rig, token| forged(rig, token, json!({"deep": nested(400)})),
    ),
    row(
        "100 claims in a proof",
        (401, "proof_malformed", Counted),
        |rig, token| {
            let many = (0..100).map(|at| (format!("c{at}"), json!(1)));
            claiming(rig, token, &Value::Object(many.collect()))
        },
    ),
    // The token.
    row(
        "a token that is none",
        (401, "token_malformed", Counted),
        |rig, _| with_token(rig, "abc"),
    ),
    row(
        "four parts",
        (401, "token_malformed", Counted),
        |rig, token| with_token(rig, &format!("{token}.x")),
    ),
    row(
        "a padded token",
        (401, "token_malformed", Counted),
        |rig, token| with_token(rig, &format!("{token}=")),
    ),
    row(
        "a proof as the token",
        (401, "token_malformed", Counted),
        |rig, token| with_token(rig, &rig.proof("GET", REPORT, token)),
    ),
    row(
        "no algorithm",
        (401, "token_algorithm", Counted),
        |rig, token| forged(rig, token, json!({"alg": "none"})),
    ),
    row(
        "a shared-key algorithm",
        (401, "token_algorithm", Counted),
        |rig, token| forged(rig, token, json!({"alg": "HS256"})),
    ),
    row(
        "a key that nobody knows",
        (401, "token_key_unknown", Counted),
        |rig, token| forged(rig, token, json!({"kid": "other"})),
    ),
    row(
        "the agent's own signature",
        (401, "token_signature", Counted),
        |rig, token| forged(rig, token, json!({})),
    ),
    row(
        "a changed signature",
        (401, "token_signature", Counted),
        |rig, token| with_token(rig, &last_but_one_changed(token)),
    ),
    // The proof.
    row(
        "a token as the proof",
        (401, "proof_malformed", Counted),
        |rig, token| with_proof(rig, token, token),
    ),
    row(
        "a proof of another type",
        (401, "proof_malformed", Counted),
        |rig, token| heading(rig, token, json!({"typ": "JWT"})),
    ),
    row(
        "a proof by no algorithm",
        (401, "proof_algorithm", Counted),
        |rig, token| heading(rig, token, json!({"alg": "none"})),
    ),
    row(
        "a proof without a key",
        (401, "proof_malformed", Counted),
        |rig, token| heading(rig, token, json!({"jwk": null})),
    ),
    row(
        "somebody else's key",
        (401, "proof_key_mismatch", Counted),
        |rig, token| {
            let thief = DpopKey::generate().unwrap();
            with_proof(
                rig,
                token,
                thief.proof("GET", &rig.agent.url(REPORT), Some(token)),
            )
        },
    ),
    row(
        "a proof for another method",
        (401, "proof_method", Counted),
        |rig, token| with_proof(rig, token, rig.proof("POST", REPORT, token)),
    ),
    row(
        "a proof for another path",
        (401, "proof_target", Counted),
        |rig, token| with_proof(rig, token, rig.proof("GET", NOTES, token)),
    ),
    row(
        "a proof for another host",
        (401, "proof_target", Counted),
        |rig, token| {
            claiming(
                rig,
                token,
                &json!({"htu": format!("http://other.example{REPORT}")}),
            )
        },
    ),
    row(
        "a proof for the other scheme",
        (401, "proof_target", Counted),
        |rig, token| {
            let url = rig.agent.url(REPORT).replace("http://", "https://");
            claiming(rig, token, &json!({ "htu": url }))
        },
    ),
    row(
        "an old proof",
        (401, "proof_time", Counted),
        |rig, token| claiming(rig, token, &json!({"iat": now_s() - 400})),
    ),
    row(
        "a proof from the future",
        (401, "proof_time", Counted),
        |rig, token| claiming(rig, token, &json!({"iat": now_s() + 400})),
    ),
    row(
        "a proof without ath",
        (401, "proof_token_hash", Counted),
        |rig, token| claiming(rig, token, &json!({"ath": null})),
    ),
    row(
        "a proof for another token",
        (401, "proof_token_hash", Counted),
        |rig, token| claiming(rig, token, &json!({"ath": token_digest("another")})),
    ),
    row(
        "a changed proof",
        (401, "proof_signature", Counted),
        |rig, token| {
            with_proof(
                rig,
                token,
                last_but_one_changed(&rig.proof("GET", REPORT, token)),
            )
        },
    ),
    // The action.
    row("another path", MISMATCH, |rig, token| {
        rig.signed("GET", NOTES, token)
    }),
    row("another method", MISMATCH, |rig, token| {
        rig.signed("PUT", REPORT, token)
    }),
    row("another query", MISMATCH, |rig, token| {
        rig.signed("GET", &format!("{REPORT}?all=1"), token)
    }),
    row("an empty query", MISMATCH, |rig, token| {
        rig.signed("GET", &format!("{REPORT}?"), token)
    }),
];
