//! What is on the disk for good, kept outside the ledger: the groups seen there
//! once, which must never change, and the state that follows from them.

use std::{path::Path, sync::Arc};

use audit::{group::Group, segment};
use sha2::{Digest, Sha256};

use crate::{
    embedded::{
        recovery::{OpenReport, TornTail},
        state::{Stamp, State},
    },
    lines,
    model::{Command, Committed, Limits},
    sim::{Broken, Invariant, callers, history::History, machine::Machine, rng::Rng},
};

/// A group that was durable once.
#[derive(Clone)]
struct Known {
    segment: u64,
    offset: usize,
    bytes: Arc<[u8]>,
}

/// A durable group that may be damaged.
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) offset: usize,
    pub(crate) len: usize,
    /// Its first entry.
    pub(crate) first: u64,
}

/// What a start will find at the end.
pub(crate) struct Expected {
    torn: Option<TornTail>,
    torn_lines: u64,
}

impl Expected {
    pub(crate) fn is_torn(&self) -> bool {
        self.torn.is_some()
    }
}

#[derive(Clone)]
pub(crate) struct Durable {
    pub(crate) history: History,
    limits: Limits,
    segment_len: usize,
    known: Vec<Known>,
    state: State,
    next: (u64, usize),
    /// Bytes that are on the disk were going to be cut: an entry must say so.
    owed: Option<u64>,
}

fn broken<T>(invariant: Invariant, what: impl Into<String>) -> Result<T, Broken> {
    Err(Broken(invariant, what.into()))
}

/// The first lines in which two texts differ.
fn difference(one: &str, other: &str) -> String {
    let pairs = one.lines().zip(other.lines());
    let differs = pairs.filter(|(one, other)| one != other).take(4);
    differs
        .map(|(one, other)| format!("{} is not {}; ", one.trim(), other.trim()))
        .collect()
}

impl Durable {
    pub(crate) fn new(limits: Limits, segment_len: usize) -> Self {
        Self {
            history: History::default(),
            limits,
            segment_len,
            known: Vec::new(),
            state: State::default(),
            next: (0, 0),
            owed: None,
        }
    }

    pub(crate) fn segments(&self) -> u64 {
        self.known.last().map_or(0, |known| known.segment + 1)
    }

    /// Reads what became durable since.
    pub(crate) fn catch_up(&mut self, machine: &Machine) -> Result<(), Broken> {
        loop {
            let (number, offset) = self.next;
            let Some(bytes) = machine.durable(&segment::file_name(number)) else {
                return Ok(());
            };
            let rest = bytes.get(offset..).unwrap_or_default();
            match Group::decode(rest) {
                Ok(group) if group.entries.iter().all(|e| e.attachments_match()) => {
                    self.add(number, offset, rest, &group)?;
                    self.next.1 += group.len();
                }
                _ => {
                    let over = machine.durable(&segment::file_name(number + 1)).is_some();
                    if !over {
                        return Ok(());
                    }
                    if rest.iter().any(|b| *b != 0) {
                        return broken(
                            Invariant::Chain,
                            format!("segment {number} has bytes behind its last group"),
                        );
                    }
                    self.next = (number + 1, 0);
                }
            }
        }
    }

    fn add(
        &mut self,
        number: u64,
        offset: usize,
        rest: &[u8],
        group: &Group<'_>,
    ) -> Result<(), Broken> {
        self.history.group(number, group, &self.limits)?;
        for entry in &group.entries {
            let read = lines::decode(entry);
            let read = read.map_err(|error| Broken(Invariant::Chain, error.to_string()))?;
            let stamp = Stamp {
                index: entry.line.index,
                time_ms: entry.line.time_ms,
                epoch: entry.line.epoch,
                leaf: entry.leaf,
            };
            self.state.apply(stamp, &read);
        }
        self.known.push(Known {
            segment: number,
            offset,
            bytes: Arc::from(&rest[..group.len()]),
        });
        Ok(())
    }

    /// A caller was told yes.
    pub(crate) fn acknowledged(&self, command: &Command, done: &Committed) -> Result<(), Broken> {
        let Some(index) = done.index else {
            return broken(Invariant::EarlyAnswer, "an answer without an index");
        };
        let Some(line) = self.history.briefs.get(index as usize) else {
            return broken(
                Invariant::EarlyAnswer,
                format!("entry {index} was answered and is not durable"),
            );
        };
        let mut asked = callers::brief(command);
        asked.time_ms = done.time_ms;
        asked.approval = done.approval.as_ref().map(|approval| approval.id.clone());
        if asked.kind == "allow" || asked.approval.is_some() {
            // As it says.
        } else {
            asked.approval.clone_from(&line.approval);
        }
        if asked != *line {
            return broken(
                Invariant::EarlyAnswer,
                format!("entry {index} is {line:?} and was answered as {asked:?}"),
            );
        }
        Ok(())
    }

    /// Entries since `before` that somebody asked for.
    pub(crate) fn commands_since(&self, before: u64) -> u64 {
        let own = ["torn", "epoch", "snapshot", "restored"];
        let since = self.history.briefs.iter().skip(before as usize);
        since
            .filter(|line| !own.contains(&line.kind.as_str()))
            .count() as u64
    }

    /// What is shown is what follows from the durable bytes, no more and no less.
    pub(crate) fn judge_published(&mut self, shown: &State) -> Result<(), Broken> {
        let durable = self.history.len();
        if shown.entries != durable || shown.head != self.history.head() {
            return broken(
                Invariant::State,
                format!("{} entries are shown, {durable} are durable", shown.entries),
            );
        }
        // How often something changed is no state, and a start may count anew.
        self.state.holds_changed = shown.holds_changed;
        let expected = self.state.clone().shown();
        if *shown != expected {
            let what = difference(&format!("{shown:#?}"), &format!("{expected:#?}"));
            return broken(
                Invariant::State,
                format!("what is shown is not what the durable entries say: {what}"),
            );
        }
        Ok(())
    }

    /// Segments have their length, and unless the disk is full there is a spare.
    pub(crate) fn judge_files(&self, machine: &Machine, short: bool) -> Result<(), Broken> {
        for name in machine.durable_names() {
            let len = machine.durable(name).map_or(0, <[u8]>::len);
            if segment::number_of(name).is_some() && len != self.segment_len {
                return broken(Invariant::Layout, format!("{name} has {len} bytes"));
            }
        }
        if short {
            return Ok(());
        }
        let spare = machine.durable(segment::SPARE).unwrap_or_default();
        let whole = spare.len() == self.segment_len && spare.iter().all(|b| *b == 0);
        if !whole || !machine.is_durable(segment::SPARE) {
            return broken(
                Invariant::Reserve,
                format!("the spare has {} bytes for good", spare.len()),
            );
        }
        Ok(())
    }

    /// What the next start should find, by the bytes alone.
    pub(crate) fn expect(&mut self, machine: &Machine) -> Expected {
        let torn_lines = self.history.torn_lines;
        let mut expected = Expected {
            torn: None,
            torn_lines,
        };
        let Some(number) = machine.visible_names().filter_map(segment::number_of).max() else {
            return expected;
        };
        let known = self
            .known
            .iter()
            .rev()
            .find(|known| known.segment == number);
        let mut offset = known.map_or(0, |known| known.offset + known.bytes.len());
        let name = segment::file_name(number);
        let bytes = machine.visible(&name).unwrap_or_default();
        while let Some(group) = bytes
            .get(offset..)
            .and_then(|rest| Group::decode(rest).ok())
        {
            if !group.entries.iter().all(|e| e.attachments_match()) {
                break;
            }
            offset += group.len();
        }
        let rest = bytes.get(offset..).unwrap_or_default();
        let Some(end) = rest.iter().rposition(|b| *b != 0) else {
            return expected;
        };
        let cut = &rest[..=end];
        expected.torn = Some(TornTail {
            segment: number,
            offset: offset as u64,
            bytes: cut.len() as u64,
            sha256: Sha256::digest(cut).into(),
        });
        let durable = machine.durable(&name).and_then(|bytes| bytes.get(offset..));
        if self.owed.is_none() && durable.is_some_and(|rest| rest.iter().any(|b| *b != 0)) {
            self.owed = Some(torn_lines);
        }
        expected
    }

    /// A start succeeded: nothing that was durable is gone, and nothing was cut in silence.
    pub(crate) fn recovered(
        &mut self,
        machine: &Machine,
        expected: &Expected,
        report: &OpenReport,
    ) -> Result<(), Broken> {
        for known in &self.known {
            let file = machine.durable(&segment::file_name(known.segment));
            let there =
                file.and_then(|bytes| bytes.get(known.offset..known.offset + known.bytes.len()));
            if there != Some(&*known.bytes) {
                let what = format!(
                    "the group at {} of segment {} is gone",
                    known.offset, known.segment
                );
                return broken(Invariant::Durable, what);
            }
        }
        let before = self.history.len();
        if report.created && before > 0 {
            return broken(Invariant::Durable, "the journal is begun anew");
        }
        self.catch_up(machine)?;
        if self.history.len() == before {
            return broken(
                Invariant::Durable,
                "it started and its epoch is not durable",
            );
        }
        if report.epoch != self.history.epoch {
            return broken(
                Invariant::Epoch,
                format!("{report:?} in epoch {}", self.history.epoch),
            );
        }
        if report.torn != expected.torn {
            return broken(
                Invariant::Gap,
                format!(
                    "{:?} was torn and {:?} is reported",
                    expected.torn, report.torn
                ),
            );
        }
        let lines = self.history.torn_lines;
        if expected.torn.is_some() && lines != expected.torn_lines + 1 {
            return broken(Invariant::Gap, "a torn tail is cut without an entry");
        }
        if self.owed.take().is_some_and(|owed| lines <= owed) {
            return broken(
                Invariant::Gap,
                "durable bytes were cut by a start that failed, and no entry says so",
            );
        }
        Ok(())
    }

    /// A durable group that something later proves.
    pub(crate) fn target(&self, machine: &Machine, rng: &mut Rng) -> Option<Target> {
        let last = self.known.len().checked_sub(1)?;
        let next = segment::file_name(self.known[last].segment + 1);
        let proven = last + usize::from(machine.visible(&next).is_some());
        if proven == 0 {
            return None;
        }
        // The last proven one most often: the less there is behind it, the harder it is to see.
        let at = if rng.percent(50) {
            proven - 1
        } else {
            rng.below(proven)
        };
        let known = &self.known[at];
        let name = segment::file_name(known.segment);
        let there = machine
            .visible(&name)?
            .get(known.offset..known.offset + known.bytes.len())?;
        let header = audit::group::Header::decode(&known.bytes).ok()?;
        (*there == *known.bytes).then_some(Target {
            name,
            offset: known.offset,
            len: known.bytes.len(),
            first: header.first,
        })
    }

    pub(crate) fn last_segment(&self, machine: &Machine) -> Option<Vec<u8>> {
        let number = machine
            .visible_names()
            .filter_map(segment::number_of)
            .max()?;
        machine
            .visible(&segment::file_name(number))
            .map(<[u8]>::to_vec)
    }

    /// An auditor's verdict on the files.
    pub(crate) fn verify(&self, machine: &Machine) -> Result<(), Broken> {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() {
            tempfile::tempdir_in(memory).unwrap()
        } else {
            tempfile::tempdir().unwrap()
        };
        for name in machine
            .durable_names()
            .filter(|name| segment::number_of(name).is_some())
        {
            std::fs::write(
                dir.path().join(name),
                machine.durable(name).unwrap_or_default(),
            )
            .unwrap();
        }
        let report = audit::verify(dir.path(), Some((self.history.len(), self.history.head())));
        if !report.whole || report.entries != self.history.len() {
            return broken(Invariant::Chain, format!("it does not verify: {report:?}"));
        }
        Ok(())
    }
}
