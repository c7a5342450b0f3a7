//! Heads that are kept elsewhere: how far the journal had come, where neither a
//! restored backup nor a deleted directory takes it along.
//!
//! A copy is written each second and at a shutdown, from what is durable, so it
//! is never ahead of an honest journal. A start compares before it writes
//! anything. What witnesses sign will be compared in the same way.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    embedded::{
        Shared,
        disk::{Disk, RealDisk},
    },
    model::{Hash, Millis},
};

/// How often a head that changed is copied.
const HEAD_EVERY: Duration = Duration::from_secs(1);
const FORMAT: u32 = 1;
/// A copy is never longer, in bytes.
const HEAD_LEN: u64 = 4096;

/// How far a journal had come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptHead {
    format: u32,
    /// The log's random name, hex.
    pub log: String,
    /// Entries that were durable.
    pub entries: u64,
    /// The leaf hash of the last of them.
    #[serde(with = "crate::model::hash_hex")]
    pub head: Hash,
    /// The epoch it was written in.
    pub epoch: u64,
    /// The ledger time of that entry.
    pub time_ms: Millis,
}

impl KeptHead {
    /// The head of a journal.
    #[must_use]
    pub fn new(log: String, entries: u64, head: Hash, epoch: u64, time_ms: Millis) -> Self {
        Self {
            format: FORMAT,
            log,
            entries,
            head,
            epoch,
            time_ms,
        }
    }

    /// Reads a copy; `None` when there is no file of that name.
    ///
    /// # Errors
    /// When there is one and it cannot be read, or is no head.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::metadata(path) {
            Ok(found) if found.len() > HEAD_LEN => {
                return Err(io::Error::other("it is too long to be a journal's head"));
            }
            Ok(_) => fs::read(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let head: Self = serde_json::from_slice(&bytes)
            .map_err(|error| io::Error::other(format!("it is no journal's head: {error}")))?;
        if head.format == FORMAT {
            Ok(Some(head))
        } else {
            let what = format!("its format {} is not known", head.format);
            Err(io::Error::other(what))
        }
    }

    /// Writes a copy durably, under another name first.
    ///
    /// # Errors
    /// Any I/O error.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let name = path.file_name().and_then(|name| name.to_str());
        let (Some(parent), Some(name)) = (path.parent(), name) else {
            return Err(io::Error::other("it is no file's path"));
        };
        let parent = match parent.as_os_str().is_empty() {
            true => Path::new("."),
            false => parent,
        };
        let mut bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        bytes.push(b'\n');
        let disk = RealDisk::new(parent);
        let temporary = format!("{name}.tmp");
        let written = disk.create(&temporary).and_then(|mut file| {
            file.write(&bytes)?;
            file.sync_all()
        });
        if let Err(error) = written {
            // Best effort: a full disk should get its space back.
            let _ = disk.remove(&temporary);
            return Err(error);
        }
        disk.rename(&temporary, name)?;
        disk.sync_dir()
    }
}

/// The thread that keeps the copies up to date.
pub(crate) struct Keeper {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Starts it. `None` when there is nowhere to keep a head.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn start(
        paths: Vec<PathBuf>,
        log: String,
        shared: Arc<Shared>,
    ) -> io::Result<Option<Self>> {
        if paths.is_empty() {
            return Ok(None);
        }
        let (stop, stopped) = mpsc::channel::<()>();
        let mut copies = Copies {
            paths,
            log,
            shared,
            last: None,
            failing: false,
        };
        let thread = std::thread::Builder::new()
            .name("heads".into())
            .spawn(move || {
                // Nothing is ever sent: the other end's going is the sign.
                while stopped.recv_timeout(HEAD_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                    copies.write();
                }
                copies.write();
            })?;
        Ok(Some(Self { stop, thread }))
    }

    /// Copies the last head and ends. Called once nothing more is written.
    pub(crate) fn finish(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that keeps the journal's head elsewhere panicked");
        }
    }
}

struct Copies {
    paths: Vec<PathBuf>,
    log: String,
    shared: Arc<Shared>,
    last: Option<u64>,
    failing: bool,
}

impl Copies {
    fn write(&mut self) {
        let head = self.shared.kept_head(self.log.clone());
        if self.last == Some(head.entries) {
            return;
        }
        let mut failed = false;
        for path in &self.paths {
            if let Err(error) = head.write(path) {
                failed = true;
                // Said once for each time that it begins: it is tried each second.
                if !self.failing {
                    tracing::error!(path = %path.display(), %error, "the journal's head cannot be kept elsewhere; a journal that is set back would not be noticed");
                }
            }
        }
        self.failing = failed;
        if !failed {
            self.last = Some(head.entries);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_reads_back_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.head");
        assert_eq!(KeptHead::read(&path).unwrap(), None);
        let head = KeptHead::new("ab".repeat(16), 7, [3; 32], 2, 5);
        head.write(&path).unwrap();
        assert_eq!(KeptHead::read(&path).unwrap(), Some(head.clone()));
        let good = fs::read_to_string(&path).unwrap();
        for bad in [
            String::new(),
            good.replace("\"format\":1", "\"format\":2"),
            good.replace("\"entries\":7", "\"entries\":-7"),
            good.replace("\"epoch\"", "\"epoche\""),
            format!("{good}{}", " ".repeat(4096)),
        ] {
            fs::write(&path, &bad).unwrap();
            assert!(KeptHead::read(&path).is_err(), "{bad}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(KeptHead::read(&path).is_err());
        assert!(head.write(&path).is_err());
        assert!(head.write(&dir.path().join("nowhere/head")).is_err());
    }
}
