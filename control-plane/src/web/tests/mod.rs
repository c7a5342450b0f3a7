//! The pages and the interface from outside, over a desk without a ledger.

mod agents;
mod deciding;
mod fake;
mod keys;
mod rights;
mod routes;
mod session;
mod socket;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use ledger::model::{Approval, ApprovalState, Millis};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use self::fake::{FakeDesk, approval, lock};
use super::{
    Activity, Desk, DeskError, KeyChange, KeyRefusal, KeyView, KeysChanged, Logins, ProxyView,
    RightsChange, WebSettings, pages,
};

const ISSUER: &str = "http://127.0.0.1:8480";
const NOW: Millis = 1_795_348_805_250;
const ID: &str = "apr_AAAAAAAAAAAAAAAAAAAAAA";
const DIGEST: &str = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a";

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

struct World {
    desk: Arc<FakeDesk>,
    logins: Logins,
    router: Router,
    stop: CancellationToken,
}

/// What a request carries besides its method and path.
#[derive(Clone, Default)]
struct With<'a> {
    headers: Vec<(&'a str, String)>,
    body: String,
}

impl<'a> With<'a> {
    fn form(body: impl Into<String>) -> Self {
        Self::default()
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body)
    }

    fn json(body: &Value) -> Self {
        Self::default()
            .header("content-type", "application/json")
            .body(body.to_string())
    }

    fn header(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }
}

impl World {
    fn new() -> Self {
        Self::with(
            vec![approval(ID, NOW, "http://127.0.0.1:8400/files/a.txt?x=1")],
            ISSUER,
        )
    }

    fn with(approvals: Vec<Approval>, issuer: &str) -> Self {
        let desk = Arc::new(FakeDesk::new(NOW, approvals));
        let logins = Logins::new();
        let stop = CancellationToken::new();
        let settings = WebSettings {
            secure_cookies: issuer.starts_with("https:"),
            dev_single_uid: false,
            issuer: issuer.to_owned(),
            module_sha256: watch::channel(Some("ab".repeat(32))).1,
            stop: stop.clone(),
        };
        let router = pages(desk.clone(), logins.clone(), settings);
        Self {
            desk,
            logins,
            router,
            stop,
        }
    }

    async fn ask(&self, method: Method, path: &str, with: With<'_>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in &with.headers {
            request = request.header(*name, value);
        }
        answer(
            self.router.clone(),
            request.body(Body::from(with.body)).unwrap(),
        )
        .await
    }

    async fn get(&self, path: &str, cookie: &str) -> Answer {
        self.ask(Method::GET, path, With::default().header("cookie", cookie))
            .await
    }

    async fn post(&self, path: &str, with: With<'_>) -> Answer {
        self.ask(Method::POST, path, with).await
    }

    /// Signs a browser in: its cookie, and the token of its forms.
    async fn sign_in(&self) -> (String, String) {
        let secret = self.logins.mint(self.desk.now_ms());
        self.sign_in_with(&secret).await
    }

    /// The same for whom a secret is for.
    async fn sign_in_with(&self, secret: &str) -> (String, String) {
        let answer = self
            .post("/login", With::form(format!("secret={secret}")))
            .await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.body);
        let cookie = answer
            .header("set-cookie")
            .split(';')
            .next()
            .unwrap()
            .to_owned();
        let page = self.get("/", &cookie).await;
        (cookie, field(&page.body, "csrf"))
    }

    /// Signs a command line in: the value of its `Authorization`.
    async fn sign_in_by_command_line(&self) -> String {
        let secret = self.logins.mint(self.desk.now_ms());
        let answer = self
            .post(
                "/api/v1/session",
                With::json(&serde_json::json!({"secret": secret})),
            )
            .await;
        assert_eq!(answer.status, StatusCode::CREATED);
        format!("Session {}", answer.json()["session"].as_str().unwrap())
    }

    /// The same world over another desk.
    fn replace(&mut self, desk: FakeDesk) {
        self.desk = Arc::new(desk);
        let settings = WebSettings {
            secure_cookies: false,
            dev_single_uid: false,
            issuer: ISSUER.to_owned(),
            module_sha256: watch::channel(None).1,
            stop: self.stop.clone(),
        };
        self.router = pages(self.desk.clone(), self.logins.clone(), settings);
    }

    fn state(&self) -> ApprovalState {
        self.desk.get(ID).unwrap().state
    }
}

async fn answer(router: Router, request: Request<Body>) -> Answer {
    let response = router.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: String::from_utf8(bytes.to_vec()).unwrap(),
    }
}

/// The value of a page's hidden input.
fn field(page: &str, name: &str) -> String {
    let start = format!("name=\"{name}\" value=\"");
    let rest = page
        .split_once(&start)
        .unwrap_or_else(|| panic!("no field {name} in {page}"))
        .1;
    rest.split_once('"').unwrap().0.to_owned()
}

fn location(answer: &Answer) -> &str {
    answer
        .headers
        .get(header::LOCATION)
        .map_or("", |value| value.to_str().unwrap())
}
