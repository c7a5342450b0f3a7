//! What a person is shown of a body, and what a yes covers.

use std::time::Duration;

use tokio::task::JoinHandle;
use wasm_test::client::{Answer, Approver, Verdict};

use super::super::rig::{Rig, eventually, sha256};
use super::{Http1, JSON, PAY, arrived_whole, call, expect, head, post, start, with_length};

/// Waits for a person, and may be large.
const VAST: &str = "/echo/big/restricted/x";
const NOTICE: Duration = Duration::from_secs(10);

async fn held(
    rig: &Rig,
    approver: &Approver,
    kind: &str,
    body: &[u8],
) -> (String, JoinHandle<Answer>) {
    let known = approver.inbox().await.unwrap();
    let token = rig.agent.token("POST", PAY).await.unwrap();
    let mut connection = Http1::connect(&rig.authority()).await;
    let head = head(rig, PAY, &token, &with_length(kind, body));
    let body = body.to_vec();
    let answer = tokio::spawn(async move {
        connection.send(&head).await;
        connection.exchange(&body).await.expect("an answer")
    });
    (approver.next(&known, NOTICE).await.unwrap(), answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_sees_the_body_and_approves_that_one() {
    let mut rig = start().await;
    let approver = rig.system.approver().await.unwrap();
    let body = br#"{"amount": 500, "to": "bob", "note": "<script>alert(1)</script>"}"#;
    let before = rig.arrived();
    let (id, answer) = held(&rig, &approver, JSON, body).await;
    let page = approver
        .page(&format!("/approvals/{id}"))
        .await
        .unwrap()
        .text();
    assert!(
        page.contains("alert(1)") && !page.contains("<script>alert"),
        "{page}"
    );
    assert!(page.contains(&sha256(body)), "{page}");
    let shown = approver
        .page(&format!("/api/v1/approvals/{id}"))
        .await
        .unwrap()
        .json();
    assert_eq!(
        shown["body"]["content"]["text"]
            .as_str()
            .unwrap()
            .as_bytes(),
        body
    );
    let hold = rig.entry("the hold", |entry| entry["kind"] == "hold").await;
    let attached = hold["att"].as_array().or(hold["attachments"].as_array());
    let names: Vec<&str> = attached
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"body"), "{hold}");
    assert_eq!(rig.arrived(), before);
    approver.decide(&id, Verdict::Approve).await.unwrap();
    assert_eq!(answer.await.unwrap().status, 200);
    arrived_whole(&rig, body);

    // The yes to one body is none to another, nor to the same under another type.
    let (id, answer) = held(&rig, &approver, JSON, br#"{"amount": 600, "to": "bob"}"#).await;
    expect(&answer.await.unwrap(), 403, "approval_pending");
    approver.decide(&id, Verdict::Approve).await.unwrap();
    for (kind, other) in [
        (JSON, br#"{"amount": 601, "to": "bob"}"#.as_slice()),
        (JSON, br#"{"amount": 600, "to": "bob"} "#),
        (
            "application/problem+json",
            br#"{"amount": 600, "to": "bob"}"#,
        ),
    ] {
        let (other_id, answer) = held(&rig, &approver, kind, other).await;
        assert_ne!(other_id, id);
        approver.decide(&other_id, Verdict::Deny).await.unwrap();
        expect(&answer.await.unwrap(), 403, "approval_denied");
    }
    assert_eq!(rig.arrived(), before + 1);
    assert_eq!(
        call(&rig, PAY, JSON, br#"{"amount": 600, "to": "bob"}"#)
            .await
            .status,
        200
    );

    // What can't be shown any more can't be approved, until it is shown again.
    let (id, answer) = held(&rig, &approver, JSON, br#"{"amount": 700, "to": "bob"}"#).await;
    expect(&answer.await.unwrap(), 403, "approval_pending");
    rig.system.restart_control_plane().await.unwrap();
    rig.recovers().await;
    let approver = rig.system.approver().await.unwrap();
    let page = approver
        .page(&format!("/approvals/{id}"))
        .await
        .unwrap()
        .text();
    assert!(page.contains("be shown here any more"), "{page}");
    assert!(
        approver.decide(&id, Verdict::Approve).await.is_err(),
        "there is no such form"
    );
    let token = rig.agent.token("POST", PAY).await.unwrap();
    let again = post(&rig, PAY, &token, JSON, br#"{"amount": 700, "to": "bob"}"#);
    let (again, decided) = tokio::join!(again, async {
        eventually("the body is shown again", async || {
            approver.decide(&id, Verdict::Approve).await.is_ok()
        })
        .await;
    });
    let () = decided;
    assert_eq!(again.status, 200, "{}", again.text());
    // What nobody could look at whole is not held, and nothing is spent.
    let token = rig.agent.token("POST", VAST).await.unwrap();
    let vast = vec![b'x'; 128 * 1024 + 1];
    expect(
        &post(&rig, VAST, &token, "text/plain", &vast).await,
        413,
        "too_large",
    );
    let whole = &vast[..128 * 1024];
    expect(
        &post(&rig, VAST, &token, "text/plain", whole).await,
        403,
        "approval_pending",
    );
    rig.finish().await;
}
