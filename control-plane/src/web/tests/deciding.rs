//! Deciding: only as shown, only by a person, only once.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use super::*;

fn form(csrf: &str, digest: &str) -> With<'static> {
    With::form(format!("csrf={csrf}&digest={digest}"))
}

#[tokio::test]
async fn a_script_with_the_pages_own_fields_approves() {
    let world = World::new();
    let (cookie, _) = world.sign_in().await;
    let page = world.get(&format!("/approvals/{ID}"), &cookie).await;
    let (csrf, digest) = (field(&page.body, "csrf"), field(&page.body, "digest"));
    assert_eq!(digest, DIGEST);
    let answer = world
        .post(
            &format!("/approvals/{ID}/approve"),
            form(&csrf, &digest).header("cookie", &cookie),
        )
        .await;
    assert_eq!(
        (answer.status, location(&answer)),
        (StatusCode::SEE_OTHER, format!("/approvals/{ID}").as_str())
    );
    let decided = world.desk.get(ID).unwrap();
    assert_eq!(
        (decided.state, decided.decided_by.as_deref()),
        (ApprovalState::Approved, Some("operator"))
    );
    let page = world.get(&format!("/approvals/{ID}"), &cookie).await;
    assert!(!page.body.contains("/approve\""), "no button is left");
}

#[tokio::test]
async fn a_no_is_a_no() {
    let world = World::new();
    let (cookie, csrf) = world.sign_in().await;
    let deny = || form(&csrf, DIGEST).header("cookie", &cookie);
    assert_eq!(
        world
            .post(&format!("/approvals/{ID}/deny"), deny())
            .await
            .status,
        StatusCode::SEE_OTHER
    );
    assert_eq!(world.state(), ApprovalState::Denied);
    let approve = world
        .post(&format!("/approvals/{ID}/approve"), deny())
        .await;
    assert_eq!(approve.status, StatusCode::CONFLICT);
    assert_eq!(world.state(), ApprovalState::Denied);
}

#[tokio::test]
async fn what_is_not_the_digest_shown_is_409() {
    let world = World::new();
    let (cookie, csrf) = world.sign_in().await;
    world.desk.change(|approvals| approvals[0].digest = [7; 32]);
    for digest in [
        DIGEST,
        "",
        "zz",
        DIGEST.get(2..).unwrap(),
        &format!("{DIGEST}00"),
    ] {
        for verb in ["approve", "deny"] {
            let with = form(&csrf, digest).header("cookie", &cookie);
            let answer = world.post(&format!("/approvals/{ID}/{verb}"), with).await;
            assert_eq!(answer.status, StatusCode::CONFLICT, "{digest}");
            assert!(answer.body.contains("changed"));
        }
    }
    assert_eq!(world.state(), ApprovalState::Pending);
}

#[tokio::test]
async fn a_wrong_or_missing_csrf_token_is_refused() {
    let world = World::new();
    let (cookie, _) = world.sign_in().await;
    let (_, other) = world.sign_in().await;
    for csrf in ["", "x", other.as_str()] {
        let with = form(csrf, DIGEST).header("cookie", &cookie);
        let answer = world.post(&format!("/approvals/{ID}/approve"), with).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{csrf}");
    }
    let missing = With::form(format!("digest={DIGEST}")).header("cookie", &cookie);
    let answer = world
        .post(&format!("/approvals/{ID}/approve"), missing)
        .await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(world.state(), ApprovalState::Pending);
}

#[tokio::test]
async fn another_site_gets_nothing_done_even_with_every_field() {
    let cases: &[(&[(&'static str, &str)], bool)] = &[
        (&[("origin", "https://evil.example")], false),
        (&[("origin", "http://127.0.0.1:8481")], false),
        (&[("origin", "https://127.0.0.1:8480")], false),
        (&[("origin", "null")], false),
        (
            &[("origin", "null"), ("sec-fetch-site", "cross-site")],
            false,
        ),
        (
            &[("origin", ISSUER), ("sec-fetch-site", "cross-site")],
            false,
        ),
        (
            &[("origin", ISSUER), ("sec-fetch-site", "same-site")],
            false,
        ),
        (
            &[("origin", ISSUER), ("origin", "https://evil.example")],
            false,
        ),
        (
            &[
                ("origin", ISSUER),
                ("sec-fetch-site", "same-origin"),
                ("sec-fetch-site", "cross-site"),
            ],
            false,
        ),
        (&[("sec-fetch-site", "same-site")], false),
        (
            &[("origin", "null"), ("sec-fetch-site", "same-origin")],
            true,
        ),
        (
            &[("origin", ISSUER), ("sec-fetch-site", "same-origin")],
            true,
        ),
        (&[("origin", ISSUER)], true),
        (&[], true),
    ];
    for (headers, passes) in cases {
        let world = World::new();
        let (cookie, csrf) = world.sign_in().await;
        let mut with = form(&csrf, DIGEST).header("cookie", &cookie);
        for (name, value) in *headers {
            with = with.header(name, *value);
        }
        let answer = world.post(&format!("/approvals/{ID}/approve"), with).await;
        let expected = if *passes {
            StatusCode::SEE_OTHER
        } else {
            StatusCode::FORBIDDEN
        };
        assert_eq!(answer.status, expected, "{headers:?}");
        assert_eq!(
            world.state() == ApprovalState::Approved,
            *passes,
            "{headers:?}"
        );
    }
}

#[tokio::test]
async fn looking_decides_nothing() {
    let world = World::new();
    let (cookie, csrf) = world.sign_in().await;
    let query = format!("?csrf={csrf}&digest={DIGEST}");
    for _ in 0..20 {
        for path in ["approve", "deny", "status", ""] {
            for method in [Method::GET, Method::HEAD, Method::PUT, Method::OPTIONS] {
                let path = format!("/approvals/{ID}/{path}{query}");
                world
                    .ask(
                        method,
                        path.as_str(),
                        With::default().header("cookie", &cookie),
                    )
                    .await;
            }
        }
    }
    let get = world
        .get(&format!("/approvals/{ID}/approve{query}"), &cookie)
        .await;
    assert_eq!(
        (get.status, get.header("allow")),
        (StatusCode::METHOD_NOT_ALLOWED, "POST")
    );
    assert_eq!(world.state(), ApprovalState::Pending);
}

#[tokio::test]
async fn the_same_answer_again_is_fine_and_changes_nothing() {
    let world = World::new();
    let (cookie, csrf) = world.sign_in().await;
    let path = format!("/approvals/{ID}/approve");
    let asks = (0..50).map(|_| world.post(&path, form(&csrf, DIGEST).header("cookie", &cookie)));
    for answer in futures::future::join_all(asks).await {
        assert_eq!(answer.status, StatusCode::SEE_OTHER);
    }
    world.desk.now.store(NOW + 5_000, Ordering::SeqCst);
    world
        .post(&path, form(&csrf, DIGEST).header("cookie", &cookie))
        .await;
    assert_eq!(world.desk.get(ID).unwrap().decided_ms, Some(NOW));
}

#[tokio::test]
async fn what_is_over_can_not_be_approved() {
    let world = World::new();
    let (cookie, csrf) = world.sign_in().await;
    world.desk.now.store(NOW + 15 * 60 * 1000, Ordering::SeqCst);
    let answer = world
        .post(
            &format!("/approvals/{ID}/approve"),
            form(&csrf, DIGEST).header("cookie", &cookie),
        )
        .await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(answer.body.contains("expired"));
    let page = world.get(&format!("/approvals/{ID}"), &cookie).await;
    assert!(page.body.contains("Expired") && !page.body.contains("/approve\""));
    assert_eq!(
        world.state(),
        ApprovalState::Pending,
        "expiring is the ledger's to commit"
    );
}

#[tokio::test]
async fn who_may_not_decide_is_told_so() {
    let world = World::new();
    world
        .desk
        .change(|approvals| approvals[0].approvers = vec!["security".to_owned()]);
    let (cookie, csrf) = world.sign_in().await;
    let answer = world
        .post(
            &format!("/approvals/{ID}/approve"),
            form(&csrf, DIGEST).header("cookie", &cookie),
        )
        .await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(world.state(), ApprovalState::Pending);
    let gone = world
        .post(
            "/approvals/apr_none/deny",
            form(&csrf, DIGEST).header("cookie", &cookie),
        )
        .await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_command_line_decides_by_its_session_and_json_alone() {
    let world = World::new();
    let session = world.sign_in_by_command_line().await;
    let (cookie, csrf) = world.sign_in().await;
    let path = format!("/api/v1/approvals/{ID}/approve");
    let right = json!({"digest": DIGEST});
    let cases = [
        (
            With::json(&right).header("cookie", &cookie),
            StatusCode::UNAUTHORIZED,
        ),
        (
            form(&csrf, DIGEST).header("authorization", &session),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ),
        (
            With::json(&json!({})).header("authorization", &session),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            With::json(&json!({"digest": "00"})).header("authorization", &session),
            StatusCode::CONFLICT,
        ),
        (
            With::json(&right).header("authorization", "Session x"),
            StatusCode::UNAUTHORIZED,
        ),
        (
            With::json(&right)
                .header("authorization", &session)
                .header("origin", "https://evil.example"),
            StatusCode::FORBIDDEN,
        ),
    ];
    for (with, expected) in cases {
        let answer = world.post(&path, with).await;
        assert_eq!(answer.status, expected, "{}", answer.body);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert_eq!(world.state(), ApprovalState::Pending);
    }
    let answer = world
        .post(&path, With::json(&right).header("authorization", &session))
        .await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json()["status"], "approved");
    assert_eq!(world.state(), ApprovalState::Approved);
    let other = world
        .post(
            &format!("/api/v1/approvals/{ID}/deny"),
            With::json(&right).header("authorization", &session),
        )
        .await;
    assert_eq!(
        (other.status, other.json()["reason"].as_str()),
        (StatusCode::CONFLICT, Some("not_pending"))
    );
}

#[tokio::test]
async fn an_open_inbox_hears_of_changes_until_its_session_ends() {
    let world = World::new();
    let (cookie, csrf) = world.sign_in().await;
    let request = Request::builder()
        .uri("/approvals/events")
        .header("cookie", &cookie)
        .body(Body::empty())
        .unwrap();
    let response = world.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let mut body = response.into_body();
    let mut next = async || {
        let frame = tokio::time::timeout(Duration::from_secs(5), body.frame())
            .await
            .expect("an event in time");
        frame.map(|frame| String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap())
    };
    let first = next().await.unwrap();
    assert!(first.starts_with("event: change\n"), "{first}");
    let page = world.get("/approvals", &cookie).await.body;
    let version = first.split_once("data: ").unwrap().1.trim();
    assert!(page.contains(&format!("data-version=\"{version}\"")));
    world
        .desk
        .change(|approvals| approvals.push(approval("apr_second", NOW, "http://h/two")));
    let second = next().await.unwrap();
    assert!(
        second.starts_with("event: change\n") && second != first,
        "{second}"
    );
    world
        .post(
            "/logout",
            With::form(format!("csrf={csrf}")).header("cookie", &cookie),
        )
        .await;
    world.desk.change(|_| ());
    assert!(next().await.unwrap().starts_with("event: ended\n"));
    assert!(next().await.is_none());
}

#[tokio::test]
async fn open_inboxes_do_not_hold_up_a_stop() {
    let world = World::new();
    let (cookie, _) = world.sign_in().await;
    let request = Request::builder()
        .uri("/approvals/events")
        .header("cookie", &cookie)
        .body(Body::empty())
        .unwrap();
    let response = world.router.clone().oneshot(request).await.unwrap();
    world.stop.cancel();
    let all = tokio::time::timeout(Duration::from_secs(5), response.into_body().collect()).await;
    assert!(all.is_ok());
}
