//! The state directory of one system.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, test_kill_process};

use crate::Error;

// sockaddr_un has 108 bytes on Linux and 104 on macOS, the last one a zero.
const SOCKET_PATH_MAX: usize = 100;
const LONGEST_SOCKET_NAME: usize = "workload.sock".len();

static COUNT: AtomicU32 = AtomicU32::new(0);

/// `target/up/PID-N`, and where sockets go when that is too long a path for them.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    // Removed when it is dropped.
    sockets: Option<tempfile::TempDir>,
    keep: bool,
    started: bool,
}

impl StateDir {
    /// Makes a fresh one, and removes those of processes that are gone.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn create(root: &Path, keep: bool) -> Result<StateDir, Error> {
        let parent = root.join("target/up");
        std::fs::create_dir_all(&parent).map_err(Error::file("create", &parent))?;
        sweep(&parent);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{}-{count}", std::process::id()));
        // Somebody's with our id from before a reboot.
        drop(std::fs::remove_dir_all(&path));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(Error::file("create the state directory", &path))?;
        let long = path.as_os_str().len() + 1 + LONGEST_SOCKET_NAME > SOCKET_PATH_MAX;
        let sockets = if long {
            // Made with mode 0700, as the state directory is.
            let made = tempfile::Builder::new().prefix("writ-").tempdir();
            Some(made.map_err(Error::file(
                "create a directory for sockets in",
                &std::env::temp_dir(),
            ))?)
        } else {
            None
        };
        Ok(StateDir {
            path,
            sockets,
            keep,
            started: false,
        })
    }

    /// From here on the directory goes when the system does, unless it is to be
    /// kept or a test fails: logs of what never started are worth keeping.
    pub fn started(&mut self) {
        self.started = true;
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A socket's path.
    pub fn socket(&self, name: &str) -> PathBuf {
        let dir = self.sockets.as_ref().map_or(self.path(), |dir| dir.path());
        dir.join(name)
    }

    /// The control plane's config file.
    pub fn config(&self) -> PathBuf {
        self.path.join("writ.toml")
    }

    /// The control plane's ready file.
    pub fn serve_ready(&self) -> PathBuf {
        self.path.join("serve.json")
    }

    /// The control plane's data.
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// The policy that the control plane reads.
    pub fn policy(&self) -> PathBuf {
        self.path.join("policy.cedar")
    }

    /// The filter module that the control plane reads.
    pub fn module(&self) -> PathBuf {
        self.path.join("filter.wasm")
    }

    /// An Envoy's bootstrap.
    pub fn bootstrap_of(&self, index: usize) -> PathBuf {
        self.path.join(format!("{}.yaml", envoy(index)))
    }

    /// An Envoy's output.
    pub fn envoy_log(&self, index: usize) -> PathBuf {
        self.log(&envoy(index))
    }

    /// The upstream's log.
    pub fn upstream_log(&self) -> PathBuf {
        self.path.join("upstream.jsonl")
    }

    /// A process's output.
    pub fn log(&self, part: &str) -> PathBuf {
        self.path.join(format!("{part}.log"))
    }
}

/// What an Envoy is called: `envoy`, `envoy-1`, and so on.
fn envoy(index: usize) -> String {
    match index {
        0 => "envoy".to_owned(),
        _ => format!("envoy-{index}"),
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        if self.started && !self.keep && !std::thread::panicking() {
            drop(std::fs::remove_dir_all(&self.path));
        }
    }
}

/// Removes the directories of processes that are gone, so that runs don't pile up.
fn sweep(parent: &Path) {
    const KEPT: usize = 8;
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    let mut dead: Vec<_> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|name| name.split('-').next());
            let pid = owner
                .and_then(|pid| pid.parse().ok())
                .and_then(Pid::from_raw);
            pid.is_some_and(|pid| test_kill_process(pid).is_err())
        })
        .collect();
    // The latest few stay: somebody may want to read what failed.
    dead.sort_by_key(|entry| entry.metadata().and_then(|meta| meta.modified()).ok());
    let surplus = dead.len().saturating_sub(KEPT);
    for entry in dead.iter().take(surplus) {
        drop(std::fs::remove_dir_all(entry.path()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn is_for_its_owner_and_goes_with_the_system() {
        let root = tempfile::tempdir().unwrap();
        let mut dir = StateDir::create(root.path(), false).unwrap();
        let path = dir.path().to_owned();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        dir.started();
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn sockets_go_elsewhere_when_the_path_is_too_long() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(90));
        let dir = StateDir::create(&deep, false).unwrap();
        let socket = dir.socket("workload.sock");
        assert!(socket.as_os_str().len() <= SOCKET_PATH_MAX);
        assert!(!socket.starts_with(dir.path()));
    }
}
