//! Refusals made here, on their way to the log: entries for callers whose
//! signatures both verified, counts for everybody else. A batch is repeated
//! until it is acknowledged; what does not fit is counted, never lost silently.

use capability::reason::Reason;
use decision_api::{Denial, DenialBatch, DenialCount};
use std::collections::VecDeque;

/// Entries in one batch.
const BATCH_ENTRIES: usize = 64;
/// Batches that are sent at once at the end.
const LAST_BATCHES: usize = 16;
/// Counts alone are sent this often; milliseconds.
const COUNTS_EVERY_MS: u64 = 5_000;
/// A batch that nobody acknowledged is sent again after this; milliseconds.
const REPEAT_AFTER_MS: u64 = 10_000;

/// The buffer of refusals.
pub struct Denials {
    capacity: usize,
    entries: VecDeque<Denial>,
    /// In order; there are at most two for each reason.
    counts: Vec<((&'static str, bool), u64)>,
    dropped: u64,
    sequence: u64,
    unacknowledged: Option<DenialBatch>,
    last_sent_ms: u64,
    repeat_at_once: bool,
}

/// Whether a refusal found room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It will be sent.
    Yes,
    /// The buffer was full: it is counted in the next batch's `dropped`.
    Dropped,
}

impl Denials {
    /// An empty buffer for so many entries.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            entries: VecDeque::new(),
            counts: Vec::new(),
            dropped: 0,
            sequence: 0,
            unacknowledged: None,
            last_sent_ms: 0,
            repeat_at_once: false,
        }
    }

    /// Changes the room; what is in the buffer stays.
    pub fn resize(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// A refusal of an authenticated caller.
    pub fn push(&mut self, denial: Denial) -> Kept {
        if self.entries.len() >= self.capacity {
            self.dropped = self.dropped.saturating_add(1);
            return Kept::Dropped;
        }
        self.entries.push_back(denial);
        Kept::Yes
    }

    /// A refusal of somebody unknown; `observed` when the request went on.
    pub fn count(&mut self, reason: Reason, observed: bool) {
        self.count_more(reason, observed, 1);
    }

    fn count_more(&mut self, reason: Reason, observed: bool, more: u64) {
        let key = (reason.as_str(), observed);
        match self.counts.binary_search_by_key(&key, |(known, _)| *known) {
            Ok(at) => {
                if let Some((_, count)) = self.counts.get_mut(at) {
                    *count = count.saturating_add(more);
                }
            }
            Err(at) => self.counts.insert(at, (key, more)),
        }
    }

    /// Whether a whole batch of another context finds room.
    pub fn has_room(&self) -> bool {
        let full = self.entries.len().saturating_add(BATCH_ENTRIES);
        self.entries.is_empty() || full <= self.capacity
    }

    /// What another context could not hand in any more: how much of it found no
    /// room, which is counted as dropped.
    pub fn inherit(&mut self, batch: DenialBatch) -> i64 {
        let mut over = 0;
        for denial in batch.entries {
            if self.push(denial) == Kept::Dropped {
                over += 1;
            }
        }
        self.dropped = self.dropped.saturating_add(batch.dropped);
        for count in batch.counts {
            let known = Reason::parse(&count.reason).unwrap_or(Reason::InternalError);
            self.count_more(known, count.observed, count.count);
        }
        over
    }

    /// The batch to send now, if one is due.
    pub fn due(&mut self, now_ms: u64) -> Option<&DenialBatch> {
        let since = now_ms.saturating_sub(self.last_sent_ms);
        if self.unacknowledged.is_some() {
            if since < REPEAT_AFTER_MS && !self.repeat_at_once {
                return None;
            }
        } else {
            let counts_due = !self.counts.is_empty() && since >= COUNTS_EVERY_MS;
            if self.entries.is_empty() && self.dropped == 0 && !counts_due {
                return None;
            }
            self.unacknowledged = Some(self.next_batch());
        }
        self.last_sent_ms = now_ms;
        self.repeat_at_once = false;
        self.unacknowledged.as_ref()
    }

    /// Everything there is, for the last messages before the end: what nobody
    /// has acknowledged yet, and what has come since. Of too many the newest are
    /// counted as dropped.
    pub fn flush(&mut self) -> Vec<DenialBatch> {
        let mut batches: Vec<DenialBatch> = self.unacknowledged.iter().cloned().collect();
        let over = self.entries.split_off(
            self.entries
                .len()
                .min(LAST_BATCHES.saturating_mul(BATCH_ENTRIES)),
        );
        let over = u64::try_from(over.len()).unwrap_or(u64::MAX);
        self.dropped = self.dropped.saturating_add(over);
        while !self.entries.is_empty() || !self.counts.is_empty() || self.dropped > 0 {
            batches.push(self.next_batch());
        }
        batches
    }

    /// The stream is new: what was not acknowledged on the old one is due at
    /// once. Under a new prefix the numbers begin again.
    pub fn reconnected(&mut self, new_prefix: bool) {
        if new_prefix {
            self.sequence = 0;
            if let Some(batch) = &mut self.unacknowledged {
                self.sequence = 1;
                batch.sequence = 1;
            }
        }
        self.repeat_at_once = true;
    }

    /// The control plane has this batch; any other number means nothing.
    pub fn taken(&mut self, sequence: u64) {
        if self
            .unacknowledged
            .as_ref()
            .is_some_and(|batch| batch.sequence == sequence)
        {
            self.unacknowledged = None;
        }
    }

    fn next_batch(&mut self) -> DenialBatch {
        self.sequence = self.sequence.saturating_add(1);
        let entries = self
            .entries
            .drain(..self.entries.len().min(BATCH_ENTRIES))
            .collect();
        let counts = std::mem::take(&mut self.counts);
        DenialBatch {
            sequence: self.sequence,
            entries,
            counts: counts
                .into_iter()
                .map(|((reason, observed), count)| DenialCount {
                    reason: reason.to_owned(),
                    count,
                    observed,
                })
                .collect(),
            dropped: std::mem::take(&mut self.dropped),
        }
    }
}
