//! What a line says happened, and how it reads back.
//!
//! An event is what a checked command becomes. Its serde form is the line's
//! `kind` and `body` (docs/reference/journal.md), so that replaying a journal
//! applies the same values as the happy path did.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::{
    ActionRecord, Approval, Hash, HexHash, Millis, NOTE_KINDS, PolicyFacts, RequestFacts,
    TokenRecord, User, hash_hex,
};

/// The token that a decision is about, as its record has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subject {
    #[serde(with = "hash_hex")]
    pub(crate) hash: Hash,
    pub(crate) jti: String,
    pub(crate) txn: String,
    pub(crate) agent: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<User>,
}

impl From<&TokenRecord> for Subject {
    fn from(token: &TokenRecord) -> Self {
        Self {
            hash: token.token_hash,
            jti: token.jti.clone(),
            txn: token.txn.clone(),
            agent: token.agent.clone(),
            user: token.user.clone(),
        }
    }
}

/// The evidence that a token was issued on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EvidenceUse {
    #[serde(with = "hash_hex")]
    pub(crate) id: Hash,
    pub(crate) expires_ms: Millis,
}

/// The approval that an allow consumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ApprovalUse {
    pub(crate) id: String,
    #[serde(with = "hash_hex")]
    pub(crate) digest: Hash,
}

/// A human's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Approved,
    Denied,
}

/// One change of state, of the kinds that replay must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "body", rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "each is moved a few times and never kept"
)]
pub(crate) enum Event {
    Epoch {
        log: String,
        version: String,
    },
    Torn {
        segment: u64,
        offset: u64,
        bytes: u64,
        #[serde(with = "hash_hex")]
        sha256: Hash,
    },
    Issue {
        token: TokenRecord,
        evidence: EvidenceUse,
        policy: PolicyFacts,
    },
    ExchangeRefused {
        agent: String,
        reason: String,
        error: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        action: Option<ActionRecord>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<PolicyFacts>,
    },
    Discover {
        agent: String,
    },
    Allow {
        token: Subject,
        attempt: String,
        request: RequestFacts,
        policy: PolicyFacts,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        approval: Option<ApprovalUse>,
    },
    Deny {
        token: Subject,
        attempt: String,
        reason: String,
        request: RequestFacts,
        policy: PolicyFacts,
    },
    Hold {
        token: Subject,
        attempt: String,
        request: RequestFacts,
        policy: PolicyFacts,
        /// The approval's id; the approval itself is in `opened` when this line opens it.
        approval: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        opened: Option<Approval>,
    },
    Lapse {
        token: Subject,
        attempt: String,
        why: String,
    },
    LapsesOverdue {
        tokens: Vec<HexHash>,
    },
    Approval {
        id: String,
        #[serde(with = "hash_hex")]
        digest: Hash,
        decision: Answer,
        by: String,
        expires_ms: Millis,
    },
    ApprovalsExpired {
        ids: Vec<String>,
    },
    Outcome {
        attempt: String,
        status: u16,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        not_forwarded: bool,
        response_bytes: u64,
        details: String,
    },
}

/// An entry's meaning: a change of state, or a note that changes none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "each is moved a few times and never kept"
)]
pub(crate) enum Entry {
    Event(Event),
    Note { kind: String, body: Value },
}

/// A line that this version cannot replay.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The kind is unknown, or the body is not of its kind.
    #[error("entry of kind {kind} cannot be read: {error}")]
    Body {
        /// The line's kind.
        kind: String,
        /// What is wrong with it.
        error: String,
    },
}

impl Entry {
    /// The line's `kind` and `body`. `None` when the value has no such form.
    pub(crate) fn to_parts(&self) -> Option<(String, Value)> {
        match self {
            Self::Note { kind, body } => Some((kind.clone(), body.clone())),
            Self::Event(event) => {
                let mut whole = serde_json::to_value(event).ok()?;
                let object = whole.as_object_mut()?;
                let kind = object.get("kind")?.as_str()?.to_owned();
                Some((kind, object.remove("body")?))
            }
        }
    }

    /// Reads a line back.
    ///
    /// # Errors
    /// When this version does not know the kind or the body is not of it.
    pub(crate) fn from_parts(kind: &str, body: Value) -> Result<Self, EntryError> {
        if NOTE_KINDS.contains(&kind) {
            return Ok(Self::Note {
                kind: kind.to_owned(),
                body,
            });
        }
        serde_json::from_value(serde_json::json!({ "kind": kind, "body": body }))
            .map(Self::Event)
            .map_err(|error| EntryError::Body {
                kind: kind.to_owned(),
                error: error.to_string(),
            })
    }

    /// The agent that the entry is about, for listings.
    pub(crate) fn agent_of(body: &Value) -> Option<&str> {
        let at = |path: &str| body.pointer(path).and_then(Value::as_str);
        at("/agent").or_else(|| at("/token/agent"))
    }
}
