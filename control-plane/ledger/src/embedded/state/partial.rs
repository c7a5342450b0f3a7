//! A state of some rows only: what a store that keeps rows loads for the commands
//! at hand, has checked and applied, and writes back.

use std::{collections::HashSet, sync::Arc};

use super::{
    Counts, EvidenceKeys, LINGER_MS, Outstanding, State,
    tokens::{Holding, Known, Spent},
};
use crate::model::{
    Approval, ApprovalState, Hash, Millis, ProofUse, Rights, SpentRecord, Suspension, TokenRecord,
    TokenState,
};

/// A token that can still be spent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenRow {
    pub(crate) record: TokenRecord,
    pub(crate) held: Option<Held>,
}

/// Which attempt holds a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) attempt: String,
    pub(crate) since_ms: Millis,
    pub(crate) request_id: String,
}

/// A token's one use. `spent` is `None` while it is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UseRow {
    pub(crate) hash: Hash,
    pub(crate) attempt: String,
    pub(crate) spent: Option<SpentRecord>,
    pub(crate) awaited: bool,
}

/// Under which keys a piece of evidence was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EvidenceRow {
    pub(crate) id: Hash,
    pub(crate) agent: String,
    pub(crate) keys: Vec<String>,
    pub(crate) until_ms: Millis,
}

/// The rows, and counts of what they are among. What is among the rows is
/// counted by the counts too.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    pub(crate) time_ms: Millis,
    pub(crate) epoch: u64,
    pub(crate) suspended: Option<Suspension>,
    pub(crate) rights: Arc<Rights>,
    pub(crate) tokens: Vec<TokenRow>,
    pub(crate) uses: Vec<UseRow>,
    pub(crate) evidence: Vec<EvidenceRow>,
    pub(crate) proofs: Vec<ProofUse>,
    /// Those of one digest in the order of their opening.
    pub(crate) approvals: Vec<Approval>,
    pub(crate) discovered: Vec<(String, Millis)>,
    /// By agent.
    pub(crate) outstanding: Vec<(String, usize)>,
    /// By owner.
    pub(crate) outstanding_of: Vec<(String, usize)>,
    pub(crate) held_of: Vec<(String, usize)>,
    pub(crate) evidence_of: Vec<(String, usize)>,
    pub(crate) open_of: Vec<(String, usize)>,
}

impl TokenRow {
    /// Whether a token that ends then, and is not held, is remembered at `time_ms`.
    pub(crate) fn remembered(&self, time_ms: Millis) -> bool {
        self.held.is_some() || is_remembered(self.record.expires_ms, time_ms)
    }

    pub(crate) fn state(&self) -> TokenState {
        if self.held.is_some() {
            TokenState::Held
        } else {
            TokenState::Issued
        }
    }
}

/// Whether what ends at `end_ms` is still known at `time_ms`.
pub(crate) fn is_remembered(end_ms: Millis, time_ms: Millis) -> bool {
    end_ms.saturating_add(LINGER_MS) > time_ms
}

/// What ended by then is forgotten at `time_ms`.
pub(crate) fn forgotten_by(time_ms: Millis) -> Millis {
    time_ms.saturating_sub(LINGER_MS)
}

impl State {
    /// The state that decides as the whole one would, for commands that name no
    /// other rows than these.
    pub(crate) fn from_rows(rows: Rows) -> Self {
        let mut state = Self {
            time_ms: rows.time_ms,
            epoch: rows.epoch,
            suspended: rows.suspended,
            rights: rows.rights,
            discovered: rows.discovered.into_iter().collect(),
            ..Self::default()
        };
        for (agent, outstanding) in rows.outstanding {
            state.agents.entry(agent).or_default().outstanding = outstanding;
        }
        for (owner, outstanding) in rows.outstanding_of {
            state.owners.set(&owner, outstanding);
        }
        for row in rows.tokens {
            state.put_token(row);
        }
        for (agent, held) in rows.held_of {
            state.agents.entry(agent).or_default().held = held;
        }
        for row in rows.uses {
            state.put_use(row);
        }
        for row in rows
            .evidence
            .into_iter()
            .filter(|e| e.until_ms > rows.time_ms)
        {
            state.evidence_ends.insert((row.until_ms, row.id));
            let keys = EvidenceKeys {
                agent: row.agent,
                keys: row.keys.into_iter().collect::<HashSet<_>>(),
                until_ms: row.until_ms,
            };
            state.evidence_agents.add(&keys.agent);
            state.evidence.insert(row.id, keys);
        }
        for proof in &rows.proofs {
            state.use_proof(proof);
        }
        for (agent, count) in rows.evidence_of {
            state.evidence_agents.set(&agent, count);
        }
        for approval in rows.approvals {
            state.put_approval(approval);
        }
        for (agent, count) in rows.open_of {
            state.open_agents.set(&agent, count);
        }
        state
    }

    fn put_token(&mut self, row: TokenRow) {
        let hash = row.record.token_hash;
        if !row.remembered(self.time_ms) {
            return;
        }
        let mut token = Outstanding {
            record: row.record.into(),
            hold: None,
        };
        self.ends.insert((token.record.expires_ms, hash));
        if let Some(held) = row.held {
            self.held.insert((held.since_ms, hash));
            // Never less than what is here; the count that was loaded comes after.
            if let Some(counts) = self.agents.get_mut(&token.record.agent) {
                counts.held += 1;
                counts.outstanding = counts.outstanding.max(counts.held);
            }
            token.hold = Some(Box::new(Holding {
                attempt: held.attempt,
                since_ms: held.since_ms,
                request_id: held.request_id,
            }));
        }
        self.tokens.insert::<Hash>(hash, Known::Outstanding(token));
    }

    fn put_use(&mut self, row: UseRow) {
        if row.awaited {
            let attempt: std::sync::Arc<str> = row.attempt.as_str().into();
            self.awaited.insert(std::sync::Arc::clone(&attempt));
            self.allowed.push_back(attempt);
        }
        match row.spent {
            Some(record) if is_remembered(record.expires_ms, self.time_ms) => {
                self.ends.insert((record.expires_ms, row.hash));
                let attempt: std::sync::Arc<str> = row.attempt.into();
                self.attempts
                    .insert::<str>(std::sync::Arc::clone(&attempt), row.hash);
                let spent = Spent::new(record, attempt);
                self.tokens.insert::<Hash>(row.hash, Known::Spent(spent));
            }
            Some(_) => {}
            None => {
                self.attempts.insert::<str>(row.attempt.into(), row.hash);
            }
        }
    }

    fn put_approval(&mut self, approval: Approval) {
        if matches!(
            approval.state,
            ApprovalState::Pending | ApprovalState::Approved
        ) {
            self.open_approval(&approval);
        } else {
            self.ended.add(&approval);
            self.approvals.insert(approval.id.clone(), approval.into());
        }
    }

    /// The token's row as it is now; `None` when it is not outstanding any more.
    pub(crate) fn token_row(&self, hash: &Hash) -> Option<TokenRow> {
        self.token(hash).map(|token| TokenRow {
            record: (*token.record).clone(),
            held: token.hold.as_ref().map(|hold| Held {
                attempt: hold.attempt.clone(),
                since_ms: hold.since_ms,
                request_id: hold.request_id.clone(),
            }),
        })
    }

    /// The token's one use as it is now.
    pub(crate) fn use_row(&self, hash: &Hash) -> Option<UseRow> {
        let (attempt, spent) = match self.tokens.get(hash)? {
            Known::Spent(spent) => {
                let attempt = spent.spending.attempt.as_ref().to_owned();
                (attempt, Some(spent.record()))
            }
            Known::Outstanding(token) => (token.held_by()?.to_owned(), None),
        };
        Some(UseRow {
            hash: *hash,
            awaited: self.awaited.contains(attempt.as_str()),
            attempt,
            spent,
        })
    }

    /// A piece of evidence as it is now.
    pub(crate) fn evidence_row(&self, id: &Hash) -> Option<EvidenceRow> {
        self.evidence.get(id).map(|e| {
            let mut keys: Vec<String> = e.keys.iter().cloned().collect();
            keys.sort_unstable();
            EvidenceRow {
                id: *id,
                agent: e.agent.clone(),
                keys,
                until_ms: e.until_ms,
            }
        })
    }

    /// How many of an agent's tokens are outstanding, as far as they were loaded.
    pub(crate) fn outstanding_of(&self, agent: &str) -> usize {
        self.agents.get(agent).map_or(0, |c: &Counts| c.outstanding)
    }
}
