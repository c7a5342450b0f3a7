//! The state that decisions are checked against, and the one function that changes it.
//!
//! [`State::apply`] is shared by the happy path, by publishing and by recovery.
//! It never fails: whether an event may happen is decided before it is written,
//! by `check`.

mod approvals;
mod by_hash;
pub(crate) mod keep;
pub(crate) mod partial;
mod rights;
mod tokens;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::Arc,
};

use crate::{
    embedded::{
        state::{
            by_hash::{Attempts, ByHash, ManyByAttempt, ManyByHash},
            tokens::Known,
        },
        tally::Tally,
    },
    event::{Entry, Event},
    model::{
        Approval, ApprovalState, FirstUse, Hash, HexHash, Millis, ProofUse, Rights, SpentRecord,
        Suspension,
    },
};
pub(crate) use by_hash::ByAgent;
pub(crate) use tokens::{Made, Outstanding};

/// How long an ended token is remembered past its end, so that it is refused
/// as expired rather than as unknown, in milliseconds.
const LINGER_MS: Millis = 5_000;
/// How long the keys of a piece of evidence are counted past its end, in
/// milliseconds: longer than any clock skew that a caller accepts.
const EVIDENCE_LINGER_MS: Millis = 60_000;
/// Approvals that ended and are still shown: so many that people said no to, and of all
/// others (expired, consumed, cancelled) as many.
const ENDED_APPROVALS: usize = 1024;

#[derive(Clone)]
#[cfg_attr(test, derive(Debug, PartialEq))]
struct EvidenceKeys {
    agent: String,
    keys: HashSet<String>,
    until_ms: Millis,
}

#[derive(Default, Clone, Copy)]
#[cfg_attr(test, derive(Debug, PartialEq))]
pub(crate) struct Counts {
    pub(crate) outstanding: usize,
    pub(crate) held: usize,
}

/// Where and when an entry stands.
#[derive(Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) index: u64,
    pub(crate) time_ms: Millis,
    pub(crate) epoch: u64,
    pub(crate) leaf: Hash,
}

/// Everything that decisions depend on. Tokens, spent records, attempts and
/// evidence live for one epoch; approvals and discovered agents survive.
///
/// One that is [`State::shown`] has only what readers ask for, and none of what
/// commands are checked against besides.
#[derive(Clone, Default)]
#[cfg_attr(test, derive(Debug, PartialEq))]
pub(crate) struct State {
    /// Entries so far: the next index.
    pub(crate) entries: u64,
    /// Leaf hash of the last line.
    pub(crate) head: Hash,
    pub(crate) time_ms: Millis,
    pub(crate) epoch: u64,
    is_shown: bool,
    /// Outstanding and spent ones.
    tokens: ManyByHash<Known>,
    agents: ByAgent<Counts>,
    /// Outstanding tokens by their agents' owner, as the registry has it now.
    owners: Tally,
    /// Held tokens, those held longest first.
    held: BTreeSet<(Millis, Hash)>,
    attempts: ManyByAttempt<Hash>,
    /// Allowed attempts of which no outcome came, and the newest allowed ones in
    /// their order, with outcome or without.
    awaited: Attempts,
    allowed: VecDeque<Arc<str>>,
    ends: BTreeSet<(Millis, Hash)>,
    evidence: ByHash<EvidenceKeys>,
    evidence_ends: BTreeSet<(Millis, Hash)>,
    evidence_agents: Tally,
    /// Proofs that were used, until they would not be taken anyway. There are as many as
    /// the exchanges' own records hold.
    proofs: ByHash<ProofUse>,
    proof_ends: BTreeSet<(Millis, Hash)>,
    // Shared, so that a snapshot is gathered without copying them.
    approvals: BTreeMap<String, Arc<Approval>>,
    /// Pending and approved ones by digest, oldest first.
    open: ByHash<Vec<String>>,
    open_agents: Tally,
    ended: approvals::Ended,
    discovered: BTreeMap<String, Millis>,
    /// Set while agents wait for an admin, after a restore.
    pub(crate) suspended: Option<Suspension>,
    /// The registry of agents, and what is stopped.
    pub(crate) rights: Arc<Rights>,
    /// How often an approval, a held token, the registry or a stop changed.
    pub(crate) holds_changed: u64,
}

impl State {
    /// What readers are shown: as the state is, but only the part that they ask for.
    pub(crate) fn shown(self) -> Self {
        Self {
            is_shown: true,
            agents: ByAgent::default(),
            owners: Tally::default(),
            held: BTreeSet::new(),
            attempts: ManyByAttempt::default(),
            awaited: Attempts::default(),
            allowed: VecDeque::new(),
            evidence: ByHash::default(),
            evidence_ends: BTreeSet::new(),
            evidence_agents: Tally::default(),
            proofs: ByHash::default(),
            proof_ends: BTreeSet::new(),
            ..self
        }
    }

    pub(crate) fn token(&self, hash: &Hash) -> Option<&Outstanding> {
        match self.tokens.get(hash)? {
            Known::Outstanding(token) => Some(token),
            Known::Spent(_) => None,
        }
    }

    pub(crate) fn spent(&self, hash: &Hash) -> Option<SpentRecord> {
        match self.tokens.get(hash)? {
            Known::Spent(spent) => Some(spent.record()),
            Known::Outstanding(_) => None,
        }
    }

    /// Whether there is such a token, or was and its end is not over.
    pub(crate) fn is_known(&self, hash: &Hash) -> bool {
        self.tokens.get(hash).is_some()
    }

    pub(crate) fn attempt(&self, attempt: &str) -> Option<&Hash> {
        self.attempts.get(attempt)
    }

    pub(crate) fn counts(&self, agent: &str) -> Counts {
        self.agents.get(agent).copied().unwrap_or_default()
    }

    /// How many tokens all agents of an owner have outstanding.
    pub(crate) fn outstanding_of_owner(&self, owner: &str) -> usize {
        self.owners.of(owner)
    }

    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// Tokens that are held since before `ms`, those held longest first.
    pub(crate) fn held_before(&self, ms: Millis) -> impl Iterator<Item = Hash> {
        self.held
            .range(..(ms, Hash::default()))
            .map(|(_, hash)| *hash)
    }

    /// Whether the attempt was allowed in this epoch, not too long ago, and no outcome of it came.
    pub(crate) fn awaits_outcome(&self, attempt: &str) -> bool {
        self.awaited.contains(attempt)
    }

    /// Pieces of evidence of one agent that are remembered.
    pub(crate) fn evidence_of(&self, agent: &str) -> usize {
        self.evidence_agents.of(agent)
    }

    pub(crate) fn evidence_total(&self) -> usize {
        self.evidence.len()
    }

    /// Whether `jkt` is one of the keys that the evidence was shown under, and how many there are.
    pub(crate) fn evidence_keys(&self, id: &Hash, jkt: &str) -> (bool, usize) {
        self.evidence
            .get(id)
            .map_or((false, 0), |e| (e.keys.contains(jkt), e.keys.len()))
    }

    /// Which exchange used this proof.
    pub(crate) fn proof_used_by(&self, id: &Hash) -> Option<&str> {
        self.proofs.get(id).map(|it| it.by.as_str())
    }

    pub(crate) fn approval(&self, id: &str) -> Option<&Approval> {
        self.approvals.get(id).map(Arc::as_ref)
    }

    /// Pending and approved approvals of a digest, oldest first; some may be past their time.
    pub(crate) fn open_with(&self, digest: &Hash) -> impl DoubleEndedIterator<Item = &Approval> {
        self.open
            .get(digest)
            .into_iter()
            .flatten()
            .filter_map(|id| self.approval(id))
    }

    /// How many approvals are pending or approved.
    pub(crate) fn open_approvals(&self) -> usize {
        self.approvals.len().saturating_sub(self.ended.len())
    }

    /// How many of one agent are.
    pub(crate) fn open_approvals_of(&self, agent: &str) -> usize {
        self.open_agents.of(agent)
    }

    pub(crate) fn approvals(&self) -> impl Iterator<Item = &Approval> {
        self.approvals.values().map(Arc::as_ref)
    }

    pub(crate) fn discovered(&self) -> &BTreeMap<String, Millis> {
        &self.discovered
    }

    /// Applies one entry. Total: what may not happen has been refused before.
    pub(crate) fn apply(&mut self, stamp: Stamp, entry: &Entry) {
        self.apply_with(stamp, entry, &mut Made::default());
    }

    /// The same for one of two states that apply the same entries: what the first
    /// one made of this entry is shared by the second, instead of made again.
    pub(crate) fn apply_with(&mut self, stamp: Stamp, entry: &Entry, made: &mut Made) {
        self.entries = stamp.index.saturating_add(1);
        self.head = stamp.leaf;
        self.time_ms = stamp.time_ms;
        self.epoch = stamp.epoch;
        if let Entry::Event(event) = entry {
            self.apply_event(stamp.index, stamp.time_ms, event, made);
        }
        self.sweep();
    }

    fn apply_event(&mut self, index: u64, now: Millis, event: &Event, made: &mut Made) {
        match event {
            Event::Epoch { .. } if planted!(EpochKeepsTokens) => {}
            Event::Epoch { .. } => self.forget_tokens(),
            Event::Torn { .. } | Event::ExchangeRefused { .. } | Event::Snapshot { .. } => {}
            Event::Restored(restored) => self.restored(index, now, restored),
            Event::Confirmed { .. } => self.suspended = None,
            Event::Issue {
                token,
                evidence,
                also,
                once,
                proof,
                under,
                next,
                ..
            } => {
                self.issue(token);
                if let Some(proof) = proof {
                    self.use_proof(proof);
                }
                for piece in std::iter::once(evidence).chain(also).chain(once) {
                    self.shown_as_evidence(&token.agent, &token.jkt, piece);
                }
                if let Some(HexHash(under)) = under {
                    self.use_grants(token, under, made);
                }
                if let Some(next) = next {
                    self.issue(&Arc::new((**next).clone()));
                }
            }
            Event::Present { agent, once, .. } => self.shown_as_evidence(agent, "", once),
            Event::Agent(record) => self.put_agent(record),
            Event::Stop(stop) | Event::Lift(stop) => self.put_stop(stop),
            Event::ApprovalsCancelled { ids } => self.cancel(ids),
            Event::Discover { agent } => {
                self.discovered.entry(agent.clone()).or_insert(now);
            }
            Event::Allow {
                token,
                attempt,
                request,
                approval,
                ..
            } => {
                let id = Some(request.request_id.as_str());
                self.spend(&token.hash, attempt, id, FirstUse::Unknown, made);
                self.await_outcome(made.attempt(attempt));
                if let Some(used) = approval {
                    self.end_approval(&used.id, ApprovalState::Consumed);
                }
            }
            Event::Deny {
                token,
                attempt,
                request,
                ..
            } => {
                let id = Some(request.request_id.as_str());
                self.spend(&token.hash, attempt, id, FirstUse::Refused, made);
            }
            Event::Hold {
                token,
                attempt,
                request,
                opened,
                ..
            } => {
                self.hold(&token.hash, attempt, &request.request_id);
                if let Some(approval) = opened {
                    self.open_approval(approval);
                }
            }
            Event::Ask { opened, .. } => {
                if let Some(approval) = opened {
                    self.open_approval(approval);
                }
            }
            Event::Lapse { token, attempt, .. } => {
                self.spend(&token.hash, attempt, None, FirstUse::Lapsed, made);
            }
            Event::LapsesOverdue { tokens } => self.lapse_overdue(tokens),
            Event::Approval {
                id,
                decision,
                by,
                expires_ms,
                ..
            } => self.decide(now, id, *decision, by, *expires_ms),
            Event::ApprovalsExpired { ids } => {
                for id in ids {
                    self.end_approval(id, ApprovalState::Expired);
                }
            }
            Event::Outcome {
                attempt,
                status,
                not_forwarded,
                ..
            } => {
                let outcome = match (*status, *not_forwarded) {
                    (0, false) => FirstUse::Unknown,
                    (0, true) => FirstUse::NotForwarded,
                    (status, _) => FirstUse::Forwarded(status),
                };
                self.outcome(attempt, outcome, made);
            }
        }
    }

    /// A new epoch: nothing that was outstanding can be spent any more, and
    /// what was spent is absent, which refuses as well.
    fn forget_tokens(&mut self) {
        self.tokens.clear();
        self.agents.clear();
        self.owners = Tally::default();
        self.held.clear();
        self.attempts.clear();
        self.awaited.clear();
        self.allowed.clear();
        self.ends.clear();
        self.evidence.clear();
        self.evidence_ends.clear();
        self.evidence_agents = Tally::default();
        self.proofs.clear();
        self.proof_ends.clear();
    }

    /// Forgets what is past its end. A held token stays: its end was checked on entry.
    fn sweep(&mut self) {
        Rights::sweep(&mut self.rights, self.time_ms);
        while let Some(&(end, hash)) = self.ends.first() {
            if end.saturating_add(LINGER_MS) > self.time_ms {
                break;
            }
            self.ends.pop_first();
            self.forget(&hash);
        }
        while let Some(&(end, id)) = self.evidence_ends.first() {
            if end > self.time_ms {
                break;
            }
            self.evidence_ends.pop_first();
            if let Some(gone) = self.evidence.remove(&id) {
                self.evidence_agents.remove(&gone.agent);
            }
        }
        while let Some(&(end, id)) = self.proof_ends.first() {
            if end > self.time_ms {
                break;
            }
            self.proof_ends.pop_first();
            self.proofs.remove(&id);
        }
    }
}
