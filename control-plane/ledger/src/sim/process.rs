//! One run of the ledger on the simulated machine: from recovery to its end.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    Options, Random,
    embedded::{
        Shared,
        answers::Answers,
        disk::Disk,
        queue::Queue,
        recovery::{self, OpenError, OpenReport},
        snapshots::Snapshots,
        writer::Writer,
    },
    model::{Command, Committed, Refused},
    sim::{disk::SimDisk, machine::Machine, rng::Rng},
};

pub(crate) type Answered = Result<Committed, Refused>;

/// The clocks: what the ledger is told, and what passes in truth.
pub(crate) struct Clocks {
    pub(crate) wall: Arc<AtomicU64>,
    pub(crate) base: Instant,
    pub(crate) passed: Duration,
}

impl Clocks {
    pub(crate) fn new(start_ms: u64) -> Self {
        Self {
            wall: Arc::new(AtomicU64::new(start_ms)),
            base: Instant::now(),
            passed: Duration::ZERO,
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.wall.load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, ms: u64) {
        self.wall.store(ms, Ordering::SeqCst);
    }

    pub(crate) fn pass(&mut self, ms: u64) {
        self.passed += Duration::from_millis(ms);
        self.set(self.now() + ms);
    }
}

/// A command that waits, with its place in the queue.
pub(crate) struct Waiting {
    pub(crate) command: Command,
    pub(crate) answer: oneshot::Receiver<Answered>,
}

/// A running ledger.
pub(crate) struct Process {
    pub(crate) disk: SimDisk,
    pub(crate) writer: Writer,
    pub(crate) shared: Arc<Shared>,
    queue: Arc<Queue>,
    pub(crate) waiting: VecDeque<Waiting>,
    // Callers here wait for ever: how long is tested elsewhere.
    until: Instant,
}

impl Process {
    /// Recovers, as `Embedded::open` does, but starts no thread.
    pub(crate) fn start(
        machine: &Arc<Mutex<Machine>>,
        number: u32,
        options: &Options,
        rng: &mut Rng,
        at: Instant,
    ) -> Result<(Self, OpenReport), OpenError> {
        let disk = SimDisk::new(machine, number);
        let shown: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut rng = rng.fork();
        let mut random: Random = Box::new(move |bytes| rng.fill(bytes));
        let recovered = recovery::open(options, &shown, &mut random)?;
        let shared = Arc::new(Shared::new(recovered.published));
        let snapshots = Snapshots::new(
            Arc::clone(&shown),
            options.snapshots,
            recovered.snapshots,
            recovered.report.entries,
            Arc::new(|| {}),
        );
        let writer = Writer {
            snapshots,
            shared: Arc::clone(&shared),
            journal: recovered.journal,
            state: recovered.working,
            limits: options.limits.clone(),
            clock: Arc::clone(&options.clock),
            spare_tried: at,
            group: Default::default(),
            answers: Answers::Here,
        };
        let queue = Arc::new(Queue::new(options.queue_entries, options.queue_bytes));
        let process = Self {
            disk,
            writer,
            shared,
            queue,
            waiting: VecDeque::new(),
            until: at + Duration::from_hours(1_000_000),
        };
        Ok((process, recovered.report))
    }

    /// What the ledger's thread does last. Whether it failed.
    pub(crate) fn shutdown(&mut self) -> Option<String> {
        self.writer.last_snapshot().err().map(|failed| failed.0)
    }

    /// Queues a command, or says at once that it is not taken.
    pub(crate) fn push(&mut self, command: Command) -> Result<(), Refused> {
        let answer = self.queue.push(command.clone(), self.until)?;
        self.waiting.push_back(Waiting { command, answer });
        Ok(())
    }

    /// One turn of the ledger's thread, with what is taken from the queue at once.
    /// Those commands, with the answers that were given, and whether it failed.
    pub(crate) fn step(
        &mut self,
        most: usize,
        at: Instant,
    ) -> (Vec<(Command, Option<Answered>)>, Option<String>) {
        let count = most.min(self.waiting.len());
        if count == 0 {
            return (Vec::new(), None);
        }
        let jobs = self.queue.take(count, None).unwrap_or_default();
        let failed = self.writer.step(jobs, at).err().map(|failed| failed.0);
        let taken = self.waiting.drain(..count).map(|mut waiting| {
            let answer = waiting.answer.try_recv().ok();
            (waiting.command, answer)
        });
        (taken.collect(), failed)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.disk.abandon();
    }
}
