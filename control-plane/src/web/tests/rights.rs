//! Who may take rights away, and how it is asked for.

use std::sync::atomic::Ordering;

use super::*;

async fn stop(world: &World, session: Option<&str>, target: &str) -> (u16, String) {
    let mut with = With::json(&serde_json::from_str(&format!("{{\"target\":{target}}}")).unwrap());
    if let Some(session) = session {
        with = with.header("authorization", session);
    }
    let answer = world.post("/api/v1/stops", with).await;
    let said: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let reason = said["reason"].as_str().unwrap_or_default().to_owned();
    (answer.status.as_u16(), reason)
}

#[tokio::test]
async fn everything_is_stopped_by_who_signed_in_just_now() {
    let world = World::new();
    let session = world.sign_in_by_command_line().await;
    let everything = "{\"everything\":true}";
    let minutes = |n: u64| n * 60_000;
    for (at, wanted) in [
        (NOW + minutes(5) - 1, (204, "")),
        (NOW + minutes(5), (403, "step_up_needed")),
    ] {
        world.desk.now.store(at, Ordering::SeqCst);
        let (status, reason) = stop(&world, Some(&session), everything).await;
        assert_eq!((status, reason.as_str()), wanted);
    }
    // One agent can be stopped all the same.
    let agent = "{\"agent\":\"spiffe://writ.example/a\"}";
    assert_eq!(stop(&world, Some(&session), agent).await.0, 204);
}

#[tokio::test]
async fn what_is_stopped_is_one_thing_and_has_bounds() {
    let world = World::new();
    let session = world.sign_in_by_command_line().await;
    let long = format!("{{\"owner\":\"{}\"}}", "o".repeat(2049));
    for target in [
        "{}",
        "{\"everything\":false}",
        "{\"everything\":true,\"agent\":\"spiffe://writ.example/a\"}",
        "{\"agent\":\"\"}",
        "{\"agent\":\"a\\nb\"}",
        "{\"key\":\"k\",\"token\":\"00\"}",
        "{\"token\":\"00\"}",
        "{\"user\":{\"issuer\":\"\",\"subject\":\"s\"}}",
        &long,
    ] {
        let answered = stop(&world, Some(&session), target).await;
        assert_eq!(answered, (400, "bad_target".to_owned()), "{target}");
    }
    let nobody = stop(&world, None, "{\"everything\":true}").await;
    assert_eq!(nobody, (401, "not_signed_in".to_owned()));
}

/// A session that another one made is no younger than that, and ends with it.
#[tokio::test]
async fn a_session_renews_itself_by_no_link_of_its_own() {
    let world = World::new();
    let first = world.sign_in_by_command_line().await;
    let with = || With::json(&serde_json::json!({})).header("authorization", &first);
    let link = async || {
        let made = world.post("/api/v1/login-links", with()).await;
        let made = made.json()["url"].as_str().unwrap().to_owned();
        made.split_once('#').unwrap().1.to_owned()
    };
    let later = NOW + 6 * 60_000;
    world.desk.now.store(later, Ordering::SeqCst);
    let opened = |secret: String| With::json(&serde_json::json!({ "secret": secret }));
    let child = world.post("/api/v1/session", opened(link().await)).await;
    let child = format!("Session {}", child.json()["session"].as_str().unwrap());
    let unused = link().await;
    let everything = "{\"everything\":true}";
    let answered = stop(&world, Some(&child), everything).await;
    assert_eq!(answered, (403, "step_up_needed".to_owned()));
    let agent = "{\"agent\":\"spiffe://writ.example/a\"}";
    assert_eq!(stop(&world, Some(&child), agent).await.0, 204);
    let closed = With::default().header("authorization", &first);
    let closed = world.ask(Method::DELETE, "/api/v1/session", closed).await;
    assert_eq!(closed.status, StatusCode::NO_CONTENT);
    let answered = stop(&world, Some(&child), agent).await;
    assert_eq!(answered, (401, "not_signed_in".to_owned()));
    let late = world.post("/api/v1/session", opened(unused)).await;
    assert_eq!(late.status, StatusCode::UNAUTHORIZED);
}

/// A body is one object, each member once: nothing else makes the same.
#[tokio::test]
async fn a_body_is_one_object_with_each_member_once() {
    let world = World::new();
    let session = world.sign_in_by_command_line().await;
    let post = async |kind: &str, body: &str| {
        let with = With::default()
            .body(body)
            .header("authorization", session.as_str());
        let with = with.header("content-type", kind);
        world.post("/api/v1/stops", with).await.status.as_u16()
    };
    let json = "application/json";
    assert_eq!(
        post(json, "{\"target\":{\"agent\":\"spiffe://x/a\"}}").await,
        204
    );
    for (status, kind, body) in [
        (422, json, "[{\"agent\":\"spiffe://x/a\"},\"why\"]"),
        (422, json, "null"),
        (
            422,
            json,
            "{\"target\":{\"agent\":\"spiffe://x/a\"},\"more\":1}",
        ),
        (
            400,
            json,
            "{\"target\":{\"agent\":\"spiffe://x/a\"},\"target\":{\"agent\":\"spiffe://x/b\"}}",
        ),
        (
            400,
            json,
            "{\"target\":{\"agent\":\"spiffe://x/a\",\"agent\":\"spiffe://x/b\"}}",
        ),
        (400, json, "{\"target\""),
        (
            415,
            "text/json",
            "{\"target\":{\"agent\":\"spiffe://x/a\"}}",
        ),
        (415, "", "{\"target\":{\"agent\":\"spiffe://x/a\"}}"),
    ] {
        assert_eq!(post(kind, body).await, status, "{kind}: {body}");
    }
}
