//! The one action that a capability allows, and its digest.

use serde_json::{Map, Value, json};

use crate::url::{Target, UrlError};
use crate::{b64, jcs, same_bytes, sha256};

/// The methods that an action can name. CONNECT and TRACE are none: they ask
/// the proxy for something and not the resource.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Why an `authorization_details` element is refused (RFC 9396, section 5:
/// `invalid_authorization_details`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// Not an array with one element.
    #[error("authorization_details has to be an array with exactly one element")]
    NotOne,
    /// Not an object with a string `type`.
    #[error("the authorization_details element has to be an object with a `type`")]
    Malformed,
    /// A type that is not known here.
    #[error("the authorization_details type is not supported: use http_request")]
    Type,
    /// `content_digest` is no SHA-256 digest.
    #[error(
        "content_digest has to be the SHA-256 of the body as it is sent, in base64url without padding"
    )]
    ContentDigest,
    /// A member that is not known, and might have narrowed the action.
    #[error("the authorization_details element has a member that is not known: leave it out")]
    UnknownMember,
    /// `actions` does not hold one known method.
    #[error(
        "actions has to hold exactly one method, in upper case: GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS"
    )]
    Method,
    /// `locations` does not hold one string.
    #[error("locations has to hold exactly one absolute URL")]
    Location,
    /// A wildcard or a template.
    #[error("a wildcard is not an action: name the one URL and the one method")]
    Wildcard,
    /// The URL is refused.
    #[error("the location is refused: {0}")]
    Url(#[from] UrlError),
}

/// `http_request`: one method on one absolute URL with its query, and the
/// digest of the body where the action has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpAction {
    method: &'static str,
    target: Target,
    content_digest: Option<[u8; 32]>,
}

/// A request's body, as far as it is known when an action is compared with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Not read here. An action that has a digest is then none of this request's.
    Unread,
    /// It is still to come, and what passes the gates waits for it: no permit is
    /// made before [`crate::gates::Checked::with_body`] has seen it.
    Awaited,
    /// The request ended with its headers.
    Empty,
    /// SHA-256 of all its bytes, as they were sent: before any decoding.
    Digest([u8; 32]),
}

impl HttpAction {
    /// Reads a whole `authorization_details` array.
    ///
    /// # Errors
    /// See [`ActionError`].
    pub fn from_authorization_details(array: &Value) -> Result<Self, ActionError> {
        Self::from_details(one(array).ok_or(ActionError::NotOne)?)
    }

    /// Reads the one element.
    ///
    /// # Errors
    /// See [`ActionError`].
    pub fn from_details(element: &Value) -> Result<Self, ActionError> {
        let element = element.as_object().ok_or(ActionError::Malformed)?;
        match element.get("type").and_then(Value::as_str) {
            Some("http_request") => {}
            Some(_) => return Err(ActionError::Type),
            None => return Err(ActionError::Malformed),
        }
        let digest = |value: &Value| b64::decode32(value.as_str()?);
        let content_digest = match element.get("content_digest") {
            None => None,
            Some(value) => Some(digest(value).ok_or(ActionError::ContentDigest)?),
        };
        let known = |name: &String| {
            matches!(
                name.as_str(),
                "type" | "actions" | "locations" | "content_digest"
            )
        };
        if !element.keys().all(known) {
            return Err(ActionError::UnknownMember);
        }
        let method = only_text(element, "actions").ok_or(ActionError::Method)?;
        let location = only_text(element, "locations").ok_or(ActionError::Location)?;
        Ok(Self {
            content_digest,
            ..Self::new(method, location)?
        })
    }

    /// An action from its two parts, whatever the body.
    ///
    /// # Errors
    /// A method that is not known, a wildcard, or what [`Target::location`] refuses.
    pub fn new(method: &str, location: &str) -> Result<Self, ActionError> {
        let path = location.split('?').next().unwrap_or_default();
        if method == "*" || path.contains(['*', '{', '}']) {
            return Err(ActionError::Wildcard);
        }
        Ok(Self {
            method: known_method(method).ok_or(ActionError::Method)?,
            target: Target::location(location)?,
            content_digest: None,
        })
    }

    /// The method, in upper case.
    #[must_use]
    pub fn method(&self) -> &'static str {
        self.method
    }

    /// The normalised absolute URL, with its query.
    #[must_use]
    pub fn location(&self) -> String {
        self.target.to_string()
    }

    /// The normalised URL in its parts.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// `scheme://host[:port]` of the location.
    #[must_use]
    pub fn origin(&self) -> &str {
        self.target.origin().as_str()
    }

    /// Path and query of the location.
    #[must_use]
    pub fn path_and_query(&self) -> String {
        self.target.path_and_query()
    }

    /// SHA-256 of the one body that it allows; none allows any.
    #[must_use]
    pub fn content_digest(&self) -> Option<[u8; 32]> {
        self.content_digest
    }

    /// Whether a body is this action's. One that was not read is not, where the
    /// action has a digest.
    #[must_use]
    pub fn covers_body(&self, body: Body) -> bool {
        let Some(digest) = self.content_digest else {
            return true;
        };
        match body {
            Body::Unread => false,
            // Nothing speaks against it yet.
            Body::Awaited => true,
            Body::Empty => same_bytes(&digest, &sha256(b"")),
            Body::Digest(body) => same_bytes(&digest, &body),
        }
    }

    /// Whether a request is this action, its body aside: exactly, after the one normalisation.
    /// Nothing is a prefix, and methods are compared with their case.
    #[must_use]
    pub fn covers(&self, method: &str, target: &Target) -> bool {
        self.method == method && self.target == *target
    }

    /// The normalised element: what a token carries and a digest covers.
    #[must_use]
    pub fn to_details(&self) -> Value {
        let mut element = json!({"type": "http_request", "actions": [self.method], "locations": [self.location()]});
        if let (Some(digest), Value::Object(element)) = (self.content_digest, &mut element) {
            element.insert("content_digest".to_owned(), b64::encode(&digest).into());
        }
        element
    }
}

/// What an approval covers and a held request is known by.
#[derive(Clone, Copy, Debug)]
pub struct DigestInput<'a> {
    /// The agent's SPIFFE ID.
    pub agent: &'a str,
    /// Issuer and subject of the user whom it acts for.
    pub user: Option<(&'a str, &'a str)>,
    /// The `act` chain, outermost first; never `txn`.
    pub chain: &'a [String],
    /// The normalised `authorization_details` element.
    pub element: &'a Value,
    /// The request's `content-type`, as it was sent.
    pub content_type: Option<&'a str>,
    /// The request's `content-encoding`, as it was sent.
    pub content_encoding: Option<&'a str>,
    /// Base64url SHA-256 of the body, where bodies are read.
    pub body_digest: Option<&'a str>,
}

/// The action digest: SHA-256 of the JCS form of an object with the members
/// `action`, `agent`, `body_digest`, `chain`, `content_encoding`,
/// `content_type` and `user` ({`iss`, `sub`}); what is missing is `null`.
#[must_use]
pub fn digest(input: &DigestInput<'_>) -> [u8; 32] {
    let value = json!({
        "agent": input.agent,
        "user": input.user.map(|(iss, sub)| json!({"iss": iss, "sub": sub})),
        "chain": input.chain,
        "action": input.element,
        "content_type": input.content_type,
        "content_encoding": input.content_encoding,
        "body_digest": input.body_digest,
    });
    sha256(jcs::to_string(&value).as_bytes())
}

/// The spelling of a method that an action can name.
pub(crate) fn known_method(method: &str) -> Option<&'static str> {
    METHODS.into_iter().find(|known| *known == method)
}

fn one(array: &Value) -> Option<&Value> {
    match array.as_array()?.as_slice() {
        [element] => Some(element),
        _ => None,
    }
}

fn only_text<'a>(element: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    one(element.get(name)?)?.as_str()
}
