//! Sessions and what is fetched ahead by them: `writ token --session`, and `writ sidecar
//! --prefetch` through a real Envoy.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use wasm_test::system::System;
use wasm_test::upstream::{KEYS, PAYROLL, REPORT};

use crate::plane::{entries, run, text};
use crate::sidecar::{Side, options};

/// The entries of capabilities, by `jti`.
fn issued(system: &System) -> BTreeMap<String, Value> {
    let all = entries(&system.audit_dir()).into_iter();
    let issues = all.filter(|it| it["kind"] == "issue" && it["body"]["token"]["grant"].is_null());
    let named = |it: Value| {
        let jti = it["body"]["token"]["jti"].as_str().unwrap().to_owned();
        (jti, it)
    };
    issues.map(named).collect()
}

/// The token that the upstream was last sent, by its entry.
fn last(system: &System) -> Value {
    let seen = system.upstream().unwrap().records().unwrap().pop().unwrap();
    let jti = seen.header("x-writ-token-id").unwrap().to_owned();
    issued(system).remove(&jti).unwrap()
}

/// Waits until so many capabilities were issued.
async fn until_issued(system: &System, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while issued(system).len() < count {
        assert!(Instant::now() < deadline, "{:?}", issued(system).len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn what_is_read_again_and_again_is_fetched_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let mut system = System::for_test(options(dir.path())).await.unwrap();
    let side = Side::start(&system, &["--prefetch", "2"]).await;
    let by_session = |entry: &Value| entry["body"]["under"].is_string();

    // Once is not again: nothing is fetched for it.
    assert_eq!(side.get(REPORT).await.status(), 200);
    assert!(!by_session(&last(&system)));
    // Twice is, and the third has its token already.
    assert_eq!(side.get(REPORT).await.status(), 200);
    assert!(!by_session(&last(&system)));
    until_issued(&system, 3).await;
    for after in 4..7 {
        assert_eq!(side.get(REPORT).await.status(), 200);
        assert!(by_session(&last(&system)), "{after}");
        until_issued(&system, after).await;
    }
    // One that nobody used waits, and no more than one.
    assert_eq!(issued(&system).len(), 6);
    let spent = entries(&system.audit_dir());
    let spent = spent.iter().filter(|it| it["kind"] == "allow").count();
    assert_eq!(spent, 5);

    // What writes is never fetched ahead, nor what policy refuses.
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for _ in 0..3 {
        let post = client.post(side.url(KEYS)).body("{}");
        let _answer = post.send().await.unwrap();
        let refused = side.get("/elsewhere").await;
        assert_eq!(refused.status(), 403);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let ahead = issued(&system);
    let ahead = ahead.values().filter(|it| by_session(it));
    assert!(
        ahead
            .clone()
            .all(|it| it["body"]["token"]["action"]["method"] == "GET")
    );
    assert_eq!(ahead.count(), 4);

    // A start forgets what was issued: the agent gets its answer all the same.
    system.restart_control_plane().await.unwrap();
    let other = system.agent().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while other.call("GET", REPORT).await.map_or(0, |it| it.status) != 200 {
        assert!(Instant::now() < deadline, "it does not come back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = system.upstream().unwrap().arrived();
    assert_eq!(side.get(REPORT).await.status(), 200, "at once");
    assert_eq!(system.upstream().unwrap().arrived(), before + 1);
    assert!(!by_session(&last(&system)), "the one that waited was over");

    // What a person has to allow is held as ever.
    for _ in 0..3 {
        let held = side.get(PAYROLL);
        let held = tokio::time::timeout(Duration::from_millis(1500), held);
        assert!(held.await.is_err(), "it waits");
    }
    let all = entries(&system.audit_dir());
    assert!(
        all.iter().any(|it| it["kind"] == "hold"),
        "a person is asked"
    );
    system.stop().await;
}

#[tokio::test]
async fn writ_token_acts_for_whom_it_is_told_and_gets_sessions() {
    let dir = tempfile::tempdir().unwrap();
    let system = System::for_test(options(dir.path())).await.unwrap();
    let url = format!("{}{REPORT}", system.proxy_url());
    let token = |args: &[&str]| {
        let mut command = system.writ();
        command.env_remove("XDG_STATE_HOME").arg("token").args(args);
        command
    };
    let got = run(token(&["--session", "--json"])).await;
    let reply: Value = serde_json::from_slice(&got.stdout).unwrap();
    let session = reply["access_token"].as_str().unwrap();
    assert!(session.starts_with("wrs_"), "{reply}");
    assert_eq!(reply["token_type"], "DPoP");
    assert!(
        reply["proof"].is_null(),
        "there is no request to show it to"
    );

    let file = dir.path().join("shown");
    let path = file.to_str().unwrap();
    // The session is no user, and the issuer says so.
    std::fs::write(&file, session).unwrap();
    for args in [
        ["--user-token", path, url.as_str()],
        ["--delegation", path, url.as_str()],
    ] {
        let refused = run(token(&args)).await;
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = text(&refused.stderr);
        assert!(said.contains("invalid_request"), "{said}");
    }
    for (content, why) in [
        ("", "has to hold one token"),
        ("a b", "has to hold one token"),
    ] {
        std::fs::write(&file, content).unwrap();
        let refused = run(token(&["--user-token", path, &url])).await;
        assert!(text(&refused.stderr).contains(why), "{refused:?}");
    }
    // A delegation for another agent, which is of no use to who gave it.
    let under = format!("{}/files/*", system.proxy_url());
    let child = "spiffe://writ.example/agent/child";
    let mut given = vec!["--delegate", child, "--uses", "2", "--lifetime", "60"];
    given.extend(["--json", under.as_str()]);
    let got = run(token(&given)).await;
    let reply: Value = serde_json::from_slice(&got.stdout).unwrap_or_else(|_| panic!("{got:?}"));
    let element = &reply["authorization_details"][0];
    assert_eq!(
        (&element["delegate"], &element["uses"], &element["depth"]),
        (&child.into(), &2.into(), &0.into()),
        "{reply}"
    );
    assert_eq!(
        (&reply["expires_in"], &reply["proof"]),
        (&60.into(), &Value::Null)
    );
    std::fs::write(&file, reply["access_token"].as_str().unwrap()).unwrap();
    let own = run(token(&["--delegation", path, url.as_str()])).await;
    assert_eq!(own.status.code(), Some(1), "{own:?}");
    assert!(text(&own.stderr).contains("token_audience"), "{own:?}");
    for both in [
        &["--session", url.as_str()][..],
        &["--session", "--delegate", child],
        &["--delegate", child],
        &["--uses", "2", url.as_str()],
    ] {
        let both = run(token(both)).await;
        assert_eq!(both.status.code(), Some(2), "{both:?}");
    }
    system.stop().await;
}
