//! The registry: its pages in a real browser, and when agents were last seen.

use std::io::{BufRead as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use wasm_test::client::Answer;
use wasm_test::system::{AGENT, Options, System};

use crate::plane::{Plane, Prepared, run, text};
use crate::programs::{chromium, clients};
use crate::rights::{done, sign_in};
use crate::visitor::{answer, http};

const FREE: &str = "/files/report.txt";
const NASTY: &str = "<img src=x onerror=alert(1)>";

/// A command line's session.
async fn session(system: &System) -> String {
    let (_, secret) = system.serve_ready().approver_login.split_once('#').unwrap();
    let request = http().post(format!("{}/api/v1/session", system.issuer()));
    let opened = answer(request.json(&json!({ "secret": secret }))).await;
    format!("Session {}", opened.json()["session"].as_str().unwrap())
}

async fn change(system: &System, session: &str, body: Value) -> Answer {
    let request = http().put(format!("{}/api/v1/agents", system.issuer()));
    answer(request.header("authorization", session).json(&body)).await
}

#[tokio::test]
async fn a_person_finds_an_agent_suspends_it_and_lets_it_act_again() {
    let (Some(chromium), Some(clients)) = (chromium(), clients()) else {
        return;
    };
    let system = System::for_test(Options::default()).await.unwrap();
    let agent = system.agent().await.unwrap();
    let session = session(&system).await;
    let described = json!({"agent": AGENT, "purpose": NASTY, "environment": "\u{202e}lab"});
    assert_eq!(change(&system, &session, described).await.status, 200);
    let request = http().post(format!("{}/api/v1/login-links", system.issuer()));
    let link = answer(request.header("authorization", &session).json(&json!({}))).await;
    assert_eq!(agent.call("GET", FREE).await.unwrap().status, 200);

    let given = json!({
        "chromium": chromium, "login": link.json()["url"], "ui": system.issuer(), "agent": AGENT,
        "sandbox": !rustix::process::getuid().is_root(),
        "shots": std::env::var("WRIT_SHOTS").ok(),
    });
    let mut command = clients.node("agents.mjs");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{given}").unwrap();
    let (send, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let stdout = child.stdout.take().unwrap();
    let reading = std::thread::spawn(move || {
        let lines = std::io::BufReader::new(stdout).lines();
        for line in lines.map_while(Result::ok) {
            drop(send.send(line));
        }
    });
    let mut said = Vec::new();
    while let Some(line) = lines.recv().await {
        if line == "suspended" {
            // What the page did is felt as what the command does.
            let refused = agent.exchange("GET", FREE).await.unwrap();
            assert_eq!(refused.reason(), "agent_inactive", "{}", refused.text());
            writeln!(stdin, "on").unwrap();
        }
        said.push(line);
    }
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap())
        .await
        .unwrap();
    reading.join().unwrap();
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "the browser's script failed:\n{wrong}"
    );
    assert_eq!(said, ["suspended", "done"]);
    // There is no way back, whoever asks.
    let back = change(
        &system,
        &session,
        json!({"agent": AGENT, "state": "active"}),
    )
    .await;
    assert_eq!((back.status, back.reason()), (409, "bad_transition".into()));
    system.stop().await;
}

/// When an agent was last seen, as `writ agents show` says it.
async fn last_seen(plane: &Plane) -> Option<String> {
    let mut command = plane.writ();
    command.args(["agents", "show", AGENT, "--json"]);
    let output = run(command).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    shown["last_seen_at"].as_str().map(str::to_owned)
}

/// Now, written alike: the later of two is the greater text.
fn now() -> String {
    let form = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
    );
    time::OffsetDateTime::now_utc().format(form).unwrap()
}

#[tokio::test]
async fn an_agent_is_seen_when_it_authenticates_whatever_comes_of_it() {
    let plane = Prepared::new().start().await;
    assert_eq!(last_seen(&plane).await, None);
    let agent = plane.agent().await;
    let begun = now();
    // Refused, and by name: the policy knows no such path.
    let refused = agent.exchange("GET", "/elsewhere").await.unwrap();
    assert_eq!(refused.reason(), "policy_denied", "{}", refused.text());
    let seen = last_seen(&plane).await.unwrap();
    assert!(seen >= begun && seen <= now(), "{begun} {seen}");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(agent.exchange("GET", FREE).await.unwrap().status, 200);
    let later = last_seen(&plane).await.unwrap();
    assert!(later > seen, "{seen} {later}");
    // A proof that is none authenticates nobody.
    let body = answer(http().post(format!("{}/oauth2/token", plane.issuer()))).await;
    assert!(body.status >= 400);
    assert_eq!(last_seen(&plane).await, Some(later.clone()));

    // It is known after a restart, by when listings are open.
    let plane = plane.restart().await;
    let mut known = last_seen(&plane).await;
    for _ in 0..100 {
        if known.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        known = last_seen(&plane).await;
    }
    assert_eq!(known, Some(later));
    let mut command = plane.writ();
    command.args(["agents", "list"]);
    let listed = text(&run(command).await.stdout);
    assert!(listed.contains("  seen 20"), "{listed}");
}

#[tokio::test]
async fn a_decision_at_the_edge_is_a_sight_too() {
    let system = System::for_test(Options::default()).await.unwrap();
    let agent = system.agent().await.unwrap();
    sign_in(&system).await;
    let token = agent.token("GET", FREE).await.unwrap();
    let mut last = Vec::new();
    for _ in 0..2 {
        let mut command = system.writ();
        command.args(["agents", "show", AGENT, "--json"]);
        let shown: Value = serde_json::from_slice(&run(command).await.stdout).unwrap();
        last.push(shown["last_seen_at"].as_str().unwrap().to_owned());
        tokio::time::sleep(Duration::from_millis(20)).await;
        let passed = agent.present("GET", FREE, &token).await.unwrap();
        assert!([200, 401].contains(&passed.status), "{}", passed.text());
    }
    assert!(last[1] > last[0], "{last:?}");
    done(&system, &["agents", "show", AGENT], last[1].split_at(10).0).await;
    system.stop().await;
}
