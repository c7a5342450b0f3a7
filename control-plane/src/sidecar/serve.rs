//! The sidecar's listeners and connections.

use super::forward::{self, Issuer, Wanted};
use super::problem::Problem;
use super::rules::{self, Hosts, Target};
use super::{Reply, Settings, SidecarError, check_targets, peer};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at one time; further ones wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 128;
/// A request's body; bytes. It is read whole, since its digest may be part of the
/// token, and since what has spent nothing may have to be sent again.
const BODY_MAX: usize = 8 * 1024 * 1024;
/// A request's head arrives within this time; the wait for the next request on a
/// connection counts as well.
const HEAD_WITHIN: Duration = Duration::from_secs(60);
/// A request's body arrives whole within this time.
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// How long what is under way may take once we are asked to stop.
const DRAIN: Duration = Duration::from_secs(20);
/// After a failed accept, which is usually too many open files.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A sidecar that listens.
pub struct Sidecar {
    tcp: Option<(TcpListener, SocketAddr, Hosts)>,
    unix: Option<(UnixListener, PathBuf)>,
    shared: Arc<Shared>,
}

struct Shared {
    targets: Vec<Target>,
    issuer: Issuer,
    uids: Vec<u32>,
    wait: Duration,
    stop: CancellationToken,
    places: Arc<Semaphore>,
}

/// Who is at the other end.
struct Caller {
    uid: io::Result<u32>,
    /// The names it may call by; a Unix socket has none that a page could have.
    hosts: Option<Hosts>,
}

impl Sidecar {
    /// Listens; connections wait until [`Sidecar::run`]. `stop` ends it.
    ///
    /// # Errors
    /// When the settings don't fit together or a listener can't be had.
    pub async fn bind(settings: Settings, stop: CancellationToken) -> Result<Self, SidecarError> {
        check_targets(&settings.targets)?;
        let mut tcp = None;
        if let Some(address) = settings.listen {
            if !address.ip().is_loopback() {
                return Err(SidecarError::NotLoopback(address));
            }
            let failed = |error| SidecarError::Listen(address.to_string(), error);
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            let hosts = Hosts::new(address, &settings.hosts);
            tcp = Some((listener, address, hosts));
        }
        let mut unix = None;
        if let Some(path) = settings.listen_unix {
            let failed = |error| SidecarError::Listen(path.display().to_string(), error);
            let own = rustix::process::geteuid().as_raw();
            // Who may connect is said by the peer's uid in any case.
            let mode = if settings.uids == [own] { 0o600 } else { 0o666 };
            let listener = crate::serve::admin_socket::bind(&path, mode).map_err(failed)?;
            unix = Some((listener, path));
        }
        let shared = Shared {
            targets: settings.targets,
            issuer: settings.issuer,
            uids: settings.uids,
            wait: settings.wait,
            stop,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        };
        Ok(Self {
            tcp,
            unix,
            shared: Arc::new(shared),
        })
    }

    /// Where it listens, as URLs.
    #[must_use]
    pub fn places(&self) -> Vec<String> {
        let tcp = self.tcp.as_ref();
        let unix = self.unix.as_ref();
        tcp.map(|(_, address, _)| format!("http://{address}"))
            .into_iter()
            .chain(unix.map(|(_, path)| format!("unix:{}", path.display())))
            .collect()
    }

    /// Serves until it is stopped and what was under way is done or cut.
    pub async fn run(self) {
        let tasks = TaskTracker::new();
        let (tcp, unix) = (self.tcp, self.unix);
        let path = unix.as_ref().map(|(_, path)| path.clone());
        let on_tcp = async {
            if let Some((listener, address, hosts)) = tcp {
                accept_tcp(listener, address, hosts, &self.shared, &tasks).await;
            }
        };
        let on_unix = async {
            if let Some((listener, _)) = unix {
                accept_unix(listener, &self.shared, &tasks).await;
            }
        };
        tokio::join!(on_tcp, on_unix);
        if let Some(path) = path {
            remove(&path);
        }
        tasks.close();
        tasks.wait().await;
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "the socket could not be removed");
    }
}

async fn accept_tcp(
    listener: TcpListener,
    server: SocketAddr,
    hosts: Hosts,
    shared: &Arc<Shared>,
    tasks: &TaskTracker,
) {
    while let Some(place) = crate::serve::http::place(&shared.places, &shared.stop).await {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                // A small answer must not wait for the other side's delayed ACK.
                let _ = stream.set_nodelay(true);
                let (shared, hosts) = (Arc::clone(shared), hosts.clone());
                tasks.spawn(async move {
                    let caller = Caller {
                        uid: peer::uid_of(client, server).await,
                        hosts: Some(hosts),
                    };
                    connection(stream, caller, shared, place).await;
                });
            }
            Err(error) => wait_after(&error).await,
        }
    }
}

async fn accept_unix(listener: UnixListener, shared: &Arc<Shared>, tasks: &TaskTracker) {
    while let Some(place) = crate::serve::http::place(&shared.places, &shared.stop).await {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let caller = Caller {
                    uid: stream.peer_cred().map(|peer| peer.uid()),
                    hosts: None,
                };
                tasks.spawn(connection(stream, caller, Arc::clone(shared), place));
            }
            Err(error) => wait_after(&error).await,
        }
    }
}

async fn wait_after(error: &io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(ACCEPT_RETRY).await;
}

/// One connection, HTTP/1, until its end or the stop. Its place is free after it.
async fn connection<S>(stream: S, caller: Caller, shared: Arc<Shared>, place: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (caller, stop) = (Arc::new(caller), shared.stop.clone());
    let service = service_fn(move |request| {
        let (caller, shared) = (Arc::clone(&caller), Arc::clone(&shared));
        async move { Ok::<_, Infallible>(answer(request, &caller, &shared).await) }
    });
    let connection = Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // Agents leave as they like; that is nothing to tell.
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(DRAIN, connection).await;
        }
    }
    drop(place);
}

async fn answer(request: Request<Incoming>, caller: &Caller, shared: &Shared) -> Reply {
    let wanted = match wanted(request, caller, shared).await {
        Ok(wanted) => wanted,
        Err(problem) => {
            let uid = caller.uid.as_ref().ok();
            tracing::warn!(reason = problem.reason(), uid, "a request is refused");
            return problem.reply();
        }
    };
    forward::forward(&shared.issuer, &wanted, shared.wait, &shared.stop).await
}

/// What is to be asked for, once the caller and the request are good.
async fn wanted(
    request: Request<Incoming>,
    caller: &Caller,
    shared: &Shared,
) -> Result<Wanted, Problem> {
    match &caller.uid {
        Ok(uid) if shared.uids.contains(uid) => {}
        Ok(_) => return Err(Problem::caller("its user is not one of --allow-uid")),
        Err(error) => {
            tracing::warn!(%error, "who is calling is not known");
            return Err(Problem::caller("its user is not known"));
        }
    }
    let (parts, body) = request.into_parts();
    if let Some(hosts) = &caller.hosts {
        hosts.check(&parts)?;
    }
    rules::check_kind(&parts)?;
    let url = rules::url_for(&shared.targets, &parts.uri)?;
    let has_body = !body.is_end_stream();
    let body = read(body).await?;
    Ok(Wanted {
        method: parts.method.as_str().to_owned(),
        url,
        headers: rules::forwarded(&parts.headers),
        body: has_body.then_some(body),
    })
}

async fn read(body: Incoming) -> Result<Bytes, Problem> {
    let most = u64::try_from(BODY_MAX).unwrap_or(u64::MAX);
    if body.size_hint().lower() > most {
        return Err(Problem::too_large(BODY_MAX));
    }
    let whole = Limited::new(body, BODY_MAX).collect();
    match tokio::time::timeout(BODY_WITHIN, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::too_large(BODY_MAX)),
        Ok(Err(_)) | Err(_) => Err(Problem::too_late()),
    }
}
