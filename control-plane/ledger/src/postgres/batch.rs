//! What a batch of commands needs, decides and changes: no SQL, no clock.
//!
//! The rows that the commands name are loaded into a [`State`] of their own,
//! which checks and applies each command in order exactly as the embedded store
//! does; what changed is then written back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::draft::Draft;
use crate::{
    embedded::state::{
        Stamp, State,
        partial::{EvidenceRow, Rows, TokenRow, UseRow},
    },
    event::{Entry, Event},
    model::{
        Approval, Command, Committed, EXPIRED_PER_ENTRY, Hash, HexHash, Limits, Millis,
        OVERDUE_PER_ENTRY, ProofUse, Refused, Right,
    },
};

/// The longest name of an agent, an attempt or an approval that has a row.
const MAX_NAME: usize = 2048;

/// The rows that commands name. Sorted, so that they are locked in one order everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Keys {
    /// Agents that get tokens, and how many: their rows are locked.
    pub(crate) agents: BTreeMap<String, usize>,
    /// Those of them that get grants.
    pub(crate) granted: BTreeSet<String>,
    pub(crate) evidence: BTreeSet<Hash>,
    pub(crate) proofs: BTreeSet<Hash>,
    /// Agents that only show something, and get nothing for it.
    pub(crate) showing: BTreeSet<String>,
    pub(crate) tokens: BTreeSet<Hash>,
    pub(crate) attempts: BTreeSet<String>,
    /// Whether an outcome is among them: uses are locked.
    pub(crate) outcomes: bool,
    pub(crate) approvals: BTreeSet<String>,
    pub(crate) digests: BTreeSet<Hash>,
    /// Agents that ask a human.
    pub(crate) asking: BTreeSet<String>,
    pub(crate) discovered: BTreeSet<String>,
    /// What is held since before then lapses, and so many of it.
    pub(crate) overdue: Option<(Millis, usize)>,
    /// So many approvals that are over may end.
    pub(crate) expiring: usize,
    /// Whether those of what is stopped end: all that are open are read.
    pub(crate) cancelling: bool,
}

/// Whether a command belongs to those that are committed one batch after the
/// other, in all replicas: what humans decide, and what counts over all agents.
pub(crate) fn is_serial(command: &Command) -> bool {
    matches!(
        command,
        Command::Hold { .. }
            | Command::DecideApproval { .. }
            | Command::ExpireApprovals
            | Command::LapseOverdue { .. }
            | Command::Discover { .. }
            | Command::ConfirmRestore { .. }
            | Command::CancelApprovals
            | Command::PutAgent { .. }
            | Command::Stop { .. }
            | Command::Lift { .. }
            | Command::Allow {
                approval: Some(_),
                ..
            }
    )
}

/// Whether a command changes rights: no other batch is under way beside it.
pub(crate) fn changes_rights(command: &Command) -> bool {
    matches!(
        command,
        Command::PutAgent { .. } | Command::Stop { .. } | Command::Lift { .. }
    )
}

/// Whether a command's names can be kept in rows: others are refused alone, since
/// the server would refuse the whole batch.
pub(crate) fn is_storable(command: &Command) -> bool {
    let name = |text: &str| text.len() <= MAX_NAME && !text.contains('\0');
    match command {
        Command::Issue { token, proof, .. } => {
            name(&token.agent) && proof.as_ref().is_none_or(|proof| name(&proof.by))
        }
        Command::Discover { agent } | Command::Present { agent, .. } => name(agent),
        Command::Allow {
            attempt, approval, ..
        } => name(attempt) && approval.as_ref().is_none_or(|(id, _)| name(id)),
        Command::Deny { attempt, .. }
        | Command::Lapse { attempt, .. }
        | Command::Outcome { attempt, .. } => name(attempt),
        Command::Hold {
            attempt, approval, ..
        } => name(attempt) && name(&approval.id) && name(&approval.agent),
        Command::DecideApproval { id, .. } => name(id),
        Command::PutAgent { agent, .. } => name(agent),
        Command::Stop { target, .. } => serde_json::to_string(target).is_ok_and(|text| name(&text)),
        _ => true,
    }
}

impl Keys {
    pub(crate) fn of<'a>(commands: impl IntoIterator<Item = &'a Command>) -> Self {
        let mut keys = Self::default();
        for command in commands {
            keys.add(command);
        }
        keys
    }

    fn add(&mut self, command: &Command) {
        match command {
            Command::Issue {
                token,
                evidence_id,
                also,
                once,
                proof,
                under,
                next,
                ..
            } => {
                let further = also.iter().chain(once).map(|piece| piece.id);
                self.evidence.extend(further);
                self.proofs.extend(proof.iter().map(|proof| proof.id));
                let made = next.iter().map(|next| next.token_hash);
                let grants = token.lineage.iter().map(|HexHash(hash)| *hash);
                self.tokens.extend(grants.chain(*under).chain(made));
                if token.grant.is_some() {
                    self.granted.insert(token.agent.clone());
                }
                *self.agents.entry(token.agent.clone()).or_default() +=
                    1 + usize::from(next.is_some());
                self.evidence.insert(*evidence_id);
                self.tokens.insert(token.token_hash);
            }
            Command::Allow {
                token_hash,
                attempt,
                approval,
                ..
            } => {
                self.tokens.insert(*token_hash);
                self.attempts.insert(attempt.clone());
                self.approvals
                    .extend(approval.iter().map(|(id, _)| id.clone()));
            }
            Command::Deny {
                token_hash,
                attempt,
                ..
            }
            | Command::Lapse {
                token_hash,
                attempt,
                ..
            } => {
                self.tokens.insert(*token_hash);
                self.attempts.insert(attempt.clone());
            }
            Command::Hold {
                token_hash,
                attempt,
                approval,
                ..
            } => {
                self.tokens.insert(*token_hash);
                self.attempts.insert(attempt.clone());
                self.approvals.insert(approval.id.clone());
                self.digests.insert(approval.digest);
                self.asking.insert(approval.agent.clone());
            }
            Command::LapseOverdue { held_before_ms } => {
                let (before, most) = self.overdue.unwrap_or_default();
                self.overdue = Some((before.max(*held_before_ms), most + OVERDUE_PER_ENTRY));
            }
            Command::DecideApproval { id, .. } => {
                self.approvals.insert(id.clone());
            }
            Command::CancelApprovals => self.cancelling = true,
            Command::ExpireApprovals => self.expiring += EXPIRED_PER_ENTRY,
            Command::Outcome { attempt, .. } => {
                self.attempts.insert(attempt.clone());
                self.outcomes = true;
            }
            Command::Present { agent, once, .. } => {
                self.evidence.insert(once.id);
                self.showing.insert(agent.clone());
            }
            Command::Discover { agent } => {
                self.discovered.insert(agent.clone());
            }
            Command::ExchangeRefused { .. }
            | Command::Note { .. }
            | Command::PutAgent { .. }
            | Command::Stop { .. }
            | Command::Lift { .. }
            | Command::ConfirmRestore { .. } => {}
        }
    }
}

/// How much of what is counted over all agents is not among the loaded rows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Elsewhere {
    pub(crate) held: usize,
    pub(crate) evidence: usize,
    pub(crate) approvals: usize,
    pub(crate) discovered: usize,
}

impl Elsewhere {
    /// The limits for what is loaded: what is elsewhere has its share already.
    fn left(self, limits: &Limits) -> Limits {
        Limits {
            held_total: limits.held_total.saturating_sub(self.held),
            evidence_total: limits.evidence_total.saturating_sub(self.evidence),
            approvals_open: limits.approvals_open.saturating_sub(self.approvals),
            discovered: limits.discovered.saturating_sub(self.discovered),
            ..limits.clone()
        }
    }
}

/// What a batch changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writes {
    pub(crate) time_ms: Millis,
    pub(crate) drafts: Vec<Draft>,
    /// Tokens that were outstanding and are not any more: exactly these must go.
    pub(crate) gone: Vec<Hash>,
    pub(crate) issued: Vec<TokenRow>,
    pub(crate) held: Vec<TokenRow>,
    /// Grants whose uses were counted.
    pub(crate) counted: Vec<TokenRow>,
    pub(crate) uses: Vec<UseRow>,
    pub(crate) evidence: Vec<EvidenceRow>,
    /// Those that were used by this batch, and by none before.
    pub(crate) proofs: Vec<ProofUse>,
    pub(crate) outstanding: Vec<(String, usize)>,
    pub(crate) approvals: Vec<Approval>,
    pub(crate) discovered: Vec<(String, Millis)>,
    /// Agents and stops as they are now, in their order.
    pub(crate) rights: Vec<Right>,
    /// Agents are not suspended any more.
    pub(crate) confirmed: bool,
    /// An approval or a held token changed.
    pub(crate) holds_changed: bool,
}

/// What became of a batch, to be told once it is durable.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) answers: Vec<Result<Committed, Refused>>,
    pub(crate) writes: Writes,
}

/// Checks and applies commands in order, at ledger time `now`.
pub(crate) fn decide(
    rows: Rows,
    elsewhere: Elsewhere,
    commands: &[Command],
    now: Millis,
    limits: &Limits,
) -> Decided {
    let tokens: HashSet<Hash> = rows.tokens.iter().map(|t| t.record.token_hash).collect();
    let uses: HashMap<String, UseRow> = rows
        .uses
        .iter()
        .filter(|row| row.awaited)
        .map(|row| (row.attempt.clone(), row.clone()))
        .collect();
    let limits = elsewhere.left(limits);
    let proofs: HashSet<Hash> = rows.proofs.iter().map(|it| it.id).collect();
    let mut state = State::from_rows(rows);
    let (epoch, before) = (state.epoch, state.holds_changed);
    let mut touched = Touched::default();
    let mut drafts = Vec::new();
    let mut answers = Vec::with_capacity(commands.len());
    for command in commands {
        let drafted = state
            .check(command.clone(), now, &limits)
            .and_then(|d| Ok((Draft::new(&d.entry, d.attachments)?, d.entry, d.approval)));
        answers.push(drafted.map(|(draft, entry, approval)| {
            let stamp = Stamp {
                index: 0,
                time_ms: now,
                epoch,
                leaf: [0; 32],
            };
            state.apply(stamp, &entry);
            touched.add(&entry);
            drafts.push(draft);
            Committed {
                index: None,
                time_ms: now,
                approval: approval
                    .and_then(|id| state.approval(&id).cloned())
                    .map(Box::new),
            }
        }));
    }
    let mut writes = touched.writes(&state, &tokens, &uses);
    writes.time_ms = now;
    writes.proofs.retain(|it| !proofs.contains(&it.id));
    writes.holds_changed = state.holds_changed != before;
    writes.drafts = drafts;
    Decided { answers, writes }
}

/// What the committed entries are about: only that can have changed.
#[derive(Default)]
struct Touched {
    tokens: BTreeSet<Hash>,
    outcomes: BTreeSet<String>,
    evidence: BTreeSet<Hash>,
    proofs: BTreeMap<Hash, ProofUse>,
    agents: BTreeSet<String>,
    approvals: BTreeSet<String>,
    discovered: BTreeSet<String>,
    rights: Vec<Right>,
    confirmed: bool,
}

impl Touched {
    fn add(&mut self, entry: &Entry) {
        let Entry::Event(event) = entry else {
            return;
        };
        match &**event {
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
                let further = also.iter().chain(once).map(|piece| piece.id);
                self.evidence.extend(further);
                let used = proof.iter().map(|proof| (proof.id, proof.clone()));
                self.proofs.extend(used);
                let grants = token.lineage.iter().chain(under);
                self.tokens.extend(grants.map(|HexHash(hash)| *hash));
                self.tokens.extend(next.iter().map(|it| it.token_hash));
                self.tokens.insert(token.token_hash);
                self.evidence.insert(evidence.id);
                self.agents.insert(token.agent.clone());
            }
            Event::Allow {
                token, approval, ..
            } => {
                self.tokens.insert(token.hash);
                self.approvals
                    .extend(approval.iter().map(|used| used.id.clone()));
            }
            Event::Deny { token, .. } | Event::Lapse { token, .. } => {
                self.tokens.insert(token.hash);
            }
            Event::Hold { token, opened, .. } => {
                self.tokens.insert(token.hash);
                self.approvals.extend(opened.iter().map(|a| a.id.clone()));
            }
            Event::LapsesOverdue { tokens } => {
                self.tokens.extend(tokens.iter().map(|HexHash(hash)| *hash));
            }
            Event::Approval { id, .. } => {
                self.approvals.insert(id.clone());
            }
            Event::Agent(record) => self.rights.push(Right::Agent(record.clone())),
            Event::Stop(stop) | Event::Lift(stop) => self.rights.push(Right::Stop(stop.clone())),
            Event::ApprovalsExpired { ids } | Event::ApprovalsCancelled { ids } => {
                self.approvals.extend(ids.iter().cloned())
            }
            Event::Outcome { attempt, .. } => {
                self.outcomes.insert(attempt.clone());
            }
            Event::Present { once, .. } => {
                self.evidence.insert(once.id);
            }
            Event::Discover { agent } => {
                self.discovered.insert(agent.clone());
            }
            Event::Confirmed { .. } => self.confirmed = true,
            Event::Epoch { .. }
            | Event::Torn { .. }
            | Event::Snapshot { .. }
            | Event::Restored(_)
            | Event::ExchangeRefused { .. } => {}
        }
    }

    fn writes(
        self,
        state: &State,
        loaded: &HashSet<Hash>,
        awaited: &HashMap<String, UseRow>,
    ) -> Writes {
        let mut writes = Writes {
            confirmed: self.confirmed,
            rights: self.rights,
            // In the order of their ids, so that no two batches wait for each other.
            proofs: self.proofs.into_values().collect(),
            ..Writes::default()
        };
        let mut uses = BTreeMap::new();
        for hash in self.tokens {
            match (state.token_row(&hash), loaded.contains(&hash)) {
                (Some(row), true) if row.record.grant.is_some() => writes.counted.push(row),
                (Some(row), true) => writes.held.push(row),
                (Some(row), false) => writes.issued.push(row),
                (None, true) => writes.gone.push(hash),
                (None, false) => {}
            }
            uses.extend(state.use_row(&hash).map(|row| (hash, row)));
        }
        for attempt in self.outcomes {
            let hash = state.attempt(&attempt).copied();
            // Forgotten but for its outcome, which ends that.
            let forgotten = awaited.get(&attempt).cloned().map(|row| UseRow {
                awaited: false,
                ..row
            });
            let row = hash.and_then(|hash| state.use_row(&hash)).or(forgotten);
            uses.extend(row.map(|row| (row.hash, row)));
        }
        writes.uses = uses.into_values().collect();
        let evidence = self.evidence.iter();
        writes.evidence = evidence.filter_map(|id| state.evidence_row(id)).collect();
        for agent in self.agents {
            let count = state.outstanding_of(&agent);
            writes.outstanding.push((agent, count));
        }
        let approvals = self.approvals.iter();
        writes.approvals = approvals
            .filter_map(|id| state.approval(id).cloned())
            .collect();
        for agent in self.discovered {
            let at = state.discovered().get(&agent).copied();
            writes.discovered.extend(at.map(|at| (agent, at)));
        }
        writes
    }
}
