//! A registration that ends by itself: what its agent has under way, holds, asks for and
//! had before, and what a later end gives back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wasm_test::client::{Agent, now_s};
use wasm_test::stage::eventually;
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::{PAYROLL, REPORT};

use crate::plane::entries;
use crate::rights::{done, sign_in};

/// Milliseconds after that second; before it, none.
fn since_ms(second: u64) -> Option<u128> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Some(now.checked_sub(Duration::from_secs(second))?.as_millis())
}

/// An answer that comes in ten pieces a second, and does not end for minutes.
async fn stream(agent: &Agent) -> reqwest::Response {
    let path = format!("{REPORT}?drip=6000");
    let token = agent.token("GET", &path).await.unwrap();
    let url = agent.url(&path);
    let request = reqwest::Client::new()
        .get(&url)
        .header("authorization", format!("DPoP {token}"))
        .header("dpop", agent.key().proof("GET", &url, Some(&token)));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer
}

/// Sets when the registration ends.
async fn ends(system: &System, at: u64) {
    let at = at.to_string();
    let set = ["agents", "set", AGENT, "--expires", &at];
    done(system, &set, "is active").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_registration_that_ends_had_under_way_ends_with_it_and_stays_void() {
    let system = System::for_test(Options {
        hold_s: 20,
        token_lifetime_s: 120,
        ..Options::default()
    })
    .await
    .unwrap();
    system.settled().await.unwrap();
    let agent = system.agent().await.unwrap();
    sign_in(&system).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(agent.token("GET", REPORT).await.unwrap());
    }
    let mut open = stream(&agent).await;
    let calling = agent.clone();
    let held = tokio::spawn(async move {
        let answer = calling.call("GET", PAYROLL).await.unwrap();
        (answer, SystemTime::now())
    });
    eventually("the request is held", async || {
        let all = entries(&system.audit_dir());
        all.iter().any(|entry| entry["kind"] == "hold")
    })
    .await
    .unwrap();

    let end = now_s() + 3;
    ends(&system, end).await;
    let passes = agent.call("GET", REPORT).await.unwrap();
    assert_eq!(passes.status, 200, "until then: {}", passes.text());
    let mut last = Duration::ZERO;
    while let Ok(Some(_)) = open.chunk().await {
        last = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(last.as_secs() < end + 5, "it goes on after its end");
    }
    let late = since_ms(end).expect("it ended before its time");
    assert!(late < 1_000, "it went on for {late} ms");
    assert!(last.as_secs() + 1 >= end, "its last piece came too early");
    let (answer, at) = held.await.unwrap();
    assert_eq!(answer.reason(), "agent_inactive", "{}", answer.text());
    let at = at.duration_since(UNIX_EPOCH).unwrap();
    let late = at.checked_sub(Duration::from_secs(end));
    let late = late.expect("the held one ended before its time");
    assert!(late < Duration::from_secs(1), "{late:?}");
    eventually("the log says why", async || {
        let all = entries(&system.audit_dir());
        let why = "writ: ended, agent_inactive";
        all.iter().any(|entry| entry["body"]["details"] == why)
    })
    .await
    .unwrap();

    let before = system.upstream().unwrap().arrived();
    let answer = agent.exchange("GET", REPORT).await.unwrap();
    let said = (answer.oauth_error(), answer.reason());
    let inactive = ("access_denied".to_owned(), "agent_inactive".to_owned());
    assert_eq!(said, inactive, "{}", answer.text());
    let answer = agent.present("GET", REPORT, &kept[0]).await.unwrap();
    assert_eq!(answer.reason(), "agent_inactive", "{}", answer.text());
    // Who is registered for longer may act again, with nothing of what was before.
    ends(&system, 0).await;
    let answer = agent.present("GET", REPORT, &kept[1]).await.unwrap();
    assert_eq!(answer.reason(), "token_revoked", "{}", answer.text());
    assert_eq!(system.upstream().unwrap().arrived(), before);
    let passes = agent.call("GET", REPORT).await.unwrap();
    assert_eq!(passes.status, 200, "{}", passes.text());
    system.stop().await;
}
