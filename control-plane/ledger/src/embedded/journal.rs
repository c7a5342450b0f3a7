//! The journal's segment that is written, in place.
//!
//! Nothing here decides; it writes a group and makes it durable, or says that
//! it could not, after which the process must not go on.

use std::{io, sync::Arc};

use audit::{
    group::{self, Header},
    segment,
};

use crate::embedded::{
    disk::{Disk, Handle, Lock},
    snapshot::{Lengths, Position},
    spare::Spare,
};

/// Bytes at a segment's end that no command's group takes. What recovery has to
/// say of a write that stopped fits there, so that cutting it and saying so are
/// one write of one file: else a start that ends between two would cut in silence.
const RECOVERY_ROOM: usize = 2048;

/// Which part of a segment is kept for what takes rights away, until the next
/// segment is there: one in so many.
const RESERVED_PART: usize = 8;

/// Where the next group goes.
pub(crate) struct Journal {
    disk: Arc<dyn Disk>,
    // Open, as the spare is: going on to the next segment needs no new
    // descriptor, so that a process that has none left does not have to end.
    dir_file: Handle,
    log: [u8; 16],
    file: Handle,
    number: u64,
    offset: usize,
    len: usize,
    group: u64,
    lengths: Lengths,
    // The last group's bytes: their memory is the next one's.
    bytes: Vec<u8>,
    spare: Arc<Spare>,
    // Held until the journal is dropped: one writer.
    _lock: Lock,
}

/// What a journal is opened at, as recovery found it.
pub(crate) struct At {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) log: [u8; 16],
    pub(crate) number: u64,
    pub(crate) offset: usize,
    /// Length of this segment, and of those to come.
    pub(crate) len: usize,
    pub(crate) next_len: usize,
    pub(crate) group: u64,
    /// Lengths of all segments up to this one.
    pub(crate) lengths: Lengths,
    pub(crate) lock: Lock,
}

impl Journal {
    pub(crate) fn open(at: At) -> io::Result<Self> {
        let file = at.disk.open(&segment::file_name(at.number))?;
        let dir_file = at.disk.open_dir()?;
        let spare = Arc::new(Spare::new(Arc::clone(&at.disk), at.next_len));
        spare.prepare();
        Ok(Self {
            disk: at.disk,
            dir_file,
            log: at.log,
            file,
            number: at.number,
            offset: at.offset,
            len: at.len,
            group: at.group,
            lengths: at.lengths,
            bytes: Vec::new(),
            spare,
            _lock: at.lock,
        })
    }

    /// Where the next group goes.
    pub(crate) fn position(&self) -> Position {
        Position {
            log: self.log,
            group: self.group,
            segment: self.number,
            offset: u64::try_from(self.offset).unwrap_or(u64::MAX),
            lengths: self.lengths.clone(),
        }
    }

    /// The number of the segment that is written.
    pub(crate) fn segment(&self) -> u64 {
        self.number
    }

    /// Bytes that a group may still take here.
    pub(crate) fn room(&self) -> usize {
        if planted!(PastTheEnd) {
            return self.len.saturating_sub(self.offset) + group::BLOCK;
        }
        let kept = if planted!(NoRecoveryRoom) {
            0
        } else {
            RECOVERY_ROOM
        };
        self.len.saturating_sub(kept).saturating_sub(self.offset)
    }

    /// Bytes that a group may take in the next segment.
    pub(crate) fn segment_len(&self) -> usize {
        self.spare.len().saturating_sub(RECOVERY_ROOM)
    }

    /// Whether no next segment could be made, so that what room is left is for
    /// what takes rights away.
    pub(crate) fn is_short(&self) -> bool {
        self.spare.is_missing()
    }

    /// The next segment, for those who want to know whether there is one.
    pub(crate) fn spare(&self) -> Arc<Spare> {
        Arc::clone(&self.spare)
    }

    /// Waits for the next segment to be made once `more` bytes would reach into the
    /// last part of this one. That part is for what takes rights away: whether
    /// there is a next one must be known before others may have it.
    pub(crate) fn keep_reserve(&self, more: usize) {
        if planted!(ReserveNotAwaited) {
            return;
        }
        if self.room().saturating_sub(more) < self.len / RESERVED_PART {
            self.spare.wait();
        }
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
        let name = segment::file_name(next);
        self.disk.rename(segment::SPARE, &name)?;
        if self.disk.identity(&name)? != file.identity()? {
            return Err(io::Error::other("another file took the spare's name"));
        }
        self.dir_file.sync_all()?;
        self.file = file;
        if !planted!(StaleSegment) {
            self.number = next;
        }
        if planted!(GroupsRestart) {
            self.group = 0;
        }
        self.offset = 0;
        self.len = self.spare.len();
        let len = u64::try_from(self.len).unwrap_or(u64::MAX);
        self.lengths.push(next, len);
        self.spare.prepare_in_background();
        Ok(true)
    }

    /// Tries again to make a spare segment, if the last try failed.
    pub(crate) fn retry_spare(&self) {
        if self.is_short() {
            self.spare.prepare();
        }
    }

    /// Writes a group and makes it durable: one write, one fdatasync. Leaves the
    /// builder empty.
    ///
    /// # Errors
    /// After which it is unknown what the disk holds: the process must end.
    pub(crate) fn append(&mut self, builder: &mut group::Builder, first: u64) -> io::Result<()> {
        builder
            .finish_into(self.header(first), &mut self.bytes)
            .map_err(io::Error::other)?;
        let bytes = self.bytes.as_slice();
        if bytes.len() > self.room() {
            return Err(io::Error::other("a group that does not fit its segment"));
        }
        let offset = u64::try_from(self.offset).map_err(io::Error::other)?;
        self.file.write_at(bytes, offset)?;
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
