//! What the ledger keeps and the commands that change it.
//!
//! Callers verify and evaluate; a [`Command`] says what they found. The ledger
//! rechecks what can have changed since, and either commits or refuses with a
//! [`Refused`]. Nothing here reads a clock: the ledger's thread passes time in.

mod action;
mod command;
mod grant;
pub(crate) mod hash_hex;
mod limits;
mod refused;
mod request;
mod rights;
mod spent;

pub use action::{ActionRecord, BodyRecord};
pub use command::Command;
pub use grant::{Deferred, GRANT_USES, GrantKind, GrantTerms, Scope};
pub use limits::Limits;
pub use refused::{Committed, Refused};
pub use request::RequestFacts;
pub(crate) use rights::Right;
pub use rights::{
    AgentChange, AgentRecord, AgentState, Bar, Given, LIFT_WAITS_MS, LIFTED_KEPT_MS, Rights, Stop,
    Stopper, Target,
};
use serde::{Deserialize, Serialize};
pub use spent::{FirstUse, SpentGrant, SpentRecord};

/// SHA-256, shown as lower-case hex in lines.
pub type Hash = [u8; 32];

/// A [`Hash`] in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HexHash(#[serde(with = "hash_hex")] pub Hash);

/// The limit that a piece of evidence shown under one DPoP key too many has
/// reached, as [`Refused::Limit`] says it.
pub const EVIDENCE_KEYS: &str = "keys per piece of evidence";

/// Milliseconds since the Unix epoch, as the ledger's own clock has them.
pub type Millis = u64;

/// A user, who is issuer and subject everywhere: `sub` alone is not unique.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The `iss` of the user's token.
    pub issuer: String,
    /// Its `sub`.
    pub subject: String,
}

/// Bytes kept beside a line; the line holds SHA-256(salt ‖ bytes) only. At most
/// [`audit::MAX_EVIDENCE`] bytes, and at most [`audit::MAX_ATTACHMENTS`] a line.
/// Salted and digested when it is made, which is the caller's time.
#[derive(Clone, PartialEq, Eq)]
pub struct Evidence {
    reference: audit::AttachmentRef,
    salted: Vec<u8>,
}

impl Evidence {
    /// Evidence under a fresh salt; `name` says what it is: `token`, `proof`, ….
    #[must_use]
    pub fn new(name: &'static str, bytes: &[u8]) -> Self {
        let mut salt = [0; audit::SALT_LEN];
        rand::fill(&mut salt);
        Self::with_salt(name, bytes, &salt)
    }

    /// Evidence under this salt, which has to be random and used once.
    #[must_use]
    pub fn with_salt(name: &str, bytes: &[u8], salt: &[u8; audit::SALT_LEN]) -> Self {
        Self {
            reference: audit::AttachmentRef::new(name, salt, bytes),
            salted: [salt.as_slice(), bytes].concat(),
        }
    }

    /// What the line says of it.
    pub(crate) fn reference(&self) -> &audit::AttachmentRef {
        &self.reference
    }

    /// Its bytes, salt first.
    pub(crate) fn salted(&self) -> &[u8] {
        &self.salted
    }
}

/// A token that has been issued and not yet spent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// SHA-256 of the token's exact bytes: the key.
    #[serde(with = "hash_hex")]
    pub token_hash: Hash,
    /// Its `jti`.
    pub jti: String,
    /// The agent's SPIFFE ID.
    pub agent: String,
    /// The user it acts for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// The `act` chain, outermost first; empty when the agent acts itself.
    pub chain: Vec<String>,
    /// Thumbprint of the key it is bound to.
    pub jkt: String,
    /// SHA-256 of the client certificate it is bound to, base64url (RFC 8705).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x5t: Option<String>,
    /// The one action.
    pub action: ActionRecord,
    /// The task that the action belongs to.
    pub txn: String,
    /// When it was issued; earlier records have none.
    #[serde(default)]
    pub issued_ms: Millis,
    /// When it ends.
    pub expires_ms: Millis,
    /// The grants that it was got with, by their hashes, the first one first: a stop of one
    /// of them covers it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lineage: Vec<HexHash>,
    /// What it stands for, where it is a grant: then it allows no request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantTerms>,
}

/// Where a token stands. A lapsed or spent one is not outstanding any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// Issued and unspent.
    Issued,
    /// Shown once; its request waits for a human.
    Held,
}

/// An approval's life: `Pending → Approved → Consumed`, or it ends otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalState {
    /// Nobody has decided.
    Pending,
    /// A human said yes; not used yet.
    Approved,
    /// A human said no.
    Denied,
    /// Its time ran out, before or after a yes.
    Expired,
    /// Used, once.
    Consumed,
    /// Taken back with the rights of whoever asked.
    Cancelled,
}

/// One request that waits, or waited, for a human.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// `apr_` and 128 random bits, base64url. Not a bearer grant.
    pub id: String,
    /// The action digest: what exactly is approved.
    #[serde(with = "hash_hex")]
    pub digest: Hash,
    /// The agent's SPIFFE ID.
    pub agent: String,
    /// The user it acts for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// The `act` chain.
    pub chain: Vec<String>,
    /// The grants that its token was got with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lineage: Vec<HexHash>,
    /// The one action.
    pub action: ActionRecord,
    /// The body that goes with it, where bodies are read; it is part of the digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<BodyRecord>,
    /// The ids of the rules that want a human.
    pub rules: Vec<String>,
    /// What those rules say of why (`@reason`), in their order.
    pub reasons: Vec<String>,
    /// Everybody who one of the rules names (`@approvers`), for showing; who may
    /// decide is in `approver_sets`.
    pub approvers: Vec<String>,
    /// The approvers of each rule, in the order of `rules`: who lifts all of
    /// them is in every set.
    pub approver_sets: Vec<Vec<String>>,
    /// The policy's version when it was asked for.
    pub policy_version: String,
    /// Where it stands.
    pub state: ApprovalState,
    /// When it was asked for.
    pub created_ms: Millis,
    /// When it ends: while pending, the pending deadline; once approved, the use deadline.
    pub expires_ms: Millis,
    /// Who decided, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// When it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_ms: Option<Millis>,
}

impl Approval {
    /// Whether it waits for a human, or was approved and is not used.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.state, ApprovalState::Pending | ApprovalState::Approved)
    }
}

/// Agents wait for an admin, since a backup stands in for what was lost: rights
/// that were taken away since would be there again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suspension {
    /// The index of the entry that says so (`restored`).
    pub index: u64,
    /// Its ledger time.
    pub time_ms: Millis,
    /// Entries that were restored.
    pub entries: u64,
    /// The leaf hash of the last of them.
    #[serde(with = "hash_hex")]
    pub head: Hash,
}

/// A piece of evidence, and when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceOf {
    /// SHA-256 of what it is known by.
    #[serde(with = "hash_hex")]
    pub id: Hash,
    /// When it ends.
    pub expires_ms: Millis,
}

/// A proof that is used up by what an exchange brings (RFC 9449, section 11.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofUse {
    /// SHA-256 of what it is known by: its key and its `jti`.
    #[serde(with = "hash_hex")]
    pub id: Hash,
    /// The exchange that it is used by, which may bring several tokens.
    pub by: String,
    /// Until when it would be taken.
    pub until_ms: Millis,
}

/// What policy said, for the line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFacts {
    /// The policy set's version: SHA-256 of its text, hex.
    pub version: String,
    /// The ids of the policies that decided.
    pub determining: Vec<String>,
}

impl std::fmt::Debug for Evidence {
    // Evidence holds tokens: its length may be shown, its bytes never.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Evidence({}, {} bytes)",
            self.reference.name,
            self.salted.len()
        )
    }
}

/// The kinds that [`Command::Note`] may carry.
pub const NOTE_KINDS: &[&str] = &[
    "canary",
    "config",
    "edge_counts",
    "edge_denial",
    "exchange_counts",
    "gap",
    "keys",
    "late_outcome",
    "login",
    "proxy",
    "question_refused",
    "rollout",
    "shutdown",
];

/// Kinds of notes that are also taken when no further segment can be made: few,
/// and not at the will of whoever sends requests.
pub const RESERVED_NOTE_KINDS: &[&str] = &["config", "gap", "keys", "login", "shutdown"];

/// How many approvals one [`Command::ExpireApprovals`] ends.
pub const EXPIRED_PER_ENTRY: usize = 64;
/// How many tokens one [`Command::LapseOverdue`] ends: as many hashes fit a line.
pub const OVERDUE_PER_ENTRY: usize = 48;
/// How many allowed requests may still report an outcome.
pub const OUTCOMES_AWAITED: usize = 65_536;
