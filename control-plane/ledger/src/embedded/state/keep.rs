//! The part of the state that outlives an epoch: what snapshots hold.
//!
//! Tokens, spent records and counts of keys are not in it: every start forgets
//! them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::State;
use crate::model::{AgentRecord, Approval, Hash, Millis, Rights, Stop, Suspension};

/// What a start needs of all the entries before it. One state has one form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    pub(crate) entries: u64,
    #[serde(with = "crate::model::hash_hex")]
    pub(crate) head: Hash,
    pub(crate) time_ms: Millis,
    pub(crate) epoch: u64,
    /// Pending and approved, by digest, those of one digest in the order of their opening.
    pub(crate) open: Vec<Shared<Approval>>,
    /// Ended and still shown, those that ended first before; what was denied at the end.
    pub(crate) ended: Vec<Shared<Approval>>,
    /// By name.
    pub(crate) discovered: Vec<(String, Millis)>,
    /// By name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) agents: Vec<Shared<AgentRecord>>,
    /// By what they cover.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) stops: Vec<Shared<Stop>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) suspended: Option<Suspension>,
}

/// What is shared with the state it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shared<T>(Arc<T>);

impl<T: Serialize> Serialize for Shared<T> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Shared<T> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        T::deserialize(from).map(|it| Self(Arc::new(it)))
    }
}

impl State {
    /// Gathers it without copying approvals: the ledger's thread does this.
    pub(crate) fn keep(&self) -> Kept {
        let shared = |id: &String| self.approvals.get(id).cloned().map(Shared);
        let mut digests: Vec<&Hash> = self.open.keys().collect();
        digests.sort_unstable();
        Kept {
            entries: self.entries,
            head: self.head,
            time_ms: self.time_ms,
            epoch: self.epoch,
            open: digests
                .into_iter()
                .filter_map(|digest| self.open.get(digest))
                .flatten()
                .filter_map(shared)
                .collect(),
            ended: self.ended.ids().filter_map(shared).collect(),
            discovered: self
                .discovered
                .iter()
                .map(|(agent, at)| (agent.clone(), *at))
                .collect(),
            agents: self.rights.agents.values().cloned().map(Shared).collect(),
            stops: self.rights.stops.values().cloned().map(Shared).collect(),
            suspended: self.suspended.clone(),
        }
    }

    /// The state that a start goes on from.
    pub(crate) fn from_kept(kept: Kept) -> Self {
        let agents = kept.agents.into_iter();
        let stops = kept.stops.into_iter();
        let rights = Rights::of(
            agents.map(|Shared(it)| (it.agent.clone(), it)).collect(),
            stops.map(|Shared(it)| (it.target.clone(), it)).collect(),
        );
        let mut state = Self {
            rights: Arc::new(rights),
            entries: kept.entries,
            head: kept.head,
            time_ms: kept.time_ms,
            epoch: kept.epoch,
            discovered: kept.discovered.into_iter().collect(),
            suspended: kept.suspended,
            ..Self::default()
        };
        for Shared(approval) in kept.open {
            let ids = state.open.entry(approval.digest).or_default();
            ids.push(approval.id.clone());
            state.open_agents.add(&approval.agent);
            state.approvals.insert(approval.id.clone(), approval);
        }
        for Shared(approval) in kept.ended {
            state.ended.add(&approval);
            state.approvals.insert(approval.id.clone(), approval);
        }
        state
    }
}
