//! A token's life in the state: issued, held, spent, forgotten.
//!
//! An outstanding token and the record of its use have one place: spending changes
//! what stands there.

use std::sync::Arc;

use super::{Counts, EVIDENCE_LINGER_MS, EvidenceKeys, State};
use crate::model::{
    EvidenceOf, FirstUse, GrantKind, GrantTerms, Hash, HexHash, Millis, OUTCOMES_AWAITED, ProofUse,
    SpentGrant, SpentRecord, TokenRecord, TokenState,
};

/// A token as long as it is remembered.
#[derive(Clone)]
#[cfg_attr(test, derive(Debug, PartialEq))]
pub(super) enum Known {
    Outstanding(Outstanding),
    Spent(Spent),
}

/// A token that can still be spent.
#[derive(Clone)]
#[cfg_attr(test, derive(Debug, PartialEq))]
pub(crate) struct Outstanding {
    // Shared by the state that is written from and the one that is read.
    pub(crate) record: Arc<TokenRecord>,
    pub(super) hold: Option<Box<Holding>>,
}

/// The request that a token is held for.
#[derive(Clone)]
#[cfg_attr(test, derive(Debug, PartialEq))]
pub(super) struct Holding {
    pub(super) attempt: String,
    pub(super) since_ms: Millis,
    pub(super) request_id: String,
}

impl Outstanding {
    /// The attempt that holds it.
    pub(crate) fn held_by(&self) -> Option<&str> {
        self.hold.as_deref().map(|hold| hold.attempt.as_str())
    }

    pub(crate) fn state(&self) -> TokenState {
        if self.hold.is_some() {
            TokenState::Held
        } else {
            TokenState::Issued
        }
    }
}

/// What became of a token.
#[derive(Clone)]
#[cfg_attr(test, derive(Debug, PartialEq))]
pub(super) struct Spent {
    pub(super) spending: Arc<Spending>,
    pub(super) outcome: FirstUse,
}

/// The use that spent a token: shared by both states.
#[cfg_attr(test, derive(Debug, PartialEq))]
pub(super) struct Spending {
    pub(super) jti: String,
    /// The token's own end, or when it was spent if that was later.
    pub(super) until_ms: Millis,
    pub(super) request_id: String,
    pub(super) attempt: Arc<str>,
    pub(super) grant: Option<Box<SpentGrant>>,
}

impl Spent {
    pub(super) fn new(record: SpentRecord, attempt: Arc<str>) -> Self {
        let spending = Arc::new(Spending {
            jti: record.jti,
            until_ms: record.expires_ms,
            request_id: record.request_id,
            attempt,
            grant: record.grant,
        });
        Self {
            spending,
            outcome: record.outcome,
        }
    }

    pub(super) fn record(&self) -> SpentRecord {
        SpentRecord {
            jti: self.spending.jti.clone(),
            expires_ms: self.spending.until_ms,
            request_id: self.spending.request_id.clone(),
            outcome: self.outcome,
            grant: self.spending.grant.clone(),
        }
    }
}

/// What applying one entry made, for another state that applies the same.
#[derive(Clone, Default)]
pub(crate) struct Made {
    spending: Option<Arc<Spending>>,
    /// The token whose outcome it is.
    ended: Option<Hash>,
}

impl Made {
    pub(super) fn attempt(&self, attempt: &str) -> Arc<str> {
        let shared = self.spending.as_ref();
        shared.map_or_else(|| attempt.into(), |it| Arc::clone(&it.attempt))
    }
}

impl State {
    pub(super) fn issue(&mut self, token: &Arc<TokenRecord>) {
        self.ends.insert((token.expires_ms, token.token_hash));
        let outstanding = Outstanding {
            record: Arc::clone(token),
            hold: None,
        };
        self.tokens
            .insert::<Hash>(token.token_hash, Known::Outstanding(outstanding));
        if self.is_shown {
            return;
        }
        self.count(&token.agent, |counts| counts.outstanding += 1);
        if let Some(record) = self.rights.agent(&token.agent) {
            self.owners.add(&record.owner);
        }
    }

    /// Something was got with a grant: delegations count that, a refresh token or a deferral is spent.
    pub(super) fn use_grants(&mut self, token: &TokenRecord, under: &Hash, made: &mut Made) {
        if token.grant.is_none() {
            for HexHash(hash) in &token.lineage {
                let Some(Known::Outstanding(known)) = self.tokens.get_mut(hash) else {
                    continue;
                };
                let terms = known.record.grant.as_ref();
                if terms.is_none_or(|it| it.kind != GrantKind::Delegation || it.uses.is_none()) {
                    continue;
                }
                // Both states count: what they share is copied by the first of them.
                let record = Arc::make_mut(&mut known.record);
                if let Some(uses) = record.grant.as_mut().and_then(|it| it.uses.as_mut()) {
                    *uses = uses.saturating_sub(1);
                }
            }
        }
        let known = self.token(under).and_then(|it| it.record.grant.as_ref());
        let once = [GrantKind::Refresh, GrantKind::Deferral];
        if known.is_some_and(|it| once.contains(&it.kind)) && !planted!(RefreshTwice) {
            self.spend(under, &token.jti, Some(&token.jti), FirstUse::Unknown, made);
        }
    }

    /// Counts the key that a piece of evidence was shown under.
    pub(super) fn shown_as_evidence(&mut self, agent: &str, jkt: &str, evidence: &EvidenceOf) {
        if self.is_shown {
            return;
        }
        let until_ms = evidence
            .expires_ms
            .max(self.time_ms)
            .saturating_add(EVIDENCE_LINGER_MS);
        let keys = self.evidence.entry(evidence.id).or_insert_with(|| {
            self.evidence_agents.add(agent);
            EvidenceKeys {
                agent: agent.to_owned(),
                keys: Default::default(),
                until_ms,
            }
        });
        self.evidence_ends.remove(&(keys.until_ms, evidence.id));
        keys.until_ms = keys.until_ms.max(until_ms);
        if !keys.keys.contains(jkt) {
            keys.keys.insert(jkt.to_owned());
        }
        self.evidence_ends.insert((keys.until_ms, evidence.id));
    }

    pub(super) fn use_proof(&mut self, proof: &ProofUse) {
        if self.is_shown || self.proofs.contains_key(&proof.id) {
            return;
        }
        self.proof_ends.insert((proof.until_ms, proof.id));
        self.proofs.insert(proof.id, proof.clone());
    }

    fn count(&mut self, agent: &str, change: impl FnOnce(&mut Counts)) {
        // Most agents are there: only for another is the name copied.
        if let Some(counts) = self.agents.get_mut(agent) {
            change(counts);
        } else {
            let mut counts = Counts::default();
            change(&mut counts);
            self.agents.insert(agent.to_owned(), counts);
        }
    }

    pub(super) fn hold(&mut self, hash: &Hash, attempt: &str, request_id: &str) {
        let Some(Known::Outstanding(token)) = self.tokens.get_mut(hash) else {
            return;
        };
        token.hold = Some(Box::new(Holding {
            attempt: attempt.to_owned(),
            since_ms: self.time_ms,
            request_id: request_id.to_owned(),
        }));
        self.holds_changed += 1;
        if self.is_shown {
            return;
        }
        let record = Arc::clone(&token.record);
        self.held.insert((self.time_ms, *hash));
        self.count(&record.agent, |counts| counts.held += 1);
        self.attempts.insert::<str>(attempt.into(), *hash);
    }

    /// Puts the record of its one use in the token's place.
    pub(super) fn spend(
        &mut self,
        hash: &Hash,
        attempt: &str,
        request_id: Option<&str>,
        outcome: FirstUse,
        made: &mut Made,
    ) {
        let Some(known) = self.tokens.get_mut(hash) else {
            return;
        };
        let Known::Outstanding(token) = known else {
            return;
        };
        let ends_ms = token.record.expires_ms;
        let until_ms = ends_ms.max(self.time_ms);
        let held_id = token.hold.as_ref().map(|hold| hold.request_id.as_str());
        let grant = |terms: &GrantTerms| {
            Box::new(SpentGrant {
                kind: terms.kind,
                agent: token.record.agent.clone(),
            })
        };
        let spending = made.spending.get_or_insert_with(|| {
            Arc::new(Spending {
                jti: token.record.jti.clone(),
                until_ms,
                request_id: request_id.or(held_id).unwrap_or_default().to_owned(),
                attempt: attempt.into(),
                grant: token.record.grant.as_ref().map(grant),
            })
        });
        let spending = Arc::clone(spending);
        let attempt = Arc::clone(&spending.attempt);
        let spent = Known::Spent(Spent { spending, outcome });
        let gone = (!planted!(SpendKeepsToken)).then(|| std::mem::replace(known, spent));
        if until_ms != ends_ms {
            self.ends.remove(&(ends_ms, *hash));
            self.ends.insert((until_ms, *hash));
        }
        if let Some(gone) = gone {
            self.ceased(hash, &gone);
        }
        if !self.is_shown {
            self.attempts.insert::<str>(attempt, *hash);
        }
    }

    /// An outstanding token is none any more: nothing counts it.
    fn ceased(&mut self, hash: &Hash, gone: &Known) {
        let Known::Outstanding(gone) = gone else {
            return;
        };
        if gone.hold.is_some() {
            self.holds_changed += 1;
        }
        if self.is_shown {
            return;
        }
        if let Some(hold) = &gone.hold {
            self.held.remove(&(hold.since_ms, *hash));
        }
        if let Some(counts) = self.agents.get_mut(&gone.record.agent) {
            counts.outstanding -= 1;
            counts.held -= usize::from(gone.hold.is_some());
            if counts.outstanding == 0 {
                self.agents.remove(&gone.record.agent);
            }
        }
        if let Some(record) = self.rights.agent(&gone.record.agent) {
            self.owners.remove(&record.owner);
        }
    }

    pub(super) fn lapse_overdue(&mut self, tokens: &[HexHash]) {
        for HexHash(hash) in tokens {
            let holder = self.token(hash).and_then(Outstanding::held_by);
            if let Some(attempt) = holder.map(str::to_owned) {
                let made = &mut Made::default();
                self.spend(hash, &attempt, None, FirstUse::Lapsed, made);
            }
        }
    }

    pub(super) fn await_outcome(&mut self, attempt: Arc<str>) {
        if self.is_shown {
            return;
        }
        self.awaited.insert(Arc::clone(&attempt));
        self.allowed.push_back(attempt);
        if self.allowed.len() > OUTCOMES_AWAITED
            && let Some(oldest) = self.allowed.pop_front()
        {
            self.awaited.remove(&oldest);
        }
    }

    /// The outcome of an attempt came.
    pub(super) fn outcome(&mut self, attempt: &str, outcome: FirstUse, made: &mut Made) {
        self.awaited.remove(attempt);
        if made.ended.is_none() {
            made.ended = self.attempts.get(attempt).copied();
        }
        let known = made.ended.and_then(|hash| self.tokens.get_mut(&hash));
        if let Some(Known::Spent(spent)) = known {
            spent.outcome = outcome;
        }
    }

    /// Its end is over. A held token stays: its end was checked on entry.
    pub(super) fn forget(&mut self, hash: &Hash) {
        match self.tokens.get(hash) {
            None => return,
            Some(Known::Outstanding(token)) if token.hold.is_some() => return,
            Some(_) => {}
        }
        match self.tokens.remove(hash) {
            Some(Known::Spent(spent)) if !self.is_shown => {
                self.attempts.remove(&*spent.spending.attempt);
            }
            Some(gone) => self.ceased(hash, &gone),
            None => {}
        }
    }
}
