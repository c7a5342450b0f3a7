//! A request's headers on arrival: what only a proxy may set is taken off before
//! anything is read, and what an action is digested from has one reading.

use crate::host::{self, Header, HostFault};
use capability::headers::{CREDENTIALS, OURS, REINTERPRETING};
use capability::reason::Reason;

/// Headers of an answer by which a client takes its credentials for wrong, or
/// sends others.
const CHALLENGING: [&[u8]; 5] = [
    b"www-authenticate",
    b"proxy-authenticate",
    b"dpop-nonce",
    b"dpop",
    b"authorization",
];
/// A content type or encoding is at most this long; bytes.
const CONTENT_MAX: usize = 256;

/// Removes the headers that no client may send, and returns the others. Only
/// for the request in force.
///
/// # Errors
/// The host gave no headers, or did not remove one.
pub fn trusted_headers() -> Result<Vec<Header>, HostFault> {
    let mut headers = host::request_headers()?;
    let mut stripped: Vec<Vec<u8>> = Vec::new();
    headers.retain(|(name, _)| {
        let stays = !is_untrusted(name);
        if !stays && !stripped.contains(name) {
            stripped.push(name.clone());
        }
        stays
    });
    for name in &stripped {
        host::remove_request_header(&String::from_utf8_lossy(name))?;
    }
    Ok(headers)
}

/// Takes off the request's trailers what no header of it may say, credentials among
/// it: an upstream may read the ones as the others (RFC 9110, section 6.5.1). Only
/// for the request in force.
///
/// # Errors
/// The host gave no trailers, or did not remove one.
pub fn strip_trailers() -> Result<(), HostFault> {
    let trailers = host::request_trailers()?;
    let mut stripped: Vec<&[u8]> = Vec::new();
    for (name, _) in &trailers {
        let credential = CREDENTIALS.iter().any(|it| it.as_bytes() == name);
        if (credential || is_untrusted(name)) && !stripped.contains(&name.as_slice()) {
            host::remove_request_trailer(&String::from_utf8_lossy(name))?;
            stripped.push(name);
        }
    }
    Ok(())
}

/// Takes off an upstream's answer what only this side of the proxy says: who the
/// agent is, what the proxy should do, and which credentials are wanted. The
/// upstream never saw any, and a client would believe it. Only for the response
/// in force.
///
/// # Errors
/// The host gave no headers, or did not remove one.
pub fn strip_response() -> Result<(), HostFault> {
    let headers = host::response_headers()?;
    let mut stripped: Vec<&[u8]> = Vec::new();
    for (name, _) in &headers {
        let spoofs = is_ours(name) || CHALLENGING.contains(&name.as_slice());
        if spoofs && !stripped.contains(&name.as_slice()) {
            host::remove_response_header(&String::from_utf8_lossy(name))?;
            stripped.push(name);
        }
    }
    Ok(())
}

fn is_untrusted(name: &[u8]) -> bool {
    // Most names end here.
    if !matches!(name.first(), Some(b'x' | b'f')) {
        return false;
    }
    if name.contains(&b'_') {
        // To some servers an underscore is the same letter. Writ's own listener
        // refuses such a request; others may let it through.
        let spelt: Vec<u8> = name
            .iter()
            .map(|b| if *b == b'_' { b'-' } else { *b })
            .collect();
        return is_kept_for_us(&spelt);
    }
    is_kept_for_us(name)
}

fn is_kept_for_us(name: &[u8]) -> bool {
    is_ours(name) || REINTERPRETING.iter().any(|it| it.as_bytes() == name)
}

fn is_ours(name: &[u8]) -> bool {
    OURS.iter()
        .any(|prefix| name.starts_with(prefix.as_bytes()))
}

/// What a body is, as the digest of an action has it.
pub struct Content {
    /// `content-type`, exactly; empty without one.
    pub media_type: String,
    /// `content-encoding`, exactly; empty without one.
    pub encoding: String,
}

impl Content {
    /// Reads both headers.
    ///
    /// # Errors
    /// `action_mismatch` when one of them is there twice, is longer than 256
    /// bytes or is not printable ASCII, or when the content type has a comma
    /// (which is how hosts join two of them): no action says which would count.
    pub fn of(headers: &[Header]) -> Result<Self, Reason> {
        let media_type = exact(headers, b"content-type")?;
        if media_type.contains(',') {
            return Err(Reason::ActionMismatch);
        }
        Ok(Self {
            media_type,
            encoding: exact(headers, b"content-encoding")?,
        })
    }
}

fn exact(headers: &[Header], name: &[u8]) -> Result<String, Reason> {
    let mut values = headers.iter().filter(|(known, _)| known == name);
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(String::new()),
        (Some((_, value)), None) if value.len() <= CONTENT_MAX => value,
        (Some(_), _) => return Err(Reason::ActionMismatch),
    };
    let text = std::str::from_utf8(value).ok();
    text.filter(|text| text.bytes().all(|byte| (0x20..0x7f).contains(&byte)))
        .map(str::to_owned)
        .ok_or(Reason::ActionMismatch)
}
