//! The one commit point: what was issued, spent, held and approved, and the
//! journal that makes it so.
//!
//! A caller verifies and evaluates, then [`Ledger::commit`]s a [`Command`]. The
//! store checks it again, makes it durable with whatever else is waiting, and only
//! then answers. Nothing that is read here shows what is not yet durable.
//! Approvals and discovered agents are read from a view that may be a moment
//! behind another replica; what rests on them is checked again by the commit.
//! The layout on disk is in `docs/reference/journal.md`.

/// Whether a planted bug is switched on. Only tests plant any: elsewhere this is
/// constant, and `false`.
#[cfg(test)]
macro_rules! planted {
    ($bug:ident) => {
        $crate::sim::bugs::is_planted($crate::sim::bugs::Bug::$bug)
    };
}
#[cfg(not(test))]
macro_rules! planted {
    ($bug:ident) => {
        $crate::none_planted()
    };
}

#[cfg(not(test))]
const fn none_planted() -> bool {
    false
}

mod embedded;
mod event;
mod lines;
pub mod model;
pub mod postgres;
#[cfg(test)]
mod sim;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    embedded::Embedded,
    model::{
        Approval, Command, Committed, Hash, Limits, Millis, Refused, Rights, SpentRecord,
        Suspension, TokenRecord, TokenState,
    },
    postgres::{Postgres, PostgresError, PostgresOptions},
};
pub use crate::{
    embedded::{
        heads::KeptHead,
        listing::{ListedEntry, ListingsState, Probe, Probed, probe_listings},
        recovery::{OpenError, OpenReport, TornTail},
        snapshot::SnapshotEvery,
        tools,
    },
    event::EntryError,
};

/// Reads the time, in milliseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> Millis + Send + Sync>;
/// Called with what is wrong when the journal cannot be written; does not return
/// outside tests.
pub type Fatal = Arc<dyn Fn(&str) + Send + Sync>;

/// Called with how many segments have been read, and of how many.
pub type Progress = Arc<dyn Fn(usize, usize) + Send + Sync>;

/// Fills bytes at random: the log's name, and salts. In the product the system's own.
pub(crate) type Random = Box<dyn FnMut(&mut [u8]) + Send>;

/// How long a command may wait in the queue, unless set.
const QUEUE_WAIT: Duration = Duration::from_millis(1_500);

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
    /// Files outside the directory in which the journal's head is kept. A start
    /// compares with each before it writes anything, and refuses when the journal
    /// is behind one, differs from it, or is gone.
    pub head_copies: Vec<PathBuf>,
    /// Whether what is in `dir` is a backup that stands in for what was lost:
    /// head copies are overridden, open approvals end, and agents are suspended
    /// until [`model::Command::ConfirmRestore`].
    pub restored: bool,
    /// Whether to replay the whole journal, whatever snapshots there are.
    pub rebuild: bool,
    /// When snapshots are taken.
    pub snapshots: SnapshotEvery,
    /// How long a command may wait in the queue before it is refused: 1.5 s unless
    /// set. What takes rights away is never refused for that.
    pub queue_wait: Duration,
    /// Tries whether listings can be opened, in another process. `None`: they are
    /// opened untried.
    pub probe: Option<Probe>,
    /// Told how many of how many segments have been read, while a start reads them.
    pub progress: Option<Progress>,
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
            head_copies: Vec::new(),
            restored: false,
            rebuild: false,
            snapshots: SnapshotEvery::default(),
            queue_wait: QUEUE_WAIT,
            probe: None,
            progress: None,
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

enum Store {
    Embedded(Embedded),
    Postgres(Postgres),
}

/// A handle to the ledger; clones share it. It works until the last is dropped or
/// [`Ledger::shutdown`] is called.
#[derive(Clone)]
pub struct Ledger {
    store: Arc<Store>,
}

impl Ledger {
    /// Locks and recovers the journal, begins a new epoch, and starts the thread
    /// that owns it. Blocks while it reads the journal.
    ///
    /// # Errors
    /// An [`OpenError`] that says what was found and what to do.
    pub fn open(options: Options) -> Result<(Self, OpenReport), OpenError> {
        let (embedded, report) = Embedded::open(options)?;
        let store = Arc::new(Store::Embedded(embedded));
        Ok((Self { store }, report))
    }

    /// Opens the log in a PostgreSQL database, which other replicas may share, and
    /// starts the tasks that work on it.
    ///
    /// # Errors
    /// A [`PostgresError`] that says what was found and what to do.
    pub async fn open_postgres(
        options: PostgresOptions,
    ) -> Result<(Self, OpenReport), PostgresError> {
        let (postgres, report) = Postgres::open(options).await?;
        let store = Arc::new(Store::Postgres(postgres));
        Ok((Self { store }, report))
    }

    /// Commits one command: returns once its entry is durable, or says why it was
    /// not written. A future that is dropped early does not undo the commit.
    ///
    /// # Errors
    /// A [`Refused`]; nothing was spent by it, [`Refused::Unknown`] apart.
    pub async fn commit(&self, command: Command) -> Result<Committed, Refused> {
        match &*self.store {
            Store::Embedded(store) => store.commit(command).await,
            Store::Postgres(store) => store.commit(command).await,
        }
    }

    /// Queues these together and answers each in its place: they are written in one
    /// group, or transaction, where they fit into it, and each is decided as by
    /// [`Ledger::commit`]. What the queue has no room for is refused whole.
    pub async fn commit_all(&self, commands: Vec<Command>) -> Vec<Result<Committed, Refused>> {
        if commands.is_empty() {
            return Vec::new();
        }
        match &*self.store {
            Store::Embedded(store) => store.commit_all(commands).await,
            Store::Postgres(store) => store.commit_all(commands).await,
        }
    }

    /// An outstanding token, up to a few seconds past its end: compare `expires_ms`. A
    /// grant is none.
    ///
    /// # Errors
    /// [`Refused::Unavailable`] when the store can't be read.
    pub async fn token(
        &self,
        hash: &Hash,
    ) -> Result<Option<(Arc<TokenRecord>, TokenState)>, Refused> {
        let found = self.outstanding(hash).await?;
        Ok(found.filter(|(token, _)| token.grant.is_none()))
    }

    /// A grant that is outstanding, as [`Ledger::token`].
    ///
    /// # Errors
    /// [`Refused::Unavailable`] when the store can't be read.
    pub async fn grant(&self, hash: &Hash) -> Result<Option<Arc<TokenRecord>>, Refused> {
        let found = self.outstanding(hash).await?;
        let grant = found.map(|(token, _)| token);
        Ok(grant.filter(|token| token.grant.is_some()))
    }

    async fn outstanding(
        &self,
        hash: &Hash,
    ) -> Result<Option<(Arc<TokenRecord>, TokenState)>, Refused> {
        match &*self.store {
            Store::Embedded(store) => Ok(store.token(hash)),
            Store::Postgres(store) => Ok(store
                .token(hash)
                .await?
                .map(|(token, state)| (Arc::new(token), state))),
        }
    }

    /// What became of a token's one use, until the token's end.
    ///
    /// # Errors
    /// [`Refused::Unavailable`] when the store can't be read.
    pub async fn spent(&self, hash: &Hash) -> Result<Option<SpentRecord>, Refused> {
        match &*self.store {
            Store::Embedded(store) => Ok(store.spent(hash)),
            Store::Postgres(store) => store.spent(hash).await,
        }
    }

    /// An approval, open or recently ended.
    #[must_use]
    pub fn approval(&self, id: &str) -> Option<Approval> {
        match &*self.store {
            Store::Embedded(store) => store.approval(id),
            Store::Postgres(store) => store.approval(id),
        }
    }

    /// The newest approval of this digest that was approved, is not used and is in time.
    #[must_use]
    pub fn approved_unused(&self, digest: &Hash) -> Option<Approval> {
        match &*self.store {
            Store::Embedded(store) => store.approved_unused(digest),
            Store::Postgres(store) => store.approved_unused(digest),
        }
    }

    /// All approvals that are remembered, newest first.
    #[must_use]
    pub fn approvals(&self) -> Vec<Approval> {
        match &*self.store {
            Store::Embedded(store) => store.approvals(),
            Store::Postgres(store) => store.approvals(),
        }
    }

    /// Agents that showed valid evidence without being registered, with when they first did.
    #[must_use]
    pub fn discovered(&self) -> Vec<(String, Millis)> {
        match &*self.store {
            Store::Embedded(store) => store.discovered(),
            Store::Postgres(store) => store.discovered(),
        }
    }

    /// The registry and the stops. What is granted is checked against them again by
    /// the commit.
    #[must_use]
    pub fn rights(&self) -> Arc<Rights> {
        match &*self.store {
            Store::Embedded(store) => store.rights(),
            Store::Postgres(store) => store.rights(),
        }
    }

    /// What agents wait for an admin to confirm, if they do: until then whatever
    /// would give them something is refused with [`Refused::Suspended`].
    #[must_use]
    pub fn suspended(&self) -> Option<Suspension> {
        match &*self.store {
            Store::Embedded(store) => store.suspended(),
            Store::Postgres(store) => store.suspended(),
        }
    }

    /// Changes whenever entries became durable; the value is how many there are,
    /// as far as is known here.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        match &*self.store {
            Store::Embedded(store) => store.subscribe(),
            Store::Postgres(store) => store.subscribe(),
        }
    }

    /// Changes whenever an approval changed durably, or a token came to be held or
    /// ceased to, wherever that was committed.
    #[must_use]
    pub fn subscribe_approvals(&self) -> watch::Receiver<u64> {
        match &*self.store {
            Store::Embedded(store) => store.subscribe_approvals(),
            Store::Postgres(store) => store.subscribe_approvals(),
        }
    }

    /// The number of durable entries and the leaf hash of the last, as far as is
    /// known here.
    #[must_use]
    pub fn head(&self) -> (u64, Hash) {
        match &*self.store {
            Store::Embedded(store) => store.head(),
            Store::Postgres(store) => store.head(),
        }
    }

    /// Ledger time: max(last, now), in milliseconds.
    #[must_use]
    pub fn now(&self) -> Millis {
        match &*self.store {
            Store::Embedded(store) => store.now(),
            Store::Postgres(store) => store.now(),
        }
    }

    /// The current epoch. Each start in files has its own; with PostgreSQL it
    /// changes with the server's timeline.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        match &*self.store {
            Store::Embedded(store) => store.epoch(),
            Store::Postgres(store) => store.epoch(),
        }
    }

    /// When the current epoch was first seen to have begun, in milliseconds of ledger
    /// time: what is older and unknown may have been used and forgotten. `None` where
    /// it began with this process, as it does in files.
    #[must_use]
    pub fn epoch_since(&self) -> Option<Millis> {
        match &*self.store {
            Store::Embedded(_) => None,
            Store::Postgres(store) => Some(store.stands_since()),
        }
    }

    /// Whether there is no room for the journal to grow: then only what takes rights
    /// away is taken, and everything else refused with [`Refused::Full`], until there
    /// is. A database says so by itself, when it is asked to commit.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match &*self.store {
            Store::Embedded(store) => store.is_full(),
            Store::Postgres(_) => false,
        }
    }

    /// The journal's directory; `None` when it is in a database.
    #[must_use]
    pub fn dir(&self) -> Option<&Path> {
        match &*self.store {
            Store::Embedded(store) => Some(store.dir()),
            Store::Postgres(_) => None,
        }
    }

    /// At most `limit` entries before index `before` (or the newest), newest first.
    /// Empty while listings are unavailable, see [`Ledger::listings_state`].
    #[must_use]
    pub fn listing(&self, before: Option<u64>, limit: usize) -> Vec<ListedEntry> {
        match &*self.store {
            Store::Embedded(store) => store.listing(before, limit),
            Store::Postgres(store) => store.listing(before, limit),
        }
    }

    /// Keeps when agents were last seen, the later time of each, and gives what was
    /// kept in the last `within` milliseconds of the store's own clock, by other replicas
    /// too, whenever it was that an agent was seen; [`Millis::MAX`] gives all there is. It
    /// stands beside the log: no decision reads it, and it can be lost. Files have one
    /// process, which is given all or nothing.
    ///
    /// # Errors
    /// [`Refused::Unavailable`] when the store does not take it now; files take it once
    /// listings are open.
    pub async fn trade_seen(
        &self,
        seen: Vec<(String, Millis)>,
        within: Millis,
    ) -> Result<Vec<(String, Millis)>, Refused> {
        match &*self.store {
            Store::Embedded(store) => store.trade_seen(seen, within).await,
            Store::Postgres(store) => store.trade_seen(seen, within).await,
        }
    }

    /// Whether listings can be read.
    #[must_use]
    pub fn listings_state(&self) -> ListingsState {
        match &*self.store {
            Store::Embedded(store) => store.listings_state(),
            Store::Postgres(_) => ListingsState::Ready,
        }
    }

    /// Takes no more commands, commits what is queued, and releases the store.
    pub async fn shutdown(&self) {
        match &*self.store {
            Store::Embedded(store) => store.shutdown().await,
            Store::Postgres(store) => store.shutdown().await,
        }
    }
}
