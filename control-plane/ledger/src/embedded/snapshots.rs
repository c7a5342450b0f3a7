//! When snapshots are taken, and what becomes of their files.
//!
//! Files are written beside what else goes on; the ledger's thread only gathers
//! what goes in, and writes the entry once a file is durable.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::embedded::{
    disk::{Disk, Work},
    snapshot::{self, SNAPSHOTS_KEPT, Snapshot, SnapshotEvery, Written},
};

#[derive(Default)]
enum Slot {
    #[default]
    Idle,
    Writing,
    Written(Written),
}

/// The snapshots of one journal.
pub(crate) struct Snapshots {
    disk: Arc<dyn Disk>,
    every: SnapshotEvery,
    slot: Arc<(Mutex<Slot>, Condvar)>,
    /// Called when a file is durable, so that its entry is written soon.
    wake: Arc<dyn Fn() + Send + Sync>,
    // Entries and segment when the last was begun.
    last: (u64, Option<u64>),
    /// Entries of those whose entry is durable, oldest first.
    proven: Vec<u64>,
}

fn lock(slot: &(Mutex<Slot>, Condvar)) -> MutexGuard<'_, Slot> {
    slot.0.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Snapshots {
    /// `proven` are those that recovery came by, oldest first; `entries` is how
    /// many entries it found.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        every: SnapshotEvery,
        mut proven: Vec<u64>,
        entries: u64,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        proven.dedup();
        let last = proven.last().copied().unwrap_or_default().min(entries);
        Self {
            disk,
            every,
            slot: Arc::default(),
            wake,
            last: (last, None),
            proven,
        }
    }

    pub(crate) fn is_due(&mut self, entries: u64, segment: u64) -> bool {
        let since = *self.last.1.get_or_insert(segment);
        let due = entries.saturating_sub(self.last.0) >= self.every.entries
            || segment.saturating_sub(since) >= self.every.segments;
        due && matches!(*lock(&self.slot), Slot::Idle)
    }

    /// Whether enough came since the last that the next start goes on from.
    pub(crate) fn is_due_at_shutdown(&self, entries: u64) -> bool {
        let last = self.proven.last().copied().unwrap_or_default();
        entries.saturating_sub(last) >= self.every.at_shutdown
    }

    /// Writes its file beside what else goes on.
    pub(crate) fn begin(&mut self, snapshot: Snapshot) {
        self.last = (snapshot.state.entries, Some(snapshot.segment));
        *lock(&self.slot) = Slot::Writing;
        let (disk, slot, wake) = (
            Arc::clone(&self.disk),
            Arc::clone(&self.slot),
            Arc::clone(&self.wake),
        );
        let work = Box::new(move || {
            let written = write(&*disk, &snapshot);
            *lock(&slot) = written.map_or(Slot::Idle, Slot::Written);
            slot.1.notify_all();
            wake();
        });
        if let Err(error) = self.disk.background("snapshot", work) {
            tracing::warn!(%error, "no snapshot can be written; starting will take longer");
            *lock(&self.slot) = Slot::Idle;
        }
    }

    /// Writes its file now.
    pub(crate) fn write(&self, snapshot: &Snapshot) -> Option<Written> {
        write(&*self.disk, snapshot)
    }

    /// Waits for a file that is being written; then as `finished`.
    pub(crate) fn wait(&mut self) -> Option<Written> {
        self.disk.settle();
        let slot = Arc::clone(&self.slot);
        let writing = |slot: &mut Slot| matches!(slot, Slot::Writing);
        drop(slot.1.wait_while(lock(&slot), writing));
        self.finished()
    }

    /// A file that became durable, once.
    pub(crate) fn finished(&mut self) -> Option<Written> {
        let mut slot = lock(&self.slot);
        match std::mem::take(&mut *slot) {
            Slot::Written(written) => Some(written),
            other => {
                *slot = other;
                None
            }
        }
    }

    /// Its entry is durable: older files can go, beside what else goes on.
    pub(crate) fn proven(&mut self, entries: u64) {
        let prune = self.surplus(entries);
        if let Err(error) = self.disk.background("snapshot-prune", prune) {
            tracing::warn!(%error, "old snapshots are not removed");
        }
    }

    /// As `proven`, but older files are gone when it returns: nothing that runs
    /// beside it outlives the process.
    pub(crate) fn proven_last(&mut self, entries: u64) {
        self.surplus(entries)();
    }

    /// Takes note of it, and removes what is older when it is run.
    fn surplus(&mut self, entries: u64) -> Work {
        self.proven.push(entries);
        let surplus = self.proven.len().saturating_sub(SNAPSHOTS_KEPT);
        self.proven.drain(..surplus);
        let (disk, proven) = (Arc::clone(&self.disk), self.proven.clone());
        Box::new(move || {
            if let Err(error) = snapshot::prune(&*disk, &proven) {
                tracing::warn!(%error, "old snapshots cannot be removed");
            }
        })
    }
}

fn write(disk: &dyn Disk, snapshot: &Snapshot) -> Option<Written> {
    match snapshot.write(disk) {
        Ok(written) => Some(written),
        Err(error) => {
            tracing::warn!(%error, "a snapshot could not be written; starting will take longer");
            None
        }
    }
}
