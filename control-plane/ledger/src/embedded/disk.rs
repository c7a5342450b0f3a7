//! The disk as the ledger uses it: one directory, one method for one thing that
//! is asked of the file system.
//!
//! Everything that the journal reads or writes goes through [`Disk`], so that a
//! test can put one in its place that loses, fails and reorders. Each method does
//! what its name says and no more: the order of calls is the caller's, because
//! the ledger's promises rest on it.

use std::{
    any::Any,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with},
    io::Errno,
};

/// How often a lock that another process has is asked for.
const LOCK_TRIES: u32 = 10;
/// The pause after each try, in milliseconds.
const LOCK_PAUSE_MS: u64 = 20;

/// Work that another thread does.
pub(crate) type Work = Box<dyn FnOnce() + Send>;
/// Held for as long as the directory is this process's; what it is, is the disk's.
pub(crate) type Lock = Box<dyn Any + Send>;
/// An open file.
pub(crate) type Handle = Box<dyn DiskFile>;

/// Which file a name or a handle stands for: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity(pub(crate) u64, pub(crate) u64);

/// One directory and the files in it, by name.
///
/// # Errors
/// Whatever the file system says. After a failed write or sync it is unknown what
/// the disk holds, also when a later call succeeds.
pub(crate) trait Disk: Send + Sync {
    /// The directory, for messages.
    fn path(&self) -> &Path;
    /// Whether the directory is there.
    fn exists(&self) -> bool;
    /// Makes the directory and those it is in.
    fn make(&self) -> io::Result<()>;
    /// Makes the directory's own name durable, and those of the directories it is in.
    fn sync_parents(&self) -> io::Result<()>;
    /// The names in the directory, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Takes a lock file, made if need be. `None` when another process has it.
    fn lock(&self, name: &str) -> io::Result<Option<Lock>>;
    /// A whole file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// A file's length in bytes.
    fn size(&self, name: &str) -> io::Result<u64>;
    /// Which file the name stands for.
    fn identity(&self, name: &str) -> io::Result<Identity>;
    /// Opens a file for writing, made if need be, and emptied: for its owner alone.
    fn create(&self, name: &str) -> io::Result<Handle>;
    /// Opens a file that is there for writing.
    fn open(&self, name: &str) -> io::Result<Handle>;
    /// Opens a file that is there for reading and writing.
    fn open_both(&self, name: &str) -> io::Result<Handle>;
    /// Opens the directory itself, for syncing what names it holds.
    fn open_dir(&self) -> io::Result<Handle>;
    /// Renames, replacing what has the other name; not durable before the
    /// directory is synced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Changes two names for each other, at once. Where the file system can't, it
    /// renames: then there is no file `from` afterwards.
    fn exchange(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name; not durable before the directory is synced.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Starts `work` beside what else goes on.
    fn background(&self, thread: &str, work: Work) -> io::Result<()>;
    /// Called before waiting for `background` work: does what is left of it where
    /// there are no threads.
    fn settle(&self);

    /// Makes created, renamed and removed names durable.
    fn sync_dir(&self) -> io::Result<()> {
        self.open_dir()?.sync_all()
    }
}

/// An open file, or the open directory.
///
/// # Errors
/// As [`Disk`]'s.
pub(crate) trait DiskFile: Send + Sync {
    /// Writes all of it at the cursor.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Writes all of it at an offset, in one call where the system takes it.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Everything from the cursor to the end.
    fn read_to_end(&mut self) -> io::Result<Vec<u8>>;
    /// Puts the cursor at the start.
    fn rewind(&mut self) -> io::Result<()>;
    /// Makes the contents durable: fdatasync.
    fn sync_data(&self) -> io::Result<()>;
    /// Makes contents and metadata durable: fsync.
    fn sync_all(&self) -> io::Result<()>;
    /// Which file this is, whatever its name became.
    fn identity(&self) -> io::Result<Identity>;
}

/// Whether there was no room, or none that this user may have.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The file system's own.
pub(crate) struct RealDisk {
    dir: PathBuf,
}

impl RealDisk {
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn identity(metadata: &fs::Metadata) -> Identity {
    Identity(metadata.dev(), metadata.ino())
}

fn handle(file: File) -> Handle {
    Box::new(RealFile(file))
}

impl Disk for RealDisk {
    fn path(&self) -> &Path {
        &self.dir
    }

    fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    fn make(&self) -> io::Result<()> {
        fs::create_dir_all(&self.dir)
    }

    fn sync_parents(&self) -> io::Result<()> {
        for (at, above) in self.dir.ancestors().skip(1).enumerate() {
            // The one above a relative path is where the process runs.
            let above = if above.as_os_str().is_empty() {
                Path::new(".")
            } else {
                above
            };
            match File::open(above).and_then(|dir| dir.sync_all()) {
                // Whose names this process may not read, it has not made.
                Err(error) if at > 0 && error.kind() == io::ErrorKind::PermissionDenied => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.dir)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn lock(&self, name: &str) -> io::Result<Option<Lock>> {
        // A child that this process starts has the lock's file too, until it runs
        // its own program; a process that is ending has it for a moment longer.
        for tried in 1..=LOCK_TRIES {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(self.at(name))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // A restore may have put another directory in place meanwhile: a
                // lock on a file that has lost its name keeps nobody out.
                Ok(()) => match self.identity(name) {
                    Ok(named) if named == identity(&file.metadata()?) => {
                        return Ok(Some(Box::new(file)));
                    }
                    Ok(_) => continue,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                },
                Err(Errno::WOULDBLOCK) if tried < LOCK_TRIES => {
                    std::thread::sleep(Duration::from_millis(LOCK_PAUSE_MS));
                }
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.at(name))
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.at(name))?.len())
    }

    fn identity(&self, name: &str) -> io::Result<Identity> {
        Ok(identity(&fs::metadata(self.at(name))?))
    }

    fn create(&self, name: &str) -> io::Result<Handle> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(self.at(name)).map(handle)
    }

    fn open(&self, name: &str) -> io::Result<Handle> {
        let mut options = OpenOptions::new();
        options.write(true).open(self.at(name)).map(handle)
    }

    fn open_both(&self, name: &str) -> io::Result<Handle> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(self.at(name));
        file.map(handle)
    }

    fn open_dir(&self) -> io::Result<Handle> {
        File::open(&self.dir).map(handle)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.at(from), self.at(to))
    }

    fn exchange(&self, from: &str, to: &str) -> io::Result<()> {
        let (one, other) = (self.at(from), self.at(to));
        match renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::rename(one, other),
            done => Ok(done?),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.at(name))
    }

    fn background(&self, thread: &str, work: Work) -> io::Result<()> {
        let thread = std::thread::Builder::new().name(thread.to_owned());
        thread.spawn(work).map(drop)
    }

    fn settle(&self) {}
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn rewind(&mut self) -> io::Result<()> {
        self.0.rewind()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(identity(&self.0.metadata()?))
    }
}
