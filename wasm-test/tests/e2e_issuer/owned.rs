//! An agent's owner is one that exists: at a terminal, over HTTP, in the config, and after
//! the config knows it no longer.

use serde_json::{Value, json};
use wasm_test::system::AGENT;

use crate::admins::{ANN, Person, no, two};
use crate::judging::{Bench, issued};
use crate::plane::{Plane, Prepared, run, text};

const OTHER: &str = "spiffe://writ.example/agent/other";

async fn put(ann: &Person, change: Value) -> wasm_test::client::Answer {
    ann.ask(reqwest::Method::PUT, "/api/v1/agents", Some(change))
        .await
}

/// One agent, as `writ agents show` says it.
async fn shown(plane: &Plane, agent: &str, json: bool) -> String {
    let mut command = plane.writ();
    command.args(["agents", "show", agent]);
    if json {
        command.arg("--json");
    }
    let output = run(command).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_does_not_exist_is_refused_with_those_that_do() {
    let plane = two().start().await;
    let ann = Person::of(&plane, ANN).await;
    let before = plane.entries().len();
    for owner in ["nobody", "Platform", "platform "] {
        let refused = put(&ann, json!({ "agent": OTHER, "owner": owner })).await;
        no(&refused, 400, "owner_unknown");
        // Those that there are: the agents' of the config, its approvers and their groups.
        for known in ["`platform@example.com`", "`board`", "`ann@example.com`"] {
            assert!(refused.text().contains(known), "{}", refused.text());
        }
        assert!(refused.text().contains("[[owner]]"), "{}", refused.text());
    }
    // Nor does one that is known get one.
    no(
        &put(&ann, json!({ "agent": AGENT, "owner": "nobody" })).await,
        400,
        "owner_unknown",
    );
    assert_eq!(plane.entries().len(), before, "a refusal is no entry");
    for owner in ["platform@example.com", "board", ANN] {
        let done = put(&ann, json!({ "agent": OTHER, "owner": owner })).await;
        let done = (done.status, done.json());
        assert_eq!(
            (done.0, &done.1["owner"]),
            (200, &json!(owner)),
            "{}",
            done.1
        );
        assert_eq!(done.1["owner_exists"], true);
    }
}

/// With a list of owners, every agent of the file has one of them, or nothing starts.
#[tokio::test]
async fn the_configs_agents_have_owners_of_its_list() {
    let prepared = Prepared::new().with(
        "[[owner]]\nname = \"payments\"\n[[owner]]\nname = \"payments\"\n[token]\nlifetime_s = 0",
    );
    let config = prepared.write();
    let output = run(prepared.serve(&config)).await;
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    let line = |key: &str| {
        let text = std::fs::read_to_string(&config).unwrap();
        1 + text.lines().position(|it| it.starts_with(key)).unwrap()
    };
    for (key, wanted) in [
        (
            "owner = \"platform@",
            "`platform@example.com` is no [[owner]]",
        ),
        ("lifetime_s", "0 is out of bounds"),
    ] {
        let at = format!("writ.toml:{}: ", line(key));
        let told = said.lines().find(|it| it.contains(wanted));
        assert!(told.is_some_and(|it| it.contains(&at)), "{at}: {said}");
    }
    assert!(said.contains("another owner has this name"), "{said}");
}

/// A change of the config revokes nobody: the agent goes on, and is shown for what it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_owner_is_gone_goes_on_and_is_shown_so() {
    let plane = two().start().await;
    let ann = Person::of(&plane, ANN).await;
    let change = json!({ "agent": OTHER, "owner": "board", "state": "active" });
    assert_eq!(put(&ann, change).await.status, 200);
    let listed = "[[owner]]\nname = \"platform@example.com\"\ncontact = \"#platform\"\n[[owner]]\nname = \"ops\"";
    let plane = plane.stopped().await.with(listed).start().await;

    let bench = Bench::over(plane);
    let mut attempt = bench.attempt();
    let svid = bench
        .authority
        .svid(OTHER, &bench.plane.issuer(), &json!({}));
    attempt.set("subject_token", svid);
    issued("an owner that is gone", &bench.healed(attempt).await);
    let one: Value = serde_json::from_str(&shown(&bench.plane, OTHER, true).await).unwrap();
    assert_eq!(
        (&one["owner"], &one["owner_exists"]),
        (&json!("board"), &json!(false))
    );
    assert_eq!(one["state"], "active");
    let said = shown(&bench.plane, OTHER, false).await;
    assert!(
        said.contains("board (not in the config any more)"),
        "{said}"
    );
    let said = shown(&bench.plane, AGENT, false).await;
    assert!(!said.contains("any more"), "{said}");

    // It is changed in what else there is, and gets no other that is gone.
    let ann = Person::of(&bench.plane, ANN).await;
    let other = put(&ann, json!({ "agent": OTHER, "purpose": "reports" })).await;
    assert_eq!(other.status, 200, "{}", other.text());
    let gone = put(&ann, json!({ "agent": OTHER, "owner": "board" })).await;
    no(&gone, 400, "owner_unknown");
    assert!(
        gone.text().contains("`ops`, `platform@example.com`"),
        "{}",
        gone.text()
    );
    // What they are all stopped by is the owner's name, in the config or not.
    let target = json!({ "target": { "owner": "board" } });
    let stop = ann.post("/api/v1/stops", target.clone()).await;
    assert_eq!(stop.status, 200, "{}", stop.text());
    let lift = ann.post("/api/v1/stops/lift", target.clone()).await;
    assert_eq!(lift.status, 200, "{}", lift.text());
    let moved = put(&ann, json!({ "agent": OTHER, "owner": "ops" })).await;
    assert_eq!(moved.json()["owner_exists"], true, "{}", moved.text());
    // Now it stops nobody, and says so.
    let stop = ann.post("/api/v1/stops", target).await;
    no(&stop, 400, "bad_target");
    assert!(
        stop.text().contains("stops nothing: board"),
        "{}",
        stop.text()
    );
}
