//! An upstream that acts, and then answers as the edge does for a request that waits for a
//! person: no client of ours sends such a request again.

use std::time::Duration;

use reqwest::Client;
use serde_json::Value;
use wasm_test::client::{Approver, Verdict};
use wasm_test::system::System;
use wasm_test::upstream::PAYROLL;

use crate::plane::{run, text};
use crate::sidecar::{Side, options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_upstream_says_of_approvals_has_nothing_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let system = System::for_test(options(dir.path())).await.unwrap();
    let agent = system.agent().await.unwrap();
    let held = agent.call("GET", PAYROLL).await.unwrap();
    assert_eq!(held.header("x-writ-reason"), Some("approval_pending"));
    let held = held.json();
    // There is a yes that nobody uses: what is pointed at is approved as often as it is
    // looked at.
    let approver = Approver::login(&system.serve_ready().approver_login).await;
    let id = held["approval_id"].as_str().unwrap();
    approver
        .unwrap()
        .decide(id, Verdict::Approve)
        .await
        .unwrap();
    let status_url = held["status_url"].as_str().unwrap();
    let path = format!("/files/act?pretend={status_url}");

    let upstream = system.upstream().unwrap();
    let side = Side::start(&system, &["--wait", "3"]).await;
    let before = upstream.arrived();
    let client = Client::builder().no_proxy().build().unwrap();
    let answer = client.post(side.url(&path)).body("{}").send();
    let answer = tokio::time::timeout(Duration::from_secs(10), answer).await;
    let answer = answer.expect("it is not answered").unwrap();
    assert_eq!(answer.status(), 403);
    assert!(!answer.headers().contains_key("x-writ-reason"));
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["reason"], "approval_pending", "it is passed on");
    assert_eq!(upstream.arrived(), before + 1, "by way of the sidecar");

    let mut command = system.writ();
    command.env_remove("XDG_STATE_HOME");
    command.args(["call", "-X", "POST", "-d", "{}", "--wait", "3"]);
    command.arg(format!("{}{path}", system.proxy_url()));
    let output = tokio::time::timeout(Duration::from_secs(10), run(command)).await;
    let output = output.expect("it goes on and on");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(upstream.arrived(), before + 2, "by `writ call`");
    system.stop().await;
}
