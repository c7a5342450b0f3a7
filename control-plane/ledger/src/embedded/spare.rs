//! The segment that is reserved, and how segments come to be, also where no space
//! is left.
//!
//! A start has to write the last segment anew, which takes a segment's room beside
//! it. On a full disk it writes into what is reserved, and changes the names of the
//! two: so no space is needed, and a segment is reserved afterwards as before. What
//! is reserved then is not zeroed, and has another name, [`RESERVE`]. Nothing
//! shows that there is room for a further one, and until there is, what room there
//! is stays for what takes rights away.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use audit::segment;

use crate::embedded::disk::{Disk, Handle, is_full};

/// What is reserved, whatever it holds: nobody takes it for zeros.
pub(crate) const RESERVE: &str = "reserve.seg.tmp";

#[derive(Default)]
enum SpareState {
    /// There is none: taken, or it could not be made.
    #[default]
    Missing,
    Making,
    Ready(Handle),
}

/// The segment that is reserved, so that there is room when the disk is full.
pub(crate) struct Spare {
    disk: Arc<dyn Disk>,
    len: usize,
    state: Mutex<SpareState>,
    changed: Condvar,
    failing: AtomicBool,
}

impl Spare {
    /// None yet.
    pub(crate) fn new(disk: Arc<dyn Disk>, len: usize) -> Self {
        Self {
            disk,
            len,
            state: Mutex::default(),
            changed: Condvar::new(),
            failing: AtomicBool::new(false),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn lock(&self) -> MutexGuard<'_, SpareState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: SpareState) {
        *self.lock() = state;
        self.changed.notify_all();
    }

    /// Whether no further segment could be made.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(*self.lock(), SpareState::Missing)
    }

    /// Whether it is not known yet if there will be one.
    #[cfg(test)]
    pub(crate) fn is_making(&self) -> bool {
        matches!(*self.lock(), SpareState::Making)
    }

    /// Makes it now; says whether there is one.
    pub(crate) fn prepare(&self) -> bool {
        let dir = self.disk.path().display();
        match self.make() {
            Ok(file) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(%dir, "there is room for the journal again: everything is taken");
                }
                self.set(SpareState::Ready(file));
                true
            }
            Err(error) => {
                // It is tried each second: that it begins is what is said.
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::error!(%dir, bytes = self.len, %error, "no further segment of the journal can be made: until there is space for one, and a descriptor, only what takes rights away is taken");
                }
                self.set(SpareState::Missing);
                false
            }
        }
    }

    pub(crate) fn prepare_in_background(self: &Arc<Self>) {
        self.set(SpareState::Making);
        let spare = Arc::clone(self);
        let work = Box::new(move || {
            spare.prepare();
        });
        if self.disk.background("journal-spare", work).is_err() {
            self.set(SpareState::Missing);
        }
    }

    /// Waits while one is being made.
    pub(crate) fn wait(&self) {
        drop(self.settle());
    }

    fn settle(&self) -> MutexGuard<'_, SpareState> {
        self.disk.settle();
        let making = |state: &mut SpareState| matches!(state, SpareState::Making);
        self.changed
            .wait_while(self.lock(), making)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while one is being made, and makes one now if that failed, at last of
    /// what is reserved; `None` when that fails as well.
    pub(crate) fn take(&self) -> Option<Handle> {
        let mut state = self.settle();
        if matches!(*state, SpareState::Missing) {
            drop(state);
            if !self.prepare() {
                return self.of_reserve();
            }
            state = self.lock();
        }
        match std::mem::take(&mut *state) {
            SpareState::Ready(file) => Some(file),
            SpareState::Missing | SpareState::Making => None,
        }
    }

    fn make(&self) -> io::Result<Handle> {
        let disk = &*self.disk;
        let found = match has_len(disk, segment::SPARE, self.len) {
            true => zeroed(disk, segment::SPARE)?,
            false => None,
        };
        let file = match found {
            Some(file) => {
                // Whoever made it may not have come to making its name durable.
                disk.sync_dir()?;
                file
            }
            None if planted!(FullStartTakesAll) && disk.size(RESERVE).is_ok() => {
                return self.of_reserve().ok_or(io::ErrorKind::StorageFull.into());
            }
            None => create_segment(disk, segment::SPARE, &[], self.len)?,
        };
        // There is room: nothing else has to be kept. Where this fails it stays.
        if disk.size(RESERVE).is_ok() {
            let _ = disk.remove(RESERVE);
        }
        Ok(file)
    }

    /// Makes the spare of what is reserved, which needs no space.
    fn of_reserve(&self) -> Option<Handle> {
        let disk = &*self.disk;
        let made = hold_reserve(disk, self.len).and_then(|held| {
            if !held {
                return Ok(None);
            }
            let file = write_over(disk, RESERVE, &[], self.len)?;
            disk.rename(RESERVE, segment::SPARE)?;
            disk.sync_dir()?;
            Ok(Some(file))
        });
        made.unwrap_or_else(|error| {
            tracing::error!(%error, "the segment that is reserved cannot be used");
            None
        })
    }
}

fn has_len(disk: &dyn Disk, name: &str, len: usize) -> bool {
    let found = disk.size(name).ok();
    found.and_then(|n| usize::try_from(n).ok()) == Some(len)
}

/// The file, opened for writing from its start, if it holds zeros only.
fn zeroed(disk: &dyn Disk, name: &str) -> io::Result<Option<Handle>> {
    let mut file = disk.open_both(name)?;
    let bytes = file.read_to_end()?;
    file.rewind()?;
    Ok((planted!(SpareNotZeroed) || bytes.iter().all(|b| *b == 0)).then_some(file))
}

/// Puts a segment in place, new or instead of the one of that name: in a new file,
/// or where there is no room for one in what is reserved. Says whether that was so.
///
/// # Errors
/// Any I/O error; the new segment is then not in place, or not durably so.
pub(crate) fn put_segment(
    disk: &dyn Disk,
    name: &str,
    start: &[u8],
    len: usize,
) -> io::Result<bool> {
    let full = match create_segment(disk, name, start, len) {
        Ok(_) => return Ok(false),
        Err(error) if is_full(&error) => error,
        Err(error) => return Err(error),
    };
    if planted!(ReserveNotUsed) || !hold_reserve(disk, len)? {
        return Err(full);
    }
    write_over(disk, RESERVE, start, len)?;
    match disk.size(name) {
        Ok(_) => disk.exchange(RESERVE, name)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => disk.rename(RESERVE, name)?,
        Err(error) => return Err(error),
    }
    disk.sync_dir()?;
    Ok(true)
}

/// Whether a segment of this length is reserved: then it has the name that
/// nobody takes for zeros, and no other, also after a power loss.
fn hold_reserve(disk: &dyn Disk, len: usize) -> io::Result<bool> {
    // What is written over must not be a segment still, by a name that a power
    // loss brings back.
    disk.sync_dir()?;
    if has_len(disk, RESERVE, len) {
        return Ok(true);
    }
    let spare = has_len(disk, segment::SPARE, len);
    if spare {
        disk.rename(segment::SPARE, RESERVE)?;
    }
    Ok(spare)
}

/// Writes a whole segment to a new file and puts it in place: `start`, then
/// zeros. The zeros are written, not reserved, so that a later fdatasync has no
/// extents to convert and cannot run out of space. Returns it open for writing.
///
/// # Errors
/// Any I/O error; the new name is then not in place, or not durably so.
fn create_segment(disk: &dyn Disk, name: &str, start: &[u8], len: usize) -> io::Result<Handle> {
    let temporary = format!("{name}.tmp");
    let written = disk
        .create(&temporary)
        .and_then(|file| write_whole(file, start, len));
    if written.is_err() {
        // Best effort: a full disk should get its space back.
        let _ = disk.remove(&temporary);
    }
    let file = written?;
    disk.rename(&temporary, name)?;
    disk.sync_dir()?;
    Ok(file)
}

/// Writes a whole segment over what a file of its length holds.
fn write_over(disk: &dyn Disk, name: &str, start: &[u8], len: usize) -> io::Result<Handle> {
    write_whole(disk.open(name)?, start, len)
}

fn write_whole(mut file: Handle, start: &[u8], len: usize) -> io::Result<Handle> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    file.write(start)?;
    let mut left = len.saturating_sub(start.len());
    while let Some(zeros) = ZEROS
        .get(..left.min(ZEROS.len()))
        .filter(|zeros| !zeros.is_empty())
    {
        file.write(zeros)?;
        left = left.saturating_sub(zeros.len());
    }
    file.sync_all()?;
    Ok(file)
}
