//! The one action that a capability allows, and its digest.

use serde_json::{Map, Value, json};

use crate::reason::Reason;
use crate::rpc::{Call, Protocol};
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
    #[error(
        "the authorization_details type is not supported: use http_request, mcp_request or a2a_request"
    )]
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
    /// `actions` does not hold one method of the protocol.
    #[error(
        "actions has to hold exactly one JSON-RPC method of the protocol: for mcp_request such as tools/call, for a2a_request such as SendMessage"
    )]
    RpcMethod,
    /// The method acts on one thing, which is not named.
    #[error(
        "this method acts on one tool, prompt or resource: say which in `name` (of a resource its URI)"
    )]
    NameMissing,
    /// The method acts on nothing that has a name.
    #[error(
        "`name` goes with tools/call, prompts/get, resources/read, resources/subscribe and resources/unsubscribe alone: leave it out"
    )]
    NameUnwanted,
    /// `name` or `skill` is none.
    #[error(
        "`name` and `skill` are 1 to 512 printable ASCII characters, without space at either end, and do not begin with `=?`"
    )]
    Name,
    /// `skill` of a method that has no message.
    #[error(
        "`skill` goes with SendMessage, SendStreamingMessage, message/send and message/stream alone: leave it out"
    )]
    NoSkill,
    /// `arguments_digest` is no SHA-256 digest.
    #[error(
        "arguments_digest has to be the SHA-256 of the canonical form (RFC 8785) of params.arguments, in base64url without padding"
    )]
    ArgumentsDigest,
    /// `arguments_digest` of a method that has none.
    #[error("`arguments_digest` goes with tools/call and prompts/get alone: leave it out")]
    NoArguments,
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

/// One action on one absolute URL with its query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Action {
    what: What,
    target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum What {
    /// `http_request`: one method, and the digest of the body where the action has one.
    Http {
        method: &'static str,
        content_digest: Option<[u8; 32]>,
    },
    /// `mcp_request`, `a2a_request`: the one message that is POSTed.
    Call(Call),
}

/// A request's body, as far as it is known when an action is compared with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// Not read here. An action that says anything of it is then none of this request's.
    Unread,
    /// It is still to come, and what passes the gates waits for it: no permit is
    /// made before [`crate::gates::Checked::with_body`] has seen it.
    Awaited,
    /// The request ended with its headers.
    Empty,
    /// All its bytes, as they were sent: before any decoding.
    Read {
        /// They themselves.
        bytes: &'a [u8],
        /// Their SHA-256.
        digest: [u8; 32],
    },
}

impl<'a> Body<'a> {
    /// A body that was read to its end.
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Self {
        Self::Read {
            bytes,
            digest: sha256(bytes),
        }
    }
}

impl Action {
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
        let kind = element.get("type").and_then(Value::as_str);
        let kind = kind.ok_or(ActionError::Malformed)?;
        let call = Protocol::ALL.into_iter().find(|it| it.kind() == kind);
        let own = match call {
            Some(protocol) => protocol.members(),
            None if kind == "http_request" => &["content_digest"],
            None => return Err(ActionError::Type),
        };
        let common = ["type", "actions", "locations"];
        let known = |name: &String| common.iter().chain(own).any(|it| it == name);
        if !element.keys().all(known) {
            return Err(ActionError::UnknownMember);
        }
        let location = only_text(element, "locations");
        if let Some(protocol) = call {
            let call = Call::from_element(protocol, element)?;
            return Self::message(call, location.ok_or(ActionError::Location)?);
        }
        let digest = |value: &Value| b64::decode32(value.as_str()?);
        let content_digest = match element.get("content_digest") {
            None => None,
            Some(value) => Some(digest(value).ok_or(ActionError::ContentDigest)?),
        };
        let method = only_text(element, "actions").ok_or(ActionError::Method)?;
        let action = Self::http(method, location.ok_or(ActionError::Location)?)?;
        Ok(action.with_content(content_digest))
    }

    /// `http_request` from its two parts, whatever the body.
    ///
    /// # Errors
    /// A method that is not known, a wildcard, or what [`Target::location`] refuses.
    pub fn http(method: &str, location: &str) -> Result<Self, ActionError> {
        if method == "*" || is_wild(location) {
            return Err(ActionError::Wildcard);
        }
        Ok(Self {
            what: What::Http {
                method: known_method(method).ok_or(ActionError::Method)?,
                content_digest: None,
            },
            target: Target::location(location)?,
        })
    }

    /// `mcp_request` or `a2a_request` from its two parts.
    ///
    /// # Errors
    /// A wildcard, or what [`Target::location`] refuses.
    pub fn message(call: Call, location: &str) -> Result<Self, ActionError> {
        if is_wild(location) {
            return Err(ActionError::Wildcard);
        }
        Ok(Self {
            what: What::Call(call),
            target: Target::location(location)?,
        })
    }

    fn with_content(mut self, digest: Option<[u8; 32]>) -> Self {
        if let What::Http { content_digest, .. } = &mut self.what {
            *content_digest = digest;
        }
        self
    }

    /// The `type` of its element.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match &self.what {
            What::Http { .. } => "http_request",
            What::Call(call) => call.protocol().kind(),
        }
    }

    /// The HTTP method, in upper case.
    #[must_use]
    pub fn method(&self) -> &'static str {
        match self.what {
            What::Http { method, .. } => method,
            What::Call(_) => "POST",
        }
    }

    /// The message that it is, where it is one.
    #[must_use]
    pub fn call(&self) -> Option<&Call> {
        match &self.what {
            What::Http { .. } => None,
            What::Call(call) => Some(call),
        }
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

    /// SHA-256 of the one body that it allows; none allows any, or is a message.
    #[must_use]
    pub fn content_digest(&self) -> Option<[u8; 32]> {
        match self.what {
            What::Http { content_digest, .. } => content_digest,
            What::Call(_) => None,
        }
    }

    /// Whether only a body that is read can be this action's.
    #[must_use]
    pub fn needs_body(&self) -> bool {
        self.call().is_some() || self.content_digest().is_some()
    }

    /// Whether a body is this action's, and where it is a message, which. One that was
    /// not read is not, where the action says anything of it.
    ///
    /// # Errors
    /// [`Reason::BodyMismatch`] where its digest is another, or that of its arguments;
    /// [`Reason::ActionMismatch`] where it is another message, or none.
    pub fn covers_body(&self, body: Body<'_>) -> Result<Option<Call>, Reason> {
        match (&self.what, body) {
            // Nothing speaks against it yet.
            (_, Body::Awaited) => Ok(None),
            (What::Http { content_digest, .. }, body) => {
                let same = |ours: &[u8; 32]| match body {
                    Body::Read { digest, .. } => same_bytes(ours, &digest),
                    Body::Empty => same_bytes(ours, &sha256(b"")),
                    Body::Unread | Body::Awaited => false,
                };
                let covered = content_digest.as_ref().is_none_or(same);
                covered.then_some(None).ok_or(Reason::BodyMismatch)
            }
            (What::Call(_), Body::Unread) => Err(Reason::BodyMismatch),
            (What::Call(_), Body::Empty) => Err(Reason::ActionMismatch),
            (What::Call(call), Body::Read { bytes, .. }) => {
                let message = Call::read(call.protocol(), bytes);
                let message = message.ok_or(Reason::ActionMismatch)?;
                call.covers(&message)?;
                Ok(Some(message))
            }
        }
    }

    /// Whether a request is this action, its body aside: exactly, after the one normalisation.
    /// Nothing is a prefix, and methods are compared with their case.
    #[must_use]
    pub fn covers(&self, method: &str, target: &Target) -> bool {
        self.method() == method && self.target == *target
    }

    /// The normalised element: what a token carries and a digest covers.
    #[must_use]
    pub fn to_details(&self) -> Value {
        let method = self.call().map_or(self.method(), Call::method);
        let mut element =
            json!({"type": self.kind(), "actions": [method], "locations": [self.location()]});
        if let Value::Object(members) = &mut element {
            match &self.what {
                What::Call(call) => call.write(members),
                What::Http { content_digest, .. } => {
                    if let Some(digest) = content_digest {
                        members.insert("content_digest".to_owned(), b64::encode(digest).into());
                    }
                }
            }
        }
        element
    }
}

fn is_wild(location: &str) -> bool {
    let path = location.split('?').next().unwrap_or_default();
    path.contains(['*', '{', '}'])
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

pub(crate) fn only_text<'a>(element: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    one(element.get(name)?)?.as_str()
}
