//! The file with the module, which is looked at while we run.

use super::super::edge::{Module, modified};
use crate::config::Config;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// A file that is looked at.
pub(super) struct Watched {
    pub(super) path: PathBuf,
    pub(super) seen: Option<SystemTime>,
    /// What was read last, and has not been taken in hand.
    pub(super) waits: Option<Module>,
    pub(super) sha256: String,
}

impl Watched {
    /// Reads the file when it has changed and rests.
    pub(super) async fn look(&mut self, config: &Config) {
        let now = modified(&self.path);
        if now.is_none() || now == self.seen {
            return;
        }
        // A file that is still being written changes again; wait for it to rest.
        tokio::time::sleep(Duration::from_millis(300)).await;
        if modified(&self.path) != now {
            return;
        }
        self.seen = now;
        match Module::read(&config.edge) {
            Ok(module) if module.sha256 == self.sha256 => {}
            Ok(module) => {
                self.sha256.clone_from(&module.sha256);
                self.waits = Some(module);
            }
            Err(error) => tracing::error!(
                error,
                "the changed module is not pushed; proxies keep the last one"
            ),
        }
    }
}
