//! `writ call` and `writ token`, as an agent's developer uses them.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use wasm_test::client::{Approver, Call, Verdict};
use wasm_test::ports;
use wasm_test::system::{Options, System};
use wasm_test::upstream::{KEYS, PAYROLL, REPORT};

use crate::cutter::Cutter;
use crate::evidence::decoded;
use crate::plane::{entries, run, text};

/// `writ ARGS… URL`, for a path at the proxy.
fn writ(system: &System, args: &[&str], path: &str) -> Command {
    let mut command = system.writ();
    command.env_remove("XDG_STATE_HOME").args(args);
    command.arg(format!("{}{path}", system.proxy_url()));
    command
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|problem| panic!("{problem}: {output:?}"))
}

#[tokio::test]
async fn call_prints_the_answer_or_a_clear_reason() {
    let system = System::for_test(Options {
        hold_s: 1,
        ..Options::default()
    })
    .await
    .unwrap();

    let (code, out, err) = said(&run(writ(&system, &["call"], REPORT)).await);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.starts_with("Quarterly report"), "{out}");

    let shown = run(writ(&system, &["call", "--json"], REPORT)).await;
    let body = json(&shown);
    assert_eq!(shown.status.code(), Some(0));
    assert_eq!(
        (&body["status"], &body["reason"]),
        (&200.into(), &Value::Null)
    );
    assert!(body["body"].as_str().unwrap().contains("Quarterly report"));

    let before = system.upstream().unwrap().arrived();
    let (code, out, err) = said(&run(writ(&system, &["call"], KEYS)).await);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(
        err.contains("policy_denied") && err.contains("access_denied"),
        "{err}"
    );
    let named = err
        .lines()
        .find_map(|line| line.trim().strip_prefix("request: "));
    let denied = run(writ(&system, &["call", "--json"], KEYS)).await;
    assert_eq!(denied.status.code(), Some(1));
    let body = json(&denied);
    assert_eq!(body["reason"], "policy_denied");
    // Both can be found in the log.
    let entries = entries(&system.audit_dir());
    for id in [named.unwrap(), body["request_id"].as_str().unwrap()] {
        let of_it = |entry: &&Value| entry["body"]["request_id"] == id;
        let found: Vec<_> = entries.iter().filter(of_it).collect();
        assert_eq!(found.len(), 1, "{id}");
        assert!(id.starts_with("req_") && found[0]["kind"] == "exchange_refused");
    }
    // A body makes it a POST, which the starter policy allows nobody.
    let (code, _, err) = said(&run(writ(&system, &["call", "-d", "{}"], REPORT)).await);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("policy_denied"), "{err}");
    assert_eq!(
        system.upstream().unwrap().arrived(),
        before,
        "nothing that was refused got through"
    );

    let (code, out, err) = said(&run(writ(&system, &["call"], "/files/nowhere.txt")).await);
    assert_eq!(code, Some(1), "an upstream's own 404 is no success");
    assert!(
        out.contains("no such file") && err.contains("404"),
        "{out}{err}"
    );

    let (code, _, err) = said(&run(writ(&system, &["call", "--no-wait"], PAYROLL)).await);
    assert_eq!(code, Some(1));
    assert!(
        err.contains("approval_pending") && err.contains("apr_"),
        "{err}"
    );

    let held = run(writ(&system, &["call", "--no-wait", "--json"], PAYROLL)).await;
    let body = json(&held);
    assert_eq!(
        (held.status.code(), &body["reason"]),
        (Some(1), &"approval_pending".into())
    );
    assert!(
        body["refusal"]["status_url"]
            .as_str()
            .unwrap()
            .starts_with(&system.issuer())
    );
    system.stop().await;
}

#[tokio::test]
async fn call_cannot_be_talked_into_guessing() {
    let system = System::for_test(Options::default()).await.unwrap();
    // No issuer, no proxy, no Workload API, no URL: not sent, exit 2, and why.
    let nowhere = format!("http://127.0.0.1:{}", ports::one().unwrap());
    let mut command = writ(&system, &["call", "--issuer", &nowhere], REPORT);
    command.stdin(Stdio::null());
    let (code, _, err) = said(&run(command).await);
    assert_eq!(code, Some(2), "{err}");
    assert!(
        err.contains("can't be reached") && err.contains(&nowhere),
        "{err}"
    );

    let (code, _, err) = said(
        &run(writ(
            &system,
            &["call", "--workload-api", "/nowhere.sock"],
            REPORT,
        ))
        .await,
    );
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("/nowhere.sock"), "{err}");

    let mut command = system.writ();
    command.args(["call", "http://127.0.0.1:1/files/report.txt"]);
    let (code, _, err) = said(&run(command).await);
    assert_eq!(
        code,
        Some(1),
        "another origin is refused at the exchange: {err}"
    );

    let mut system = system;
    system.stop_envoy().await;
    let (code, _, err) = said(&run(writ(&system, &["call"], REPORT)).await);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("nothing was sent"), "{err}");
    system.stop().await;
}

#[tokio::test]
async fn call_sends_bodies_and_keeps_one_key() {
    let options = Options {
        policy: Some(policy()),
        ..Options::default()
    };
    let system = System::for_test(options).await.unwrap();
    let path = "/files/echo";
    let cases: [(&[&str], &str, u64); 3] = [
        (&["call", "-d", "{\"a\":1}"], "POST", 7),
        (&["call", "-X", "PUT", "-d", "hello"], "PUT", 5),
        (&["call", "-X", "DELETE"], "DELETE", 0),
    ];
    for (args, method, bytes) in cases {
        let (code, out, err) = said(&run(writ(&system, args, path)).await);
        assert_eq!(code, Some(0), "{args:?}: {err}");
        let seen: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (&seen["method"], &seen["body_bytes"]),
            (&method.into(), &bytes.into()),
            "{seen}"
        );
    }
    let file = system.state_dir().join("body.bin");
    std::fs::write(&file, vec![b'y'; 100_000]).unwrap();
    let from_file = format!("@{}", file.display());
    let args = [
        "call",
        "--content-type",
        "application/octet-stream",
        "-d",
        &from_file,
    ];
    let (code, out, err) = said(&run(writ(&system, &args, path)).await);
    assert_eq!(code, Some(0), "{err}");
    let seen: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(seen["body_bytes"], 100_000);
    assert!(
        seen.to_string().contains("application/octet-stream"),
        "{seen}"
    );

    let key = system.state_dir().join(".local/state/writ/dpop-es256.pem");
    let mode = std::fs::metadata(&key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut thumbprints = Vec::new();
    for _ in 0..2 {
        let (code, out, err) = said(&run(writ(&system, &["token"], REPORT)).await);
        assert_eq!((code, err.as_str()), (Some(0), ""));
        thumbprints.push(decoded(out.trim()).1["cnf"]["jkt"].clone());
    }
    assert_eq!(thumbprints[0], thumbprints[1]);

    // Twenty calls are more than an SVID has keys to give.
    for _ in 0..20 {
        assert_eq!(
            run(writ(&system, &["call"], REPORT)).await.status.code(),
            Some(0)
        );
    }

    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, _, err) = said(&run(writ(&system, &["call"], REPORT)).await);
    assert_eq!(code, Some(2), "{err}");
    assert!(
        err.contains("dpop-es256.pem") && err.contains("0600"),
        "{err}"
    );
    std::fs::remove_file(policy()).ok();
    system.stop().await;
}

/// Everything under /files/ may be done.
fn policy() -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("writ-open-{}.cedar", std::process::id()));
    let text = "permit (principal is Writ::Agent, action, resource) when { resource.path like \"/files/*\" };";
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn a_token_and_its_proof_work_with_any_client() {
    let system = System::for_test(Options::default()).await.unwrap();
    let reply = json(&run(writ(&system, &["token", "--json"], REPORT)).await);
    assert_eq!(reply["token_type"], "DPoP");
    let agent = system.agent().await.unwrap();
    let shown = || Call {
        method: "GET",
        path: REPORT,
        token: reply["access_token"].as_str(),
        proof: reply["proof"].as_str(),
        ..Call::default()
    };
    assert_eq!(agent.send(shown()).await.unwrap().status, 200);
    assert_eq!(
        agent.send(shown()).await.unwrap().summary(),
        "401 token_spent"
    );
    let (code, out, err) = said(&run(writ(&system, &["token"], KEYS)).await);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    system.stop().await;
}

#[tokio::test]
async fn call_waits_for_a_person_past_the_hold() {
    let system = System::for_test(Options {
        hold_s: 1,
        ..Options::default()
    })
    .await
    .unwrap();
    let approver = system.approver().await.unwrap();
    for (verdict, code, word) in [
        (Verdict::Approve, 0, "approved"),
        (Verdict::Deny, 1, "approval"),
    ] {
        let (output, before) = held_then(&system, &approver, verdict).await;
        let (got, out, err) = said(&output);
        assert_eq!(got, Some(code), "{out}{err}");
        assert!(err.contains("held") && err.contains(word), "{err}");
        assert_eq!(out.contains("salary"), code == 0, "{out}");
        let passed = system.upstream().unwrap().arrived() - before;
        assert_eq!(passed, u64::from(code == 0));
    }
    system.stop().await;
}

/// Starts a call that is held, lets the proxy's wait pass, and decides.
async fn held_then(system: &System, approver: &Approver, verdict: Verdict) -> (Output, u64) {
    let before = system.upstream().unwrap().arrived();
    let known = approver.inbox().await.unwrap();
    let waiting = tokio::spawn(run(writ(system, &["call", "--wait", "30"], PAYROLL)));
    let id = approver
        .next(&known, Duration::from_secs(10))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(
        !waiting.is_finished(),
        "it gave up at the end of the proxy's hold"
    );
    let decided = approver.decide(&id, verdict).await.unwrap();
    assert_eq!(decided.status, 303, "{}", decided.text());
    (waiting.await.unwrap(), before)
}

#[tokio::test]
async fn a_lost_answer_is_never_paid_for_twice() {
    // Clients use the cutter's address, so that is the origin; Envoy is behind it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let options = Options {
        extra_config: format!("[edge]\norigin = {origin:?}"),
        ..Options::default()
    };
    let system = System::for_test(options).await.unwrap();
    let envoy = system
        .proxy_url()
        .strip_prefix("http://")
        .unwrap()
        .parse()
        .unwrap();
    let cutter = Cutter::start(listener, envoy);
    let call = |args: &[&str]| {
        let mut command = system.writ();
        command.env_remove("XDG_STATE_HOME").arg("call").args(args);
        command.arg(format!("{origin}{REPORT}"));
        command
    };

    let upstream = system.upstream().unwrap();
    assert_eq!(
        run(call(&[])).await.status.code(),
        Some(0),
        "the cutter lets it through"
    );
    let before = (upstream.arrived(), cutter.seen());
    cutter.cut_next(1);
    let (code, out, err) = said(&run(call(&[])).await);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    for word in ["token_spent", "forwarded", "200", "not done again"] {
        assert!(err.contains(word), "no {word:?} in: {err}");
    }
    assert!(cutter.seen() - before.1 >= 2, "it was not shown again");
    assert_eq!(upstream.arrived() - before.0, 1, "done once");

    cutter.cut_next(1);
    let shown = run(call(&["--json"])).await;
    let body = json(&shown);
    assert_eq!(
        (shown.status.code(), &body["reason"]),
        (Some(1), &"token_spent".into())
    );
    assert_eq!(
        body["refusal"]["first_use"]["result"], "forwarded",
        "{body}"
    );
    assert_eq!(
        body["refusal"]["first_use"]["upstream_status"], 200,
        "{body}"
    );
    assert_eq!(upstream.arrived() - before.0, 2);

    // Both answers lost: it says that it does not know, and stops there.
    let seen = cutter.seen();
    cutter.cut_next(5);
    let (code, _, err) = said(&run(call(&[])).await);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("not known"), "{err}");
    assert_eq!(cutter.seen() - seen, 2);
    assert_eq!(upstream.arrived() - before.0, 3);

    // A filter of before, which does not say what is its own: its refusal of the second
    // showing is no answer.
    cutter.hide_whose();
    cutter.cut_next(1);
    let (code, out, err) = said(&run(call(&[])).await);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    assert!(err.contains("not known"), "{err}");
    assert_eq!(upstream.arrived() - before.0, 4);
    drop(cutter);
    system.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let plane = crate::plane::Plane::start().await;
    let call = |args: &[&str]| {
        let mut command = plane.writ();
        command.arg("call").args(args).arg(plane.origin());
        run(command)
    };
    for (args, name) in [
        (["-d", "@/nope"], "/nope"),
        (["--workload-api", "/nope.sock"], "No such file"),
    ] {
        let (code, _, err) = said(&call(&args).await);
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains("/nope") && err.contains(name), "{err}");
    }
}
