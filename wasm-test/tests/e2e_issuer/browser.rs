//! A real browser at the approvals page.

use std::io::{BufRead as _, Write as _};
use std::process::Stdio;

use serde_json::json;
use wasm_test::system::{Options, System};
use wasm_test::upstream::PAYROLL;

use crate::programs::{chromium, clients};

#[tokio::test]
async fn a_person_with_a_keyboard_and_a_phones_width_approves() {
    let (Some(chromium), Some(clients)) = (chromium(), clients()) else {
        return;
    };
    let system = System::for_test(Options {
        hold_s: 40,
        ..Options::default()
    })
    .await
    .unwrap();
    let agent = system.agent().await.unwrap();
    let given = json!({
        "chromium": chromium, "login": system.serve_ready().approver_login, "ui": system.issuer(),
        "sandbox": !rustix::process::getuid().is_root(),
    });
    let mut command = clients.node("browser.mjs");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{given}").unwrap();

    // The script says what it waits for; what happens meanwhile is ours to do.
    let (send, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let stdout = child.stdout.take().unwrap();
    let reading = std::thread::spawn(move || {
        for line in std::io::BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
        {
            drop(send.send(line));
        }
    });
    let nasty = format!("{PAYROLL}?note=%3Cimg%20src=x%20onerror=alert(1)%3E");
    let mut calls = Vec::new();
    let mut done = false;
    while let Some(line) = lines.recv().await {
        let path = match line.as_str() {
            "hold" => PAYROLL.to_owned(),
            "hold nasty" => nasty.clone(),
            _ => {
                done = line == "done";
                continue;
            }
        };
        let agent = agent.clone();
        calls.push(tokio::spawn(async move {
            agent.call("GET", &path).await.unwrap()
        }));
    }
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap())
        .await
        .unwrap();
    reading.join().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && done,
        "the browser's script failed:\n{said}"
    );
    let mut summaries = Vec::new();
    for call in calls {
        summaries.push(call.await.unwrap().summary());
    }
    assert_eq!(summaries, ["200", "403 approval_denied"]);
    assert_eq!(system.upstream().unwrap().arrived(), 1);
    system.stop().await;
}
