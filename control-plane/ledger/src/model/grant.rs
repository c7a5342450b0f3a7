//! What stands in for evidence at the exchange: broker sessions, refresh tokens,
//! delegations. Each is a token that allows no request, by which others are got.

use serde::{Deserialize, Serialize};

use super::{HexHash, TokenRecord};

/// The limit that a delegation whose uses are up has reached, as
/// [`super::Refused::Limit`] says it.
pub const GRANT_USES: &str = "uses of a delegation";

/// What kind of grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantKind {
    /// A broker session: stands in for the agent's evidence, under the same key.
    Session,
    /// The same, once: the next one comes with what is got by it.
    Refresh,
    /// What its agent lets another agent do.
    Delegation,
    /// A code for the token of one action that a person is asked about: it brings that, once.
    Deferral,
}

/// What a deferral waits for, and what for it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deferred {
    /// The approval's id.
    pub approval: String,
    /// Whether a subject token was shown for it (RFC 8693), whose answer says so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exchange: bool,
    /// What the request's `content-type` will be, which the approval covers; empty without.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub content_type: String,
    /// The same of its `content-encoding`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub content_encoding: String,
}

/// A part of what a delegation covers: each of its methods at each of its locations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// The methods.
    pub methods: Vec<String>,
    /// Absolute URLs; one that ends in `/*` covers what is under it.
    pub locations: Vec<String>,
}

/// What a grant stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantTerms {
    /// Its kind.
    pub kind: GrantKind,
    /// Who may use a delegation; the others are their agent's own. A session names its
    /// agent where what it rests on is for that agent alone, so that it is not passed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// What a delegation covers; the others cover what policy allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scope: Vec<Scope>,
    /// How often a delegation may be passed on.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub depth: u8,
    /// How many tokens a delegation may still bring, or how often a refresh token may
    /// still be followed by another; none: as many as its time allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u64>,
    /// What a deferral waits for; the others wait for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deferred: Option<Box<Deferred>>,
}

impl GrantTerms {
    /// Whether it is a session of which nothing may be delegated.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.kind == GrantKind::Session && self.holder.is_some()
    }
}

fn is_zero(depth: &u8) -> bool {
    *depth == 0
}

impl TokenRecord {
    /// The lineage of what is got with this grant. Refresh tokens of one family count as
    /// the first of them. What a deferral brings comes from what that came from.
    #[must_use]
    pub fn heirs(&self) -> Vec<HexHash> {
        let mut lineage = self.lineage.clone();
        let adds = match self.grant.as_ref().map(|it| it.kind) {
            Some(GrantKind::Deferral) => false,
            Some(GrantKind::Refresh) => lineage.is_empty(),
            _ => true,
        };
        if adds {
            lineage.push(HexHash(self.token_hash));
        }
        lineage
    }

    /// The chain of a token that `holder` gets with this delegation (RFC 8693, section
    /// 4.1): the holder outermost, then the agent that gave it, and those before.
    #[must_use]
    pub fn delegated_chain(&self, holder: &str) -> Vec<String> {
        let mut chain = vec![holder.to_owned()];
        if self.chain.is_empty() {
            chain.push(self.agent.clone());
        }
        chain.extend(self.chain.iter().cloned());
        chain
    }
}
