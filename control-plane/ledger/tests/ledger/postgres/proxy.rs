//! A relay on loopback in front of a server's socket, which cuts connections at COMMIT.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UnixStream, tcp},
};

/// What becomes of a COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cut {
    Nothing = 0,
    /// The server never gets it.
    Before = 1,
    /// The server gets it, its answer is lost.
    After = 2,
    /// One or the other, in turn, and not each time.
    Some = 3,
    /// The transaction fails just before, without a word to who asked; once.
    Fail = 4,
}

#[derive(Clone)]
pub struct Proxy {
    pub addr: SocketAddr,
    cut: Arc<AtomicU8>,
    commits: Arc<AtomicU64>,
    target: Arc<Mutex<PathBuf>>,
}

fn socket(dir: &Path) -> PathBuf {
    dir.join(".s.PGSQL.5432")
}

impl Proxy {
    pub async fn start(socket_dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            addr: listener.local_addr().unwrap(),
            cut: Arc::new(AtomicU8::new(0)),
            commits: Arc::new(AtomicU64::new(0)),
            target: Arc::new(Mutex::new(socket(socket_dir))),
        };
        let accepting = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let proxy = accepting.clone();
                let socket = proxy.target.lock().unwrap().clone();
                tokio::spawn(async move { proxy.relay(client.into_split(), socket).await });
            }
        });
        proxy
    }

    /// New connections go to another server from now on, as an address that moves.
    pub fn retarget(&self, socket_dir: &Path) {
        *self.target.lock().unwrap() = socket(socket_dir);
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://writ@{}/{database}?sslmode=disable", self.addr)
    }

    pub fn set(&self, cut: Cut) {
        self.cut.store(cut as u8, Ordering::SeqCst);
    }

    /// COMMITs that came by.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    /// What becomes of this COMMIT: 0, 1 or 2 as in [`Cut`].
    fn fate(&self) -> u8 {
        let n = self.commits.fetch_add(1, Ordering::SeqCst);
        match self.cut.load(Ordering::SeqCst) {
            3 => [0, 1, 0, 2, 2][usize::try_from(n % 5).unwrap()],
            4 => {
                self.set(Cut::Nothing);
                4
            }
            cut => cut,
        }
    }

    async fn relay(
        &self,
        (mut from_client, mut to_client): (tcp::OwnedReadHalf, tcp::OwnedWriteHalf),
        socket: PathBuf,
    ) {
        let Ok(server) = UnixStream::connect(socket).await else {
            return;
        };
        let (mut from_server, mut to_server) = server.into_split();
        let deaf = Arc::new(AtomicU8::new(0));
        let muted = Arc::clone(&deaf);
        let (failed, mut hears) = tokio::sync::mpsc::channel(1);
        let mut back = tokio::spawn(async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                match muted.load(Ordering::SeqCst) {
                    0 => {}
                    // That its transaction has failed is kept from the client.
                    2 => {
                        // The error and that it is ready again may come apart.
                        if buffer[..n].ends_with(b"Z\0\0\0\x05E") {
                            muted.store(0, Ordering::SeqCst);
                            let _ = failed.send(()).await;
                        }
                        continue;
                    }
                    // The server has answered: it is done, and nobody hears of it.
                    _ => return,
                }
                if to_client.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        });
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
            let bytes = &buffer[..n];
            // A simple query: 'Q', its length, the text and a zero.
            if bytes.starts_with(b"Q") && bytes.ends_with(b"COMMIT\0") {
                match self.fate() {
                    4 => {
                        deaf.store(2, Ordering::SeqCst);
                        let fails = b"Q\0\0\0\x0fSELECT 1/0\0";
                        if to_server.write_all(fails).await.is_err() {
                            break;
                        }
                        hears.recv().await;
                    }
                    1 => break,
                    2 => {
                        deaf.store(1, Ordering::SeqCst);
                        let _ = to_server.write_all(bytes).await;
                        let _ = (&mut back).await;
                        break;
                    }
                    _ => {}
                }
            }
            if to_server.write_all(bytes).await.is_err() {
                break;
            }
        }
        back.abort();
    }
}
