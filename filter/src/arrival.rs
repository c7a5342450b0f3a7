//! A request's headers on arrival: what only a proxy may set is taken off before
//! anything is read, and what an action is digested from has one reading.

use crate::host::{self, Header, HostFault};
use capability::headers::{CREDENTIALS, is_alike, is_ours, is_session_cookie, is_untrusted};
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

/// Removes the headers that no client may send, and an approver's session from the
/// cookies, and returns the other headers as they came. Only for the request in force.
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
        host::remove_request_header(text(name)?)?;
    }
    hide_sessions(&headers)?;
    Ok(headers)
}

/// Cookies know no ports (RFC 6265, section 8.5): a browser sends a session of the
/// pages to an edge on the same host, and an upstream could decide with it.
fn hide_sessions(headers: &[Header]) -> Result<(), HostFault> {
    let pairs = || {
        let cookies = headers.iter().filter(|(name, _)| name == b"cookie");
        let pairs = cookies.flat_map(|(_, value)| value.split(|byte| *byte == b';'));
        pairs.map(<[u8]>::trim_ascii)
    };
    if !pairs().any(is_session_cookie) {
        return Ok(());
    }
    let kept: Vec<&[u8]> = pairs()
        .filter(|pair| !pair.is_empty() && !is_session_cookie(pair))
        .collect();
    host::remove_request_header("cookie")?;
    if kept.is_empty() {
        return Ok(());
    }
    host::set_request_header("cookie", &kept.join(b"; ".as_slice()))
}

/// A name as the host takes it back. One that it would not find is no name to go on with.
fn text(name: &[u8]) -> Result<&str, HostFault> {
    std::str::from_utf8(name).map_err(|_bytes| HostFault)
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
            host::remove_request_trailer(text(name)?)?;
            stripped.push(name);
        }
    }
    Ok(())
}

/// Takes off an upstream's answer what only this side of the proxy says: who the
/// agent is, what the proxy should do, and which credentials are wanted. The
/// upstream never saw any, and a client would believe it. Returns the answer's
/// status; 0 when it has none. Only for the response in force.
///
/// # Errors
/// The host gave no headers, or did not remove one.
pub fn strip_response() -> Result<u32, HostFault> {
    let headers = host::response_headers()?;
    let status = headers.iter().find(|(name, _)| name == b":status");
    let status = status
        .and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok())
        .unwrap_or_default();
    let mut stripped: Vec<&[u8]> = Vec::new();
    for (name, _) in &headers {
        let spoofs = is_ours(name) || CHALLENGING.contains(&name.as_slice());
        if spoofs && !stripped.contains(&name.as_slice()) {
            host::remove_response_header(&String::from_utf8_lossy(name))?;
            stripped.push(name);
        }
    }
    Ok(status)
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
    /// `action_mismatch` when one of them is there twice, or under a name that some
    /// servers read as its own, is longer than 256 bytes or is not printable ASCII,
    /// or when the content type has a comma (which is how hosts join two of them):
    /// no action says which would count.
    pub fn of(headers: &[Header]) -> Result<Self, Reason> {
        let media_type = exact(headers, "content-type")?;
        if media_type.contains(',') {
            return Err(Reason::ActionMismatch);
        }
        Ok(Self {
            media_type,
            encoding: exact(headers, "content-encoding")?,
        })
    }
}

fn exact(headers: &[Header], name: &str) -> Result<String, Reason> {
    let mut values = headers.iter().filter(|(known, _)| is_alike(known, name));
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(String::new()),
        (Some((known, value)), None) if known == name.as_bytes() && value.len() <= CONTENT_MAX => {
            value
        }
        (Some(_), _) => return Err(Reason::ActionMismatch),
    };
    let text = std::str::from_utf8(value).ok();
    text.filter(|text| text.bytes().all(|byte| (0x20..0x7f).contains(&byte)))
        .map(str::to_owned)
        .ok_or(Reason::ActionMismatch)
}
