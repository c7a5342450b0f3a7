//! Broker sessions, which stand in for evidence, and several capabilities at once.

use serde_json::{Value, json};
use wasm_test::client::{Answer, DpopKey};
use wasm_test::system::AGENT;

use crate::evidence::decoded;
use crate::grants::{CHILD, evidence, start, svid, token_of};
use crate::judging::{ACCESS, Attempt, Bench, JWT, issued, no, refused};

/// An attempt for a session.
pub fn for_session(bench: &Bench) -> Attempt {
    let mut attempt = bench.attempt();
    attempt.set("authorization_details", None);
    attempt.set("audience", bench.plane.issuer());
    attempt
}

/// An attempt with a session in place of evidence.
fn within(bench: &Bench, session: &str) -> Attempt {
    let mut attempt = bench.attempt();
    attempt.set("subject_token", session.to_owned());
    attempt.set("subject_token_type", ACCESS.to_owned());
    attempt
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_stands_in_for_evidence_under_its_key_and_grants_nothing() {
    let bench = start("").await;
    let body = issued("a session", &bench.send(for_session(&bench)).await);
    assert_eq!(body["token_type"], "DPoP");
    assert_eq!(body["issued_token_type"], ACCESS);
    assert!(body.get("authorization_details").is_none());
    let lives = body["expires_in"].as_u64().unwrap();
    assert!(
        (250..=300).contains(&lives),
        "no longer than the SVID: {lives}"
    );
    let session = token_of(&body);
    for _ in 0..3 {
        let body = issued("in it", &bench.send(within(&bench, &session)).await);
        let (_, claims) = decoded(&token_of(&body));
        assert_eq!((&claims["sub"], claims.get("act")), (&json!(AGENT), None));
    }
    // By it nothing that policy does not allow.
    let mut attempt = within(&bench, &session);
    let other = bench.details("/secret.txt").to_string();
    attempt.set("authorization_details", other);
    refused(
        "policy",
        &bench.send(attempt).await,
        no("access_denied", "policy_denied"),
    );

    // Another key's proof, another text, and what is no session.
    let mut stolen = within(&bench, &session);
    let thief = DpopKey::generate().unwrap();
    stolen.prove(thief.proof("POST", &bench.plane.token_endpoint(), None));
    refused(
        "stolen",
        &bench.send(stolen).await,
        evidence("proof_key_mismatch"),
    );
    for other in [
        "wrs_",
        &format!("wrs_{}", "A".repeat(43)),
        &format!("{session}A"),
    ] {
        refused(
            other,
            &bench.send(within(&bench, other)).await,
            evidence("token_unknown"),
        );
    }
    let mut with_actor = within(&bench, &session);
    with_actor.set("actor_token", svid(&bench, CHILD));
    with_actor.set("actor_token_type", JWT.to_owned());
    refused(
        "with an actor",
        &bench.send(with_actor).await,
        evidence("malformed_credentials"),
    );
    // What would be believed unseen beside it.
    let mut asserted = within(&bench, &session);
    let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
    asserted.set("client_assertion_type", kind.to_owned());
    asserted.set("client_assertion", "x.y.z".to_owned());
    refused(
        "with an assertion",
        &bench.send(asserted).await,
        evidence("malformed_credentials"),
    );
    let mut again = within(&bench, &session);
    again.set("authorization_details", None);
    again.set("audience", bench.plane.issuer());
    refused(
        "another by it",
        &bench.send(again).await,
        evidence("malformed_credentials"),
    );

    // It is of its epoch.
    let bench = Bench::over(bench.plane.restart().await);
    refused(
        "after a start",
        &bench.healed(within(&bench, &session)).await,
        evidence("token_unknown"),
    );
}

pub async fn batch(bench: &Bench, session: &str, elements: Value, key: &DpopKey) -> Answer {
    let url = format!("{}/api/v1/capabilities", bench.plane.issuer());
    let request = reqwest::Client::new()
        .post(&url)
        .header("authorization", format!("DPoP {session}"))
        .header("dpop", key.proof("POST", &url, Some(session)))
        .json(&json!({ "authorization_details": elements }));
    Answer::read(request.send().await.unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_a_token_for_each_action_by_one_proof() {
    let bench = start("").await;
    let session = token_of(&issued("a session", &bench.send(for_session(&bench)).await));
    let get = |path: &str| bench.details(path)[0].clone();
    let elements = json!([get("/files/a"), get("/secret"), get("/files/b"), { "type": "x" }]);
    let answer = batch(&bench, &session, elements, &bench.key).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let body = answer.json();
    let each = body["capabilities"].as_array().unwrap();
    assert_eq!(each.len(), 4);
    for (at, path) in [(0, "/files/a"), (2, "/files/b")] {
        let (_, claims) = decoded(each[at]["access_token"].as_str().unwrap());
        assert_eq!(claims["authorization_details"], json!([get(path)]));
        assert_eq!(each[at]["token_type"], "DPoP");
    }
    assert_eq!(each[1]["reason"], "policy_denied");
    assert_eq!(each[3]["error"], "invalid_authorization_details");

    // One proof, once; the key's, for this place, with the session's hash.
    let url = format!("{}/api/v1/capabilities", bench.plane.issuer());
    let post = async |session: Option<&str>, proof: Option<String>, body: String, kind: &str| {
        let mut request = reqwest::Client::new()
            .post(&url)
            .header("content-type", kind)
            .body(body);
        if let Some(session) = session {
            request = request.header("authorization", session);
        }
        if let Some(proof) = proof {
            request = request.header("dpop", proof);
        }
        Answer::read(request.send().await.unwrap()).await.unwrap()
    };
    let shown = format!("DPoP {session}");
    let good = || json!({ "authorization_details": [get("/files/a")] }).to_string();
    let proof = |over: &Value| Some(bench.key.proof_with("POST", &url, Some(&session), over));
    let none = json!({});
    let used = proof(&none);
    let first = post(Some(&shown), used.clone(), good(), "application/json").await;
    assert_eq!(first.status, 200);
    let json_type = "application/json";
    let thief = DpopKey::generate().unwrap();
    let many = json!({ "authorization_details": vec![get("/files/a"); 33] }).to_string();
    let table = [
        (
            "replayed",
            Some(&*shown),
            used,
            good(),
            json_type,
            no("invalid_dpop_proof", "proof_replayed"),
        ),
        (
            "no proof",
            Some(&*shown),
            None,
            good(),
            json_type,
            no("invalid_dpop_proof", "missing_credentials"),
        ),
        (
            "without its hash",
            Some(&*shown),
            proof(&json!({ "ath": null })),
            good(),
            json_type,
            no("invalid_dpop_proof", "proof_token_hash"),
        ),
        (
            "for the token endpoint",
            Some(&*shown),
            proof(&json!({ "htu": bench.plane.token_endpoint() })),
            good(),
            json_type,
            no("invalid_dpop_proof", "proof_target"),
        ),
        (
            "another key",
            Some(&*shown),
            Some(thief.proof("POST", &url, Some(&session))),
            good(),
            json_type,
            evidence("proof_key_mismatch"),
        ),
        (
            "nobody",
            None,
            proof(&none),
            good(),
            json_type,
            no("invalid_dpop_proof", "missing_credentials"),
        ),
        (
            "a bearer",
            Some("Bearer x"),
            proof(&none),
            good(),
            json_type,
            evidence("malformed_credentials"),
        ),
        (
            "an SVID",
            Some(&*format!("DPoP {}", bench.svid())),
            Some(bench.key.proof("POST", &url, Some(&bench.svid()))),
            good(),
            json_type,
            no("invalid_dpop_proof", "proof_token_hash"),
        ),
        (
            "a form",
            Some(&*shown),
            proof(&none),
            good(),
            "application/x-www-form-urlencoded",
            evidence("malformed_credentials"),
        ),
        (
            "no JSON",
            Some(&*shown),
            proof(&none),
            "{".to_owned(),
            json_type,
            evidence("malformed_credentials"),
        ),
        (
            "a member more",
            Some(&*shown),
            proof(&none),
            json!({ "authorization_details": [], "x": 1 }).to_string(),
            json_type,
            evidence("malformed_credentials"),
        ),
        (
            "none",
            Some(&*shown),
            proof(&none),
            json!({ "authorization_details": [] }).to_string(),
            json_type,
            no("invalid_authorization_details", "action_mismatch"),
        ),
        (
            "too many",
            Some(&*shown),
            proof(&none),
            many,
            json_type,
            no("invalid_authorization_details", "action_mismatch"),
        ),
    ];
    for (what, session, proof, body, kind, verdict) in table {
        refused(what, &post(session, proof, body, kind).await, verdict);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_one_commit() {
    let bench = start("").await;
    let session = token_of(&issued("a session", &bench.send(for_session(&bench)).await));
    let elements = vec![bench.details("/files/a")[0].clone(); 32];
    let answer = batch(&bench, &session, json!(elements), &bench.key).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut reader = audit::reader::Reader::new(&bench.plane.data().join("journal"));
    let mut issued = Vec::new();
    while let Some(group) = reader.next_group().unwrap() {
        issued.push(group.iter().filter(|it| it.line.kind == "issue").count());
    }
    issued.retain(|count| *count > 0);
    // The session, and then all of it.
    assert_eq!(issued, [1, 32]);
}
