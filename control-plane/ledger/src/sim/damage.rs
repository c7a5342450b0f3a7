//! What is done to the ledger's files behind its back, and that it refuses them.

use crate::embedded::recovery::{OpenError, OpenReport};
use crate::sim::{
    Broken, Invariant,
    durable::{Expected, Target},
    process::Process,
    world::{World, lock},
};

type Started = (Process, OpenReport, Expected);

impl World {
    /// A second ledger in the same directory must be refused, and change nothing.
    pub(super) fn another_process(&mut self) -> Result<(), Broken> {
        self.say(|| "another process tries".into());
        self.disarm();
        let before = self.machine().image();
        let (failing, number) = (self.machine().failing, self.number + 1_000_000);
        self.machine().failing = 0;
        let at = self.clocks.base + self.clocks.passed;
        let other = Process::start(&self.machine, number, &self.options, &mut self.rng, at);
        self.machine().failing = failing;
        if !matches!(other, Err(OpenError::Locked(_))) || self.machine().image() != before {
            return Err(Broken(
                Invariant::Owner,
                "a second process is not kept out".into(),
            ));
        }
        Ok(())
    }

    /// A start that must refuse, and leave everything as it is. `spared`: whether
    /// what is wrong is in what a start from a snapshot does not read.
    fn must_refuse(
        &mut self,
        what: &str,
        right: impl Fn(&OpenError) -> bool,
        spared: impl Fn(&OpenReport) -> bool,
    ) -> Result<Option<Started>, Broken> {
        self.disarm();
        self.number += 1;
        self.counts.damages += 1;
        let expected = self.durable.expect(&lock(&self.machine));
        let failing = self.machine().failing;
        let before = self.machine().image();
        self.machine().failing = 0;
        let at = self.clocks.base + self.clocks.passed;
        let started = Process::start(&self.machine, self.number, &self.options, &mut self.rng, at);
        self.machine().failing = failing;
        let after = self.machine().image();
        let changed = before
            .iter()
            .any(|(name, bytes)| after.get(name) != Some(bytes));
        match started {
            Err(error) if right(&error) && !changed => Ok(None),
            // A full disk ends a start as well, once all was read.
            Err(error) => Err(Broken(
                Invariant::Damage,
                format!("{what}: {error}, changed: {changed}"),
            )),
            Ok((process, report)) if spared(&report) => Ok(Some((process, report, expected))),
            Ok(_) => Err(Broken(Invariant::Damage, format!("{what}, and it starts"))),
        }
    }

    /// A durable group is damaged: the ledger must not start.
    pub(super) fn damage(&mut self) -> Result<(), Broken> {
        let target = self.durable.target(&lock(&self.machine), &mut self.rng);
        let Some(Target {
            name,
            offset,
            len,
            first,
        }) = target
        else {
            return Ok(());
        };
        let whole = self.machine().visible(&name).unwrap_or_default().to_vec();
        let mut bytes = whole.clone();
        if self.rng.percent(30) {
            let sector = offset + self.rng.below(len / 512) * 512;
            bytes[sector..sector + 512].fill(0);
        } else {
            // Headers are the more interesting part.
            let within = if self.rng.percent(50) { 160 } else { len };
            bytes[offset + self.rng.below(within)] ^= 1 << self.rng.below(8);
        }
        // What stands beside the lines, and behind them, is the verifier's business.
        let header = audit::group::Header::decode(&whole[offset..]);
        let lines = header.map_or(0, |header| header.lines_len as usize);
        let judged = offset..offset + audit::group::HEADER_LEN + lines;
        // A last group that is all gone is a cut: only a head kept elsewhere shows it.
        let gone = bytes[offset..].iter().all(|b| *b == 0);
        if gone || bytes[judged.clone()] == whole[judged] {
            return Ok(());
        }
        let segments = |name: &&str| audit::segment::number_of(name).is_some();
        let last = self
            .machine()
            .visible_names()
            .filter(segments)
            .max()
            .map(str::to_owned);
        let sealed = last.is_some_and(|last| last != name);
        self.say(|| format!("{name} is damaged at {offset}"));
        self.machine().capacity = usize::MAX;
        self.machine().meddle(&name, |file| file.clone_from(&bytes));
        let started = self.must_refuse(
            "a durable group is damaged",
            |error| matches!(error, OpenError::Damaged { .. }),
            // Behind a snapshot older segments are not read; the last one is.
            |report| sealed && report.snapshot.is_some_and(|entries| first < entries),
        )?;
        let group = offset..offset + len;
        self.machine().meddle(&name, |file| {
            file[group.clone()].copy_from_slice(&whole[group.clone()]);
        });
        if let Some((process, report, expected)) = started {
            self.say(|| format!("started behind it: {report:?}"));
            self.process = Some(process);
            self.durable
                .recovered(&lock(&self.machine), &expected, &report)?;
            self.judge_running()?;
        }
        Ok(())
    }

    /// A snapshot is not what it was: a start must do without.
    pub(super) fn damage_snapshot(&mut self) {
        let machine = self.machine();
        let snapshots = machine.visible_names().filter(|name| {
            name.starts_with("snapshot-") && machine.visible(name).is_some_and(|b| !b.is_empty())
        });
        let names: Vec<String> = snapshots.map(str::to_owned).collect();
        drop(machine);
        let Some(name) = self.rng.pick(&names).cloned() else {
            return;
        };
        self.say(|| format!("{name} is damaged"));
        let (at, bit) = (self.rng.next() as usize, self.rng.below(8));
        self.machine().meddle(&name, |file| {
            let at = at % file.len().max(1);
            if let Some(byte) = file.get_mut(at) {
                *byte ^= 1 << bit;
            }
        });
    }

    /// The segments are gone, other files are there.
    pub(super) fn journal_gone(&mut self) -> Result<(), Broken> {
        let machine = self.machine();
        let spare = machine.visible(audit::segment::SPARE).is_some();
        drop(machine);
        if !spare || self.durable.history.len() == 0 {
            return Ok(());
        }
        self.say(|| "the segments are gone".into());
        let whole = self.machine().clone();
        self.machine().remove_segments();
        self.must_refuse(
            "the segments are gone",
            |error| matches!(error, OpenError::NoJournal(_)),
            |_| false,
        )?;
        *self.machine() = whole;
        Ok(())
    }

    /// The spare is not what it was, for example part of a backup.
    pub(super) fn junk_spare(&mut self) {
        let last = self.durable.last_segment(&self.machine());
        let Some(bytes) = last.filter(|_| self.durable.history.len() > 0) else {
            return;
        };
        if bytes.len() == self.options.segment_len {
            self.say(|| "the spare holds an old segment".into());
            self.machine().put(audit::segment::SPARE, &bytes);
        }
    }
}
