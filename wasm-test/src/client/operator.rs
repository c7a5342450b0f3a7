//! A person who takes rights away, over the JSON interface.

use serde_json::{Value, json};

use super::Answer;
use super::agent::http_client;
use crate::Error;

/// A signed-in session, as `writ login` gets one.
#[derive(Clone, Debug)]
pub struct Operator {
    at: String,
    session: String,
    http: reqwest::Client,
}

impl Operator {
    /// Signs in with a one-time link, `…/login#SECRET`, at this address.
    ///
    /// # Errors
    /// When the link isn't taken.
    pub async fn login_at(link: &str, at: &str) -> Result<Operator, Error> {
        let secret = link.rsplit('#').next().unwrap_or_default();
        let (url, http) = (format!("{at}/api/v1/session"), http_client());
        let request = http.post(&url).json(&json!({ "secret": secret }));
        let answer = Answer::read(request.send().await.map_err(Error::http(&url))?).await?;
        let session = answer.json();
        let session = session.get("session").and_then(Value::as_str);
        let session = session
            .ok_or_else(|| Error::Unexpected(format!("the login was refused: {}", answer.text())))?
            .to_owned();
        Ok(Operator {
            at: at.to_owned(),
            session,
            http,
        })
    }

    /// Sends a document to a path.
    ///
    /// # Errors
    /// When there is no answer, or another than 200.
    pub async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        body: &Value,
    ) -> Result<Answer, Error> {
        let url = format!("{}{path}", self.at);
        let request = self.http.request(method, &url).json(body);
        let request = request.header("authorization", format!("Session {}", self.session));
        let answer = Answer::read(request.send().await.map_err(Error::http(&url))?).await?;
        answer.expect(path, 200)
    }

    /// Stops a target: `{"agent": …}`, `{"key": …}`, ….
    ///
    /// # Errors
    /// As [`Operator::send`].
    pub async fn stop(&self, target: &Value) -> Result<Answer, Error> {
        let body = json!({ "target": target, "why": "a test" });
        self.send(reqwest::Method::POST, "/api/v1/stops", &body)
            .await
    }

    /// Lifts the stop of a target.
    ///
    /// # Errors
    /// As [`Operator::send`].
    pub async fn lift(&self, target: &Value) -> Result<Answer, Error> {
        let body = json!({ "target": target });
        self.send(reqwest::Method::POST, "/api/v1/stops/lift", &body)
            .await
    }
}
