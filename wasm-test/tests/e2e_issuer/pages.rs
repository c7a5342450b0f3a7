//! Signing in, and what nobody sees or does without it.

use crate::plane::{Plane, Prepared};
use crate::visitor::{Browser, answer, cookies, hardened, http};

#[tokio::test]
async fn a_login_link_works_once_from_here_only() {
    let plane = Plane::start().await;
    let (page, secret) = plane.login_link().split_once('#').unwrap();
    let form = [("secret", secret)];
    let post = || http().post(page).form(&form);

    let wrong = answer(http().post(page).form(&[("secret", "wrong")])).await;
    assert_eq!((wrong.status, cookies(&wrong).len()), (401, 0));
    for (name, value) in [
        ("origin", "https://elsewhere.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        let refused = answer(post().header(name, value)).await;
        assert_eq!(
            (refused.status, cookies(&refused).len()),
            (403, 0),
            "{name}: {value}"
        );
    }
    for path in [page.to_owned(), format!("{page}?secret={secret}")] {
        assert_eq!(
            answer(http().get(path)).await.status,
            200,
            "a GET uses nothing up"
        );
    }
    let bare = answer(http().post(page)).await;
    assert!((400..500).contains(&bare.status), "{}", bare.status);

    let first = answer(post().header("origin", plane.issuer())).await;
    assert_eq!((first.status, first.header("location")), (303, Some("/")));
    let cookies = cookies(&first);
    assert_eq!(cookies.len(), 1);
    let parts: Vec<&str> = cookies[0].split("; ").collect();
    for flag in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(parts.contains(&flag), "{cookies:?}");
    }
    assert!(
        !cookies[0].to_lowercase().contains("domain="),
        "{cookies:?}"
    );
    assert!(
        !cookies[0].contains(secret),
        "the session is not the secret"
    );

    let second = answer(post()).await;
    assert_eq!(second.status, 401, "used");
    assert!(second.header("set-cookie").is_none());
    let refused = answer(
        http()
            .post(format!("{}/api/v1/session", plane.issuer()))
            .json(&serde_json::json!({ "secret": secret })),
    )
    .await;
    assert_eq!(refused.status, 401, "nor for a command line");
    assert!(
        plane
            .entries()
            .iter()
            .any(|entry| entry.to_string().contains("\"login\""))
    );

    // A restart signs everybody out.
    let cookie = cookies[0].split(';').next().unwrap().to_owned();
    let signed_in = Browser {
        ui: plane.issuer(),
        cookie,
    };
    assert_eq!(signed_in.get("/approvals").await.status, 200);
    let plane = plane.restart().await;
    assert_eq!(signed_in.get("/approvals").await.status, 303);
    Browser::login(plane.login_link()).await;
}

#[tokio::test]
async fn over_https_the_cookie_is_for_https_and_this_host_alone() {
    let prepared = Prepared::new();
    let listen = prepared.issuer();
    let plane = prepared
        .with("[server]\nissuer = \"https://writ.example\"")
        .start()
        .await;
    let (page, secret) = plane.login_link().split_once('#').unwrap();
    assert_eq!(page, "https://writ.example/login");
    let post = |origin: &str| {
        let request = http()
            .post(format!("{listen}/login"))
            .header("origin", origin);
        request.form(&[("secret", secret)])
    };
    let wrong = answer(post(&listen)).await;
    assert_eq!(
        wrong.status, 403,
        "the address that browsers use is the issuer's"
    );
    let right = answer(post("https://writ.example")).await;
    let cookies = cookies(&right);
    assert!(
        cookies[0].starts_with("__Host-") && cookies[0].contains("; Secure"),
        "{cookies:?}"
    );
}

#[tokio::test]
async fn without_a_session_nothing_is_shown_and_nothing_is_done() {
    let plane = Plane::start().await;
    let id = "apr_AAAAAAAAAAAAAAAAAAAAAA";
    let one = format!("/approvals/{id}");
    let api = format!("/api/v1/approvals/{id}");
    let paths = |base: &str, verbs: &[&str]| -> Vec<String> {
        verbs.iter().map(|verb| format!("{base}{verb}")).collect()
    };
    let gets = [
        paths(
            "",
            &[
                "/",
                "/approvals",
                "/approvals/list",
                "/approvals/events",
                "/audit",
                "/proxies",
                "/agents",
                "/agents/spiffe%3A%2F%2Fwrit.example%2Fa",
                "/agents/spiffe%3A%2F%2Fwrit.example%2Fa/change?to=active",
            ],
        ),
        paths(
            "",
            &[
                "/api/v1/approvals",
                "/api/v1/session",
                "/api/v1/status",
                "/api/v1/agents/spiffe%3A%2F%2Fwrit.example%2Fa",
                "/api/v1/nothing",
                "/api",
            ],
        ),
        vec![one.clone(), api.clone()],
    ];
    for path in gets.iter().flatten() {
        let got = answer(http().get(format!("{}{path}", plane.issuer()))).await;
        let sent_away = got.status == 303 && got.header("location").unwrap().starts_with("/login");
        assert!(got.status == 401 || sent_away, "GET {path}: {}", got.status);
        hardened(path, &got);
    }
    let posts = [
        paths(&one, &["/approve", "/deny"]),
        paths(&api, &["/approve", "/deny"]),
        paths("", &["/login-links", "/api/v1/login-links", "/logout"]),
        paths("/agents/a", &["/change"]),
    ];
    let fields = [("csrf", "x"), ("digest", "y")];
    for path in posts.iter().flatten() {
        let url = format!("{}{path}", plane.issuer());
        let got = answer(http().post(&url).form(&fields)).await;
        let sent_away = got.status == 303 && got.header("location") == Some("/login");
        assert!(
            got.status == 401 || sent_away,
            "POST {path}: {}",
            got.status
        );
        let got = answer(
            http()
                .post(&url)
                .json(&serde_json::json!({ "digest": "y" })),
        )
        .await;
        assert!(
            (400..500).contains(&got.status) || got.status == 303,
            "POST {path}: {}",
            got.status
        );
        hardened(path, &got);
        let got = answer(http().get(&url)).await;
        assert!(got.status != 200, "GET {path}");
    }
    let got = answer(http().delete(format!("{}/api/v1/session", plane.issuer()))).await;
    assert_eq!(got.status, 401);
    // A made-up session is none.
    for (name, value) in [
        ("cookie", "writ_session=AAAA"),
        ("authorization", "Session AAAA"),
        ("authorization", "Bearer AAAA"),
    ] {
        let got = answer(
            http()
                .get(format!("{}/api/v1/approvals", plane.issuer()))
                .header(name, value),
        )
        .await;
        assert_eq!(got.status, 401, "{name}: {value}");
    }
}
