//! What the gates refuse: each row with its status, its reason and its place in
//! the log, nothing at the upstream, and the same token still good afterwards,
//! since a gate spends nothing.

use std::collections::BTreeMap;

use base64ct::{Base64UrlUnpadded, Encoding as _};
use serde_json::{Value, json};
use wasm_test::client::{Answer, DpopKey, now_s, token_digest};
use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::raw::Http2;
use super::rig::{Field, Rig, authorization, claims, field, jti, message};

const NOTES: &str = "/files/notes.txt";

/// Where a refusal is to be found in the log.
#[derive(Clone, Copy, PartialEq)]
enum Logged {
    /// Counted by its reason: nobody was authenticated.
    Counted,
    /// An entry of its own: both signatures had verified.
    Entry,
    /// Envoy's own doing, before the filter is asked.
    ByEnvoy,
}
use Logged::{ByEnvoy, Counted, Entry};

/// One row: what is sent with a token for `GET REPORT`, and what comes of it.
struct Row {
    name: &'static str,
    bytes: fn(&Rig, &str) -> Vec<u8>,
    status: u16,
    reason: &'static str,
    logged: Logged,
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

const ROWS: &[Row] = &[
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_request_is_refused_and_spends_nothing() {
    let rig = Rig::start(Options::default()).await;
    let mut faults = Vec::new();
    let mut jtis = BTreeMap::new();
    for row in ROWS {
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        let before = rig.arrived();
        let answer = rig.exchange_raw(&(row.bytes)(&rig, &token)).await;
        if let Err(fault) = judge(row, &answer) {
            faults.push(format!("{}: {fault}: {}", row.name, answer.summary()));
        }
        if rig.arrived() != before {
            faults.push(format!("{}: it reached the upstream", row.name));
        }
        let after = rig.exchange_raw(&rig.signed("GET", REPORT, &token)).await;
        if after.status != 200 || rig.arrived() != before + 1 {
            faults.push(format!(
                "{}: its token, used rightly: {}",
                row.name,
                after.summary()
            ));
        }
        jtis.insert(jti(&token), row);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(rig.uses().values().max(), Some(&1));
    logged(&rig, &jtis).await;
    assert_eq!(
        rig.stat("wasm.envoy.wasm.runtime.v8.vm_reload_success")
            .await,
        0
    );
    rig.finish().await;
}

/// Status, reason, challenge and form of a refusal.
fn judge(row: &Row, answer: &Answer) -> Result<(), String> {
    if (answer.status, answer.reason().as_str()) != (row.status, row.reason) {
        return Err(format!("not {} {}", row.status, row.reason));
    }
    if row.logged == ByEnvoy {
        return Ok(());
    }
    let json = answer.json();
    let all = answer.headers.iter();
    let challenges: Vec<&String> = all
        .filter(|(name, _)| name == "www-authenticate")
        .map(|(_, value)| value)
        .collect();
    let wanted = usize::from(matches!(row.status, 401 | 403));
    if challenges.len() != wanted {
        return Err(format!("{} challenges", challenges.len()));
    }
    for challenge in challenges {
        let error = challenge.contains("error=");
        if !challenge.starts_with("DPoP ")
            || !challenge.contains(r#"algs="ES256 Ed25519""#)
            || error == (row.reason == "missing_credentials")
        {
            return Err(format!("the challenge {challenge}"));
        }
    }
    if answer.header("content-type") != Some("application/problem+json")
        || answer.header("cache-control") != Some("no-store")
        || json["status"] != row.status
        || json["request_id"].as_str() != answer.header("x-request-id")
    {
        return Err(format!("the form {:?} {json}", answer.headers));
    }
    Ok(())
}

/// Every authenticated refusal is an entry, and every other one is counted.
async fn logged(rig: &Rig, jtis: &BTreeMap<String, &Row>) {
    for (jti, row) in jtis.iter().filter(|(_, row)| row.logged == Entry) {
        let entry = rig
            .entry(row.name, |entry| {
                entry["kind"] == "edge_denial" && entry["body"]["jti"] == **jti
            })
            .await;
        assert_eq!(entry["body"]["reason"], row.reason, "{}", row.name);
        assert_eq!(entry["body"]["agent"], wasm_test::system::AGENT);
    }
    let mut wanted: BTreeMap<&str, u64> = BTreeMap::new();
    for row in ROWS.iter().filter(|row| row.logged == Counted) {
        *wanted.entry(row.reason).or_default() += 1;
    }
    super::rig::eventually("all counted", async || {
        let counted = counts(rig);
        wanted
            .iter()
            .all(|(reason, count)| counted.get(*reason).unwrap_or(&0) >= count)
    })
    .await;
    // What the start sent has no credentials; all else is exactly ours.
    let counted = counts(rig);
    for (reason, count) in wanted
        .iter()
        .filter(|(reason, _)| **reason != "missing_credentials")
    {
        assert_eq!(counted.get(*reason), Some(count), "{reason}");
    }
    let mut entries = rig.entries_of("edge_denial");
    // Before a worker had its stream.
    entries.retain(|entry| entry["body"]["reason"] != "control_plane_unavailable");
    let authenticated = ROWS.iter().filter(|row| row.logged == Entry).count();
    assert_eq!(entries.len(), authenticated, "{entries:?}");
}

/// Refusals counted in the log, by reason.
fn counts(rig: &Rig) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for entry in rig.entries_of("edge_counts") {
        for (reason, count) in entry["body"]["counts"].as_object().unwrap() {
            *counts.entry(reason.clone()).or_default() += count.as_u64().unwrap();
        }
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_well_formed_in_another_way_passes() {
    let rig = Rig::start(Options::default()).await;
    let port = rig.authority();
    let forms: [fn(&Rig, &str) -> Vec<Field>; 4] = [
        |rig, token| {
            vec![
                field("AUTHORIZATION", format!("dpop {token}")),
                field("DPoP", rig.proof("GET", REPORT, token)),
            ]
        },
        |rig, token| {
            // Scheme and host of htu in another case (RFC 3986, section 6.2.2.1).
            let url = rig.agent.url(REPORT).replace("http://", "HTTP://");
            let proof = rig.agent.key().proof("GET", &url, Some(token));
            vec![authorization(token), field("dpop", proof)]
        },
        |rig, token| {
            let past = json!({"iat": now_s() - 200});
            let url = rig.agent.url(REPORT);
            let proof = rig.agent.key().proof_with("GET", &url, Some(token), &past);
            vec![authorization(token), field("dpop", proof)]
        },
        |rig, token| {
            // A header block of 24 KiB, with bytes that are no UTF-8 in it.
            let mut all = rig.credentials("GET", REPORT, token);
            all.push(field("x-pad", "x".repeat(24 * 1024)));
            all.push(field("x-bytes", vec![b'a', 0xff, 0xfe]));
            all
        },
    ];
    for (at, form) in forms.iter().enumerate() {
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        let answer = rig
            .exchange_raw(&rig.request("GET", REPORT, &form(&rig, &token)))
            .await;
        assert_eq!(answer.status, 200, "form {at}: {}", answer.text());
    }
    // The same over HTTP/2, where the authority is a pseudo header.
    let token = rig.agent.token("GET", REPORT).await.unwrap();
    let proof = rig.proof("GET", REPORT, &token);
    let mut h2 = Http2::connect(&port).await;
    let dpop = format!("DPoP {token}");
    let (id, bytes) = h2.request(&[
        (":method", b"GET"),
        (":scheme", b"http"),
        (":authority", port.as_bytes()),
        (":path", REPORT.as_bytes()),
        ("authorization", dpop.as_bytes()),
        ("dpop", proof.as_bytes()),
    ]);
    h2.send(&bytes).await;
    let answer = &h2.answers(&[id]).await[&id];
    assert_eq!(answer.status, 200, "{}", answer.reason());
    assert_eq!(rig.uses().values().max(), Some(&1));
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spent_token_says_what_became_of_its_first_use() {
    let rig = Rig::start(Options::default()).await;
    let path = "/echo/teapot?status=418";
    let token = rig.agent.token("GET", path).await.unwrap();
    let bytes = rig.signed("GET", path, &token);
    let first = rig.exchange_raw(&bytes).await;
    assert_eq!(first.status, 418);
    let before = rig.arrived();
    rig.entry("the outcome", |entry| {
        entry["kind"] == "outcome" && entry["body"]["status"] == 418
    })
    .await;
    let fresh = rig.signed("GET", path, &token);
    for (what, again) in [("byte for byte", &bytes), ("with a fresh proof", &fresh)] {
        let answer = rig.exchange_raw(again).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (401, "token_spent"),
            "{what}"
        );
        let first_use = &answer.json()["first_use"];
        assert_eq!(first_use["result"], "forwarded", "{what}");
        assert_eq!(first_use["upstream_status"], 418, "{what}");
        assert_eq!(
            first_use["request_id"].as_str(),
            first.header("x-request-id"),
            "{what}"
        );
    }
    assert_eq!(rig.arrived(), before, "a replay reached the upstream");
    let hash = super::rig::sha256(token.as_bytes());
    let replays = rig.entries_of("question_refused");
    let ours = replays.iter().filter(|entry| {
        entry["body"]["token"] == hash.as_str() && entry["body"]["reason"] == "token_spent"
    });
    assert_eq!(ours.count(), 2, "{replays:?}");

    // The proof of a spent token fits no other token.
    let other = rig.agent.token("GET", path).await.unwrap();
    let old = rig.proof("GET", path, &token);
    let reused = rig.request("GET", path, &[authorization(&other), field("dpop", old)]);
    let answer = rig.exchange_raw(&reused).await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (401, "proof_token_hash")
    );
    assert_eq!(rig.arrived(), before);
    let bare = message("GET", path, &[field("host", rig.authority())]);
    assert_eq!(
        rig.exchange_raw(&bare).await.reason(),
        "missing_credentials"
    );
    rig.finish().await;
}
