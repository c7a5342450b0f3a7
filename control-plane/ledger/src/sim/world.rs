//! A machine, the ledger on it, its callers, and everything that goes wrong: all
//! of it decided by one seed, and judged after each step.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    Options,
    embedded::{disk::Disk, recovery::OpenError, snapshot::SnapshotEvery, spare::RESERVE},
    model::{Command, Refused},
    sim::{
        Broken, Invariant,
        callers::Callers,
        durable::Durable,
        kinds::Kind,
        machine::{Fault, Machine},
        process::{Answered, Clocks, Process},
        rng::Rng,
    },
};

pub(crate) const START_MS: u64 = 1_790_000_000_000;

/// What a run did, to see that a simulation is worth its time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) commands: u64,
    pub(crate) committed: u64,
    pub(crate) groups: u64,
    pub(crate) segments: u64,
    pub(crate) starts: u64,
    pub(crate) kills: u64,
    pub(crate) power_losses: u64,
    pub(crate) faults: u64,
    pub(crate) torn: u64,
    pub(crate) damages: u64,
    pub(crate) short: u64,
    pub(crate) full_starts: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        let all = [
            (&mut self.commands, other.commands),
            (&mut self.committed, other.committed),
            (&mut self.groups, other.groups),
            (&mut self.segments, other.segments),
            (&mut self.starts, other.starts),
            (&mut self.kills, other.kills),
            (&mut self.power_losses, other.power_losses),
            (&mut self.faults, other.faults),
            (&mut self.torn, other.torn),
            (&mut self.damages, other.damages),
            (&mut self.short, other.short),
            (&mut self.full_starts, other.full_starts),
        ];
        for (sum, more) in all {
            *sum += more;
        }
    }

    /// A simulation in which nothing happens proves nothing.
    pub(crate) fn are_worth_it(&self, seeds: u64) {
        assert!(self.committed > seeds * 10, "{self:?}");
        assert!(
            self.starts > seeds * 2 && self.power_losses > seeds,
            "{self:?}"
        );
        assert!(
            self.torn * 10 > seeds && self.damages * 10 > seeds,
            "{self:?}"
        );
        assert!(
            self.segments > seeds && self.faults > seeds && self.short * 10 > seeds,
            "{self:?}"
        );
        assert!(self.full_starts * 20 > seeds, "{self:?}");
    }
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) machine: Arc<Mutex<Machine>>,
    pub(crate) options: Options,
    pub(crate) clocks: Clocks,
    pub(crate) callers: Callers,
    pub(crate) durable: Durable,
    pub(crate) process: Option<Process>,
    pub(super) number: u32,
    pub(crate) counts: Counts,
    pub(crate) trace: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let clocks = Clocks::new(START_MS);
        let wall = Arc::clone(&clocks.wall);
        let clock = Arc::new(move || wall.load(std::sync::atomic::Ordering::SeqCst));
        let kind = Kind::of(seed);
        let options = Options {
            limits: kind.limits(3),
            segment_len: rng.one(&[16, 16, 20]) * 1024,
            queue_entries: 12,
            snapshots: SnapshotEvery {
                entries: rng.one(&[8, 30, 1_000]),
                segments: rng.one(&[1, 100]),
                at_shutdown: rng.one(&[4, 1_000]),
            },
            ..Options::new("/journal", clock)
        };
        let mut machine = Machine::new(rng.fork());
        machine.exchanges = rng.percent(85);
        let machine = Arc::new(Mutex::new(machine));
        let callers = Callers::new(rng.fork(), kind);
        Self {
            callers,
            durable: Durable::new(options.limits.clone(), options.segment_len),
            rng,
            machine,
            options,
            clocks,
            process: None,
            number: 0,
            counts: Counts::default(),
            trace: trace.then(Vec::new),
        }
    }

    pub(crate) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(what());
        }
    }

    /// One thing happens.
    pub(crate) fn event(&mut self) -> Result<(), Broken> {
        if self.process.is_none() {
            return self.while_down();
        }
        match self.rng.below(100) {
            0..68 => self.callers_ask(),
            68..75 => self.time_jumps(),
            75..81 => {
                self.say(|| "background work runs".into());
                if let Some(process) = &self.process {
                    process.disk.settle();
                }
                self.end_if_killed()
            }
            81..84 => self.another_process(),
            84..87 => self.disk_fills(),
            87..89 => {
                let failing = self.rng.one(&[0, 0, 15, 60]);
                self.say(|| format!("of 1,000 calls {failing} fail"));
                self.machine().failing = failing;
                Ok(())
            }
            89..92 => {
                self.shutdown()?;
                self.maybe_power_loss();
                Ok(())
            }
            _ => {
                self.say(|| "killed".into());
                self.dies()
            }
        }
    }

    fn callers_ask(&mut self) -> Result<(), Broken> {
        self.ask()?;
        self.arm(12);
        // The ends of segments are where things go wrong.
        let end = self.process.as_ref().is_some_and(|process| {
            let journal = &process.writer.journal;
            journal.room() < 2_000 && !journal.is_short()
        });
        if end && self.rng.percent(25) {
            self.kill_within(2);
        }
        let most = 1 + self.rng.below(8);
        self.step(most)
    }

    /// One of the next calls is the process's last.
    fn kill_within(&mut self, calls: usize) {
        let ahead = self.rng.below(calls) as u64;
        let mut machine = lock(&self.machine);
        machine.kill_at = Some(machine.calls + 1 + ahead);
    }

    /// Soon a call may fail, or be the process's last.
    fn arm(&mut self, calls: usize) {
        let ahead = self.rng.below(calls) as u64;
        let at = self.machine().calls + 1 + ahead;
        match self.rng.below(100) {
            0..5 => self.machine().kill_at = Some(at),
            5..8 => {
                let fault = self.rng.one(&[Fault::Io, Fault::NoSpace, Fault::NoFile]);
                self.machine().fail_at = Some((at, fault));
            }
            _ => {}
        }
    }

    /// Callers ask for a few things.
    pub(crate) fn ask(&mut self) -> Result<(), Broken> {
        let passed = self.rng.one(&[0, 0, 1, 15]);
        self.clocks.pass(passed);
        for _ in 0..=self.rng.below(6) {
            let now = self.clocks.now().max(self.durable.history.time_ms);
            let command = self.callers.next(now, self.durable.history.epoch);
            self.counts.commands += 1;
            let Some(process) = &mut self.process else {
                break;
            };
            let full = process.waiting.len() >= self.options.queue_entries;
            if let Err(refused) = process.push(command)
                && !(full && refused == Refused::Unavailable)
            {
                return Err(Broken(Invariant::Refusal, format!("not queued: {refused}")));
            }
        }
        Ok(())
    }

    /// One turn of the ledger's thread.
    pub(crate) fn step(&mut self, most: usize) -> Result<(), Broken> {
        let at = self.clocks.base + self.clocks.passed;
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        let faults = process.disk.machine().faults;
        let was_short = process.writer.journal.is_short();
        let segment = process.writer.journal.segment();
        let (answers, failed) = process.step(most, at);
        let killed = self.machine().is_dead(self.number);
        self.say(|| {
            format!(
                "step, failed: {failed:?}, killed: {killed}: {}",
                shown(&answers)
            )
        });
        self.counts.short += u64::from(was_short);
        // No further segment could be made for a moment, perhaps.
        let excused = was_short || self.machine().faults > faults;
        let before = self.durable.history.len();
        self.durable.catch_up(&lock(&self.machine))?;
        let ended = failed.is_some() || killed;
        let stays = self
            .process
            .as_ref()
            .is_some_and(|process| process.writer.journal.segment() == segment);
        self.judge_answers(&answers, before, ended, (was_short, excused, stays))?;
        if failed.is_some() || killed {
            return self.dies();
        }
        self.judge_running()
    }

    /// What waits is done, a snapshot is taken, and the process ends.
    pub(crate) fn shutdown(&mut self) -> Result<(), Broken> {
        self.say(|| "shutdown".into());
        self.drain()?;
        if let Some(process) = &mut self.process {
            let failed = process.shutdown();
            self.say(|| format!("failed: {failed:?}"));
            self.durable.catch_up(&lock(&self.machine))?;
            if failed.is_none() && !self.machine().is_dead(self.number) {
                self.judge_running()?;
            }
        }
        self.ends()
    }

    /// Commands that wait are done before a shutdown.
    fn drain(&mut self) -> Result<(), Broken> {
        while self
            .process
            .as_ref()
            .is_some_and(|process| !process.waiting.is_empty())
        {
            self.step(8)?;
        }
        Ok(())
    }

    fn end_if_killed(&mut self) -> Result<(), Broken> {
        if self.machine().is_dead(self.number) {
            return self.dies();
        }
        Ok(())
    }

    /// The process ends where it is. What it published must have been durable.
    fn dies(&mut self) -> Result<(), Broken> {
        self.ends()?;
        self.maybe_power_loss();
        Ok(())
    }

    /// The process ends, and nothing else happens.
    pub(crate) fn ends(&mut self) -> Result<(), Broken> {
        self.counts.kills += 1;
        self.machine().kill(self.number);
        self.disarm();
        if let Some(process) = self.process.take() {
            let published = process.shared.read().entries;
            if published > self.durable.history.len() {
                return Err(Broken(
                    Invariant::State,
                    format!(
                        "{published} entries were shown, {} are durable",
                        self.durable.history.len()
                    ),
                ));
            }
        }
        Ok(())
    }

    pub(super) fn disarm(&mut self) {
        let mut machine = self.machine();
        machine.kill_at = None;
        machine.fail_at = None;
    }

    fn maybe_power_loss(&mut self) {
        match self.rng.below(4) {
            0 | 1 => self.power_loss(),
            2 => {
                self.say(|| "pages are evicted".into());
                self.machine().evict();
            }
            _ => {}
        }
    }

    fn power_loss(&mut self) {
        self.say(|| "power loss".into());
        self.counts.power_losses += 1;
        self.machine().random_power_loss();
    }

    fn time_jumps(&mut self) -> Result<(), Broken> {
        let now = self.clocks.now();
        match self.rng.below(6) {
            0 => self.clocks.pass(1_100),
            1 => self.clocks.pass(6_000),
            2 => self.clocks.pass(40_000),
            3 => self.clocks.set(now - 3_600_000),
            4 => self.clocks.set(now - 20),
            _ => self.clocks.pass(0),
        }
        let now = self.clocks.now();
        self.say(|| format!("the clock says {now}"));
        Ok(())
    }

    fn disk_fills(&mut self) -> Result<(), Broken> {
        let full = self.machine().capacity == usize::MAX || self.rng.percent(30);
        let room = self.rng.one(&[0, 0, 5_000, 20_000]);
        let mut machine = self.machine();
        machine.capacity = if full {
            machine.used() + room
        } else {
            usize::MAX
        };
        drop(machine);
        self.say(|| format!("the disk is full: {full}, but for {room} bytes"));
        Ok(())
    }

    fn while_down(&mut self) -> Result<(), Broken> {
        match self.rng.below(100) {
            0..8 => self.damage(),
            30..35 => {
                self.damage_snapshot();
                Ok(())
            }
            8..12 => self.journal_gone(),
            12..18 => {
                self.junk_spare();
                Ok(())
            }
            18..22 => {
                self.power_loss();
                Ok(())
            }
            35..39 => {
                self.say(|| "others fill the disk".into());
                let mut machine = self.machine();
                machine.capacity = machine.used();
                Ok(())
            }
            22..30 => {
                self.clocks.pass(2_000);
                self.machine().capacity = usize::MAX;
                Ok(())
            }
            _ => {
                self.arm(24);
                // Starts are ended early, and most of all those that have to cut.
                let torn = self.durable.expect(&lock(&self.machine)).is_torn();
                if self.rng.percent(if torn { 50 } else { 15 }) {
                    self.kill_within(if torn { 12 } else { 20 });
                }
                self.start()
            }
        }
    }

    /// A start. It may fail for a reason that the machine gave, and for no other.
    pub(crate) fn start(&mut self) -> Result<(), Broken> {
        self.number += 1;
        self.counts.starts += 1;
        let expected = self.durable.expect(&lock(&self.machine));
        let faults = self.machine().faults;
        let (reserved, quiet) = (self.reserved(), self.machine().is_quiet());
        let no_room = self.room() < self.options.segment_len;
        let at = self.clocks.base + self.clocks.passed;
        let started = Process::start(&self.machine, self.number, &self.options, &mut self.rng, at);
        let blamed = self.machine().faults > faults;
        self.disarm();
        let killed = self.machine().is_dead(self.number);
        match started {
            Ok((process, report)) => {
                self.say(|| format!("started: {report:?}, killed: {killed}"));
                self.process = Some(process);
                self.durable
                    .recovered(&lock(&self.machine), &expected, &report)?;
                if report.full {
                    self.counts.full_starts += 1;
                    self.judge_full_start(no_room && reserved < 2)?;
                }
                if killed {
                    return self.dies();
                }
                self.judge_running()
            }
            Err(error @ OpenError::Full { .. }) if quiet && reserved > 0 => {
                let what = format!("a segment is reserved, and: {error}");
                Err(Broken(Invariant::Start, what))
            }
            Err(OpenError::Io { .. } | OpenError::Full { .. }) if blamed => {
                self.say(|| "not started: the disk failed".into());
                self.dies()
            }
            Err(error) => Err(Broken(Invariant::Start, error.to_string())),
        }
    }

    /// How many segments are reserved, by either name.
    fn reserved(&self) -> usize {
        let machine = self.machine();
        let names = [audit::segment::SPARE, RESERVE];
        let found = names.iter().filter_map(|name| machine.visible(name));
        found
            .filter(|bytes| bytes.len() == self.options.segment_len)
            .count()
    }

    /// Bytes that fit once what starts left half written is gone.
    fn room(&self) -> usize {
        let machine = self.machine();
        let left = |name: &&str| name.ends_with(".tmp") && *name != RESERVE;
        let left = machine.visible_names().filter(left);
        let left: usize = left
            .filter_map(|name| machine.visible(name).map(<[u8]>::len))
            .sum();
        machine.capacity.saturating_sub(machine.used() - left)
    }

    /// Everything works again: the ledger starts, twice, and is whole.
    pub(crate) fn end(&mut self) -> Result<(), Broken> {
        let mut machine = self.machine();
        (machine.failing, machine.capacity) = (0, usize::MAX);
        drop(machine);
        self.disarm();
        self.drain()?;
        if self.process.is_none() {
            self.start()?;
        }
        self.dies()?;
        self.power_loss();
        self.start()?;
        self.drain()?;
        self.process = None;
        let faults = self.machine().faults;
        self.counts.faults = faults;
        self.counts.groups = self.durable.history.groups;
        self.counts.torn = self.durable.history.torn_lines;
        self.counts.segments = self.durable.segments();
        self.durable.verify(&lock(&self.machine))
    }
}

/// The machine, without borrowing the world.
pub(super) fn lock(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shown(answers: &[(Command, Option<Answered>)]) -> String {
    let one = |(command, answer): &(Command, Option<Answered>)| {
        let about = super::callers::brief(command);
        let answer = match answer {
            Some(Ok(done)) => format!("{:?}", done.index),
            Some(Err(refused)) => format!("{refused:?}"),
            None => "nothing".into(),
        };
        format!(
            "{} {} -> {answer}",
            about.kind,
            about.attempt.unwrap_or_default()
        )
    };
    answers.iter().map(one).collect::<Vec<_>>().join("; ")
}
