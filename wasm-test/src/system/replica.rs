//! Several control planes on one database, which look like one from outside.

use std::path::{Path, PathBuf};

use super::System;
use crate::Error;

/// What a replica shares with the first: its names, its keys, its upstream. The
/// database is shared by [`super::Options::store`].
#[derive(Clone, Debug)]
pub struct Beside {
    /// Base URL of the token endpoint, in tokens and proofs.
    pub issuer: String,
    /// The guarded origin, in tokens and proofs.
    pub origin: String,
    /// The upstream's port.
    pub upstream: u16,
    data: PathBuf,
}

impl System {
    /// What a replica of this system has to share with it. This one has to have
    /// been started: it has made the keys then.
    pub fn beside(&self) -> Beside {
        Beside {
            issuer: self.issuer(),
            origin: self.origin(),
            upstream: self.ports.upstream,
            data: self.dir.data(),
        }
    }
}

impl Beside {
    /// Puts the same token key and the same trust domain into a replica's data
    /// directory, as an operator would: tokens and identities are then good at
    /// both.
    ///
    /// # Errors
    /// When a file can't be copied.
    pub fn copy_keys(&self, data: &Path) -> Result<(), Error> {
        for part in ["keys", "trust"] {
            copy_private(&self.data.join(part), &data.join(part))?;
        }
        Ok(())
    }
}

/// Copies a directory of files, with their modes, into one that only its owner may enter.
fn copy_private(from: &Path, to: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(to)
        .map_err(Error::file("create", to))?;
    let files = std::fs::read_dir(from).map_err(Error::file("read", from))?;
    for file in files.flatten() {
        let source = file.path();
        std::fs::copy(&source, to.join(file.file_name())).map_err(Error::file("copy", &source))?;
    }
    Ok(())
}
