//! A relay between two parts that loses, delays and throttles what passes, and
//! cuts connections: a bad network on demand.
//!
//! It runs in a thread of its own, so that a caller that blocks does not help
//! or hinder what passes.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{oneshot, watch};

use crate::Error;

const CHUNK: usize = 64 * 1024;

/// Whether it is a simple query of PostgreSQL that ends in COMMIT: `Q`, its length,
/// the text and a zero. What stands before it goes in the same message.
fn is_commit(bytes: &[u8]) -> bool {
    bytes.starts_with(b"Q") && bytes.ends_with(b"COMMIT\0")
}

/// What becomes of what passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It passes.
    #[default]
    Pass,
    /// It stays here, both ways, and no connection ends; it goes on when the mode changes.
    Stall,
    /// What goes to the server passes, the answers stay here.
    Deaf,
    /// Each piece, either way, waits for this long.
    Delay(Duration),
    /// So many bytes a second and connection, either way.
    Throttle(u32),
    /// A bit of each piece from the server is turned over.
    Forge,
    /// New connections are closed at once.
    Refuse,
    /// PostgreSQL's COMMIT is not passed on, and the connection is cut.
    CommitLost,
    /// COMMIT is passed on; its answer is not, and the connection is cut.
    CommitAnswerLost,
}

/// What is at the other side.
#[derive(Clone, Debug)]
pub enum Target {
    /// A loopback port.
    Port(u16),
    /// A Unix socket.
    Socket(PathBuf),
}

/// The relay. Dropping it cuts everything.
#[derive(Debug)]
pub struct Cut {
    port: u16,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<Target>,
    mode: watch::Sender<Mode>,
    severed: watch::Sender<u64>,
    commits: AtomicU64,
    cut_commits: AtomicU64,
}

impl Cut {
    /// Starts relaying from a free loopback port, or the one given, to `target`.
    ///
    /// # Errors
    /// When the port can't be had.
    pub fn start(port: u16, target: Target) -> Result<Cut, Error> {
        let failed = |what: &str, source: std::io::Error| {
            Error::Setup(format!("the relay can't {what}: {source}"))
        };
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            .map_err(|source| failed("listen", source))?;
        let port = listener
            .local_addr()
            .map_err(|source| failed("listen", source))?
            .port();
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            mode: watch::Sender::new(Mode::Pass),
            severed: watch::Sender::new(0),
            commits: AtomicU64::new(0),
            cut_commits: AtomicU64::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let relaying = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("cut".to_owned())
            .spawn(move || serve(listener, relaying, stopped))
            .map_err(|source| failed("start its thread", source))?;
        Ok(Cut {
            port,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on this becomes of what passes, on all connections.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// From now on new connections lead to somebody else.
    pub fn redirect(&self, target: Target) {
        *self
            .shared
            .target
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Ends all connections that there are now.
    pub fn sever(&self) {
        self.shared.severed.send_modify(|times| *times += 1);
    }

    /// COMMITs that have come by, and how many of them were cut.
    pub fn commits(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        (read(&self.shared.commits), read(&self.shared.cut_commits))
    }
}

impl Drop for Cut {
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

fn serve(listener: TcpListener, shared: Arc<Shared>, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async move {
        let listener = listener
            .set_nonblocking(true)
            .and_then(|()| tokio::net::TcpListener::from_std(listener));
        let Ok(listener) = listener else { return };
        tokio::select! {
            () = accept(listener, shared) => {}
            _ = stopped => {}
        }
    });
}

async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        if *shared.mode.borrow() == Mode::Refuse {
            continue;
        }
        drop(client.set_nodelay(true));
        tokio::spawn(Arc::clone(&shared).connection(client));
    }
}

impl Shared {
    async fn connection(self: Arc<Shared>, client: TcpStream) {
        let mut severed = self.severed.subscribe();
        let (from_client, to_client) = client.into_split();
        let relayed = async {
            let target = self
                .target
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            match target {
                Target::Port(port) => {
                    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
                    let Ok(server) = server else { return };
                    drop(server.set_nodelay(true));
                    let (from_server, to_server) = server.into_split();
                    self.relay(from_client, to_server, from_server, to_client)
                        .await;
                }
                Target::Socket(path) => {
                    let Ok(server) = UnixStream::connect(path).await else {
                        return;
                    };
                    let (from_server, to_server) = server.into_split();
                    self.relay(from_client, to_server, from_server, to_client)
                        .await;
                }
            }
        };
        tokio::select! {
            () = relayed => {}
            _ = severed.changed() => {}
        }
    }

    /// Both ways, until either side ends.
    async fn relay(
        &self,
        from_client: impl AsyncRead + Unpin,
        to_server: impl AsyncWrite + Unpin,
        from_server: impl AsyncRead + Unpin,
        to_client: impl AsyncWrite + Unpin,
    ) {
        let lost = AtomicBool::new(false);
        tokio::select! {
            () = self.there(from_client, to_server, &lost) => {}
            () = self.back(from_server, to_client, &lost) => {}
        }
    }

    async fn there(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        lost: &AtomicBool,
    ) {
        let mut buffer = vec![0; CHUNK];
        while let Ok(size @ 1..) = from.read(&mut buffer).await {
            let bytes = buffer.get(..size).unwrap_or_default();
            self.passes(size, false).await;
            if is_commit(bytes) {
                self.commits.fetch_add(1, Ordering::SeqCst);
                let mode = *self.mode.borrow();
                if matches!(mode, Mode::CommitLost | Mode::CommitAnswerLost) {
                    self.cut_commits.fetch_add(1, Ordering::SeqCst);
                }
                if mode == Mode::CommitLost {
                    return;
                }
                lost.store(mode == Mode::CommitAnswerLost, Ordering::SeqCst);
            }
            if to.write_all(bytes).await.is_err() {
                return;
            }
        }
    }

    async fn back(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        lost: &AtomicBool,
    ) {
        let mut buffer = vec![0; CHUNK];
        while let Ok(size @ 1..) = from.read(&mut buffer).await {
            // The server has answered: it is done, and nobody hears of it.
            if lost.load(Ordering::SeqCst) {
                return;
            }
            self.passes(size, true).await;
            if *self.mode.borrow() == Mode::Forge
                && let Some(byte) = buffer.get_mut(size / 2)
            {
                *byte ^= 1;
            }
            let bytes = buffer.get(..size).unwrap_or_default();
            if to.write_all(bytes).await.is_err() {
                return;
            }
        }
    }

    /// Waits for as long as a piece of this size has to.
    async fn passes(&self, size: usize, back: bool) {
        let mut mode = self.mode.subscribe();
        loop {
            let now = *mode.borrow_and_update();
            match now {
                Mode::Deaf if !back => return,
                Mode::Stall | Mode::Deaf => {
                    if mode.changed().await.is_err() {
                        return;
                    }
                }
                Mode::Delay(time) => return tokio::time::sleep(time).await,
                Mode::Throttle(rate) => {
                    let size = u32::try_from(size).unwrap_or(u32::MAX);
                    let seconds = f64::from(size) / f64::from(rate.max(1));
                    return tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
                }
                Mode::Pass
                | Mode::Forge
                | Mode::Refuse
                | Mode::CommitLost
                | Mode::CommitAnswerLost => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_millis(300);

    /// A server that echoes, and a connection to it through a relay.
    async fn echo() -> (Cut, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    drop(tokio::io::copy(&mut from, &mut to).await);
                });
            }
        });
        let cut = Cut::start(0, Target::Port(port)).unwrap();
        let stream = TcpStream::connect(("127.0.0.1", cut.port())).await.unwrap();
        (cut, stream)
    }

    async fn echoed(stream: &mut TcpStream, bytes: &[u8]) -> bool {
        stream.write_all(bytes).await.unwrap();
        let mut back = vec![0; bytes.len()];
        timeout(SOON, stream.read_exact(&mut back))
            .await
            .is_ok_and(|read| read.is_ok() && back == bytes)
    }

    #[tokio::test]
    async fn passes_holds_back_and_cuts() {
        let (cut, mut stream) = echo().await;
        assert!(echoed(&mut stream, b"one").await);
        cut.set(Mode::Stall);
        assert!(!echoed(&mut stream, b"two").await);
        cut.set(Mode::Pass);
        let mut late = [0; 3];
        stream.read_exact(&mut late).await.unwrap();
        assert_eq!(&late, b"two", "what was held back goes on");
        cut.sever();
        assert_eq!(stream.read(&mut late).await.unwrap_or(0), 0);
        cut.set(Mode::Refuse);
        let mut refused = TcpStream::connect(("127.0.0.1", cut.port())).await.unwrap();
        assert_eq!(refused.read(&mut late).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn a_commit_is_lost_before_or_after_it() {
        let (cut, mut stream) = echo().await;
        cut.set(Mode::CommitAnswerLost);
        assert!(echoed(&mut stream, b"BEGIN").await);
        let commit = b"Q\0\0\0\x15SELECT 1; COMMIT\0";
        assert!(!echoed(&mut stream, commit).await);
        assert_eq!(cut.commits(), (1, 1));
    }
}
