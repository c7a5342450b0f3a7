//! The gates, row by row: each row changes one thing of a good request and
//! names the reason that has to come out. The rows are in data/gates.json; ids
//! in their names are those of the list of attacks.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail loudly"
)]

mod common;

use capability::decide::{Echo, Pending, Verdict};
use capability::gates::{
    self, Checked, EdgeConfig, PeerCertificate, Refusal, RequestView, TokenCheck,
};
use capability::token::UnverifiedToken;
use capability::url::Origin;
use capability::{Limits, Portable, Reason, b64, proof, sha256, token};
use common::{AGENT, ISSUER, NOW_S, ORIGIN, PATH, Signing, claims, proof_claims};
use serde_json::{Map, Value};

fn rows() -> Vec<Value> {
    serde_json::from_str(include_str!("data/gates.json")).unwrap()
}

fn config() -> EdgeConfig {
    EdgeConfig {
        keys: vec![
            ("issuer-1".to_owned(), Signing::p256("issuer").public()),
            ("issuer-2".to_owned(), Signing::ed25519("issuer").public()),
        ],
        ..EdgeConfig::new(ISSUER, ORIGIN, Origin::parse(ORIGIN).unwrap())
    }
}

/// JSON Merge Patch, but `"$null"` sets a null, and `"$deep:N"` and `"$long:N"`
/// stand for N nested arrays and N letters.
fn patch(target: &mut Map<String, Value>, changes: &Value) {
    for (name, change) in changes.as_object().into_iter().flatten() {
        match (change, target.get_mut(name)) {
            (Value::Null, _) => {
                target.remove(name);
            }
            (Value::Object(_), Some(Value::Object(inner))) => patch(inner, change),
            _ => {
                target.insert(name.clone(), special(change));
            }
        }
    }
}

fn special(change: &Value) -> Value {
    match change.as_str().unwrap_or_default().split_once(':') {
        Some(("$deep", n)) => {
            (0..n.parse::<usize>().unwrap()).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
        }
        Some(("$long", n)) => Value::String("a".repeat(n.parse().unwrap())),
        _ if change == "$null" => Value::Null,
        _ => change.clone(),
    }
}

/// Applies a row's changes to a signing input, and signs it.
fn forge(input: &str, changes: &Value, signer: &Signing) -> String {
    let segments: Vec<Vec<u8>> = input.split('.').map(|s| b64::decode(s).unwrap()).collect();
    let segment = |i: usize, part: &str| {
        let mut object: Map<String, Value> = serde_json::from_slice(&segments[i]).unwrap();
        patch(&mut object, &changes[part]);
        for n in 0..changes[format!("{part}_fill")].as_u64().unwrap_or(0) {
            object.insert(format!("x{n}"), Value::Null);
        }
        let mut text = Value::Object(object).to_string();
        // Raw text right after the opening brace: duplicates, escapes, numbers
        // that no Value holds.
        if let Some(splice) = changes[format!("{part}_splice")].as_str() {
            text.insert_str(1, splice);
        }
        if let Some(tail) = changes[format!("{part}_tail")].as_str() {
            text.push_str(tail);
        }
        if let Some(raw) = changes[format!("{part}_raw")].as_str() {
            raw.clone_into(&mut text);
        }
        let mut bytes = text.into_bytes();
        if let Some(hex) = changes[format!("{part}_hex")].as_str() {
            bytes = hex::decode(hex).unwrap();
        }
        b64::encode(&bytes)
    };
    let input = format!("{}.{}", segment(0, "header"), segment(1, "claims"));
    let mut sealed = match changes["signature"].as_str() {
        None => signer.seal(&input),
        Some("flipped") => {
            let mut signature = signer.signature(input.as_bytes());
            signature[40] ^= 1;
            format!("{input}.{}", b64::encode(&signature))
        }
        Some("der") => {
            let der = capability::key::ecdsa_der(&signer.signature(input.as_bytes())).unwrap();
            format!("{input}.{}", b64::encode(&der))
        }
        Some(hex) => format!("{input}.{}", b64::encode(&hex::decode(hex).unwrap())),
    };
    sealed.push_str(changes["append"].as_str().unwrap_or_default());
    sealed
}

fn run(row: &Value) -> Result<Checked, Refusal> {
    let key = match row["proof"]["key"].as_str() {
        Some("ed25519") => Signing::ed25519("agent"),
        Some(other) => Signing::p256(other),
        None => Signing::p256("agent"),
    };
    let bound_to = match row["proof"]["key"].as_str() {
        Some("ed25519") => key.public(),
        _ => Signing::p256("agent").public(),
    };
    let token_claims = claims(&bound_to.thumbprint());
    let (kid, issuer) = match row["token"]["key"].as_str() {
        Some("ed25519") => ("issuer-2", Signing::ed25519("issuer")),
        Some(other) => ("issuer-1", Signing::p256(other)),
        None => ("issuer-1", Signing::p256("issuer")),
    };
    let input = token::signing_input(kid, issuer.algorithm(), &token_claims);
    let token = forge(&input, &row["token"], &issuer);
    let input = proof::signing_input(
        &key.public().to_jwk(),
        key.algorithm(),
        &proof_claims(&token),
    );
    let proof = forge(&input, &row["proof"], &key);

    let request = &row["request"];
    let text = |name: &str, otherwise: &str| {
        let given = request[name].as_str().unwrap_or(otherwise);
        given.replace("{token}", &token).replace("{proof}", &proof)
    };
    let mut headers = vec![
        (":method".to_owned(), text("method", "GET")),
        (":authority".to_owned(), text("authority", "tools.example")),
        (":path".to_owned(), text("path", PATH)),
        (
            "authorization".to_owned(),
            text("authorization", "DPoP {token}"),
        ),
        ("dpop".to_owned(), text("dpop", "{proof}")),
    ];
    for gone in request["without"].as_array().into_iter().flatten() {
        headers.retain(|(name, _)| name != gone.as_str().unwrap());
    }
    for more in request["more"].as_array().into_iter().flatten() {
        let value = more[1].as_str().unwrap();
        let value = value.replace("{token}", &token).replace("{proof}", &proof);
        let value = special(&Value::String(value)).as_str().unwrap().to_owned();
        headers.push((more[0].as_str().unwrap().to_owned(), value));
    }
    let mut headers: Vec<(Vec<u8>, Vec<u8>)> = headers
        .into_iter()
        .map(|(name, value)| (name.into_bytes(), value.into_bytes()))
        .collect();
    if let Some(hex) = request["path_hex"].as_str() {
        headers[2].1 = hex::decode(hex).unwrap();
    }

    let sans: Vec<String> = serde_json::from_value(row["peer"].clone()).unwrap_or_default();
    let peer = row["peer"].is_array().then(|| PeerCertificate {
        sha256: sha256(b"certificate"),
        uri_sans: &sans,
    });
    let mut config = config();
    config.require_peer = row["require_peer"] == true;
    if row["token_check"] == "record" {
        config.token_check = TokenCheck::Record;
    }
    let now_ms = NOW_S * 1000;
    let now_ms = now_ms
        .checked_add_signed(row["now_ms"].as_i64().unwrap_or(0))
        .unwrap();
    let request = RequestView {
        headers: &headers,
        peer,
    };
    gates::check(&request, &config, now_ms, &Portable)
}

#[test]
fn every_row_gives_its_reason() {
    let mut wrong = Vec::new();
    for row in rows() {
        let (name, expected) = (&row["name"], row["expect"].as_str().unwrap());
        assert!(
            expected == "ok" || Reason::parse(expected).is_some(),
            "{name}: unknown reason"
        );
        let outcome = run(&row);
        let got = match &outcome {
            Ok(_) => "ok",
            Err(refusal) => refusal.reason.as_str(),
        };
        if got != expected {
            wrong.push(format!("{name}: {got}, and not {expected}"));
        }
        // Only what both signatures vouch for may become an entry.
        let known = outcome.is_err_and(|refusal| refusal.authenticated.is_some());
        if known != (row["authenticated"] == true) {
            wrong.push(format!("{name}: authenticated is {known}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_gate_that_this_crate_runs_has_a_row() {
    let rows = rows();
    let at_the_control_plane = [
        "token_unknown",
        "token_spent",
        "outcome_unknown",
        "token_revoked",
        "proof_nonce",
        "proof_replayed",
        "body_mismatch",
        "policy_denied",
        "policy_error",
        "approval_pending",
        "approval_denied",
        "approval_expired",
        "agent_inactive",
        "limit_exceeded",
        "control_plane_unavailable",
        "internal_error",
    ];
    for reason in Reason::ALL {
        let here = rows.iter().any(|row| row["expect"] == reason.as_str());
        let there = at_the_control_plane.contains(&reason.as_str());
        assert_ne!(here, there, "{reason}");
    }
}

#[test]
fn a_checked_request_says_who_and_what() {
    let checked = run(&Value::Null).unwrap();
    assert_eq!(checked.agent(), AGENT);
    assert_eq!(checked.user(), None);
    assert_eq!((checked.jti(), checked.proof_jti()), ("token-1", "proof-1"));
    assert_eq!(
        (checked.method(), checked.authority(), checked.path()),
        ("GET", "tools.example", PATH)
    );
    assert_eq!(checked.token_hash(), sha256(checked.token().as_bytes()));
    assert!(UnverifiedToken::parse(checked.token().as_bytes(), &Limits::default()).is_ok());
}

#[test]
fn only_a_fitting_answer_makes_a_permit() {
    let checked = run(&Value::Null).unwrap();
    let (hash, digest) = (checked.token_hash(), sha256(b"question"));
    let settle = |token_hash: &[u8], question_digest: &[u8], verdict| {
        Pending::new(checked.clone(), b"question")
            .settle(Echo {
                token_hash,
                question_digest,
                verdict,
            })
            .map(|permit| permit.checked().jti().to_owned())
            .map_err(|refused| refused.reason)
    };
    assert_eq!(
        settle(&hash, &digest, Verdict::Allow),
        Ok("token-1".to_owned())
    );
    let denied = Verdict::Deny(Reason::TokenSpent);
    assert_eq!(settle(&hash, &digest, denied), Err(Reason::TokenSpent));
    let other = sha256(b"another");
    for (token_hash, question_digest) in [
        (&other[..], &digest[..]),
        (&hash[..], &other[..]),
        (&digest[..], &hash[..]),
        (&hash[..31], &digest[..]),
        (&hash[..], &[]),
        (&[], &[]),
    ] {
        assert_eq!(
            settle(token_hash, question_digest, Verdict::Allow),
            Err(Reason::InternalError)
        );
    }
}
