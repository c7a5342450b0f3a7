//! One normaliser for `htu`, action locations and request paths.
//!
//! A URL is read once, left to right, and never joined or resolved, so that a
//! path such as `//b.example/x` can't turn into an authority. There are three
//! ways in, all ending in the same [`Target`]:
//!
//! - [`Target::location`]: the absolute URL of an action. Strict: see below.
//! - [`Target::request`]: the origin-form of a request at a configured origin.
//!   As strict, and the path has to be in normal form already, because what is
//!   compared has to be what is forwarded.
//! - [`Target::htu`]: what a client signed (RFC 9449, section 4.3). Normalised
//!   as RFC 3986, sections 6.2.2 and 6.2.3 say, dot segments included; query
//!   and fragment are ignored. It is only ever compared with a strict one.
//!
//! Refused everywhere: schemes but http and https, userinfo, hosts outside a
//! strict grammar, ports with leading zeros, bytes that RFC 3986 doesn't allow,
//! broken percent-encoding. Refused in strict paths besides, since servers read
//! them in different ways: empty segments but the last, dot segments, `;`, `*`,
//! and the encoded forms of `/ \ % ? # ; * { }`, of control characters, of
//! spaces at a segment's edge and of what isn't UTF-8. Fragments are refused
//! too. A strict query keeps its order and its bytes; only the letters of
//! percent-encodings and needless ones are normalised, for the comparison.

use std::fmt;
use std::net::Ipv6Addr;

/// Why a URL is refused: by its sender's fault each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Neither `http://` nor `https://`.
    #[error("the URL has to start with http:// or https://")]
    Scheme,
    /// User and password in the URL.
    #[error("the URL must not hold a user name or password")]
    Userinfo,
    /// The host or the port is outside the grammar.
    #[error(
        "the host or port is not valid: use a plain name or address, and a port without leading zeros"
    )]
    Authority,
    /// No leading slash, or not in origin-form.
    #[error("the path has to start with one slash")]
    Path,
    /// A byte that RFC 3986 doesn't allow, or a wildcard.
    #[error("the URL holds a character that has to be percent-encoded or is not allowed")]
    Character,
    /// `%` without two hexadecimal digits.
    #[error("the URL holds a broken percent-encoding")]
    PercentEncoding,
    /// An encoded character that servers read in different ways.
    #[error(
        "the path holds an encoded slash, backslash, percent sign or another encoding that is not allowed"
    )]
    Encoded,
    /// An empty or a dot segment.
    #[error("the path holds an empty segment, `.` or `..`")]
    Segment,
    /// A `#`.
    #[error("the URL must not have a fragment")]
    Fragment,
    /// The request's path means the same as another, normal spelling.
    #[error(
        "the path is not in its normal form: use upper-case percent-encodings, and only where needed"
    )]
    NotNormal,
}

/// Scheme and authority: the host in lower case, the default port left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    text: String,
    authority_at: usize,
    default_port: u16,
}

impl Origin {
    /// Parses `scheme://host[:port]`, with at most one slash after it.
    ///
    /// # Errors
    /// Any other form.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (origin, rest) = Self::split(text)?;
        if matches!(rest, "" | "/") {
            Ok(origin)
        } else {
            Err(UrlError::Path)
        }
    }

    /// Splits an absolute URL into its origin and the rest.
    fn split(text: &str) -> Result<(Self, &str), UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let (scheme, default_port) = match scheme {
            s if s.eq_ignore_ascii_case("https") => ("https", 443),
            s if s.eq_ignore_ascii_case("http") => ("http", 80),
            _ => return Err(UrlError::Scheme),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at_checked(end).ok_or(UrlError::Authority)?;
        let authority = authority_text(authority, default_port)?;
        let authority_at = scheme.len().saturating_add(3);
        let text = format!("{scheme}://{authority}");
        Ok((
            Self {
                text,
                authority_at,
                default_port,
            },
            rest,
        ))
    }

    /// `scheme://host[:port]`, normalised.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `host[:port]`, normalised.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.text.get(self.authority_at..).unwrap_or_default()
    }

    /// Whether a request's `:authority` (or `Host`) names this origin's, after
    /// the same normalisation.
    #[must_use]
    pub fn is_authority(&self, authority: &[u8]) -> bool {
        std::str::from_utf8(authority)
            .ok()
            .and_then(|text| authority_text(text, self.default_port).ok())
            .is_some_and(|text| text == self.authority())
    }

    /// Whether one request's authority could name either: the scheme is not
    /// seen in it, so two origins that differ in that alone are one listener's.
    #[must_use]
    pub fn same_authority(&self, other: &Self) -> bool {
        self.is_authority(other.authority().as_bytes())
            || other.is_authority(self.authority().as_bytes())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A normalised URL: origin, path and query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    origin: Origin,
    path: String,
    query: Option<String>,
}

impl Target {
    /// The absolute URL of an action, with its query.
    ///
    /// # Errors
    /// What the module's rule for strict URLs refuses.
    pub fn location(text: &str) -> Result<Self, UrlError> {
        let (origin, rest) = Origin::split(text)?;
        let (path, query) = strict_rest(rest)?;
        Ok(Self {
            origin,
            path,
            query,
        })
    }

    /// The origin-form of a request (RFC 9112, section 3.2.1), at the origin
    /// that clients use. Nothing in `path` can change the origin.
    ///
    /// # Errors
    /// What the module's rule for strict URLs refuses; anything that does not
    /// start with one slash; a path that is not in normal form.
    pub fn request(origin: &Origin, path: &[u8]) -> Result<Self, UrlError> {
        let (path, query) = strict_request(path)?;
        Ok(Self {
            origin: origin.clone(),
            path,
            query,
        })
    }

    /// The `htu` claim of a proof, for [`Target::is_htu`].
    ///
    /// # Errors
    /// What the module's rule refuses everywhere.
    pub fn htu(text: &str) -> Result<Self, UrlError> {
        let (origin, rest) = Origin::split(text)?;
        let end = rest.find(['?', '#']).unwrap_or(rest.len());
        let (path, ignored) = rest.split_at_checked(end).ok_or(UrlError::Path)?;
        // Ignored is not the same as unread: it still has to be a URL.
        normalise(ignored, |b| is_query(b) || b == b'#')?;
        let path = remove_dot_segments(&normalise(path, is_path)?);
        Ok(Self {
            origin,
            path,
            query: None,
        })
    }

    /// Whether an `htu` claim names this URL, query aside (RFC 9449, section 4.3).
    #[must_use]
    pub fn is_htu(&self, htu: &str) -> bool {
        Self::htu(htu).is_ok_and(|htu| htu.origin == self.origin && htu.path == self.path)
    }

    /// Whether this URL is `resource` or lies under it, in whole segments. The
    /// resource's own query and closing slash don't count.
    #[must_use]
    pub fn is_within(&self, resource: &Self) -> bool {
        let base = resource.path.trim_end_matches('/');
        let rest = self.path.strip_prefix(base);
        self.origin == resource.origin
            && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Scheme and authority.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The path, which is never empty.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The query without its question mark; `Some("")` when there is only that.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// The origin-form.
    #[must_use]
    pub fn path_and_query(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }
}

/// The absolute URL; [`Target::location`] reads it back as it is.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin.text, self.path)?;
        match &self.query {
            Some(query) => write!(f, "?{query}"),
            None => Ok(()),
        }
    }
}

/// `host[:port]` in normal form: lower case, canonical IPv6, no default port.
fn authority_text(text: &str, default_port: u16) -> Result<String, UrlError> {
    if text.contains('@') {
        return Err(UrlError::Userinfo);
    }
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(UrlError::Authority)?;
        let address: Ipv6Addr = address.parse().map_err(|_| UrlError::Authority)?;
        (format!("[{address}]"), port)
    } else {
        let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        let label = |l: &str| {
            !l.is_empty()
                && l.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if host.len() > 253 || !host.split('.').all(label) {
            return Err(UrlError::Authority);
        }
        (host.to_ascii_lowercase(), port)
    };
    if port.is_empty() {
        return Ok(host);
    }
    let digits = port.strip_prefix(':').ok_or(UrlError::Authority)?;
    if digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(UrlError::Authority);
    }
    let port: u16 = digits.parse().map_err(|_| UrlError::Authority)?;
    Ok(if port == default_port {
        host
    } else {
        format!("{host}:{port}")
    })
}

/// Whether the path of a request's origin-form is one that [`Target::request`]
/// takes, so that every server reads it in the same way, whatever its query says.
/// In different cases of letters, it may still be one path to some.
#[must_use]
pub fn is_read_alike(path_and_query: &[u8]) -> bool {
    let path = path_and_query.split(|byte| *byte == b'?').next();
    path.is_some_and(|path| strict_request(path).is_ok())
}

/// A request's path in normal form, and its query.
fn strict_request(path: &[u8]) -> Result<(String, Option<String>), UrlError> {
    let text = std::str::from_utf8(path).map_err(|_| UrlError::Character)?;
    if !text.starts_with('/') {
        return Err(UrlError::Path);
    }
    let (path, query) = strict_rest(text)?;
    let raw_path = text.split('?').next().unwrap_or_default();
    if raw_path != path {
        return Err(UrlError::NotNormal);
    }
    Ok((path, query))
}

/// What follows the origin, by the strict rule: normalised path and query.
fn strict_rest(rest: &str) -> Result<(String, Option<String>), UrlError> {
    if rest.contains('#') {
        return Err(UrlError::Fragment);
    }
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    let path = normalise(path, |b| is_path(b) && !matches!(b, b';' | b'*'))?;
    let path = if path.is_empty() {
        "/".to_owned()
    } else {
        path
    };
    check_segments(&path)?;
    let query = query.map(|q| normalise(q, is_query)).transpose()?;
    if query.as_deref().is_some_and(has_encoded_control) {
        return Err(UrlError::Encoded);
    }
    Ok((path, query))
}

/// Refuses the segments and encodings that servers read in different ways.
fn check_segments(path: &str) -> Result<(), UrlError> {
    let mut segments = path
        .strip_prefix('/')
        .ok_or(UrlError::Path)?
        .split('/')
        .peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        if matches!(segment, "." | "..") || (segment.is_empty() && !last) {
            return Err(UrlError::Segment);
        }
        let decoded = String::from_utf8(decode(segment)).map_err(|_| UrlError::Encoded)?;
        let ambiguous = |c: char| {
            c.is_control() || matches!(c, '/' | '\\' | '%' | '?' | '#' | ';' | '*' | '{' | '}')
        };
        if decoded.chars().any(ambiguous) || decoded.starts_with(' ') || decoded.ends_with(' ') {
            return Err(UrlError::Encoded);
        }
    }
    Ok(())
}

/// RFC 3986, section 6.2.2: upper-case percent-encodings, and none for
/// unreserved characters. Every other byte has to be `allowed`.
fn normalise(text: &str, allowed: impl Fn(u8) -> bool) -> Result<String, UrlError> {
    let mut out = String::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            if !allowed(byte) {
                return Err(UrlError::Character);
            }
            out.push(char::from(byte));
            continue;
        }
        let octet = encoded_octet(&mut bytes).ok_or(UrlError::PercentEncoding)?;
        if is_unreserved(octet) {
            out.push(char::from(octet));
        } else {
            out.push_str(&format!("%{octet:02X}"));
        }
    }
    Ok(out)
}

/// The octet that two hexadecimal digits stand for.
fn encoded_octet(bytes: &mut std::str::Bytes<'_>) -> Option<u8> {
    let mut digit = || char::from(bytes.next()?).to_digit(16);
    let (high, low) = (digit()?, digit()?);
    u8::try_from(high.checked_mul(16)?.checked_add(low)?).ok()
}

/// Decodes percent-encodings that [`normalise`] has found to be whole.
fn decode(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let octet = if byte == b'%' {
            encoded_octet(&mut bytes)
        } else {
            Some(byte)
        };
        out.extend(octet);
    }
    out
}

fn has_encoded_control(text: &str) -> bool {
    decode(text).iter().any(u8::is_ascii_control)
}

/// RFC 3986, section 5.2.4, on a path that is absolute or empty.
fn remove_dot_segments(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let dots = matches!(segment, "." | "..");
        if segment == ".." {
            out.pop();
        }
        if !dots {
            out.push(segment);
        } else if segments.peek().is_none() {
            out.push("");
        }
    }
    format!("/{}", out.join("/"))
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// pchar or a slash (RFC 3986, section 3.3).
fn is_path(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'/' | b':'
                | b'@'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
        )
}

/// What a query may hold (RFC 3986, section 3.4).
fn is_query(byte: u8) -> bool {
    is_path(byte) || byte == b'?'
}
