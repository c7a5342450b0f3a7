//! `edge.token_check = "record"`: the filter leaves a token's signature to the control
//! plane, which matches the exact bytes with what it issued. Whoever has no token gets as
//! far as a question with one of his own making, and no further: nothing is spent, and
//! nothing that he wrote into it is believed, not even by the log.

use base64ct::{Base64UrlUnpadded, Encoding as _};
use serde_json::{Value, json};
use wasm_test::client::{DpopKey, now_s};
use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::rig::{Rig, authorization, claims, field, sha256};

const VICTIM: &str = "spiffe://writ.example/agent/victim";
const NOTE: &str = "/echo/notes/a";
const OPEN: &str = "/echo/open/form";

const CONFIG: &str = r#"
[edge]
token_check = "record"
route = [
  { name = "files", path_prefix = "/", upstream = "{upstream}" },
  { name = "open", path_prefix = "/echo/open", upstream = "{upstream}", mode = "observe", shares_upstream_with = ["files"] },
]
"#;

/// A forgery: its name, the reason, and the token that it makes of a good one.
type Row = (&'static str, &'static str, fn(&str) -> String);

/// The reason is the record's wherever the form is right.
const ROWS: &[Row] = &[
    ("another signature", "token_unknown", |token| {
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let mut bytes = decode(signature);
        bytes[40] ^= 1;
        format!("{signed}.{}", encode(&bytes))
    }),
    ("the signature's twin", "token_unknown", |token| {
        let (signed, signature) = token.rsplit_once('.').unwrap();
        format!("{signed}.{}", encode(&twin(&decode(signature))))
    }),
    ("zeros for a signature", "token_unknown", |token| {
        let (signed, _) = token.rsplit_once('.').unwrap();
        format!("{signed}.{}", encode(&[0; 64]))
    }),
    ("another agent's name", "token_unknown", |token| {
        changed(token, &json!({"client_id": VICTIM, "sub": VICTIM}))
    }),
    ("a longer life", "token_unknown", |token| {
        let later = claims(token)["iat"].as_u64().unwrap() + 299;
        changed(token, &json!({"exp": later}))
    }),
    ("another jti", "token_unknown", |token| {
        changed(token, &json!({"jti": "forged"}))
    }),
    // An old `iat` must not make it one "from before the start", whose outcome is unknown.
    ("issued before the start", "token_unknown", |token| {
        let early = now_s() - 200;
        changed(token, &json!({"iat": early, "exp": early + 290}))
    }),
    ("signed by another key", "token_unknown", |token| {
        let key = DpopKey::generate().unwrap();
        key.sign(&header(token), &claims(token))
    }),
    (
        "signed by another key for another agent",
        "token_unknown",
        |token| {
            let key = DpopKey::generate().unwrap();
            key.sign(
                &header(token),
                &with(claims(token), &json!({"client_id": VICTIM, "sub": VICTIM})),
            )
        },
    ),
    ("a kid that nobody knows", "token_unknown", |token| {
        let key = DpopKey::generate().unwrap();
        key.sign(
            &with(header(token), &json!({"kid": "nobody"})),
            &claims(token),
        )
    }),
    ("alg none", "token_algorithm", |token| {
        unsigned(token, &json!({"alg": "none"}), "")
    }),
    ("alg HS256", "token_algorithm", |token| {
        unsigned(token, &json!({"alg": "HS256"}), &encode(&[7; 32]))
    }),
    (
        "alg EdDSA, and nobody looks at it",
        "token_unknown",
        |token| unsigned(token, &json!({"alg": "EdDSA"}), &encode(&[7; 64])),
    ),
    ("no signature", "token_unknown", |token| {
        let (signed, _) = token.rsplit_once('.').unwrap();
        format!("{signed}.")
    }),
    (
        "a key of its own in the header",
        "token_malformed",
        |token| {
            let key = DpopKey::generate().unwrap();
            key.sign(
                &with(header(token), &json!({"jwk": key.jwk()})),
                &claims(token),
            )
        },
    ),
    ("another issuer", "token_issuer", |token| {
        changed(token, &json!({"iss": "https://other.example"}))
    }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_was_not_issued_is_refused_by_the_record_and_spends_nothing() {
    let rig = Rig::start(Options {
        token_lifetime_s: 120,
        extra_config: CONFIG.to_owned(),
        ..Options::default()
    })
    .await;
    let mut faults = Vec::new();
    let mut forgeries = Vec::new();
    for (name, reason, forge) in ROWS {
        let good = rig.agent.token("GET", REPORT).await.unwrap();
        let forged = forge(&good);
        let before = rig.arrived();
        let answer = rig.exchange_raw(&rig.signed("GET", REPORT, &forged)).await;
        if (answer.status, answer.reason().as_str()) != (401, *reason) {
            faults.push(format!("{name}: not 401 {reason}: {}", answer.summary()));
        }
        if rig.arrived() != before {
            faults.push(format!("{name}: it reached the upstream"));
        }
        // The one that it was made of is as good as ever, and good once.
        let after = rig.exchange_raw(&rig.signed("GET", REPORT, &good)).await;
        let again = rig.exchange_raw(&rig.signed("GET", REPORT, &good)).await;
        if after.status != 200 || again.reason() != "token_spent" || rig.arrived() != before + 1 {
            let (after, again) = (after.summary(), again.summary());
            faults.push(format!("{name}: the good token: {after}, then {again}"));
        }
        forgeries.push((name, forged));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(rig.uses().values().max(), Some(&1));

    // Where the route observes they go on, with nothing verified.
    let good = rig.agent.token("GET", OPEN).await.unwrap();
    let forged = changed(&good, &json!({"client_id": VICTIM, "sub": VICTIM}));
    let answer = rig.exchange_raw(&rig.signed("GET", OPEN, &forged)).await;
    assert_eq!(answer.status, 200);
    let seen = rig.records().pop().unwrap();
    assert!(seen.path.starts_with(OPEN), "{}", seen.path);
    assert_eq!(seen.header("x-writ-agent"), None);
    assert_eq!(seen.header("authorization"), None);

    // A spent token's second use is an entry in its agent's name; of what nobody
    // signed there is none, and the agent whom it names is nowhere.
    let spent = |entry: &Value| entry["body"]["reason"] == "token_spent";
    rig.entry("a spent token", spent).await;
    let entries = rig.entries_of("question_refused");
    for entry in &entries {
        assert_eq!(entry["body"]["agent"], wasm_test::system::AGENT, "{entry}");
    }
    assert!(!json!(rig.entries()).to_string().contains(VICTIM));
    for (name, forged) in &forgeries {
        let of_it = |entry: &&Value| entry["body"]["token"] == sha256(forged.as_bytes());
        let found = entries.iter().find(of_it);
        // The twin is a good signature in other bytes: it may be in its agent's name.
        assert!(
            found.is_none() || **name == "the signature's twin",
            "{name}: {found:?}"
        );
    }
    rig.finish().await;
}

/// Few bodies may wait at a time: that takes a signature, which the instance that
/// reads them checks whatever the setting is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_body_is_read_for_a_token_that_nobody_signed() {
    let rig = Rig::start(Options {
        token_lifetime_s: 120,
        routes: format!(
            r#"
[[edge.route]]
name = "notes"
path_prefix = "{NOTE}"
upstream = "{{upstream}}"
body = "read"
"#
        ),
        extra_config: "[edge]\ntoken_check = \"record\"\nbody_deadline_ms = 60000\n".to_owned(),
        ..Options::default()
    })
    .await;
    let good = rig.agent.token("POST", NOTE).await.unwrap();
    let forged = changed(&good, &json!({"jti": "forged"}));
    let before = rig.arrived();
    let mut headers = rig.credentials("POST", NOTE, &forged);
    headers.push(field("content-length", "10"));
    // Ten bytes are announced and none comes: a filter that waited would not answer.
    let answer = rig.exchange_raw(&rig.request("POST", NOTE, &headers)).await;
    let refused = (answer.status, answer.reason());
    assert_eq!(refused, (401, "token_signature".to_owned()));
    // Beside it the record decides, behind the reading instance or not.
    let report = rig.agent.token("GET", REPORT).await.unwrap();
    let forged = changed(&report, &json!({"jti": "forged"}));
    let answer = rig.exchange_raw(&rig.signed("GET", REPORT, &forged)).await;
    assert_eq!(answer.reason(), "token_unknown");
    assert_eq!(rig.arrived(), before);
    let mut headers = rig.credentials("POST", NOTE, &good);
    headers.push(field("content-length", "2"));
    let mut bytes = rig.request("POST", NOTE, &headers);
    bytes.extend_from_slice(b"{}");
    assert_eq!(rig.exchange_raw(&bytes).await.status, 200);
    assert_eq!(rig.arrived(), before + 1);
    rig.finish().await;
}

/// The record is of tokens alone: what the filter checks of the proof it checks as ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_the_record_still_needs_its_key() {
    let rig = Rig::start(Options {
        extra_config: CONFIG.to_owned(),
        ..Options::default()
    })
    .await;
    let token = rig.agent.token("GET", REPORT).await.unwrap();
    let thief = DpopKey::generate().unwrap();
    let proof = thief.proof("GET", &rig.agent.url(REPORT), Some(&token));
    let before = rig.arrived();
    let stolen = [authorization(&token), field("dpop", proof)];
    let answer = rig.exchange_raw(&rig.request("GET", REPORT, &stolen)).await;
    assert_eq!(answer.reason(), "proof_key_mismatch");
    // The thief's key put into the claims: the proof is right, the bytes are not ours.
    let own = changed(&token, &json!({"cnf": {"jkt": thief.thumbprint()}}));
    let proof = thief.proof("GET", &rig.agent.url(REPORT), Some(&own));
    let stolen = [authorization(&own), field("dpop", proof)];
    let answer = rig.exchange_raw(&rig.request("GET", REPORT, &stolen)).await;
    assert_eq!(answer.reason(), "token_unknown");
    assert_eq!(rig.arrived(), before);
    assert_eq!(rig.present(REPORT, &token).await.status, 200);
    assert_eq!(rig.arrived(), before + 1);
    rig.finish().await;
}

fn encode(bytes: &[u8]) -> String {
    Base64UrlUnpadded::encode_string(bytes)
}

fn decode(text: &str) -> Vec<u8> {
    Base64UrlUnpadded::decode_vec(text).unwrap()
}

fn header(token: &str) -> Value {
    serde_json::from_slice(&decode(token.split('.').next().unwrap())).unwrap()
}

fn with(mut object: Value, over: &Value) -> Value {
    for (name, value) in over.as_object().unwrap() {
        object[name] = value.clone();
    }
    object
}

/// Other claims under the signature that was there.
fn changed(token: &str, over: &Value) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    let claims = with(claims(token), over).to_string();
    format!("{}.{}.{}", parts[0], encode(claims.as_bytes()), parts[2])
}

/// Another header, and whatever for a signature.
fn unsigned(token: &str, over: &Value, signature: &str) -> String {
    let header = with(header(token), over).to_string();
    let payload = token.split('.').nth(1).unwrap();
    format!("{}.{payload}.{signature}", encode(header.as_bytes()))
}

/// r ‖ n - s, as good as r ‖ s.
fn twin(signature: &[u8]) -> Vec<u8> {
    let signature = p256::ecdsa::Signature::from_slice(signature).unwrap();
    let (r, s) = signature.split_scalars();
    let twin = p256::ecdsa::Signature::from_scalars(*r, -*s).unwrap();
    twin.to_bytes().to_vec()
}
