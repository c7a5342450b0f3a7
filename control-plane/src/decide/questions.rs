//! Questions under one prefix: asking again is idempotent, and an answer goes
//! to whichever stream the prefix's owner has open now.

use super::open::Table;
use crate::fleet::Seat;
use decision_api::{
    Answer, BodyWanted, FromControlPlane, Heartbeat, QuestionId, from_control_plane::Message,
};
use ledger::model::Hash;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Duration, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Questions that are remembered under one prefix. What is forgotten was
/// answered, and asking it again finds its token spent.
const REMEMBERED_MAX: usize = 16_384;
/// How long an answered question, or a prefix that nobody uses, is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);

/// Between two heartbeats on a stream. A filter that has heard nothing for three
/// seconds refuses.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// Where a question stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Being evaluated; it can still be withdrawn.
    Evaluating,
    /// A commit is under way, so it can't be withdrawn; whether the client left
    /// meanwhile is kept for a hold, which must not outlive its client.
    Committing {
        /// A withdrawal came.
        left: bool,
    },
    /// It waits for a human; this was said.
    Held(Box<Answer>),
    /// It was withdrawn.
    Withdrawn,
    /// This was answered.
    Answered(Box<Answer>),
}

impl Stage {
    fn is_over(&self) -> bool {
        matches!(self, Self::Answered(_) | Self::Withdrawn)
    }
}

/// One question.
pub struct Entry {
    digest: Hash,
    stage: watch::Sender<Stage>,
    /// Who waits for its body, and what asks for that.
    wanted: Mutex<Option<(BodyWanted, oneshot::Sender<Vec<u8>>)>>,
}

/// What [`Prefix::ask`] found.
pub enum Asked {
    /// Nobody has asked this: decide it.
    New(Arc<Entry>),
    /// It is being decided, and an answer will come; or it was withdrawn.
    UnderWay,
    /// This was said last, the hold of a held one included.
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
    /// Where its filter sits: the prefix is good for that certificate and module only.
    pub seat: Seat,
    /// The last denial batch that is durable; held while one is being written.
    pub denials: tokio::sync::Mutex<u64>,
    /// What it has let through that is not over.
    pub(super) open: Table,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: BTreeMap<u64, Remembered>,
    /// The highest counter that was asked or withdrawn.
    highest: Option<u64>,
    stream: Option<(CancellationToken, mpsc::Sender<FromControlPlane>)>,
    idle_since: Option<Instant>,
}

struct Remembered {
    entry: Arc<Entry>,
    over_since: Option<Instant>,
}

impl Prefix {
    /// A new prefix.
    #[must_use]
    pub fn new(bytes: [u8; 16], seat: Seat) -> Self {
        Self {
            bytes,
            seat,
            denials: tokio::sync::Mutex::new(0),
            open: Table::default(),
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on answers go to this stream. The one before is not read any
    /// more: its questions could come after their own withdrawals. The token is
    /// cancelled when this stream is replaced in turn.
    pub fn attach(&self, stream: mpsc::Sender<FromControlPlane>) -> CancellationToken {
        let replaced = CancellationToken::new();
        self.open.reconnected();
        let mut inner = self.lock();
        if let Some((before, _)) = inner.stream.replace((replaced.clone(), stream)) {
            before.cancel();
        }
        replaced
    }

    /// The stream ended, unless another has taken its place.
    pub fn detach(&self, replaced: &CancellationToken) {
        if !replaced.is_cancelled() {
            self.lock().stream = None;
        }
    }

    /// Whether somebody would hear an answer.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.lock()
            .stream
            .as_ref()
            .is_some_and(|(_, stream)| !stream.is_closed())
    }

    /// Says again and again that we are there, until it is dropped.
    pub async fn beat(&self, beat: impl Fn() -> Heartbeat) {
        let mut beats = tokio::time::interval(HEARTBEAT_EVERY);
        // After a standstill one is as good as all that are due.
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            self.send(Message::Heartbeat(beat()));
            self.send_ends();
        }
    }

    /// Takes a question in.
    pub fn ask(&self, counter: u64, digest: Hash, in_flight_max: usize) -> Asked {
        let mut inner = self.lock();
        if let Some(known) = inner.entries.get(&counter) {
            return match &*known.entry.stage.borrow() {
                Stage::Withdrawn => Asked::UnderWay,
                _ if known.entry.digest != digest => Asked::Conflict,
                Stage::Answered(answer) | Stage::Held(answer) => Asked::Answered(answer.clone()),
                _ => Asked::UnderWay,
            };
        }
        if self.open.is_full() {
            return Asked::Full;
        }
        let most = in_flight_max.min(REMEMBERED_MAX);
        if inner.entries.len() >= most {
            inner.forget_oldest_over(most / 2);
            if inner.entries.len() >= most {
                return Asked::Full;
            }
        }
        Asked::New(inner.insert(counter, digest, Stage::Evaluating))
    }

    /// Asks the proxy for a question's body, and again whenever the proxy asks.
    pub fn want_body(&self, entry: &Entry, wanted: BodyWanted) -> oneshot::Receiver<Vec<u8>> {
        let (give, given) = oneshot::channel();
        *entry.wanted() = Some((wanted.clone(), give));
        self.send(Message::BodyWanted(wanted));
        given
    }

    /// A question under way was asked again: what it waits for may have been lost.
    pub fn want_body_again(&self, counter: u64) {
        let wanted = self.entry(counter).and_then(|entry| {
            let wanted = entry.wanted();
            wanted.as_ref().map(|(wanted, _)| wanted.clone())
        });
        if let Some(wanted) = wanted {
            self.send(Message::BodyWanted(wanted));
        }
    }

    /// A body came. One that nobody waits for is dropped.
    pub fn body_came(&self, counter: u64, content: Vec<u8>) {
        let waiter = self.entry(counter).and_then(|entry| entry.wanted().take());
        if let Some((_, give)) = waiter {
            // Who gave up meanwhile has no use for it.
            let _gone = give.send(content);
        }
    }

    fn entry(&self, counter: u64) -> Option<Arc<Entry>> {
        let inner = self.lock();
        inner.entries.get(&counter).map(|known| known.entry.clone())
    }

    /// Takes a question back. True: it is closed and nothing was spent for it;
    /// false: it was, or may have been, decided.
    pub fn withdraw(&self, counter: u64) -> bool {
        let mut inner = self.lock();
        let Some(known) = inner.entries.get(&counter) else {
            if inner.highest.is_some_and(|highest| counter <= highest) {
                return false;
            }
            // Who takes back without end what never came is not remembered for it:
            // this one may be decided yet.
            if inner.entries.len() >= REMEMBERED_MAX {
                return false;
            }
            // It has not arrived, and when it does it stays closed.
            inner.insert(counter, [0; 32], Stage::Withdrawn);
            return true;
        };
        let mut closed = false;
        known.entry.stage.send_if_modified(|stage| match stage {
            Stage::Evaluating | Stage::Held(_) => {
                *stage = Stage::Withdrawn;
                closed = true;
                true
            }
            Stage::Committing { left } => {
                *left = true;
                true
            }
            Stage::Withdrawn => {
                closed = true;
                false
            }
            Stage::Answered(_) => false,
        });
        closed
    }

    /// Sends to the open stream, if there is one. A peer that does not read
    /// loses the message; it asks again.
    pub fn send(&self, message: Message) {
        let stream = self
            .lock()
            .stream
            .as_ref()
            .map(|(_, stream)| stream.clone());
        if let Some(stream) = stream
            && stream
                .try_send(FromControlPlane {
                    message: Some(message),
                })
                .is_err()
        {
            tracing::warn!(
                peer = self.seat.peer,
                "a message to a proxy was dropped: its stream is full or gone"
            );
        }
    }

    /// Keeps the answer and sends it.
    pub fn answer(&self, entry: &Entry, answer: Answer) {
        entry
            .stage
            .send_replace(Stage::Answered(Box::new(answer.clone())));
        self.send(Message::Answer(answer));
    }

    /// The id of a question under this prefix.
    #[must_use]
    pub fn id(&self, counter: u64) -> QuestionId {
        QuestionId {
            prefix: self.bytes.to_vec(),
            counter,
        }
    }

    /// Forgets what has been over for a minute. False when the prefix itself
    /// has been unused for that long.
    pub fn sweep(&self, now: Instant) -> bool {
        let mut inner = self.lock();
        inner.entries.retain(|_, known| {
            if !known.entry.stage.borrow().is_over() {
                return true;
            }
            now.duration_since(*known.over_since.get_or_insert(now)) < REMEMBERED_FOR
        });
        let used = inner
            .stream
            .as_ref()
            .is_some_and(|(_, stream)| !stream.is_closed())
            || inner
                .entries
                .values()
                .any(|known| !known.entry.stage.borrow().is_over());
        if used {
            inner.idle_since = None;
            return true;
        }
        now.duration_since(*inner.idle_since.get_or_insert(now)) < REMEMBERED_FOR
    }
}

impl Inner {
    fn insert(&mut self, counter: u64, digest: Hash, stage: Stage) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            digest,
            stage: watch::Sender::new(stage),
            wanted: Mutex::default(),
        });
        self.entries.insert(
            counter,
            Remembered {
                entry: entry.clone(),
                over_since: None,
            },
        );
        self.highest = self.highest.max(Some(counter));
        entry
    }

    /// Forgets the oldest that are over, down to `keep` entries.
    fn forget_oldest_over(&mut self, keep: usize) {
        let excess = self.entries.len().saturating_sub(keep);
        let over: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, known)| known.entry.stage.borrow().is_over())
            .map(|(counter, _)| *counter)
            .take(excess)
            .collect();
        for counter in over {
            self.entries.remove(&counter);
        }
    }
}

impl Entry {
    fn wanted(&self) -> MutexGuard<'_, Option<(BodyWanted, oneshot::Sender<Vec<u8>>)>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody waits for its body any more.
    pub fn body_given_up(&self) {
        self.wanted().take();
    }

    /// Where it stands, now and from now on.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// A commit begins. False when it was withdrawn before.
    pub fn begin_commit(&self) -> bool {
        self.change(|stage| match stage {
            Stage::Evaluating | Stage::Held(_) => Some(Stage::Committing { left: false }),
            _ => None,
        })
    }

    /// Whether its client left while it was being decided.
    pub(super) fn was_left(&self) -> bool {
        matches!(*self.stage.borrow(), Stage::Committing { left: true })
    }

    /// The hold is committed. False when the client left meanwhile.
    pub fn hold(&self, said: Answer) -> bool {
        self.change(|stage| match stage {
            Stage::Committing { left: false } => Some(Stage::Held(Box::new(said.clone()))),
            _ => None,
        })
    }

    fn change(&self, next: impl Fn(&Stage) -> Option<Stage>) -> bool {
        self.stage.send_if_modified(|stage| match next(stage) {
            Some(to) => {
                *stage = to;
                true
            }
            None => false,
        })
    }
}

#[cfg(test)]
mod tests;
