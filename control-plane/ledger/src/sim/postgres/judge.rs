//! What is committed and what is answered, judged by rules of its own.

use std::collections::{BTreeMap, BTreeSet};

use audit::{Line, leaf_hash};

use crate::{
    lines::Place,
    model::{Command, Committed, Hash, Limits, Refused},
    postgres::draft,
    sim::{
        Broken, Invariant,
        history::History,
        postgres::{
            conn::{Shared, lock},
            core::{Commit, mark_of},
            tables::{Group, Placing, Tables},
        },
    },
};

pub(crate) type Answered = Result<Committed, Refused>;

fn broken<T>(invariant: Invariant, what: impl Into<String>) -> Result<T, Broken> {
    Err(Broken(invariant, what.into()))
}

pub(crate) struct Judge {
    core: Shared,
    limits: Limits,
    pub(crate) history: History,
    /// Groups that are in the history.
    placed: BTreeSet<i64>,
    /// What callers asked for, by its mark, with where it was committed.
    committed: BTreeMap<String, u64>,
    /// What was committed and is lost, and whether it was safe before.
    lost: BTreeMap<String, bool>,
    in_log: BTreeSet<String>,
    acknowledged: BTreeSet<String>,
    refused: BTreeSet<String>,
    /// Tokens and approvals that somebody was told were used, by whom.
    pub(crate) spent: BTreeMap<Hash, String>,
    consumed: BTreeMap<String, String>,
    /// Something acknowledged is lost, and no entry says so yet.
    owed: bool,
    /// Groups that were there when it was lost.
    before: BTreeSet<i64>,
    pub(crate) epochs: u64,
}

impl Judge {
    pub(crate) fn new(core: &Shared, limits: Limits) -> Self {
        Self {
            core: std::sync::Arc::clone(core),
            limits,
            history: History::of_replicas(),
            placed: BTreeSet::new(),
            committed: BTreeMap::new(),
            lost: BTreeMap::new(),
            in_log: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            refused: BTreeSet::new(),
            spent: BTreeMap::new(),
            consumed: BTreeMap::new(),
            owed: false,
            before: BTreeSet::new(),
            epochs: 0,
        }
    }

    /// So many replicas: each counts for itself what owners have.
    pub(crate) fn counts_for(&mut self, replicas: usize) {
        let most = &mut self.limits.outstanding_per_owner;
        *most = most.saturating_mul(replicas);
    }

    /// What was committed since.
    pub(crate) fn commits(&mut self) -> Result<(), Broken> {
        let (commits, broken) = {
            let mut core = lock(&self.core);
            (std::mem::take(&mut core.commits), core.broken.clone())
        };
        if let Some(broken) = broken {
            return Err(broken);
        }
        if commits.is_empty() {
            return Ok(());
        }
        for Commit { lsn, marks } in commits {
            for mark in marks {
                self.committed(mark, lsn)?;
            }
        }
        self.places()
    }

    fn committed(&mut self, mark: String, lsn: u64) -> Result<(), Broken> {
        if self.refused.contains(&mark) {
            return broken(
                Invariant::Refusal,
                format!("{mark} was refused and is committed"),
            );
        }
        let again = self.lost.contains_key(&mark) || self.committed.contains_key(&mark);
        if again {
            return broken(Invariant::Durable, format!("{mark} is committed twice"));
        }
        self.committed.insert(mark, lsn);
        Ok(())
    }

    /// What got its place since.
    fn places(&mut self) -> Result<(), Broken> {
        let tables = lock(&self.core).tables.clone();
        let mut new: Vec<(&i64, &Group, &Placing)> = tables
            .groups
            .iter()
            .filter(|(id, _)| !self.placed.contains(id))
            .filter_map(|(id, group)| Some((id, group, group.placed.as_ref()?)))
            .collect();
        if new.is_empty() {
            return self.head(&tables);
        }
        new.sort_by_key(|(_, _, placing)| placing.first);
        for (id, group, placing) in new {
            self.place(*id, group, placing)?;
            self.placed.insert(*id);
        }
        self.head(&tables)
    }

    fn head(&self, tables: &Tables) -> Result<(), Broken> {
        let head = tables.sequencer.head;
        if head.entries != self.history.len() || head.leaf != self.history.head() {
            return broken(
                Invariant::Chain,
                format!(
                    "the head is at {}, and the log has {} entries",
                    head.entries,
                    self.history.len()
                ),
            );
        }
        Ok(())
    }

    fn place(&mut self, id: i64, group: &Group, placing: &Placing) -> Result<(), Broken> {
        let history = &mut self.history;
        let follows = placing.first == history.len() && placing.prev == history.head();
        if !follows || placing.time_ms < history.time_ms {
            return broken(
                Invariant::Chain,
                format!(
                    "{placing:?} does not follow {} entries of {}",
                    history.len(),
                    history.time_ms
                ),
            );
        }
        let begins = group.entries.iter().any(|draft| draft.kind == "epoch");
        let restores = group.entries.iter().any(|draft| draft.kind == "restored");
        if begins {
            self.epochs += 1;
            let new = !self.before.contains(&id);
            if new && std::mem::take(&mut self.owed) && !restores {
                return broken(Invariant::Gap, "what was lost is not said");
            }
        }
        let mut leaves = draft::leaves_of(&placing.leaves);
        for draft in group.entries.iter() {
            let place = Place {
                index: history.len(),
                time_ms: placing.time_ms,
                epoch: group.epoch,
                prev: history.head(),
            };
            let bytes = draft::line(&draft.head, &draft.kind, &place);
            let leaf = leaf_hash(&bytes);
            let line = Line::decode(&bytes)
                .map_err(|error| Broken(Invariant::Chain, format!("no line: {error}")))?;
            if leaves.next() != Some(leaf) {
                return broken(
                    Invariant::Chain,
                    format!("entry {} has no leaf", line.index),
                );
            }
            history.entry(&line, leaf, group.time_ms, &self.limits)?;
            if draft.kind != "lift" {
                self.in_log.extend(mark_of(&draft.head));
            }
        }
        Ok(())
    }

    /// A caller was answered.
    pub(crate) fn answered(
        &mut self,
        command: &Command,
        mark: &str,
        answer: &Answered,
    ) -> Result<(), Broken> {
        match answer {
            Ok(_) => self.told_yes(command, mark),
            Err(Refused::Unknown) => Ok(()),
            Err(refused) => {
                if self.committed.contains_key(mark) || self.lost.contains_key(mark) {
                    return broken(
                        Invariant::Refusal,
                        format!("{mark} is committed and was refused: {refused}"),
                    );
                }
                self.refused.insert(mark.to_owned());
                Ok(())
            }
        }
    }

    fn told_yes(&mut self, command: &Command, mark: &str) -> Result<(), Broken> {
        let core = lock(&self.core);
        let safe = if core.replicated {
            core.standby
        } else {
            core.lsn
        };
        let faults = match (self.committed.get(mark), self.lost.get(mark)) {
            (Some(lsn), _) if *lsn <= safe => None,
            (Some(lsn), _) => Some(format!("at {lsn}, and the standby is at {safe}")),
            (None, Some(true)) => None,
            (None, Some(false)) => Some("and lost, which was not promised".into()),
            (None, None) => Some("nowhere".into()),
        };
        drop(core);
        if is_marked(command) {
            if let Some(fault) = faults {
                return broken(
                    Invariant::EarlyAnswer,
                    format!("{mark} was acknowledged and is committed {fault}"),
                );
            }
            self.acknowledged.insert(mark.to_owned());
        }
        if let Command::Allow {
            token_hash,
            approval,
            ..
        } = command
        {
            if let Some(other) = self.spent.insert(*token_hash, mark.to_owned()) {
                return broken(
                    Invariant::Spend,
                    format!("{mark} and {other} spent one token"),
                );
            }
            if let Some((id, _)) = approval
                && let Some(other) = self.consumed.insert(id.clone(), mark.to_owned())
            {
                return broken(Invariant::Approval, format!("{mark} and {other} used {id}"));
            }
        }
        Ok(())
    }

    /// What was committed after this is lost: a standby that lacked it took over, or
    /// a backup stands in, and then there is an epoch that says so.
    pub(crate) fn lose(&mut self, after: u64, safe: u64, said: bool) -> Result<(), Broken> {
        let gone: Vec<(String, u64)> = self
            .committed
            .iter()
            .filter(|(_, lsn)| **lsn > after)
            .map(|(mark, lsn)| (mark.clone(), *lsn))
            .collect();
        let owed_before = std::mem::take(&mut self.owed);
        for (mark, lsn) in gone {
            self.committed.remove(&mark);
            // A server that did not keep its promise: nothing of it may have been used.
            if !said {
                continue;
            }
            self.owed |= self.acknowledged.contains(&mark);
            self.lost.insert(mark, lsn <= safe);
        }
        self.history = History::of_replicas();
        self.placed.clear();
        self.in_log.clear();
        let groups = lock(&self.core).tables.groups.clone();
        if self.owed || !owed_before {
            self.before = groups.keys().copied().collect();
        } else {
            // Nothing more is owed: what was committed since the first loss may say it.
            // Numbers of what is gone come again.
            self.before.retain(|id| groups.contains_key(id));
        }
        self.owed |= owed_before;
        self.places()
    }

    /// Nothing is under way any more.
    pub(crate) fn end(&self) -> Result<(), Broken> {
        let tables = lock(&self.core).tables.clone();
        let waiting = tables.groups.values().filter(|g| g.placed.is_none());
        let waiting = waiting.count();
        if waiting > 0 {
            return broken(
                Invariant::Gap,
                format!("{waiting} groups never get a place"),
            );
        }
        for mark in &self.acknowledged {
            if !self.in_log.contains(mark) && !self.lost.contains_key(mark) {
                return broken(
                    Invariant::Durable,
                    format!("{mark} was acknowledged and is not in the log"),
                );
            }
        }
        if self.owed {
            return broken(Invariant::Gap, "what was lost is never said");
        }
        self.tokens(&tables)?;
        for (id, state) in self.history.approvals() {
            let row = tables.approvals.get(id);
            let shown = row.map(|row| format!("{:?}", row.record.state).to_lowercase());
            if shown.as_deref() != Some(state) {
                return broken(
                    Invariant::State,
                    format!("{id} is {state} in the log and {shown:?} in its row"),
                );
            }
        }
        Ok(())
    }

    fn tokens(&self, tables: &Tables) -> Result<(), Broken> {
        for (hash, row) in &*tables.tokens {
            let held = row.held.as_ref().map(|held| held.attempt.as_str());
            let stands = self.history.stands(&hex::encode(hash));
            if stands != Some(held) {
                return broken(
                    Invariant::State,
                    format!("a token is {stands:?} in the log and {held:?} in its row"),
                );
            }
        }
        let rows: BTreeSet<String> = tables.tokens.keys().map(hex::encode).collect();
        for (hash, expires_ms) in self.history.all_outstanding() {
            let held = matches!(self.history.stands(hash), Some(Some(_)));
            let lives = held || expires_ms > self.history.time_ms;
            if lives && !rows.contains(hash) {
                return broken(Invariant::State, format!("{hash} has no row"));
            }
        }
        Ok(())
    }
}

/// Whether a mark was put into what its line says.
pub(crate) fn is_marked(command: &Command) -> bool {
    !matches!(
        command,
        Command::Lapse { .. }
            | Command::LapseOverdue { .. }
            | Command::ExpireApprovals
            | Command::Discover { .. }
            | Command::Present { .. }
            | Command::CancelApprovals
            | Command::Lift { .. }
    )
}
