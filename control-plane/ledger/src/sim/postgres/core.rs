//! The server: what is committed, who has which lock, and what fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::{Notify, mpsc};

use crate::{
    model::Hash,
    postgres::ground::Place,
    sim::{
        Broken, Invariant,
        postgres::{
            run::{self, Group},
            tables::{Change, Tables},
        },
        rng::Rng,
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum T {
    Meta,
    Agents,
    Tokens,
    Uses,
    Evidence,
    Proofs,
    Approvals,
    Discovered,
    Rights,
    Groups,
    Sequencer,
    Barriers,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    One,
    Hash(Hash),
    Name(String),
    Id(i64),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lock {
    Advisory(i32),
    Table(T),
    Row(T, Key),
    /// A place in the index of attempts.
    Attempt(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    AccessShare,
    RowShare,
    RowExclusive,
    Exclusive,
    AccessExclusive,
}

impl Mode {
    /// As PostgreSQL's documentation has it (Table 13.2).
    fn conflicts(self, other: Self) -> bool {
        let (weak, strong) = (self.min(other), self.max(other));
        match strong {
            Self::AccessExclusive => true,
            Self::Exclusive => weak > Self::AccessShare,
            _ => false,
        }
    }
}

/// On whose word the log was continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Lease([u8; 16], i64),
    /// Of whoever begins an epoch.
    Anybody,
    /// Of who gives places without the lease.
    Nobody,
}

#[derive(Default)]
pub(crate) struct Tx {
    pub(crate) changes: Vec<Change>,
    pub(crate) notify: bool,
    pub(crate) word: Option<Word>,
}

/// How often what goes wrong, of 10,000 statements.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) lost: usize,
    pub(crate) failed: usize,
    pub(crate) slow: usize,
    /// Of 100 commits.
    pub(crate) commits: usize,
    /// Of 100 connections that a standby answers.
    pub(crate) standby: usize,
    /// Of 100 notifications that do not arrive.
    pub(crate) deaf: usize,
}

/// Something that was committed.
pub(crate) struct Commit {
    pub(crate) lsn: u64,
    pub(crate) marks: Vec<String>,
}

pub(crate) struct Core {
    pub(crate) tables: Tables,
    pub(crate) lsn: u64,
    /// What the standby has.
    pub(crate) standby: u64,
    pub(crate) replicated: bool,
    pub(crate) history: Vec<(u64, Tables, (i64, i64))>,
    pub(crate) timeline: u32,
    pub(crate) system: u32,
    pub(crate) boot: u32,
    pub(crate) up: bool,
    pub(crate) fsync: bool,
    /// Since then the server does not write what it acknowledges.
    pub(crate) unsafe_from: Option<u64>,
    txs: BTreeMap<u64, Tx>,
    locks: BTreeMap<Lock, BTreeMap<u64, Mode>>,
    waits: BTreeMap<u64, (Lock, BTreeSet<u64>)>,
    next: u64,
    pub(crate) ears: BTreeMap<u64, mpsc::UnboundedSender<()>>,
    pub(crate) group_ids: i64,
    pub(crate) changes: i64,
    pub(crate) released: Arc<Notify>,
    pub(crate) rng: Rng,
    pub(crate) weather: Weather,
    pub(crate) commits: Vec<Commit>,
    pub(crate) broken: Option<Broken>,
    pub(crate) faults: u64,
    pub(crate) conflicts: u64,
    pub(crate) waited: u64,
    pub(crate) trace: Option<Vec<String>>,
}

impl Core {
    pub(crate) fn new(rng: Rng, replicated: bool, trace: bool) -> Self {
        Self {
            tables: Tables::default(),
            lsn: 0,
            standby: 0,
            replicated,
            history: Vec::new(),
            timeline: 1,
            system: 1,
            boot: 1,
            up: true,
            fsync: true,
            unsafe_from: None,
            txs: BTreeMap::new(),
            locks: BTreeMap::new(),
            waits: BTreeMap::new(),
            next: 1,
            ears: BTreeMap::new(),
            group_ids: 0,
            changes: 0,
            released: Arc::default(),
            rng,
            weather: Weather::default(),
            commits: Vec::new(),
            broken: None,
            faults: 0,
            conflicts: 0,
            waited: 0,
            trace: trace.then(Vec::new),
        }
    }

    pub(crate) fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let at = run::current().map_or(0, |run| run.now().as_micros());
            trace.push(format!("{at:>12} {}", what()));
        }
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn chance(&mut self, of_10_000: usize) -> bool {
        let drawn = self.rng.below(10_000) < of_10_000;
        self.faults += u64::from(drawn);
        drawn
    }

    pub(crate) fn loses(&mut self) -> bool {
        self.chance(self.weather.lost)
    }

    pub(crate) fn fails(&mut self) -> bool {
        self.chance(self.weather.failed)
    }

    pub(crate) fn slows(&mut self) -> bool {
        self.chance(self.weather.slow)
    }

    /// Whether a commit goes wrong, and how.
    pub(crate) fn spoils(&mut self) -> Option<usize> {
        let wrong = self.chance(self.weather.commits * 100);
        wrong.then(|| self.rng.below(6))
    }

    pub(crate) fn begin(&mut self) -> u64 {
        let tx = self.number();
        self.txs.insert(tx, Tx::default());
        tx
    }

    pub(crate) fn tx(&mut self, tx: u64) -> Option<&mut Tx> {
        self.txs.get_mut(&tx)
    }

    /// What the transaction sees: what is committed now, and its own.
    pub(crate) fn view(&self, tx: u64) -> Tables {
        let mut tables = self.tables.clone();
        let own = self.txs.get(&tx).into_iter().flat_map(|tx| &tx.changes);
        own.for_each(|change| tables.apply(change));
        tables
    }

    /// Locks, or says who is in the way.
    pub(crate) fn try_lock(&mut self, tx: u64, lock: &Lock, mode: Mode) -> BTreeSet<u64> {
        let holders = self.locks.entry(lock.clone()).or_default();
        let is_row = !matches!(lock, Lock::Table(_) | Lock::Advisory(_));
        let others: BTreeSet<u64> = holders
            .iter()
            .filter(|(other, held)| **other != tx && (is_row || mode.conflicts(**held)))
            .map(|(other, _)| *other)
            .collect();
        if others.is_empty() {
            let held = holders.entry(tx).or_insert(mode);
            *held = mode.max(*held);
            self.waits.remove(&tx);
        } else {
            self.waited += u64::from(
                self.waits
                    .insert(tx, (lock.clone(), others.clone()))
                    .is_none(),
            );
        }
        others
    }

    pub(crate) fn is_locked(&self, tx: u64, lock: &Lock) -> bool {
        let holders = self.locks.get(lock);
        holders.is_some_and(|holders| holders.keys().any(|other| *other != tx))
    }

    /// Whether the transaction waits for itself. Those in the cycle may not: locks
    /// are taken in one order, but for attempts that callers made up.
    pub(crate) fn deadlocked(&mut self, tx: u64) -> bool {
        let mut reached = BTreeSet::new();
        let mut next = vec![tx];
        while let Some(waiting) = next.pop() {
            let Some((_, others)) = self.waits.get(&waiting) else {
                continue;
            };
            for other in others {
                if reached.insert(*other) {
                    next.push(*other);
                }
            }
        }
        if !reached.contains(&tx) {
            return false;
        }
        let of = |tx: &u64| self.waits.get(tx).map(|(lock, _)| lock.clone());
        let locks: Vec<Lock> = reached.iter().filter_map(of).collect();
        if !locks.iter().any(|lock| matches!(lock, Lock::Attempt(_))) {
            self.breaks(Invariant::Deadlock, || format!("they wait for {locks:?}"));
        }
        true
    }

    pub(crate) fn breaks(&mut self, invariant: Invariant, what: impl FnOnce() -> String) {
        let what = what();
        self.say(|| format!("BROKEN {invariant:?}: {what}"));
        self.broken.get_or_insert(Broken(invariant, what));
    }

    pub(crate) fn abort(&mut self, tx: u64) {
        self.txs.remove(&tx);
        self.release(tx);
    }

    fn release(&mut self, tx: u64) {
        self.waits.remove(&tx);
        self.locks.retain(|_, holders| {
            holders.remove(&tx);
            !holders.is_empty()
        });
        self.released.notify_waiters();
    }

    pub(crate) fn timeline_name(&self) -> String {
        format!("{:08X}", self.timeline)
    }

    pub(crate) fn identity(&self) -> String {
        format!("sim/{}", self.system)
    }

    /// Commits; `far`: the standby has it too.
    pub(crate) fn commit(&mut self, tx: u64, far: bool) {
        let Some(done) = self.txs.remove(&tx) else {
            return;
        };
        if !done.changes.is_empty() {
            self.judge(&done);
            for change in &done.changes {
                self.tables.apply(change);
            }
            self.lsn += 1;
            self.judge_groups(&done.changes);
            let sequences = (self.group_ids, self.changes);
            self.history
                .push((self.lsn, self.tables.clone(), sequences));
            if far {
                self.standby = self.lsn;
            }
            let marks = done.changes.iter().flat_map(marks_of).collect();
            let lsn = self.lsn;
            self.say(|| format!("commit {lsn} (far: {far}): {marks:?}"));
            self.commits.push(Commit { lsn, marks });
        }
        if done.notify {
            let deaf = self.weather.deaf;
            let rng = &mut self.rng;
            self.ears.retain(|_, ear| !ear.is_closed());
            for ear in self.ears.values() {
                if !rng.percent(deaf) {
                    let _ = ear.send(());
                }
            }
        }
        self.release(tx);
    }

    /// Who continues the log may.
    fn judge(&mut self, done: &Tx) {
        let begins = |c: &Change| matches!(c, Change::Epoch(..) | Change::Meta(_));
        let continues = done.changes.iter().any(|c| matches!(c, Change::Head(_)));
        let begins = done.changes.iter().any(begins);
        if !continues || begins {
            return;
        }
        let sequencer = &self.tables.sequencer;
        let may = match done.word {
            Some(Word::Lease(replica, fence)) => {
                sequencer.holder == Some(replica) && sequencer.fence == fence
            }
            Some(Word::Anybody) => true,
            Some(Word::Nobody) | None => false,
        };
        if !may {
            let word = done.word;
            self.breaks(Invariant::Fence, || {
                format!("the log is continued on the word of {word:?}")
            });
        }
    }

    /// A group is of the epoch that there is, and that is this timeline's.
    fn judge_groups(&mut self, changes: &[Change]) {
        let epochs: BTreeSet<u64> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Group(_, group) => Some(group.epoch),
                _ => None,
            })
            .collect();
        let (timeline, identity) = (self.timeline_name(), self.identity());
        let Some(meta) = self.tables.meta.clone() else {
            return;
        };
        // Who has it open need not know yet that an operator said otherwise.
        let said = meta.identity.is_empty();
        let here = meta.timeline == timeline && (said || meta.identity == identity);
        if !epochs.is_empty() && (!here || epochs.iter().any(|epoch| *epoch != meta.epoch)) {
            self.breaks(Invariant::Epoch, || {
                format!("a group of {epochs:?} on timeline {timeline} of {identity}: {meta:?}")
            });
        }
    }

    /// An operator says that the tables were set back, under open connections.
    pub(crate) fn said_to_be_elsewhere(&mut self) {
        let Some(meta) = self.tables.meta.clone() else {
            return;
        };
        let place = Place {
            identity: String::new(),
            timeline: meta.timeline,
            tables: i64::from(self.system),
        };
        let tx = self.begin();
        if let Some(tx) = self.tx(tx) {
            tx.changes.push(Change::Epoch(meta.epoch, place, false));
        }
        self.commit(tx, true);
    }

    /// The server ends; what was not committed is gone.
    pub(crate) fn crash(&mut self) {
        self.up = false;
        self.boot += 1;
        self.txs.clear();
        self.locks.clear();
        self.waits.clear();
        self.ears.clear();
        self.released.notify_waiters();
    }

    /// It goes on with what there was at a commit, and with nothing after it.
    pub(crate) fn go_back(&mut self, lsn: u64) {
        self.history.retain(|(at, ..)| *at <= lsn);
        let last = self.history.last().cloned();
        let (_, tables, (group_ids, changes)) = last.unwrap_or_default();
        self.tables = tables;
        // Sequences are logged ahead of their use.
        self.group_ids = group_ids + 32;
        self.changes = changes + 32;
    }
}

/// What callers wrote into their commands, to know them again: `~` and a number and `~`.
fn marks_of(change: &Change) -> Vec<String> {
    let Change::Group(_, group) = change else {
        return Vec::new();
    };
    group
        .entries
        .iter()
        .filter(|draft| draft.kind != "lift")
        .filter_map(|draft| mark_of(&draft.head))
        .collect()
}

pub(crate) fn mark_of(line: &[u8]) -> Option<String> {
    let start = line.iter().position(|b| *b == b'~')?;
    let rest = &line[start + 1..];
    let end = rest.iter().position(|b| *b == b'~')?;
    String::from_utf8(rest[..end].to_vec()).ok()
}

/// Which process a connection belongs to.
pub(crate) type By = Group;
