//! The journal's files: segments written in place, and the spare one.
//!
//! Nothing here decides; it writes a group and makes it durable, or says that
//! it could not, after which the process must not go on.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
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
        let spare = Arc::new(Spare {
            dir: at.dir.clone(),
            len: at.next_len,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        spare.prepare();
        Ok(Self {
            dir: at.dir,
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
        matches!(*self.spare.lock(), SpareState::Failed)
    }

    /// Goes on to the spare segment. `Ok(false)` when there is none and none can be made.
    ///
    /// # Errors
    /// After which it is unknown what the directory holds.
    pub(crate) fn roll(&mut self) -> io::Result<bool> {
        if !self.spare.wait() && !self.spare.prepare() {
            return Ok(false);
        }
        let next = self.number.saturating_add(1);
        let path = self.dir.join(segment::file_name(next));
        fs::rename(self.dir.join(segment::SPARE), &path)?;
        sync_dir(&self.dir)?;
        self.file = OpenOptions::new().write(true).open(&path)?;
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

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum SpareState {
    #[default]
    Missing,
    Making,
    Ready,
    Failed,
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
        let made = self.make();
        if let Err(error) = &made {
            tracing::error!(dir = %self.dir.display(), %error, "no room for another journal segment: free some space");
        }
        self.set(if made.is_ok() {
            SpareState::Ready
        } else {
            SpareState::Failed
        });
        made.is_ok()
    }

    fn prepare_in_background(self: &Arc<Self>) {
        self.set(SpareState::Making);
        let spare = Arc::clone(self);
        let started = std::thread::Builder::new()
            .name("journal-spare".into())
            .spawn(move || spare.prepare());
        if started.is_err() {
            self.set(SpareState::Failed);
        }
    }

    /// Waits while one is being made; says whether there is one.
    fn wait(&self) -> bool {
        let mut state = self.lock();
        while *state == SpareState::Making {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *state == SpareState::Ready
    }

    fn make(&self) -> io::Result<()> {
        let path = self.dir.join(segment::SPARE);
        if let Ok(found) = fs::metadata(&path)
            && usize::try_from(found.len()).is_ok_and(|len| len == self.len)
            && is_zero(&path)?
        {
            return Ok(());
        }
        create_segment(&self.dir, segment::SPARE, &[], self.len)
    }
}

fn is_zero(path: &Path) -> io::Result<bool> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes.iter().all(|b| *b == 0))
}

/// Writes a whole segment to a new file and puts it in place: `start`, then
/// zeros. The zeros are written, not reserved, so that a later fdatasync has no
/// extents to convert and cannot run out of space.
///
/// # Errors
/// Any I/O error; the new name is then not in place, or not durably so.
pub(crate) fn create_segment(dir: &Path, name: &str, start: &[u8], len: usize) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    let written = write_new(&temporary, start, len);
    if written.is_err() {
        // Best effort: a full disk should get its space back.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    fs::rename(&temporary, dir.join(name))?;
    sync_dir(dir)
}

fn write_new(path: &Path, start: &[u8], len: usize) -> io::Result<()> {
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
    file.sync_all()
}

/// Makes a created or renamed name durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
