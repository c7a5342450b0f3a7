//! Rights that are taken away: at the exchange, at the edge, while a request is
//! held, and after it was undone.

use std::io::{Seek as _, Write as _};
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::Value;
use wasm_test::client::Agent;
use wasm_test::system::{Options, System};
use wasm_test::upstream::PAYROLL;

use crate::plane::{run, text};

const FREE: &str = "/files/report.txt";

async fn writ(system: &System, args: &[&str]) -> (Option<i32>, String) {
    let mut command = system.writ();
    command.env_remove("XDG_STATE_HOME").args(args);
    let Output {
        status,
        stdout,
        stderr,
    } = run(command).await;
    (status.code(), text(&stdout) + &text(&stderr))
}

/// It is done, and says this.
pub async fn done(system: &System, args: &[&str], says: &str) {
    let (code, said) = writ(system, args).await;
    assert_eq!(code, Some(0), "{args:?}: {said}");
    assert!(said.contains(says), "{args:?}: {said}");
}

/// It is refused, and says this.
async fn refused(system: &System, args: &[&str], says: &str) {
    let (code, said) = writ(system, args).await;
    assert_eq!(code, Some(1), "{args:?}: {said}");
    assert!(said.contains(says), "{args:?}: {said}");
}

async fn signed_in() -> (System, Agent, String) {
    let system = System::for_test(Options {
        hold_s: 20,
        token_lifetime_s: 120,
        ..Options::default()
    })
    .await
    .unwrap();
    let agent = system.agent().await.unwrap();
    sign_in(&system).await;
    let id = agents(&system).await[0]["agent"]
        .as_str()
        .unwrap()
        .to_owned();
    (system, agent, id)
}

/// Signs whoever runs commands in.
pub async fn sign_in(system: &System) {
    let mut file = tempfile::tempfile().unwrap();
    writeln!(file, "{}", system.serve_ready().approver_login).unwrap();
    file.rewind().unwrap();
    let mut command = system.writ();
    command
        .env_remove("XDG_STATE_HOME")
        .arg("login")
        .stdin(file);
    assert!(run(command).await.status.success());
}

async fn agents(system: &System) -> Vec<Value> {
    let (code, said) = writ(system, &["agents", "list", "--json"]).await;
    assert_eq!(code, Some(0), "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    said["agents"].as_array().unwrap().clone()
}

/// A new exchange is refused for this.
async fn no_token(agent: &Agent, reason: &str) {
    let answer = agent.exchange("GET", FREE).await.unwrap();
    assert_eq!(answer.reason(), reason, "{}", answer.text());
    assert_eq!(answer.json()["error"], "access_denied");
}

/// The token does not pass, for this.
async fn no_pass(system: &System, agent: &Agent, token: &str, reason: &str) {
    let before = system.upstream().unwrap().arrived();
    let answer = agent.present("GET", FREE, token).await.unwrap();
    assert_eq!(answer.reason(), reason, "{}", answer.text());
    assert_eq!(system.upstream().unwrap().arrived(), before);
}

async fn passes(agent: &Agent) {
    let answer = agent.call("GET", FREE).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn what_is_stopped_gets_nothing_and_what_it_had_is_void_for_good() {
    let (system, agent, id) = signed_in().await;
    let targets: [&[&str]; 3] = [
        &["--agent", &id],
        &["--owner", "demo"],
        &["--key", &agent.key().thumbprint()],
    ];
    let owner = agents(&system).await[0]["owner"]
        .as_str()
        .unwrap()
        .to_owned();
    for target in targets {
        let target: Vec<&str> = target
            .iter()
            .map(|it| if *it == "demo" { &*owner } else { it })
            .collect();
        let token = agent.token("GET", FREE).await.unwrap();
        let stop = [&["revoke", "--why", "a test"], &*target].concat();
        done(&system, &stop, "stopped").await;
        let named = format!("{} {}", target[0].trim_start_matches("--"), target[1]);
        done(&system, &["stops"], &named).await;
        no_pass(&system, &agent, &token, "token_revoked").await;
        no_token(&agent, "token_revoked").await;
        let lift = [&["revoke", "--lift"], &*target].concat();
        done(&system, &lift, "may be given again").await;
        no_pass(&system, &agent, &token, "token_revoked").await;
        passes(&agent).await;
    }
    refused(
        &system,
        &["revoke", "--lift", "--agent", &id],
        "nothing to lift",
    )
    .await;
    // A stop that would stop nothing is none.
    for [kind, named] in [
        ["--owner", "who?"],
        ["--key", "abc"],
        ["--agent", "spiffe://Writ.example/x"],
    ] {
        refused(&system, &["revoke", kind, named], "stops nothing").await;
    }
    // One token, and no other.
    let (gone, other) = (
        agent.token("GET", FREE).await.unwrap(),
        agent.token("GET", FREE).await.unwrap(),
    );
    let hash = {
        use sha2::{Digest as _, Sha256};
        hex::encode(Sha256::digest(gone.as_bytes()))
    };
    done(&system, &["revoke", "--token", &hash], "stopped").await;
    no_pass(&system, &agent, &gone, "token_revoked").await;
    assert_eq!(
        agent.present("GET", FREE, &other).await.unwrap().status,
        200
    );
    system.stop().await;
}

#[tokio::test]
async fn a_held_request_of_what_is_stopped_ends_within_a_second() {
    let (system, agent, id) = signed_in().await;
    // No approval knows of a key: what is held asks itself.
    let jkt = agent.key().thumbprint();
    for (target, reason) in [
        (vec!["revoke", "--agent", &id], "token_revoked"),
        (
            vec!["agents", "set", &id, "--state", "suspended"],
            "agent_inactive",
        ),
        // Last: it ends with a no, after which nobody is asked the same.
        (vec!["revoke", "--key", &jkt], "token_revoked"),
    ] {
        ends_held(&system, &agent, &target, reason).await;
    }
    system.stop().await;
}

async fn ends_held(system: &System, agent: &Agent, target: &[&str], reason: &str) {
    let calling = agent.clone();
    let waiting = tokio::spawn(async move { calling.call("GET", PAYROLL).await.unwrap() });
    let approval = loop {
        let (_, said) = writ(system, &["approvals", "list", "--json"]).await;
        let said: Value = serde_json::from_str(&said).unwrap();
        let mut all = said["approvals"].as_array().unwrap().iter();
        if let Some(found) = all.find(|it| it["status"] == "pending") {
            break found["id"].as_str().unwrap().to_owned();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    done(system, target, "").await;
    let began = Instant::now();
    let answer = waiting.await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(answer.reason(), reason, "{target:?}: {}", answer.text());
    if target[1] == "--key" {
        // Whoever asks with another key may still have the yes.
        done(
            system,
            &["revoke", "--lift", "--key", target[2]],
            "given again",
        )
        .await;
        done(system, &["approvals", "deny", &approval], "").await;
        return;
    }
    let (code, said) = writ(system, &["approvals", "approve", &approval]).await;
    assert_eq!(code, Some(1), "{said}");
    let undo: &[&str] = match target {
        ["revoke", ..] => &["revoke", "--lift", "--agent", target[2]],
        _ => &["agents", "set", target[2], "--state", "active"],
    };
    done(system, undo, "").await;
    let began = Instant::now();
    loop {
        let (_, said) = writ(system, &["approvals", "list", "--json"]).await;
        let said: Value = serde_json::from_str(&said).unwrap();
        let mut all = said["approvals"].as_array().unwrap().iter();
        let status = all.find(|it| it["id"] == approval.as_str()).unwrap()["status"].clone();
        if status == "cancelled" {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn everything_stops_and_one_person_does_not_undo_it() {
    let (mut system, agent, _) = signed_in().await;
    let token = agent.token("GET", FREE).await.unwrap();
    done(&system, &["stops"], "Nothing is stopped.").await;
    done(&system, &["revoke", "--everything"], "everything: stopped").await;
    for (command, says) in [
        ("stops", "everything  since "),
        ("status", "everything is stopped, by operator"),
    ] {
        done(&system, &[command], says).await;
    }
    done(&system, &["agents", "list"], "STOPPED: everything").await;
    no_pass(&system, &agent, &token, "token_revoked").await;
    for _ in 0..2 {
        done(
            &system,
            &["revoke", "--lift", "--everything"],
            "second person",
        )
        .await;
        no_token(&agent, "token_revoked").await;
    }
    system.restart_control_plane().await.unwrap();
    no_token(&system.agent().await.unwrap(), "token_revoked").await;
    system.stop().await;
}

#[tokio::test]
async fn an_agent_goes_from_state_to_state_as_it_may() {
    let (system, agent, id) = signed_in().await;
    passes(&agent).await;
    let token = agent.token("GET", FREE).await.unwrap();
    let unshown = agent.token("GET", FREE).await.unwrap();
    let set = |state| ["agents", "set", &id, "--state", state];
    done(&system, &set("suspended"), "is suspended").await;
    no_token(&agent, "agent_inactive").await;
    let answer = agent.present("GET", FREE, &token).await.unwrap();
    assert_eq!(answer.reason(), "agent_inactive", "{}", answer.text());
    done(&system, &set("active"), "is active").await;
    no_pass(&system, &agent, &unshown, "token_revoked").await;
    passes(&agent).await;
    refused(&system, &set("discovered"), "does not become").await;
    done(&system, &set("decommissioned"), "is decommissioned").await;
    no_token(&agent, "agent_inactive").await;
    refused(&system, &set("active"), "does not become").await;
    let other = "spiffe://writ.test/agent/new";
    refused(
        &system,
        &["agents", "set", other, "--state", "active"],
        "so that it needs an owner too",
    )
    .await;
    let nobody = ["agents", "set", other, "--owner", "nobody"];
    refused(&system, &nobody, "there is no such owner: there are").await;
    let more = [
        "agents",
        "set",
        other,
        "--owner",
        "platform",
        "--purpose",
        "a try",
    ];
    done(&system, &more, "is discovered, owner platform").await;
    system.stop().await;
}
