//! Every route: its headers, what it does without a session, and that what
//! agents wrote stays text.

use serde_json::json;

use super::*;

const BROWSER_GETS: &[&str] = &[
    "/",
    "/approvals",
    "/approvals/apr_AAAAAAAAAAAAAAAAAAAAAA",
    "/audit",
    "/proxies",
];

#[tokio::test]
async fn without_a_session_every_route_says_no_and_does_nothing() {
    let world = World::new();
    let form = || With::form(format!("csrf=x&digest={DIGEST}&secret=x"));
    let body = || With::json(&json!({"digest": DIGEST}));
    for path in BROWSER_GETS {
        let answer = world.get(path, "writ_session=made-up").await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{path}");
        assert!(location(&answer).starts_with("/login"), "{path}");
    }
    let one = format!("/approvals/{ID}");
    for path in ["/approvals/list", "/approvals/events"] {
        assert_eq!(
            world.get(path, "").await.status,
            StatusCode::UNAUTHORIZED,
            "{path}"
        );
    }
    for path in [
        format!("{one}/approve"),
        format!("{one}/deny"),
        "/login".into(),
        "/login-links".into(),
    ] {
        assert_eq!(
            world.post(&path, form()).await.status,
            StatusCode::UNAUTHORIZED,
            "{path}"
        );
    }
    assert_eq!(location(&world.post("/logout", form()).await), "/login");
    for path in [
        "/api/v1/session",
        "/api/v1/approvals",
        "/api/v1/ledger",
        "/api/v1/nothing",
        "/api",
        &format!("/api/v1{one}"),
    ] {
        let answer = world.get(path, "").await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(
            answer.header("content-type"),
            "application/problem+json",
            "{path}"
        );
        assert!(!answer.body.contains(DIGEST));
    }
    for path in [
        format!("/api/v1{one}/approve"),
        format!("/api/v1{one}/deny"),
        "/api/v1/login-links".into(),
        "/api/v1/ledger/confirm".into(),
    ] {
        assert_eq!(
            world.post(&path, body()).await.status,
            StatusCode::UNAUTHORIZED,
            "{path}"
        );
    }
    let answer = world
        .ask(Method::DELETE, "/api/v1/session", With::default())
        .await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.state(), ApprovalState::Pending);
    assert!(lock(&world.desk.signed_in).is_empty());
}

#[tokio::test]
async fn every_answer_carries_the_headers() {
    let world = World::new();
    let (cookie, _) = world.sign_in().await;
    let css = world
        .get("/", &cookie)
        .await
        .body
        .split("href=\"")
        .find(|s| s.starts_with("/assets/app"))
        .unwrap()
        .split('"')
        .next()
        .unwrap()
        .to_owned();
    let status = format!("/approvals/{ID}/status");
    let others = [
        "/login",
        "/nothing",
        "/approvals/list",
        "/api/v1/approvals",
        "/api/v1/none",
        "/assets/none",
        &status,
    ];
    for path in BROWSER_GETS
        .iter()
        .chain(&others)
        .copied()
        .chain([css.as_str()])
    {
        for cookie in ["", cookie.as_str()] {
            for method in [Method::GET, Method::HEAD, Method::POST, Method::DELETE] {
                let answer = world
                    .ask(
                        method.clone(),
                        path,
                        With::default().header("cookie", cookie),
                    )
                    .await;
                let policy = answer.header("content-security-policy");
                assert!(
                    policy.starts_with("default-src 'none'; script-src 'self'; "),
                    "{method} {path}"
                );
                assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"));
                assert_eq!(
                    answer.header("x-content-type-options"),
                    "nosniff",
                    "{method} {path}"
                );
                assert_eq!(answer.header("referrer-policy"), "no-referrer");
                assert_eq!(answer.header("cross-origin-opener-policy"), "same-origin");
                let asset = path == css && answer.status == StatusCode::OK;
                assert_eq!(
                    answer.header("cache-control") == "no-store",
                    !asset,
                    "{method} {path}"
                );
            }
        }
    }
}

#[tokio::test]
async fn assets_are_named_by_their_content_and_kept() {
    let world = World::new();
    let page = world.get("/login", "").await.body;
    let names: Vec<&str> = page
        .split('"')
        .filter(|part| part.starts_with("/assets/"))
        .collect();
    for (end, kind) in [
        (".css", "text/css"),
        (".js", "text/javascript"),
        (".svg", "image/svg+xml"),
    ] {
        let name = names.iter().find(|name| name.ends_with(end)).unwrap();
        let asset = world.get(name, "").await;
        assert_eq!(asset.status, StatusCode::OK);
        assert!(asset.header("content-type").starts_with(kind));
        assert!(asset.header("cache-control").contains("immutable"));
    }
    for name in ["/assets/app.css", "/assets/..%2fapp.rs", "/assets/"] {
        assert_eq!(
            world.get(name, "").await.status,
            StatusCode::NOT_FOUND,
            "{name}"
        );
    }
}

/// Every tag of a page that could run something, and every inline handler or style.
fn alive(page: &str) -> Vec<&str> {
    let tags = page
        .split('<')
        .skip(1)
        .filter_map(|rest| rest.split('>').next());
    tags.filter(|tag| {
        let tag = tag.to_ascii_lowercase();
        let own_script = tag.starts_with("script src=\"/assets/app.") || tag == "/script";
        (tag.contains("script") && !own_script)
            || tag.starts_with("img src=x")
            || tag.starts_with("svg")
            || tag.starts_with("iframe")
            || tag.starts_with("style")
            || tag
                .split_whitespace()
                .any(|word| word.starts_with("on") && word.contains('='))
            || tag.contains(" style=")
    })
    .collect()
}

#[tokio::test]
async fn what_agents_write_is_inert_everywhere() {
    let payloads = [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "' onmouseover='alert(1)",
        "\" onfocus=\"alert(1)\" autofocus=\"",
        "</dd><svg/onload=alert(1)>",
        "javascript:alert(1)",
        "{{ 7*7 }}${7*7}<%= 7*7 %>",
        "--><style>*{display:none}</style>",
        "]]><iframe srcdoc='<script>alert(1)</script>'>",
        "a\0b\u{202e}c\u{2028}d\u{7f}<script\n>",
    ];
    for payload in payloads {
        let mut evil = approval(
            ID,
            NOW,
            &format!("http://127.0.0.1:8400/{payload}?{payload}={payload}&{payload}"),
        );
        evil.agent = payload.to_owned();
        evil.chain = vec![payload.to_owned()];
        evil.user = Some(ledger::model::User {
            issuer: payload.to_owned(),
            subject: payload.to_owned(),
        });
        evil.action.method = payload.to_owned();
        evil.action.kind = payload.to_owned();
        evil.rules = vec![payload.to_owned()];
        evil.reasons = vec![payload.to_owned()];
        evil.approvers = vec![payload.to_owned()];
        evil.policy_version = payload.to_owned();
        let mut past = evil.clone();
        past.id = "apr_past".to_owned();
        past.state = ApprovalState::Denied;
        past.decided_by = Some(payload.to_owned());
        past.decided_ms = Some(NOW);
        let mut world = World::with(vec![evil, past], ISSUER);
        let mut desk = FakeDesk::new(NOW, world.desk.list());
        desk.activity = vec![Activity {
            index: 1,
            time_ms: NOW,
            kind: payload.into(),
            summary: payload.into(),
        }];
        desk.proxies = vec![ProxyView {
            id: payload.into(),
            node: payload.into(),
            connected: true,
            detail: payload.into(),
            problem: Some(payload.into()),
        }];
        world.replace(desk);
        let (cookie, _) = world.sign_in().await;
        let query = format!("/login?next={}", "%3Cscript%3E");
        for path in BROWSER_GETS.iter().copied().chain([
            "/approvals/list",
            "/approvals/apr_past",
            query.as_str(),
        ]) {
            let page = world.get(path, &cookie).await;
            assert_eq!(page.status, StatusCode::OK, "{path}");
            assert_eq!(
                alive(&page.body),
                Vec::<&str>::new(),
                "{path} with {payload:?}"
            );
            assert!(
                !page.body.contains(['\0', '\u{202e}', '\u{2028}', '\u{7f}']),
                "{path}"
            );
        }
    }
}

#[test]
fn the_check_for_live_markup_finds_some() {
    for page in [
        "<script>",
        "<p onclick=x>",
        "<img src=x>",
        "<p style=x>",
        "<svg/onload=a>",
        "<script src=\"//x\">",
    ] {
        assert_eq!(alive(page).len(), 1, "{page}");
    }
}

#[tokio::test]
async fn one_approval_shows_all_of_it() {
    let long = format!(
        "http://127.0.0.1:8400/{}?q={}",
        "p/".repeat(2_000),
        "v".repeat(3_000)
    );
    let mut whole = approval(ID, NOW, &long);
    whole.user = None;
    let world = World::with(vec![whole], ISSUER);
    let (cookie, _) = world.sign_in().await;
    let page = world.get(&format!("/approvals/{ID}"), &cookie).await.body;
    let parts = [
        "http://127.0.0.1:8400",
        &"p/".repeat(2_000),
        &"v".repeat(3_000),
        "DELETE",
        DIGEST,
    ];
    for part in parts.into_iter().chain([
        "spiffe://writ.example/agent/demo",
        "itself, no user",
        "delete-needs-a-person",
    ]) {
        assert!(page.contains(part), "{part}");
    }
    let (action, button) = (
        page.find("p/p/p").unwrap(),
        page.find("/approve\"").unwrap(),
    );
    assert!(
        action < button,
        "the buttons come after what they are about"
    );
}

#[tokio::test]
async fn the_status_tells_agents_where_it_stands_and_no_more() {
    let world = World::new();
    let path = format!("/approvals/{ID}/status");
    let pending = world.get(&path, "").await;
    assert_eq!(
        pending.json(),
        json!({"id": ID, "status": "pending", "expires_at": "2026-11-22T12:15:05.250Z"})
    );
    assert_eq!(
        (
            pending.header("retry-after"),
            pending.header("cache-control")
        ),
        ("2", "no-store")
    );
    world
        .desk
        .change(|approvals| approvals[0].state = ApprovalState::Approved);
    let approved = world.get(&path, "").await;
    assert_eq!(
        (
            approved.json()["status"].as_str(),
            approved.header("retry-after")
        ),
        (Some("approved"), "")
    );
    assert_eq!(
        world.get("/approvals/apr_none/status", "").await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn big_bodies_wrong_methods_and_unknown_paths_get_pages() {
    let world = World::new();
    let (cookie, _) = world.sign_in().await;
    let big = "x".repeat(crate::web::BODY_MAX);
    let with = With::form(format!("csrf={big}&digest=00")).header("cookie", &cookie);
    let answer = world.post(&format!("/approvals/{ID}/approve"), with).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    let login = world
        .post("/login", With::form(format!("secret={big}")))
        .await;
    assert_eq!(login.status, StatusCode::PAYLOAD_TOO_LARGE);
    let api = world
        .post("/api/v1/session", With::json(&json!({"secret": big})))
        .await;
    assert_eq!(api.status, StatusCode::PAYLOAD_TOO_LARGE);
    let unknown = world.get("/nothing", "").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert!(unknown.body.contains("/assets/app."));
    let wrong = world
        .post("/approvals", With::form("").header("cookie", &cookie))
        .await;
    assert_eq!(
        (wrong.status, wrong.header("allow")),
        (StatusCode::METHOD_NOT_ALLOWED, "GET,HEAD")
    );
}

#[tokio::test]
async fn development_mode_is_on_every_page() {
    let mut world = World::new();
    let plain = world.get("/login", "").await.body;
    assert!(!plain.contains("Development mode"));
    let settings = WebSettings {
        secure_cookies: false,
        dev_single_uid: true,
        issuer: ISSUER.to_owned(),
        module_sha256: watch::channel(None).1,
        stop: CancellationToken::new(),
    };
    world.router = pages(world.desk.clone(), world.logins.clone(), settings);
    let (cookie, _) = world.sign_in().await;
    for path in BROWSER_GETS.iter().chain(&["/login", "/nothing"]) {
        assert!(
            world
                .get(path, &cookie)
                .await
                .body
                .contains("Development mode"),
            "{path}"
        );
    }
}
