//! The one commit point: what was issued, spent, held and approved, and the
//! journal that makes it so.
//!
//! A caller verifies and evaluates, then [`Ledger::commit`]s a [`Command`]. One
//! thread checks it again, writes it with whatever else is queued, and answers
//! once it is durable. Nothing that is read here shows what is not yet durable.
//! The layout on disk is in `docs/reference/journal.md`.

mod check;
mod event;
mod journal;
mod lines;
mod listing;
pub mod model;
mod queue;
mod recovery;
mod state;
mod tally;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::Instant,
};

use tokio::sync::watch;

use crate::{
    event::Entry,
    listing::Listings,
    model::{
        Approval, ApprovalState, Command, Committed, Hash, Limits, Millis, Refused, SpentRecord,
        TokenRecord, TokenState,
    },
    queue::Queue,
    state::{Stamp, State},
    writer::Writer,
};
pub use crate::{
    event::EntryError,
    listing::{ListedEntry, ListingsState},
    recovery::{OpenError, OpenReport, TornTail},
};

/// Reads the time, in milliseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> Millis + Send + Sync>;
/// Called with what is wrong when the journal cannot be written; does not return
/// outside tests.
pub type Fatal = Arc<dyn Fn(&str) + Send + Sync>;

/// How to open a ledger; [`Options::new`] has the defaults.
#[derive(Clone)]
pub struct Options {
    /// The journal's directory: the audit directory.
    pub dir: PathBuf,
    /// Where listings are kept; what is in there can be thrown away. `None`: no listings.
    pub listings: Option<PathBuf>,
    /// Named limits.
    pub limits: Limits,
    /// The clock. Ledger time is max(last, now).
    pub clock: Clock,
    /// Commands that may wait: 65,536 unless set.
    pub queue_entries: usize,
    /// Bytes of commands that may wait: 256 MiB unless set.
    pub queue_bytes: usize,
    /// Whether to begin a new journal in a directory that holds other files. One
    /// that does not exist, or is empty, is always begun.
    pub init: bool,
    /// Size of new segments in bytes, a multiple of 512; 8 MiB unless set.
    pub segment_len: usize,
    /// What to do when the journal cannot be written. The process must end,
    /// since it is unknown what the disk holds: logs and aborts unless set.
    pub on_fatal: Fatal,
}

impl Options {
    /// The defaults, for a journal in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, clock: Clock) -> Self {
        Self {
            dir: dir.into(),
            listings: None,
            limits: Limits::default(),
            clock,
            queue_entries: 65_536,
            queue_bytes: 256 * 1024 * 1024,
            init: false,
            segment_len: audit::segment::SEGMENT_LEN,
            on_fatal: Arc::new(|what| {
                tracing::error!(
                    what,
                    "the journal failed; ending, since nothing more may be promised"
                );
                std::process::abort();
            }),
        }
    }
}

/// What the ledger's thread shows to everybody else.
pub(crate) struct Shared {
    published: RwLock<State>,
    groups: watch::Sender<u64>,
    approvals: watch::Sender<u64>,
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.published
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a durable group.
    pub(crate) fn publish(&self, applied: &[(Stamp, Entry)]) {
        let mut state = self
            .published
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let before = state.holds_changed;
        for (stamp, entry) in applied {
            state.apply(*stamp, entry);
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
    dir: PathBuf,
    ended: watch::Receiver<bool>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// A handle to the ledger; clones share it. The thread ends when the last is
/// dropped or [`Ledger::shutdown`] is called.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

impl Ledger {
    /// Locks and recovers the journal, begins a new epoch, and starts the thread.
    /// Blocks while it reads the journal.
    ///
    /// # Errors
    /// An [`OpenError`] that says what was found and what to do.
    pub fn open(options: Options) -> Result<(Self, OpenReport), OpenError> {
        let recovered = recovery::open(&options)?;
        let entries = recovered.published.entries;
        let (groups, followed) = watch::channel(entries);
        let shared = Arc::new(Shared {
            published: RwLock::new(recovered.published),
            groups,
            approvals: watch::channel(entries).0,
        });
        let queue = Arc::new(Queue::new(options.queue_entries, options.queue_bytes));
        let writer = Writer {
            queue: Arc::clone(&queue),
            shared: Arc::clone(&shared),
            journal: recovered.journal,
            state: recovered.working,
            limits: options.limits,
            clock: Arc::clone(&options.clock),
            fatal: options.on_fatal,
            spare_tried: Instant::now(),
        };
        let (end, ended) = watch::channel(false);
        std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || {
                writer.run();
                end.send_replace(true);
            })
            .map_err(|error| OpenError::Io {
                what: "start the ledger's thread".into(),
                error,
            })?;
        let listings = Listings::start(options.listings, &options.dir, followed);
        let inner = Inner {
            queue,
            shared,
            listings,
            clock: options.clock,
            dir: options.dir,
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
    /// A [`Refused`]; nothing was spent by it.
    pub async fn commit(&self, command: Command) -> Result<Committed, Refused> {
        let answer = self.inner.queue.push(command)?;
        if let Ok(answer) = answer.await {
            return answer;
        }
        // Gone without an answer: the journal failed, and what was written is
        // unknown. Nobody is told anything before that has ended the process.
        self.ended().await;
        Err(Refused::Unavailable)
    }

    /// An outstanding token, up to a few seconds past its end: compare `expires_ms`.
    #[must_use]
    pub fn token(&self, hash: &Hash) -> Option<(TokenRecord, TokenState)> {
        let state = self.inner.shared.read();
        state
            .token(hash)
            .map(|token| (token.record.clone(), token.state()))
    }

    /// What became of a token's one use, until the token's end.
    #[must_use]
    pub fn spent(&self, hash: &Hash) -> Option<SpentRecord> {
        self.inner.shared.read().spent(hash).cloned()
    }

    /// An approval, open or recently ended.
    #[must_use]
    pub fn approval(&self, id: &str) -> Option<Approval> {
        self.inner.shared.read().approval(id).cloned()
    }

    /// The newest approval of this digest that was approved, is not used and is in time.
    #[must_use]
    pub fn approved_unused(&self, digest: &Hash) -> Option<Approval> {
        let now = self.now();
        let state = self.inner.shared.read();
        let usable = |a: &&Approval| a.state == ApprovalState::Approved && a.expires_ms > now;
        state.open_with(digest).rev().find(usable).cloned()
    }

    /// All approvals that are remembered, newest first.
    #[must_use]
    pub fn approvals(&self) -> Vec<Approval> {
        let mut all: Vec<Approval> = self.inner.shared.read().approvals().cloned().collect();
        all.sort_by(|a, b| {
            b.created_ms
                .cmp(&a.created_ms)
                .then_with(|| a.id.cmp(&b.id))
        });
        all
    }

    /// Agents that showed valid evidence without being registered, with when they first did.
    #[must_use]
    pub fn discovered(&self) -> Vec<(String, Millis)> {
        self.inner
            .shared
            .read()
            .discovered()
            .iter()
            .map(|(agent, at)| (agent.clone(), *at))
            .collect()
    }

    /// Changes whenever a group became durable; the value is the number of entries.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.shared.groups.subscribe()
    }

    /// Changes whenever a group became durable in which an approval changed, or a
    /// token came to be held or ceased to; the value is the number of entries.
    #[must_use]
    pub fn subscribe_approvals(&self) -> watch::Receiver<u64> {
        self.inner.shared.approvals.subscribe()
    }

    /// The number of durable entries and the leaf hash of the last.
    #[must_use]
    pub fn head(&self) -> (u64, Hash) {
        let state = self.inner.shared.read();
        (state.entries, state.head)
    }

    /// Ledger time: max(last, now), in milliseconds.
    #[must_use]
    pub fn now(&self) -> Millis {
        let last = self.inner.shared.read().time_ms;
        last.max((self.inner.clock)())
    }

    /// The current epoch; each start has its own.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.inner.shared.read().epoch
    }

    /// The journal's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// At most `limit` entries before index `before` (or the newest), newest first.
    /// Empty while listings are unavailable, see [`Ledger::listings_state`].
    #[must_use]
    pub fn listing(&self, before: Option<u64>, limit: usize) -> Vec<ListedEntry> {
        self.inner.listings.read(before, limit)
    }

    /// Whether listings can be read.
    #[must_use]
    pub fn listings_state(&self) -> ListingsState {
        self.inner.listings.state()
    }

    /// Takes no more commands, commits what is queued, and releases the journal.
    pub async fn shutdown(&self) {
        self.inner.queue.close();
        self.ended().await;
    }

    async fn ended(&self) {
        let mut ended = self.inner.ended.clone();
        // An error means that the thread is gone, which is what is waited for.
        let _ = ended.wait_for(|ended| *ended).await;
    }
}
