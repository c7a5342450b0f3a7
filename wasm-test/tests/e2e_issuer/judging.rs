//! One exchange that a test may spoil in one place, and the judgement of what
//! came back.

use serde_json::{Value, json};
use wasm_test::client::{Answer, DpopKey};
use wasm_test::system::AGENT;

use crate::evidence::Authority;
use crate::plane::Plane;

pub const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
pub const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
pub const ACCESS: &str = "urn:ietf:params:oauth:token-type:access_token";

/// A token endpoint with a caller who has all that it takes.
pub struct Bench {
    pub plane: Plane,
    pub authority: Authority,
    pub key: DpopKey,
    http: reqwest::Client,
}

/// One POST to the token endpoint, good until it is spoilt.
#[derive(Clone)]
pub struct Attempt {
    pub url: String,
    pub content_type: Option<String>,
    pub params: Vec<(String, String)>,
    /// Sent as it is instead of `params`.
    pub body: Option<Vec<u8>>,
    pub proofs: Vec<Vec<u8>>,
    pub headers: Vec<(String, String)>,
}

/// What must come of an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    pub status: u16,
    pub error: &'static str,
    pub reason: &'static str,
}

/// A refusal with 400.
pub const fn no(error: &'static str, reason: &'static str) -> Verdict {
    Verdict {
        status: 400,
        error,
        reason,
    }
}

impl Bench {
    pub async fn start() -> Bench {
        Bench::over(Plane::start().await)
    }

    pub fn over(plane: Plane) -> Bench {
        Bench {
            authority: Authority::of(&plane.data()),
            key: DpopKey::generate().unwrap(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            plane,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.plane.origin())
    }

    pub fn svid(&self) -> String {
        self.authority.svid(AGENT, &self.plane.issuer(), &json!({}))
    }

    pub fn proof(&self) -> String {
        self.key.proof("POST", &self.plane.token_endpoint(), None)
    }

    /// A proof with claims laid over the good ones.
    pub fn proof_with(&self, claims: &Value) -> String {
        self.key
            .proof_with("POST", &self.plane.token_endpoint(), None, claims)
    }

    /// `authorization_details` of one GET.
    pub fn details(&self, path: &str) -> Value {
        json!([{ "type": "http_request", "actions": ["GET"], "locations": [self.url(path)] }])
    }

    /// As [`Bench::attempt`], by another agent.
    pub fn attempt_of(&self, agent: &str) -> Attempt {
        let mut attempt = self.attempt();
        let svid = self.authority.svid(agent, &self.plane.issuer(), &json!({}));
        attempt.set("subject_token", svid);
        attempt
    }

    /// A good one for a GET of a file that policy allows.
    pub fn attempt(&self) -> Attempt {
        let param = |name: &str, value: String| (name.to_owned(), value);
        Attempt {
            url: self.plane.token_endpoint(),
            content_type: Some("application/x-www-form-urlencoded".to_owned()),
            params: vec![
                param("grant_type", GRANT.to_owned()),
                param("subject_token", self.svid()),
                param("subject_token_type", JWT.to_owned()),
                param(
                    "authorization_details",
                    self.details("/files/report.txt").to_string(),
                ),
            ],
            body: None,
            proofs: vec![self.proof().into_bytes()],
            headers: Vec::new(),
        }
    }

    pub async fn send(&self, attempt: Attempt) -> Answer {
        self.try_send(attempt).await.expect("no answer")
    }

    /// Sends one as a client does that takes a nonce where it is asked for (RFC 9449, section
    /// 8), such as right after a start.
    pub async fn healed(&self, mut attempt: Attempt) -> Answer {
        let answer = self.send(attempt.clone()).await;
        match answer.header("dpop-nonce") {
            Some(nonce) if answer.oauth_error() == "use_dpop_nonce" => {
                attempt.prove(self.proof_with(&json!({ "nonce": nonce })));
                self.send(attempt).await
            }
            _ => answer,
        }
    }

    /// None when the server hangs up instead of answering.
    pub async fn try_send(&self, attempt: Attempt) -> Option<Answer> {
        let body = attempt.body.unwrap_or_else(|| form(&attempt.params));
        let mut request = self.http.post(&attempt.url).body(body);
        if let Some(content_type) = attempt.content_type {
            request = request.header("content-type", content_type);
        }
        for proof in attempt.proofs {
            let value = reqwest::header::HeaderValue::from_bytes(&proof).unwrap();
            request = request.header("dpop", value);
        }
        for (name, value) in attempt.headers {
            request = request.header(name, value);
        }
        let answer = request.send().await.ok()?;
        Some(Answer::read(answer).await.unwrap())
    }

    /// Sends a good one and takes the token.
    pub async fn token(&self) -> Value {
        issued("a good exchange", &self.healed(self.attempt()).await)
    }
}

impl Attempt {
    /// Sets a parameter, or takes it away.
    pub fn set(&mut self, name: &str, value: impl Into<Option<String>>) {
        self.params.retain(|(known, _)| known != name);
        if let Some(value) = value.into() {
            self.params.push((name.to_owned(), value));
        }
    }

    /// Adds a parameter beside what is there.
    pub fn add(&mut self, name: &str, value: &str) {
        self.params.push((name.to_owned(), value.to_owned()));
    }

    pub fn get(&self, name: &str) -> String {
        let found = self.params.iter().find(|(known, _)| known == name);
        found.unwrap().1.clone()
    }

    pub fn prove(&mut self, proof: impl Into<Vec<u8>>) {
        self.proofs = vec![proof.into()];
    }
}

pub fn form(params: &[(String, String)]) -> Vec<u8> {
    let mut url = reqwest::Url::parse("http://form/").unwrap();
    url.query_pairs_mut().extend_pairs(params);
    url.query().unwrap_or_default().as_bytes().to_vec()
}

/// A token endpoint's yes, in its form; the JSON of it.
pub fn issued(what: &str, answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    not_stored(what, answer);
    let body = answer.json();
    assert!(body["access_token"].is_string(), "{what}: {body}");
    body
}

/// A token endpoint's no: the words, the form of RFC 6749, section 5.2, and no
/// token in it.
pub fn refused(what: &str, answer: &Answer, verdict: Verdict) {
    let body = answer.json();
    let got = (
        answer.status,
        body["error"].as_str().unwrap_or_default(),
        body["reason"].as_str().unwrap_or_default(),
    );
    let wanted = (verdict.status, verdict.error, verdict.reason);
    assert_eq!(got, wanted, "{what}: {}", answer.text());
    not_stored(what, answer);
    assert!(body.get("access_token").is_none(), "{what}: {body}");
    let description = body["error_description"].as_str().unwrap();
    assert!(!description.is_empty(), "{what}");
    assert!(
        description
            .bytes()
            .all(|byte| (0x20..=0x7e).contains(&byte) && byte != b'"' && byte != b'\\'),
        "{what}: {description:?}"
    );
    if matches!(verdict.status, 429 | 503) {
        assert!(answer.header("retry-after").is_some(), "{what}");
    }
}

/// RFC 6749, section 5.1.
fn not_stored(what: &str, answer: &Answer) {
    let all = |name: &str| {
        let named = answer.headers.iter().filter(|(known, _)| known == name);
        named.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(all("cache-control"), ["no-store"], "{what}");
    assert_eq!(all("content-type"), ["application/json"], "{what}");
}

/// One way to spoil an exchange, and what must come of it.
pub type Case = (&'static str, Verdict, fn(&Bench, &mut Attempt));

pub async fn judge(bench: &Bench, cases: &[Case]) {
    for (what, verdict, spoil) in cases {
        let mut attempt = bench.attempt();
        spoil(bench, &mut attempt);
        refused(what, &bench.send(attempt).await, *verdict);
    }
    // Whatever came before, the next good one is served.
    bench.token().await;
}
