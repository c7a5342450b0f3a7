//! What a start goes on from: the newest snapshot that the journal proves, or all
//! of the journal; and what it compares with before it writes anything.

use std::path::PathBuf;

use audit::{
    reader::{Position, Reader},
    segment,
};

use crate::{
    Options,
    embedded::{
        disk::Disk,
        heads::KeptHead,
        recovery::{LOCK, OpenError, io_error},
        replay::Replay,
        snapshot::{self, Snapshot, Written, digest},
    },
    event::Superseded,
    model::Hash,
};

/// Snapshots that are tried before the whole journal is replayed.
const SNAPSHOTS_TRIED: usize = 4;

/// What is in a directory.
pub(crate) struct Found {
    pub(crate) segments: Vec<u64>,
    /// Snapshots by the entries that they cover.
    pub(crate) snapshots: Vec<u64>,
    /// Nothing but what opening itself leaves behind.
    pub(crate) is_empty: bool,
}

pub(crate) fn list(disk: &dyn Disk) -> Result<Found, OpenError> {
    let names = disk
        .list()
        .map_err(|error| io_error("read", disk.path(), error))?;
    let mut found = Found {
        segments: Vec::new(),
        snapshots: Vec::new(),
        is_empty: true,
    };
    for name in names {
        found.segments.extend(segment::number_of(&name));
        found.snapshots.extend(snapshot::entries_of(&name));
        found.is_empty &= name == LOCK || name.ends_with(".seg.tmp");
    }
    found.segments.sort_unstable();
    found.snapshots.sort_unstable();
    Ok(found)
}

/// A journal that was read, and nothing changed.
pub(crate) struct Read<'a> {
    pub(crate) replay: Replay<'a>,
    pub(crate) found: Found,
    /// The snapshot that was gone on from.
    pub(crate) from: Option<u64>,
    /// Those that were not believed, and why.
    pub(crate) passed_over: Vec<(u64, String)>,
}

/// Reads the journal, from a snapshot on where one can be believed.
///
/// # Errors
/// When the journal is damaged, or cannot be read.
pub(crate) fn read<'a>(
    disk: &'a dyn Disk,
    options: &Options,
    heads: &[(PathBuf, KeptHead)],
) -> Result<Read<'a>, OpenError> {
    let found = list(disk)?;
    let mut passed_over = Vec::new();
    let tried = if options.rebuild { 0 } else { SNAPSHOTS_TRIED };
    for entries in found.snapshots.iter().rev().take(tried) {
        match from_snapshot(disk, options, heads, &found, *entries) {
            Ok(replay) => {
                older_are_there(disk, &replay, &found, *entries)?;
                return Ok(Read {
                    replay,
                    from: Some(*entries),
                    found,
                    passed_over,
                });
            }
            Err(why) => {
                tracing::warn!(dir = %disk.path().display(), snapshot = entries, why, "a snapshot is not believed; an older one, or the whole journal, is read instead");
                passed_over.push((*entries, why));
            }
        }
    }
    let mut replay = Replay::new(disk);
    run(&mut replay, options, heads, &found.segments)?;
    Ok(Read {
        replay,
        found,
        from: None,
        passed_over,
    })
}

/// Whether the journal has come as far as its snapshots: one is begun only of
/// what is durable, so a snapshot that is ahead shows that the end is lost. One that
/// somebody made up can keep a start from happening, and nothing else.
///
/// # Errors
/// [`OpenError::Behind`] with the first that is ahead.
pub(crate) fn none_is_ahead(
    disk: &dyn Disk,
    replay: &Replay<'_>,
    found: &Found,
) -> Result<(), OpenError> {
    let entries = replay.state.entries;
    if entries == 0 {
        return Ok(());
    }
    for ahead in found.snapshots.iter().rev().take_while(|n| **n > entries) {
        let name = snapshot::file_name(*ahead);
        let read = disk.read(&name).ok();
        let Some(snapshot) = read.and_then(|bytes| Snapshot::decode(&bytes).ok()) else {
            continue;
        };
        if snapshot.log() == Some(replay.log) && snapshot.state.entries > entries {
            let state = snapshot.state;
            return Err(OpenError::Behind {
                dir: disk.path().to_owned(),
                entries,
                path: disk.path().join(name),
                kept: Box::new(KeptHead::new(
                    snapshot.log,
                    state.entries,
                    state.head,
                    state.epoch,
                    state.time_ms,
                )),
            });
        }
    }
    Ok(())
}

/// Goes on from one snapshot, and comes by the entry that proves it.
fn from_snapshot<'a>(
    disk: &'a dyn Disk,
    options: &Options,
    heads: &[(PathBuf, KeptHead)],
    found: &Found,
    entries: u64,
) -> Result<Replay<'a>, String> {
    let bytes = disk
        .read(&snapshot::file_name(entries))
        .map_err(|error| error.to_string())?;
    let snapshot = Snapshot::decode(&bytes)?;
    if snapshot.state.entries != entries {
        return Err("it covers other entries than its name says".into());
    }
    let expected = Written {
        entries,
        sha256: digest(&bytes),
        bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
    };
    let first = snapshot.segment;
    let mut replay = Replay::at(disk, snapshot).ok_or("it names no place in a journal")?;
    let segments: Vec<u64> = found
        .segments
        .iter()
        .copied()
        .filter(|number| *number >= first)
        .collect();
    if segments.is_empty() {
        return Err("the journal ends before it".into());
    }
    run(&mut replay, options, heads, &segments).map_err(|error| error.to_string())?;
    if replay.proven.contains(&expected) || planted!(SnapshotUnproven) {
        Ok(replay)
    } else {
        Err("no entry behind it has its digest".into())
    }
}

fn run(
    replay: &mut Replay<'_>,
    options: &Options,
    heads: &[(PathBuf, KeptHead)],
    segments: &[u64],
) -> Result<(), OpenError> {
    for (_, kept) in heads {
        replay.want_leaf(kept.entries);
    }
    for (at, number) in (1..).zip(segments) {
        replay.segment(*number, at == segments.len())?;
        if let Some(progress) = &options.progress {
            progress(at, segments.len());
        }
    }
    Ok(())
}

/// Segments before a snapshot are not read, but have to be there in full length.
fn older_are_there(
    disk: &dyn Disk,
    replay: &Replay<'_>,
    found: &Found,
    entries: u64,
) -> Result<(), OpenError> {
    let damaged = |number, what: String| OpenError::Damaged {
        path: disk.path().join(segment::file_name(number)),
        offset: 0,
        index: 0,
        what: format!("{what}, and entries before {entries} are in it"),
    };
    let first = replay.first_segment();
    let mut there = found.segments.iter().copied();
    for number in 0..first {
        if there.next() != Some(number) {
            return Err(damaged(number, "the segment is missing".into()));
        }
        let name = segment::file_name(number);
        let len = disk
            .size(&name)
            .map_err(|error| io_error("look at", &disk.path().join(&name), error))?;
        if replay.lengths.of(number) != Some(len) {
            return Err(damaged(number, format!("the segment has {len} bytes")));
        }
    }
    Ok(())
}

/// The heads that are kept elsewhere, as far as there are any yet, and whether one
/// of them is there that cannot be read.
///
/// # Errors
/// When there is one that cannot be read, unless it is to be overridden.
pub(crate) fn kept_heads(options: &Options) -> Result<(Vec<(PathBuf, KeptHead)>, bool), OpenError> {
    let (mut heads, mut unread) = (Vec::new(), false);
    for path in &options.head_copies {
        match KeptHead::read(path) {
            Ok(Some(kept)) => heads.push((path.clone(), kept)),
            Ok(None) => {
                tracing::info!(path = %path.display(), "no head was kept here yet");
            }
            Err(error) if options.restored || options.init => {
                unread = true;
                tracing::warn!(path = %path.display(), %error, "the head that was kept here is overridden unread");
            }
            Err(error) => {
                return Err(OpenError::HeadCopy {
                    path: path.clone(),
                    error,
                });
            }
        }
    }
    Ok((heads, unread))
}

/// Whether the journal has come as far as each head, and through it.
///
/// # Errors
/// The first in which they differ.
pub(crate) fn compare(
    heads: &[(PathBuf, KeptHead)],
    replay: &Replay<'_>,
    disk: &dyn Disk,
    init: bool,
) -> Result<(), OpenError> {
    let dir = disk.path().to_owned();
    let entries = replay.state.entries;
    if entries == 0 && init {
        return Ok(());
    }
    for (path, kept) in heads {
        let (dir, path) = (dir.clone(), path.clone());
        if entries == 0 {
            let kept = Box::new(kept.clone());
            return Err(OpenError::Gone { dir, path, kept });
        }
        if kept.log != hex::encode(replay.log) {
            let what = format!("it is log {}, not {}", hex::encode(replay.log), kept.log);
            return Err(OpenError::Differs { dir, path, what });
        }
        if kept.entries > entries {
            let kept = Box::new(kept.clone());
            return Err(OpenError::Behind {
                dir,
                entries,
                path,
                kept,
            });
        }
        let known = replay.leaves.get(&kept.entries).copied().flatten();
        let there = match known {
            Some(leaf) => Some(leaf),
            None => leaf(disk, kept.entries)?,
        };
        if there != Some(kept.head) {
            let what = format!("the entry before {} is not the one it was", kept.entries);
            return Err(OpenError::Differs { dir, path, what });
        }
    }
    Ok(())
}

/// The leaf hash that so many entries end in, from what is before a snapshot.
fn leaf(disk: &dyn Disk, entries: u64) -> Result<Option<Hash>, OpenError> {
    let wrong = |error| io_error("read", disk.path(), std::io::Error::other(error));
    let Some(index) = entries.checked_sub(1) else {
        return Ok(Some(audit::chain::EMPTY));
    };
    let start = Position::before(disk.path(), index).map_err(wrong)?;
    let mut reader = Reader::at(disk.path(), start);
    while let Some(group) = reader.next_group().map_err(wrong)? {
        if let Some(entry) = group.iter().find(|entry| entry.line.index == index) {
            return Ok(Some(entry.leaf));
        }
        if reader.position().next > index {
            break;
        }
    }
    Ok(None)
}

pub(crate) fn superseded(kept: &KeptHead) -> Superseded {
    Superseded {
        log: kept.log.clone(),
        entries: kept.entries,
        head: kept.head,
    }
}
