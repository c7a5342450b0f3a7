//! What the ledger refuses to exceed.

use super::Millis;

/// Named limits. The defaults are the design's.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Outstanding tokens per agent.
    pub outstanding_per_agent: usize,
    /// Outstanding tokens of all agents of one owner. In a database each replica counts
    /// for itself: several may go past it together, up to as much for each.
    pub outstanding_per_owner: usize,
    /// Held requests per agent.
    pub held_per_agent: usize,
    /// Held requests in all.
    pub held_total: usize,
    /// DPoP keys per piece of evidence.
    pub keys_per_evidence: usize,
    /// Pieces of evidence per agent whose keys are counted: each until a minute
    /// past its end. An agent that fetches an SVID of an hour each second has 3,660, one
    /// that makes an assertion of a minute for each of 60 exchanges a second 14,400.
    pub evidence_per_agent: usize,
    /// Pieces of evidence whose keys are counted, in all.
    pub evidence_total: usize,
    /// Discovered agents that are remembered.
    pub discovered: usize,
    /// Agents in the registry.
    pub agents: usize,
    /// Stops that stand, or whose past still counts.
    pub stops: usize,
    /// Approvals of one agent that are pending or approved. Joining one is free.
    pub approvals_open_per_agent: usize,
    /// Approvals that are pending or approved, in all.
    pub approvals_open: usize,
    /// How long nobody is asked again what a person has said no to.
    pub denied_ms: Millis,
}

impl Limits {
    /// Outstanding tokens with which an agent gets no further grant: half of what it may
    /// have. Grants last, and without room beside them an agent could have nothing by them.
    #[must_use]
    pub fn outstanding_with_grants(&self) -> usize {
        (self.outstanding_per_agent / 2).max(1)
    }

    /// Whether an agent that has so many outstanding tokens, and whose owner's agents have
    /// so many, gets no further grant. None takes anybody's last place: nothing could be got
    /// with it.
    #[must_use]
    pub(crate) fn is_full_for_grants(&self, outstanding: usize, of_owner: usize) -> bool {
        outstanding >= self.outstanding_with_grants()
            || outstanding.saturating_add(1) >= self.outstanding_per_agent
            || of_owner.saturating_add(1) >= self.outstanding_per_owner
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            outstanding_per_agent: 1024,
            outstanding_per_owner: 65_536,
            held_per_agent: 16,
            held_total: 1024,
            keys_per_evidence: 16,
            evidence_per_agent: 16_384,
            evidence_total: 524_288,
            discovered: 1024,
            agents: 262_144,
            stops: 65_536,
            approvals_open_per_agent: 32,
            approvals_open: 1024,
            denied_ms: 300_000,
        }
    }
}
