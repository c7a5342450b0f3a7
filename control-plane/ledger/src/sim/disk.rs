//! The simulated machine's disk as one process sees it.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    embedded::disk::{Disk, DiskFile, Handle, Identity, Lock, Work},
    sim::{
        bugs::{self, Bug, is_planted},
        machine::{Call, Inode, Machine, NameChange, Trouble},
    },
};

/// The disk as one process sees it.
#[derive(Clone)]
pub(crate) struct SimDisk {
    machine: Arc<Mutex<Machine>>,
    process: u32,
    work: Arc<Mutex<VecDeque<Work>>>,
}

impl SimDisk {
    pub(crate) fn new(machine: &Arc<Mutex<Machine>>, process: u32) -> Self {
        let machine = Arc::clone(machine);
        let disk = Self {
            machine,
            process,
            work: Arc::default(),
        };
        let mut machine = disk.machine();
        if machine.alive_from == u32::MAX {
            machine.dead.clear();
        }
        machine.admit(process);
        drop(machine);
        disk
    }

    pub(crate) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether background work waits.
    pub(crate) fn is_busy(&self) -> bool {
        !self
            .work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    /// Background work dies with its process. It holds the disk that holds it, so
    /// that nothing else would free it.
    pub(crate) fn abandon(&self) {
        let work = std::mem::take(&mut *self.work.lock().unwrap_or_else(PoisonError::into_inner));
        drop(work);
    }

    fn enter(&self, call: Call, what: &str) -> io::Result<()> {
        match self.machine().enter(self.process, call, what)? {
            None => Ok(()),
            Some(trouble) => trouble.result(),
        }
    }

    fn handle(&self, inode: usize) -> Handle {
        Box::new(SimFile {
            disk: self.clone(),
            inode: Some(inode),
            cursor: 0,
            late: Mutex::default(),
        })
    }

    fn open_file(&self, name: &str) -> io::Result<Handle> {
        self.enter(Call::Open, name)?;
        let inode = self.machine().find(name)?;
        Ok(self.handle(inode))
    }
}

struct SimLock {
    machine: Arc<Mutex<Machine>>,
    process: u32,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        if machine.holder == Some(self.process) {
            machine.holder = None;
        }
    }
}

impl Disk for SimDisk {
    fn path(&self) -> &Path {
        Path::new("/journal")
    }

    fn exists(&self) -> bool {
        true
    }

    fn make(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_parents(&self) -> io::Result<()> {
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.enter(Call::List, "")?;
        Ok(self.machine().visible_names().map(str::to_owned).collect())
    }

    fn lock(&self, name: &str) -> io::Result<Option<Lock>> {
        self.enter(Call::Lock, name)?;
        let mut machine = self.machine();
        if machine.find(name).is_err() {
            machine.inodes.push(Inode::default());
            let inode = machine.inodes.len() - 1;
            machine.change(NameChange::Link(name.to_owned(), inode));
        }
        if machine.holder.is_some_and(|holder| holder != self.process)
            && !is_planted(Bug::LockNotTaken)
        {
            return Ok(None);
        }
        machine.holder = Some(self.process);
        Ok(Some(Box::new(SimLock {
            machine: Arc::clone(&self.machine),
            process: self.process,
        })))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.enter(Call::Read, name)?;
        let machine = self.machine();
        let mut bytes = machine.inodes[machine.find(name)?].cache.clone();
        if is_planted(Bug::DigestUnchecked) {
            bugs::right_digests(&mut bytes);
        }
        Ok(bytes)
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        self.enter(Call::Look, name)?;
        let machine = self.machine();
        Ok(machine.inodes[machine.find(name)?].cache.len() as u64)
    }

    fn identity(&self, name: &str) -> io::Result<Identity> {
        self.enter(Call::Look, name)?;
        Ok(Identity(1, self.machine().find(name)? as u64))
    }

    fn create(&self, name: &str) -> io::Result<Handle> {
        self.enter(Call::Open, name)?;
        let mut machine = self.machine();
        let inode = match machine.find(name) {
            Ok(inode) => {
                let file = &mut machine.inodes[inode];
                file.cache.clear();
                file.dirty.clear();
                file.emptied = true;
                inode
            }
            Err(_) => {
                machine.inodes.push(Inode::default());
                let inode = machine.inodes.len() - 1;
                machine.change(NameChange::Link(name.to_owned(), inode));
                inode
            }
        };
        drop(machine);
        Ok(self.handle(inode))
    }

    fn open(&self, name: &str) -> io::Result<Handle> {
        self.open_file(name)
    }

    fn open_both(&self, name: &str) -> io::Result<Handle> {
        self.open_file(name)
    }

    fn open_dir(&self) -> io::Result<Handle> {
        self.enter(Call::Open, "directory")?;
        Ok(Box::new(SimFile {
            disk: self.clone(),
            inode: None,
            cursor: 0,
            late: Mutex::default(),
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut machine = self.machine();
        let trouble = machine.enter(self.process, Call::Rename, &format!("{from} to {to}"))?;
        let inode = machine.find(from)?;
        // One that was killed has happened, or not.
        let happens = match trouble {
            None => true,
            Some(Trouble::Killed) => machine.rng.percent(50),
            Some(Trouble::Fails(_)) => false,
        };
        if happens {
            if is_planted(Bug::TailNotRewritten) && from.ends_with(".tmp") {
                machine.in_place(inode, to);
            }
            machine.change(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        }
        trouble.map_or(Ok(()), Trouble::result)
    }

    fn exchange(&self, from: &str, to: &str) -> io::Result<()> {
        if !self.machine().exchanges {
            return self.rename(from, to);
        }
        let mut machine = self.machine();
        let what = format!("{from} and {to} exchanged");
        let trouble = machine.enter(self.process, Call::Rename, &what)?;
        let (one, other) = (machine.find(from)?, machine.find(to)?);
        let happens = match trouble {
            None => true,
            Some(Trouble::Killed) => machine.rng.percent(50),
            Some(Trouble::Fails(_)) => false,
        };
        if happens {
            let names = [(from.to_owned(), other), (to.to_owned(), one)];
            machine.change(NameChange::Exchange(names));
        }
        trouble.map_or(Ok(()), Trouble::result)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.enter(Call::Remove, name)?;
        let mut machine = self.machine();
        machine.find(name)?;
        machine.change(NameChange::Unlink(name.to_owned()));
        Ok(())
    }

    fn background(&self, _thread: &str, work: Work) -> io::Result<()> {
        self.work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(work);
        Ok(())
    }

    fn settle(&self) {
        loop {
            let work = self
                .work
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            match work {
                Some(work) => work(),
                None => return,
            }
        }
    }
}

struct SimFile {
    disk: SimDisk,
    /// `None`: the directory.
    inode: Option<usize>,
    cursor: usize,
    /// A write that a planted bug puts off.
    late: Mutex<Option<(usize, Vec<u8>)>>,
}

impl SimFile {
    fn inode(&self) -> io::Result<usize> {
        self.inode.ok_or_else(|| io::Error::from_raw_os_error(21))
    }

    fn sync(&self) -> io::Result<()> {
        let process = self.disk.process;
        let mut machine = self.disk.machine();
        match self.inode {
            Some(inode) => machine.sync(process, inode),
            None if machine.last_rename().is_some_and(is_planted) => Ok(()),
            None => machine.sync_dir(process),
        }
    }
}

fn unless(bug: Bug, code: i32, result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_planted(bug) && error.raw_os_error() == Some(code) => Ok(()),
        other => other,
    }
}

impl DiskFile for SimFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (process, inode) = (self.disk.process, self.inode()?);
        let written = self
            .disk
            .machine()
            .write(process, inode, self.cursor, bytes);
        self.cursor += bytes.len();
        unless(Bug::FullIgnored, 28, written)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (process, inode) = (self.disk.process, self.inode()?);
        if is_planted(Bug::SyncBeforeWrite) {
            let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
            *late = Some((offset as usize, bytes.to_vec()));
            return Ok(());
        }
        let written = self
            .disk
            .machine()
            .write(process, inode, offset as usize, bytes);
        unless(Bug::WriteErrorIgnored, 5, written)
    }

    fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        self.disk.enter(Call::Read, "open file")?;
        let machine = self.disk.machine();
        let bytes = &machine.inodes[self.inode()?].cache;
        Ok(bytes[self.cursor.min(bytes.len())..].to_vec())
    }

    fn rewind(&mut self) -> io::Result<()> {
        self.cursor = 0;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if is_planted(Bug::NoSync) {
            return Ok(());
        }
        let synced = self.sync();
        let late = self
            .late
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((offset, bytes)) = late {
            let (process, inode) = (self.disk.process, self.inode()?);
            self.disk.machine().write(process, inode, offset, &bytes)?;
        }
        unless(Bug::SyncErrorIgnored, 5, synced)
    }

    fn sync_all(&self) -> io::Result<()> {
        if self.inode.is_some() && is_planted(Bug::NewFileNotSynced) {
            return Ok(());
        }
        self.sync()
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(Identity(1, self.inode()? as u64))
    }
}
