//! What an operator does with a journal: look at it, verify it, rebuild what is
//! derived from it, put a backup in its place, begin one.
//!
//! Looking and verifying write nothing and can be done while it is in use.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use audit::segment;
use serde::Serialize;

use crate::{
    Ledger, Options,
    embedded::{
        disk::{Disk, Lock, RealDisk},
        heads::KeptHead,
        recovery::{LOCK, OpenError, OpenReport, lock},
        replay::Replay,
        snapshot::{self, Snapshot, SnapshotEvery, digest},
        sources::{self, Read, list},
    },
    model::{Hash, Millis, Suspension},
};

/// Why a tool did not do what it was asked to. What was there is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The journal does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A journal stands where one was to be put.
    #[error("{0} holds a journal, or other files: move it away first, nothing is overwritten")]
    Occupied(PathBuf),
    /// The backup is damaged.
    #[error("{dir} cannot be restored: {problem}")]
    Backup {
        /// The backup.
        dir: PathBuf,
        /// What is wrong with it.
        problem: String,
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

fn io_error(what: &str, path: &Path, error: io::Error) -> ToolError {
    ToolError::Io {
        what: format!("{what} {}", path.display()),
        error,
    }
}

/// What is in a journal's directory.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The log's random name, hex; empty when there is no journal.
    pub log: String,
    /// Entries, and the leaf hash of the last: `SIZE:HASH`.
    pub head: String,
    /// How often a ledger was started on it.
    pub epochs: u64,
    /// The ledger time of the last entry.
    pub time_ms: Millis,
    /// Segments.
    pub segments: usize,
    /// Their length in all, in bytes.
    pub bytes: u64,
    /// The number of bytes behind the last whole group: a write that stopped, or
    /// one that is under way.
    pub torn_bytes: Option<u64>,
    /// Snapshots by the entries that they cover, newest first.
    pub snapshots: Vec<SnapshotFound>,
    /// The process that has it open.
    pub in_use_by: Option<u32>,
    /// What agents wait for an admin to confirm.
    pub suspended: Option<Suspension>,
    /// Heads that were kept elsewhere.
    pub kept: Vec<KeptFound>,
    /// Why it would not open.
    pub problem: Option<String>,
}

/// A snapshot's file, as a start sees it.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotFound {
    /// Entries that it covers.
    pub entries: u64,
    /// Whether a start would go on from it.
    pub used: bool,
    /// Why it would not.
    pub problem: Option<String>,
}

/// A head that was kept elsewhere.
#[derive(Clone, Debug, Serialize)]
pub struct KeptFound {
    /// Its file.
    pub path: PathBuf,
    /// What it says: `SIZE:HASH`; empty when it cannot be read.
    pub head: String,
    /// In what the journal differs from it.
    pub problem: Option<String>,
}

/// Looks at a journal as a start would, and changes nothing.
///
/// # Errors
/// When the directory cannot be read.
pub fn inspect(options: &Options) -> Result<Inspection, OpenError> {
    let disk = RealDisk::new(&options.dir);
    let found = list(&disk)?;
    let bytes = found
        .segments
        .iter()
        .filter_map(|number| disk.size(&segment::file_name(*number)).ok())
        .fold(0, u64::saturating_add);
    let mut inspection = Inspection {
        log: String::new(),
        head: shown(0, &[0; 32]),
        epochs: 0,
        time_ms: 0,
        segments: found.segments.len(),
        bytes,
        torn_bytes: None,
        snapshots: Vec::new(),
        in_use_by: holder(&options.dir.join(LOCK)),
        suspended: None,
        kept: Vec::new(),
        problem: None,
    };
    let mut heads = Vec::new();
    for path in &options.head_copies {
        match KeptHead::read(path) {
            Ok(Some(kept)) => heads.push((path.clone(), kept)),
            Ok(None) => {}
            Err(error) => inspection.kept.push(KeptFound {
                path: path.clone(),
                head: String::new(),
                problem: Some(error.to_string()),
            }),
        }
    }
    let read = sources::read(&disk, options, &heads);
    let read = read.map_err(|error| inspection.problem = Some(error.to_string()));
    if let Ok(read) = &read {
        describe(&mut inspection, read);
        if let Err(ahead) = sources::none_is_ahead(&disk, &read.replay, &read.found) {
            inspection.problem = Some(ahead.to_string());
        }
    } else {
        let unread = |entries: &u64| SnapshotFound {
            entries: *entries,
            used: false,
            problem: None,
        };
        inspection.snapshots = found.snapshots.iter().rev().map(unread).collect();
    }
    for (path, kept) in heads {
        let compared = read.as_ref().ok().map(|read| {
            let one = [(path.clone(), kept.clone())];
            sources::compare(&one, &read.replay, &disk, false)
        });
        let problem = compared.and_then(Result::err).map(|e| e.to_string());
        if inspection.problem.is_none() {
            inspection.problem.clone_from(&problem);
        }
        inspection.kept.push(KeptFound {
            path,
            head: shown(kept.entries, &kept.head),
            problem,
        });
    }
    Ok(inspection)
}

fn describe(inspection: &mut Inspection, read: &Read<'_>) {
    let Replay { state, torn, .. } = &read.replay;
    if state.entries > 0 {
        inspection.log = hex::encode(read.replay.log);
    } else {
        inspection.problem = Some("there is no journal".into());
    }
    inspection.head = shown(state.entries, &state.head);
    inspection.epochs = state.epoch;
    inspection.time_ms = state.time_ms;
    inspection.torn_bytes = torn.as_ref().map(|torn| torn.bytes);
    inspection.suspended.clone_from(&state.suspended);
    for entries in read.found.snapshots.iter().rev() {
        let why = read.passed_over.iter().find(|(n, _)| n == entries);
        inspection.snapshots.push(SnapshotFound {
            entries: *entries,
            used: read.from == Some(*entries),
            problem: why.map(|(_, why)| why.clone()),
        });
    }
}

fn shown(entries: u64, head: &Hash) -> String {
    format!("{entries}:{}", hex::encode(head))
}

/// The process that holds a file's lock, as far as the kernel says.
fn holder(lock: &Path) -> Option<u32> {
    let inode = fs::metadata(lock).ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let flock = words.next() == Some("FLOCK");
        let pid = words.nth(2)?;
        let file = words.next()?;
        (flock && file.rsplit(':').next() == Some(inode.as_str()))
            .then(|| pid.parse().ok())
            .flatten()
    })
}

/// What verifying a journal with its snapshots found.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// The journal itself.
    #[serde(flatten)]
    pub report: audit::Report,
    /// Its snapshots.
    pub snapshots: Vec<SnapshotVerified>,
}

impl Verified {
    /// Whether nothing is wrong. A snapshot without an entry is no damage: it is
    /// not believed.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.report.whole && self.snapshots.iter().all(|s| s.problem.is_none())
    }
}

/// One snapshot's file.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotVerified {
    /// Entries that it covers.
    pub entries: u64,
    /// Whether an entry has its digest.
    pub proven: bool,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// Verifies the bytes of a journal, and that its entries make the states that its
/// snapshots hold.
#[must_use]
pub fn verify(options: &Options, head: Option<(u64, Hash)>) -> Verified {
    let report = audit::verify(&options.dir, head);
    let mut verified = Verified {
        report,
        snapshots: Vec::new(),
    };
    if !verified.report.whole {
        return verified;
    }
    let disk = RealDisk::new(&options.dir);
    let replayed = list(&disk).and_then(|found| {
        let mut replay = Replay::new(&disk);
        replay.marks = found.snapshots.iter().map(|n| (*n, None)).collect();
        let last = found.segments.len();
        for (at, number) in (1..).zip(&found.segments) {
            replay.segment(*number, at == last)?;
            if let Some(progress) = &options.progress {
                progress(at, last);
            }
        }
        Ok((found, replay))
    });
    match replayed {
        Ok((found, replay)) => {
            let of = |entries: &u64| snapshot_verified(&disk, &replay, *entries);
            verified.snapshots = found.snapshots.iter().map(of).collect();
        }
        Err(error) => verified.snapshots.push(SnapshotVerified {
            entries: 0,
            proven: false,
            problem: Some(format!("the entries cannot be replayed: {error}")),
        }),
    }
    verified
}

fn snapshot_verified(disk: &dyn Disk, replay: &Replay<'_>, entries: u64) -> SnapshotVerified {
    let proofs = replay.proven.iter().filter(|w| w.entries == entries);
    let digests: Vec<Hash> = proofs.map(|w| w.sha256).collect();
    let read = disk.read(&snapshot::file_name(entries));
    let problem = match &read {
        Err(error) => Some(error.to_string()),
        Ok(bytes) if !digests.is_empty() && !digests.contains(&digest(bytes)) => {
            Some("its entry has another digest".into())
        }
        // One without an entry may be anything; nobody believes it.
        Ok(_) if digests.is_empty() => None,
        Ok(bytes) => match (Snapshot::decode(bytes), replay.marks.get(&entries)) {
            (Err(error), _) => Some(error),
            (Ok(snapshot), Some(Some(made))) if snapshot == *made => None,
            _ => Some("the entries make another state".into()),
        },
    };
    SnapshotVerified {
        entries,
        proven: !digests.is_empty(),
        problem,
    }
}

/// Throws away snapshots and listings, replays all of the journal, and takes a
/// new snapshot. Listings are built at the next start.
///
/// # Errors
/// As [`Ledger::open`], or when the listings cannot be removed.
pub async fn rebuild(options: Options) -> Result<OpenReport, ToolError> {
    let listings = options.listings.clone();
    let (ledger, report) = Ledger::open(Options {
        listings: None,
        rebuild: true,
        snapshots: SnapshotEvery {
            at_shutdown: 0,
            ..options.snapshots
        },
        ..options
    })?;
    ledger.shutdown().await;
    match listings {
        Some(dir) if dir.exists() => {
            fs::remove_dir_all(&dir).map_err(|error| io_error("remove", &dir, error))?;
        }
        _ => {}
    }
    Ok(report)
}

/// Begins a journal where none is. Where a head was kept of one, that one is
/// given up: agents are suspended until an admin confirms.
///
/// # Errors
/// [`ToolError::Occupied`] where there is a journal, also a damaged one; as
/// [`Ledger::open`].
pub async fn init(options: Options) -> Result<OpenReport, ToolError> {
    if options.dir.exists() {
        let disk = RealDisk::new(&options.dir);
        for number in list(&disk)?.segments {
            let name = segment::file_name(number);
            let bytes = disk
                .read(&name)
                .map_err(|error| io_error("read", &options.dir.join(&name), error))?;
            if bytes.iter().any(|b| *b != 0) {
                return Err(ToolError::Occupied(options.dir));
            }
        }
    }
    let (ledger, report) = Ledger::open(Options {
        init: true,
        listings: None,
        ..options
    })?;
    ledger.shutdown().await;
    Ok(report)
}

/// Puts a backup in place as a new state: open approvals end, agents are
/// suspended until an admin confirms, and heads that were kept elsewhere are
/// overridden. With `from` in place already, it is taken as it stands.
///
/// # Errors
/// [`ToolError::Backup`] when `from` is damaged, [`ToolError::Occupied`] when
/// something else stands in `options.dir`; as [`Ledger::open`].
pub async fn restore(from: &Path, options: Options) -> Result<OpenReport, ToolError> {
    let report = audit::verify(from, None);
    if !report.whole {
        let problem = match report.problem {
            Some(problem) => format!(
                "it is damaged after {} entries: {problem:?}",
                report.entries
            ),
            None => "it is damaged".into(),
        };
        let dir = from.to_owned();
        return Err(ToolError::Backup { dir, problem });
    }
    let same = |a: &Path, b: &Path| fs::canonicalize(a).ok() == fs::canonicalize(b).ok();
    if options.dir.exists() && same(from, &options.dir) {
        return reopen(options).await;
    }
    let dir = options.dir.clone();
    // Held to the end: nobody begins a journal there meanwhile.
    let mut place = free(&dir)?;
    // Complete, and with its entry, before it gets its name: what is there after
    // a stop half way is not taken for a journal.
    let mut staging = dir.clone().into_os_string();
    staging.push(".restoring");
    let staging = PathBuf::from(staging);
    copy(from, &staging)?;
    let report = reopen(Options {
        dir: staging.clone(),
        ..options
    })
    .await?;
    if place.is_none() {
        place = free(&dir)?;
    }
    if place.is_some() {
        fs::remove_dir_all(&dir).map_err(|error| io_error("remove", &dir, error))?;
    }
    fs::rename(&staging, &dir).map_err(|error| io_error("rename", &staging, error))?;
    RealDisk::new(&dir)
        .sync_parents()
        .map_err(|error| io_error("sync the directory that holds", &dir, error))?;
    Ok(report)
}

/// The lock of a directory in which there is nothing; `None` when there is none.
fn free(dir: &Path) -> Result<Option<Lock>, ToolError> {
    if !dir.exists() {
        return Ok(None);
    }
    let disk = RealDisk::new(dir);
    let held = lock(&disk)?;
    let found = list(&disk)?;
    if found.is_empty && found.segments.is_empty() {
        Ok(Some(held))
    } else {
        Err(ToolError::Occupied(dir.to_owned()))
    }
}

async fn reopen(options: Options) -> Result<OpenReport, ToolError> {
    let (ledger, report) = Ledger::open(Options {
        restored: true,
        listings: None,
        ..options
    })?;
    ledger.shutdown().await;
    Ok(report)
}

/// Copies segments and snapshots durably.
fn copy(from: &Path, to: &Path) -> Result<(), ToolError> {
    if to.exists() {
        fs::remove_dir_all(to).map_err(|error| io_error("remove", to, error))?;
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(to)
        .map_err(|error| io_error("create", to, error))?;
    let names = RealDisk::new(from)
        .list()
        .map_err(|error| io_error("read", from, error))?;
    for name in names {
        if segment::number_of(&name).is_none() && snapshot::entries_of(&name).is_none() {
            continue;
        }
        let target = to.join(&name);
        fs::copy(from.join(&name), &target)
            .and_then(|_| File::open(&target)?.sync_all())
            .map_err(|error| io_error("copy to", &target, error))?;
    }
    let synced = File::open(to).and_then(|dir| dir.sync_all());
    synced.map_err(|error| io_error("sync", to, error))
}
