//! What a refused client gets: one mapping, from a reason to a status, a
//! challenge and a problem document.

use crate::host::{self, HostFault};
use crate::questions::Awaited;
use capability::headers;
use capability::reason::Reason;
use decision_api::{Deny, FirstUse};
use serde_json::{Map, Value};

/// How long a client waits before it looks whether somebody has decided, when
/// the control plane named no time; seconds.
const APPROVAL_RETRY_S: u32 = 5;
/// How long a client waits when nothing was spent and it may simply try again; seconds.
const UNAVAILABLE_RETRY_S: u32 = 1;

/// What a page's script has to read of a refusal, where it comes from another origin: whether
/// it is one of ours, and what is demanded (RFC 9449, section 8).
const EXPOSED: &str = "X-Writ-Reason";
const EXPOSED_OF_A_CHALLENGE: &str = "WWW-Authenticate, X-Writ-Reason";
const EXPOSED_OF_A_NONCE: &str = "DPoP-Nonce, WWW-Authenticate, X-Writ-Reason";

/// RFC 9110, section 15.5.14 and section 15.5.9.
const BODY_TOO_LARGE: u16 = 413;
const BODY_TOO_LATE: u16 = 408;

/// A refusal, before it is written down.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    reason: Reason,
    status: u16,
    retry_after_s: Option<u32>,
    approval_id: String,
    status_url: String,
    first_use: Option<Box<FirstUse>>,
    nonce: Option<String>,
}

impl Refusal {
    /// A refusal for this reason and nothing else. It says no `Retry-After`:
    /// what became of the token may not be known.
    pub fn new(reason: Reason) -> Self {
        Self {
            reason,
            status: reason.status(),
            retry_after_s: None,
            approval_id: String::new(),
            status_url: String::new(),
            first_use: None,
            nonce: None,
        }
    }

    /// The proof has to have a nonce, such as this one (RFC 9449, section 9). Nothing
    /// was spent.
    pub fn of_a_nonce(nonce: &str) -> Self {
        Self {
            nonce: Some(nonce.to_owned()),
            ..Self::new(Reason::ProofNonce)
        }
    }

    /// The control plane could not be asked, and nothing was spent: no question
    /// was sent, or its withdrawal was confirmed. Only then may a client repeat.
    pub fn not_asked() -> Self {
        Self {
            retry_after_s: Some(UNAVAILABLE_RETRY_S),
            ..Self::new(Reason::ControlPlaneUnavailable)
        }
    }

    /// The request waited for a human as long as it may; the approval stays open.
    pub fn still_pending(awaited: &Awaited) -> Self {
        Self {
            retry_after_s: Some(APPROVAL_RETRY_S),
            approval_id: awaited.approval_id.clone(),
            status_url: awaited.status_url.clone(),
            ..Self::new(Reason::ApprovalPending)
        }
    }

    /// The control plane's no. A word that is not on the closed list becomes
    /// `internal_error`: it is never passed on.
    pub fn denied(deny: Deny) -> Self {
        let reason = Reason::parse(&deny.reason).unwrap_or(Reason::InternalError);
        let retry_after_s = match (deny.retry_after_s, reason) {
            (0, Reason::ApprovalPending) => Some(APPROVAL_RETRY_S),
            (0, _) => None,
            (seconds, _) => Some(seconds),
        };
        Self {
            retry_after_s,
            approval_id: deny.approval_id,
            status_url: deny.status_url,
            first_use: deny.first_use.map(Box::new),
            ..Self::new(reason)
        }
    }

    /// The body is longer than its route reads. Nothing was spent.
    pub fn body_too_large() -> Self {
        Self::new(Reason::TooLarge).of_a_body()
    }

    /// The body did not come in time. Nothing was spent.
    pub fn body_too_late() -> Self {
        Self {
            status: BODY_TOO_LATE,
            ..Self::new(Reason::LimitExceeded)
        }
    }

    /// As many bodies wait here as may. Nothing was spent.
    pub fn too_many_bodies() -> Self {
        Self {
            retry_after_s: Some(UNAVAILABLE_RETRY_S),
            ..Self::new(Reason::LimitExceeded)
        }
    }

    /// As many requests are under way here as may. Nothing was spent.
    pub fn too_many_open() -> Self {
        Self {
            retry_after_s: Some(UNAVAILABLE_RETRY_S),
            ..Self::new(Reason::LimitExceeded)
        }
    }

    /// The same about a request whose body was read: what is too large is that.
    pub fn of_a_body(mut self) -> Self {
        if self.reason == Reason::TooLarge {
            self.status = BODY_TOO_LARGE;
        }
        self
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Answers the request in force; where its origin serves metadata, that is where.
    pub fn reply(&self, request_id: &str, metadata: Option<&str>) -> Result<(), HostFault> {
        // First the reason, since the access log of a local reply has none.
        host::set_reason(self.reason.as_str())?;
        let challenge = self.challenge(metadata);
        let retry_after = self.retry_after_s.map(|seconds| seconds.to_string());
        let mut with = vec![
            ("content-type", "application/problem+json"),
            ("cache-control", "no-store"),
            (headers::REASON, self.reason.as_str()),
        ];
        if let Some(challenge) = &challenge {
            with.push(("www-authenticate", challenge));
        }
        if let Some(seconds) = &retry_after {
            with.push(("retry-after", seconds));
        }
        if let Some(nonce) = &self.nonce {
            with.push(("dpop-nonce", nonce));
        }
        let exposed = match (&self.nonce, &challenge) {
            (Some(_), _) => EXPOSED_OF_A_NONCE,
            (None, Some(_)) => EXPOSED_OF_A_CHALLENGE,
            (None, None) => EXPOSED,
        };
        with.push(("access-control-expose-headers", exposed));
        host::reply(
            self.status,
            with,
            self.problem(request_id).to_string().as_bytes(),
        )
    }

    /// RFC 9449, section 7.1, and RFC 6750, section 3.1: no error code for a
    /// request that brought no credentials, and one challenge only. With 401 it says
    /// where the metadata is (RFC 9728, section 5.1).
    fn challenge(&self, metadata: Option<&str>) -> Option<String> {
        if !matches!(self.status, 401 | 403) {
            return None;
        }
        let algorithms = r#"algs="ES256 Ed25519""#;
        let mut challenge = match self.reason.oauth_error() {
            None => format!("DPoP {algorithms}"),
            Some(error) => {
                format!(
                    r#"DPoP error="{error}", error_description="{}", {algorithms}"#,
                    self.reason.title()
                )
            }
        };
        if let (401, Some(url)) = (self.status, metadata) {
            challenge.push_str(&format!(r#", resource_metadata="{url}""#));
        }
        Some(challenge)
    }

    /// RFC 9457. The `type` is the reason's own word, as a relative reference.
    fn problem(&self, request_id: &str) -> Value {
        let mut problem = Map::new();
        let reason = self.reason.as_str();
        problem.insert("type".to_owned(), reason.into());
        problem.insert("title".to_owned(), self.reason.title().into());
        problem.insert("status".to_owned(), self.status.into());
        problem.insert("reason".to_owned(), reason.into());
        problem.insert("request_id".to_owned(), request_id.into());
        for (name, text) in [
            ("approval_id", &self.approval_id),
            ("status_url", &self.status_url),
        ] {
            if !text.is_empty() {
                problem.insert(name.to_owned(), text.as_str().into());
            }
        }
        if let Some(seconds) = self.retry_after_s {
            problem.insert("retry_after_s".to_owned(), seconds.into());
        }
        if let Some(first_use) = &self.first_use {
            problem.insert("first_use".to_owned(), first_use_member(first_use));
        }
        Value::Object(problem)
    }
}

/// What became of the use that spent the token, so that a client which lost
/// the answer does not pay twice.
fn first_use_member(first_use: &FirstUse) -> Value {
    let mut member = Map::new();
    member.insert("result".to_owned(), first_use.result.as_str().into());
    if first_use.upstream_status != 0 {
        member.insert(
            "upstream_status".to_owned(),
            first_use.upstream_status.into(),
        );
    }
    if !first_use.request_id.is_empty() {
        member.insert(
            "request_id".to_owned(),
            first_use.request_id.as_str().into(),
        );
    }
    Value::Object(member)
}
