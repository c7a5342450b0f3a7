//! The module that was good last, kept for the next start.

use super::super::edge::Module;
use crate::config::Config;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// What the file begins with; then come the control plane's version, the module's
/// SHA-256 in hex, and a line's end.
const MAGIC: &str = "writ-module";

fn file(config: &Config) -> PathBuf {
    config.server.data_dir.join("module.good")
}

fn head(sha256: &str) -> String {
    // Another version may write a config that this module does not know.
    format!("{MAGIC} {} {sha256}\n", env!("CARGO_PKG_VERSION"))
}

/// The module that this version of the control plane kept, when it is whole.
pub(super) fn read(config: &Config) -> Option<Module> {
    let path = file(config);
    let mut content = std::fs::read(&path).ok()?;
    let end = content.iter().position(|byte| *byte == b'\n')?;
    let bytes = content.split_off(end.checked_add(1)?);
    let sha256 = hex::encode(Sha256::digest(&bytes));
    if content != head(&sha256).as_bytes() {
        tracing::warn!(
            path = %path.display(),
            "the kept module is damaged or another version's; the start is with edge.module"
        );
        return None;
    }
    let inner = xds::Module::new(bytes).ok()?;
    Some(Module {
        inner,
        sha256,
        modified: None,
    })
}

/// Keeps a module.
pub(super) fn write(config: &Config, module: &Module) {
    let path = file(config);
    let half = path.with_extension("new");
    let content = [head(&module.sha256).as_bytes(), module.inner.bytes()].concat();
    let written = std::fs::write(&half, content)
        .and_then(|()| std::fs::File::open(&half)?.sync_all())
        .and_then(|()| std::fs::rename(&half, &path))
        .and_then(|()| std::fs::File::open(&config.server.data_dir)?.sync_all());
    if let Err(error) = written {
        tracing::warn!(%error, path = %path.display(), "the module that is good could not be kept for the next start");
        // The one before is not what a start should begin with any more.
        remove(config);
    }
}

/// Keeps none.
pub(super) fn remove(config: &Config) {
    let path = file(config);
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "the kept module could not be removed");
    }
}
