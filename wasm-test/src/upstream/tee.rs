//! A connection that remembers what was read from it: the parser's view of a
//! request is not what came.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// No first line of a request that passes Envoy is longer, in bytes.
const KEPT: usize = 128 * 1024;

/// The connection.
#[derive(Debug)]
pub struct Tee {
    stream: TcpStream,
    seen: Seen,
}

/// What came since the last request was whole.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Mutex<Vec<u8>>>);

impl Seen {
    /// The first line, without its end.
    pub fn line(&self) -> Vec<u8> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = seen.windows(2).position(|two| two == b"\r\n");
        seen.get(..end.unwrap_or(seen.len()))
            .unwrap_or_default()
            .to_vec()
    }

    /// Forgets it.
    pub fn clear(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

impl Tee {
    /// The connection, and what is seen of it.
    pub fn new(stream: TcpStream) -> (Tee, Seen) {
        let seen = Seen::default();
        let tee = Tee {
            stream,
            seen: seen.clone(),
        };
        (tee, seen)
    }
}

impl AsyncRead for Tee {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        let new = buffer.filled().get(before..).unwrap_or_default();
        if !new.is_empty() {
            let mut seen = this.seen.0.lock().unwrap_or_else(PoisonError::into_inner);
            let room = KEPT.saturating_sub(seen.len()).min(new.len());
            seen.extend_from_slice(new.get(..room).unwrap_or_default());
        }
        read
    }
}

impl AsyncWrite for Tee {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
