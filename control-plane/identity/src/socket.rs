//! The Workload API's Unix socket, and who is at its other end.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    time::Sleep,
};
use tonic::transport::server::Connected;

use crate::{
    Caller, TrustDomainError,
    authority::{Mender, PREFACE_BYTES},
    crowd::{Crowd, Place},
    files,
    throttle::Throttle,
};

/// Any local process may connect: attestation decides what it gets.
const SOCKET_MODE: u32 = 0o666;
/// After a failed accept (usually: too many open files).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Connections at one time. Workloads keep theirs open, so a further one is
/// refused at once and doesn't wait.
const MAX_CONNECTIONS: usize = 1024;
/// Connections have at most this part of the files that may be open: one in so many.
const CONNECTION_FILES: u64 = 8;
/// Connections of one uid: one part in so many. The others have the rest.
const UID_PARTS: usize = 4;
/// A connection that hasn't begun with HTTP/2's preface by then is closed.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Listener(UnixListener);

/// Binds the socket. A stale one is removed only when nobody answers on it.
pub(crate) fn bind(path: &Path) -> Result<Listener, TrustDomainError> {
    let failed = |source| TrustDomainError::file(path, source);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(TrustDomainError::NotASocket {
                socket: path.into(),
            });
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(failed)?;
            }
            // A full backlog or a missing permission is somebody, too.
            _ => {
                return Err(TrustDomainError::SocketInUse {
                    socket: path.into(),
                });
            }
        },
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
    Ok(Listener(listener))
}

/// Takes the socket away on the way out; what fails here harms nobody.
pub(crate) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, socket = %path.display(), "the workload api's socket was left behind");
    }
}

impl Listener {
    /// The connections, each with its caller. Never ends.
    pub(crate) fn incoming(self) -> impl Stream<Item = io::Result<Connection>> {
        let most = files::share(MAX_CONNECTIONS, CONNECTION_FILES);
        let accepting = Accepting {
            listener: self.0,
            crowd: Crowd::new(most, most.div_ceil(UID_PARTS)),
            warnings: Throttle::new(Instant::now()),
        };
        stream::unfold(accepting, |accepting| async move {
            let connection = accepting.next().await;
            Some((Ok(connection), accepting))
        })
    }
}

struct Accepting {
    listener: UnixListener,
    crowd: Arc<Crowd>,
    warnings: Throttle,
}

impl Accepting {
    async fn next(&self) -> Connection {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the workload api could not accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let caller = match Caller::of(&stream) {
                Ok(caller) => caller,
                Err(error) => {
                    tracing::warn!(%error, "a caller without peer credentials was refused");
                    continue;
                }
            };
            if let Some(place) = self.crowd.enter(caller.uid) {
                return Connection::new(stream, caller, place);
            }
            if let Some(suppressed) = self.warnings.pass(Instant::now()) {
                tracing::warn!(
                    uid = caller.uid,
                    pid = caller.pid,
                    suppressed,
                    "a connection to the workload api was refused: too many are open"
                );
            }
        }
    }
}

/// Read from the socket at once, in bytes.
const READ_BYTES: usize = 4096;

/// One connection with its caller.
pub(crate) struct Connection {
    stream: UnixStream,
    caller: Caller,
    mender: Mender,
    /// Mended and not yet taken.
    ready: Vec<u8>,
    /// What is missing of the preface, in bytes, and until when it may be.
    preface: usize,
    deadline: Pin<Box<Sleep>>,
    /// After the stream: the place is free once the file is closed.
    _place: Place,
}

impl Connection {
    fn new(stream: UnixStream, caller: Caller, place: Place) -> Self {
        Self {
            stream,
            caller,
            preface: PREFACE_BYTES,
            deadline: Box::pin(tokio::time::sleep(PREFACE_TIMEOUT)),
            _place: place,
            mender: Mender::new(),
            ready: Vec::new(),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // A read may yield nothing to pass on yet: part of a frame.
        while this.ready.is_empty() {
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            if Pin::new(&mut this.stream)
                .poll_read(cx, &mut read)?
                .is_pending()
            {
                if this.preface > 0 {
                    ready!(this.deadline.as_mut().poll(cx));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                return Poll::Pending;
            }
            this.preface = this.preface.saturating_sub(read.filled().len());
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.mender.feed(read.filled(), &mut this.ready);
        }
        let now = this.ready.len().min(buffer.remaining());
        buffer.put_slice(this.ready.get(..now).unwrap_or_default());
        this.ready.drain(..now);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
