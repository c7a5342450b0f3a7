//! The journal's files: segments written in place, and the spare one.
//!
//! Nothing here decides; it writes a group and makes it durable, or says that
//! it could not, after which the process must not go on.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use audit::{
    group::{self, Header},
    segment,
};

/// Where the next group goes.
pub(crate) struct Journal {
    dir: PathBuf,
    // Open, as the spare is: going on to the next segment needs no new
    // descriptor, so that a process that has none left does not have to end.
    dir_file: File,
    log: [u8; 16],
    file: File,
    number: u64,
    offset: usize,
    len: usize,
    group: u64,
    spare: Arc<Spare>,
    // Held until the journal is dropped: one writer.
    _lock: File,
}

/// What a journal is opened at, as recovery found it.
pub(crate) struct At {
    pub(crate) dir: PathBuf,
    pub(crate) log: [u8; 16],
    pub(crate) number: u64,
    pub(crate) offset: usize,
    /// Length of this segment, and of those to come.
    pub(crate) len: usize,
    pub(crate) next_len: usize,
    pub(crate) group: u64,
    pub(crate) lock: File,
}

impl Journal {
    pub(crate) fn open(at: At) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .open(at.dir.join(segment::file_name(at.number)))?;
        let dir_file = File::open(&at.dir)?;
        let spare = Arc::new(Spare {
            dir: at.dir.clone(),
            len: at.next_len,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        spare.prepare();
        Ok(Self {
            dir: at.dir,
            dir_file,
            log: at.log,
            file,
            number: at.number,
            offset: at.offset,
            len: at.len,
            group: at.group,
            spare,
            _lock: at.lock,
        })
    }

    /// Bytes that a group may still take here.
    pub(crate) fn room(&self) -> usize {
        self.len.saturating_sub(self.offset)
    }

    /// Bytes that a group may take in the next segment.
    pub(crate) fn segment_len(&self) -> usize {
        self.spare.len
    }

    /// Whether no next segment could be made, so that what room is left is for
    /// what takes rights away.
    pub(crate) fn is_short(&self) -> bool {
        matches!(*self.spare.lock(), SpareState::Missing)
    }

    /// Goes on to the spare segment. `Ok(false)` when there is none and none can be made.
    ///
    /// # Errors
    /// After which it is unknown what the directory holds.
    pub(crate) fn roll(&mut self) -> io::Result<bool> {
        let Some(file) = self.spare.take() else {
            return Ok(false);
        };
        let next = self.number.saturating_add(1);
        let path = self.dir.join(segment::file_name(next));
        fs::rename(self.dir.join(segment::SPARE), &path)?;
        let (named, open) = (fs::metadata(&path)?, file.metadata()?);
        if (named.dev(), named.ino()) != (open.dev(), open.ino()) {
            return Err(io::Error::other("another file took the spare's name"));
        }
        self.dir_file.sync_all()?;
        self.file = file;
        self.number = next;
        self.offset = 0;
        self.len = self.spare.len;
        self.spare.prepare_in_background();
        Ok(true)
    }

    /// Tries again to make a spare segment, if the last try failed.
    pub(crate) fn retry_spare(&self) {
        if self.is_short() {
            self.spare.prepare();
        }
    }

    /// Writes a group and makes it durable: one write, one fdatasync.
    ///
    /// # Errors
    /// After which it is unknown what the disk holds: the process must end.
    pub(crate) fn append(&mut self, builder: group::Builder, first: u64) -> io::Result<()> {
        let (_, bytes) = builder
            .finish(self.header(first))
            .map_err(io::Error::other)?;
        if bytes.len() > self.room() {
            return Err(io::Error::other("a group that does not fit its segment"));
        }
        let offset = u64::try_from(self.offset).map_err(io::Error::other)?;
        self.file.write_all_at(&bytes, offset)?;
        self.file.sync_data()?;
        self.offset = self.offset.saturating_add(bytes.len());
        self.group = self.group.saturating_add(1);
        Ok(())
    }

    fn header(&self, first: u64) -> Header {
        header(self.log, self.number, self.group, first)
    }
}

/// A header before its builder fills in the rest. Every group is synced before
/// the next is written, so what is durable is all that came before.
pub(crate) fn header(log: [u8; 16], segment: u64, group: u64, first: u64) -> Header {
    Header {
        log,
        segment,
        group,
        first,
        durable: first,
        count: 0,
        lines_len: 0,
        total_len: 0,
        head: [0; 32],
    }
}

#[derive(Default)]
enum SpareState {
    /// There is none: taken, or it could not be made.
    #[default]
    Missing,
    Making,
    Ready(File),
}

/// The segment that is reserved, so that there is room when the disk is full.
struct Spare {
    dir: PathBuf,
    len: usize,
    state: Mutex<SpareState>,
    changed: Condvar,
}

impl Spare {
    fn lock(&self) -> MutexGuard<'_, SpareState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: SpareState) {
        *self.lock() = state;
        self.changed.notify_all();
    }

    /// Makes it now; says whether there is one.
    fn prepare(&self) -> bool {
        match self.make() {
            Ok(file) => {
                self.set(SpareState::Ready(file));
                true
            }
            Err(error) => {
                tracing::error!(dir = %self.dir.display(), %error, "no other journal segment can be made: free some space, or descriptors");
                self.set(SpareState::Missing);
                false
            }
        }
    }

    fn prepare_in_background(self: &Arc<Self>) {
        self.set(SpareState::Making);
        let spare = Arc::clone(self);
        let started = std::thread::Builder::new()
            .name("journal-spare".into())
            .spawn(move || spare.prepare());
        if started.is_err() {
            self.set(SpareState::Missing);
        }
    }

    /// Waits while one is being made, and makes one now if that failed; `None`
    /// when that fails as well.
    fn take(&self) -> Option<File> {
        let mut state = self.lock();
        while matches!(*state, SpareState::Making) {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if matches!(*state, SpareState::Missing) {
            drop(state);
            self.prepare();
            state = self.lock();
        }
        match std::mem::take(&mut *state) {
            SpareState::Ready(file) => Some(file),
            SpareState::Missing | SpareState::Making => None,
        }
    }

    fn make(&self) -> io::Result<File> {
        let path = self.dir.join(segment::SPARE);
        if let Ok(found) = fs::metadata(&path)
            && usize::try_from(found.len()).is_ok_and(|len| len == self.len)
            && let Some(file) = zeroed(&path)?
        {
            return Ok(file);
        }
        create_segment(&self.dir, segment::SPARE, &[], self.len)
    }
}

/// The file, opened for writing from its start, if it holds zeros only.
fn zeroed(path: &Path) -> io::Result<Option<File>> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    file.rewind()?;
    Ok(bytes.iter().all(|b| *b == 0).then_some(file))
}

/// Writes a whole segment to a new file and puts it in place: `start`, then
/// zeros. The zeros are written, not reserved, so that a later fdatasync has no
/// extents to convert and cannot run out of space. Returns it open for writing.
///
/// # Errors
/// Any I/O error; the new name is then not in place, or not durably so.
pub(crate) fn create_segment(dir: &Path, name: &str, start: &[u8], len: usize) -> io::Result<File> {
    let temporary = dir.join(format!("{name}.tmp"));
    let written = write_new(&temporary, start, len);
    if written.is_err() {
        // Best effort: a full disk should get its space back.
        let _ = fs::remove_file(&temporary);
    }
    let file = written?;
    fs::rename(&temporary, dir.join(name))?;
    sync_dir(dir)?;
    Ok(file)
}

fn write_new(path: &Path, start: &[u8], len: usize) -> io::Result<File> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(start)?;
    let mut left = len.saturating_sub(start.len());
    while let Some(zeros) = ZEROS
        .get(..left.min(ZEROS.len()))
        .filter(|zeros| !zeros.is_empty())
    {
        file.write_all(zeros)?;
        left = left.saturating_sub(zeros.len());
    }
    file.sync_all()?;
    Ok(file)
}

/// Makes a created or renamed name durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
