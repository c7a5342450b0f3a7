//! From a question to a [`Permit`]: the only value that lets a request through on
//! a route that enforces. A route that only observes has a leave of its own kind.

use crate::gates::Checked;
use crate::reason::Reason;
use crate::{same_bytes, sha256};
use serde::{Deserialize, Serialize};

/// The control plane's last word on a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Spent and written down: forward it.
    Allow,
    /// No, and why.
    Deny(Reason),
}

/// An answer as it came over the wire.
#[derive(Clone, Copy, Debug)]
pub struct Echo<'a> {
    /// The token's hash, repeated from the question.
    pub token_hash: &'a [u8],
    /// SHA-256 of the question's bytes.
    pub question_digest: &'a [u8],
    /// The last word.
    pub verdict: Verdict,
}

/// A checked request that waits for the answer to one question.
#[derive(Clone, Debug)]
pub struct Pending {
    checked: Checked,
    question_digest: [u8; 32],
}

impl Pending {
    /// Remembers the question, as its exact bytes go out.
    #[must_use]
    pub fn new(checked: Checked, question: &[u8]) -> Self {
        Self {
            checked,
            question_digest: sha256(question),
        }
    }

    /// The request that waits.
    #[must_use]
    pub fn checked(&self) -> &Checked {
        &self.checked
    }

    /// Whether an answer is to this question. Ask this before obeying one that
    /// is not the last word, such as a hold.
    #[must_use]
    pub fn is_answered_by(&self, token_hash: &[u8], question_digest: &[u8]) -> bool {
        same_bytes(token_hash, &self.checked.token_hash())
            && same_bytes(question_digest, &self.question_digest)
    }

    /// Takes the last word. It is consumed either way, so that one question
    /// never gives two permits.
    ///
    /// # Errors
    /// The control plane's reason; `internal_error` for an answer to another
    /// question, and for a request whose body has not been looked at.
    pub fn settle(self, echo: Echo<'_>) -> Result<Permit, Refused> {
        let answered = self.is_answered_by(echo.token_hash, echo.question_digest);
        if !answered || self.checked.awaits_body() {
            return Err(self.refused(Reason::InternalError));
        }
        match echo.verdict {
            Verdict::Allow => Ok(Permit {
                checked: self.checked,
            }),
            Verdict::Deny(reason) => Err(self.refused(reason)),
        }
    }

    fn refused(self, reason: Reason) -> Refused {
        Refused {
            reason,
            checked: Box::new(self.checked),
        }
    }
}

/// Leave to forward one request, once. Nothing else makes one than
/// [`Pending::settle`], and it can't be copied.
#[derive(Debug)]
pub struct Permit {
    checked: Checked,
}

impl Permit {
    /// What may be forwarded.
    #[must_use]
    pub fn checked(&self) -> &Checked {
        &self.checked
    }

    /// Uses it up: what was forwarded by it.
    #[must_use]
    pub fn into_checked(self) -> Checked {
        self.checked
    }
}

/// What a route makes of a no.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The request is refused. The default, which nothing else stands in for.
    #[default]
    Enforce,
    /// The request goes on, and the log says what the answer would have been.
    Observe,
}

/// Leave to forward one request that would have been refused, once. [`observe`]
/// alone makes one, and it can't be copied. It vouches for nothing: what goes on by
/// it has no verified agent.
#[derive(Debug)]
pub struct Observed {
    reason: Reason,
}

impl Observed {
    /// What the answer would have been.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }
}

/// Decides about a request that has been refused for this reason: on a route that
/// observes it may go on all the same, on every other one it may not.
#[must_use]
pub fn observe(mode: Mode, reason: Reason) -> Option<Observed> {
    match mode {
        Mode::Observe => Some(Observed { reason }),
        Mode::Enforce => None,
    }
}

/// Leave to forward one request: there is no third kind.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "it is used up where it is made; a box would be an allocation for each request"
)]
pub enum Leave {
    /// The control plane allowed it.
    Permitted(Permit),
    /// It would have been refused, on a route that observes.
    Observed(Observed),
}

/// The last word was no.
#[derive(Clone, Debug, thiserror::Error)]
#[error("refused: {reason}")]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// The request that is refused.
    pub checked: Box<Checked>,
}
