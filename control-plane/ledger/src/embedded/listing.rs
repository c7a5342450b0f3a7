//! Listings for pages: what can be thrown away and rebuilt.
//!
//! A thread of its own copies durable entries from the journal into sled. No
//! decision reads it, none waits for it, and it may fail or be damaged: then it
//! is set aside and built anew, and if that fails too there are no listings.
//!
//! Opening a damaged one can panic, hang or take all memory. So another process
//! tries first, where [`Probe`] says how.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use audit::{
    group::Sketch,
    reader::{Position, ReadError, Reader},
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{Clock, event::Entry, model::Millis};

/// Entries that are listed; older ones are in the journal only.
const LISTED: u64 = 100_000;
// Behind every index that there can be.
const POSITION: &[u8] = b"\xff\xff\xff\xff\xff\xff\xff\xffposition";
/// A tree beside that of entries: when agents were last seen.
const SEEN: &str = "seen";
const CACHE: u64 = 16 * 1024 * 1024;

/// One entry in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedEntry {
    /// Its index.
    pub index: u64,
    /// Its time, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Its kind.
    pub kind: String,
    /// The agent that it is about.
    pub agent: Option<String>,
}

impl ListedEntry {
    fn of(line: &Sketch<'_>) -> Self {
        Self {
            index: line.index,
            time_ms: line.time_ms,
            kind: line.kind.to_owned(),
            agent: Entry::agent_in(line.bytes),
        }
    }
}

/// Whether listings can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListingsState {
    /// No directory was given.
    Off,
    /// They are being opened.
    Opening,
    /// They can be read, and follow the journal.
    Ready,
    /// They failed; everything else goes on.
    Failed,
}

enum Held {
    Off,
    Opening,
    Ready(sled::Db),
    Failed,
}

/// What trying to open listings in another process came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probed {
    /// They opened, and all of them could be read.
    Sound,
    /// They did not, or not in time.
    Damaged(String),
    /// It could not be tried.
    Unknown(String),
}

/// Tries to open the listings in a directory, in another process, by
/// [`probe_listings`]: within limits of time and memory.
pub type Probe = Arc<dyn Fn(&Path) -> Probed + Send + Sync>;

/// Opens the listings in `dir` and reads all of them: what the process of a
/// [`Probe`] does. It may panic, not return, or take any amount of memory.
///
/// # Errors
/// What is wrong with them.
pub fn probe_listings(dir: &Path) -> Result<(), String> {
    let all = || -> Result<(), ListingError> {
        let db = open_sled(dir)?;
        position(&db)?;
        for pair in db.iter() {
            let (key, value) = pair?;
            if key.as_ref() != POSITION {
                serde_json::from_slice::<ListedEntry>(&value)?;
            }
        }
        for name in db.tree_names() {
            for pair in &db.open_tree(name)? {
                pair?;
            }
        }
        Ok(())
    };
    all().map_err(|error| error.to_string())
}

/// Damaged listings that are kept for whoever wants to know.
const DAMAGED_KEPT: usize = 2;
const DAMAGED: &str = ".damaged-";
/// Entries that are written together.
const AT_ONCE: usize = 1_024;
/// How long new entries gather before they are listed.
const REST: Duration = Duration::from_millis(200);

/// A handle on the projection.
pub(crate) struct Listings {
    held: Arc<RwLock<Held>>,
}

/// What went wrong with the projection; never with the journal's writer.
#[derive(Debug, thiserror::Error)]
enum ListingError {
    #[error(transparent)]
    Sled(#[from] sled::Error),
    #[error(transparent)]
    Journal(#[from] ReadError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Value(#[from] serde_json::Error),
    #[error("it is ahead of the journal")]
    Ahead,
    #[error("another process could not open it: {0}")]
    Damaged(String),
    #[error("whether it can be opened could not be tried: {0}")]
    Unprobed(String),
    #[error("it panicked")]
    Panicked,
}

impl Listings {
    /// Starts the thread. It ends when the ledger does.
    pub(crate) fn start(
        dir: Option<PathBuf>,
        journal: &Path,
        followed: watch::Receiver<u64>,
        clock: Clock,
        probe: Option<Probe>,
    ) -> Self {
        let Some(dir) = dir else {
            return Self {
                held: Arc::new(RwLock::new(Held::Off)),
            };
        };
        let held = Arc::new(RwLock::new(Held::Opening));
        let projection = Projection {
            dir,
            journal: journal.to_owned(),
            held: Arc::clone(&held),
            followed,
            clock,
            probe,
        };
        let started = std::thread::Builder::new()
            .name("listings".into())
            .spawn(move || projection.run());
        if let Err(error) = started {
            tracing::warn!(%error, "listings are unavailable");
            set(&held, Held::Failed);
        }
        Self { held }
    }

    pub(crate) fn state(&self) -> ListingsState {
        match *self.held.read().unwrap_or_else(PoisonError::into_inner) {
            Held::Off => ListingsState::Off,
            Held::Opening => ListingsState::Opening,
            Held::Ready(_) => ListingsState::Ready,
            Held::Failed => ListingsState::Failed,
        }
    }

    pub(crate) fn read(&self, before: Option<u64>, limit: usize) -> Vec<ListedEntry> {
        let db = match &*self.held.read().unwrap_or_else(PoisonError::into_inner) {
            Held::Ready(db) => db.clone(),
            _ => return Vec::new(),
        };
        let read = guarded(|| {
            let end = before.unwrap_or(u64::MAX).to_be_bytes();
            let newest_first = db.range(..end).rev().take(limit);
            newest_first
                .map(|pair| Ok(serde_json::from_slice(&pair?.1)?))
                .collect()
        });
        read.unwrap_or_else(|error| {
            tracing::warn!(%error, "listings are unavailable");
            set(&self.held, Held::Failed);
            Vec::new()
        })
    }
}

impl Listings {
    /// Keeps when agents were last seen, and gives all that is kept where that is asked for.
    /// `None`: it can't be kept now. Without a directory there is nothing to keep it in.
    pub(crate) async fn trade_seen(
        &self,
        seen: Vec<(String, Millis)>,
        all: bool,
    ) -> Option<Vec<(String, Millis)>> {
        let db = match &*self.held.read().unwrap_or_else(PoisonError::into_inner) {
            Held::Off => return Some(Vec::new()),
            Held::Ready(db) => db.clone(),
            Held::Opening | Held::Failed => return None,
        };
        // It waits for the disk.
        let trade = move || guarded(|| trade(&db, &seen, all));
        let traded = tokio::task::spawn_blocking(trade).await;
        traded
            .unwrap_or(Err(ListingError::Panicked))
            .inspect_err(|error| {
                tracing::warn!(%error, "listings are unavailable, and when agents were seen");
                set(&self.held, Held::Failed);
            })
            .ok()
    }
}

fn trade(
    db: &sled::Db,
    seen: &[(String, Millis)],
    all: bool,
) -> Result<Vec<(String, Millis)>, ListingError> {
    let tree = db.open_tree(SEEN)?;
    let mut batch = sled::Batch::default();
    for (agent, at) in seen {
        batch.insert(agent.as_bytes(), &at.to_be_bytes());
    }
    tree.apply_batch(batch)?;
    // The process may end right after this.
    if !seen.is_empty() {
        tree.flush()?;
    }
    let mut found = Vec::new();
    for pair in tree.iter().take_while(|_| all) {
        let (agent, at) = pair?;
        let at = <[u8; 8]>::try_from(at.as_ref()).map(Millis::from_be_bytes);
        let agent = String::from_utf8(agent.to_vec());
        found.extend(agent.ok().zip(at.ok()));
    }
    Ok(found)
}

fn set(held: &RwLock<Held>, to: Held) {
    *held.write().unwrap_or_else(PoisonError::into_inner) = to;
}

/// Runs what touches sled: a damaged one panics. Where panics abort, the mark
/// that `Projection::open` leaves does the same at the next start.
fn guarded<T>(what: impl FnOnce() -> Result<T, ListingError>) -> Result<T, ListingError> {
    catch_unwind(AssertUnwindSafe(what)).unwrap_or(Err(ListingError::Panicked))
}

struct Projection {
    dir: PathBuf,
    journal: PathBuf,
    held: Arc<RwLock<Held>>,
    followed: watch::Receiver<u64>,
    clock: Clock,
    probe: Option<Probe>,
}

impl Projection {
    fn run(mut self) {
        for _ in 0..2 {
            match guarded(|| self.follow()) {
                Ok(()) => return,
                Err(error @ ListingError::Unprobed(_)) => {
                    tracing::warn!(%error, dir = %self.dir.display(), "listings are left alone");
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, dir = %self.dir.display(), "listings failed; setting them aside and building them anew");
                    set(&self.held, Held::Opening);
                    if let Err(error) = self.set_aside() {
                        tracing::warn!(%error, "the damaged listings cannot be set aside");
                    }
                }
            }
        }
        tracing::warn!("listings are unavailable; decisions go on");
        set(&self.held, Held::Failed);
    }

    /// Opens and follows the journal until the ledger ends.
    fn follow(&mut self) -> Result<(), ListingError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let (db, position) = self.open()?;
        if position.next > *self.followed.borrow() {
            return Err(ListingError::Ahead);
        }
        // What would be listed and at once removed again is not read.
        let oldest = self.followed.borrow().saturating_sub(LISTED);
        let skipped = Position::before(&self.journal, oldest)?;
        let position = match position.next < skipped.next {
            true => {
                // What is listed would end in a gap that nobody sees.
                db.clear()?;
                skipped
            }
            false => position,
        };
        let mut reader = Reader::at(&self.journal, position);
        loop {
            let durable = *self.followed.borrow_and_update();
            // Groups are published whole, so that one with a durable entry is all durable.
            // Many groups go into one write: what listings cost is taken from decisions.
            while reader.position().next < durable {
                let mut listed = Vec::new();
                while reader.position().next < durable && listed.len() < AT_ONCE {
                    match reader.next_sketches(ListedEntry::of)? {
                        Some(mut group) => listed.append(&mut group),
                        None => break,
                    }
                }
                if listed.is_empty() {
                    break;
                }
                store(&db, &listed, &reader.position())?;
            }
            if matches!(
                *self.held.read().unwrap_or_else(PoisonError::into_inner),
                Held::Opening
            ) {
                set(&self.held, Held::Ready(db.clone()));
            }
            std::thread::sleep(REST);
            if runtime.block_on(self.followed.changed()).is_err() {
                return Ok(());
            }
        }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.dir.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    fn open(&self) -> Result<(sled::Db, Position), ListingError> {
        let mark = self.beside(".opening");
        if mark.exists() {
            // The last opening did not get to its end: whatever it did, not again.
            self.set_aside()?;
        }
        if let (true, Some(probe)) = (self.dir.exists(), &self.probe) {
            match probe(&self.dir) {
                Probed::Sound => {}
                Probed::Damaged(why) => return Err(ListingError::Damaged(why)),
                Probed::Unknown(why) => return Err(ListingError::Unprobed(why)),
            }
        }
        if let Some(parent) = self.dir.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&mark, b"")?;
        let db = open_sled(&self.dir)?;
        let position = position(&db)?;
        for pair in db.iter().rev().take(64) {
            pair?;
        }
        // All of these are asked for at a start.
        for pair in &db.open_tree(SEEN)? {
            pair?;
        }
        fs::remove_file(&mark)?;
        Ok((db, position))
    }

    /// Keeps what is damaged under another name, and no more than a few of those.
    fn set_aside(&self) -> io::Result<()> {
        if self.dir.exists() {
            // After those that are there, whatever the clock says.
            let newest = self.all_damaged()?.into_iter().map(|(at, _)| at).max();
            let next = newest.map_or(0, |at| at.saturating_add(1));
            fs::rename(&self.dir, self.damaged((self.clock)().max(next)))?;
        }
        let mark = self.beside(".opening");
        if mark.exists() {
            fs::remove_file(mark)?;
        }
        let mut all = self.all_damaged()?;
        all.sort();
        let surplus = all.len().saturating_sub(DAMAGED_KEPT);
        for (_, path) in all.into_iter().take(surplus) {
            if path.is_dir() {
                fs::remove_dir_all(&path)?;
            } else {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn damaged(&self, at: Millis) -> PathBuf {
        self.beside(&format!("{DAMAGED}{at}"))
    }

    /// What was set aside, with its time.
    fn all_damaged(&self) -> io::Result<Vec<(Millis, PathBuf)>> {
        let prefix = self.beside(DAMAGED);
        let (Some(parent), Some(prefix)) = (self.dir.parent(), prefix.file_name()) else {
            return Ok(Vec::new());
        };
        let prefix = prefix.to_string_lossy();
        let mut found = Vec::new();
        for entry in fs::read_dir(parent)? {
            let entry = entry?;
            let name = entry.file_name();
            let at = name
                .to_string_lossy()
                .strip_prefix(prefix.as_ref())
                .map(str::parse);
            if let Some(Ok(at)) = at {
                found.push((at, entry.path()));
            }
        }
        Ok(found)
    }
}

fn open_sled(dir: &Path) -> Result<sled::Db, ListingError> {
    let config = sled::Config::new().path(dir).cache_capacity(CACHE);
    // A ledger that was just closed in this process lets go of its lock a little later.
    for _ in 0..20 {
        match config.open() {
            Err(sled::Error::Io(_)) => std::thread::sleep(Duration::from_millis(100)),
            other => return Ok(other?),
        }
    }
    Ok(config.open()?)
}

fn position(db: &sled::Db) -> Result<Position, ListingError> {
    Ok(match db.get(POSITION)? {
        Some(bytes) => serde_json::from_slice(&bytes)?,
        None => Position::default(),
    })
}

fn store(db: &sled::Db, entries: &[ListedEntry], position: &Position) -> Result<(), ListingError> {
    let mut batch = sled::Batch::default();
    for listed in entries {
        batch.insert(&listed.index.to_be_bytes(), serde_json::to_vec(listed)?);
        if let Some(old) = listed.index.checked_sub(LISTED) {
            batch.remove(&old.to_be_bytes());
        }
    }
    batch.insert(POSITION, serde_json::to_vec(position)?);
    db.apply_batch(batch)?;
    Ok(())
}
