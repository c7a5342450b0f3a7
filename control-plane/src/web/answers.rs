//! What the JSON interface answers and takes, each a schema of the OpenAPI document.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A problem document (RFC 9457).
#[derive(Serialize, ToSchema)]
pub(super) struct Problem {
    /// `urn:writ:problem:` and the reason.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// The status in words.
    pub(super) title: String,
    /// The status.
    #[schema(minimum = 400, maximum = 599)]
    pub(super) status: u16,
    /// A word that stays what it is.
    pub(super) reason: String,
    /// What is wrong, and what to do.
    pub(super) detail: String,
}

/// A session.
#[derive(Serialize, ToSchema)]
pub(super) struct SessionAnswer {
    /// What to send back as `Authorization: Session …`; given once, when it is opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) session: Option<String>,
    /// Whose it is.
    pub(super) who: String,
    /// When it ends.
    #[schema(format = DateTime)]
    pub(super) expires_at: String,
}

/// A one-time secret.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Secret {
    pub(super) secret: String,
}

/// Nothing is asked.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// A one-time link.
#[derive(Serialize, ToSchema)]
pub(super) struct LinkAnswer {
    pub(super) url: String,
    #[schema(format = DateTime)]
    pub(super) expires_at: String,
}

/// A user, who is issuer and subject.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UserName {
    pub(super) issuer: String,
    pub(super) subject: String,
}

/// One action on one resource.
#[derive(Serialize, ToSchema)]
pub(super) struct ActionAnswer {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) method: String,
    pub(super) location: String,
    pub(super) content_digest: Option<String>,
    /// Of an `mcp_request`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) name: Option<String>,
    /// Of an `mcp_request`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) arguments_digest: Option<String>,
    /// Of an `a2a_request`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) skill: Option<String>,
}

/// A body that is part of what is decided.
#[derive(Serialize, ToSchema)]
pub(super) struct BodyAnswer {
    pub(super) sha256: String,
    pub(super) bytes: u64,
    pub(super) content_type: String,
    pub(super) content_encoding: String,
    /// Its bytes, where one approval is asked for and they are here.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) content: Option<ContentAnswer>,
}

/// The bytes of a body.
#[derive(Serialize, ToSchema)]
pub(super) struct ContentAnswer {
    /// As text, where they are text.
    pub(super) text: Option<String>,
    pub(super) base64: String,
}

/// One approval.
#[derive(Serialize, ToSchema)]
pub(super) struct ApprovalAnswer {
    pub(super) id: String,
    /// `pending`, `approved`, `denied`, `expired`, `consumed` or `cancelled`.
    pub(super) status: &'static str,
    /// What exactly is decided.
    pub(super) digest: String,
    pub(super) agent: String,
    pub(super) user: Option<UserName>,
    pub(super) chain: Vec<String>,
    pub(super) action: ActionAnswer,
    pub(super) body: Option<BodyAnswer>,
    pub(super) rules: Vec<String>,
    pub(super) reasons: Vec<String>,
    pub(super) approvers: Vec<String>,
    pub(super) policy_version: String,
    #[schema(format = DateTime)]
    pub(super) created_at: String,
    #[schema(format = DateTime)]
    pub(super) expires_at: String,
    pub(super) decided_by: Option<String>,
    #[schema(format = DateTime)]
    pub(super) decided_at: Option<String>,
}

/// All that are remembered.
#[derive(Serialize, ToSchema)]
pub(super) struct ApprovalsAnswer {
    pub(super) approvals: Vec<ApprovalAnswer>,
}

/// The digest that was looked at.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Decision {
    pub(super) digest: String,
}

/// A restore that agents wait for.
#[derive(Serialize, ToSchema)]
pub(super) struct RestoreAnswer {
    /// Its entry's index.
    pub(super) restored: u64,
    #[schema(format = DateTime)]
    pub(super) at: String,
    pub(super) entries: u64,
    pub(super) head: String,
}

/// Whether agents wait for a person since a restore.
#[derive(Serialize, ToSchema)]
pub(super) struct LedgerAnswer {
    pub(super) suspended: Option<RestoreAnswer>,
}

/// The restore that was looked at.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Confirmation {
    pub(super) restored: u64,
}

/// An agent. One that only asked, and that nobody has registered, has `agent`, `owner`
/// (null), `state` (`discovered`) and `created_at` alone.
#[derive(Serialize, ToSchema)]
pub(super) struct AgentAnswer {
    pub(super) agent: String,
    pub(super) owner: Option<String>,
    /// Whether the config still knows that owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) owner_exists: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) purpose: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) environment: Option<String>,
    /// `discovered`, `active`, `suspended` or `decommissioned`.
    pub(super) state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) why: Option<String>,
    #[schema(format = DateTime)]
    pub(super) created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = DateTime)]
    pub(super) changed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) changed_by: Option<String>,
    #[schema(format = DateTime)]
    pub(super) expires_at: Option<String>,
    /// When it last authenticated, whatever came of it; null where that is not known. Where
    /// another replica saw it, it may be some minutes too early.
    #[schema(format = DateTime)]
    pub(super) last_seen_at: Option<String>,
}

/// The registry, and who asked without being in it.
#[derive(Serialize, ToSchema)]
pub(super) struct AgentsAnswer {
    pub(super) agents: Vec<AgentAnswer>,
}

/// What is stopped: one thing.
#[derive(Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub(super) everything: bool,
    /// A SPIFFE ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) agent: Option<String>,
    /// The owner of agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) owner: Option<String>,
    /// All that is done for a user; with `agent`, what that one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<UserName>,
    /// The thumbprint of a DPoP key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// SHA-256 of a token, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<String>,
}

/// Who said something, and when.
#[derive(Serialize, ToSchema)]
pub(super) struct Said {
    pub(super) by: String,
    #[schema(format = DateTime)]
    pub(super) at: String,
}

/// A stop.
#[derive(Serialize, ToSchema)]
pub(super) struct StopAnswer {
    pub(super) target: Named,
    /// What it covers, in a word.
    pub(super) kind: &'static str,
    #[schema(format = DateTime)]
    pub(super) at: String,
    pub(super) by: String,
    pub(super) why: String,
    pub(super) stands: bool,
    pub(super) lift_asked: Option<Said>,
    pub(super) lifted: Option<Said>,
}

/// What is stopped, and what was: those that stand first, of them that of everything, and
/// then the newest.
#[derive(Serialize, ToSchema)]
pub(super) struct StopsAnswer {
    pub(super) stops: Vec<StopAnswer>,
    /// How many more there are.
    pub(super) more: usize,
}
