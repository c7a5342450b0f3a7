//! The module and the `[edge]` that were good last, kept for the next start.

use super::super::edge::{Module, Release};
use crate::config::{Config, Edge};
use crate::edges::Served;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::Arc;

/// What the file begins with; then come the control plane's version, SHA-256 in hex of
/// the rest, and a line's end. The rest is the `[edge]` in a line, and the module.
const MAGIC: &str = "writ-edge";

fn file(config: &Config) -> PathBuf {
    config.server.data_dir.join("edge.good")
}

fn head(rest: &[u8]) -> String {
    // Another version may write a config that this module does not know.
    let sha256 = hex::encode(Sha256::digest(rest));
    format!("{MAGIC} {} {sha256}\n", env!("CARGO_PKG_VERSION"))
}

/// What this version of the control plane kept, when it is whole.
pub(super) fn read(config: &Config) -> Option<Release> {
    let path = file(config);
    let release = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "what was kept can't be read");
            None
        }
        Ok(content) => of_bytes(content),
    };
    if release.is_none() {
        tracing::warn!(
            path = %path.display(),
            "what was kept is damaged or another version's; the start is with edge.module and the file's [edge]"
        );
    }
    release
}

fn of_bytes(mut content: Vec<u8>) -> Option<Release> {
    let rest = split_line(&mut content)?;
    if content != head(&rest).as_bytes() {
        return None;
    }
    let mut edge = rest;
    let bytes = split_line(&mut edge)?;
    let edge = Edge::of_kept(std::str::from_utf8(&edge).ok()?)?;
    let sha256 = hex::encode(Sha256::digest(&bytes));
    let inner = xds::Module::new(bytes).ok()?;
    let module = Module {
        inner,
        sha256,
        modified: None,
    };
    Some(Release {
        module,
        edge: Served::new(Arc::new(edge)),
    })
}

/// Leaves the first line, with its end, and returns what follows.
fn split_line(content: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = content.iter().position(|byte| *byte == b'\n')?;
    Some(content.split_off(end.checked_add(1)?))
}

/// Keeps what is good.
pub(super) fn write(config: &Config, release: &Release) {
    let path = file(config);
    let half = path.with_extension("new");
    let edge = release.edge.edge.to_keep();
    let rest = [edge.as_bytes(), b"\n", release.module.inner.bytes()].concat();
    let content = [head(&rest).as_bytes(), &rest].concat();
    let written = std::fs::write(&half, content)
        .and_then(|()| std::fs::File::open(&half)?.sync_all())
        .and_then(|()| std::fs::rename(&half, &path))
        .and_then(|()| std::fs::File::open(&config.server.data_dir)?.sync_all());
    if let Err(error) = written {
        tracing::warn!(%error, path = %path.display(), "what is good could not be kept for the next start");
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
        tracing::warn!(%error, path = %path.display(), "what was kept could not be removed");
    }
}
