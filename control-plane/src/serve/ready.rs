//! The ready file: where everything is, for its owner alone.

use crate::state::Core;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use tokio::sync::watch;

/// Writes the file whole, with mode 0600, since it holds a login link.
///
/// # Errors
/// When it can't be written.
pub fn write(
    path: &Path,
    core: &Core,
    login: Option<&str>,
    module: &watch::Receiver<Option<String>>,
) -> std::io::Result<()> {
    let server = &core.config.server;
    let body = serde_json::json!({
        "issuer": server.issuer,
        "ui": server.issuer,
        "grpc": server.grpc_listen.to_string(),
        "workload_api": core.config.identity.workload_api,
        "admin_socket": server.admin_socket,
        "audit_dir": core.ledger.dir(),
        "approver_login": login,
        "pid": std::process::id(),
        "module_sha256": *module.borrow(),
    });
    let text = serde_json::to_string_pretty(&body)?;
    match whole(path, &text) {
        // An older one says nothing that is true any more, and takes the room.
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            std::fs::remove_file(path).map_err(|_| error)?;
            whole(path, &text)
        }
        written => written,
    }
}

fn whole(path: &Path, text: &str) -> std::io::Result<()> {
    let half = path.with_extension("new");
    let _ = std::fs::remove_file(&half);
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&half)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&half, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&half);
    }
    written
}
