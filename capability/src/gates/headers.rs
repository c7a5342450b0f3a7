//! What the gates read of the header map.

use crate::action::Action;
use crate::headers::is_alike;
use crate::reason::Reason;
use crate::rpc::{self, Protocol};

pub(super) struct Credentials<'a> {
    pub(super) token: &'a str,
    pub(super) proof: &'a str,
}

/// Exactly one `authorization` (scheme `DPoP` in any case, one space, one
/// token68, so no comma) and exactly one `dpop`.
///
/// No `authorization` at all is `missing_credentials`, whatever `dpop` there
/// is: the client has not tried to authenticate. Everything else is
/// `malformed_credentials`: Bearer and every other scheme too, since a bound
/// token must not be taken as a bearer token (RFC 9449, section 7.2).
pub(super) fn credentials(headers: &[(Vec<u8>, Vec<u8>)]) -> Result<Credentials<'_>, Reason> {
    let authorization = match only(headers, "authorization") {
        Count::None => return Err(Reason::MissingCredentials),
        Count::One(value) => value,
        Count::Many => return Err(Reason::MalformedCredentials),
    };
    let proof = only(headers, "dpop").one();
    let split = std::str::from_utf8(authorization)
        .ok()
        .and_then(|text| text.split_once(' '));
    match (split, proof.map(std::str::from_utf8)) {
        (Some((scheme, token)), Some(Ok(proof)))
            if scheme.eq_ignore_ascii_case("DPoP") && is_token68(token) && !proof.is_empty() =>
        {
            Ok(Credentials { token, proof })
        }
        _ => Err(Reason::MalformedCredentials),
    }
}

/// RFC 9110, section 11.2.
fn is_token68(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    let allowed = |b: u8| TOKEN68.get(usize::from(b)).is_some_and(|allowed| *allowed);
    !body.is_empty() && body.bytes().all(allowed)
}

/// Whether each byte may stand in a token68: a look-up, since a token is long.
const TOKEN68: [bool; 256] = token68();

#[expect(
    clippy::indexing_slicing,
    reason = "evaluated by the compiler, which would refuse a wrong index"
)]
const fn token68() -> [bool; 256] {
    let mut allowed = [false; 256];
    let mut byte: u8 = 0;
    while byte < 0x80 {
        allowed[byte as usize] =
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/');
        byte += 1;
    }
    allowed
}

/// How often a header is there.
pub(super) enum Count<'a> {
    None,
    One(&'a [u8]),
    Many,
}

impl<'a> Count<'a> {
    pub(super) fn one(self) -> Option<&'a [u8]> {
        match self {
            Self::One(value) => Some(value),
            Self::None | Self::Many => None,
        }
    }
}

pub(super) fn only<'a>(headers: &'a [(Vec<u8>, Vec<u8>)], name: &str) -> Count<'a> {
    let mut found = headers
        .iter()
        .filter(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()));
    match (found.next(), found.next()) {
        (None, _) => Count::None,
        (Some((_, value)), None) => Count::One(value),
        (Some(_), Some(_)) => Count::Many,
    }
}

/// Whether the headers go with the message that the action is: JSON by its own word, and
/// where MCP's headers name a method, or on what it acts, the same as the body will have
/// to (Streamable HTTP). Each is there once, and under its own name alone: a server may
/// read another spelling as it.
pub(super) fn go_with(headers: &[(Vec<u8>, Vec<u8>)], action: &Action) -> bool {
    let Some(call) = action.call() else {
        return true;
    };
    let text = |name: &str| {
        let mut alike = headers.iter().filter(|(known, _)| is_alike(known, name));
        match (alike.next(), alike.next()) {
            (None, _) => Some(None),
            (Some((known, value)), None) if known.eq_ignore_ascii_case(name.as_bytes()) => {
                std::str::from_utf8(value).ok().map(Some)
            }
            (Some(_), _) => None,
        }
    };
    let (Some(Some(media)), Some(None)) = (text("content-type"), text("content-encoding")) else {
        return false;
    };
    // MCP's headers mean nothing on a message of another protocol, so that none is there.
    let (method, name) = match call.protocol() {
        Protocol::Mcp => (Some(call.method()), call.name()),
        Protocol::A2a => (None, None),
    };
    let agrees = |header: &str, wanted: Option<&str>| match text(header) {
        Some(None) => true,
        Some(said) => said == wanted,
        None => false,
    };
    rpc::is_json(media, "") && agrees("mcp-method", method) && agrees("mcp-name", name)
}
