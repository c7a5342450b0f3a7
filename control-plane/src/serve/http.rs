//! The HTTP listener: as many connections as there are files for, and no time
//! for those who don't say what they want.

use axum::body::Body;
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
use tokio::time::Sleep;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// Connections at one time, and never more than half of the files that may be
/// open; further ones wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 4096;
/// Of them, connections with client certificates have one part in so many.
const MTLS_PART: usize = 4;
/// A request's head arrives within this time, or the connection is closed; the
/// wait for the next request on it counts as well.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's body arrives whole within this time, or is refused.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
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
    /// For everything, once we stop.
    pub drain: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: HEAD_TIMEOUT,
            body: BODY_TIMEOUT,
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
    let (places, tasks) = (Arc::new(Semaphore::new(most)), TaskTracker::new());
    while let Some(place) = place(&places, &stop).await {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, %remote, "TCP_NODELAY could not be set");
                }
                let (router, stop) = (router.clone(), stop.clone());
                tasks.spawn(async move {
                    connection(stream, router, stop, patience).await;
                    // Only now is the file closed.
                    drop(place);
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
/// has its connection's [`Peer`] as an extension. Returns once the listener has
/// ended, or after `stop`.
pub async fn serve_workloads(mut incoming: Incoming, router: Router, stop: CancellationToken) {
    let most = connections(getrlimit(Resource::Nofile).current) / MTLS_PART;
    let (places, tasks) = (Arc::new(Semaphore::new(most.max(1))), TaskTracker::new());
    while let Some(place) = place(&places, &stop).await {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = incoming.next() => accepted,
        };
        let stream = match accepted {
            Some(Ok(stream)) => stream,
            Some(Err(_)) => continue,
            None => break,
        };
        let router = router.clone().layer(Extension(stream.peer().clone()));
        let stop = stop.clone();
        tasks.spawn(async move {
            connection(stream, router, stop, Patience::default()).await;
            drop(place);
        });
    }
    drop(incoming);
    tasks.close();
    tasks.wait().await;
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

/// One connection, HTTP/1, until its end or the stop.
pub async fn connection<S>(stream: S, router: Router, stop: CancellationToken, patience: Patience)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = router.map_request(move |request: http::Request<Received>| {
        request.map(|body| Timed::within(patience.body, body))
    });
    let connection = Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        // Clients leave as they like; that is nothing to tell.
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(patience.drain, connection).await;
        }
    }
}

/// A body that fails when it isn't whole by its deadline.
struct Timed {
    body: Received,
    deadline: Pin<Box<Sleep>>,
}

impl Timed {
    fn within(time: Duration, body: Received) -> Body {
        if body.is_end_stream() {
            return Body::empty();
        }
        Body::new(Self {
            body,
            deadline: Box::pin(tokio::time::sleep(time)),
        })
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
mod tests {
    use super::*;
    use axum::response::sse::{Event, Sse};
    use axum::routing::{get, post};
    use std::convert::Infallible;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::JoinHandle;

    const SOON: Duration = Duration::from_secs(5);

    struct Server {
        address: std::net::SocketAddr,
        stop: CancellationToken,
        task: JoinHandle<io::Result<()>>,
    }

    impl Server {
        async fn start(most: usize) -> Self {
            let endless = || async {
                let ticks = futures::stream::unfold((), |()| async {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    Some((Ok::<_, Infallible>(Event::default().data("tick")), ()))
                });
                Sse::new(ticks)
            };
            let said = |body: Result<String, axum::extract::rejection::StringRejection>| async move {
                body.unwrap_or_else(|_| "no body".to_owned())
            };
            let router = Router::new()
                .route("/", get(|| async { "hello" }))
                .route("/events", get(endless))
                .route("/said", post(said));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let stop = CancellationToken::new();
            let patience = Patience {
                head: Duration::from_millis(300),
                body: Duration::from_millis(300),
                drain: Duration::from_millis(300),
            };
            let task = tokio::spawn(serve_most(listener, router, stop.clone(), most, patience));
            Self {
                address,
                stop,
                task,
            }
        }

        async fn open(&self, text: &str) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            stream
        }
    }

    /// Everything until the server closes.
    async fn rest(mut stream: TcpStream) -> String {
        let mut text = Vec::new();
        tokio::time::timeout(SOON, stream.read_to_end(&mut text))
            .await
            .unwrap()
            .unwrap();
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn silent_and_slow_connections_are_closed_and_make_room() {
        let server = Server::start(2).await;
        let idle = [
            server.open("").await,
            server.open("GET / HTTP/1.1\r\nhost: a\r\n").await,
        ];
        let asked = server.open("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        // Kept alive, until nothing more is asked.
        let answer = rest(asked).await;
        assert!(answer.ends_with("hello"), "{answer}");
        for stream in idle {
            assert!(!rest(stream).await.contains("200"));
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_refused_and_one_that_does_is_read() {
        let server = Server::start(8).await;
        let head =
            "POST /said HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nconnection: close\r\n\r\n";
        let whole = rest(server.open(&format!("{head}word")).await).await;
        assert!(whole.ends_with("word"), "{whole}");
        let mut slow = server.open(head).await;
        for _ in 0..2 {
            slow.write_all(b"x").await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let slow = rest(slow).await;
        assert!(slow.ends_with("no body"), "{slow}");
    }

    #[tokio::test]
    async fn streams_of_events_outlive_every_patience_but_the_stop() {
        let server = Server::start(8).await;
        let mut events = server.open("GET /events HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut text = String::new();
        while text.matches("tick").count() < 10 {
            let mut bytes = [0; 1024];
            let read = tokio::time::timeout(SOON, events.read(&mut bytes))
                .await
                .unwrap()
                .unwrap();
            assert_ne!(read, 0, "{text}");
            text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        server.stop.cancel();
        tokio::time::timeout(SOON, server.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert!(TcpStream::connect(server.address).await.is_err());
    }

    #[test]
    fn half_of_the_files_are_left() {
        assert_eq!(connections(Some(1024)), 512);
        assert_eq!(connections(Some(1)), 1);
        assert_eq!(connections(Some(1 << 20)), MAX_CONNECTIONS);
        assert_eq!(connections(None), MAX_CONNECTIONS);
    }
}
