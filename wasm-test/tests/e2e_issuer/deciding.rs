//! Deciding on the page: by its own form, by whom the rule names, live.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use wasm_test::client::Agent;
use wasm_test::system::System;

use crate::visitor::{Browser, Form, answer, hardened, held, http, system};

const PATH: &str = "/files/restricted/payroll.csv";

/// A hold that waits for a signed-in browser, and the fields of its form.
struct Waiting {
    system: System,
    agent: Agent,
    browser: Browser,
    id: String,
    page: String,
    status_url: String,
    csrf: String,
    digest: String,
}

impl Waiting {
    async fn new() -> Waiting {
        let system = system().await;
        let agent = system.agent().await.unwrap();
        let browser = Browser::login(&system.serve_ready().approver_login).await;
        let (id, status_url) = held(&agent, PATH).await;
        let page = format!("/approvals/{id}");
        let csrf = browser.field(&page, "csrf").await;
        let digest = browser.field(&page, "digest").await;
        Waiting {
            system,
            agent,
            browser,
            id,
            page,
            status_url,
            csrf,
            digest,
        }
    }

    fn good(&self) -> [(&str, &str); 2] {
        [("csrf", &self.csrf), ("digest", &self.digest)]
    }

    fn approve(&self) -> String {
        format!("{}/approve", self.page)
    }

    /// What agents see of it.
    async fn status(&self) -> String {
        let got = answer(http().get(&self.status_url)).await;
        let body = got.json();
        assert_eq!(got.status, 200, "{body}");
        assert!(
            !got.text().contains("payroll"),
            "it says nothing of the action: {body}"
        );
        body["status"].as_str().unwrap().to_owned()
    }

    /// Nothing that a test tried has done anything.
    async fn undecided(self) {
        assert_eq!(self.status().await, "pending");
        assert_eq!(self.system.upstream().unwrap().arrived(), 0);
        self.system.stop().await;
    }
}

/// A session of the same person, by a link that was made in `browser`'s.
async fn another(browser: &Browser) -> Browser {
    let csrf = browser.field("/", "csrf").await;
    let made = browser.post("/login-links", &[("csrf", &csrf)]).await;
    let made = made.text();
    let (_, link) = made.split_once("<code class=\"long\">").unwrap();
    Browser::login(link.split('<').next().unwrap()).await
}

#[tokio::test]
async fn the_page_shows_what_a_yes_covers() {
    let waiting = Waiting::new().await;
    let shown = waiting.browser.get(&waiting.page).await;
    hardened(&waiting.page, &shown);
    let facts = [
        "payroll.csv",
        "GET",
        wasm_test::system::AGENT,
        "Restricted files are read only",
        "restricted-needs-approval",
    ];
    for fact in facts {
        assert!(
            shown.text().contains(fact),
            "the page does not show {fact:?}"
        );
    }
    assert_eq!(waiting.digest.len(), 64, "{}", waiting.digest);
    assert!(
        shown.text().matches(waiting.digest.as_str()).count() >= 2,
        "the digest is shown as well"
    );
    waiting.undecided().await;
}

#[tokio::test]
async fn no_other_method_and_no_spoilt_form_decides() {
    let waiting = Waiting::new().await;
    let (browser, approve, good) = (&waiting.browser, waiting.approve(), waiting.good());
    // GET and HEAD do nothing (I08), nor does what lacks or forges a field.
    let query = format!("{approve}?csrf={}&digest={}", waiting.csrf, waiting.digest);
    for method in [
        Method::GET,
        Method::HEAD,
        Method::PUT,
        Method::DELETE,
        Method::OPTIONS,
    ] {
        let got = answer(browser.request(method.clone(), &query)).await;
        assert!(got.status >= 400, "{method}: {}", got.status);
    }
    let other_digest: String = waiting.digest.chars().rev().collect();
    assert_ne!(other_digest, waiting.digest);
    let cases: [(&str, u16, Form); 8] = [
        ("no field", 422, vec![]),
        ("no csrf", 422, vec![good[1]]),
        ("no digest", 422, vec![good[0]]),
        ("an empty csrf", 403, vec![("csrf", ""), good[1]]),
        ("another csrf", 403, vec![("csrf", "AAAA"), good[1]]),
        ("an empty digest", 409, vec![good[0], ("digest", "")]),
        (
            "another digest",
            409,
            vec![good[0], ("digest", &other_digest)],
        ),
        ("the csrf twice", 422, vec![good[0], good[0], good[1]]),
    ];
    for (what, wanted, form) in cases {
        let got = browser.post(&approve, &form).await;
        assert_eq!(got.status, wanted, "{what}: {}", got.text());
    }
    waiting.undecided().await;
}

#[tokio::test]
async fn no_other_site_and_no_other_session_decides() {
    let waiting = Waiting::new().await;
    let (browser, approve, good) = (&waiting.browser, waiting.approve(), waiting.good());
    for (name, value) in [
        ("origin", "https://elsewhere.example"),
        ("origin", "null"),
        ("origin", "http://127.0.0.1"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        let request = browser.request(Method::POST, &approve).header(name, value);
        let got = answer(request.form(&good)).await;
        assert_eq!(got.status, 403, "{name}: {value}");
    }
    // Another session's token does not fit, and a browser's session is no
    // command line's.
    assert_eq!(
        another(&waiting.browser)
            .await
            .post(&approve, &good)
            .await
            .status,
        403
    );
    let session = browser.cookie.split_once('=').unwrap().1;
    let api = format!("{}/api/v1{approve}", waiting.system.issuer());
    for (name, value) in [
        ("authorization", format!("Session {session}")),
        ("cookie", browser.cookie.clone()),
    ] {
        let request = http().post(&api).json(&json!({ "digest": waiting.digest }));
        assert_eq!(
            answer(request.header(name, value)).await.status,
            401,
            "{name}"
        );
    }
    waiting.undecided().await;
}

#[tokio::test]
async fn a_yes_is_for_exactly_that_action_once() {
    let waiting = Waiting::new().await;
    let (browser, agent, good) = (&waiting.browser, &waiting.agent, waiting.good());
    let upstream = waiting.system.upstream().unwrap();
    let yes = browser.post(&waiting.approve(), &good).await;
    assert_eq!(
        (yes.status, yes.header("location")),
        (303, Some(waiting.page.as_str()))
    );
    assert_eq!(
        browser.post(&waiting.approve(), &good).await.status,
        303,
        "again is fine (I16)"
    );
    let no = browser.post(&format!("{}/deny", waiting.page), &good).await;
    assert_eq!(no.status, 409, "a yes is not turned into a no");
    assert_eq!(waiting.status().await, "approved");

    let (other, _) = held(agent, &format!("{PATH}?x=1")).await;
    assert_ne!(other, waiting.id);
    assert_eq!(agent.call("GET", PATH).await.unwrap().status, 200);
    assert_eq!(waiting.status().await, "consumed");
    let (again, _) = held(agent, PATH).await;
    assert_ne!(again, waiting.id, "a yes counts once");
    assert_eq!(upstream.arrived(), 1);

    // A no for the next one; nothing goes through.
    let page = format!("/approvals/{again}");
    let digest = browser.field(&page, "digest").await;
    let form = [("csrf", waiting.csrf.as_str()), ("digest", digest.as_str())];
    assert_eq!(
        browser.post(&format!("{page}/deny"), &form).await.status,
        303
    );
    assert_eq!(upstream.arrived(), 1);
    waiting.system.stop().await;
}

#[tokio::test]
async fn signing_out_ends_a_session_and_what_came_of_it() {
    let waiting = Waiting::new().await;
    let first = &waiting.browser;
    let second = another(first).await;
    let third = another(&second).await;
    let spoilt = second.post("/logout", &[("csrf", "AAAA")]).await;
    assert_eq!(spoilt.status, 403);
    assert_eq!(third.get("/approvals").await.status, 200);

    let csrf = second.field("/", "csrf").await;
    let out = second.post("/logout", &[("csrf", &csrf)]).await;
    assert_eq!(out.status, 303);
    assert_eq!(second.get("/approvals").await.status, 303);
    assert_eq!(third.get("/approvals").await.status, 303, "it came of that");
    let form = [("csrf", csrf.as_str()), ("digest", &waiting.digest)];
    let late = second.post(&waiting.approve(), &form).await;
    assert_eq!(late.status, 401);
    assert_eq!(first.get("/approvals").await.status, 200, "one, not all");
    waiting.undecided().await;
}

#[tokio::test]
async fn only_whom_the_rule_names_may_decide_and_the_inbox_is_live() {
    let system = system().await;
    let agent = system.agent().await.unwrap();
    let browser = Browser::login(&system.serve_ready().approver_login).await;

    let request = browser.request(Method::GET, "/approvals/events");
    let mut events = request.send().await.unwrap();
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    // The first event says how things stand.
    let first = event(&mut events).await;
    let waiting = tokio::spawn(async move { held(&agent, "/files/board/minutes.txt").await });
    let second = event(&mut events).await;
    assert!(first.contains("event: change") && second.contains("event: change"));
    assert_ne!(first, second);
    let list = browser.get("/approvals/list").await.text();
    assert!(list.contains("/files/board/minutes.txt"), "{list}");
    let (id, _) = waiting.await.unwrap();

    let page = format!("/approvals/{id}");
    let (csrf, digest) = (
        browser.field(&page, "csrf").await,
        browser.field(&page, "digest").await,
    );
    let form = [("csrf", csrf.as_str()), ("digest", digest.as_str())];
    for verb in ["approve", "deny"] {
        let got = browser.post(&format!("{page}/{verb}"), &form).await;
        assert_eq!(got.status, 403, "{verb}: {}", got.text());
    }
    let status = browser.get(&format!("{page}/status")).await.json();
    assert_eq!(status["status"], "pending");
    system.stop().await;
}

/// The next event of a stream, comments left out.
async fn event(events: &mut reqwest::Response) -> String {
    let mut text = String::new();
    let reading = async {
        loop {
            let chunk = events.chunk().await.unwrap().expect("the stream ended");
            text.push_str(std::str::from_utf8(&chunk).unwrap());
            if text.contains("event:") && text.ends_with("\n\n") {
                return;
            }
        }
    };
    let patience = tokio::time::timeout(Duration::from_secs(10), reading);
    patience.await.expect("no event in 10 s");
    text
}
