//! What the control plane says when it is ready, and what `up` says.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Error;

/// The ready file of `writ serve`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ServeReady {
    /// Base URL of the token endpoint.
    pub issuer: String,
    /// Base URL of the pages.
    pub ui: String,
    /// The journal's directory; none when the log is in a database.
    pub audit_dir: Option<PathBuf>,
    /// The one-time login link.
    pub approver_login: String,
    /// SHA-256 of the filter module that is served, in hex.
    pub module_sha256: String,
}

/// The ready file of `cargo xtask up`: where everything of the system is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Base URL of the token endpoint.
    pub issuer: String,
    /// The guarded origin.
    pub proxy: String,
    /// Base URL of the pages.
    pub ui: String,
    /// Envoy's admin interface.
    pub envoy_admin: String,
    /// The Workload API's socket.
    pub workload_api: PathBuf,
    /// The control plane's command socket.
    pub admin_socket: PathBuf,
    /// The journal's directory.
    pub audit_dir: PathBuf,
    /// One-time login link for the approver.
    pub approver_login: String,
    /// The `writ` binary.
    pub writ: PathBuf,
    /// The environment that `writ` commands need to find this system.
    pub env: BTreeMap<String, String>,
    /// Process ids.
    pub pids: Pids,
    /// What to try.
    pub demo: Demo,
}

/// Process ids of a system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    /// The control plane's.
    pub control_plane: u32,
    /// Envoy's.
    pub envoy: u32,
}

/// Paths to try with GET under the starter policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demo {
    /// The SPIFFE ID that any process of this uid attests as.
    pub agent: String,
    /// A path that is allowed.
    pub allowed: String,
    /// A path that is refused already at the exchange.
    pub denied: String,
    /// A path that is held at the edge for a person.
    pub held: String,
    /// The upstream's JSON-lines log of what reached it.
    pub upstream_log: PathBuf,
}

impl Ready {
    /// Writes the file for its owner alone, whole or not at all.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(name);
        drop(std::fs::remove_file(&temporary));
        let text = serde_json::to_vec_pretty(self)
            .map_err(|problem| Error::Unexpected(problem.to_string()))?;
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(&text)?;
                file.write_all(b"\n")
            })
            .and_then(|()| std::fs::rename(&temporary, path));
        if written.is_err() {
            drop(std::fs::remove_file(&temporary));
        }
        written.map_err(Error::file("write the ready file", path))
    }
}
