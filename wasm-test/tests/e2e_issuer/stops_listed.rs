//! Stops, listed by kind and number: over HTTP, the admin socket and the command line.

use reqwest::Method;
use serde_json::{Value, json};

use crate::admin_socket::admin;
use crate::admins::{ANN, Person, no, two};
use crate::plane::{Plane, run, text};

const OTHER: &str = "spiffe://writ.example/agent/other";

/// The kinds of the stops in an answer, and how many more there are.
fn told(answer: &Value) -> (Vec<&str>, u64) {
    let stops = answer["stops"].as_array().unwrap();
    let kinds = stops.iter().map(|stop| stop["kind"].as_str().unwrap());
    (kinds.collect(), answer["more"].as_u64().unwrap())
}

/// What a command prints, which ends well and has nothing to warn of.
async fn printed(plane: &Plane, args: &[&str]) -> String {
    let mut command = plane.writ();
    command.args(args);
    let output = run(command).await;
    let warned = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {warned}");
    assert_eq!(warned, "", "{args:?}");
    text(&output.stdout)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_are_asked_for_by_kind_and_number() {
    let plane = two().start().await;
    let socket = plane.path("admin.sock");
    let ann = Person::of(&plane, ANN).await;
    let user = json!({ "issuer": "https://idp.example", "subject": "eve" });
    for target in [
        json!({ "token": "ab".repeat(32) }),
        json!({ "key": "A".repeat(43) }),
        json!({ "user": user, "agent": OTHER }),
        json!({ "user": user }),
        json!({ "owner": "platform@example.com" }),
        json!({ "agent": OTHER }),
        json!({ "everything": true }),
    ] {
        let body = json!({ "target": target, "why": "a test" });
        let stopped = ann.post("/api/v1/stops", body).await;
        assert_eq!(stopped.status, 200, "{target}: {}", stopped.text());
    }

    // That of everything, and then from the newest on.
    let all = [
        "everything",
        "agent",
        "owner",
        "user",
        "delegation",
        "key",
        "token",
    ];
    for (query, kinds, more) in [
        ("", &all[..], 0),
        ("?limit=1000", &all[..], 0),
        ("?limit=2", &all[..2], 5),
        ("?kind=agent,owner,everything", &all[..3], 0),
        ("?limit=1&kind=token,key", &all[5..6], 1),
    ] {
        let path = format!("/api/v1/stops{query}");
        let answer = ann.ask(Method::GET, &path, None).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        assert_eq!(told(&answer.json()), (kinds.to_vec(), more), "{query}");
        let (status, answer) = admin(&socket, "GET", &path, "").await;
        assert_eq!(status, 200, "{query}: {answer}");
        assert_eq!(told(&answer), (kinds.to_vec(), more), "{query}");
    }
    for query in [
        "kind=agents",
        "kind=",
        "limit=0",
        "limit=1001",
        "limit=1&limit=2",
        "other=1",
    ] {
        let path = format!("/api/v1/stops?{query}");
        no(&ann.ask(Method::GET, &path, None).await, 400, "bad_query");
        let (status, answer) = admin(&socket, "GET", &path, "").await;
        assert_eq!(
            (status, answer["reason"].as_str()),
            (400, Some("bad_query")),
            "{query}: {answer}"
        );
    }

    let listed = printed(&plane, &["stops", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(told(&listed), (all.to_vec(), 0));
    let listed = printed(&plane, &["stops"]).await;
    assert_eq!(listed.lines().count(), all.len(), "{listed}");
    assert!(listed.starts_with("everything  since "), "{listed}");
    let listed = printed(&plane, &["agents", "list"]).await;
    assert!(listed.contains("STOPPED: everything"), "{listed}");
}
