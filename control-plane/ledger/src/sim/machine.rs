//! A machine's disk in memory: what a running process reads, and what is on it
//! for good, which is less.
//!
//! Contents are volatile in sectors of 512 bytes until the file is synced, names
//! until the directory is. A failed sync keeps what it likes and may forget that
//! the rest was ever to be written, as Linux does. A power loss keeps any part of
//! what was not synced, in any order.

use std::{collections::BTreeMap, io};

use crate::sim::{bugs::Bug, rng::Rng};

pub(crate) const SECTOR: usize = 512;

/// A file's contents, whatever it is called.
#[derive(Clone, Default)]
pub(super) struct Inode {
    /// What a read returns.
    pub(super) cache: Vec<u8>,
    /// What is on the disk.
    disk: Vec<u8>,
    /// Sectors of `cache` that are still to be written.
    pub(super) dirty: Vec<bool>,
    /// It was emptied, and that is not on the disk yet.
    pub(super) emptied: bool,
}

impl Inode {
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        if self.cache.len() < end {
            self.cache.resize(end, 0);
        }
        self.cache[offset..end].copy_from_slice(bytes);
        let sectors = self.cache.len().div_ceil(SECTOR);
        self.dirty.resize(sectors, false);
        self.dirty[offset / SECTOR..end.div_ceil(SECTOR)].fill(true);
    }

    /// Writes one sector to the disk.
    fn keep(&mut self, sector: usize) {
        let from = sector * SECTOR;
        let to = (from + SECTOR).min(self.cache.len());
        if self.disk.len() < to {
            self.disk.resize(to, 0);
        }
        self.disk[from..to].copy_from_slice(&self.cache[from..to]);
        self.dirty[sector] = false;
    }

    pub(super) fn sync(&mut self) {
        if self.emptied || self.disk.len() != self.cache.len() {
            self.disk.clone_from(&self.cache);
        } else {
            for sector in 0..self.dirty.len() {
                if self.dirty[sector] {
                    self.keep(sector);
                }
            }
        }
        self.dirty.fill(false);
        self.emptied = false;
    }

    fn is_clean(&self) -> bool {
        !self.emptied
            && self.disk.len() == self.cache.len()
            && !self.dirty.iter().any(|dirty| *dirty)
    }
}

/// A change of names that is not on the disk yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NameChange {
    Link(String, usize),
    Rename(String, String, usize),
    Unlink(String),
    /// Two names for the files that they stand for then.
    Exchange([(String, usize); 2]),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Link(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Rename(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
            Self::Unlink(name) => {
                names.remove(name);
            }
            Self::Exchange(both) => names.extend(both.iter().cloned()),
        }
    }
}

/// What a system call is, for counting, failing and showing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    List,
    Lock,
    Read,
    Look,
    Open,
    Write,
    Sync,
    SyncDir,
    Rename,
    Remove,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Io,
    NoSpace,
    /// No descriptor is left.
    NoFile,
}

impl Fault {
    fn error(self) -> io::Error {
        let code = match self {
            Self::Io => 5,
            Self::NoSpace => 28,
            Self::NoFile => 24,
        };
        io::Error::from_raw_os_error(code)
    }
}

/// Something that is not on the disk for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsynced {
    Emptied(usize),
    Sector(usize, usize),
    Name(usize),
}

/// Disk, page cache, lock table, and what will go wrong.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(super) rng: Rng,
    pub(super) inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    disk_names: BTreeMap<String, usize>,
    changes: Vec<NameChange>,
    pub(super) holder: Option<u32>,
    /// Processes with a number below this one are dead.
    pub(super) alive_from: u32,
    pub(super) dead: Vec<u32>,
    /// Calls so far.
    pub(crate) calls: u64,
    /// The call at which whoever makes it is killed, somewhere in its midst.
    pub(crate) kill_at: Option<u64>,
    /// The call that fails.
    pub(crate) fail_at: Option<(u64, Fault)>,
    /// As `fail_at`, and it stays.
    pub(crate) sweep: Option<(u64, Fault)>,
    /// The machine before each call, while that is wanted.
    pub(crate) before_calls: Option<Vec<Machine>>,
    /// Calls of a thousand that fail.
    pub(crate) failing: usize,
    /// Bytes that fit.
    pub(crate) capacity: usize,
    /// Whether names can be exchanged.
    pub(crate) exchanges: bool,
    /// How many calls failed, or killed.
    pub(crate) faults: u64,
    /// Every call, while it is wanted.
    pub(crate) log: Option<Vec<(Call, String)>>,
}

impl Machine {
    pub(crate) fn new(rng: Rng) -> Self {
        Self {
            rng,
            inodes: Vec::new(),
            names: BTreeMap::new(),
            disk_names: BTreeMap::new(),
            changes: Vec::new(),
            holder: None,
            alive_from: 0,
            dead: Vec::new(),
            calls: 0,
            kill_at: None,
            fail_at: None,
            sweep: None,
            before_calls: None,
            failing: 0,
            capacity: usize::MAX,
            exchanges: true,
            faults: 0,
            log: None,
        }
    }

    /// Whether nothing is going to fail, but for want of room.
    pub(crate) fn is_quiet(&self) -> bool {
        let none = self.fail_at.is_none() && self.kill_at.is_none() && self.sweep.is_none();
        none && self.failing == 0
    }

    /// Begins a call. `Ok(Some(fault))`: it is to fail, after doing a part of its work.
    pub(super) fn enter(
        &mut self,
        process: u32,
        call: Call,
        what: &str,
    ) -> io::Result<Option<Trouble>> {
        if self.is_dead(process) {
            return Err(io::Error::other("killed"));
        }
        if let Some(mut before) = self.before_calls.take() {
            before.push(self.clone());
            self.before_calls = Some(before);
        }
        self.calls += 1;
        if let Some(log) = &mut self.log {
            log.push((call, what.to_owned()));
        }
        if self.kill_at == Some(self.calls) {
            self.kill_at = None;
            self.faults += 1;
            self.kill(process);
            return Ok(Some(Trouble::Killed));
        }
        let fails =
            match self.fail_at {
                Some((at, fault)) if at == self.calls => Some(fault),
                _ if self.sweep.is_some_and(|(at, _)| at == self.calls) => {
                    self.sweep.map(|(_, fault)| fault)
                }
                _ if self.failing > 0 && self.rng.below(1000) < self.failing => Some(
                    self.rng
                        .one(&[Fault::Io, Fault::Io, Fault::NoSpace, Fault::NoFile]),
                ),
                _ => None,
            };
        let fault = fails.filter(|fault| match fault {
            Fault::Io => call != Call::Lock,
            Fault::NoSpace => matches!(call, Call::Open | Call::Write | Call::Sync | Call::Rename),
            Fault::NoFile => matches!(call, Call::List | Call::Read | Call::Open),
        });
        self.faults += u64::from(fault.is_some());
        Ok(fault.map(Trouble::Fails))
    }

    pub(super) fn find(&self, name: &str) -> io::Result<usize> {
        self.names
            .get(name)
            .copied()
            .ok_or_else(|| io::Error::from_raw_os_error(2))
    }

    pub(super) fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    /// Bytes that files take.
    pub(crate) fn used(&self) -> usize {
        self.names
            .values()
            .map(|at| self.inodes[*at].cache.len())
            .sum()
    }

    /// Bytes of a write that still fit.
    fn fits(&self, inode: usize, offset: usize, len: usize) -> usize {
        let there = self.inodes[inode].cache.len();
        let grows = (offset + len).saturating_sub(there);
        let free = self.capacity.saturating_sub(self.used());
        len.saturating_sub(grows.saturating_sub(free))
    }

    pub(super) fn write(
        &mut self,
        process: u32,
        inode: usize,
        offset: usize,
        bytes: &[u8],
    ) -> io::Result<()> {
        let trouble = self.enter(
            process,
            Call::Write,
            &format!("inode {inode} at {offset}: {} bytes", bytes.len()),
        )?;
        let fits = self.fits(inode, offset, bytes.len());
        if let Some(trouble) = trouble {
            // Some of it got there, in any unit.
            let part = self.rng.below(fits + 1);
            self.inodes[inode].write(offset, &bytes[..part]);
            return trouble.result();
        }
        self.inodes[inode].write(offset, &bytes[..fits]);
        if fits < bytes.len() {
            self.faults += 1;
            return Err(Fault::NoSpace.error());
        }
        Ok(())
    }

    pub(super) fn sync(&mut self, process: u32, inode: usize) -> io::Result<()> {
        let trouble = self.enter(process, Call::Sync, &format!("inode {inode}"))?;
        match trouble {
            None => {
                self.inodes[inode].sync();
                Ok(())
            }
            Some(Trouble::Killed) => Trouble::Killed.result(),
            Some(trouble) => {
                self.half_synced(inode);
                trouble.result()
            }
        }
    }

    /// A sync failed: some sectors are on the disk. Of the others the system may
    /// have forgotten that they are not, and show them or not.
    fn half_synced(&mut self, inode: usize) {
        let forgets = self.rng.percent(75);
        for sector in 0..self.inodes[inode].dirty.len() {
            if !self.inodes[inode].dirty[sector] {
                continue;
            }
            if self.rng.percent(50) {
                self.inodes[inode].keep(sector);
            } else if forgets {
                let file = &mut self.inodes[inode];
                file.dirty[sector] = false;
                file.emptied = false;
                if file.disk.len() < file.cache.len() {
                    file.disk.resize(file.cache.len(), 0);
                }
            }
        }
    }

    pub(super) fn sync_dir(&mut self, process: u32) -> io::Result<()> {
        match self.enter(process, Call::SyncDir, "")? {
            None => {
                self.disk_names.clone_from(&self.names);
                self.changes.clear();
                Ok(())
            }
            Some(Trouble::Killed) => Trouble::Killed.result(),
            Some(trouble) => {
                if self.rng.percent(50) {
                    for change in std::mem::take(&mut self.changes) {
                        if self.rng.percent(50) {
                            change.apply(&mut self.disk_names);
                        }
                    }
                }
                trouble.result()
            }
        }
    }

    /// The system forgets pages that it believes to be on the disk: from now on
    /// reads say what really is.
    pub(crate) fn evict(&mut self) {
        for inode in &mut self.inodes {
            for sector in 0..inode.dirty.len() {
                let from = sector * SECTOR;
                let to = (from + SECTOR).min(inode.cache.len()).min(inode.disk.len());
                if !inode.dirty[sector] && !inode.emptied && from < to {
                    inode.cache[from..to].copy_from_slice(&inode.disk[from..to]);
                }
            }
        }
    }

    pub(crate) fn kill(&mut self, process: u32) {
        self.dead.push(process);
        if self.holder == Some(process) {
            self.holder = None;
        }
    }

    pub(crate) fn is_dead(&self, process: u32) -> bool {
        process < self.alive_from || self.dead.contains(&process)
    }

    pub(crate) fn remove_segments(&mut self) {
        let is_segment = |name: &String| audit::segment::number_of(name).is_some();
        self.names.retain(|name, _| !is_segment(name));
        self.disk_names.retain(|name, _| !is_segment(name));
    }

    /// Everything that a power loss could still take away.
    pub(crate) fn unsynced(&self) -> Vec<Unsynced> {
        let mut all = Vec::new();
        for (at, inode) in self.inodes.iter().enumerate() {
            if inode.emptied {
                all.push(Unsynced::Emptied(at));
            }
            let dirty = inode.dirty.iter().enumerate().filter(|(_, dirty)| **dirty);
            all.extend(dirty.map(|(sector, _)| Unsynced::Sector(at, sector)));
        }
        all.extend((0..self.changes.len()).map(Unsynced::Name));
        all
    }

    /// The power goes. `keeps` says what of the unsynced is on the disk after all.
    pub(crate) fn power_loss(&mut self, mut keeps: impl FnMut(Unsynced) -> bool) {
        for what in self.unsynced() {
            if !keeps(what) {
                continue;
            }
            match what {
                Unsynced::Emptied(at) => self.inodes[at].disk.clear(),
                Unsynced::Sector(at, sector) => self.inodes[at].keep(sector),
                Unsynced::Name(at) => {
                    let change = self.changes[at].clone();
                    change.apply(&mut self.disk_names);
                }
            }
        }
        self.changes.clear();
        for inode in &mut self.inodes {
            inode.cache.clone_from(&inode.disk);
            inode.dirty.clear();
            inode
                .dirty
                .resize(inode.cache.len().div_ceil(SECTOR), false);
            inode.emptied = false;
        }
        self.names.clone_from(&self.disk_names);
        self.holder = None;
        self.alive_from = u32::MAX;
    }

    /// A power loss that keeps `percent` of what was not synced.
    pub(crate) fn random_power_loss(&mut self) {
        let percent = self.rng.one(&[0, 10, 50, 90, 100]);
        let mut rng = self.rng.fork();
        self.power_loss(|_| rng.percent(percent));
    }

    /// A process that may make calls from now on.
    pub(super) fn admit(&mut self, process: u32) {
        self.alive_from = self.alive_from.min(process);
    }

    /// What a file holds for good.
    pub(crate) fn durable(&self, name: &str) -> Option<&[u8]> {
        self.disk_names
            .get(name)
            .map(|at| self.inodes[*at].disk.as_slice())
    }

    /// What a process reads.
    pub(crate) fn visible(&self, name: &str) -> Option<&[u8]> {
        self.names
            .get(name)
            .map(|at| self.inodes[*at].cache.as_slice())
    }

    pub(crate) fn durable_names(&self) -> impl Iterator<Item = &str> {
        self.disk_names.keys().map(String::as_str)
    }

    pub(crate) fn visible_names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Whether both are the same.
    pub(crate) fn is_durable(&self, name: &str) -> bool {
        let (now, later) = (self.names.get(name), self.disk_names.get(name));
        now == later && now.is_some_and(|at| self.inodes[*at].is_clean())
    }

    /// Changes bytes behind everybody's back.
    pub(crate) fn meddle(&mut self, name: &str, with: impl Fn(&mut Vec<u8>)) {
        if let Some(at) = self.names.get(name) {
            let inode = &mut self.inodes[*at];
            with(&mut inode.cache);
            with(&mut inode.disk);
            inode
                .dirty
                .resize(inode.cache.len().div_ceil(SECTOR), false);
        }
    }

    /// Puts a file there, for good.
    pub(crate) fn put(&mut self, name: &str, bytes: &[u8]) {
        let inode = Inode {
            cache: bytes.to_vec(),
            disk: bytes.to_vec(),
            dirty: vec![false; bytes.len().div_ceil(SECTOR)],
            emptied: false,
        };
        self.inodes.push(inode);
        self.names.insert(name.to_owned(), self.inodes.len() - 1);
        self.disk_names
            .insert(name.to_owned(), self.inodes.len() - 1);
    }

    /// What there is, to see whether it changed.
    pub(crate) fn image(&self) -> BTreeMap<String, Vec<u8>> {
        let of = |at: &usize| self.inodes[*at].cache.clone();
        self.names
            .iter()
            .map(|(name, at)| (name.clone(), of(at)))
            .collect()
    }
}

pub(super) enum Trouble {
    Killed,
    Fails(Fault),
}

impl Trouble {
    pub(super) fn result(self) -> io::Result<()> {
        Err(match self {
            Self::Killed => io::Error::other("killed"),
            Self::Fails(fault) => fault.error(),
        })
    }
}

impl Machine {
    /// As if the file had been written in place, where it differs, instead of anew.
    pub(super) fn in_place(&mut self, new: usize, name: &str) {
        let Some(old) = self.names.get(name).map(|at| self.inodes[*at].clone()) else {
            return;
        };
        let new = &mut self.inodes[new];
        if old.cache.len() != new.cache.len() || old.disk.len() != old.cache.len() {
            return;
        }
        for sector in 0..old.cache.len() / SECTOR {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            if old.cache[range.clone()] == new.cache[range.clone()] {
                new.disk[range.clone()].copy_from_slice(&old.disk[range]);
            }
        }
    }

    /// Which kind of rename the directory holds last, not synced.
    pub(super) fn last_rename(&self) -> Option<Bug> {
        self.changes.iter().rev().find_map(|change| match change {
            NameChange::Rename(from, _, _) if from == audit::segment::SPARE => {
                Some(Bug::RollDirNotSynced)
            }
            NameChange::Rename(_, to, _) if to == audit::segment::SPARE => {
                Some(Bug::SpareDirNotSynced)
            }
            NameChange::Rename(..) | NameChange::Exchange(_) => Some(Bug::RecoveryDirNotSynced),
            _ => None,
        })
    }
}
