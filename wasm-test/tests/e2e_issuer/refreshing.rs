//! Refresh tokens: each once, under one key, and reuse ends the family.

use serde_json::{Value, json};
use wasm_test::client::{Answer, DpopKey};
use wasm_test::system::AGENT;

use crate::evidence::{Authority, decoded};
use crate::grants::{start, token_of};
use crate::judging::{Attempt, Bench, issued, no, refused};

const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const CLIENT: &str = "billing";

/// A client with a key of its own, which may go on by refresh tokens.
async fn refreshing() -> (tempfile::TempDir, Authority, Bench) {
    let dir = tempfile::tempdir().unwrap();
    let key = Authority::fresh();
    let keys = dir.path().join("client.json");
    let set = json!({ "keys": [key.client_jwk()] });
    std::fs::write(&keys, set.to_string()).unwrap();
    let client = format!(
        "[[client]]\nclient_id = \"{CLIENT}\"\nagent = \"{AGENT}\"\nkeys = {keys:?}\nrefresh_s = 3600\n"
    );
    let bench = start(&client).await;
    (dir, key, bench)
}

fn authenticating(bench: &Bench, key: &Authority) -> Attempt {
    let us = bench.plane.issuer();
    let own = json!({ "iss": CLIENT, "sub": CLIENT, "aud": us });
    let mut attempt = bench.attempt();
    attempt.set("grant_type", "client_credentials".to_owned());
    attempt.set("subject_token", None);
    attempt.set("subject_token_type", None);
    attempt.set("client_assertion_type", ASSERTION.to_owned());
    attempt.set("client_assertion", key.svid_with("", &us, &own, &json!({})));
    attempt
}

fn with_refresh(bench: &Bench, refresh: &str) -> Attempt {
    let mut attempt = bench.attempt();
    attempt.set("grant_type", "refresh_token".to_owned());
    attempt.set("subject_token", None);
    attempt.set("subject_token_type", None);
    attempt.set("refresh_token", refresh.to_owned());
    attempt
}

fn refresh_of(body: &Value) -> String {
    body["refresh_token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_token_counts_once_and_its_reuse_ends_its_family() {
    let (_dir, key, bench) = refreshing().await;
    let grant = |reason| no("invalid_grant", reason);
    let body = issued("first", &bench.send(authenticating(&bench, &key)).await);
    let first = refresh_of(&body);
    let body = issued("second", &bench.send(with_refresh(&bench, &first)).await);
    let second = refresh_of(&body);
    assert!(body.get("issued_token_type").is_none());
    let (_, claims) = decoded(&token_of(&body));
    assert_eq!(claims["sub"], AGENT);

    // Stolen, it is of no use without the key, and unharmed by who tries.
    let mut stolen = with_refresh(&bench, &second);
    let thief = DpopKey::generate().unwrap();
    stolen.prove(thief.proof("POST", &bench.plane.token_endpoint(), None));
    refused(
        "stolen",
        &bench.send(stolen).await,
        grant("proof_key_mismatch"),
    );
    for other in ["x", "wrr_", &format!("wrr_{}", "A".repeat(43))] {
        refused(
            other,
            &bench.send(with_refresh(&bench, other)).await,
            grant("token_unknown"),
        );
    }
    let mut both = authenticating(&bench, &key);
    both.set("grant_type", "refresh_token".to_owned());
    both.set("refresh_token", second.clone());
    let request = no("invalid_request", "malformed_credentials");
    refused("with an assertion", &bench.send(both).await, request);
    let mut session = with_refresh(&bench, &second);
    session.set("authorization_details", None);
    session.set("audience", bench.plane.issuer());
    refused("for a session", &bench.send(session).await, request);
    // What policy refuses uses up nothing.
    let mut denied = with_refresh(&bench, &second);
    denied.set(
        "authorization_details",
        bench.details("/secret").to_string(),
    );
    refused(
        "policy",
        &bench.send(denied).await,
        no("access_denied", "policy_denied"),
    );
    let body = issued("third", &bench.send(with_refresh(&bench, &second)).await);
    let third = refresh_of(&body);

    refused(
        "reuse",
        &bench.send(with_refresh(&bench, &first)).await,
        grant("token_spent"),
    );
    refused(
        "its family",
        &bench.send(with_refresh(&bench, &third)).await,
        no("access_denied", "token_revoked"),
    );
    // Another family lives.
    let body = issued("anew", &bench.send(authenticating(&bench, &key)).await);
    let raced = refresh_of(&body);
    let all = (0..20).map(|_| bench.send(with_refresh(&bench, &raced)));
    let answers: Vec<Answer> = futures::future::join_all(all).await;
    assert_eq!(answers.iter().filter(|it| it.status == 200).count(), 1);
}
