//! The journal in files on one machine: one thread owns it.
//!
//! A caller queues a [`Command`]; the thread checks it again, writes it with
//! whatever else is queued, and answers once it is durable. Nothing that is read
//! here shows what is not yet durable.

pub(crate) mod answers;
mod check;
pub(crate) mod disk;
pub(crate) mod heads;
pub(crate) mod journal;
pub(crate) mod listing;
pub(crate) mod queue;
pub(crate) mod recovery;
mod replay;
pub(crate) mod snapshot;
pub(crate) mod snapshots;
mod sources;
pub(crate) mod spare;
pub(crate) mod state;
mod tally;
pub mod tools;
pub(crate) mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    Clock, Options, Random,
    embedded::{
        answers::Answers,
        disk::{Disk, RealDisk},
        heads::{Keeper, KeptHead},
        listing::{ListedEntry, Listings, ListingsState},
        queue::Queue,
        recovery::{OpenError, OpenReport},
        snapshots::Snapshots,
        spare::Spare,
        state::{Made, Stamp, State},
        writer::Writer,
    },
    event::Entry,
    model::{
        Approval, ApprovalState, Command, Committed, Given, Hash, Millis, Refused, Rights,
        SpentRecord, Suspension, TokenRecord, TokenState,
    },
};

/// What the ledger's thread shows to everybody else.
pub(crate) struct Shared {
    published: RwLock<State>,
    groups: watch::Sender<u64>,
    approvals: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn new(published: State) -> Self {
        let entries = published.entries;
        Self {
            published: RwLock::new(published),
            groups: watch::channel(entries).0,
            approvals: watch::channel(entries).0,
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.published
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the journal has come, for keeping elsewhere.
    pub(crate) fn kept_head(&self, log: String) -> KeptHead {
        let state = self.read();
        KeptHead::new(log, state.entries, state.head, state.epoch, state.time_ms)
    }

    /// Applies a durable group.
    pub(crate) fn publish(&self, applied: &mut [(Stamp, Entry, Made)]) {
        let mut state = self
            .published
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let before = state.holds_changed;
        for (stamp, entry, made) in applied {
            state.apply_with(*stamp, entry, made);
        }
        let (entries, changed) = (state.entries, state.holds_changed != before);
        drop(state);
        self.groups.send_replace(entries);
        if changed {
            self.approvals.send_replace(entries);
        }
    }
}

struct Inner {
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    listings: Listings,
    clock: Clock,
    queue_wait: Duration,
    dir: PathBuf,
    spare: Arc<Spare>,
    ended: watch::Receiver<bool>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// A handle to the ledger; clones share it. The thread ends when the last is
/// dropped or [`Embedded::shutdown`] is called.
#[derive(Clone)]
pub(crate) struct Embedded {
    inner: Arc<Inner>,
}

impl Embedded {
    /// Locks and recovers the journal, begins a new epoch, and starts the thread.
    /// Blocks while it reads the journal.
    ///
    /// # Errors
    /// An [`OpenError`] that says what was found and what to do.
    pub(crate) fn open(options: Options) -> Result<(Self, OpenReport), OpenError> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(&options.dir));
        let mut random: Random = Box::new(|bytes| rand::fill(bytes));
        let recovered = recovery::open(&options, &disk, &mut random)?;
        let shared = Arc::new(Shared::new(recovered.published));
        let followed = shared.groups.subscribe();
        let queue = Arc::new(Queue::new(options.queue_entries, options.queue_bytes));
        let keeper = Keeper::start(options.head_copies, recovered.log, Arc::clone(&shared))
            .map_err(|error| OpenError::Io {
                what: "start the thread that keeps heads".into(),
                error,
            })?;
        let woken = Arc::clone(&queue);
        let snapshots = Snapshots::new(
            Arc::clone(&disk),
            options.snapshots,
            recovered.snapshots,
            recovered.report.entries,
            Arc::new(move || woken.wake()),
        );
        let spare = recovered.journal.spare();
        let writer = Writer {
            snapshots,
            shared: Arc::clone(&shared),
            journal: recovered.journal,
            state: recovered.working,
            limits: options.limits,
            clock: Arc::clone(&options.clock),
            spare_tried: Instant::now(),
            group: writer::Group::default(),
            answers: Answers::new(),
        };
        let (end, ended) = watch::channel(false);
        let (jobs, fatal) = (Arc::clone(&queue), options.on_fatal);
        std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || {
                writer::run(writer, &jobs, &fatal);
                // Nothing is written any more: what is kept now is the last.
                if let Some(keeper) = keeper {
                    keeper.finish();
                }
                end.send_replace(true);
            })
            .map_err(|error| OpenError::Io {
                what: "start the ledger's thread".into(),
                error,
            })?;
        let listings = Listings::start(
            options.listings,
            &options.dir,
            followed,
            Arc::clone(&options.clock),
            options.probe,
        );
        let inner = Inner {
            queue,
            shared,
            listings,
            clock: options.clock,
            queue_wait: options.queue_wait,
            dir: options.dir,
            spare,
            ended,
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            recovered.report,
        ))
    }

    /// Commits one command: returns once its entry is durable, or says why it was
    /// not written. A future that is dropped early does not undo the commit.
    ///
    /// # Errors
    /// A [`Refused`]; nothing was spent by it, [`Refused::Unknown`] apart.
    pub(crate) async fn commit(&self, command: Command) -> Result<Committed, Refused> {
        let until = Instant::now() + self.inner.queue_wait;
        let answer = self.inner.queue.push(command, until)?;
        self.answered(answer).await
    }

    /// As [`crate::Ledger::commit_all`].
    pub(crate) async fn commit_all(
        &self,
        commands: Vec<Command>,
    ) -> Vec<Result<Committed, Refused>> {
        let count = commands.len();
        let until = Instant::now() + self.inner.queue_wait;
        let answers = match self.inner.queue.push_all(commands, until) {
            Ok(answers) => answers,
            Err(refused) => return vec![Err(refused); count],
        };
        let mut all = Vec::with_capacity(count);
        for answer in answers {
            all.push(self.answered(answer).await);
        }
        all
    }

    async fn answered(&self, answer: queue::Waited) -> Result<Committed, Refused> {
        if let Ok(answer) = answer.await {
            return answer;
        }
        // Gone without an answer: the journal failed, and nobody is told anything
        // before that has ended the process; or the runtime that was to tell it is
        // gone. What was written is not known here.
        let _ = tokio::time::timeout(self.inner.queue_wait, self.ended()).await;
        Err(Refused::Unknown)
    }

    /// An outstanding token, up to a few seconds past its end: compare `expires_ms`.
    pub(crate) fn token(&self, hash: &Hash) -> Option<(Arc<TokenRecord>, TokenState)> {
        let state = self.inner.shared.read();
        state
            .token(hash)
            .map(|token| (Arc::clone(&token.record), token.state()))
    }

    /// What became of a token's one use, until the token's end.
    pub(crate) fn spent(&self, hash: &Hash) -> Option<SpentRecord> {
        self.inner.shared.read().spent(hash)
    }

    /// An approval, open or recently ended.
    pub(crate) fn approval(&self, id: &str) -> Option<Approval> {
        self.inner.shared.read().approval(id).cloned()
    }

    /// The newest approval of this digest that was approved, is not used, in time and not
    /// void since.
    pub(crate) fn approved_unused(&self, digest: &Hash) -> Option<Approval> {
        let now = self.now();
        let state = self.inner.shared.read();
        let usable = |a: &&Approval| {
            a.state == ApprovalState::Approved
                && a.expires_ms > now
                && state.rights.bar(&Given::from(*a), now).is_none()
        };
        state.open_with(digest).rev().find(usable).cloned()
    }

    /// All approvals that are remembered, newest first.
    pub(crate) fn approvals(&self) -> Vec<Approval> {
        let mut all: Vec<Approval> = self.inner.shared.read().approvals().cloned().collect();
        all.sort_by(|a, b| {
            b.created_ms
                .cmp(&a.created_ms)
                .then_with(|| a.id.cmp(&b.id))
        });
        all
    }

    /// Agents that showed valid evidence without being registered, with when they first did.
    pub(crate) fn discovered(&self) -> Vec<(String, Millis)> {
        self.inner
            .shared
            .read()
            .discovered()
            .iter()
            .map(|(agent, at)| (agent.clone(), *at))
            .collect()
    }

    /// The registry and the stops.
    pub(crate) fn rights(&self) -> Arc<Rights> {
        Arc::clone(&self.inner.shared.read().rights)
    }

    /// What agents wait for an admin to confirm.
    pub(crate) fn suspended(&self) -> Option<Suspension> {
        self.inner.shared.read().suspended.clone()
    }

    /// Changes whenever a group became durable; the value is the number of entries.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.shared.groups.subscribe()
    }

    /// Changes whenever a group became durable in which an approval changed, or a
    /// token came to be held or ceased to; the value is the number of entries.
    pub(crate) fn subscribe_approvals(&self) -> watch::Receiver<u64> {
        self.inner.shared.approvals.subscribe()
    }

    /// The number of durable entries and the leaf hash of the last.
    pub(crate) fn head(&self) -> (u64, Hash) {
        let state = self.inner.shared.read();
        (state.entries, state.head)
    }

    /// Ledger time: max(last, now), in milliseconds.
    pub(crate) fn now(&self) -> Millis {
        let last = self.inner.shared.read().time_ms;
        last.max((self.inner.clock)())
    }

    /// The current epoch; each start has its own.
    pub(crate) fn epoch(&self) -> u64 {
        self.inner.shared.read().epoch
    }

    /// Whether no further segment can be made: then only what takes rights away is taken.
    pub(crate) fn is_full(&self) -> bool {
        self.inner.spare.is_missing()
    }

    /// The journal's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// At most `limit` entries before index `before` (or the newest), newest first.
    /// Empty while listings are unavailable, see [`Embedded::listings_state`].
    pub(crate) fn listing(&self, before: Option<u64>, limit: usize) -> Vec<ListedEntry> {
        self.inner.listings.read(before, limit)
    }

    /// Keeps when agents were last seen. Nobody else keeps any: all are given, or none.
    pub(crate) async fn trade_seen(
        &self,
        seen: Vec<(String, Millis)>,
        within: Millis,
    ) -> Result<Vec<(String, Millis)>, Refused> {
        let all = within == Millis::MAX;
        let traded = self.inner.listings.trade_seen(seen, all).await;
        traded.ok_or(Refused::Unavailable)
    }

    /// Whether listings can be read.
    pub(crate) fn listings_state(&self) -> ListingsState {
        self.inner.listings.state()
    }

    /// Takes no more commands, commits what is queued, and releases the journal.
    pub(crate) async fn shutdown(&self) {
        self.inner.queue.close();
        self.ended().await;
    }

    async fn ended(&self) {
        let mut ended = self.inner.ended.clone();
        // An error means that the thread is gone, which is what is waited for.
        let _ = ended.wait_for(|ended| *ended).await;
    }
}
