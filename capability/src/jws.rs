//! JWS compact serialization (RFC 7515, section 7.1), strictly.

use serde_json::{Map, Value};

use crate::limits::Limits;
use crate::{b64, json};

/// A compact JWS whose signature nobody has checked yet.
#[derive(Clone, Debug)]
pub(crate) struct Compact {
    pub header: Map<String, Value>,
    pub payload: Map<String, Value>,
    pub signature: Vec<u8>,
    /// Everything before the last dot: what was signed.
    pub signed: Vec<u8>,
}

/// Not three segments of strict base64url with JSON objects in the first two,
/// or a header that asks for what isn't understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Compact {
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(bytes).map_err(|_| Malformed)?;
        let (signed, signature) = text.rsplit_once('.').ok_or(Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Malformed)?;
        let object = |segment: &str| {
            let bytes = b64::decode(segment)?;
            json::parse_object(&bytes, limits).ok()
        };
        let header = object(header).ok_or(Malformed)?;
        // No extension is understood (RFC 7515, section 4.1.11), and an
        // unencoded payload (RFC 7797) is one even where `crit` is forgotten.
        if header.contains_key("crit") || header.contains_key("b64") {
            return Err(Malformed);
        }
        Ok(Self {
            payload: object(payload).ok_or(Malformed)?,
            signature: b64::decode(signature).ok_or(Malformed)?,
            signed: signed.as_bytes().to_vec(),
            header,
        })
    }

    pub fn header_text(&self, name: &str) -> Option<&str> {
        self.header.get(name)?.as_str()
    }
}

/// The claim as text; none when it is missing or anything but a string.
pub(crate) fn text(claims: &Map<String, Value>, name: &str) -> Option<String> {
    Some(claims.get(name)?.as_str()?.to_owned())
}

/// A claim that may be missing: `Ok(None)`; but not of another type, `null` included.
pub(crate) fn optional<T>(
    claims: &Map<String, Value>,
    name: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, Malformed> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => read(value).map(Some).ok_or(Malformed),
    }
}

/// An identifier that is kept: not empty, at most 256 bytes, printable.
pub(crate) fn identifier(claims: &Map<String, Value>, name: &str) -> Option<String> {
    text(claims, name)
        .filter(|id| !id.is_empty() && id.len() <= 256 && !id.chars().any(char::is_control))
}

/// `header.payload`, ready to be signed.
pub(crate) fn signing_input(header: &Value, payload: &Value) -> String {
    let segment = |value: &Value| b64::encode(value.to_string().as_bytes());
    format!("{}.{}", segment(header), segment(payload))
}
