//! Which identities a local process has, by what the kernel says about it.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tokio::net::UnixStream;

use crate::SpiffeId;

/// One rule of the built-in trust domain: a process that fits gets the identity.
///
/// At least one of `uid` and `executable` is set.
#[derive(Debug, Clone)]
pub struct WorkloadEntry {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// The process's user, as the kernel has it.
    pub uid: Option<u32>,
    /// The file that the process runs. It is compared as a file (device and
    /// inode), not as a name, so that a mount namespace can't rename another
    /// program to it. Reading it needs the same user or `CAP_SYS_PTRACE`. It
    /// tells honest programs of one uid apart and is no boundary between them:
    /// a process may start any program, and look into those of its own uid.
    pub executable: Option<PathBuf>,
}

/// A file as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// Looks the file up, following symbolic links.
    ///
    /// # Errors
    /// When the file isn't there or may not be looked at.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

/// The process at the other end of a connection, as it was when it connected.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// Its process id, unless it lives in a process namespace that we can't see.
    pub pid: Option<u32>,
    /// The file it runs, when we may know.
    pub executable: Option<FileIdentity>,
}

impl Caller {
    /// Asks the kernel who connected.
    ///
    /// # Errors
    /// When the socket has no peer credentials.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let pid = credentials
            .pid()
            .and_then(|pid| u32::try_from(pid).ok())
            .filter(|pid| *pid > 0);
        let executable =
            pid.and_then(|pid| FileIdentity::of(Path::new(&format!("/proc/{pid}/exe"))).ok());
        Ok(Self {
            uid: credentials.uid(),
            pid,
            executable,
        })
    }
}

impl WorkloadEntry {
    fn fits(&self, caller: &Caller) -> bool {
        let uid_fits = self.uid.is_none_or(|uid| uid == caller.uid);
        let executable_fits = match &self.executable {
            None => true,
            // Looked up at every connection: a package upgrade replaces the file.
            Some(path) => match (FileIdentity::of(path), caller.executable) {
                (Ok(wanted), Some(actual)) => wanted == actual,
                _ => false,
            },
        };
        uid_fits && executable_fits
    }

    fn rank(&self) -> u8 {
        match (&self.executable, self.uid) {
            (Some(_), Some(_)) => 0,
            (Some(_), None) => 1,
            (None, Some(_)) => 2,
            (None, None) => 3,
        }
    }
}

/// The identities of a caller, its default one first.
///
/// This process itself is `self_id` and nothing else. A caller that an entry
/// with an executable fits gets no identity of entries without one, so that a
/// proxy isn't an agent as well because both run as one user.
pub(crate) fn identities(
    entries: &[WorkloadEntry],
    self_id: &SpiffeId,
    caller: &Caller,
) -> Vec<SpiffeId> {
    if caller.pid == Some(std::process::id()) {
        return vec![self_id.clone()];
    }
    let mut fitting: Vec<&WorkloadEntry> =
        entries.iter().filter(|entry| entry.fits(caller)).collect();
    if fitting.iter().any(|entry| entry.executable.is_some()) {
        fitting.retain(|entry| entry.executable.is_some());
    }
    // Stable: among equally specific entries the configuration's order holds.
    fitting.sort_by_key(|entry| entry.rank());
    let mut ids: Vec<SpiffeId> = Vec::with_capacity(fitting.len());
    for entry in fitting {
        if !ids.contains(&entry.spiffe_id) {
            ids.push(entry.spiffe_id.clone());
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://writ.example/{path}")).unwrap()
    }

    fn entry(path: &str, uid: Option<u32>, executable: Option<&str>) -> WorkloadEntry {
        WorkloadEntry {
            spiffe_id: id(path),
            uid,
            executable: executable.map(PathBuf::from),
        }
    }

    fn caller(uid: u32, executable: &str) -> Caller {
        Caller {
            uid,
            pid: Some(std::process::id() + 1),
            executable: FileIdentity::of(Path::new(executable)).ok(),
        }
    }

    #[test]
    fn the_most_specific_entry_comes_first_and_an_executable_excludes_the_rest() {
        let entries = [
            entry("agent", Some(7), None),
            entry("any-shell", None, Some("/bin/sh")),
            entry("shell", Some(7), Some("/bin/sh")),
        ];
        let me = id("control-plane");
        assert_eq!(
            identities(&entries, &me, &caller(7, "/bin/sh")),
            [id("shell"), id("any-shell")]
        );
        assert_eq!(
            identities(&entries, &me, &caller(7, "/bin/cat")),
            [id("agent")]
        );
        assert_eq!(
            identities(&entries, &me, &caller(8, "/bin/sh")),
            [id("any-shell")]
        );
        assert!(identities(&entries, &me, &caller(8, "/bin/cat")).is_empty());
    }

    #[test]
    fn an_unreadable_executable_fits_no_entry_that_names_one() {
        let entries = [entry("shell", Some(7), Some("/nonexistent"))];
        let unknown = Caller {
            uid: 7,
            pid: None,
            executable: None,
        };
        assert!(identities(&entries, &id("control-plane"), &unknown).is_empty());
    }

    #[test]
    fn this_process_is_the_control_plane_and_nothing_else() {
        let entries = [entry("agent", Some(7), None)];
        let me = Caller {
            uid: 7,
            pid: Some(std::process::id()),
            executable: None,
        };
        assert_eq!(
            identities(&entries, &id("control-plane"), &me),
            [id("control-plane")]
        );
    }
}
