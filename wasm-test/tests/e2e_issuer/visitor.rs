//! A browser whose every header a test may choose, and what all pages answer with.

use reqwest::{Method, RequestBuilder};
use wasm_test::client::{Agent, Answer};
use wasm_test::system::{Options, System};

use crate::plane::{BOARD, POLICY};

const CSP: &str = "default-src 'none'";

pub fn http() -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy();
    builder
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap()
}

pub async fn answer(request: RequestBuilder) -> Answer {
    Answer::read(request.send().await.unwrap()).await.unwrap()
}

pub fn cookies(answer: &Answer) -> Vec<String> {
    let set = answer
        .headers
        .iter()
        .filter(|(name, _)| name == "set-cookie");
    set.map(|(_, value)| value.clone()).collect()
}

/// A form's fields.
pub type Form<'a> = Vec<(&'a str, &'a str)>;

/// A signed-in browser, whose every header a test may choose.
pub struct Browser {
    pub ui: String,
    pub cookie: String,
}

impl Browser {
    pub async fn login(link: &str) -> Browser {
        let (page, secret) = link.split_once('#').unwrap();
        let answer = answer(http().post(page).form(&[("secret", secret)])).await;
        assert_eq!(answer.status, 303, "{}", answer.text());
        let cookie = cookies(&answer)[0].split(';').next().unwrap().to_owned();
        let ui = page.strip_suffix("/login").unwrap().to_owned();
        Browser { ui, cookie }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = http().request(method, format!("{}{path}", self.ui));
        request.header("cookie", &self.cookie)
    }

    pub async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    /// Posts as the page's own form would, with `form` as its fields.
    pub async fn post(&self, path: &str, form: &[(&str, &str)]) -> Answer {
        let request = self.request(Method::POST, path).header("origin", &self.ui);
        answer(request.header("sec-fetch-site", "same-origin").form(form)).await
    }

    /// The value of a hidden field of a page.
    pub async fn field(&self, path: &str, name: &str) -> String {
        let page = self.get(path).await.text();
        // Forms come after the sign-out form, whose token is the same.
        let (_, rest) = page
            .split_once(&format!("name=\"{name}\" value=\""))
            .unwrap();
        rest.split('"').next().unwrap().to_owned()
    }
}

pub fn hardened(path: &str, answer: &Answer) {
    let csp = answer.header("content-security-policy").unwrap_or_default();
    assert!(
        csp.contains(CSP) && csp.contains("frame-ancestors 'none'"),
        "{path}: {csp}"
    );
    assert!(
        !csp.contains("unsafe") && !csp.contains('*'),
        "{path}: {csp}"
    );
    assert_eq!(
        answer.header("x-content-type-options"),
        Some("nosniff"),
        "{path}"
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
    assert_eq!(
        answer.header("referrer-policy"),
        Some("no-referrer"),
        "{path}"
    );
}

/// A system with a board beside the platform, which holds for a second.
pub async fn system() -> System {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), POLICY).unwrap();
    let options = Options {
        hold_s: 1,
        policy: Some(file.path().to_owned()),
        extra_config: BOARD.to_owned(),
        ..Options::default()
    };
    System::for_test(options).await.unwrap()
}

/// Calls until the proxy's wait is over; the approval's id and status URL.
pub async fn held(agent: &Agent, path: &str) -> (String, String) {
    let answer = agent.call("GET", path).await.unwrap();
    let body = answer.json();
    assert_eq!(answer.summary(), "403 approval_pending", "{body}");
    assert!(answer.header("retry-after").is_some());
    let member = |name: &str| body[name].as_str().unwrap().to_owned();
    (member("approval_id"), member("status_url"))
}
