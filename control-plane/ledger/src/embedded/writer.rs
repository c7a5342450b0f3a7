//! The one thread that owns the journal.
//!
//! It takes what is queued, checks each command against the state as it will
//! be, writes one group, makes it durable, and only then publishes and answers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    Clock, Fatal,
    embedded::{
        Shared,
        answers::{Answer, Answers, Told},
        check::Draft,
        journal::Journal,
        queue::{Job, Queue},
        snapshot::{Snapshot, Written},
        snapshots::Snapshots,
        state::{Made, Stamp, State},
    },
    event::{Entry, Event},
    lines::{self, Encoded, Place},
    model::{Command, Committed, Limits, RESERVED_NOTE_KINDS, Refused},
};
use audit::group::Builder;

/// Commands taken from the queue at a time.
const BATCH: usize = 1024;
/// A group is written when it has this many bytes, even if more is queued.
const GROUP_LEN: usize = 1024 * 1024;
/// How often a full disk is tried again.
const SPARE_RETRY: Duration = Duration::from_secs(1);

/// What turns commands into durable entries. It has no thread of its own:
/// [`run`] drives it in the product.
pub(crate) struct Writer {
    pub(crate) snapshots: Snapshots,
    pub(crate) shared: Arc<Shared>,
    pub(crate) journal: Journal,
    pub(crate) state: State,
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) spare_tried: Instant,
    /// Empty between steps: kept for its memory.
    pub(crate) group: Group,
    pub(crate) answers: Answers,
}

/// A group in the making.
#[derive(Default)]
pub(crate) struct Group {
    builder: Builder,
    first: u64,
    applied: Vec<(Stamp, Entry, Made)>,
    // Refusals wait as well: what they are based on is not durable before the group is.
    answers: Told,
}

/// The journal could not be written; nobody may be answered, and the process
/// must end.
pub(crate) struct Failed(pub(crate) String);

/// Drives a writer until the queue is closed and empty, or the journal fails.
pub(crate) fn run(mut writer: Writer, queue: &Queue, fatal: &Fatal) {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        loop {
            // A full disk is tried again also when nobody asks for anything.
            let patience = writer.journal.is_short().then_some(SPARE_RETRY);
            let Some(jobs) = queue.take(BATCH, patience) else {
                break;
            };
            writer.step(jobs, Instant::now())?;
        }
        writer.last_snapshot()
    }));
    match ran {
        Ok(Ok(())) => {}
        Ok(Err(Failed(what))) => fatal(&what),
        Err(_) => fatal("the ledger's thread panicked"),
    }
    // Only tests get here after a failure.
    queue.abandon();
}

impl Writer {
    /// Commits what was taken from the queue, in its order, and answers.
    ///
    /// # Errors
    /// When the journal failed: the writer must not be used again.
    pub(crate) fn step(&mut self, jobs: Vec<Job>, at: Instant) -> Result<(), Failed> {
        if self.journal.is_short() && at.duration_since(self.spare_tried) >= SPARE_RETRY {
            self.spare_tried = at;
            self.journal.retry_spare();
        }
        let mut group = std::mem::take(&mut self.group);
        let written = self.snapshots.finished();
        let proving = match written {
            Some(written) => self.prove(&mut group, written)?,
            None => None,
        };
        for job in jobs {
            let goes_on = self.goes_on(&job.command);
            if !goes_on {
                // Hardly any has more beside it; then the reserve is a little less.
                let more = group.builder.len_with(audit::MAX_EVIDENCE);
                self.journal.keep_reserve(more);
            }
            if self.journal.is_short() && !goes_on {
                group.answers.push((job.answer, Err(Refused::Full)));
                continue;
            }
            if at > job.until && !is_essential(&job.command) {
                // Its caller has given up, or will before it could use the answer.
                group.answers.push((job.answer, Err(Refused::Unavailable)));
                continue;
            }
            let last = if planted!(ClockBack) {
                0
            } else {
                self.state.time_ms
            };
            let now = last.max((self.clock)());
            match self.stage(*job.command, now) {
                Err(refused) => {
                    if planted!(RefusalCounts) {
                        self.state.entries = self.state.entries.saturating_add(1);
                    }
                    group.answers.push((job.answer, Err(refused)));
                    if planted!(RefusalBeforeSync) {
                        self.answers.tell(&mut group.answers);
                    }
                }
                Ok((draft, place, encoded)) => {
                    if self.make_room(&mut group, encoded.len())? {
                        self.add(&mut group, draft, &place, &encoded, Some(job.answer));
                    } else {
                        group.answers.push((job.answer, Err(Refused::Full)));
                    }
                }
            }
        }
        self.finish(&mut group)?;
        self.group = group;
        if let Some(entries) = proving {
            self.snapshots.proven(entries);
        }
        self.begin_snapshot();
        Ok(())
    }

    fn stage(&self, command: Command, now: u64) -> Result<(Draft, Place, Encoded), Refused> {
        let mut draft = self.state.check(command, now, &self.limits)?;
        let place = Place {
            index: self.state.entries,
            time_ms: now,
            epoch: self.state.epoch,
            prev: if planted!(StalePrev) {
                self.shared.read().head
            } else {
                self.state.head
            },
        };
        let encoded = lines::encode(&place, &draft.entry, std::mem::take(&mut draft.attachments))?;
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
        let room = self.journal.room();
        if group.builder.count() > 0 && (full || len > GROUP_LEN || len > room) {
            self.finish(group)?;
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
        answer: Option<Answer>,
    ) {
        if group.builder.count() == 0 && !planted!(StaleFirst) {
            group.first = place.index;
        }
        let leaf = group.builder.push(&encoded.line, encoded.salted());
        let stamp = Stamp {
            index: place.index,
            time_ms: place.time_ms,
            epoch: place.epoch,
            leaf,
        };
        let mut made = Made::default();
        self.state.apply_with(stamp, &draft.entry, &mut made);
        let approval = draft
            .approval
            .and_then(|id| self.state.approval(&id).cloned())
            .map(Box::new);
        let committed = Committed {
            index: Some(place.index),
            time_ms: place.time_ms,
            approval,
        };
        group.applied.push((stamp, draft.entry, made));
        if let Some(answer) = answer {
            group.answers.push((answer, Ok(committed)));
        }
    }

    /// Writes the entry that proves a snapshot's file; says which, once the group
    /// is durable. Without room it stays unproven, and another one comes.
    fn prove(&mut self, group: &mut Group, written: Written) -> Result<Option<u64>, Failed> {
        let event = Event::Snapshot {
            entries: written.entries,
            sha256: written.sha256,
            bytes: written.bytes,
        };
        let draft = Draft::plain(event);
        let place = Place {
            index: self.state.entries,
            time_ms: self.state.time_ms.max((self.clock)()),
            epoch: self.state.epoch,
            prev: self.state.head,
        };
        let encoded = lines::encode(&place, &draft.entry, Vec::new())
            .map_err(|error| Failed(format!("cannot encode a snapshot's entry: {error}")))?;
        if self.journal.is_short() || !self.make_room(group, encoded.len())? {
            return Ok(None);
        }
        self.add(group, draft, &place, &encoded, None);
        Ok(Some(written.entries))
    }

    /// Begins a snapshot of what is durable now, if one is due.
    fn begin_snapshot(&mut self) {
        let (entries, segment) = (self.state.entries, self.journal.segment());
        if self.snapshots.is_due(entries, segment) && !self.journal.is_short() {
            let snapshot = Snapshot::new(self.journal.position(), self.state.keep());
            self.snapshots.begin(snapshot);
        }
    }

    /// A snapshot for the next start, when enough came since the last.
    pub(crate) fn last_snapshot(&mut self) -> Result<(), Failed> {
        // One that is being written has the same name if nothing came since.
        if let Some(written) = self.snapshots.wait() {
            self.prove_alone(written)?;
        }
        if !self.snapshots.is_due_at_shutdown(self.state.entries) || self.journal.is_short() {
            return Ok(());
        }
        let snapshot = Snapshot::new(self.journal.position(), self.state.keep());
        match self.snapshots.write(&snapshot) {
            Some(written) => self.prove_alone(written),
            None => Ok(()),
        }
    }

    /// As `prove`, in a group of its own, at the end.
    fn prove_alone(&mut self, written: Written) -> Result<(), Failed> {
        let mut group = Group::default();
        let proving = self.prove(&mut group, written)?;
        self.finish(&mut group)?;
        if let Some(entries) = proving {
            self.snapshots.proven_last(entries);
        }
        Ok(())
    }

    /// Makes the group durable, publishes what it changed, and answers: in this order.
    fn finish(&mut self, group: &mut Group) -> Result<(), Failed> {
        if planted!(AnswerBeforeSync) {
            self.answers.tell(&mut group.answers);
        }
        if planted!(PublishBeforeSync) {
            self.shared.publish(&mut group.applied);
            group.applied.clear();
        }
        if group.builder.count() > 0 {
            self.journal
                .append(&mut group.builder, group.first)
                .map_err(|e| Failed(format!("cannot write the journal: {e}")))?;
            self.shared.publish(&mut group.applied);
            group.applied.clear();
        }
        self.answers.tell(&mut group.answers);
        Ok(())
    }

    /// Whether the command is taken though no further segment can be made.
    fn goes_on(&self, command: &Command) -> bool {
        planted!(FullTakesAll) || (is_essential(command) && !planted!(FullRefusesAll))
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
        | Command::CancelApprovals
        | Command::Stop { .. }
        | Command::Outcome { .. } => true,
        Command::Note { kind, .. } => RESERVED_NOTE_KINDS.contains(kind),
        _ => false,
    }
}
