//! Questions under one prefix: asking again is idempotent, and an answer goes
//! to whichever stream the prefix's owner has open now.

use decision_api::{Answer, FromControlPlane, QuestionId, from_control_plane::Message};
use ledger::model::Hash;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};

/// Questions that are remembered under one prefix. What is forgotten was
/// answered, and asking it again finds its token spent.
const REMEMBERED_MAX: usize = 16_384;

/// Where a question stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Being evaluated; it can still be withdrawn.
    Evaluating,
    /// A commit is under way; it can't.
    Committing,
    /// It waits for a human.
    Held,
    /// It was withdrawn.
    Withdrawn,
    /// This was answered.
    Answered(Box<Answer>),
}

/// One question.
pub struct Entry {
    digest: Hash,
    /// Where it stands; who waits for it watches this.
    pub stage: watch::Sender<Stage>,
}

/// What [`Prefix::ask`] found.
pub enum Asked {
    /// Nobody has asked this: decide it.
    New(Arc<Entry>),
    /// It is being decided; the answer will come.
    UnderWay,
    /// It was answered: this was the answer.
    Answered(Box<Answer>),
    /// The same id with other bytes.
    Conflict,
    /// Too many are in flight.
    Full,
}

/// One VM context of one proxy.
pub struct Prefix {
    /// The 16 bytes.
    pub bytes: [u8; 16],
    /// The proxy's SPIFFE ID: the prefix is good for its certificate only.
    pub peer: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: BTreeMap<u64, Arc<Entry>>,
    stream: Option<(u64, mpsc::Sender<FromControlPlane>)>,
    streams: u64,
    denials_seen: u64,
}

impl Prefix {
    /// A new prefix of `peer`'s.
    #[must_use]
    pub fn new(bytes: [u8; 16], peer: String) -> Self {
        Self { bytes, peer, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on answers go to this stream. Returns the stream's number.
    pub fn attach(&self, stream: mpsc::Sender<FromControlPlane>) -> u64 {
        let mut inner = self.lock();
        inner.streams = inner.streams.saturating_add(1);
        let number = inner.streams;
        inner.stream = Some((number, stream));
        number
    }

    /// The stream ended, unless another has taken its place.
    pub fn detach(&self, number: u64) {
        let mut inner = self.lock();
        if inner.stream.as_ref().is_some_and(|(current, _)| *current == number) {
            inner.stream = None;
        }
    }

    /// Whether somebody would hear an answer.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.lock().stream.as_ref().is_some_and(|(_, stream)| !stream.is_closed())
    }

    /// Whether anything under this prefix is undecided.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.lock().entries.values().any(|entry| !matches!(*entry.stage.borrow(), Stage::Answered(_) | Stage::Withdrawn))
    }

    /// Takes a question in.
    pub fn ask(&self, counter: u64, digest: Hash, in_flight_max: usize) -> Asked {
        let mut inner = self.lock();
        if let Some(entry) = inner.entries.get(&counter) {
            if entry.digest != digest {
                return Asked::Conflict;
            }
            return match &*entry.stage.borrow() {
                Stage::Answered(answer) => Asked::Answered(answer.clone()),
                _ => Asked::UnderWay,
            };
        }
        if inner.entries.len() >= in_flight_max.min(REMEMBERED_MAX) {
            inner.forget_answered(in_flight_max.min(REMEMBERED_MAX) / 2);
            if inner.entries.len() >= in_flight_max {
                return Asked::Full;
            }
        }
        let entry = Arc::new(Entry { digest, stage: watch::Sender::new(Stage::Evaluating) });
        inner.entries.insert(counter, entry.clone());
        Asked::New(entry)
    }

    /// The question, if it is remembered.
    #[must_use]
    pub fn entry(&self, counter: u64) -> Option<Arc<Entry>> {
        self.lock().entries.get(&counter).cloned()
    }

    /// Sends to the open stream, if there is one. A peer that does not read
    /// loses the message; it asks again.
    pub fn send(&self, message: Message) {
        let stream = self.lock().stream.as_ref().map(|(_, stream)| stream.clone());
        if let Some(stream) = stream
            && stream.try_send(FromControlPlane { message: Some(message) }).is_err()
        {
            tracing::warn!(peer = self.peer, "a message to a proxy was dropped: its stream is full or gone");
        }
    }

    /// Keeps the answer and sends it.
    pub fn answer(&self, entry: &Entry, answer: Answer) {
        entry.stage.send_replace(Stage::Answered(Box::new(answer.clone())));
        self.send(Message::Answer(answer));
    }

    /// The id of a question under this prefix.
    #[must_use]
    pub fn id(&self, counter: u64) -> QuestionId {
        QuestionId { prefix: self.bytes.to_vec(), counter }
    }

    /// Takes a batch's number: `None` when it was taken before, else how many
    /// batches are missing before it.
    pub fn take_batch(&self, sequence: u64) -> Option<u64> {
        let mut inner = self.lock();
        if sequence <= inner.denials_seen {
            return None;
        }
        let missing = sequence - inner.denials_seen - 1;
        inner.denials_seen = sequence;
        Some(missing)
    }

    /// Gives a batch's number back when it could not be recorded.
    pub fn give_back(&self, sequence: u64) {
        let mut inner = self.lock();
        if inner.denials_seen == sequence {
            inner.denials_seen = sequence.saturating_sub(1);
        }
    }
}

impl Inner {
    /// Forgets the oldest that are over, down to `keep` entries.
    fn forget_answered(&mut self, keep: usize) {
        let over: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, entry)| matches!(*entry.stage.borrow(), Stage::Answered(_) | Stage::Withdrawn))
            .map(|(counter, _)| *counter)
            .take(self.entries.len().saturating_sub(keep))
            .collect();
        for counter in over {
            self.entries.remove(&counter);
        }
    }
}

impl Entry {
    /// Moves from `from` to `to`; false when it has moved elsewhere meanwhile.
    pub fn step(&self, from: &Stage, to: Stage) -> bool {
        self.stage.send_if_modified(|stage| {
            if *stage == *from {
                *stage = to;
                true
            } else {
                false
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_again_is_idempotent_and_other_bytes_conflict() {
        let prefix = Prefix::new([7; 16], "spiffe://writ.example/proxy".into());
        let Asked::New(entry) = prefix.ask(1, [1; 32], 4) else { panic!("new") };
        assert!(matches!(prefix.ask(1, [1; 32], 4), Asked::UnderWay));
        assert!(matches!(prefix.ask(1, [2; 32], 4), Asked::Conflict));
        prefix.answer(&entry, Answer::default());
        assert!(matches!(prefix.ask(1, [1; 32], 4), Asked::Answered(_)));
        assert!(matches!(prefix.ask(1, [2; 32], 4), Asked::Conflict));
    }

    #[test]
    fn what_is_under_way_is_never_forgotten() {
        let prefix = Prefix::new([7; 16], String::new());
        for counter in 0..4 {
            assert!(matches!(prefix.ask(counter, [1; 32], 4), Asked::New(_)));
        }
        assert!(matches!(prefix.ask(4, [1; 32], 4), Asked::Full));
        prefix.answer(&prefix.entry(0).unwrap(), Answer::default());
        assert!(matches!(prefix.ask(4, [1; 32], 4), Asked::New(_)));
        assert!(matches!(prefix.ask(1, [1; 32], 4), Asked::UnderWay));
    }

    #[test]
    fn a_withdrawn_question_can_not_be_committed() {
        let entry = Entry { digest: [0; 32], stage: watch::Sender::new(Stage::Evaluating) };
        assert!(entry.step(&Stage::Evaluating, Stage::Withdrawn));
        assert!(!entry.step(&Stage::Evaluating, Stage::Committing));
    }

    #[test]
    fn batches_are_taken_once_and_gaps_are_seen() {
        let prefix = Prefix::new([7; 16], String::new());
        assert_eq!(prefix.take_batch(1), Some(0));
        assert_eq!(prefix.take_batch(1), None);
        assert_eq!(prefix.take_batch(4), Some(2));
        prefix.give_back(4);
        assert_eq!(prefix.take_batch(4), Some(0));
    }
}
