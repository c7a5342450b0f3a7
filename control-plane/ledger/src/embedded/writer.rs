//! The one thread that owns the journal.
//!
//! It takes what is queued, checks each command against the state as it will
//! be, writes one group, makes it durable, and only then publishes and answers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use audit::{group::Builder, leaf_hash};
use tokio::sync::oneshot;

use crate::{
    Clock, Fatal,
    embedded::{
        Shared,
        check::Draft,
        journal::Journal,
        queue::{Job, Queue},
        state::{Stamp, State},
    },
    event::Entry,
    lines::{self, Encoded, Place},
    model::{Command, Committed, Limits, RESERVED_NOTE_KINDS, Refused},
};

/// Commands taken from the queue at a time.
const BATCH: usize = 1024;
/// A group is written when it has this many bytes, even if more is queued.
const GROUP_LEN: usize = 1024 * 1024;
/// How often a full disk is tried again.
const SPARE_RETRY: Duration = Duration::from_secs(1);

type Answer = oneshot::Sender<Result<Committed, Refused>>;

pub(crate) struct Writer {
    pub(crate) queue: Arc<Queue>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) journal: Journal,
    pub(crate) state: State,
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) fatal: Fatal,
    pub(crate) spare_tried: Instant,
}

/// A group in the making.
#[derive(Default)]
struct Group {
    builder: Builder,
    first: u64,
    applied: Vec<(Stamp, Entry)>,
    // Refusals wait as well: what they are based on is not durable before the group is.
    answers: Vec<(Answer, Result<Committed, Refused>)>,
}

/// The journal could not be written; nobody may be answered.
struct Failed(String);

impl Writer {
    /// Runs until the queue is closed and empty, or the journal fails.
    pub(crate) fn run(mut self) {
        let queue = Arc::clone(&self.queue);
        let fatal = Arc::clone(&self.fatal);
        let ran = catch_unwind(AssertUnwindSafe(|| {
            while let Some(jobs) = self.queue.take(BATCH) {
                self.batch(jobs)?;
            }
            Ok(())
        }));
        match ran {
            Ok(Ok(())) => {}
            Ok(Err(Failed(what))) => fatal(&what),
            Err(_) => fatal("the ledger's thread panicked"),
        }
        // Only tests get here after a failure. The journal, and its lock, go with `self`.
        queue.abandon();
    }

    fn batch(&mut self, jobs: Vec<Job>) -> Result<(), Failed> {
        if self.journal.is_short() && self.spare_tried.elapsed() > SPARE_RETRY {
            self.spare_tried = Instant::now();
            self.journal.retry_spare();
        }
        let mut group = Group::default();
        for job in jobs {
            if self.journal.is_short() && !is_essential(&job.command) {
                group.answers.push((job.answer, Err(Refused::Unavailable)));
                continue;
            }
            let now = self.state.time_ms.max((self.clock)());
            match self.stage(job.command, now) {
                Err(refused) => group.answers.push((job.answer, Err(refused))),
                Ok((draft, place, encoded)) => {
                    if self.make_room(&mut group, encoded.len())? {
                        self.add(&mut group, draft, &place, &encoded, job.answer);
                    } else {
                        group.answers.push((job.answer, Err(Refused::Unavailable)));
                    }
                }
            }
        }
        self.finish(group)
    }

    fn stage(&self, command: Command, now: u64) -> Result<(Draft, Place, Encoded), Refused> {
        let draft = self.state.check(command, now, &self.limits)?;
        let place = Place {
            index: self.state.entries,
            time_ms: now,
            epoch: self.state.epoch,
            prev: self.state.head,
        };
        let encoded = lines::encode(&place, &draft.entry, &draft.attachments)?;
        if Builder::default().len_with(encoded.len()) > self.journal.segment_len() {
            return Err(Refused::TooLarge);
        }
        Ok((draft, place, encoded))
    }

    /// Finishes the group, and the segment, when `more` bytes do not fit. The
    /// staged line stays right: its place depends on what was applied, not written.
    fn make_room(&mut self, group: &mut Group, more: usize) -> Result<bool, Failed> {
        let full = group.builder.count() >= audit::group::MAX_LINES;
        let len = group.builder.len_with(more);
        if group.builder.count() > 0 && (full || len > GROUP_LEN || len > self.journal.room()) {
            self.finish(std::mem::take(group))?;
        }
        if group.builder.len_with(more) <= self.journal.room() {
            return Ok(true);
        }
        self.journal
            .roll()
            .map_err(|e| Failed(format!("cannot go on to the next journal segment: {e}")))
    }

    fn add(
        &mut self,
        group: &mut Group,
        draft: Draft,
        place: &Place,
        encoded: &Encoded,
        answer: Answer,
    ) {
        if group.builder.count() == 0 {
            group.first = place.index;
        }
        group
            .builder
            .push(&encoded.line, encoded.attached.iter().map(Vec::as_slice));
        let stamp = Stamp {
            index: place.index,
            time_ms: place.time_ms,
            epoch: place.epoch,
            leaf: leaf_hash(&encoded.line),
        };
        self.state.apply(stamp, &draft.entry);
        let approval = draft
            .approval
            .and_then(|id| self.state.approval(&id).cloned());
        let committed = Committed {
            index: place.index,
            time_ms: place.time_ms,
            approval,
        };
        group.applied.push((stamp, draft.entry));
        group.answers.push((answer, Ok(committed)));
    }

    /// Makes the group durable, publishes what it changed, and answers: in this order.
    fn finish(&mut self, group: Group) -> Result<(), Failed> {
        if group.builder.count() > 0 {
            self.journal
                .append(group.builder, group.first)
                .map_err(|e| Failed(format!("cannot write the journal: {e}")))?;
            self.shared.publish(&group.applied);
        }
        for (answer, result) in group.answers {
            // A caller that left has nothing to be told; its commit stands.
            let _ = answer.send(result);
        }
        Ok(())
    }
}

/// What still goes on when no further segment can be made: what takes rights
/// away, what says how things ended, and few notes.
fn is_essential(command: &Command) -> bool {
    match command {
        Command::Lapse { .. }
        | Command::LapseOverdue { .. }
        | Command::DecideApproval { approve: false, .. }
        | Command::ExpireApprovals
        | Command::Outcome { .. } => true,
        Command::Note { kind, .. } => RESERVED_NOTE_KINDS.contains(kind),
        _ => false,
    }
}
