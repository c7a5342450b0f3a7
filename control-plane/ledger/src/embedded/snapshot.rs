//! Snapshots: the state that outlives an epoch, in a file of its own.
//!
//! A file alone is not believed: the journal has an entry with its digest, and
//! recovery goes on from a file only when it comes by that entry on its way.
//! The layout is in `docs/reference/journal.md`.

use std::io;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    embedded::{disk::Disk, state::keep::Kept},
    model::Hash,
};

/// A snapshot is taken when so many entries came since the last one.
const SNAPSHOT_ENTRIES: u64 = 131_072;
/// Or so many segments.
const SNAPSHOT_SEGMENTS: u64 = 16;
/// Or, at a shutdown, so many entries.
const SNAPSHOT_AT_SHUTDOWN: u64 = 1_024;
/// Snapshots that are kept: the newest, and one to fall back to.
pub(crate) const SNAPSHOTS_KEPT: usize = 2;
/// The version of the layout. Another one is not read, and the journal is
/// replayed instead.
const FORMAT: u32 = 1;
const PREFIX: &str = "snapshot-";
/// Ends the name of a file that is being written.
pub(crate) const TEMPORARY: &str = ".tmp";

/// When snapshots are taken: what a start has to read is bounded by the first
/// two, what snapshots cost by all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotEvery {
    /// After so many entries since the last one: 131,072 unless set.
    pub entries: u64,
    /// After so many segments: 16 unless set.
    pub segments: u64,
    /// At a shutdown, when there were so many entries: 1,024 unless set.
    pub at_shutdown: u64,
}

impl Default for SnapshotEvery {
    fn default() -> Self {
        Self {
            entries: SNAPSHOT_ENTRIES,
            segments: SNAPSHOT_SEGMENTS,
            at_shutdown: SNAPSHOT_AT_SHUTDOWN,
        }
    }
}

/// The file's name: the number of entries that it covers, in 16 digits.
pub(crate) fn file_name(entries: u64) -> String {
    format!("{PREFIX}{entries:016}")
}

/// How many entries a file of this name covers, if it is a snapshot's.
pub(crate) fn entries_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    let good = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_digit());
    if good { digits.parse().ok() } else { None }
}

/// Whether a name is of a snapshot, finished or not.
pub(crate) fn is_ours(name: &str) -> bool {
    entries_of(name.strip_suffix(TEMPORARY).unwrap_or(name)).is_some()
}

/// Lengths of segments: each run is the first of them and their length in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Lengths(Vec<(u64, u64)>);

impl Lengths {
    /// The segment `number` has this length, and so have those after it until another is told.
    pub(crate) fn push(&mut self, number: u64, len: u64) {
        self.0.retain(|(first, _)| *first < number);
        if self.0.last().is_none_or(|(_, known)| *known != len) {
            self.0.push((number, len));
        }
    }

    pub(crate) fn of(&self, number: u64) -> Option<u64> {
        let run = self.0.iter().rev().find(|(first, _)| *first <= number);
        run.map(|(_, len)| *len)
    }
}

/// What a start needs instead of the entries before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Snapshot {
    format: u32,
    /// The log's random name, hex.
    pub(crate) log: String,
    /// The number of the next group, and where it stands.
    pub(crate) group: u64,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    /// Lengths of all segments up to that one.
    pub(crate) lengths: Lengths,
    pub(crate) state: Kept,
}

/// A snapshot's file, as its entry names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) entries: u64,
    pub(crate) sha256: Hash,
    pub(crate) bytes: u64,
}

/// Where the next group of a journal goes.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    pub(crate) log: [u8; 16],
    pub(crate) group: u64,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) lengths: Lengths,
}

impl Snapshot {
    pub(crate) fn new(at: Position, state: Kept) -> Self {
        Self {
            format: FORMAT,
            log: hex::encode(at.log),
            group: at.group,
            segment: at.segment,
            offset: at.offset,
            lengths: at.lengths,
            state,
        }
    }

    /// The file's bytes: one snapshot has one form.
    ///
    /// # Errors
    /// When a value has none.
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(io::Error::other)
    }

    /// Reads a file back.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let found: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if found.format == FORMAT {
            Ok(found)
        } else {
            Err(format!("its format {} is not known", found.format))
        }
    }

    pub(crate) fn log(&self) -> Option<[u8; 16]> {
        let mut log = [0; 16];
        hex::decode_to_slice(&self.log, &mut log).ok()?;
        Some(log)
    }

    /// Writes the file durably, under another name first.
    ///
    /// # Errors
    /// Any I/O error; whatever is then there is not believed without an entry.
    pub(crate) fn write(&self, disk: &dyn Disk) -> io::Result<Written> {
        let bytes = self.encode()?;
        let name = file_name(self.state.entries);
        let temporary = format!("{name}{TEMPORARY}");
        let written = disk.create(&temporary).and_then(|mut file| {
            file.write(&bytes)?;
            file.sync_all()
        });
        if let Err(error) = written {
            // Best effort: a full disk should get its space back.
            let _ = disk.remove(&temporary);
            return Err(error);
        }
        disk.rename(&temporary, &name)?;
        disk.sync_dir()?;
        Ok(Written {
            entries: self.state.entries,
            sha256: digest(&bytes),
            bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        })
    }
}

/// SHA-256 of a file.
pub(crate) fn digest(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// Removes what is not kept: all but the newest of `proven`, and whatever is
/// older than those. What cannot be removed is tried again with the next one.
pub(crate) fn prune(disk: &dyn Disk, proven: &[u64]) -> io::Result<()> {
    let kept: Vec<u64> = proven.iter().rev().take(SNAPSHOTS_KEPT).copied().collect();
    let newest = kept.first().copied().unwrap_or_default();
    for name in disk.list()? {
        let finished = entries_of(&name);
        let stale = finished.is_some_and(|n| n < newest && !kept.contains(&n));
        let left = finished.is_none() && is_ours(&name) && name < file_name(newest);
        if stale || left {
            disk.remove(&name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::{disk::RealDisk, state::State};

    fn at() -> Position {
        let mut lengths = Lengths::default();
        lengths.push(0, 512);
        Position {
            log: [7; 16],
            group: 3,
            segment: 0,
            offset: 512,
            lengths,
        }
    }

    #[test]
    fn lengths_are_runs() {
        let mut lengths = Lengths::default();
        for (number, len) in [(0, 8), (1, 8), (2, 16), (3, 16), (3, 8)] {
            lengths.push(number, len);
        }
        assert_eq!(lengths.0, [(0, 8), (2, 16), (3, 8)]);
        let of: Vec<_> = (0..5).map(|n| lengths.of(n)).collect();
        assert_eq!(of, [Some(8), Some(8), Some(16), Some(8), Some(8)]);
        assert_eq!(Lengths::default().of(0), None);
    }

    #[test]
    fn a_file_reads_back_and_another_format_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        let snapshot = Snapshot::new(at(), State::default().keep());
        let written = snapshot.write(&disk).unwrap();
        let bytes = disk.read(&file_name(0)).unwrap();
        assert_eq!((written.sha256, written.entries), (digest(&bytes), 0));
        assert_eq!(Snapshot::decode(&bytes), Ok(snapshot));
        let text = String::from_utf8(bytes).unwrap();
        for (from, to) in [
            ("\"format\":1", "\"format\":2"),
            ("\"format\":1", "\"format\":1,\"tree\":[]"),
            ("\"head\":\"0", "\"head\":\"x"),
        ] {
            assert_ne!(text.replace(from, to), text);
            assert!(Snapshot::decode(text.replace(from, to).as_bytes()).is_err());
        }
    }

    #[test]
    fn what_is_older_than_the_kept_goes() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        let names = [
            "snapshot-0000000000000001",
            "snapshot-0000000000000002",
            "snapshot-0000000000000003",
            "snapshot-0000000000000003.tmp",
            "snapshot-0000000000000004",
            "snapshot-0000000000000005",
            "snapshot-0000000000000006.tmp",
            "0000000000000000.seg",
        ];
        for name in names {
            disk.create(name).unwrap();
        }
        prune(&disk, &[1, 2, 4]).unwrap();
        let mut left = disk.list().unwrap();
        left.sort();
        let expected = [names[7], names[1], names[4], names[5], names[6]];
        assert_eq!(left, expected);
    }
}
