//! Refresh tokens: each once, under one key, and reuse ends the family.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wasm_test::client::{Answer, DpopKey, Operator};
use wasm_test::system::AGENT;

use crate::evidence::{Authority, decoded};
use crate::grants::{CHILD, start, token_of};
use crate::judging::{Attempt, Bench, issued, no, refused};

const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const CLIENT: &str = "billing";

/// A client with a key of its own, which may go on by refresh tokens.
pub async fn refreshing() -> (tempfile::TempDir, Authority, Bench) {
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

fn assertion(bench: &Bench, key: &Authority, more: &Value) -> String {
    let us = bench.plane.issuer();
    let mut own = json!({ "iss": CLIENT, "sub": CLIENT, "aud": us });
    let members = own.as_object_mut().unwrap();
    members.extend(more.as_object().unwrap().clone());
    key.svid_with("", &us, &own, &json!({}))
}

pub fn authenticating(bench: &Bench, key: &Authority) -> Attempt {
    let mut attempt = bench.attempt();
    attempt.set("grant_type", "client_credentials".to_owned());
    attempt.set("subject_token", None);
    attempt.set("subject_token_type", None);
    attempt.set("client_assertion_type", ASSERTION.to_owned());
    attempt.set("client_assertion", assertion(bench, key, &json!({})));
    attempt
}

pub fn with_refresh(bench: &Bench, key: &Authority, refresh: &str) -> Attempt {
    let mut attempt = authenticating(bench, key);
    attempt.set("grant_type", "refresh_token".to_owned());
    attempt.set("refresh_token", refresh.to_owned());
    attempt
}

pub fn refresh_of(body: &Value) -> String {
    body["refresh_token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_token_counts_once_and_its_reuse_ends_its_family() {
    let (_dir, key, bench) = refreshing().await;
    let grant = |reason| no("invalid_grant", reason);
    let body = issued("first", &bench.send(authenticating(&bench, &key)).await);
    let first = refresh_of(&body);
    let body = issued(
        "second",
        &bench.send(with_refresh(&bench, &key, &first)).await,
    );
    let second = refresh_of(&body);
    assert!(body.get("issued_token_type").is_none());
    let (_, claims) = decoded(&token_of(&body));
    assert_eq!(claims["sub"], AGENT);

    // Stolen, it is of no use without the key, and unharmed by who tries.
    let mut stolen = with_refresh(&bench, &key, &second);
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
            &bench.send(with_refresh(&bench, &key, other)).await,
            grant("token_unknown"),
        );
    }
    // Who a client is it shows here as it does without: by what is its own alone.
    for (what, claim, reason) in [
        (
            "by another",
            json!({ "act": { "sub": CHILD } }),
            "agent_inactive",
        ),
        (
            "for another",
            json!({ "may_act": { "sub": CHILD } }),
            "agent_inactive",
        ),
        (
            "another key's",
            json!({ "cnf": { "jkt": thief.thumbprint() } }),
            "proof_key_mismatch",
        ),
    ] {
        for mut attempt in [
            with_refresh(&bench, &key, &second),
            authenticating(&bench, &key),
        ] {
            attempt.set("client_assertion", assertion(&bench, &key, &claim));
            refused(
                what,
                &bench.send(attempt).await,
                no("invalid_client", reason),
            );
        }
    }
    let request = no("invalid_request", "malformed_credentials");
    let mut session = with_refresh(&bench, &key, &second);
    session.set("authorization_details", None);
    session.set("audience", bench.plane.issuer());
    refused("for a session", &bench.send(session).await, request);
    // What policy refuses uses up nothing.
    let mut denied = with_refresh(&bench, &key, &second);
    denied.set(
        "authorization_details",
        bench.details("/secret").to_string(),
    );
    refused(
        "policy",
        &bench.send(denied).await,
        no("access_denied", "policy_denied"),
    );
    let body = issued(
        "third",
        &bench.send(with_refresh(&bench, &key, &second)).await,
    );
    let third = refresh_of(&body);

    refused(
        "reuse",
        &bench.send(with_refresh(&bench, &key, &first)).await,
        grant("token_spent"),
    );
    refused(
        "its family",
        &bench.send(with_refresh(&bench, &key, &third)).await,
        no("access_denied", "token_revoked"),
    );
    // Its stop is kept for as long as it, and what it brought last, might be used; not more.
    let stops = bench.plane.entries();
    let stop = stops.iter().rfind(|it| it["kind"] == "stop").unwrap();
    let ms = |name: &str| stop["body"][name].as_u64().unwrap();
    let kept = ms("until_ms") - ms("at_ms");
    assert!((3_600_000..=4_000_000).contains(&kept), "{stop}");
    // Another family lives.
    let body = issued("anew", &bench.send(authenticating(&bench, &key)).await);
    let raced = refresh_of(&body);
    let all = (0..20).map(|_| bench.send(with_refresh(&bench, &key, &raced)));
    let answers: Vec<Answer> = futures::future::join_all(all).await;
    assert_eq!(answers.iter().filter(|it| it.status == 200).count(), 1);
}

/// RFC 7009, section 2.1: with a refresh token goes what it brought.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_refresh_token_takes_its_family_with_it() {
    let (_dir, key, bench) = refreshing().await;
    let body = issued("first", &bench.send(authenticating(&bench, &key)).await);
    let began = token_of(&body);
    let body = issued(
        "second",
        &bench
            .send(with_refresh(&bench, &key, &refresh_of(&body)))
            .await,
    );
    let (refresh, brought) = (refresh_of(&body), token_of(&body));
    let asked = async |endpoint: &str, token: &str| {
        let attempt = crate::tokens::about(&bench, endpoint, token, AGENT);
        bench.send(attempt).await
    };
    let known = asked("introspect", &refresh).await.json();
    assert_eq!(known["active"], true, "{known}");
    assert_eq!(known["aud"], bench.plane.issuer());
    assert!(known.get("authorization_details").is_none(), "{known}");
    assert!(known.get("token_type").is_none(), "{known}");
    for token in [&began, &brought] {
        let known = asked("introspect", token).await.json();
        assert_eq!(known["active"], true, "{known}");
    }
    assert_eq!(asked("revoke", &refresh).await.status, 200);
    for token in [&refresh, &began, &brought] {
        let known = asked("introspect", token).await.json();
        assert_eq!(known, json!({ "active": false }));
    }
    refused(
        "the next",
        &bench.send(with_refresh(&bench, &key, &refresh)).await,
        no("access_denied", "token_revoked"),
    );
}

/// A family of three, of which two were used.
async fn family(bench: &Bench, key: &Authority) -> [String; 3] {
    let first = issued("first", &bench.send(authenticating(bench, key)).await);
    let first = refresh_of(&first);
    let second = issued(
        "second",
        &bench.send(with_refresh(bench, key, &first)).await,
    );
    let second = refresh_of(&second);
    let third = issued(
        "third",
        &bench.send(with_refresh(bench, key, &second)).await,
    );
    [first, second, refresh_of(&third)]
}

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// The hash that the log has of the family that this refresh token is the first to be handed
/// out of.
fn begun(bench: &Bench, refresh: &str) -> Value {
    let hash = sha256(refresh);
    let issued = bench.plane.entries().into_iter();
    let mut with_it = issued.filter(|it| it["body"]["next"]["token_hash"] == hash.as_str());
    let body = with_it.next().unwrap()["body"].clone();
    // The token that it came with is of the family, too.
    assert_eq!(body["token"]["lineage"], json!([body["under"]]));
    assert_eq!(body["next"]["lineage"], json!([body["under"]]));
    body["under"].clone()
}

/// A person has whichever hash the log shows them: it ends the family, for as long as that
/// would have lasted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_of_a_refresh_token_ends_its_family_also_when_it_was_used() {
    let (_dir, key, bench) = refreshing().await;
    let link = bench.plane.login_link().to_owned();
    let us = bench.plane.issuer();
    let person = Operator::login_at(&link, &us).await.unwrap();
    for at in 0..3 {
        let family = family(&bench, &key).await;
        let named = json!({ "token": sha256(&family[at]) });
        let stopped = person.stop(&named).await.unwrap().json();
        let first = json!({ "token": begun(&bench, &family[0]) });
        assert_eq!(stopped["target"], first, "{at}: {stopped}");
        refused(
            "the last",
            &bench.send(with_refresh(&bench, &key, &family[2])).await,
            no("access_denied", "token_revoked"),
        );
        let entries = bench.plane.entries();
        let stop = entries.iter().rfind(|it| it["kind"] == "stop").unwrap();
        let until_ms = stop["body"]["until_ms"].as_u64().unwrap();
        let least_ms = (wasm_test::client::now_s() + 3_590) * 1000;
        assert!(until_ms > least_ms, "{at}: {stop}");
        // By the same name it is lifted.
        let lifted = person.lift(&named).await.unwrap().json();
        assert_eq!(
            (&lifted["target"], &lifted["stands"]),
            (&first, &json!(false))
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_refresh_token_is_revoked_with_its_family_by_whose_it_was() {
    let (_dir, key, bench) = refreshing().await;
    for at in 0..2 {
        let family = family(&bench, &key).await;
        let revoke = async |caller: &str| {
            let about = crate::tokens::about(&bench, "revoke", &family[at], caller);
            bench.send(about).await
        };
        let foreign = no("invalid_grant", "token_unknown");
        refused("another", &revoke(CHILD).await, foreign);
        let known = async || {
            let about = crate::tokens::about(&bench, "introspect", &family[2], AGENT);
            bench.send(about).await.json()["active"] == true
        };
        assert!(known().await, "another ends nothing");
        for _ in 0..2 {
            assert_eq!(revoke(AGENT).await.status, 200);
        }
        assert!(!known().await);
        refused(
            "the last",
            &bench.send(with_refresh(&bench, &key, &family[2])).await,
            no("access_denied", "token_revoked"),
        );
    }
    let entries = bench.plane.entries();
    let stops = entries.iter().filter(|it| it["kind"] == "stop");
    assert_eq!(stops.count(), 2, "one for each family");
}

/// RFC 6749, section 6: by whose it is, who authenticates, and each assertion once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_token_is_shown_by_the_client_that_it_was_given_to() {
    let (dir, key, bench) = refreshing().await;
    let client = |reason| no("invalid_client", reason);
    let body = issued("first", &bench.send(authenticating(&bench, &key)).await);
    let first = refresh_of(&body);
    let by = |refresh: &str, kind: Option<&str>, shown: Option<String>| {
        let mut attempt = with_refresh(&bench, &key, refresh);
        attempt.set("client_assertion_type", kind.map(str::to_owned));
        attempt.set("client_assertion", shown);
        attempt
    };
    let forged = assertion(&bench, &Authority::fresh().named_as(&key), &json!({}));
    let other = bench
        .authority
        .svid(CHILD, &bench.plane.issuer(), &json!({}));
    let svid = Some(crate::clients::SVID);
    let grant = no("invalid_grant", "token_audience");
    for (what, attempt, verdict) in [
        (
            "nobody",
            by(&first, None, None),
            client("missing_credentials"),
        ),
        (
            "forged",
            by(&first, Some(ASSERTION), Some(forged)),
            client("token_signature"),
        ),
        ("another", by(&first, svid, Some(other.clone())), grant),
    ] {
        refused(what, &bench.send(attempt).await, verdict);
    }
    let used = assertion(&bench, &key, &json!({}));
    let shown = |refresh: &str| by(refresh, Some(ASSERTION), Some(used.clone()));
    let body = issued("second", &bench.send(shown(&first)).await);
    let second = refresh_of(&body);
    // An assertion that is shown again is no refresh token that is, nor is another's.
    refused(
        "again",
        &bench.send(shown(&second)).await,
        client("token_spent"),
    );
    refused(
        "another",
        &bench.send(by(&first, svid, Some(other))).await,
        grant,
    );
    // The agent's own SVID says who it is as well.
    let body = issued(
        "third",
        &bench.send(by(&second, svid, Some(bench.svid()))).await,
    );
    let third = refresh_of(&body);

    // The key is withdrawn, and another has come.
    let next = Authority::fresh();
    let set = json!({ "keys": [next.client_jwk()] }).to_string();
    std::fs::write(dir.path().join("client.json"), set).unwrap();
    wasm_test::stage::eventually("the new key counts", async || {
        bench.send(authenticating(&bench, &next)).await.status == 200
    })
    .await
    .unwrap();
    let withdrawn = bench.send(with_refresh(&bench, &key, &third)).await;
    refused("withdrawn", &withdrawn, client("token_key_unknown"));
    issued(
        "by the new key",
        &bench.send(with_refresh(&bench, &next, &third)).await,
    );
}
