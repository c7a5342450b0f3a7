//! What the sidecar itself says no with: problem documents (RFC 9457) with a
//! `reason`, as the edge's have one.

use super::Reply;
use bytes::Bytes;
use capability::reason::Reason;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use serde_json::{Map, Value};

/// A problem document and its status.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    reason: String,
    members: Map<String, Value>,
    retry_after_s: Option<u64>,
    is_final: bool,
}

impl Problem {
    fn new(status: StatusCode, reason: &str, title: &str) -> Self {
        let mut members = Map::new();
        members.insert("title".into(), title.into());
        Self {
            status,
            reason: reason.to_owned(),
            members,
            retry_after_s: None,
            is_final: false,
        }
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.into(), value.into());
        self
    }

    /// Another user's process.
    pub fn caller(detail: &str) -> Self {
        let title = "This process may not use this agent's identity.";
        Self::new(StatusCode::FORBIDDEN, "caller_refused", title).with("detail", detail)
    }

    /// It was meant for another host, or sent by a page.
    pub fn host(detail: &str) -> Self {
        let title = "This was not meant for this sidecar.";
        Self::new(StatusCode::FORBIDDEN, "host_refused", title).with("detail", detail)
    }

    /// A request that can't be passed on.
    pub fn request(detail: &str) -> Self {
        let title = "This request can't be passed on.";
        Self::new(StatusCode::BAD_REQUEST, "request_refused", title).with("detail", detail)
    }

    /// No target is there.
    pub fn no_target() -> Self {
        let title = "No target has this path.";
        Self::new(StatusCode::NOT_FOUND, "request_refused", title)
    }

    /// The body is over its limit; bytes.
    pub fn too_large(most: usize) -> Self {
        let title = "The body is too large.";
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Reason::TooLarge.as_str(),
            title,
        )
        .with("detail", format!("at most {most} bytes are passed on"))
    }

    /// The body did not come.
    pub fn too_late() -> Self {
        let title = "The body did not come in time, or broke off.";
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_refused", title)
    }

    /// The issuer's no, with the status that the edge would give the reason.
    pub fn exchange(error: &str, reason: &str, description: &str, request_id: &str) -> Self {
        let known = Reason::parse(reason);
        let status = known.map(|reason| reason.status());
        let status = status.and_then(|status| StatusCode::from_u16(status).ok());
        let title = known.map_or("The issuer refused this.", |reason| reason.title());
        let mut problem = Self::new(status.unwrap_or(StatusCode::BAD_GATEWAY), reason, title)
            .with("detail", description)
            .with("error", error)
            .with("request_id", request_id);
        if error == super::retry::TEMPORARY {
            problem.retry_after_s = Some(super::retry::ISSUER_RETRY_S);
        }
        problem
    }

    /// With what rules let the agent know of why.
    pub fn because(self, why: &[String]) -> Self {
        match why {
            [] => self,
            _ => self.with("why", why),
        }
    }

    /// The issuer or the Workload API can't be asked. Nothing was sent.
    pub fn unavailable(detail: &str) -> Self {
        let reason = Reason::ControlPlaneUnavailable.as_str();
        let title = "No token could be asked for, and nothing was sent.";
        let mut problem =
            Self::new(StatusCode::SERVICE_UNAVAILABLE, reason, title).with("detail", detail);
        problem.retry_after_s = Some(super::retry::ISSUER_RETRY_S);
        problem
    }

    /// The proxy can't be reached. Nothing was sent.
    pub fn not_sent(detail: &str) -> Self {
        let title = "The proxy can't be reached, and nothing was sent.";
        Self::new(StatusCode::BAD_GATEWAY, "proxy_unavailable", title).with("detail", detail)
    }

    /// The answer was lost, and nobody knows what became of the request.
    pub fn unknown(detail: &str) -> Self {
        let title =
            "The answer was lost and the outcome is not known: look before you send it again.";
        let mut problem = Self::new(
            StatusCode::BAD_GATEWAY,
            Reason::OutcomeUnknown.as_str(),
            title,
        )
        .with("detail", detail);
        problem.is_final = true;
        problem
    }

    /// The answer was lost, and the proxy knows what became of the request.
    pub fn lost(first_use: Value, request_id: Option<&Value>) -> Self {
        let title = match first_use.get("result").and_then(Value::as_str) {
            Some("forwarded") => {
                "The answer was lost. The request was passed on once: don't send it again."
            }
            _ => "The answer was lost. The request was refused.",
        };
        let mut problem =
            Self::new(StatusCode::BAD_GATEWAY, "answer_lost", title).with("first_use", first_use);
        if let Some(id) = request_id {
            problem = problem.with("request_id", id.clone());
        }
        problem.is_final = true;
        problem
    }

    /// A person said no, or nobody anything.
    pub fn not_approved(reason: Reason, held: &Value) -> Self {
        let mut problem = Self::new(StatusCode::FORBIDDEN, reason.as_str(), reason.title());
        for name in ["approval_id", "request_id"] {
            if let Some(value) = held.get(name) {
                problem = problem.with(name, value.clone());
            }
        }
        problem
    }

    /// The reason.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The answer to the agent.
    pub fn reply(self) -> Reply {
        let mut document = self.members;
        document.insert("type".into(), self.reason.clone().into());
        document.insert("reason".into(), self.reason.into());
        document.insert("status".into(), self.status.as_u16().into());
        let body = Bytes::from(Value::Object(document).to_string());
        let mut reply = Response::new(Full::new(body).map_err(|never| match never {}).boxed());
        *reply.status_mut() = self.status;
        let headers = reply.headers_mut();
        let problem = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, problem);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.is_final {
            // What some clients' libraries ask before they repeat a 5xx.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        reply
    }
}
