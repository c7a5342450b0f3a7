//! The state that decisions are checked against, and the one function that changes it.
//!
//! [`State::apply`] is shared by the happy path, by publishing and by recovery.
//! It never fails: whether an event may happen is decided before it is written,
//! by `check`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use crate::{
    event::{Answer, Entry, Event, EvidenceUse, Subject},
    model::{
        Approval, ApprovalState, FirstUse, Hash, Millis, SpentRecord, TokenRecord, TokenState,
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
pub(crate) struct Outstanding {
    pub(crate) record: TokenRecord,
    /// The attempt that holds it.
    pub(crate) held_by: Option<String>,
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
struct Spent {
    record: SpentRecord,
    attempt: String,
}

#[derive(Clone)]
struct EvidenceKeys {
    keys: HashSet<String>,
    until_ms: Millis,
}

#[derive(Default, Clone, Copy)]
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
pub(crate) struct State {
    /// Entries so far: the next index.
    pub(crate) entries: u64,
    /// Leaf hash of the last line.
    pub(crate) head: Hash,
    pub(crate) time_ms: Millis,
    pub(crate) epoch: u64,
    tokens: HashMap<Hash, Outstanding>,
    agents: HashMap<String, Counts>,
    held: usize,
    spent: HashMap<Hash, Spent>,
    attempts: HashMap<String, Hash>,
    ends: BTreeSet<(Millis, Hash)>,
    evidence: HashMap<Hash, EvidenceKeys>,
    evidence_ends: BTreeSet<(Millis, Hash)>,
    approvals: BTreeMap<String, Approval>,
    /// Pending and approved ones by digest, oldest first.
    open: HashMap<Hash, Vec<String>>,
    ended: VecDeque<String>,
    discovered: BTreeMap<String, Millis>,
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
        self.held
    }

    /// Whether `jkt` is one of the keys that the evidence was shown under, and how many there are.
    pub(crate) fn evidence_keys(&self, id: &Hash, jkt: &str) -> (bool, usize) {
        self.evidence
            .get(id)
            .map_or((false, 0), |e| (e.keys.contains(jkt), e.keys.len()))
    }

    pub(crate) fn approval(&self, id: &str) -> Option<&Approval> {
        self.approvals.get(id)
    }

    /// Pending and approved approvals of a digest, oldest first; some may be past their time.
    pub(crate) fn open_with(&self, digest: &Hash) -> impl DoubleEndedIterator<Item = &Approval> {
        self.open
            .get(digest)
            .into_iter()
            .flatten()
            .filter_map(|id| self.approvals.get(id))
    }

    /// How many approvals are pending or approved.
    pub(crate) fn open_approvals(&self) -> usize {
        self.approvals.len() - self.ended.len()
    }

    pub(crate) fn approvals(&self) -> impl Iterator<Item = &Approval> {
        self.approvals.values()
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
            self.apply_event(stamp.time_ms, event);
        }
        self.sweep();
    }

    fn apply_event(&mut self, now: Millis, event: &Event) {
        match event {
            Event::Epoch { .. } => self.forget_tokens(),
            Event::Torn { .. } | Event::ExchangeRefused { .. } => {}
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
                self.spend(token, attempt, Some(&request.request_id), FirstUse::Unknown);
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
                self.spend(token, attempt, Some(&request.request_id), FirstUse::Refused);
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
                    self.open
                        .entry(approval.digest)
                        .or_default()
                        .push(approval.id.clone());
                    self.approvals.insert(approval.id.clone(), approval.clone());
                }
            }
            Event::Lapse { token, attempt, .. } => {
                self.spend(token, attempt, None, FirstUse::Lapsed)
            }
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
                attempt, status, ..
            } => {
                let hash = self.attempts.get(attempt).copied();
                if let Some(spent) = hash.and_then(|hash| self.spent.get_mut(&hash)) {
                    spent.record.outcome = FirstUse::Forwarded(*status);
                }
            }
        }
    }

    /// A new epoch: nothing that was outstanding can be spent any more, and
    /// what was spent is absent, which refuses as well.
    fn forget_tokens(&mut self) {
        self.tokens.clear();
        self.agents.clear();
        self.held = 0;
        self.spent.clear();
        self.attempts.clear();
        self.ends.clear();
        self.evidence.clear();
        self.evidence_ends.clear();
    }

    fn issue(&mut self, token: &TokenRecord, evidence: &EvidenceUse) {
        self.ends.insert((token.expires_ms, token.token_hash));
        self.agents
            .entry(token.agent.clone())
            .or_default()
            .outstanding += 1;
        let outstanding = Outstanding {
            record: token.clone(),
            held_by: None,
            request_id: String::new(),
        };
        self.tokens.insert(token.token_hash, outstanding);

        let until_ms = evidence
            .expires_ms
            .max(self.time_ms)
            .saturating_add(EVIDENCE_LINGER_MS);
        let keys = self.evidence.entry(evidence.id).or_insert(EvidenceKeys {
            keys: HashSet::new(),
            until_ms,
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
        token.request_id = request_id.to_owned();
        self.held += 1;
        self.agents
            .entry(token.record.agent.clone())
            .or_default()
            .held += 1;
        self.attempts.insert(attempt.to_owned(), *hash);
    }

    /// Removes the token and keeps the record of its one use.
    fn spend(
        &mut self,
        token: &Subject,
        attempt: &str,
        request_id: Option<&str>,
        outcome: FirstUse,
    ) {
        let Some(gone) = self.remove_token(&token.hash) else {
            return;
        };
        let until = gone.record.expires_ms.max(self.time_ms);
        self.ends.remove(&(gone.record.expires_ms, token.hash));
        self.ends.insert((until, token.hash));
        self.attempts.insert(attempt.to_owned(), token.hash);
        let record = SpentRecord {
            jti: gone.record.jti,
            expires_ms: until,
            request_id: request_id.map_or(gone.request_id, str::to_owned),
            outcome,
        };
        self.spent.insert(
            token.hash,
            Spent {
                record,
                attempt: attempt.to_owned(),
            },
        );
    }

    fn remove_token(&mut self, hash: &Hash) -> Option<Outstanding> {
        let gone = self.tokens.remove(hash)?;
        let held = gone.held_by.is_some();
        self.held -= usize::from(held);
        if let Some(counts) = self.agents.get_mut(&gone.record.agent) {
            counts.outstanding -= 1;
            counts.held -= usize::from(held);
            if counts.outstanding == 0 {
                self.agents.remove(&gone.record.agent);
            }
        }
        Some(gone)
    }

    fn decide(&mut self, now: Millis, id: &str, decision: Answer, by: &str, expires_ms: Millis) {
        let Some(approval) = self.approvals.get_mut(id) else {
            return;
        };
        approval.decided_by = Some(by.to_owned());
        approval.decided_ms = Some(now);
        match decision {
            Answer::Approved => {
                approval.state = ApprovalState::Approved;
                approval.expires_ms = expires_ms;
            }
            Answer::Denied => self.end_approval(id, ApprovalState::Denied),
        }
    }

    fn end_approval(&mut self, id: &str, state: ApprovalState) {
        let Some(approval) = self.approvals.get_mut(id) else {
            return;
        };
        approval.state = state;
        if let Some(ids) = self.open.get_mut(&approval.digest) {
            ids.retain(|other| other != id);
            if ids.is_empty() {
                self.open.remove(&approval.digest);
            }
        }
        self.ended.push_back(id.to_owned());
        while self.ended.len() > ENDED_APPROVALS {
            if let Some(oldest) = self.ended.pop_front() {
                self.approvals.remove(&oldest);
            }
        }
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
            self.evidence.remove(&id);
        }
    }
}
