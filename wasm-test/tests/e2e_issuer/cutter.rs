//! A TCP proxy that can lose an answer: it forwards the request, waits until
//! the answer begins, and hangs up on the client instead of passing it on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// Listens until it is dropped.
pub struct Cutter {
    cuts: Arc<AtomicU32>,
    hides: Arc<AtomicBool>,
    seen: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl Cutter {
    /// Between `listener` and `target`.
    pub fn start(listener: std::net::TcpListener, target: SocketAddr) -> Cutter {
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let (cuts, seen) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (left, counted) = (Arc::clone(&cuts), Arc::clone(&seen));
        let hides = Arc::new(AtomicBool::new(false));
        let hiding = Arc::clone(&hides);
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let cut = left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                        left.checked_sub(1)
                    })
                    .is_ok();
                tokio::spawn(pass(client, target, cut, hiding.load(Ordering::SeqCst)));
            }
        });
        Cutter {
            cuts,
            hides,
            seen,
            task,
        }
    }

    /// Loses the answers of the next `count` connections.
    pub fn cut_next(&self, count: u32) {
        self.cuts.store(count, Ordering::SeqCst);
    }

    /// From the next connection on, answers don't say that they are the edge's, as those of
    /// a filter of before.
    pub fn hide_whose(&self) {
        self.hides.store(true, Ordering::SeqCst);
    }

    /// Connections so far.
    pub fn seen(&self) -> u32 {
        self.seen.load(Ordering::SeqCst)
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut client: TcpStream, target: SocketAddr, cut: bool, hide: bool) {
    let mut server = TcpStream::connect(target).await.unwrap();
    if !cut && hide {
        return hidden(client, server).await;
    }
    if !cut {
        // A side that hangs up is no fault of ours.
        drop(copy_bidirectional(&mut client, &mut server).await);
        return;
    }
    let (mut from_client, _to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let forward = async {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            to_server.write_all(&buffer[..count]).await.unwrap();
        }
    };
    let mut begun = [0; 1];
    tokio::select! {
        () = forward => {}
        answer = from_server.read(&mut begun) => { answer.unwrap(); }
    }
}

/// Passes all on, and the header `x-writ-reason` under another name.
async fn hidden(client: TcpStream, server: TcpStream) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await.ok() });
    let (name, other) = (b"x-writ-reason:", b"x-some-reason:");
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
        let answer = &mut buffer[..count];
        if let Some(at) = answer.windows(name.len()).position(|it| it == name) {
            answer[at..at + other.len()].copy_from_slice(other);
        }
        if to_client.write_all(answer).await.is_err() {
            return;
        }
    }
}
