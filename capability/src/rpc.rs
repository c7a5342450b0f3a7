//! One JSON-RPC 2.0 message as an action: what MCP (Streamable HTTP) and A2A send as
//! the body of a POST.
//!
//! A body has one reading here or none: [`Call::read`] is strict in what it takes,
//! since the server behind the edge reads the same bytes with a parser of its own.

use serde_json::{Map, Value};

use crate::action::{ActionError, known_method, only_text};
use crate::reason::Reason;
use crate::{b64, body, jcs, json, same_bytes, sha256};

/// A name is at most this long; bytes.
pub const NAME_MAX: usize = 512;
/// A method is at most this long; bytes.
pub const METHOD_MAX: usize = 64;

/// Methods of MCP that act on one thing, and the member of `params` that names it.
const NAMED: [(&str, &str); 5] = [
    ("tools/call", "name"),
    ("prompts/get", "name"),
    ("resources/read", "uri"),
    ("resources/subscribe", "uri"),
    ("resources/unsubscribe", "uri"),
];
/// Methods of MCP that have `params.arguments`.
const WITH_ARGUMENTS: [&str; 2] = ["tools/call", "prompts/get"];
/// Methods of A2A that have `params.message`: of 1.0, and of 0.3.
const WITH_MESSAGE: [&str; 4] = [
    "SendMessage",
    "SendStreamingMessage",
    "message/send",
    "message/stream",
];
/// Where a message of A2A says its skill, since A2A itself has no place for it:
/// `params.message.metadata.skillId`.
const SKILL: &str = "skillId";
/// What a message may have, and nothing besides: a server that reads names in any case
/// would take `Method` for `method`.
const MEMBERS: [&str; 4] = ["jsonrpc", "id", "method", "params"];

/// Whose messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// The Model Context Protocol.
    Mcp,
    /// Agent2Agent.
    A2a,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Mcp, Self::A2a];

    /// The `type` of its `authorization_details` elements.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Mcp => "mcp_request",
            Self::A2a => "a2a_request",
        }
    }

    /// The member of an element that says on what the method acts.
    fn names_it(self) -> &'static str {
        match self {
            Self::Mcp => "name",
            Self::A2a => "skill",
        }
    }

    /// What else an element may have than type, actions and locations.
    pub(crate) fn members(self) -> &'static [&'static str] {
        match self {
            Self::Mcp => &["name", "arguments_digest"],
            Self::A2a => &["skill"],
        }
    }

    /// Whether this can be a method of the protocol's; HTTP's are none. Those that act on one thing by
    /// the other protocol's rules are not, or the other's rules could be gone round.
    fn has(self, method: &str) -> bool {
        let others = match self {
            Self::Mcp => WITH_MESSAGE.contains(&method),
            Self::A2a => NAMED.iter().any(|(known, _)| *known == method),
        };
        !others && is_method(method) && known_method(method).is_none()
    }
}

/// One method, and on what it acts: what a token allows, or what a message asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    protocol: Protocol,
    method: String,
    name: Option<String>,
    arguments_digest: Option<[u8; 32]>,
}

impl Call {
    /// What an element says besides its location.
    ///
    /// # Errors
    /// See [`ActionError`].
    pub(crate) fn from_element(
        protocol: Protocol,
        element: &Map<String, Value>,
    ) -> Result<Self, ActionError> {
        let method = only_text(element, "actions").ok_or(ActionError::RpcMethod)?;
        let text = |name: &str| match element.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.contains(['*', '{', '}']) => {
                Err(ActionError::Wildcard)
            }
            Some(Value::String(text)) if is_name(text) => Ok(Some(text.as_str())),
            Some(_) => Err(ActionError::Name),
        };
        let digest = |value: &Value| b64::decode32(value.as_str()?);
        let arguments_digest = match element.get("arguments_digest") {
            None => None,
            Some(value) => Some(digest(value).ok_or(ActionError::ArgumentsDigest)?),
        };
        Self::new(
            protocol,
            method,
            text(protocol.names_it())?,
            arguments_digest,
        )
    }

    /// From its parts: `name` is MCP's name, or A2A's skill.
    ///
    /// # Errors
    /// A method that the protocol has not; a name that is missing, means nothing for
    /// the method, or is none; a digest of arguments that the method has not.
    pub fn new(
        protocol: Protocol,
        method: &str,
        name: Option<&str>,
        arguments_digest: Option<[u8; 32]>,
    ) -> Result<Self, ActionError> {
        if method.contains(['*', '{', '}']) || name.is_some_and(|it| it.contains(['*', '{', '}'])) {
            return Err(ActionError::Wildcard);
        }
        if !protocol.has(method) {
            return Err(ActionError::RpcMethod);
        }
        if name.is_some_and(|name| !is_name(name)) {
            return Err(ActionError::Name);
        }
        match protocol {
            Protocol::Mcp => {
                let named = NAMED.iter().any(|(known, _)| *known == method);
                if named != name.is_some() {
                    return Err(match named {
                        true => ActionError::NameMissing,
                        false => ActionError::NameUnwanted,
                    });
                }
                if arguments_digest.is_some() && !WITH_ARGUMENTS.contains(&method) {
                    return Err(ActionError::NoArguments);
                }
            }
            Protocol::A2a => {
                if name.is_some() && !WITH_MESSAGE.contains(&method) {
                    return Err(ActionError::NoSkill);
                }
            }
        }
        Ok(Self {
            protocol,
            method: method.to_owned(),
            name: name.map(str::to_owned),
            arguments_digest,
        })
    }

    /// Reads a body as one message of this protocol: all that there is in it of what an
    /// action can name. None where there is no such reading, or more than one.
    ///
    /// It is one JSON object of `jsonrpc` "2.0", `method`, perhaps `params` (an object),
    /// and an `id` (a string or an integer), which a method that begins with
    /// `notifications/` has not. Arguments that are not there are `{}`.
    #[must_use]
    pub fn read(protocol: Protocol, body: &[u8]) -> Option<Self> {
        let message = json::parse_object(body, &body::LIMITS).ok()?;
        if !message.keys().all(|name| MEMBERS.contains(&name.as_str())) {
            return None;
        }
        if message.get("jsonrpc")?.as_str()? != "2.0" {
            return None;
        }
        let method = message.get("method")?.as_str()?;
        let notifies = protocol == Protocol::Mcp && method.starts_with("notifications/");
        match message.get("id") {
            None if notifies => {}
            Some(Value::String(_)) if !notifies => {}
            Some(Value::Number(id)) if !notifies && (id.is_i64() || id.is_u64()) => {}
            _ => return None,
        }
        let none = Map::new();
        let params = object(message.get("params"), &none)?;
        match protocol {
            Protocol::Mcp => {
                let named = NAMED.iter().find(|(known, _)| *known == method);
                let name = match named {
                    Some((_, member)) => Some(only(params, member)??.as_str()?),
                    None => None,
                };
                let arguments_digest = match WITH_ARGUMENTS.contains(&method) {
                    true => Some(digest(only(params, "arguments")?)?),
                    false => None,
                };
                Self::new(protocol, method, name, arguments_digest).ok()
            }
            Protocol::A2a => {
                let skill = match WITH_MESSAGE.contains(&method) {
                    true => {
                        // Without a message it is no message.
                        let message = only(params, "message")??.as_object()?;
                        let metadata = object(only(message, "metadata")?, &none)?;
                        only(metadata, SKILL)?
                    }
                    false => None,
                };
                let skill = match skill {
                    Some(skill) => Some(skill.as_str()?),
                    None => None,
                };
                Self::new(protocol, method, skill, None).ok()
            }
        }
    }

    /// Whether a message is what this allows.
    ///
    /// # Errors
    /// [`Reason::BodyMismatch`] where the arguments alone are others, else
    /// [`Reason::ActionMismatch`].
    pub fn covers(&self, message: &Self) -> Result<(), Reason> {
        // Where it names none the message has none: what policy was told of is what comes.
        let named = self.name == message.name;
        if self.protocol != message.protocol || self.method != message.method || !named {
            return Err(Reason::ActionMismatch);
        }
        let same = |ours: &[u8; 32]| {
            let theirs = message.arguments_digest.as_ref();
            theirs.is_some_and(|theirs| same_bytes(ours, theirs))
        };
        match &self.arguments_digest {
            Some(ours) if !same(ours) => Err(Reason::BodyMismatch),
            _ => Ok(()),
        }
    }

    /// Whose message it is.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The JSON-RPC method.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.method
    }

    /// MCP's tool, prompt or resource; A2A's skill.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// SHA-256 of the canonical form of `params.arguments`.
    #[must_use]
    pub fn arguments_digest(&self) -> Option<[u8; 32]> {
        self.arguments_digest
    }

    /// Its members in an element, besides type, actions and locations.
    pub(crate) fn write(&self, element: &mut Map<String, Value>) {
        if let Some(name) = &self.name {
            element.insert(self.protocol.names_it().to_owned(), name.as_str().into());
        }
        if let Some(digest) = &self.arguments_digest {
            element.insert("arguments_digest".to_owned(), b64::encode(digest).into());
        }
    }
}

/// Whether these headers say JSON in UTF-8 and nothing around it. Both are exact, and
/// empty without one.
#[must_use]
pub fn is_json(content_type: &str, content_encoding: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or_default();
    media.trim().eq_ignore_ascii_case("application/json")
        && content_encoding.is_empty()
        && body::is_json(content_type, content_encoding)
}

/// SHA-256 of the canonical form (RFC 8785) of `params.arguments`: absent ones are `{}`.
/// None where they are no object.
#[must_use]
pub fn digest(arguments: Option<&Value>) -> Option<[u8; 32]> {
    let text = match arguments {
        None => "{}".to_owned(),
        Some(arguments) if arguments.is_object() => jcs::to_string(arguments),
        Some(_) => return None,
    };
    Some(sha256(text.as_bytes()))
}

/// An object, or the empty one where there is nothing.
fn object<'a>(
    value: Option<&'a Value>,
    none: &'a Map<String, Value>,
) -> Option<&'a Map<String, Value>> {
    match value {
        None => Some(none),
        Some(value) => value.as_object(),
    }
}

/// The member of this name; none where another one is, to a reader that takes names in
/// any case, of the same name.
fn only<'a>(object: &'a Map<String, Value>, name: &str) -> Option<Option<&'a Value>> {
    let mut alike = object.keys().filter(|known| is_alike(known, name));
    alike.all(|known| known == name).then(|| object.get(name))
}

/// Simple case folding: `ſ` is an `s` and the Kelvin sign a `k`, as readers have it.
fn is_alike(a: &str, b: &str) -> bool {
    let folded = |text: &str| -> Vec<char> {
        let upper = text.chars().flat_map(char::to_uppercase);
        upper.flat_map(char::to_lowercase).collect()
    };
    // Most names are of another length, and no letter folds to more than three bytes less.
    a.len() >= b.len() && a.len() <= b.len().saturating_mul(3) && folded(a) == folded(b)
}

fn is_method(text: &str) -> bool {
    let inner =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'_' | b'-' | b'.');
    text.len() <= METHOD_MAX
        && text.bytes().all(inner)
        && text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphabetic())
}

/// Printable ASCII, as a header can have it: `=?` would be an encoding there.
fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len())
        && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
        && text.trim_ascii() == text
        && !text.starts_with("=?")
}
