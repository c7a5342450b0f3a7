//! What is said of a ledger that opens, and which command answers one that doesn't.

use ledger::{OpenError, OpenReport};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The copy of the head that stands beside a journal's directory.
pub(crate) fn beside(dir: &Path) -> PathBuf {
    let mut name = OsString::from(dir);
    name.push(".head");
    PathBuf::from(name)
}

/// What to do about a ledger that does not open.
pub(crate) fn of(dir: &Path, error: &OpenError) -> String {
    let dir = dir.display();
    let inspect = format!("`writ ledger inspect {dir}` says what is there");
    match error {
        OpenError::Locked(_) => format!("{inspect}, and which process has it"),
        OpenError::NoJournal(_) => format!(
            "{inspect}; `writ ledger restore BACKUP --dir {dir}` puts a backup in its place, `writ ledger init {dir}` begins a new one"
        ),
        OpenError::Gone { .. } => format!(
            "`writ ledger restore BACKUP --dir {dir}` puts a backup in its place; `writ ledger init {dir}` gives it up and begins a new one"
        ),
        OpenError::Behind { .. } => format!(
            "put the newest journal there; if this is all there is, `writ ledger restore {dir} --dir {dir}` takes it as a restored backup"
        ),
        OpenError::Differs { .. } => format!(
            "{inspect}; if this is the journal to go on with, `writ ledger restore {dir} --dir {dir}` takes it as a restored backup"
        ),
        OpenError::Damaged { .. } => format!(
            "`writ ledger verify {dir}` says what is damaged; restore the file, or move the directory away and `writ ledger restore BACKUP --dir {dir}`"
        ),
        OpenError::HeadCopy { path, .. } => format!(
            "make `{}` writable, or name another place in ledger.head_copy; if its contents are damaged, move it away once `writ ledger verify {dir}` is content",
            path.display()
        ),
        OpenError::Full { .. } => format!(
            "free the space, on the file system that holds {dir}; until then nothing is decided. {inspect}, and changes nothing"
        ),
        OpenError::Entry { .. } | OpenError::Io { .. } | OpenError::SegmentLen(_) => inspect,
    }
}

/// Logs what opening found.
pub(crate) fn say_opened(dir: &Path, report: &OpenReport) {
    for (entries, why) in &report.passed_over {
        tracing::warn!(entries, why, "a snapshot is passed over; older ones serve");
    }
    if let Some(torn) = &report.torn {
        tracing::warn!(
            bytes = torn.bytes,
            "a write that had stopped in the middle is cut; nobody had been answered"
        );
    }
    if report.full {
        tracing::error!(
            dir = %dir.display(),
            "no space is left: this start wrote into the segment that is reserved; until there is room for another, only what takes rights away is taken, and everything else gets 503"
        );
    }
    tracing::info!(
        dir = %dir.display(),
        entries = report.entries,
        head = format!("{}:{}", report.entries, hex::encode(report.head)),
        replayed = report.replayed,
        snapshot = report.snapshot,
        start = report.epoch,
        "{}",
        if report.created { "the ledger is begun" } else { "the ledger is open" }
    );
}
