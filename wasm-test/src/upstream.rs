//! The demo tool server behind Envoy: a few files over HTTP, an echo, and a
//! JSON-lines log of everything that reached it.
//!
//! It runs in a thread of its own, so that a test that blocks its runtime does
//! not block the server.

mod files;
mod readings;
mod record;
mod tee;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, oneshot};

use crate::Error;
pub use files::{KEYS, PAYROLL, REPORT};
pub use readings::Reading;
pub use record::Record;
use record::{Log, Pending};
use tee::Tee;

/// Longest wait that a client can ask for with `?ms=`, in milliseconds.
pub const SLOW_MAX_MS: u64 = 60_000;

/// Largest answer that a client can ask for with `?bytes=`.
pub const ANSWER_MAX_BYTES: usize = 16 * 1024 * 1024;

/// The running server. Dropping it stops it.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    log: Arc<Log>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Starts serving on a loopback `port`. Each finished request is a line of
    /// `log`; with no `log`, nothing is recorded.
    ///
    /// # Errors
    /// When the port or the log can't be had.
    pub fn start(port: u16, log: Option<&Path>) -> Result<Upstream, Error> {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(wanted).map_err(|source| {
            Error::Setup(format!(
                "cannot listen on {wanted} for the demo upstream: {source}"
            ))
        })?;
        let address = listener.local_addr().unwrap_or(wanted);
        let log = Arc::new(Log::open(log)?);
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&log);
        let thread = std::thread::Builder::new()
            .name("upstream".to_owned())
            .spawn(move || serve(listener, shared, stopped))
            .map_err(|source| {
                Error::Setup(format!("cannot start the upstream's thread: {source}"))
            })?;
        Ok(Upstream {
            address,
            log,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The file of its log, when it has one.
    pub fn log_path(&self) -> Option<&PathBuf> {
        self.log.path()
    }

    /// How many requests' headers have arrived, finished or not.
    pub fn arrived(&self) -> u64 {
        self.log.arrived.load(Ordering::SeqCst)
    }

    /// Every request that is over, in the order in which they ended.
    ///
    /// # Errors
    /// When the log can't be read back.
    pub fn records(&self) -> Result<Vec<Record>, Error> {
        self.log.records_since(0)
    }

    /// A place in its log, for [`Upstream::records_since`].
    pub fn mark(&self) -> u64 {
        self.log.size()
    }

    /// The requests that were over after that [`Upstream::mark`].
    ///
    /// # Errors
    /// As [`Upstream::records`].
    pub fn records_since(&self, mark: u64) -> Result<Vec<Record>, Error> {
        self.log.records_since(mark)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // No receiver: the thread is over already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(listener: TcpListener, log: Arc<Log>, stopped: oneshot::Receiver<()>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return;
    };
    runtime.block_on(async move {
        if listener.set_nonblocking(true).is_err() {
            return;
        }
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
            return;
        };
        tokio::select! {
            () = accept(listener, log) => {}
            _ = stopped => {}
        }
    });
}

async fn accept(listener: tokio::net::TcpListener, log: Arc<Log>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: let some close.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // A small answer must not wait for the client's delayed ACK.
        drop(stream.set_nodelay(true));
        let log = Arc::clone(&log);
        tokio::spawn(async move {
            let hang_up = Arc::new(Notify::new());
            let heard = Arc::clone(&hang_up);
            let (stream, seen) = Tee::new(stream);
            let (shared, lines) = (Arc::clone(&log), seen.clone());
            let service = service_fn(move |request| {
                answer(
                    request,
                    Arc::clone(&shared),
                    Arc::clone(&heard),
                    lines.clone(),
                )
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // A connection that breaks off is the client's business; the log has what came.
                ended = connection => {
                    if ended.is_err_and(|problem| problem.is_parse()) {
                        record::garbage(&log, &seen.line());
                    }
                }
                () = hang_up.notified() => {}
            }
        });
    }
}

/// The connection ends without an answer, as was asked for.
#[derive(Debug, thiserror::Error)]
#[error("reset, as asked for")]
struct Reset;

async fn answer(
    request: Request<Incoming>,
    log: Arc<Log>,
    hang_up: Arc<Notify>,
    seen: tee::Seen,
) -> Result<Response<Body>, Reset> {
    let (parts, mut body) = request.into_parts();
    let mut pending = Pending::arrived(&log, &parts, &seen.line());
    let mut digest = Sha256::new();
    loop {
        match body.frame().await {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    digest.update(data);
                    pending.more(data.len());
                }
                if let Some(trailers) = frame.trailers_ref() {
                    pending.trailers(trailers);
                }
            }
            // Dropping `pending` logs the request as one that broke off.
            Some(Err(_)) => return Ok(files::broken().map(Body::Left)),
            None => break,
        }
    }
    // What comes after the body is the next request's.
    seen.clear();
    let demand = files::Demand::parse(parts.uri.query().unwrap_or(""));
    if demand.ms > 0 {
        tokio::time::sleep(Duration::from_millis(demand.ms.min(SLOW_MAX_MS))).await;
    }
    let record = pending.complete(&hex::encode(digest.finalize()));
    if demand.reset {
        return Err(Reset);
    }
    if let Some(ms) = demand.linger_ms {
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(ms.min(SLOW_MAX_MS))).await;
            hang_up.notify_one();
        });
    }
    let answer = files::respond(&parts, &demand, record.as_ref());
    Ok(match demand.drip {
        None => answer.map(Body::Left),
        Some(pieces) => answer.map(|_| Body::Right(Drip::of(pieces))),
    })
}

/// A whole answer, or one in pieces.
type Body = Either<Full<Bytes>, Drip>;

/// Ten pieces a second.
struct Drip {
    left: u32,
    clock: tokio::time::Interval,
}

impl Drip {
    fn of(pieces: u32) -> Drip {
        Drip {
            left: pieces,
            clock: tokio::time::interval(Duration::from_millis(100)),
        }
    }
}

impl hyper::body::Body for Drip {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(left) = self.left.checked_sub(1) else {
            return Poll::Ready(None);
        };
        std::task::ready!(self.clock.poll_tick(context));
        self.left = left;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"data: .\n\n")))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(upstream: &Upstream, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", upstream.address());
        let answer = reqwest::get(url).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    #[tokio::test]
    async fn serves_files_and_logs_what_reached_it() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("upstream.jsonl");
        let upstream = Upstream::start(0, Some(&log)).unwrap();
        let (status, body) = get(&upstream, "/files/report.txt?x=1").await;
        assert_eq!(status, 200);
        assert!(body.contains("report"), "{body}");
        assert_eq!(get(&upstream, "/nowhere").await.0, 404);
        assert_eq!(get(&upstream, "/echo?status=503").await.0, 503);

        let url = format!("http://{}/echo", upstream.address());
        let sent = reqwest::Client::new().post(url).body("abc");
        let echoed: Record = sent.send().await.unwrap().json().await.unwrap();
        assert_eq!((echoed.method.as_str(), echoed.body_bytes), ("POST", 3));

        let records = upstream.records().unwrap();
        let paths: Vec<&str> = records.iter().map(|r| r.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "/files/report.txt?x=1",
                "/nowhere",
                "/echo?status=503",
                "/echo"
            ]
        );
        let last = records.last().unwrap();
        assert!(last.complete);
        assert_eq!(
            last.body_sha256.as_deref(),
            Some("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        );
        assert_eq!(upstream.arrived(), 4);
    }

    #[tokio::test]
    async fn it_resets_and_hangs_up_when_it_is_asked_to() {
        let dir = tempfile::tempdir().unwrap();
        let upstream = Upstream::start(0, Some(&dir.path().join("log"))).unwrap();
        let url = format!("http://{}/echo", upstream.address());
        assert!(reqwest::get(format!("{url}?reset=1")).await.is_err());
        assert_eq!(upstream.records().unwrap().len(), 1, "it is logged first");
        let mut stream = tokio::net::TcpStream::connect(upstream.address())
            .await
            .unwrap();
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let request = b"GET /echo?linger=20 HTTP/1.1\r\nhost: a\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert!(all.starts_with(b"HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_request_that_breaks_off_is_in_the_log_as_such() {
        use tokio::io::AsyncWriteExt;
        let dir = tempfile::tempdir().unwrap();
        let upstream = Upstream::start(0, Some(&dir.path().join("log"))).unwrap();
        let mut stream = tokio::net::TcpStream::connect(upstream.address())
            .await
            .unwrap();
        stream
            .write_all(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc")
            .await
            .unwrap();
        drop(stream);
        let mut records = Vec::new();
        while records.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            records = upstream.records().unwrap();
        }
        assert!(!records[0].complete);
        assert_eq!(records[0].body_bytes, 3);
    }
}
