//! Opening a journal: lock, replay whole groups, cut a torn tail, begin an epoch.
//!
//! The unsealed segment is always written anew, even when nothing is torn: after
//! a failed sync a read may return bytes that the disk never had, and only
//! writing them again makes them durable. The new epoch's entries are in that
//! same write, so a journal never stands without one.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use audit::{
    group::{BLOCK, Builder, Group, GroupError, MAX_GROUP},
    leaf_hash, segment,
};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::{
    Clock, Options,
    embedded::{
        journal::{At, Journal, create_segment, header, sync_dir},
        state::{Stamp, State},
    },
    event::{Entry, EntryError, Event},
    lines::{self, Place},
    model::{Hash, Millis},
};

const LOCK: &str = "lock";
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
        "{0} holds files but no journal entry: restore the journal, or begin a new one explicitly"
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenReport {
    /// Whether the journal was begun.
    pub created: bool,
    /// Entries that were replayed.
    pub replayed: u64,
    /// The leaf hash of the last of them.
    pub head: Hash,
    /// The epoch that this start began.
    pub epoch: u64,
    /// What was cut.
    pub torn: Option<TornTail>,
}

pub(crate) struct Recovered {
    pub(crate) journal: Journal,
    pub(crate) working: State,
    pub(crate) published: State,
    pub(crate) report: OpenReport,
}

pub(crate) fn open(options: &Options) -> Result<Recovered, OpenError> {
    let len = options.segment_len;
    if !len.is_multiple_of(BLOCK) || len < LEAST_SEGMENT {
        return Err(OpenError::SegmentLen(len));
    }
    let dir = &options.dir;
    make_dir(dir)?;
    let lock = lock(dir)?;
    let found = list(dir)?;
    let mut replay = Replay::new(dir);
    for (at, number) in found.segments.iter().enumerate() {
        replay.segment(*number, at + 1 == found.segments.len())?;
    }
    if replay.state.entries == 0 && !found.is_empty && !options.init {
        return Err(OpenError::NoJournal(dir.clone()));
    }
    let created = replay.state.entries == 0;
    if created {
        rand::fill(&mut replay.log);
        // Zeroed segments of an earlier try, which `init` allows to go.
        for number in &found.segments {
            let path = dir.join(segment::file_name(*number));
            fs::remove_file(&path).map_err(|error| io_error("remove", &path, error))?;
        }
        replay.tail = Tail::default();
    }
    let report = OpenReport {
        created,
        replayed: replay.state.entries,
        head: replay.state.head,
        epoch: replay.state.epoch.saturating_add(1),
        torn: replay.torn.clone(),
    };
    let journal = begin(options, &mut replay, lock)?;
    Ok(Recovered {
        journal,
        working: replay.state.clone(),
        published: replay.state,
        report,
    })
}

/// Writes the last segment anew with the epoch's first group behind what was whole.
fn begin(options: &Options, replay: &mut Replay, lock: File) -> Result<Journal, OpenError> {
    let dir = &options.dir;
    let (group, first) = epoch_group(replay, &options.clock)?;
    let seal = |number, group_number, builder: Builder| {
        let sealed = builder.finish(header(replay.log, number, group_number, first));
        sealed
            .map(|(_, bytes)| bytes)
            .map_err(|error| io_error("lay out a group in", dir, io::Error::other(error)))
    };
    let write = |number, start: &[u8], len| {
        let name = segment::file_name(number);
        create_segment(dir, &name, start, len)
            .map(drop)
            .map_err(|error| io_error("write", &dir.join(&name), error))
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
        number = number.saturating_add(1);
        len = options.segment_len;
        bytes.clear();
    }
    let group_number = replay.group;
    bytes.extend_from_slice(&seal(number, group_number, group)?);
    write(number, &bytes, len)?;
    let at = At {
        dir: dir.clone(),
        log: replay.log,
        number,
        offset: bytes.len(),
        len,
        next_len: options.segment_len,
        group: group_number.saturating_add(1),
        lock,
    };
    Journal::open(at).map_err(|error| io_error("open the journal in", dir, error))
}

/// The lines that say what was cut, and that a new epoch began. They are applied
/// before they are written; an error after that ends the opening.
fn epoch_group(replay: &mut Replay, clock: &Clock) -> Result<(Builder, u64), OpenError> {
    let first = replay.state.entries;
    let epoch = replay.state.epoch.saturating_add(1);
    let now: Millis = replay.state.time_ms.max(clock());
    let torn = replay.torn.as_ref().map(|torn| Event::Torn {
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
    for event in torn.into_iter().chain([begin]) {
        let entry = Entry::Event(event);
        let place = Place {
            index: replay.state.entries,
            time_ms: now,
            epoch,
            prev: replay.state.head,
        };
        let encoded = lines::encode(&place, &entry, &[]).map_err(|refused| OpenError::Io {
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

fn io_error(what: &str, path: &Path, error: io::Error) -> OpenError {
    OpenError::Io {
        what: format!("{what} {}", path.display()),
        error,
    }
}

fn make_dir(dir: &Path) -> Result<(), OpenError> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir).map_err(|error| io_error("create", dir, error))?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            sync_dir(parent).map_err(|error| io_error("sync", parent, error))
        }
        _ => Ok(()),
    }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let file = file.map_err(|error| io_error("open", &path, error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked(dir.to_owned())),
        Err(error) => Err(io_error("lock", &path, error.into())),
    }
}

struct Found {
    segments: Vec<u64>,
    /// Nothing but what opening itself leaves behind.
    is_empty: bool,
}

fn list(dir: &Path) -> Result<Found, OpenError> {
    let wrong = |error| io_error("read", dir, error);
    let mut found = Found {
        segments: Vec::new(),
        is_empty: true,
    };
    for entry in fs::read_dir(dir).map_err(wrong)? {
        let name = entry.map_err(wrong)?.file_name();
        let name = name.to_string_lossy();
        if let Some(number) = segment::number_of(&name) {
            found.segments.push(number);
        }
        found.is_empty &= name == LOCK || name.ends_with(".seg.tmp");
    }
    found.segments.sort_unstable();
    Ok(found)
}

/// The last segment as far as it is whole.
#[derive(Default)]
struct Tail {
    number: u64,
    bytes: Vec<u8>,
    /// The file's length.
    len: usize,
}

struct Replay<'a> {
    dir: &'a Path,
    log: [u8; 16],
    state: State,
    group: u64,
    next_segment: u64,
    tail: Tail,
    torn: Option<TornTail>,
}

impl<'a> Replay<'a> {
    fn new(dir: &'a Path) -> Self {
        Self {
            dir,
            log: [0; 16],
            state: State::default(),
            group: 0,
            next_segment: 0,
            tail: Tail::default(),
            torn: None,
        }
    }

    fn damaged(&self, number: u64, offset: usize, what: impl Into<String>) -> OpenError {
        OpenError::Damaged {
            path: self.dir.join(segment::file_name(number)),
            offset: u64::try_from(offset).unwrap_or(u64::MAX),
            index: self.state.entries,
            what: what.into(),
        }
    }

    fn segment(&mut self, number: u64, last: bool) -> Result<(), OpenError> {
        if number != self.next_segment {
            return Err(self.damaged(self.next_segment, 0, "the segment is missing"));
        }
        self.next_segment = number.saturating_add(1);
        let path = self.dir.join(segment::file_name(number));
        let mut bytes = fs::read(&path).map_err(|error| io_error("read", &path, error))?;
        let mut offset = 0;
        while let Some(rest) = bytes.get(offset..).filter(|rest| !rest.is_empty()) {
            match Group::decode(rest) {
                Ok(group) => {
                    let after = rest.get(group.len()..).unwrap_or_default();
                    if !group.entries.iter().all(|e| e.attachments_match())
                        && last
                        && !self.proves(after)
                    {
                        self.tear(number, offset, rest);
                        break;
                    }
                    self.group(number, offset, &group)?;
                    offset = offset.saturating_add(group.len());
                }
                // A newer layout is not damage, and must never be cut.
                Err(error @ GroupError::Version(_)) => {
                    return Err(self.damaged(number, offset, error.to_string()));
                }
                Err(error) => {
                    if rest.iter().all(|b| *b == 0) {
                        break;
                    }
                    // The first group came with the file, so it cannot be torn.
                    let first = self.state.entries == 0;
                    if first
                        || !last
                        || self.proves(rest.get(1..).unwrap_or_default())
                        || beyond_one_group(rest)
                    {
                        return Err(self.damaged(number, offset, error.to_string()));
                    }
                    self.tear(number, offset, rest);
                    break;
                }
            }
        }
        let len = bytes.len();
        bytes.truncate(offset);
        self.tail = Tail { number, bytes, len };
        Ok(())
    }

    /// Whether a later group shows that the next entry was durable.
    fn proves(&self, later: &[u8]) -> bool {
        // The log's name is known from its first group only.
        let ours = |log| self.state.entries == 0 || log == self.log;
        let proof =
            |group: &Group<'_>| ours(group.header.log) && group.header.durable > self.state.entries;
        segment::find_group(later, 0, proof).is_some()
    }

    fn tear(&mut self, number: u64, offset: usize, rest: &[u8]) {
        let end = rest
            .iter()
            .rposition(|b| *b != 0)
            .map_or(0, |last| last.saturating_add(1));
        let cut = rest.get(..end).unwrap_or(rest);
        let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        self.torn = Some(TornTail {
            segment: number,
            offset: wide(offset),
            bytes: wide(cut.len()),
            sha256: Sha256::digest(cut).into(),
        });
    }

    fn group(&mut self, number: u64, offset: usize, group: &Group<'_>) -> Result<(), OpenError> {
        let header = &group.header;
        if self.state.entries == 0 {
            self.log = header.log;
        }
        if header.log != self.log {
            return Err(self.damaged(number, offset, "a group of another journal"));
        }
        let in_place = header.segment == number
            && header.group == self.group
            && header.first == self.state.entries;
        if !in_place {
            let what = format!(
                "group {} with entry {} stands here",
                header.group, header.first
            );
            return Err(self.damaged(number, offset, what));
        }
        for entry in &group.entries {
            let line = &entry.line;
            let follows = line.index == self.state.entries
                && line.prev == self.state.head
                && line.time_ms >= self.state.time_ms
                && line.epoch >= self.state.epoch;
            if !follows {
                return Err(self.damaged(
                    number,
                    offset,
                    "an entry that does not continue the one before",
                ));
            }
            let read = lines::decode(entry).map_err(|error| OpenError::Entry {
                index: line.index,
                error,
            })?;
            let stamp = Stamp {
                index: line.index,
                time_ms: line.time_ms,
                epoch: line.epoch,
                leaf: entry.leaf,
            };
            self.state.apply(stamp, &read);
        }
        self.group = self.group.saturating_add(1);
        Ok(())
    }
}

/// Whether there is more than one write that stopped can have left.
fn beyond_one_group(rest: &[u8]) -> bool {
    rest.iter()
        .rposition(|byte| *byte != 0)
        .is_some_and(|last| last >= MAX_GROUP)
}
