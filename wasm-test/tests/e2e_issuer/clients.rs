//! Clients that authenticate at the token endpoint: by a JWT-SVID, or by a key of their
//! own, each assertion of which counts once.

use serde_json::{Value, json};
use wasm_test::client::Answer;
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::REPORT;

use crate::evidence::Authority;
use crate::judging::{Attempt, Bench, GRANT, Verdict, issued, no, refused};
use crate::plane::{Plane, Prepared};
use crate::programs::{ask, clients};

pub const CLIENT: &str = "billing";
pub const SVID: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";
pub const JWT: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A client's key, and the config that knows it as the agent.
pub fn client(dir: &std::path::Path) -> (Authority, String) {
    let key = Authority::fresh();
    let keys = dir.join("client.json");
    let set = json!({ "keys": [key.client_jwk()] });
    std::fs::write(&keys, set.to_string()).unwrap();
    let keys = keys.display();
    let config =
        format!("[[client]]\nclient_id = \"{CLIENT}\"\nagent = \"{AGENT}\"\nkeys = \"{keys}\"\n");
    (key, config)
}

/// A good assertion for this issuer, with claims and header laid over.
pub fn assertion(key: &Authority, issuer: &str, claims: &Value, header: &Value) -> String {
    let mut all = json!({ "iss": CLIENT, "sub": CLIENT, "aud": issuer });
    let over = claims.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(over);
    key.svid_with(CLIENT, issuer, &all, header)
}

fn with(bench: &Bench, kind: &str, assertion: String) -> Attempt {
    let mut attempt = bench.attempt();
    attempt.set("grant_type", "client_credentials".to_owned());
    attempt.set("subject_token", None);
    attempt.set("subject_token_type", None);
    attempt.set("client_assertion_type", kind.to_owned());
    attempt.set("client_assertion", assertion);
    attempt
}

fn metadata_of(plane: &Plane) -> String {
    format!("{}/.well-known/oauth-authorization-server", plane.issuer())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standard_client_acts_by_its_own_key_and_by_its_svid() {
    let Some(clients) = clients() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (key, extra_config) = client(dir.path());
    let options = Options {
        extra_config,
        ..Options::default()
    };
    let system = System::for_test(options).await.unwrap();
    let agent = system.agent().await.unwrap();
    let by_key = json!({
        "issuer": system.issuer(), "client": CLIENT, "key": key.private_jwk(),
        "url": agent.url(REPORT),
    });
    let by_svid = json!({
        "issuer": system.issuer(), "client": AGENT, "svid": agent.svid().await.unwrap(),
        "url": agent.url(REPORT),
    });
    for (expected, given) in [(1, by_key), (2, by_svid)] {
        let seen = ask(clients.node("client.mjs"), given).await;
        assert_eq!(seen["status"], 200, "{seen}");
        let upstream = system.upstream().unwrap();
        assert_eq!(upstream.arrived(), expected);
        let records = upstream.records().unwrap();
        assert_eq!(records.last().unwrap().header("x-writ-agent"), Some(AGENT));
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_assertion_is_for_us_by_its_key_and_short() {
    let dir = tempfile::tempdir().unwrap();
    let (key, config) = client(dir.path());
    let bench = Bench::over(Prepared::new().with(&config).start().await);
    let us = bench.plane.issuer();
    let none = json!({});
    let good = || assertion(&key, &us, &none, &none);
    let goods = [
        none.clone(),
        json!({ "typ": "client-authentication+jwt" }),
        // It has one key, so there is no doubt which it is.
        json!({ "kid": null }),
    ];
    for header in goods {
        let one = assertion(&key, &us, &none, &header);
        let body = issued("a good one", &bench.send(with(&bench, JWT, one)).await);
        assert!(body.get("issued_token_type").is_none());
        let (_, claims) = crate::evidence::decoded(body["access_token"].as_str().unwrap());
        assert_eq!(claims["sub"], AGENT);
    }
    let metadata = reqwest::get(metadata_of(&bench.plane)).await.unwrap();
    let metadata: Value = metadata.json().await.unwrap();
    let methods = &metadata["token_endpoint_auth_methods_supported"];
    assert_eq!(*methods, json!(["none", "spiffe_jwt", "private_key_jwt"]));
    let algorithms = &metadata["token_endpoint_auth_signing_alg_values_supported"];
    assert!(algorithms.as_array().unwrap().contains(&json!("ES256")));

    let client = |reason| no("invalid_client", reason);
    let now = wasm_test::client::now_s();
    let stranger = Authority::fresh().named_as(&key);
    type Row<'r> = (&'r str, Value, Value, Verdict);
    let table: Vec<Row<'_>> = vec![
        (
            "the token endpoint",
            json!({ "aud": bench.plane.token_endpoint() }),
            none.clone(),
            client("token_audience"),
        ),
        (
            "two audiences",
            json!({ "aud": [us, "https://x.example"] }),
            none.clone(),
            client("token_audience"),
        ),
        (
            "a slash more",
            json!({ "aud": format!("{us}/") }),
            none.clone(),
            client("token_audience"),
        ),
        (
            "another client",
            json!({ "iss": "other", "sub": "other" }),
            none.clone(),
            client("token_issuer"),
        ),
        (
            "an agent's name",
            json!({ "iss": AGENT, "sub": AGENT }),
            none.clone(),
            client("token_issuer"),
        ),
        (
            "another's sub",
            json!({ "sub": AGENT }),
            none.clone(),
            client("token_malformed"),
        ),
        (
            "no sub",
            json!({ "sub": null }),
            none.clone(),
            client("token_malformed"),
        ),
        (
            "no jti",
            json!({ "jti": null }),
            none.clone(),
            client("token_malformed"),
        ),
        (
            "an empty jti",
            json!({ "jti": "" }),
            none.clone(),
            client("token_malformed"),
        ),
        (
            "a long jti",
            json!({ "jti": "j".repeat(257) }),
            none.clone(),
            client("token_malformed"),
        ),
        (
            "no end",
            json!({ "exp": null }),
            none.clone(),
            client("token_malformed"),
        ),
        (
            "no beginning",
            json!({ "iat": null }),
            none.clone(),
            client("token_malformed"),
        ),
        (
            "over",
            json!({ "iat": now - 100, "exp": now - 1 }),
            none.clone(),
            client("token_expired"),
        ),
        (
            "long",
            json!({ "exp": now + 310 }),
            none.clone(),
            client("token_lifetime"),
        ),
        (
            "of tomorrow",
            json!({ "iat": now + 60 }),
            none.clone(),
            client("token_not_yet_valid"),
        ),
        (
            "before the start",
            json!({ "iat": now - 120, "exp": now + 60 }),
            none.clone(),
            client("token_spent"),
        ),
        (
            "a proof",
            none.clone(),
            json!({ "typ": "dpop+jwt" }),
            client("token_malformed"),
        ),
        (
            "a key that is no text",
            none.clone(),
            json!({ "kid": 7 }),
            client("token_malformed"),
        ),
        (
            "another key",
            none.clone(),
            json!({ "kid": "x" }),
            client("token_key_unknown"),
        ),
        (
            "no algorithm",
            none.clone(),
            json!({ "alg": "none" }),
            client("token_algorithm"),
        ),
        (
            "a secret",
            none.clone(),
            json!({ "alg": "HS256" }),
            client("token_algorithm"),
        ),
        (
            "what must be understood",
            none.clone(),
            json!({ "crit": ["x"] }),
            client("token_malformed"),
        ),
    ];
    for (what, claims, header, verdict) in table {
        let one = assertion(&key, &us, &claims, &header);
        refused(what, &bench.send(with(&bench, JWT, one)).await, verdict);
    }
    for header in [none.clone(), json!({ "kid": null })] {
        let forged = assertion(&stranger, &us, &none, &header);
        let answer = bench.send(with(&bench, JWT, forged)).await;
        refused("forged", &answer, client("token_signature"));
    }
    let answer = bench.send(with(&bench, JWT, "x".repeat(9_000))).await;
    refused("large", &answer, client("token_issuer"));

    // One kind of evidence is not the other.
    let subject = bench.attempt();
    let subject = |token: String| {
        let mut attempt = Attempt {
            params: subject.params.clone(),
            ..bench.attempt()
        };
        attempt.set("subject_token", token);
        attempt
    };
    let answer = bench.send(subject(good())).await;
    refused(
        "as a subject token",
        &answer,
        no("invalid_request", "token_issuer"),
    );
    let answer = bench.send(with(&bench, SVID, good())).await;
    refused("as an SVID", &answer, client("token_malformed"));
    let answer = bench.send(with(&bench, JWT, bench.svid())).await;
    refused("an SVID as this", &answer, client("token_issuer"));

    let request = no("invalid_request", "malformed_credentials");
    type Spoilt<'r> = (&'r str, Verdict, fn(&mut Attempt));
    let spoilt: [Spoilt<'_>; 9] = [
        ("no assertion", request, |a| a.set("client_assertion", None)),
        ("no type", request, |a| a.set("client_assertion_type", None)),
        ("another type", request, |a| {
            a.set(
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:saml2-bearer".to_owned(),
            );
        }),
        (
            "neither",
            no("unsupported_grant_type", "malformed_credentials"),
            |a| {
                a.set("client_assertion", None);
                a.set("client_assertion_type", None);
            },
        ),
        ("a subject token as well", request, |a| {
            a.set("subject_token", "x".to_owned())
        }),
        ("a secret as well", request, |a| {
            a.set("client_secret", "x".to_owned())
        }),
        ("with an exchange", request, |a| {
            a.set("grant_type", GRANT.to_owned())
        }),
        (
            "another client_id",
            no("invalid_client", "token_issuer"),
            |a| a.set("client_id", "other".to_owned()),
        ),
        (
            "a scope",
            no("invalid_scope", "malformed_credentials"),
            |a| a.set("scope", "x".to_owned()),
        ),
    ];
    for (what, verdict, spoil) in spoilt {
        let mut attempt = with(&bench, JWT, good());
        spoil(&mut attempt);
        refused(what, &bench.send(attempt).await, verdict);
    }
    let mut attempt = with(&bench, JWT, good());
    attempt.proofs.clear();
    let answer = bench.send(attempt).await;
    refused(
        "without a proof",
        &answer,
        no("invalid_dpop_proof", "missing_credentials"),
    );
}

/// Attack E06, in one process: of a hundred at the same moment one is served, each with
/// a proof and a key of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_assertion_counts_once_whoever_shows_it_when() {
    let dir = tempfile::tempdir().unwrap();
    let (key, config) = client(dir.path());
    let bench = Bench::over(Prepared::new().with(&config).start().await);
    let us = bench.plane.issuer();
    let one = assertion(&key, &us, &json!({}), &json!({}));
    let all = (0..100).map(|_| {
        let mut attempt = with(&bench, JWT, one.clone());
        let thief = wasm_test::client::DpopKey::generate().unwrap();
        attempt.prove(thief.proof("POST", &bench.plane.token_endpoint(), None));
        bench.send(attempt)
    });
    let answers: Vec<Answer> = futures::future::join_all(all).await;
    let served = answers.iter().filter(|it| it.status == 200).count();
    assert_eq!(served, 1);
    let spent = no("invalid_client", "token_spent");
    for answer in answers.iter().filter(|it| it.status != 200) {
        refused("the others", answer, spent);
    }
    // The same name is the same assertion, whatever else it says.
    let (_, claims) = crate::evidence::decoded(&one);
    let renamed = json!({ "jti": claims["jti"], "exp": claims["exp"].as_u64().unwrap() - 1 });
    let renamed = assertion(&key, &us, &renamed, &json!({}));
    refused(
        "the name",
        &bench.send(with(&bench, JWT, renamed)).await,
        spent,
    );

    // What was refused has used nothing up.
    let again = assertion(&key, &us, &json!({}), &json!({}));
    let mut wrong = with(&bench, JWT, again.clone());
    wrong.set("authorization_details", "[]".to_owned());
    let no_action = no("invalid_authorization_details", "action_mismatch");
    refused("no action", &bench.send(wrong).await, no_action);
    issued("again", &bench.send(with(&bench, JWT, again)).await);

    // Nor after a start, whose record is empty.
    let fresh = assertion(&key, &us, &json!({}), &json!({}));
    issued(
        "before",
        &bench.send(with(&bench, JWT, fresh.clone())).await,
    );
    let bench = Bench::over(bench.plane.restart().await);
    for used in [one, fresh] {
        refused("after", &bench.healed(with(&bench, JWT, used)).await, spent);
    }
    // A client's clock may be ahead by so much: one of before could say that it is of now.
    let ahead = assertion(&key, &us, &json!({}), &json!({}));
    refused(
        "ahead",
        &bench.healed(with(&bench, JWT, ahead)).await,
        spent,
    );
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    let later = assertion(&key, &us, &json!({}), &json!({}));
    issued("later", &bench.send(with(&bench, JWT, later)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jwt_svid_authenticates_a_client() {
    let bench = Bench::start().await;
    let us = bench.plane.issuer();
    let named = |id: &str, svid: String| {
        let mut attempt = with(&bench, SVID, svid);
        attempt.set("client_id", id.to_owned());
        attempt
    };
    issued("alone", &bench.send(with(&bench, SVID, bench.svid())).await);
    issued("named", &bench.send(named(AGENT, bench.svid())).await);
    let none = json!({});
    let other = "spiffe://writ.example/agent/other";
    let forged = bench.authority.impostor().svid(AGENT, &us, &none);
    let elsewhere = bench.authority.svid(AGENT, "https://x.example", &none);
    let nobody = bench.authority.svid(other, &us, &none);
    let over = json!({ "iat": 1_000_000, "exp": 1_000_300 });
    let table = [
        (
            "another client_id",
            named(other, bench.svid()),
            no("invalid_client", "token_issuer"),
        ),
        (
            "forged",
            with(&bench, SVID, forged),
            no("invalid_client", "token_signature"),
        ),
        (
            "another audience",
            with(&bench, SVID, elsewhere),
            no("invalid_client", "token_audience"),
        ),
        (
            "over",
            with(&bench, SVID, bench.authority.svid(AGENT, &us, &over)),
            no("invalid_client", "token_expired"),
        ),
        (
            "unregistered",
            with(&bench, SVID, nobody),
            no("access_denied", "agent_inactive"),
        ),
    ];
    for (what, attempt, verdict) in table {
        refused(what, &bench.send(attempt).await, verdict);
    }
}
