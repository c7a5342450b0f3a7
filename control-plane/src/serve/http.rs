//! The HTTP listener: as many connections as there are files for, and no time
//! for those who don't say what they want.

use super::places::{Peer, Place, Places};
use axum::body::Body;
use axum::response::Response;
use axum::{Extension, Router};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming as Received, SizeHint};
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use identity::mtls::Incoming;
use rustix::process::{Resource, getrlimit};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// Connections at one time, and never more than half of the files that may be
/// open; for a further one that is closed which has waited for its client for longest.
const MAX_CONNECTIONS: usize = 4096;
/// So many that are closed for others may still be on their way out, and no more than there
/// are places.
const LEAVING: usize = 64;
/// Of them, connections with client certificates have one part in so many.
const MTLS_PART: usize = 4;
/// A request's head arrives within this time, or the connection is closed; the
/// wait for the next request on it counts as well.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's body arrives whole within this time, or is refused.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// So long there may be nothing of it.
const BODY_GRACE: Duration = Duration::from_secs(5);
/// And so many bytes of it come in each second after that, on the whole.
const BODY_RATE: u64 = 1024;
/// How long what is under way may take once we are asked to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// After a failed accept (usually: too many open files).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How long a client may take.
#[derive(Clone, Copy)]
pub struct Patience {
    /// For a request's head.
    pub head: Duration,
    /// For its body.
    pub body: Duration,
    /// For the first byte of that.
    pub grace: Duration,
    /// For everything, once we stop.
    pub drain: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: HEAD_TIMEOUT,
            body: BODY_TIMEOUT,
            grace: BODY_GRACE,
            drain: DRAIN,
        }
    }
}

/// Serves `router` until `stop`, and returns once what was under way is done
/// or cut. Responses may take as long as they like: streams of events stay.
///
/// # Errors
/// When the listener has no address. A failed accept is tried again.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) -> io::Result<()> {
    serve_most(
        listener,
        router,
        stop,
        connections(getrlimit(Resource::Nofile).current),
        Patience::default(),
    )
    .await
}

/// How many connections there may be with this limit of open files; `None` is
/// no limit.
fn connections(files: Option<u64>) -> usize {
    let half = files.map_or(u64::MAX, |files| files / 2);
    usize::try_from(half)
        .unwrap_or(usize::MAX)
        .clamp(1, MAX_CONNECTIONS)
}

async fn serve_most(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    most: usize,
    patience: Patience,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    tracing::debug!(%address, most, "the HTTP listener is open");
    let (places, tasks) = (Places::new(most), TaskTracker::new());
    let files = files(most);
    while let Some(file) = place(&files, &stop).await {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => {
                let Some(place) = places.take(Peer::from(remote.ip()), &stop).await else {
                    continue;
                };
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, %remote, "TCP_NODELAY could not be set");
                }
                let (router, stop) = (router.clone(), stop.clone());
                tasks.spawn(async move {
                    connection(stream, router, stop, (patience, place)).await;
                    // Only now is the file closed.
                    drop(file);
                });
            }
            Err(error) => {
                tracing::warn!(%error, %address, "the HTTP listener could not accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    // From here on nobody waits in a backlog that nobody reads.
    drop(listener);
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Serves `router` to workloads that have shown their certificates: each request
/// has its connection's [`identity::mtls::Peer`] as an extension. Returns once the
/// listener has ended, or after `stop`.
pub async fn serve_workloads(incoming: Incoming, router: Router, stop: CancellationToken) {
    let most = connections(getrlimit(Resource::Nofile).current) / MTLS_PART;
    serve_most_workloads(incoming, router, stop, most.max(1), Patience::default()).await;
}

async fn serve_most_workloads(
    mut incoming: Incoming,
    router: Router,
    stop: CancellationToken,
    most: usize,
    patience: Patience,
) {
    let (places, tasks) = (Places::new(most), TaskTracker::new());
    let files = files(most);
    while let Some(file) = place(&files, &stop).await {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = incoming.next() => accepted,
        };
        let stream = match accepted {
            Some(Ok(stream)) => stream,
            Some(Err(_)) => continue,
            None => break,
        };
        let peer = stream.peer().clone();
        let Some(place) = places.take(Peer::Workload(peer.id.clone()), &stop).await else {
            continue;
        };
        let (router, stop) = (router.clone().layer(Extension(peer)), stop.clone());
        tasks.spawn(async move {
            connection(stream, router, stop, (patience, place)).await;
            // Only now is the file closed.
            drop(file);
        });
    }
    drop(incoming);
    tasks.close();
    tasks.wait().await;
}

/// For each connection an open file, those of connections that are being closed among them.
fn files(most: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(most.saturating_add(LEAVING.min(most))))
}

/// The next free place, or nothing at the stop.
pub async fn place(
    places: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        () = stop.cancelled() => None,
        place = Arc::clone(places).acquire_owned() => place.ok(),
    }
}

/// One connection, HTTP/1, until its end, the stop, or until its place is another's.
pub async fn connection<S>(
    stream: S,
    router: Router,
    stop: CancellationToken,
    (patience, place): (Patience, Place),
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let place = Arc::new(place);
    let (asked, answered) = (place.clone(), place.clone());
    let router = router
        .map_request(move |request: http::Request<Received>| {
            request.map(|body| Timed::within(patience, body, asked.clone()))
        })
        .map_response(move |response: Response| {
            let place = answered.clone();
            response.map(|body| Body::new(Answering { body, place }))
        });
    let connection = Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        // Clients leave as they like; that is nothing to tell.
        _ = connection.as_mut() => {}
        () = place.ended() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(patience.drain, connection).await;
        }
    }
}

/// An answer, after which its connection waits for its client again.
struct Answering {
    body: Body,
    place: Arc<Place>,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.place.waits();
    }
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that fails when it comes too slowly, or isn't whole by its deadline.
struct Timed {
    body: Received,
    began: Instant,
    patience: Patience,
    bytes: u64,
    deadline: Pin<Box<Sleep>>,
    place: Arc<Place>,
}

impl Timed {
    fn within(patience: Patience, body: Received, place: Arc<Place>) -> Body {
        if body.is_end_stream() {
            place.answers();
            return Body::empty();
        }
        let began = Instant::now();
        Body::new(Self {
            body,
            began,
            patience,
            bytes: 0,
            deadline: Box::pin(sleep_until(began + patience.grace.min(patience.body))),
            place,
        })
    }

    /// What came of it moves its deadline.
    fn took(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(bytes);
        let for_these = Duration::from_millis(self.bytes.saturating_mul(1000) / BODY_RATE);
        let within = self.patience.grace.saturating_add(for_these);
        let deadline = self.began + within.min(self.patience.body);
        self.deadline.as_mut().reset(deadline);
        match self.body.is_end_stream() {
            true => self.place.answers(),
            false => self.place.waits(),
        }
    }
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            match &frame {
                Some(Ok(frame)) => self.took(frame.data_ref().map_or(0, Bytes::len)),
                Some(Err(_)) => {}
                None => self.place.answers(),
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(axum::Error::new)));
        }
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Some(Err(axum::Error::new(io::Error::from(
            io::ErrorKind::TimedOut,
        )))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
