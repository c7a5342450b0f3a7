//! Opening a journal: lock, replay whole groups, cut a torn tail, begin an epoch.
//!
//! The unsealed segment is always written anew, even when nothing is torn: after
//! a failed sync a read may return bytes that the disk never had, and only
//! writing them again makes them durable. The new epoch's entries are in that
//! same write, so a journal never stands without one.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use audit::{
    group::{BLOCK, Builder},
    leaf_hash, segment,
};

use crate::{
    Clock, Options, Random,
    embedded::{
        disk::{Disk, Lock, is_full},
        heads::KeptHead,
        journal::{At, Journal, header},
        replay::{Replay, Tail},
        snapshot,
        sources::{Found, Read, compare, kept_heads, none_is_ahead, read, superseded},
        spare::put_segment,
        state::{Stamp, State},
    },
    event::{Entry, EntryError, Event, Restored},
    lines::{self, Place},
    model::{Hash, Millis, Suspension},
};

/// The file that the one writer locks.
pub(crate) const LOCK: &str = "lock";
/// The smallest segment: one group of the longest line with its attachments fits.
const LEAST_SEGMENT: usize = 16 * 1024;

/// Why a ledger does not open. Nothing was changed, unless it is an I/O error.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the journal in {0} is in use by another process: only one may write it")]
    Locked(PathBuf),
    /// Files, but no journal.
    #[error(
        "{0} holds files but no journal entry: restore the journal, or begin a new one with `writ ledger init`"
    )]
    NoJournal(PathBuf),
    /// An option that cannot be.
    #[error("segments must be a multiple of {BLOCK} bytes and {LEAST_SEGMENT} at least, not {0}")]
    SegmentLen(usize),
    /// Durable entries are damaged or missing.
    #[error(
        "the journal is damaged at entry {index} ({path}, byte {offset}): {what}; \
         it was durable, so it is not cut: restore the file, or verify the journal for more"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// The first entry that cannot be read.
        index: u64,
        /// What was found.
        what: String,
    },
    /// An entry that this version does not understand.
    #[error("entry {index}: {error}; use the version that wrote it")]
    Entry {
        /// The entry.
        index: u64,
        /// What is wrong.
        #[source]
        error: EntryError,
    },
    /// A head that was kept elsewhere tells of a journal, and there is none.
    #[error(
        "{path} says that a journal with {} entries was here (log {}), and {dir} holds none",
        .kept.entries, .kept.log
    )]
    Gone {
        /// Where the journal should be.
        dir: PathBuf,
        /// The head's file.
        path: PathBuf,
        /// What it holds.
        kept: Box<KeptHead>,
    },
    /// The journal is older than a head that was kept elsewhere.
    #[error(
        "the journal in {dir} ends after {entries} entries, and {path} says that it had {}: \
         it was set back, or its end is lost",
        .kept.entries
    )]
    Behind {
        /// The journal's directory.
        dir: PathBuf,
        /// Entries that are there.
        entries: u64,
        /// The head's file.
        path: PathBuf,
        /// What it holds.
        kept: Box<KeptHead>,
    },
    /// The journal is not the one that a head was kept of.
    #[error("the journal in {dir} is another one than {path} has the head of: {what}")]
    Differs {
        /// The journal's directory.
        dir: PathBuf,
        /// The head's file.
        path: PathBuf,
        /// In what they differ.
        what: String,
    },
    /// A head that is to be kept elsewhere cannot be read or written there.
    #[error("the journal's head cannot be kept in {path}: {error}")]
    HeadCopy {
        /// The head's file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        error: io::Error,
    },
    /// There is no room for what a start writes, and nothing that is reserved.
    #[error(
        "no space is left in {dir}: a start writes a segment of {bytes} bytes, and none of that length is reserved there; \
         nothing is lost: free as much and start again ({error})"
    )]
    Full {
        /// The journal's directory.
        dir: PathBuf,
        /// What has to be free.
        bytes: usize,
        /// What the file system said.
        #[source]
        error: io::Error,
    },
    /// The file system refused.
    #[error("cannot {what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// What it said.
        #[source]
        error: io::Error,
    },
}

/// What was cut from the end: a group that nobody was answered for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub segment: u64,
    /// Where in it the torn group began.
    pub offset: u64,
    /// Bytes that were cut, up to the last that was not zero.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: Hash,
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Whether the journal was begun.
    pub created: bool,
    /// Entries that were found.
    pub entries: u64,
    /// How many of them were replayed: those after the snapshot.
    pub replayed: u64,
    /// The leaf hash of the last of them.
    pub head: Hash,
    /// The snapshot that was gone on from, by the entries that it covers.
    pub snapshot: Option<u64>,
    /// Snapshots that were not believed, by the same, and why.
    pub passed_over: Vec<(u64, String)>,
    /// What agents wait for an admin to confirm.
    pub suspended: Option<Suspension>,
    /// The epoch that this start began.
    pub epoch: u64,
    /// What was cut.
    pub torn: Option<TornTail>,
    /// Whether there was no room for it, and it wrote into what is reserved.
    pub full: bool,
}

pub(crate) struct Recovered {
    pub(crate) journal: Journal,
    pub(crate) working: State,
    pub(crate) published: State,
    /// Entries of the snapshots that the journal proves, oldest first.
    pub(crate) snapshots: Vec<u64>,
    /// The log's random name, hex.
    pub(crate) log: String,
    pub(crate) report: OpenReport,
}

pub(crate) fn open(
    options: &Options,
    disk: &Arc<dyn Disk>,
    random: &mut Random,
) -> Result<Recovered, OpenError> {
    let len = options.segment_len;
    if !len.is_multiple_of(BLOCK) || len < LEAST_SEGMENT {
        return Err(OpenError::SegmentLen(len));
    }
    make_dir(&**disk)?;
    let lock = lock(&**disk)?;
    let (heads, unread) = kept_heads(options)?;
    let Read {
        mut replay,
        found,
        from,
        passed_over,
    } = read(&**disk, options, &heads)?;
    if !options.restored {
        compare(&heads, &replay, &**disk, options.init)?;
        none_is_ahead(&**disk, &replay, &found)?;
    }
    if replay.state.entries == 0 && !found.is_empty && !options.init && !planted!(BegunAnew) {
        return Err(OpenError::NoJournal(disk.path().to_owned()));
    }
    let created = replay.state.entries == 0;
    if created {
        // Whoever made the directory may not have come to this.
        disk.sync_parents()
            .map_err(|error| io_error("sync what holds", disk.path(), error))?;
        random(&mut replay.log);
        clear(&**disk, &found)?;
        replay.tail = Tail::default();
    }
    let (entries, head) = (replay.state.entries, replay.state.head);
    let restored = options.restored || (created && (unread || !heads.is_empty()));
    let restored = restored.then(|| Restored {
        entries,
        head,
        instead_of: heads.iter().map(|(_, kept)| superseded(kept)).collect(),
    });
    let (journal, full) = begin(options, disk, &mut replay, lock, restored)?;
    if options.restored {
        // A snapshot of what is given up would keep the next start from happening.
        // Not before the entry is there: until then it is what shows the loss.
        for ahead in found.snapshots.iter().filter(|n| **n > entries) {
            let name = snapshot::file_name(*ahead);
            disk.remove(&name)
                .map_err(|error| io_error("remove", &disk.path().join(name), error))?;
        }
    }
    let state = &replay.state;
    let log = hex::encode(replay.log);
    keep_head(options, &log, state, &heads)?;
    let proven = replay.proven.iter().map(|written| written.entries);
    let snapshots = from
        .into_iter()
        .chain(proven)
        .filter(|entries| found.snapshots.contains(entries) && !options.rebuild)
        .filter(|entries| passed_over.iter().all(|(bad, _)| bad != entries))
        .collect();
    let report = OpenReport {
        created,
        entries,
        replayed: entries.saturating_sub(from.unwrap_or_default()),
        head,
        snapshot: from,
        passed_over,
        suspended: state.suspended.clone(),
        epoch: state.epoch,
        torn: replay.torn.clone(),
        full,
    };
    Ok(Recovered {
        journal,
        working: replay.state.clone(),
        snapshots,
        published: replay.state.shown(),
        log,
        report,
    })
}

/// Removes what is left of another journal where one is begun: segments of zeros
/// of an earlier try, which `init` allows to go, and snapshots.
fn clear(disk: &dyn Disk, found: &Found) -> Result<(), OpenError> {
    let segments = found.segments.iter().copied().map(segment::file_name);
    let snapshots = found.snapshots.iter().copied().map(snapshot::file_name);
    for name in segments.chain(snapshots) {
        disk.remove(&name)
            .map_err(|error| io_error("remove", &disk.path().join(name), error))?;
    }
    Ok(())
}

/// Keeps the head elsewhere, before anybody is answered. Where there is no room for
/// that, the one that is kept there stays: it is older, and no less true.
fn keep_head(
    options: &Options,
    log: &str,
    state: &State,
    heads: &[(PathBuf, KeptHead)],
) -> Result<(), OpenError> {
    let kept = KeptHead::new(
        log.to_owned(),
        state.entries,
        state.head,
        state.epoch,
        state.time_ms,
    );
    for path in &options.head_copies {
        match kept.write(path) {
            Ok(()) => {}
            Err(error) if is_full(&error) && is_kept(heads, path, log) => {
                tracing::error!(path = %path.display(), %error, "no space is left to keep the journal's head: the one from before stays, and it is tried each second");
            }
            Err(error) => {
                let path = path.clone();
                return Err(OpenError::HeadCopy { path, error });
            }
        }
    }
    Ok(())
}

fn is_kept(heads: &[(PathBuf, KeptHead)], path: &Path, log: &str) -> bool {
    heads
        .iter()
        .any(|(other, kept)| other == path && kept.log == log)
}

/// Writes the last segment anew with the epoch's first group behind what was whole.
/// Says whether that took what is reserved.
fn begin(
    options: &Options,
    disk: &Arc<dyn Disk>,
    replay: &mut Replay<'_>,
    lock: Lock,
    restored: Option<Restored>,
) -> Result<(Journal, bool), OpenError> {
    let dir = disk.path();
    let (group, first) = epoch_group(replay, &options.clock, restored)?;
    let seal = |number, group_number, builder: Builder| {
        let sealed = builder.finish(header(replay.log, number, group_number, first));
        sealed
            .map(|(_, bytes)| bytes)
            .map_err(|error| io_error("lay out a group in", dir, io::Error::other(error)))
    };
    let mut full = false;
    let mut write = |number, start: &[u8], len| {
        let name = segment::file_name(number);
        match put_segment(&**disk, &name, start, len) {
            Ok(reserved) => full |= reserved,
            Err(error) if is_full(&error) => {
                let (dir, bytes) = (dir.to_owned(), len);
                return Err(OpenError::Full { dir, bytes, error });
            }
            Err(error) => return Err(io_error("write", &dir.join(&name), error)),
        }
        Ok(())
    };
    let Tail {
        mut number,
        mut bytes,
        mut len,
    } = std::mem::take(&mut replay.tail);
    len = if len == 0 { options.segment_len } else { len };
    let needed = group.len_with(0);
    if bytes.len().saturating_add(needed) > len {
        // It is full: rewritten for durability, and the epoch begins the next.
        write(number, &bytes, len)?;
        replay.lengths.push(number, wide(len));
        number = number.saturating_add(1);
        len = options.segment_len;
        bytes.clear();
    }
    let group_number = replay.group;
    bytes.extend_from_slice(&seal(number, group_number, group)?);
    write(number, &bytes, len)?;
    replay.lengths.push(number, wide(len));
    let at = At {
        lengths: replay.lengths.clone(),
        disk: Arc::clone(disk),
        log: replay.log,
        number,
        offset: bytes.len(),
        len,
        next_len: options.segment_len,
        group: group_number.saturating_add(1),
        lock,
    };
    let journal = Journal::open(at);
    let journal = journal.map_err(|error| io_error("open the journal in", dir, error))?;
    Ok((journal, full))
}

/// The lines that say what was cut, and that a new epoch began. They are applied
/// before they are written; an error after that ends the opening.
fn epoch_group(
    replay: &mut Replay<'_>,
    clock: &Clock,
    restored: Option<Restored>,
) -> Result<(Builder, u64), OpenError> {
    let first = replay.state.entries;
    let epoch = if planted!(EpochReused) {
        replay.state.epoch.max(1)
    } else {
        replay.state.epoch.saturating_add(1)
    };
    let (last, clock) = (replay.state.time_ms, clock());
    // A clock that was set back stands still until it has caught up. What is told apart by
    // seconds, such as whose nonces those are, is told apart by the next one.
    let now: Millis = match clock < last {
        true => (last / 1000).saturating_add(1).saturating_mul(1000),
        false => clock,
    };
    let torn = replay.torn.as_ref().filter(|_| !planted!(CutSilently));
    let torn = torn.map(|torn| Event::Torn {
        segment: torn.segment,
        offset: torn.offset,
        bytes: torn.bytes,
        sha256: torn.sha256,
    });
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let begin = Event::Epoch {
        log: hex::encode(replay.log),
        version,
    };
    let mut builder = Builder::default();
    for event in torn
        .into_iter()
        .chain([begin])
        .chain(restored.map(Event::Restored))
    {
        let entry = Entry::Event(Box::new(event));
        let place = Place {
            index: replay.state.entries,
            time_ms: now,
            epoch,
            prev: replay.state.head,
        };
        let encoded =
            lines::encode(&place, &entry, Vec::new()).map_err(|refused| OpenError::Io {
                what: "encode the epoch's entries".into(),
                error: io::Error::other(refused),
            })?;
        builder.push(&encoded.line, []);
        let leaf = leaf_hash(&encoded.line);
        replay.state.apply(
            Stamp {
                index: place.index,
                time_ms: now,
                epoch,
                leaf,
            },
            &entry,
        );
    }
    Ok((builder, first))
}

fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

pub(crate) fn io_error(what: &str, path: &Path, error: io::Error) -> OpenError {
    OpenError::Io {
        what: format!("{what} {}", path.display()),
        error,
    }
}

fn make_dir(disk: &dyn Disk) -> Result<(), OpenError> {
    if disk.exists() {
        return Ok(());
    }
    let dir = disk.path();
    disk.make().map_err(|error| io_error("create", dir, error))
}

pub(crate) fn lock(disk: &dyn Disk) -> Result<Lock, OpenError> {
    match disk.lock(LOCK) {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => Err(OpenError::Locked(disk.path().to_owned())),
        Err(error) => Err(io_error("lock", &disk.path().join(LOCK), error)),
    }
}
