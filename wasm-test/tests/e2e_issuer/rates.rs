//! How much an agent, and all of an owner's, may ask for in a second.

use serde_json::{Value, json};
use std::time::Duration;
use wasm_test::client::Answer;
use wasm_test::system::AGENT;

use crate::grants::start;
use crate::judging::{Bench, Verdict, issued, refused};

const CHILD: &str = "spiffe://writ.example/agent/child";
const LIMIT: Verdict = Verdict {
    status: 429,
    error: "temporarily_unavailable",
    reason: "limit_exceeded",
};

/// Asks until it is refused: how many there were. Time may bring one or two more.
async fn until_refused(bench: &Bench, agents: &[&str]) -> usize {
    for (count, agent) in agents.iter().cycle().take(30).enumerate() {
        let answer = bench.send(bench.attempt_of(agent)).await;
        if answer.status != 200 {
            refused("one too many", &answer, LIMIT);
            assert_eq!(answer.header("retry-after"), Some("1"));
            return count;
        }
    }
    panic!("there is no end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_asks_for_too_much_waits_and_others_do_not() {
    let bench = start("[limits]\nexchanges_per_agent = 1").await;
    let count = until_refused(&bench, &[AGENT]).await;
    assert!((5..10).contains(&count), "{count}");
    issued("another", &bench.send(bench.attempt_of(CHILD)).await);
    let proof = bench.proof();
    let show = async || {
        let mut attempt = bench.attempt();
        attempt.prove(proof.clone());
        bench.send(attempt).await
    };
    // What was refused has used up no proof, and is an entry.
    let mut last = show().await;
    for _ in 0..20 {
        if last.status == 200 {
            break;
        }
        refused("at the limit", &last, LIMIT);
        tokio::time::sleep(Duration::from_millis(500)).await;
        last = show().await;
    }
    issued("a second later", &last);
    let entries = bench.plane.entries();
    let is_it = |entry: &&Value| entry["body"]["reason"] == "limit_exceeded";
    let line = entries.iter().find(is_it).unwrap();
    assert_eq!(line["body"]["agent"], AGENT, "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_of_one_owner_have_a_share_together() {
    let bench = start("[limits]\nexchanges_per_owner = 1").await;
    let count = until_refused(&bench, &[AGENT, CHILD]).await;
    assert!((5..10).contains(&count), "{count}");
    // Neither of the two has anything left.
    refused("the one", &bench.send(bench.attempt_of(AGENT)).await, LIMIT);
    refused(
        "the other",
        &bench.send(bench.attempt_of(CHILD)).await,
        LIMIT,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_costs_as_much_as_its_actions() {
    let bench = start("[limits]\nexchanges_per_agent = 2").await;
    let mut session = bench.attempt();
    session.set("authorization_details", None);
    session.set("audience", bench.plane.issuer());
    let session = issued("a session", &bench.send(session).await);
    let session = session["access_token"].as_str().unwrap();
    let url = format!("{}/api/v1/capabilities", bench.plane.issuer());
    let elements = vec![bench.details("/files/a")[0].clone(); 32];
    let request = reqwest::Client::new()
        .post(&url)
        .header("authorization", format!("DPoP {session}"))
        .header("dpop", bench.key.proof("POST", &url, Some(session)))
        .json(&json!({ "authorization_details": elements }));
    let answer = Answer::read(request.send().await.unwrap()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    let each = body["capabilities"].as_array().unwrap();
    let good = each.iter().filter(|it| it["access_token"].is_string());
    // The session was one of the ten that may come at once.
    let good = good.count();
    assert!((9..16).contains(&good), "{good}");
    let limited = each.iter().filter(|it| it["reason"] == "limit_exceeded");
    assert_eq!(limited.count(), 32 - good);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_of_one_owner_have_so_many_tokens_between_them() {
    let bench = start("[limits]\noutstanding_per_owner = 3").await;
    for agent in [AGENT, CHILD, AGENT] {
        issued(agent, &bench.send(bench.attempt_of(agent)).await);
    }
    for agent in [AGENT, CHILD] {
        refused(
            "one too many",
            &bench.send(bench.attempt_of(agent)).await,
            LIMIT,
        );
    }
    let entries = bench.plane.entries();
    let refusals = entries
        .iter()
        .filter(|it| it["body"]["reason"] == "limit_exceeded");
    let agents: Vec<_> = refusals.map(|it| it["body"]["agent"].clone()).collect();
    assert_eq!(agents, [AGENT, CHILD]);
}
