//! What became of requests that were allowed, on its way to the log. Outcomes
//! ride on questions, so that a busy worker sends no message for them alone.

use crate::denials::Kept;
use decision_api::{FromFilter, Outcome, QuestionId};
use prost::Message;
use std::collections::VecDeque;

/// Outcomes that wait for a stream.
const CAPACITY: usize = 4_096;
/// Outcomes in one message.
const BATCH: usize = 64;

/// The buffer of outcomes.
pub struct Outcomes {
    waiting: VecDeque<Outcome>,
}

/// Outcomes that are being sent.
pub struct Batch(FromFilter);

impl Outcomes {
    /// An empty buffer.
    pub fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
        }
    }

    /// One more.
    pub fn push(&mut self, outcome: Outcome) -> Kept {
        if self.waiting.len() >= CAPACITY {
            return Kept::Dropped;
        }
        self.waiting.push_back(outcome);
        Kept::Yes
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// True when there are enough for a message of their own.
    pub fn fill_a_message(&self) -> bool {
        self.waiting.len() >= BATCH
    }

    /// Takes the oldest, as many as one message carries.
    pub fn take(&mut self) -> Batch {
        let outcomes = self.waiting.drain(..self.waiting.len().min(BATCH));
        Batch(FromFilter {
            message: None,
            outcomes: outcomes.collect(),
        })
    }

    /// Gives back what was not sent.
    pub fn put_back(&mut self, batch: Batch) {
        for outcome in batch.0.outcomes.into_iter().rev() {
            self.waiting.push_front(outcome);
        }
    }
}

impl Batch {
    /// Appends them to a serialised message. Two serialised messages in a row
    /// are one message with the fields of both.
    pub fn append_to(&self, message: &mut Vec<u8>) {
        if !self.0.outcomes.is_empty() {
            message.extend(self.0.encode_to_vec());
        }
    }
}

/// A request that was allowed here went no further than this filter.
pub fn not_forwarded(id: &QuestionId, why: &str) -> Outcome {
    Outcome {
        id: Some(id.clone()),
        details: format!("writ: not forwarded, {why}"),
        not_forwarded: true,
        ..Outcome::default()
    }
}
