//! What the token endpoint gives: token, reply, metadata and keys.

use std::collections::BTreeSet;

use base64ct::{Base64UrlUnpadded, Encoding as _};
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use serde_json::{Value, json};
use wasm_test::client::{Answer, now_s};
use wasm_test::system::AGENT;

use crate::evidence::decoded;
use crate::judging::{ACCESS, Bench, GRANT};
use crate::plane::{Plane, Prepared};

async fn get(plane: &Plane, path: &str) -> Answer {
    let url = format!("{}{path}", plane.issuer());
    Answer::read(reqwest::get(url).await.unwrap())
        .await
        .unwrap()
}

fn members(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

/// Checks a token's signature with a published key, and nothing else.
fn verifies(token: &str, jwk: &Value) -> bool {
    let bytes = |text: &str| Base64UrlUnpadded::decode_vec(text).unwrap();
    let mut point = vec![4];
    point.extend(bytes(jwk["x"].as_str().unwrap()));
    point.extend(bytes(jwk["y"].as_str().unwrap()));
    let key = VerifyingKey::from_sec1_bytes(&point).unwrap();
    let (input, signature) = token.rsplit_once('.').unwrap();
    let signature = Signature::from_slice(&bytes(signature)).unwrap();
    key.verify(input.as_bytes(), &signature).is_ok()
}

#[tokio::test]
async fn a_token_is_exactly_what_was_agreed() {
    let lifetime = "[token]\nlifetime_s = 47";
    let bench = Bench::over(Prepared::new().with(lifetime).start().await);
    let jwks = get(&bench.plane, "/.well-known/jwks.json").await.json();
    let keys = jwks["keys"].as_array().unwrap();
    let details = bench.details("/files/report.txt");

    let mut ids = BTreeSet::new();
    for _ in 0..20 {
        let reply = bench.token().await;
        let parts = [
            "access_token",
            "authorization_details",
            "expires_in",
            "issued_token_type",
            "token_type",
        ];
        assert_eq!(members(&reply), parts.into());
        assert_eq!(reply["token_type"], "DPoP");
        assert_eq!(reply["issued_token_type"], ACCESS);
        assert_eq!(reply["expires_in"], 47);
        assert_eq!(reply["authorization_details"], details);

        let token = reply["access_token"].as_str().unwrap();
        let (header, claims) = decoded(token);
        assert_eq!(members(&header), ["alg", "kid", "typ"].into());
        assert_eq!(
            (&header["alg"], &header["typ"]),
            (&json!("ES256"), &json!("at+jwt"))
        );
        let jwk = keys.iter().find(|jwk| jwk["kid"] == header["kid"]).unwrap();
        assert!(verifies(token, jwk));

        let named = [
            "iss",
            "aud",
            "sub",
            "client_id",
            "iat",
            "exp",
            "jti",
            "txn",
            "cnf",
            "authorization_details",
        ];
        assert_eq!(members(&claims), named.into());
        assert_eq!(claims["iss"], bench.plane.issuer());
        assert_eq!(claims["aud"], bench.plane.origin());
        assert_eq!(claims["sub"], AGENT);
        assert_eq!(claims["client_id"], AGENT);
        let iat = claims["iat"].as_u64().unwrap();
        assert!(now_s().abs_diff(iat) <= 5);
        assert_eq!(claims["exp"].as_u64(), Some(iat + 47));
        assert_eq!(claims["cnf"], json!({ "jkt": bench.key.thumbprint() }));
        assert_eq!(claims["authorization_details"], details);
        for name in ["jti", "txn"] {
            let id = claims[name].as_str().unwrap();
            assert!(
                Base64UrlUnpadded::decode_vec(id).unwrap().len() >= 16,
                "{name}: {id}"
            );
            assert!(ids.insert(id.to_owned()), "{name} twice: {id}");
        }
    }
}

#[tokio::test]
async fn a_location_is_normalised_in_token_and_reply() {
    let bench = Bench::start().await;
    let mut attempt = bench.attempt();
    let sent = bench
        .url("/files/./a/../report%2dx.txt?b=1&a=%7e")
        .replace("http:", "HTTP:");
    let details = json!([{ "type": "http_request", "actions": ["GET"], "locations": [sent] }]);
    attempt.set("authorization_details", details.to_string());
    let answer = bench.send(attempt).await;
    if answer.status != 200 {
        // Refusing what two parts could read differently is a right answer too.
        assert_eq!(
            answer.json()["error"],
            "invalid_authorization_details",
            "{}",
            answer.text()
        );
        return;
    }
    let reply = answer.json();
    let (_, claims) = decoded(reply["access_token"].as_str().unwrap());
    assert_eq!(
        claims["authorization_details"],
        reply["authorization_details"]
    );
    let location = reply["authorization_details"][0]["locations"][0]
        .as_str()
        .unwrap();
    assert_eq!(location, bench.url("/files/report-x.txt?b=1&a=~"));
}

#[tokio::test]
async fn metadata_and_keys_are_what_standard_clients_demand() {
    let plane = Plane::start().await;
    let issuer = plane.issuer();
    let answer = get(&plane, "/.well-known/oauth-authorization-server").await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/json"))
    );
    let metadata = answer.json();
    assert_eq!(metadata["issuer"], issuer);
    assert_eq!(metadata["token_endpoint"], plane.token_endpoint());
    assert_eq!(
        metadata["grant_types_supported"],
        json!([GRANT, "client_credentials", crate::deferring::DEFERRED])
    );
    assert_eq!(
        metadata["token_endpoint_auth_methods_supported"],
        json!(["none", "spiffe_jwt"])
    );
    assert_eq!(
        metadata["authorization_details_types_supported"],
        json!(["http_request", "delegation"])
    );
    let algorithms = metadata["dpop_signing_alg_values_supported"]
        .as_array()
        .unwrap();
    assert!(algorithms.contains(&json!("ES256")) && algorithms.contains(&json!("Ed25519")));
    let responses = metadata["response_types_supported"].as_array().unwrap();
    assert!(!responses.is_empty() && responses.iter().all(Value::is_string));

    let keys = metadata["jwks_uri"].as_str().unwrap();
    let jwks = get(&plane, keys.strip_prefix(&issuer).unwrap()).await;
    assert_eq!(jwks.status, 200);
    for key in jwks.json()["keys"].as_array().unwrap() {
        assert_eq!(
            members(key),
            ["alg", "crv", "kid", "kty", "use", "x", "y"].into()
        );
        assert_eq!(
            (&key["kty"], &key["crv"], &key["alg"]),
            (&json!("EC"), &json!("P-256"), &json!("ES256"))
        );
    }

    let authorize = metadata["authorization_endpoint"].as_str().unwrap();
    let path = authorize.strip_prefix(&issuer).unwrap();
    for query in [
        "",
        "?response_type=code&client_id=x&redirect_uri=https://elsewhere.example/",
    ] {
        let answer = get(&plane, &format!("{path}{query}")).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert_eq!(answer.json()["error"], "unsupported_response_type");
        assert!(
            answer.header("location").is_none(),
            "nobody is sent elsewhere"
        );
    }
    let wrong = get(&plane, "/oauth2/token").await;
    assert_eq!(wrong.status, 405, "the token endpoint takes POST alone");
}

#[tokio::test]
async fn nothing_leaves_before_its_entry_and_no_secret_is_in_the_log() {
    let bench = Bench::start().await;
    let svid = bench.svid();
    let mut attempt = bench.attempt();
    attempt.set("subject_token", svid.clone());
    let reply = bench.send(attempt).await.json();
    let token = reply["access_token"].as_str().unwrap();
    let (_, claims) = decoded(token);
    let issue: Vec<Value> = bench
        .plane
        .entries()
        .into_iter()
        .filter(|entry| entry.to_string().contains(claims["jti"].as_str().unwrap()))
        .collect();
    assert_eq!(issue.len(), 1, "{issue:?}");
    let entry = issue[0].to_string();
    assert!(
        entry.contains(AGENT) && entry.contains("/files/report.txt"),
        "{entry}"
    );

    // SVIDs are never stored, and an issue entry holds the token's digest alone.
    let mut stored = Vec::new();
    for file in std::fs::read_dir(bench.plane.data().join("journal")).unwrap() {
        stored.extend(std::fs::read(file.unwrap().path()).unwrap_or_default());
    }
    let holds = |secret: &str| {
        stored
            .windows(secret.len())
            .any(|window| window == secret.as_bytes())
    };
    for secret in [svid.as_str(), token] {
        let signature = secret.rsplit('.').next().unwrap();
        assert!(!holds(signature));
    }
}
