//! The Unix socket for the command line on the same machine.

use super::ServeError;
use super::http::{self, Patience};
use super::places::{Peer, Place, Places};
use crate::state::Core;
use crate::web::{self, AdminSettings, Desk, Logins, PeerUid};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at one time, of one uid half as many at most; for a further one that is closed
/// which has waited for longest.
const MAX_CONNECTIONS: usize = 64;

/// Listens on the admin socket; who calls is what the kernel says.
///
/// # Errors
/// When the socket can't be made, or another process answers on it.
pub fn open(
    core: &Arc<Core>,
    desk: Arc<dyn Desk>,
    logins: Logins,
    module_sha256: watch::Receiver<Option<String>>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), ServeError> {
    let path = core.config.server.admin_socket.clone();
    let failed = |error| ServeError::AdminSocket(path.clone(), error);
    // For this user and its group; peer credentials then tell workloads apart.
    let listener = bind(&path, 0o660).map_err(failed)?;
    let refused_uids = core
        .config
        .identity
        .workloads
        .iter()
        .filter_map(|workload| workload.uid)
        .collect();
    let settings = AdminSettings {
        refused_uids,
        dev_single_uid: core.config.identity.dev_single_uid,
        own_uid: rustix::process::geteuid().as_raw(),
        issuer: core.config.server.issuer.clone(),
        module_sha256,
    };
    let router = web::admin(desk, logins, settings);
    let (stop, handlers) = (stop.clone(), tasks.clone());
    tasks.spawn(async move {
        let places = Places::new(MAX_CONNECTIONS);
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let Some(peer) = caller(&stream) else {
                        continue;
                    };
                    let Some(place) = places.take(Peer::Uid(peer.uid), &stop).await else {
                        continue;
                    };
                    let (router, stop) = (router.clone(), stop.clone());
                    handlers.spawn(handle(stream, (peer, place), router, stop));
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin socket could not accept");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
        let _ = std::fs::remove_file(&path);
    });
    Ok(())
}

/// A socket that nobody answers on is a leftover; a live one, and anything that
/// is no socket, is somebody else's.
pub(crate) fn bind(path: &Path, mode: u32) -> std::io::Result<UnixListener> {
    use std::io::{Error, ErrorKind};
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                "it exists and is not a socket",
            ));
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?
            }
            // A full backlog or a missing permission is somebody, too.
            _ => {
                return Err(Error::new(
                    ErrorKind::AddrInUse,
                    "another process answers there",
                ));
            }
        },
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// Who calls, as the kernel says.
fn caller(stream: &UnixStream) -> Option<PeerUid> {
    match stream.peer_cred() {
        Ok(peer) => Some(PeerUid {
            uid: peer.uid(),
            pid: peer.pid().unwrap_or(0),
        }),
        Err(error) => {
            tracing::warn!(%error, "a caller without credentials was turned away");
            None
        }
    }
}

async fn handle(
    stream: UnixStream,
    (peer, place): (PeerUid, Place),
    router: axum::Router,
    stop: CancellationToken,
) {
    let router = router.layer(axum::Extension(axum::extract::ConnectInfo(peer)));
    http::connection(stream, router, stop, (Patience::default(), place)).await;
}
