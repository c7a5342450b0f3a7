//! Clients that others wrote without knowing Writ.

use serde_json::{Value, json};
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::REPORT;

use crate::plane::Plane;
use crate::programs::{Clients, ask, clients};

/// A file behind a route that asks for nonces.
const NOTES: &str = "/files/notes.txt";

/// Everything that the PyPI client fetches from a Workload API.
async fn fetched(clients: &Clients, socket: &std::path::Path, audience: &str) -> Value {
    let mut command = clients.python("svid.py");
    command.arg(socket).arg(audience);
    let got = ask(command, json!({})).await;
    assert_eq!(got["x509_id"], AGENT);
    assert!(
        got["x509_leaf"]
            .as_str()
            .unwrap()
            .contains("BEGIN CERTIFICATE")
    );
    assert_eq!(got["x509_authorities"], 1);
    assert_eq!(got["jwt_id"], AGENT);
    assert_eq!(got["jwt_audience"], json!([audience]));
    assert_eq!(got["jwt_authorities"], 1);
    assert_eq!(got["validated_id"], AGENT);
    assert_ne!(
        got["elsewhere"], "accepted",
        "validated for another audience"
    );
    got
}

#[tokio::test]
async fn standard_clients_get_a_token_and_spend_it_once() {
    let Some(clients) = clients() else { return };
    let system = System::for_test(Options {
        routes: format!(
            "[[edge.route]]\nname = \"asks\"\npath_prefix = \"{NOTES}\"\nupstream = \"{{upstream}}\"\nnonce = true\n"
        ),
        ..Options::default()
    })
    .await
    .unwrap();
    let got = fetched(clients, &system.workload_api(), &system.issuer()).await;
    let url = format!("{}{REPORT}", system.proxy_url());

    let mut expected = 0;
    for alg in ["ES256", "Ed25519"] {
        let given = json!({
            "issuer": system.issuer(), "resource": system.proxy_url(), "agent": AGENT,
            "svid": got["jwt"], "url": url, "alg": alg,
        });
        let seen = ask(clients.node("oauth.mjs"), given.clone()).await;
        assert_eq!(seen["first"]["status"], 200, "{seen}");
        assert!(
            seen["first"]["body"]
                .as_str()
                .unwrap()
                .contains("Quarterly report")
        );
        let second = &seen["second"];
        assert_eq!(second["status"], 401, "{seen}");
        assert_eq!(second["challenges"].as_array().unwrap().len(), 1, "{seen}");
        assert_eq!(second["challenges"][0]["scheme"], "dpop");
        assert_eq!(
            second["challenges"][0]["parameters"]["error"],
            "invalid_token"
        );
        assert_eq!(second["problem"]["reason"], "token_spent");
        assert_eq!(seen["claims"]["sub"], AGENT);
        assert_eq!(seen["asked"], 0, "{seen}");
        expected += 1;
        assert_eq!(system.upstream().unwrap().arrived(), expected, "{alg}");

        // Where a nonce is asked for it is told one, with the token as it was.
        let mut asking = given.clone();
        asking["url"] = format!("{}{NOTES}", system.proxy_url()).into();
        let seen = ask(clients.node("oauth.mjs"), asking).await;
        assert_eq!(seen["first"]["status"], 200, "{seen}");
        assert_eq!(seen["second"]["problem"]["reason"], "token_spent", "{seen}");
        assert_eq!(seen["asked"], 1, "{seen}");
        expected += 1;
        assert_eq!(system.upstream().unwrap().arrived(), expected, "{alg}");

        let seen = ask(clients.node("dpop.mjs"), given).await;
        assert_eq!(seen["first"]["status"], 200, "{seen}");
        assert_eq!(seen["second"]["status"], 401, "{seen}");
        expected += 1;
        assert_eq!(system.upstream().unwrap().arrived(), expected, "{alg}");
    }
    system.stop().await;
}

#[tokio::test]
async fn the_spiffe_crate_gets_everything_too() {
    let plane = Plane::start().await;
    let endpoint = format!("unix:{}", plane.path("workload.sock").display());
    let client = spiffe::WorkloadApiClient::connect_to(&endpoint)
        .await
        .unwrap();
    let issuer = plane.issuer();

    let x509 = client.fetch_x509_svid().await.unwrap();
    assert_eq!(x509.spiffe_id().to_string(), AGENT);
    let domain = spiffe::TrustDomain::new("writ.example").unwrap();
    let bundles = client.fetch_x509_bundles().await.unwrap();
    assert_eq!(bundles.get(&domain).unwrap().authorities().len(), 1);
    let jwt = client.fetch_jwt_svid([&issuer], None).await.unwrap();
    assert_eq!(jwt.spiffe_id().to_string(), AGENT);
    assert_eq!(jwt.audience(), std::slice::from_ref(&issuer));
    let keys = client.fetch_jwt_bundles().await.unwrap();
    assert!(keys.get(&domain).is_some());
    let validated = client
        .validate_jwt_token(&issuer, jwt.token())
        .await
        .unwrap();
    assert_eq!(validated.spiffe_id().to_string(), AGENT);
    let elsewhere = client
        .validate_jwt_token("https://elsewhere.example", jwt.token())
        .await;
    assert!(elsewhere.is_err());
}
