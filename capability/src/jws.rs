//! JWS compact serialization (RFC 7515, section 7.1), strictly.

use serde_json::{Map, Value};

use crate::key::{Algorithm, PublicKey, Verifier};
use crate::limits::Limits;
use crate::{b64, json};

/// A compact JWS whose signature nobody has checked yet. It tells nothing but
/// what is needed to find its key.
#[derive(Clone, Debug)]
pub struct UnverifiedJws {
    header: Map<String, Value>,
    payload: Vec<u8>,
    signature: Vec<u8>,
    /// Everything before the last dot: what was signed.
    signed: Vec<u8>,
}

/// A JWS whose signature is good. Whether it is of the wanted kind is for the
/// caller to ask, by `typ` (RFC 8725, section 3.11).
#[derive(Clone, Debug)]
pub struct VerifiedJws {
    /// The header's members.
    pub header: Map<String, Value>,
    /// The payload's bytes.
    pub payload: Vec<u8>,
}

/// Not three segments of strict base64url with a JSON object in the first, or
/// a header that asks for what isn't understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a JWS in compact form, or with an extension that is not understood")]
pub struct Malformed;

/// Why a JWS is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    /// `alg` is missing, not accepted, or not the key's.
    #[error("the JWS is signed with an algorithm that is not accepted, or is not its key's")]
    Algorithm,
    /// The signature is wrong.
    #[error("the signature is wrong")]
    Signature,
    /// The check itself could not be made.
    #[error("the signature could not be checked")]
    Fault,
}

impl UnverifiedJws {
    /// Parses the compact form (RFC 7515, section 7.1). The caller has bounded
    /// the size.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(bytes).map_err(|_| Malformed)?;
        let (signed, signature) = text.rsplit_once('.').ok_or(Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Malformed)?;
        let header = b64::decode(header).ok_or(Malformed)?;
        let header = json::parse_object(&header, limits).map_err(|_| Malformed)?;
        // No extension is understood (RFC 7515, section 4.1.11), and an
        // unencoded payload (RFC 7797) is one even where `crit` is forgotten.
        if header.contains_key("crit") || header.contains_key("b64") {
            return Err(Malformed);
        }
        Ok(Self {
            payload: b64::decode(payload).ok_or(Malformed)?,
            signature: b64::decode(signature).ok_or(Malformed)?,
            signed: signed.as_bytes().to_vec(),
            header,
        })
    }

    /// The header's `kid`, by which its key is found.
    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.header.get("kid")?.as_str()
    }

    /// Checks the signature under this key. A key of any other algorithm than
    /// the header's `alg` is refused before that.
    ///
    /// # Errors
    /// See [`JwsError`].
    pub fn verify<V: Verifier>(
        self,
        key: &PublicKey,
        verifier: &V,
    ) -> Result<VerifiedJws, JwsError> {
        let alg = self.header.get("alg").and_then(Value::as_str);
        let alg = alg.and_then(Algorithm::parse).ok_or(JwsError::Algorithm)?;
        if key.algorithm() != alg {
            return Err(JwsError::Algorithm);
        }
        match verifier.verify(alg, key, &self.signed, &self.signature) {
            Ok(true) => Ok(VerifiedJws {
                header: self.header,
                payload: self.payload,
            }),
            Ok(false) => Err(JwsError::Signature),
            Err(_) => Err(JwsError::Fault),
        }
    }
}

/// A JWS with claims: its payload is a JSON object.
#[derive(Clone, Debug)]
pub(crate) struct Compact {
    pub header: Map<String, Value>,
    pub payload: Map<String, Value>,
    pub signature: Vec<u8>,
    /// Everything before the last dot: what was signed.
    pub signed: Vec<u8>,
}

impl Compact {
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, Malformed> {
        let jws = UnverifiedJws::parse(bytes, limits)?;
        Ok(Self {
            payload: json::parse_object(&jws.payload, limits).map_err(|_| Malformed)?,
            header: jws.header,
            signature: jws.signature,
            signed: jws.signed,
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
