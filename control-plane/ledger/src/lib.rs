//! The one commit point: what was issued, spent, held and approved, and the
//! journal that makes it so.
//!
//! A caller verifies and evaluates, then [`Ledger::commit`]s a [`Command`]. The
//! store checks it again, makes it durable with whatever else is waiting, and only
//! then answers. Nothing that is read here shows what is not yet durable.
//! Approvals and discovered agents are read from a view that may be a moment
//! behind another replica; what rests on them is checked again by the commit.
//! The layout on disk is in `docs/reference/journal.md`.

mod embedded;
mod event;
mod lines;
pub mod model;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::watch;

use crate::{
    embedded::Embedded,
    model::{
        Approval, Command, Committed, Hash, Limits, Millis, Refused, SpentRecord, TokenRecord,
        TokenState,
    },
};
pub use crate::{
    embedded::{
        listing::{ListedEntry, ListingsState},
        recovery::{OpenError, OpenReport, TornTail},
    },
    event::EntryError,
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

enum Store {
    Embedded(Embedded),
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

    /// Commits one command: returns once its entry is durable, or says why it was
    /// not written. A future that is dropped early does not undo the commit.
    ///
    /// # Errors
    /// A [`Refused`]; nothing was spent by it.
    pub async fn commit(&self, command: Command) -> Result<Committed, Refused> {
        match &*self.store {
            Store::Embedded(store) => store.commit(command).await,
        }
    }

    /// An outstanding token, up to a few seconds past its end: compare `expires_ms`.
    ///
    /// # Errors
    /// [`Refused::Unavailable`] when the store can't be read.
    pub async fn token(&self, hash: &Hash) -> Result<Option<(TokenRecord, TokenState)>, Refused> {
        match &*self.store {
            Store::Embedded(store) => Ok(store.token(hash)),
        }
    }

    /// What became of a token's one use, until the token's end.
    ///
    /// # Errors
    /// [`Refused::Unavailable`] when the store can't be read.
    pub async fn spent(&self, hash: &Hash) -> Result<Option<SpentRecord>, Refused> {
        match &*self.store {
            Store::Embedded(store) => Ok(store.spent(hash)),
        }
    }

    /// An approval, open or recently ended.
    #[must_use]
    pub fn approval(&self, id: &str) -> Option<Approval> {
        match &*self.store {
            Store::Embedded(store) => store.approval(id),
        }
    }

    /// The newest approval of this digest that was approved, is not used and is in time.
    #[must_use]
    pub fn approved_unused(&self, digest: &Hash) -> Option<Approval> {
        match &*self.store {
            Store::Embedded(store) => store.approved_unused(digest),
        }
    }

    /// All approvals that are remembered, newest first.
    #[must_use]
    pub fn approvals(&self) -> Vec<Approval> {
        match &*self.store {
            Store::Embedded(store) => store.approvals(),
        }
    }

    /// Agents that showed valid evidence without being registered, with when they first did.
    #[must_use]
    pub fn discovered(&self) -> Vec<(String, Millis)> {
        match &*self.store {
            Store::Embedded(store) => store.discovered(),
        }
    }

    /// Changes whenever entries became durable; the value is how many there are,
    /// as far as is known here.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        match &*self.store {
            Store::Embedded(store) => store.subscribe(),
        }
    }

    /// Changes whenever an approval changed durably, or a token came to be held or
    /// ceased to, wherever that was committed.
    #[must_use]
    pub fn subscribe_approvals(&self) -> watch::Receiver<u64> {
        match &*self.store {
            Store::Embedded(store) => store.subscribe_approvals(),
        }
    }

    /// The number of durable entries and the leaf hash of the last, as far as is
    /// known here.
    #[must_use]
    pub fn head(&self) -> (u64, Hash) {
        match &*self.store {
            Store::Embedded(store) => store.head(),
        }
    }

    /// Ledger time: max(last, now), in milliseconds.
    #[must_use]
    pub fn now(&self) -> Millis {
        match &*self.store {
            Store::Embedded(store) => store.now(),
        }
    }

    /// The current epoch; each start has its own.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        match &*self.store {
            Store::Embedded(store) => store.epoch(),
        }
    }

    /// The journal's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        match &*self.store {
            Store::Embedded(store) => store.dir(),
        }
    }

    /// At most `limit` entries before index `before` (or the newest), newest first.
    /// Empty while listings are unavailable, see [`Ledger::listings_state`].
    #[must_use]
    pub fn listing(&self, before: Option<u64>, limit: usize) -> Vec<ListedEntry> {
        match &*self.store {
            Store::Embedded(store) => store.listing(before, limit),
        }
    }

    /// Whether listings can be read.
    #[must_use]
    pub fn listings_state(&self) -> ListingsState {
        match &*self.store {
            Store::Embedded(store) => store.listings_state(),
        }
    }

    /// Takes no more commands, commits what is queued, and releases the store.
    pub async fn shutdown(&self) {
        match &*self.store {
            Store::Embedded(store) => store.shutdown().await,
        }
    }
}
