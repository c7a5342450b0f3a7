//! What a line says happened, and how it reads back.
//!
//! An event is what a checked command becomes. Its serde form is the line's
//! `kind` and `body` (docs/reference/journal.md), so that replaying a journal
//! applies the same values as the happy path did.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::Value;

use crate::model::{
    ActionRecord, AgentRecord, Approval, EvidenceOf, Hash, HexHash, Millis, NOTE_KINDS,
    PolicyFacts, ProofUse, RequestFacts, Stop, TokenRecord, User, hash_hex,
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

/// The approval that an allow consumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ApprovalUse {
    pub(crate) id: String,
    #[serde(with = "hash_hex")]
    pub(crate) digest: Hash,
}

/// A backup that was put in place as a new state: what it held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Restored {
    pub(crate) entries: u64,
    #[serde(with = "hash_hex")]
    pub(crate) head: Hash,
    /// How far the journal that it stands in for is known to have gone, where
    /// that was known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) instead_of: Vec<Superseded>,
}

/// A head that was kept elsewhere, and that a restore or a new journal overrides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Superseded {
    pub(crate) log: String,
    pub(crate) entries: u64,
    #[serde(with = "hash_hex")]
    pub(crate) head: Hash,
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
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "an entry's is in a box")]
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
    /// A snapshot of the first `entries` entries is in a file: this proves it.
    Snapshot {
        entries: u64,
        #[serde(with = "hash_hex")]
        sha256: Hash,
        bytes: u64,
    },
    Restored(Restored),
    Confirmed {
        /// The index of what was confirmed.
        restored: u64,
        by: String,
    },
    Issue {
        #[serde(with = "shared")]
        token: Arc<TokenRecord>,
        evidence: EvidenceOf,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        also: Vec<EvidenceOf>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        once: Vec<EvidenceOf>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<ProofUse>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        under: Option<HexHash>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<Box<TokenRecord>>,
        policy: PolicyFacts,
    },
    ExchangeRefused {
        agent: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<User>,
        reason: String,
        error: String,
        // Earlier entries have none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        action: Option<ActionRecord>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<PolicyFacts>,
    },
    /// Something that may be shown once was, and nothing was given for it.
    Present {
        agent: String,
        once: EvidenceOf,
        what: String,
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
    ApprovalsCancelled {
        ids: Vec<String>,
    },
    Agent(AgentRecord),
    Stop(Stop),
    /// Somebody said that a stop may end: it has, or waits for a second person.
    Lift(Stop),
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
pub(crate) enum Entry {
    Event(Box<Event>),
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
                let Value::Object(tagged) = serde_json::to_value(event).ok()? else {
                    return None;
                };
                tagged.into_iter().next()
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
        serde_json::from_value(Value::from_iter([(kind, body)]))
            .map(|event| Self::Event(Box::new(event)))
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

    /// The same of a whole line's bytes, without building the rest of it.
    pub(crate) fn agent_in(line: &[u8]) -> Option<String> {
        let About { body } = serde_json::from_slice(line).ok()?;
        let agent = match (body.agent, body.token) {
            (Some(Agent::Is(agent)), _) | (_, Some(Token::Of { agent })) => agent,
            _ => return None,
        };
        Some(agent.into_owned())
    }
}

/// A line, as far as it says whom it is about.
#[derive(Deserialize)]
struct About<'l> {
    #[serde(borrow)]
    body: AboutBody<'l>,
}

#[derive(Deserialize)]
struct AboutBody<'l> {
    #[serde(borrow)]
    agent: Option<Agent<'l>>,
    #[serde(borrow)]
    token: Option<Token<'l>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Agent<'l> {
    Is(#[serde(borrow)] Cow<'l, str>),
    Other(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token<'l> {
    Of {
        #[serde(borrow)]
        agent: Cow<'l, str>,
    },
    Other(IgnoredAny),
}

/// A value that several hold, written as itself.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &Arc<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().serialize(to)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(from).map(Arc::new)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whom_a_line_is_about_is_read_from_its_bytes_as_from_its_body() {
        let table = [
            json!({"agent": "a", "token": {"agent": "b"}}),
            json!({"token": {"jti": "1", "agent": "b\\\"", "n": [1, {"agent": "c"}]}}),
            json!({"agent": 7, "token": {"agent": "b"}}),
            json!({"agent": "a", "token": "0123"}),
            json!({"token": "0123"}),
            json!({"token": {"agent": 7}}),
            json!({"agents": ["a"], "x": {"agent": "c"}}),
            json!({}),
        ];
        for body in table {
            let line = json!({"att": [], "body": body, "i": 7, "kind": "x"});
            let bytes = serde_json::to_vec(&line).unwrap();
            assert_eq!(
                Entry::agent_in(&bytes).as_deref(),
                Entry::agent_of(&body),
                "{body}"
            );
        }
        assert_eq!(Entry::agent_in(b"{"), None);
    }
}
