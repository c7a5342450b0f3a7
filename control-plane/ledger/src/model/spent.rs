//! What is remembered of a token's one use.

use serde::{Deserialize, Serialize};

use super::{GrantKind, Millis};

/// What became of the use that spent a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpentRecord {
    /// The spent token's `jti`.
    pub jti: String,
    /// The token's own end; the record is kept until then.
    pub expires_ms: Millis,
    /// The request that spent it.
    pub request_id: String,
    /// `Unknown` until an outcome says more.
    pub outcome: FirstUse,
    /// What it was, where it was a grant and no token for a request.
    pub grant: Option<Box<SpentGrant>>,
}

/// A grant that brings one thing, and was used for that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpentGrant {
    /// Its kind.
    pub kind: GrantKind,
    /// The agent that it was issued to.
    pub agent: String,
}

/// The outcome of a token's one use, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstUse {
    /// Allowed; no outcome has come yet, or one that cannot tell.
    Unknown,
    /// The upstream answered with this status.
    Forwarded(u16),
    /// Allowed, but nothing was sent to the upstream: the proxy says so.
    NotForwarded,
    /// The use was refused, and refusing spent it.
    Refused,
    /// It was held and lapsed.
    Lapsed,
}

impl FirstUse {
    /// In a word, as clients are told, with the upstream's status where it is known.
    #[must_use]
    pub fn told(self) -> (&'static str, Option<u16>) {
        match self {
            Self::Forwarded(status) => ("forwarded", Some(status)),
            Self::Refused | Self::Lapsed => ("refused", None),
            Self::NotForwarded => ("not_forwarded", None),
            Self::Unknown => ("unknown", None),
        }
    }
}
