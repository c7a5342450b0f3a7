//! The state that decisions are checked against, and the one function that changes it.
//!
//! [`State::apply`] is shared by the happy path, by publishing and by recovery.
//! It never fails: whether an event may happen is decided before it is written,
//! by `check`.

mod approvals;
mod by_hash;
pub(crate) mod keep;
pub(crate) mod partial;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use crate::{
    embedded::{
        state::by_hash::{Attempts, ByAttempt, ByHash},
        tally::Tally,
    },
    event::{Entry, Event, EvidenceUse},
    model::{
        Approval, ApprovalState, FirstUse, Hash, HexHash, Millis, OUTCOMES_AWAITED, SpentRecord,
        Suspension, TokenRecord, TokenState,
    },
};

/// How long an ended token is remembered past its end, so that it is refused
/// as expired rather than as unknown, in milliseconds.
const LINGER_MS: Millis = 5_000;
/// How long the keys of a piece of evidence are counted past its end, in
/// milliseconds: longer than any clock skew that a caller accepts.
const EVIDENCE_LINGER_MS: Millis = 60_000;
/// Approvals that ended (denied, expired, consumed) and are still shown.
const ENDED_APPROVALS: usize = 1024;

/// A token that can still be spent.
#[derive(Clone)]
#[cfg_attr(test, derive(Debug, PartialEq))]
pub(crate) struct Outstanding {
    // Shared by the state that is written from and the one that is read.
    pub(crate) record: Arc<TokenRecord>,
    /// The attempt that holds it.
    pub(crate) held_by: Option<String>,
    /// Since when.
    held_since_ms: Millis,
    /// The request id of that attempt.
    request_id: String,
}

impl Outstanding {
    pub(crate) fn state(&self) -> TokenState {
        if self.held_by.is_some() {
            TokenState::Held
        } else {
            TokenState::Issued
        }
    }
}

#[derive(Clone)]
#[cfg_attr(test, derive(Debug, PartialEq))]
struct Spent {
    record: SpentRecord,
    attempt: Arc<str>,
}

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
#[derive(Clone, Default)]
#[cfg_attr(test, derive(Debug, PartialEq))]
pub(crate) struct State {
    /// Entries so far: the next index.
    pub(crate) entries: u64,
    /// Leaf hash of the last line.
    pub(crate) head: Hash,
    pub(crate) time_ms: Millis,
    pub(crate) epoch: u64,
    tokens: ByHash<Outstanding>,
    agents: HashMap<String, Counts>,
    /// Held tokens, those held longest first.
    held: BTreeSet<(Millis, Hash)>,
    spent: ByHash<Spent>,
    attempts: ByAttempt<Hash>,
    /// Allowed attempts of which no outcome came, and the newest allowed ones in
    /// their order, with outcome or without.
    awaited: Attempts,
    allowed: VecDeque<Arc<str>>,
    ends: BTreeSet<(Millis, Hash)>,
    evidence: ByHash<EvidenceKeys>,
    evidence_ends: BTreeSet<(Millis, Hash)>,
    evidence_agents: Tally,
    // Shared, so that a snapshot is gathered without copying them.
    approvals: BTreeMap<String, Arc<Approval>>,
    /// Pending and approved ones by digest, oldest first.
    open: ByHash<Vec<String>>,
    open_agents: Tally,
    ended: VecDeque<String>,
    discovered: BTreeMap<String, Millis>,
    /// Set while agents wait for an admin, after a restore.
    pub(crate) suspended: Option<Suspension>,
    /// How often an approval or a held token changed.
    pub(crate) holds_changed: u64,
}

impl State {
    pub(crate) fn token(&self, hash: &Hash) -> Option<&Outstanding> {
        self.tokens.get(hash)
    }

    pub(crate) fn spent(&self, hash: &Hash) -> Option<&SpentRecord> {
        self.spent.get(hash).map(|spent| &spent.record)
    }

    pub(crate) fn attempt(&self, attempt: &str) -> Option<&Hash> {
        self.attempts.get(attempt)
    }

    pub(crate) fn counts(&self, agent: &str) -> Counts {
        self.agents.get(agent).copied().unwrap_or_default()
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
        self.entries = stamp.index.saturating_add(1);
        self.head = stamp.leaf;
        self.time_ms = stamp.time_ms;
        self.epoch = stamp.epoch;
        if let Entry::Event(event) = entry {
            self.apply_event(stamp.index, stamp.time_ms, event);
        }
        self.sweep();
    }

    fn apply_event(&mut self, index: u64, now: Millis, event: &Event) {
        match event {
            Event::Epoch { .. } if planted!(EpochKeepsTokens) => {}
            Event::Epoch { .. } => self.forget_tokens(),
            Event::Torn { .. } | Event::ExchangeRefused { .. } | Event::Snapshot { .. } => {}
            Event::Restored(restored) => self.restored(index, now, restored),
            Event::Confirmed { .. } => self.suspended = None,
            Event::Issue {
                token, evidence, ..
            } => self.issue(token, evidence),
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
                let attempt: Arc<str> = attempt.as_str().into();
                self.spend(
                    &token.hash,
                    &attempt,
                    Some(&request.request_id),
                    FirstUse::Unknown,
                );
                self.await_outcome(attempt);
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
                self.spend(
                    &token.hash,
                    &attempt.as_str().into(),
                    Some(&request.request_id),
                    FirstUse::Refused,
                );
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
            Event::Lapse { token, attempt, .. } => {
                self.spend(
                    &token.hash,
                    &attempt.as_str().into(),
                    None,
                    FirstUse::Lapsed,
                );
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
                self.awaited.remove(attempt.as_str());
                let hash = self.attempts.get(attempt.as_str()).copied();
                if let Some(spent) = hash.and_then(|hash| self.spent.get_mut(&hash)) {
                    spent.record.outcome = match (*status, *not_forwarded) {
                        (0, false) => FirstUse::Unknown,
                        (0, true) => FirstUse::NotForwarded,
                        (status, _) => FirstUse::Forwarded(status),
                    };
                }
            }
        }
    }

    /// A new epoch: nothing that was outstanding can be spent any more, and
    /// what was spent is absent, which refuses as well.
    fn forget_tokens(&mut self) {
        self.tokens.clear();
        self.agents.clear();
        self.held.clear();
        self.spent.clear();
        self.attempts.clear();
        self.awaited.clear();
        self.allowed.clear();
        self.ends.clear();
        self.evidence.clear();
        self.evidence_ends.clear();
        self.evidence_agents = Tally::default();
    }

    fn issue(&mut self, token: &Arc<TokenRecord>, evidence: &EvidenceUse) {
        self.ends.insert((token.expires_ms, token.token_hash));
        self.agents
            .entry(token.agent.clone())
            .or_default()
            .outstanding += 1;
        let outstanding = Outstanding {
            record: Arc::clone(token),
            held_by: None,
            held_since_ms: 0,
            request_id: String::new(),
        };
        self.tokens.insert(token.token_hash, outstanding);

        let until_ms = evidence
            .expires_ms
            .max(self.time_ms)
            .saturating_add(EVIDENCE_LINGER_MS);
        let keys = self.evidence.entry(evidence.id).or_insert_with(|| {
            self.evidence_agents.add(&token.agent);
            EvidenceKeys {
                agent: token.agent.clone(),
                keys: HashSet::new(),
                until_ms,
            }
        });
        self.evidence_ends.remove(&(keys.until_ms, evidence.id));
        keys.until_ms = keys.until_ms.max(until_ms);
        keys.keys.insert(token.jkt.clone());
        self.evidence_ends.insert((keys.until_ms, evidence.id));
    }

    fn hold(&mut self, hash: &Hash, attempt: &str, request_id: &str) {
        let Some(token) = self.tokens.get_mut(hash) else {
            return;
        };
        token.held_by = Some(attempt.to_owned());
        token.held_since_ms = self.time_ms;
        token.request_id = request_id.to_owned();
        self.held.insert((self.time_ms, *hash));
        self.holds_changed += 1;
        self.agents
            .entry(token.record.agent.clone())
            .or_default()
            .held += 1;
        self.attempts.insert(attempt.into(), *hash);
    }

    /// Removes the token and keeps the record of its one use.
    fn spend(
        &mut self,
        hash: &Hash,
        attempt: &Arc<str>,
        request_id: Option<&str>,
        outcome: FirstUse,
    ) {
        let kept = planted!(SpendKeepsToken).then(|| self.tokens.get(hash).cloned());
        let Some(gone) = kept.unwrap_or_else(|| self.remove_token(hash)) else {
            return;
        };
        let until = gone.record.expires_ms.max(self.time_ms);
        if until != gone.record.expires_ms {
            self.ends.remove(&(gone.record.expires_ms, *hash));
            self.ends.insert((until, *hash));
        }
        self.attempts.insert(Arc::clone(attempt), *hash);
        let record = SpentRecord {
            jti: gone.record.jti.clone(),
            expires_ms: until,
            request_id: request_id.map_or(gone.request_id, str::to_owned),
            outcome,
        };
        self.spent.insert(
            *hash,
            Spent {
                record,
                attempt: Arc::clone(attempt),
            },
        );
    }

    fn lapse_overdue(&mut self, tokens: &[HexHash]) {
        for HexHash(hash) in tokens {
            let holder = self.tokens.get(hash).and_then(|t| t.held_by.clone());
            if let Some(attempt) = holder {
                self.spend(hash, &attempt.into(), None, FirstUse::Lapsed);
            }
        }
    }

    fn await_outcome(&mut self, attempt: Arc<str>) {
        self.awaited.insert(Arc::clone(&attempt));
        self.allowed.push_back(attempt);
        if self.allowed.len() > OUTCOMES_AWAITED
            && let Some(oldest) = self.allowed.pop_front()
        {
            self.awaited.remove(&oldest);
        }
    }

    fn remove_token(&mut self, hash: &Hash) -> Option<Outstanding> {
        let gone = self.tokens.remove(hash)?;
        let held = gone.held_by.is_some();
        if held {
            self.held.remove(&(gone.held_since_ms, *hash));
            self.holds_changed += 1;
        }
        if let Some(counts) = self.agents.get_mut(&gone.record.agent) {
            counts.outstanding -= 1;
            counts.held -= usize::from(held);
            if counts.outstanding == 0 {
                self.agents.remove(&gone.record.agent);
            }
        }
        Some(gone)
    }

    /// Forgets what is past its end. A held token stays: its end was checked on entry.
    fn sweep(&mut self) {
        while let Some(&(end, hash)) = self.ends.first() {
            if end.saturating_add(LINGER_MS) > self.time_ms {
                break;
            }
            self.ends.pop_first();
            if self
                .tokens
                .get(&hash)
                .is_some_and(|token| token.held_by.is_none())
            {
                self.remove_token(&hash);
            }
            if let Some(spent) = self.spent.remove(&hash) {
                self.attempts.remove(&spent.attempt);
            }
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
    }
}
