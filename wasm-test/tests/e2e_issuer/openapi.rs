//! The HTTP API against its own document: by every method that is there and not there, and
//! by schemathesis, which makes requests of the document and judges the answers by it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wasm_test::client::http_client;

use crate::plane::{Plane, run, text};
use crate::programs::clients;

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "DELETE", "PATCH"];

async fn document(plane: &Plane) -> Value {
    let url = format!("{}/api/openapi.json", plane.issuer());
    let answer = http_client().get(url).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/json");
    answer.json().await.unwrap()
}

/// A session at a command line.
async fn session(plane: &Plane, link: &str) -> String {
    let secret = link.split_once('#').unwrap().1;
    let url = format!("{}/api/v1/session", plane.issuer());
    let body = json!({ "secret": secret });
    let answer = http_client().post(url).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    let body: Value = answer.json().await.unwrap();
    format!("Session {}", body["session"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_document_has_is_served_and_by_no_other_method() {
    let plane = Plane::start().await;
    let document = document(&plane).await;
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["servers"], json!([{ "url": plane.issuer() }]));
    let session = session(&plane, plane.login_link()).await;
    let mut tried = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let url = format!("{}{}", plane.issuer(), path.replace("{id}", "apr_none"));
        for method in METHODS {
            let described = operations.get(method.to_lowercase()).is_some();
            // This one ends the session.
            if described && method == "DELETE" {
                continue;
            }
            let request = http_client()
                .request(method.parse().unwrap(), &url)
                .header("authorization", &session);
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            let what = format!("{method} {path}: {status}");
            assert_eq!(status == 405, !described, "{what}");
            if described {
                let known = &operations[method.to_lowercase()]["responses"];
                assert!(known.get(status.to_string()).is_some(), "{what}");
            } else {
                let allowed = answer.headers()["allow"].to_str().unwrap();
                assert!(!allowed.contains(method), "{what}: {allowed}");
            }
            tried += 1;
        }
    }
    assert!(tried > 80, "{tried}");
}

/// Bounded by examples and by time; what it finds is printed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_nothing() {
    let Some(clients) = clients() else { return };
    let plane = Plane::start().await;
    let session = session(&plane, plane.login_link()).await;
    let began = Instant::now();
    let document = format!("{}/api/openapi.json", plane.issuer());
    let tried = |session: Option<&str>| {
        let mut command = clients.program("schemathesis");
        command
            .args(["run", &document, "--url", &plane.issuer()])
            .args([
                "--phases",
                "examples,coverage,fuzzing",
                "--max-examples",
                "30",
            ])
            .args(["--seed", "7", "--request-timeout", "20", "--no-color"])
            .args([
                "--suppress-health-check",
                "all",
                "--generation-database",
                "none",
            ])
            // What has the form may be refused for what it says: a digest, a token.
            .args(["--exclude-checks", "positive_data_acceptance"])
            .arg("--continue-on-failure");
        if let Some(session) = session {
            // Without one of its own it could not go on.
            command
                .args(["--header", &format!("Authorization: {session}")])
                .args(["--exclude-method", "DELETE"]);
        }
        command
    };
    for session in [None, Some(&*session)] {
        let output = run(tried(session)).await;
        let said = text(&output.stdout);
        assert!(output.status.success(), "{said}{}", text(&output.stderr));
    }
    assert!(
        began.elapsed() < Duration::from_secs(300),
        "it takes too long"
    );
    // It is there yet.
    let ready = http_client().get(format!("{}/readyz", plane.issuer()));
    assert_eq!(ready.send().await.unwrap().status(), 200);
}
