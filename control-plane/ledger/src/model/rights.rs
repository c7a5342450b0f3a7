//! Whose rights are taken away, and who has any: stops, and the registry of agents.
//!
//! A stop does two things. While it stands, nothing that it covers gets or does
//! anything. And what was given up to the moment that it was made counts no more,
//! also when it is lifted: nothing that was issued, approved or granted before comes back.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Approval, Hash, HexHash, Millis, TokenRecord, User, hash_hex};

/// How long the first person's word that everything may go on waits for a second
/// person's, in milliseconds.
pub const LIFT_WAITS_MS: Millis = 15 * 60 * 1000;
/// How long a stop that was lifted is kept, in milliseconds: longer than anything
/// lives that was given before it.
pub const LIFTED_KEPT_MS: Millis = 7 * 24 * 60 * 60 * 1000;

/// Where an agent stands in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// It showed valid evidence, or is announced; nobody has let it act.
    Discovered,
    /// It may get tokens.
    Active,
    /// It may not, until it is active again.
    Suspended,
    /// It may not, and never again.
    Decommissioned,
}

impl AgentState {
    /// Whether an agent may go from here to `next`.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Discovered | Self::Suspended, Self::Active)
                | (Self::Active, Self::Suspended)
                | (
                    Self::Discovered | Self::Active | Self::Suspended,
                    Self::Decommissioned
                )
        ) || self == next
    }

    /// As lines and pages write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discovered => "discovered",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Decommissioned => "decommissioned",
        }
    }
}

/// What the registry knows of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentRecord {
    /// Its SPIFFE ID.
    pub agent: String,
    /// The person or team that answers for it.
    pub owner: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub purpose: String,
    /// Where it runs: production, staging, ….
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub environment: String,
    /// Where it stands.
    pub state: AgentState,
    /// When it was registered.
    pub created_ms: Millis,
    /// When the record last changed.
    pub changed_ms: Millis,
    /// Who changed it; `config` for the config file.
    pub changed_by: String,
    /// Why, where that was said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// When its registration ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<Millis>,
    /// What it was given up to then counts no more.
    #[serde(default)]
    pub void_ms: Millis,
}

impl AgentRecord {
    /// Whether it may act at `now`.
    #[must_use]
    pub fn is_active(&self, now: Millis) -> bool {
        let goes_on = |ends| now < ends || planted!(EndUnchecked);
        self.state == AgentState::Active && self.expires_ms.is_none_or(goes_on)
    }
}

/// A change of the registry: what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentChange {
    /// The person or team that answers for it; a new agent needs one.
    pub owner: Option<String>,
    /// What it is for.
    pub purpose: Option<String>,
    /// Where it runs.
    pub environment: Option<String>,
    /// When its registration ends; `Some(None)`: never.
    pub expires_ms: Option<Option<Millis>>,
    /// Where it is to stand.
    pub state: Option<AgentState>,
    /// Why.
    pub why: String,
}

/// What a stop covers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// Every agent.
    Everything,
    /// One agent, and whoever acts in a chain that it is part of.
    Agent(String),
    /// All agents of one owner.
    Owner(String),
    /// All that is done for a user.
    User(User),
    /// What one agent does for a user.
    Delegation {
        /// The user.
        user: User,
        /// The agent.
        agent: String,
    },
    /// All that is bound to a DPoP key, by its thumbprint.
    Key(String),
    /// One token, by SHA-256 of its bytes; of a grant, all that is got with it.
    Token(#[serde(with = "hash_hex")] Hash),
}

impl Target {
    /// What it is, in a word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Everything => "everything",
            Self::Agent(_) => "agent",
            Self::Owner(_) => "owner",
            Self::User(_) => "user",
            Self::Delegation { .. } => "delegation",
            Self::Key(_) => "key",
            Self::Token(_) => "token",
        }
    }
}

/// Who makes a stop, and so how much of the room for stops it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopper {
    /// A person: all of it.
    Person,
    /// A refresh token that was used twice, which ends its family: what is left to people
    /// is not for that, but where there is no room, for the whole agent.
    Family,
    /// An agent, which revokes what is its own: half of it.
    Agent,
}

/// A stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// What it covers.
    pub target: Target,
    /// What was given up to then counts no more.
    pub at_ms: Millis,
    /// Who made it.
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// When it is forgotten: there is nothing left that it could cover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<Millis>,
    /// Who first said that everything may go on, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lift_asked: Option<(String, Millis)>,
    /// Who lifted it, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifted: Option<(String, Millis)>,
}

impl Stop {
    fn ends_ms(&self) -> Millis {
        self.until_ms.unwrap_or(Millis::MAX)
    }
}

/// Whom something was given to, and when: what rights are asked about.
#[derive(Clone, Copy, Debug)]
pub struct Given<'g> {
    /// The agent.
    pub agent: &'g str,
    /// The user it acts for.
    pub user: Option<&'g User>,
    /// The `act` chain.
    pub chain: &'g [String],
    /// Thumbprint of the key.
    pub jkt: Option<&'g str>,
    /// The token.
    pub token: Option<&'g Hash>,
    /// The grants that it was got with.
    pub lineage: &'g [HexHash],
    /// When it was given.
    pub at_ms: Millis,
}

impl<'g> Given<'g> {
    /// What an agent does itself, now.
    #[must_use]
    pub fn to(agent: &'g str, now: Millis) -> Self {
        Self {
            agent,
            user: None,
            chain: &[],
            jkt: None,
            token: None,
            lineage: &[],
            at_ms: now,
        }
    }
}

impl<'g> From<&'g TokenRecord> for Given<'g> {
    fn from(token: &'g TokenRecord) -> Self {
        Self {
            agent: &token.agent,
            user: token.user.as_ref(),
            chain: &token.chain,
            jkt: Some(&token.jkt),
            token: Some(&token.token_hash),
            lineage: &token.lineage,
            at_ms: token.issued_ms,
        }
    }
}

impl<'g> From<&'g Approval> for Given<'g> {
    fn from(approval: &'g Approval) -> Self {
        Self {
            agent: &approval.agent,
            user: approval.user.as_ref(),
            chain: &approval.chain,
            jkt: None,
            token: None,
            lineage: &approval.lineage,
            at_ms: approval.created_ms,
        }
    }
}

/// Why somebody has no right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// A stop covers it; what the stop is about.
    Stopped(&'static str),
    /// An agent is not active.
    Inactive,
}

/// The registry and the stops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// By SPIFFE ID. Shared, so that a copy is cheap.
    pub agents: BTreeMap<String, Arc<AgentRecord>>,
    /// By what they cover.
    pub stops: BTreeMap<Target, Arc<Stop>>,
    soonest: Soonest,
}

/// No stop is over before this, in ms, so that not each entry looks at all of them. Nothing
/// else rests on it.
#[derive(Clone, Copy, Debug)]
struct Soonest(Millis);

impl Soonest {
    fn of(stops: &BTreeMap<Target, Arc<Stop>>) -> Self {
        let ends = stops.values().map(|stop| stop.ends_ms());
        Self(ends.min().unwrap_or(Millis::MAX))
    }
}

impl Default for Soonest {
    fn default() -> Self {
        Self(Millis::MAX)
    }
}

impl PartialEq for Soonest {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Soonest {}

impl Rights {
    /// The record of an agent.
    #[must_use]
    pub fn agent(&self, agent: &str) -> Option<&AgentRecord> {
        self.agents.get(agent).map(Arc::as_ref)
    }

    /// What is in the way of something given, if anything is. An agent that has no
    /// record is none of the registry's: who calls has to know of it otherwise.
    #[must_use]
    pub fn bar(&self, given: &Given<'_>, now: Millis) -> Option<Bar> {
        let actors = || std::iter::once(given.agent).chain(given.chain.iter().map(String::as_str));
        if !self.stops.is_empty() {
            let owner = |agent: &str| self.agent(agent).map(|it| Target::Owner(it.owner.clone()));
            let mut targets = vec![Target::Everything];
            targets.extend(actors().map(|agent| Target::Agent(agent.to_owned())));
            targets.extend(actors().filter_map(owner));
            if let Some(user) = given.user {
                if !planted!(UserUnchecked) {
                    targets.push(Target::User(user.clone()));
                }
                let pair = |agent: &str| Target::Delegation {
                    user: user.clone(),
                    agent: agent.to_owned(),
                };
                if !planted!(DelegationUnchecked) {
                    targets.extend(actors().map(pair));
                }
            }
            targets.extend(given.jkt.map(|jkt| Target::Key(jkt.to_owned())));
            targets.extend(given.token.map(|hash| Target::Token(*hash)));
            if !planted!(LineageUnchecked) {
                let lineage = given.lineage.iter();
                targets.extend(lineage.map(|HexHash(hash)| Target::Token(*hash)));
            }
            let covering = targets.iter().filter_map(|target| self.stops.get(target));
            for stop in covering {
                if stop.lifted.is_none() || given.at_ms <= stop.at_ms {
                    return Some(Bar::Stopped(stop.target.kind()));
                }
            }
        }
        for record in actors().filter_map(|agent| self.agent(agent)) {
            if !record.is_active(now) {
                return Some(Bar::Inactive);
            }
            if given.at_ms <= record.void_ms {
                return Some(Bar::Stopped("agent"));
            }
        }
        None
    }

    /// Forgets stops whose time is over. What is shared is copied only where there may be one.
    pub(crate) fn sweep(shared: &mut Arc<Self>, now: Millis) {
        if now < shared.soonest.0 {
            return;
        }
        if shared.stops.values().any(|stop| stop.ends_ms() <= now) {
            let rights = Arc::make_mut(shared);
            rights.stops.retain(|_, stop| stop.ends_ms() > now);
        }
        if let Some(rights) = Arc::get_mut(shared) {
            rights.soonest = Soonest::of(&rights.stops);
        }
    }

    /// These, as they were kept.
    pub(crate) fn of(
        agents: BTreeMap<String, Arc<AgentRecord>>,
        stops: BTreeMap<Target, Arc<Stop>>,
    ) -> Self {
        Self {
            soonest: Soonest::of(&stops),
            agents,
            stops,
        }
    }
}

/// A row of either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Right {
    Agent(AgentRecord),
    Stop(Stop),
}

impl Right {
    /// When it is forgotten.
    pub(crate) fn until_ms(&self) -> Option<Millis> {
        match self {
            Self::Agent(_) => None,
            Self::Stop(stop) => stop.until_ms,
        }
    }

    /// What it is known by.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::Agent(record) => format!("agent {}", record.agent),
            Self::Stop(stop) => {
                let target = serde_json::to_string(&stop.target);
                format!("stop {}", target.unwrap_or_default())
            }
        }
    }
}

impl Rights {
    /// Takes in what it is now.
    pub(crate) fn put(&mut self, right: Right) {
        match right {
            Right::Agent(record) => {
                self.agents.insert(record.agent.clone(), Arc::new(record));
            }
            Right::Stop(stop) => {
                self.soonest = Soonest(self.soonest.0.min(stop.ends_ms()));
                self.stops.insert(stop.target.clone(), Arc::new(stop));
            }
        }
    }
}
