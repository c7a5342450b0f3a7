//! SPIFFE IDs (SPIFFE-ID.md, section 2).

use std::{fmt, str::FromStr, sync::Arc};

/// The longest SPIFFE ID that is accepted, in bytes (SPIFFE-ID.md, section 2.3).
pub const MAX_SPIFFE_ID_BYTES: usize = 2048;
/// The longest trust domain name that is accepted, in bytes (SPIFFE-ID.md, section 2.1).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

const SCHEME: &str = "spiffe://";

/// A workload's name: `spiffe://TRUST-DOMAIN/PATH`, or a trust domain's own
/// name, which has no path.
///
/// Equality is equality of bytes: the accepted alphabet leaves nothing to
/// normalise.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain_end: usize,
}

/// Why a text is not a SPIFFE ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpiffeIdError {
    /// Nothing was given.
    #[error("a SPIFFE ID is empty: write spiffe://TRUST-DOMAIN/PATH")]
    Empty,
    /// More than [`MAX_SPIFFE_ID_BYTES`], or a trust domain of more than
    /// [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("a SPIFFE ID is too long: 2048 bytes at most, and 255 for its trust domain")]
    TooLong,
    /// The scheme is not `spiffe://` in lower case.
    #[error("a SPIFFE ID does not start with spiffe://")]
    Scheme,
    /// The trust domain is missing or has other bytes than `a-z 0-9 . - _`.
    #[error(
        "a SPIFFE ID's trust domain is empty or has other letters than a-z, 0-9, dot, dash, underscore"
    )]
    TrustDomain,
    /// The path has an empty or dot segment, ends in a slash, or has other
    /// bytes than `a-z A-Z 0-9 . - _`.
    #[error(
        "a SPIFFE ID's path has an empty or dot segment, or other letters than a-z, A-Z, 0-9, dot, dash, underscore"
    )]
    Path,
}

impl SpiffeId {
    /// Reads a SPIFFE ID.
    ///
    /// # Errors
    /// When the text is anything but a SPIFFE ID exactly as the standard has it.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        Ok(Self {
            trust_domain_end: scan(text)?,
            text: Arc::from(text),
        })
    }

    /// The name of a trust domain itself, from its bare name.
    ///
    /// # Errors
    /// When the name is not a trust domain's.
    pub fn of_trust_domain(name: &str) -> Result<Self, SpiffeIdError> {
        if name.contains('/') {
            return Err(SpiffeIdError::TrustDomain);
        }
        Self::parse(&format!("{SCHEME}{name}"))
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain's bare name.
    pub fn trust_domain(&self) -> &str {
        self.text
            .get(SCHEME.len()..self.trust_domain_end)
            .unwrap_or_default()
    }

    /// The path with its leading slash; empty for a trust domain's own name.
    pub fn path(&self) -> &str {
        self.text.get(self.trust_domain_end..).unwrap_or_default()
    }

    /// Whether this can name a workload: it has a path.
    pub fn is_workload(&self) -> bool {
        !self.path().is_empty()
    }
}

/// Whether this is the SPIFFE ID of a workload, which has a path. As
/// [`SpiffeId::parse`], but keeps nothing.
#[must_use]
pub fn is_workload(text: &str) -> bool {
    scan(text).is_ok_and(|trust_domain_end| trust_domain_end < text.len())
}

/// Where the trust domain's name ends.
fn scan(text: &str) -> Result<usize, SpiffeIdError> {
    if text.is_empty() {
        return Err(SpiffeIdError::Empty);
    }
    if text.len() > MAX_SPIFFE_ID_BYTES {
        return Err(SpiffeIdError::TooLong);
    }
    let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
    let (trust_domain, path) = match rest.split_once('/') {
        Some((trust_domain, path)) => (trust_domain, Some(path)),
        None => (rest, None),
    };
    if trust_domain.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(SpiffeIdError::TooLong);
    }
    if trust_domain.is_empty() || !trust_domain.bytes().all(is_trust_domain_byte) {
        return Err(SpiffeIdError::TrustDomain);
    }
    if path.is_some_and(|path| !path.split('/').all(is_segment)) {
        return Err(SpiffeIdError::Path);
    }
    Ok(SCHEME.len().saturating_add(trust_domain.len()))
}

fn is_trust_domain_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')
}

fn is_segment(segment: &str) -> bool {
    !matches!(segment, "" | "." | "..")
        && segment.bytes().all(
            |byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_'),
        )
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
