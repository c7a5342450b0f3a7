//! Requests that wait for a person: what a yes covers, and what becomes of those
//! who do not wait.

use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;
use tokio::task::JoinHandle;
use wasm_test::client::{Agent, Answer, Approver, Verdict};
use wasm_test::system::Options;

use super::raw::Http1;
use super::rig::{Rig, eventually, jti, sha256};

const HOLD_S: u64 = 3;
const HELD_PER_AGENT: usize = 40;
const NOTICE: Duration = Duration::from_secs(10);

async fn start(hold_s: u64) -> (Rig, Approver) {
    let options = Options {
        hold_s,
        token_lifetime_s: 120,
        extra_config: format!("[limits]\nheld_per_agent = {HELD_PER_AGENT}\n"),
        ..Options::default()
    };
    let rig = Rig::start(options).await;
    let approver = rig.system.approver().await.unwrap();
    (rig, approver)
}

fn path(name: &str) -> String {
    format!("/echo/restricted/{name}")
}

/// Exchange and request, in the background.
fn calling(agent: &Agent, method: &str, path: &str) -> JoinHandle<Answer> {
    let (agent, method, path) = (agent.clone(), method.to_owned(), path.to_owned());
    tokio::spawn(async move { agent.call(&method, &path).await.unwrap() })
}

/// A request that is held, with its approval's id and its answer to come.
async fn held(
    rig: &Rig,
    approver: &Approver,
    method: &str,
    path: &str,
) -> (String, JoinHandle<Answer>) {
    let known = approver.inbox().await.unwrap();
    let answer = calling(&rig.agent, method, path);
    (approver.next(&known, NOTICE).await.unwrap(), answer)
}

/// As [`held`], for a connection that the test can drop: the token, the
/// approval's id, the connection.
async fn held_raw(rig: &Rig, path: &str) -> (String, String, Http1) {
    let token = rig.agent.token("GET", path).await.unwrap();
    let mut connection = rig.connect().await;
    connection.send(&rig.signed("GET", path, &token)).await;
    let hash = sha256(token.as_bytes());
    let hold = rig
        .entry("the hold", |entry| {
            entry["kind"] == "hold" && entry["body"]["token"]["hash"] == hash.as_str()
        })
        .await;
    let id = hold["body"]["approval"].as_str().unwrap().to_owned();
    (token, id, connection)
}

async fn decide(approver: &Approver, id: &str, verdict: Verdict) {
    // An entry is in the journal's file before what it says is shown.
    eventually("the approval is shown", async || {
        approver
            .inbox()
            .await
            .unwrap()
            .iter()
            .any(|shown| shown == id)
    })
    .await;
    let answer = approver.decide(id, verdict).await.unwrap();
    assert!(answer.status < 400, "{}", answer.text());
}

fn expect(answer: &Answer, status: u16, reason: &str) {
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (status, reason),
        "{}",
        answer.text()
    );
}

/// Entries of a kind that are about the approval.
fn about<'a>(entries: &'a [Value], kind: &str, id: &str) -> Vec<&'a Value> {
    let is_it = |entry: &&Value| {
        let body = &entry["body"];
        entry["kind"] == kind
            && (body["approval"] == id || body["approval"]["id"] == id || body["id"] == id)
    };
    entries.iter().filter(is_it).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_yes_in_time_lets_it_go_on_and_a_no_ends_it() {
    let (rig, approver) = start(HOLD_S).await;
    let yes = path("yes");
    let before = rig.arrived();
    let (id, answer) = held(&rig, &approver, "GET", &yes).await;
    assert_eq!(rig.arrived(), before, "it did not wait");
    decide(&approver, &id, Verdict::Approve).await;
    assert_eq!(answer.await.unwrap().status, 200);
    assert_eq!(rig.arrived(), before + 1);
    let entries = rig.entries();
    for kind in ["hold", "approval", "allow"] {
        assert_eq!(about(&entries, kind, &id).len(), 1, "{kind}");
    }
    let who = &about(&entries, "approval", &id)[0]["body"]["by"];
    assert_eq!(who, "operator");
    // Once: the next one is held anew.
    let (other, answer) = held(&rig, &approver, "GET", &yes).await;
    assert_ne!(other, id);
    decide(&approver, &other, Verdict::Deny).await;
    expect(&answer.await.unwrap(), 403, "approval_denied");
    assert_eq!(rig.arrived(), before + 1);
    assert_eq!(about(&rig.entries(), "allow", &other).len(), 0);

    // The token of a refused request is gone with it.
    let (token, id, mut connection) = held_raw(&rig, &path("no")).await;
    decide(&approver, &id, Verdict::Deny).await;
    expect(&connection.answer().await.unwrap(), 403, "approval_denied");
    expect(&rig.present(&path("no"), &token).await, 401, "token_spent");
    assert_eq!(rig.arrived(), before + 1);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_yes_too_late_is_for_the_same_request_once() {
    let (rig, approver) = start(1).await;
    let late = path("late");
    let before = rig.arrived();
    let (id, answer) = held(&rig, &approver, "GET", &late).await;
    let answer = answer.await.unwrap();
    expect(&answer, 403, "approval_pending");
    let json = answer.json();
    assert_eq!(json["approval_id"], id.as_str());
    let url = format!("{}/approvals/{id}/status", rig.system.issuer());
    assert_eq!(json["status_url"], url.as_str());
    assert!(
        answer
            .header("retry-after")
            .unwrap()
            .parse::<u32>()
            .unwrap()
            > 0
    );
    assert_eq!(about(&rig.entries(), "hold", &id).len(), 1);

    // Asking again before anybody has answered joins the same approval.
    let again = rig.agent.call("GET", &late).await.unwrap();
    expect(&again, 403, "approval_pending");
    assert_eq!(again.json()["approval_id"], id.as_str());
    decide(&approver, &id, Verdict::Approve).await;

    // The yes is for this action alone.
    let others = [
        ("POST", late.clone()),
        ("GET", format!("{late}?all=1")),
        ("GET", path("late2")),
    ];
    for (method, other) in &others {
        let answer = rig.agent.call(method, other).await.unwrap();
        expect(&answer, 403, "approval_pending");
        assert_ne!(
            answer.json()["approval_id"],
            id.as_str(),
            "{method} {other}"
        );
    }
    assert_eq!(
        rig.arrived(),
        before,
        "something passed that nobody had approved"
    );

    // With another key it is the same agent's same action; and once is enough.
    let other_key = rig.agent.with_fresh_key().unwrap();
    assert_eq!(other_key.call("GET", &late).await.unwrap().status, 200);
    assert_eq!(rig.arrived(), before + 1);
    let answer = rig.agent.call("GET", &late).await.unwrap();
    expect(&answer, 403, "approval_pending");
    assert_ne!(answer.json()["approval_id"], id.as_str());
    assert_eq!(rig.arrived(), before + 1);
    assert_eq!(about(&rig.entries(), "allow", &id).len(), 1);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_requests_share_one_approval_and_one_execution() {
    let (rig, approver) = start(HOLD_S).await;
    let same = path("same");
    let before = rig.arrived();
    let known = approver.inbox().await.unwrap();
    let answers: Vec<_> = (0..5).map(|_| calling(&rig.agent, "GET", &same)).collect();
    let id = approver.next(&known, NOTICE).await.unwrap();
    eventually("all are held", async || {
        about(&rig.entries(), "hold", &id).len() == 5
    })
    .await;
    assert_eq!(
        approver.inbox().await.unwrap().len(),
        known.len() + 1,
        "more than one notice"
    );
    decide(&approver, &id, Verdict::Approve).await;
    let answers = join_all(answers).await;
    let statuses: Vec<u16> = answers
        .into_iter()
        .map(|answer| answer.unwrap().status)
        .collect();
    assert_eq!(
        statuses.iter().filter(|status| **status == 200).count(),
        1,
        "{statuses:?}"
    );
    assert_eq!(
        statuses.iter().filter(|status| **status == 403).count(),
        4,
        "{statuses:?}"
    );
    assert_eq!(rig.arrived(), before + 1);
    assert_eq!(about(&rig.entries(), "allow", &id).len(), 1);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_left_executes_nothing_and_leaves_the_yes_usable() {
    let (rig, approver) = start(20).await;
    let gone = path("gone");
    let before = rig.arrived();
    let (token, id, connection) = held_raw(&rig, &gone).await;
    drop(connection);
    let hash = sha256(token.as_bytes());
    let lapse = rig
        .entry("the lapse", |entry| {
            entry["kind"] == "lapse" && entry["body"]["token"]["hash"] == hash.as_str()
        })
        .await;
    assert_eq!(lapse["body"]["why"], "withdrawn");
    decide(&approver, &id, Verdict::Approve).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(
        rig.arrived(),
        before,
        "a request without a client was executed"
    );
    expect(&rig.present(&gone, &token).await, 401, "token_spent");
    // The client comes back, exchanges again and is let through.
    assert_eq!(rig.agent.call("GET", &gone).await.unwrap().status, 200);
    assert_eq!(rig.arrived(), before + 1);
    assert_eq!(rig.uses().get(&jti(&token)), None);

    // Leaving at the very moment of the yes: executed once or not at all, and
    // what was not executed is still approved.
    for round in 0..10 {
        let race = path(&format!("race{round}"));
        let before = rig.arrived();
        let (token, id, connection) = held_raw(&rig, &race).await;
        let leave = async {
            tokio::time::sleep(Duration::from_millis(round * 6)).await;
            drop(connection);
        };
        tokio::join!(decide(&approver, &id, Verdict::Approve), leave);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let executed = rig.arrived() - before;
        assert!(executed <= 1);
        let again = rig.agent.token("GET", &race).await.unwrap();
        let mut next = rig.connect().await;
        next.send(&rig.signed("GET", &race, &again)).await;
        let passed = next.answers_within(Duration::from_secs(1)).await;
        if passed {
            assert_eq!(next.answer().await.unwrap().status, 200);
        }
        // Used by the one or by the other, or by the first whose client left
        // between the commit and the answer: that is in the log.
        let consumed = about(&rig.entries(), "allow", &id).len();
        assert_eq!(consumed, 1, "a yes was used {consumed} times");
        assert!(executed == 0 || !passed, "one yes, two executions");
        assert!(rig.uses().get(&jti(&token)).is_none_or(|uses| *uses == 1));
        assert!(rig.arrived() - before <= 1, "one yes, two executions");
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowds_that_leave_and_limits_that_hold() {
    const CROWDS: usize = 6;
    let (rig, approver) = start(20).await;
    let crowd = path("crowd");
    let before = rig.arrived();
    let mut memory = Vec::new();
    for _ in 0..CROWDS {
        let mut connections = Vec::new();
        for _ in 0..HELD_PER_AGENT {
            let token = rig.agent.token("GET", &crowd).await.unwrap();
            let mut connection = rig.connect().await;
            connection.send(&rig.signed("GET", &crowd, &token)).await;
            connections.push(connection);
        }
        holding(&rig, HELD_PER_AGENT).await;
        // One more is one too many, and it costs nobody anything.
        let more = rig.agent.call("GET", &crowd).await.unwrap();
        expect(&more, 429, "limit_exceeded");
        rig.good_request().await;
        drop(connections);
        holding(&rig, 0).await;
        memory.push(rig.envoy_memory());
    }
    let known = approver.inbox().await.unwrap();
    assert_eq!(
        known.len(),
        1,
        "equal requests made {} approvals",
        known.len()
    );
    decide(&approver, &known[0], Verdict::Approve).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        rig.arrived(),
        before + u64::try_from(CROWDS).unwrap(),
        "one of the crowd passed"
    );
    // The first crowd may grow what is kept; the others must not.
    let growth = memory[CROWDS - 1].saturating_sub(memory[0]);
    assert!(growth < 16 * 1024 * 1024, "Envoy grew: {memory:?}");
    // The yes is still there for one who stays.
    assert_eq!(rig.agent.call("GET", &crowd).await.unwrap().status, 200);
    rig.finish().await;
}

/// Waits until so many requests are held, by the log.
async fn holding(rig: &Rig, wanted: usize) {
    eventually("requests are held or have lapsed", async || {
        let entries = rig.entries();
        let count = |kind: &str| entries.iter().filter(|entry| entry["kind"] == kind).count();
        count("hold") - count("lapse") == wanted
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_plane_dies_while_requests_are_held() {
    let (mut rig, approver) = start(20).await;
    let survives = path("survives");
    let before = rig.arrived();
    let (id, first) = held(&rig, &approver, "GET", &survives).await;
    let (token, _, mut second) = held_raw(&rig, &survives).await;
    rig.system.kill_control_plane();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(rig.arrived(), before);
    rig.system.start_control_plane().await.unwrap();
    // Nobody knows of their tokens any more.
    let first = first.await.unwrap();
    let second = second.answer().await.unwrap();
    for answer in [&first, &second] {
        assert!([401, 503].contains(&answer.status), "{}", answer.text());
        assert_ne!(answer.reason(), "token_spent");
    }
    rig.recovers().await;
    let passed = rig.arrived();
    expect(
        &rig.present(&survives, &token).await,
        401,
        "outcome_unknown",
    );
    // The approval was durable before anybody was told of it.
    let approver = rig.system.approver().await.unwrap();
    assert!(approver.inbox().await.unwrap().contains(&id));
    decide(&approver, &id, Verdict::Approve).await;
    assert_eq!(rig.arrived(), passed, "a held request went on by itself");
    assert_eq!(rig.agent.call("GET", &survives).await.unwrap().status, 200);
    assert_eq!(rig.arrived(), passed + 1);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_what_is_held_and_its_yes_stays_to_be_given() {
    let (mut rig, approver) = start(25).await;
    let path = path("stopped");
    let (id, answer) = held(&rig, &approver, "GET", &path).await;
    rig.system.stop_control_plane().await;
    let answer = answer.await.unwrap();
    expect(&answer, 403, "approval_pending");
    assert_eq!(answer.json()["approval_id"], id.as_str());
    rig.system.start_control_plane().await.unwrap();
    rig.recovers().await;
    let lapses = rig.entries_of("lapse");
    assert_eq!(lapses.len(), 1, "{lapses:?}");
    assert_eq!(lapses[0]["body"]["why"], "shutdown");
    let approver = rig.system.approver().await.unwrap();
    decide(&approver, &id, Verdict::Approve).await;
    let answer = rig.agent.call("GET", &path).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    rig.finish().await;
}
