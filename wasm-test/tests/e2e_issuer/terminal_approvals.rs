//! Approving from a terminal, which takes a human's session.

use std::io::{Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use wasm_test::system::{Options, System};
use wasm_test::upstream::PAYROLL;

use crate::plane::{run, text};

fn writ(system: &System, args: &[&str]) -> Command {
    let mut command = system.writ();
    command.env_remove("XDG_STATE_HOME").args(args);
    command
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// `writ login`, told the secret on standard input: an argument would show in
/// every process list.
async fn login(system: &System, secret: &str) -> Output {
    let mut file = tempfile::tempfile().unwrap();
    writeln!(file, "{secret}").unwrap();
    file.rewind().unwrap();
    let mut command = writ(system, &["login"]);
    command.stdin(file);
    run(command).await
}

/// The first approval that is pending, as soon as there is one.
async fn pending(system: &System) -> Value {
    for _ in 0..100 {
        let output = run(writ(system, &["approvals", "list", "--json"])).await;
        let body: Value = serde_json::from_slice(&output.stdout).unwrap();
        let all = body["approvals"].as_array().unwrap();
        if let Some(found) = all.iter().find(|one| one["status"] == "pending") {
            return found.clone();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing is pending");
}

#[tokio::test]
async fn approving_takes_a_login_and_goes_through() {
    let system = System::for_test(Options {
        hold_s: 20,
        ..Options::default()
    })
    .await
    .unwrap();
    let agent = system.agent().await.unwrap();
    let calling = agent.clone();
    let waiting = tokio::spawn(async move { calling.call("GET", PAYROLL).await.unwrap() });
    let held = pending(&system).await;
    let (id, digest) = (
        held["id"].as_str().unwrap(),
        held["digest"].as_str().unwrap(),
    );
    // What the page shows is here too.
    for (more, there) in [
        (&[][..], true),
        (&["--state", "pending"], true),
        (&["--state", "denied"], false),
    ] {
        let list = [&["approvals", "list"], more].concat();
        let (code, out, err) = said(&run(writ(&system, &list)).await);
        assert_eq!(code, Some(0), "{err}");
        for shown in ["rule ", "reason ", "approvers ", "until ", digest, PAYROLL] {
            assert_eq!(out.contains(shown), there, "{shown}: {out}");
        }
        assert_eq!(out.contains("Nothing is denied."), !there, "{out}");
    }

    let (code, _, err) = said(&run(writ(&system, &["approvals", "approve", id])).await);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("writ login"), "{err}");
    let (code, _, err) = said(&login(&system, "wrong").await);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("not valid"), "{err}");

    let link = system.serve_ready().approver_login.clone();
    let (code, _, err) = said(&login(&system, &link).await);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("operator"), "{err}");
    let (code, _, _) = said(&login(&system, &link).await);
    assert_eq!(code, Some(2), "a link works once");
    let (code, out, err) = said(&run(writ(&system, &["login-link"])).await);
    assert_eq!(code, Some(0), "{err}");
    let own = format!("{}/login#", system.issuer());
    assert!(
        out.starts_with(&own) && err.contains("yourself"),
        "{out}{err}"
    );
    let state = system.state_dir().join(".local/state/writ");
    for entry in std::fs::read_dir(&state).unwrap().flatten() {
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", entry.path().display());
    }

    let other = digest.chars().rev().collect::<String>();
    let (code, _, err) = said(
        &run(writ(
            &system,
            &["approvals", "approve", "--digest", &other, id],
        ))
        .await,
    );
    assert_eq!(code, Some(1), "{err}");
    assert!(!waiting.is_finished(), "the wrong digest decides nothing");
    let (code, _, err) = said(&run(writ(&system, &["approvals", "approve", "../session"])).await);
    assert_eq!(code, Some(2), "{err}");

    let (code, out, err) = said(
        &run(writ(
            &system,
            &["approvals", "approve", "--digest", digest, id],
        ))
        .await,
    );
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.contains("approved") || out.contains("consumed"),
        "{out}"
    );
    let answer = waiting.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());

    // The other way, without a digest: what is shown is what is decided.
    let waiting = tokio::spawn(async move { agent.call("GET", PAYROLL).await.unwrap() });
    let held = pending(&system).await;
    let id = held["id"].as_str().unwrap();
    let (code, out, err) = said(&run(writ(&system, &["approvals", "deny", "--json", id])).await);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains(PAYROLL), "{err}");
    let decided: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&decided["status"], &decided["decided_by"]),
        (&"denied".into(), &"operator".into())
    );
    assert_eq!(waiting.await.unwrap().summary(), "403 approval_denied");
    assert_eq!(system.upstream().unwrap().arrived(), 1);

    let (code, _, err) = said(&run(writ(&system, &["login", "--logout"])).await);
    assert_eq!(code, Some(0), "{err}");
    let (code, _, err) = said(&run(writ(&system, &["login", "--logout"])).await);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("not signed in"), "{err}");
    let (code, _, err) = said(&run(writ(&system, &["approvals", "deny", id])).await);
    assert_eq!(code, Some(2), "{err}");
    system.stop().await;
}
