//! Signing in, staying in, signing out.

use std::sync::atomic::Ordering;

use super::*;
use crate::web::{IDLE_MS, LINK_MS, SESSION_MS, WRONG_PER_MINUTE};

fn cookie_of(answer: &Answer) -> String {
    answer
        .header("set-cookie")
        .split(';')
        .next()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn the_cookie_has_every_flag() {
    for (issuer, name, secure) in [
        (ISSUER, "writ_session=", false),
        ("https://writ.example", "__Host-writ_session=", true),
    ] {
        let world = World::with(Vec::new(), issuer);
        let secret = world.logins.mint(NOW);
        let answer = world
            .post("/login", With::form(format!("secret={secret}")))
            .await;
        let cookie = answer.header("set-cookie");
        assert!(cookie.starts_with(name), "{cookie}");
        let flags: Vec<&str> = cookie.split("; ").skip(1).collect();
        assert!(
            flags.contains(&"HttpOnly")
                && flags.contains(&"SameSite=Strict")
                && flags.contains(&"Path=/")
        );
        assert_eq!(flags.contains(&"Secure"), secure);
        assert!(!cookie.contains("Domain"));
        assert_eq!(location(&answer), "/");
    }
}

#[tokio::test]
async fn a_secret_signs_in_once_and_says_so_to_the_log() {
    let world = World::new();
    let secret = world.logins.mint(NOW);
    let form = || With::form(format!("secret={secret}"));
    assert_eq!(
        world.post("/login", form()).await.status,
        StatusCode::SEE_OTHER
    );
    let again = world.post("/login", form()).await;
    assert_eq!(again.status, StatusCode::UNAUTHORIZED);
    assert_eq!(again.header("set-cookie"), "");
    assert!(again.body.contains("role=\"alert\""));
    assert!(!again.body.contains(&secret));
    assert_eq!(
        *lock(&world.desk.signed_in),
        [("operator".to_owned(), "browser")]
    );
}

#[tokio::test]
async fn a_secret_is_over_after_ten_minutes() {
    let world = World::new();
    let secret = world.logins.mint(NOW);
    world.desk.now.store(NOW + LINK_MS, Ordering::SeqCst);
    let late = world
        .post("/login", With::form(format!("secret={secret}")))
        .await;
    assert_eq!(late.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_whole_link_may_be_pasted_and_leads_where_one_was_going() {
    let world = World::new();
    let away = world.get(&format!("/approvals/{ID}"), "").await;
    assert_eq!(location(&away), format!("/login?next={ID}"));
    let form = world.get(location(&away), "").await;
    assert_eq!(field(&form.body, "next"), ID);
    let secret = world.logins.mint(NOW);
    let body = format!("secret=http%3A%2F%2F127.0.0.1%3A8480%2Flogin%23{secret}&next={ID}");
    let answer = world.post("/login", With::form(body)).await;
    assert_eq!(location(&answer), format!("/approvals/{ID}"));
}

#[tokio::test]
async fn next_leads_nowhere_else() {
    let world = World::new();
    for next in [
        "//evil.example",
        "https://evil.example",
        "..%2F..%2Fx",
        "%22%3E%3Cscript%3E",
        "a%0d%0aSet-Cookie:x",
    ] {
        let form = world.get(&format!("/login?next={next}"), "").await;
        assert!(!form.body.contains("name=\"next\""), "{next}");
        let secret = world.logins.mint(NOW);
        let answer = world
            .post("/login", With::form(format!("secret={secret}&next={next}")))
            .await;
        assert_eq!(location(&answer), "/", "{next}");
    }
}

#[tokio::test]
async fn a_session_ends_when_idle_when_old_and_by_logout() {
    let world = World::new();
    let (idle, _) = world.sign_in().await;
    world.desk.now.store(NOW + IDLE_MS, Ordering::SeqCst);
    assert_eq!(location(&world.get("/approvals", &idle).await), "/login");

    let (busy, csrf) = world.sign_in().await;
    let start = world.desk.now_ms();
    let mut step = 0;
    while step * IDLE_MS / 2 < SESSION_MS {
        world
            .desk
            .now
            .store(start + step * IDLE_MS / 2, Ordering::SeqCst);
        assert_eq!(
            world.get("/approvals", &busy).await.status,
            StatusCode::OK,
            "step {step}"
        );
        step += 1;
    }
    world.desk.now.store(start + SESSION_MS, Ordering::SeqCst);
    assert_eq!(
        world.get("/approvals", &busy).await.status,
        StatusCode::SEE_OTHER
    );
    drop(csrf);

    let (cookie, csrf) = world.sign_in().await;
    let wrong = world
        .post("/logout", With::form("csrf=x").header("cookie", &cookie))
        .await;
    assert_eq!(wrong.status, StatusCode::FORBIDDEN);
    assert_eq!(world.get("/", &cookie).await.status, StatusCode::OK);
    let out = world
        .post(
            "/logout",
            With::form(format!("csrf={csrf}")).header("cookie", &cookie),
        )
        .await;
    assert_eq!(location(&out), "/login");
    assert!(out.header("set-cookie").contains("Max-Age=0"));
    assert_eq!(world.get("/", &cookie).await.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn looking_alone_keeps_no_session_alive() {
    let world = World::new();
    let (cookie, _) = world.sign_in().await;
    for minutes in [20, 40, 59] {
        world
            .desk
            .now
            .store(NOW + minutes * 60_000, Ordering::SeqCst);
        assert_eq!(
            world.get("/approvals/list", &cookie).await.status,
            StatusCode::OK
        );
    }
    world.desk.now.store(NOW + IDLE_MS, Ordering::SeqCst);
    assert_eq!(
        world.get("/approvals/list", &cookie).await.status,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn signing_in_ends_the_session_that_was_there() {
    let world = World::new();
    let (old, _) = world.sign_in().await;
    let secret = world.logins.mint(NOW);
    let form = With::form(format!("secret={secret}")).header("cookie", &old);
    let new = cookie_of(&world.post("/login", form).await);
    assert_ne!(new, old);
    assert_eq!(world.get("/", &old).await.status, StatusCode::SEE_OTHER);
    assert_eq!(world.get("/", &new).await.status, StatusCode::OK);
}

#[tokio::test]
async fn two_cookies_of_the_name_are_none() {
    let world = World::new();
    let (cookie, _) = world.sign_in().await;
    let both = format!("{cookie}; writ_session=planted");
    assert_eq!(world.get("/", &both).await.status, StatusCode::SEE_OTHER);
    assert_eq!(
        world.get("/", &format!("other=1; {cookie}")).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn wrong_secrets_run_into_429() {
    let world = World::new();
    for _ in 0..WRONG_PER_MINUTE {
        assert_eq!(
            world
                .post("/login", With::form("secret=guess"))
                .await
                .status,
            StatusCode::UNAUTHORIZED
        );
    }
    let page = world.post("/login", With::form("secret=guess")).await;
    assert_eq!(
        (page.status, page.header("retry-after")),
        (StatusCode::TOO_MANY_REQUESTS, "60")
    );
    let api = world
        .post(
            "/api/v1/session",
            With::json(&serde_json::json!({"secret": "guess"})),
        )
        .await;
    assert_eq!(
        (api.status, api.header("retry-after")),
        (StatusCode::TOO_MANY_REQUESTS, "60")
    );
    world.sign_in().await;
}

#[tokio::test]
async fn a_restore_is_confirmed_as_it_was_shown_and_once() {
    let world = World::new();
    *lock(&world.desk.suspended) = Some(ledger::model::Suspension {
        index: 42,
        time_ms: 0,
        entries: 40,
        head: [7; 32],
    });
    let session = world.sign_in_by_command_line().await;
    let with = |body: serde_json::Value| With::json(&body).header("authorization", &session);
    let nothing = || with(serde_json::json!({}));
    let shown = world.ask(Method::GET, "/api/v1/ledger", nothing()).await;
    assert_eq!(shown.json()["suspended"]["restored"], 42);
    assert_eq!(shown.json()["suspended"]["entries"], 40);
    let path = "/api/v1/ledger/confirm";
    for (body, status) in [
        (serde_json::json!({}), StatusCode::UNPROCESSABLE_ENTITY),
        (serde_json::json!({"restored": 41}), StatusCode::CONFLICT),
        (serde_json::json!({"restored": 42}), StatusCode::OK),
        (serde_json::json!({"restored": 42}), StatusCode::CONFLICT),
    ] {
        let answer = world.post(path, with(body.clone())).await;
        assert_eq!(answer.status, status, "{body}");
    }
    let shown = world.ask(Method::GET, "/api/v1/ledger", nothing()).await;
    assert_eq!(shown.json()["suspended"], serde_json::Value::Null);
}

#[tokio::test]
async fn the_command_line_signs_in_reads_makes_a_link_and_leaves() {
    let world = World::new();
    let session = world.sign_in_by_command_line().await;
    assert_eq!(
        *lock(&world.desk.signed_in),
        [("operator".to_owned(), "command_line")]
    );
    let with = || With::json(&serde_json::json!({})).header("authorization", &session);
    let list = world.ask(Method::GET, "/api/v1/approvals", with()).await;
    assert_eq!(list.json()["approvals"][0]["digest"], DIGEST);
    let link = world.post("/api/v1/login-links", with()).await;
    assert_eq!(link.status, StatusCode::CREATED);
    let url = link.json()["url"].as_str().unwrap().to_owned();
    let secret = url.strip_prefix("http://127.0.0.1:8480/login#").unwrap();
    let answer = world
        .post("/login", With::form(format!("secret={secret}")))
        .await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    assert_eq!(
        world
            .ask(Method::DELETE, "/api/v1/session", with())
            .await
            .status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        world
            .ask(Method::GET, "/api/v1/approvals", with())
            .await
            .status,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn one_kind_of_session_is_never_the_other() {
    let world = World::new();
    let session = world.sign_in_by_command_line().await;
    let id = session.strip_prefix("Session ").unwrap();
    assert_eq!(
        world.get("/", &format!("writ_session={id}")).await.status,
        StatusCode::SEE_OTHER
    );
    let (cookie, _) = world.sign_in().await;
    let id = cookie.strip_prefix("writ_session=").unwrap();
    let with = With::json(&serde_json::json!({"digest": DIGEST}))
        .header("authorization", format!("Session {id}"));
    let answer = world
        .post(&format!("/api/v1/approvals/{ID}/approve"), with)
        .await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.state(), ApprovalState::Pending);
}

#[tokio::test]
async fn a_signed_in_person_makes_a_link_on_the_page() {
    let world = World::new();
    let (cookie, csrf) = world.sign_in().await;
    let wrong = world
        .post(
            "/login-links",
            With::form("csrf=no").header("cookie", &cookie),
        )
        .await;
    assert_eq!(wrong.status, StatusCode::FORBIDDEN);
    let page = world
        .post(
            "/login-links",
            With::form(format!("csrf={csrf}")).header("cookie", &cookie),
        )
        .await;
    let secret = page
        .body
        .split_once("/login#")
        .unwrap()
        .1
        .split('<')
        .next()
        .unwrap();
    let answer = world
        .post("/login", With::form(format!("secret={secret}")))
        .await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn a_link_from_elsewhere_is_asked_again_from_here() {
    let world = World::new();
    let path = format!("/approvals/{ID}");
    let from_mail = With::default().header("sec-fetch-site", "cross-site");
    let page = world.ask(Method::GET, &path, from_mail).await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.body.contains(&format!("content=\"0; url={path}\"")));
    assert!(!page.body.contains(DIGEST));
    let from_here = With::default().header("sec-fetch-site", "same-origin");
    assert_eq!(
        world.ask(Method::GET, &path, from_here).await.status,
        StatusCode::SEE_OTHER
    );
    let odd = With::default().header("sec-fetch-site", "cross-site");
    let page = world
        .ask(Method::GET, "/approvals/x%22%3E%3Cscript%3E", odd)
        .await;
    assert!(page.body.contains("url=/approvals\""), "{}", page.body);
}
