//! One connection that speaks HTTP/1.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{PATIENCE, broken, connect};
use crate::Error;
use crate::client::Answer;

/// The connection. What was read and not used yet is kept.
#[derive(Debug)]
pub struct Http1 {
    stream: TcpStream,
    unread: Vec<u8>,
    /// How many answers with a status below 200 have come.
    pub interim: usize,
}

impl Http1 {
    /// Connects to `HOST:PORT`.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(authority: &str) -> Result<Http1, Error> {
        Ok(Http1 {
            stream: connect(authority).await?,
            unread: Vec::new(),
            interim: 0,
        })
    }

    /// This side's port.
    pub fn local_port(&self) -> u16 {
        self.stream.local_addr().map_or(0, |address| address.port())
    }

    /// Sends these bytes and no others.
    ///
    /// # Errors
    /// When the other side has closed.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let sent = self.stream.write_all(bytes).await;
        sent.map_err(Error::http("a connection of bytes"))
    }

    /// Sends a body while an answer is awaited, which may come before all of
    /// it could be sent.
    ///
    /// # Errors
    /// As [`Http1::answer`].
    pub async fn exchange(self, body: &[u8]) -> Result<Option<Answer>, Error> {
        let (read, mut write) = self.stream.into_split();
        let send = async {
            // The other side may stop reading once it has answered.
            let _stopped = write.write_all(body).await;
            std::future::pending::<()>().await;
        };
        let mut reader = Reader {
            read,
            unread: self.unread,
            interim: self.interim,
            head: false,
        };
        tokio::select! {
            answer = timeout(PATIENCE, reader.answer()) => answer.unwrap_or_else(|_| Err(broken("it does not come"))),
            () = send => Ok(None),
        }
    }

    /// The next answer; `None` when the connection was closed instead.
    ///
    /// # Errors
    /// When it is no HTTP/1, or takes longer than [`PATIENCE`].
    pub async fn answer(&mut self) -> Result<Option<Answer>, Error> {
        self.answer_to(false).await
    }

    /// As [`Http1::answer`]; to HEAD there is none but the headers.
    ///
    /// # Errors
    /// As [`Http1::answer`].
    pub async fn answer_to(&mut self, head: bool) -> Result<Option<Answer>, Error> {
        let mut reader = Reader {
            read: &mut self.stream,
            unread: std::mem::take(&mut self.unread),
            interim: self.interim,
            head,
        };
        let answer = timeout(PATIENCE, reader.answer()).await;
        (self.unread, self.interim) = (reader.unread, reader.interim);
        answer.unwrap_or_else(|_| Err(broken("it does not come")))
    }

    /// How many bytes come next; 0 when the connection has ended.
    ///
    /// # Errors
    /// When nothing comes within that time.
    pub async fn next_piece(&mut self, time: Duration) -> Result<usize, Error> {
        self.unread.clear();
        let read = timeout(time, self.stream.read_buf(&mut self.unread)).await;
        let read = read.map_err(|_| broken("nothing comes"))?;
        Ok(read.unwrap_or(0))
    }

    /// All that comes until the connection ends.
    ///
    /// # Errors
    /// When it does not end within [`PATIENCE`].
    pub async fn until_it_ends(&mut self) -> Result<Vec<u8>, Error> {
        let mut all = std::mem::take(&mut self.unread);
        let read = timeout(PATIENCE, async {
            while self
                .stream
                .read_buf(&mut all)
                .await
                .is_ok_and(|read| read > 0)
            {}
        });
        read.await.map_err(|_| broken("it does not end"))?;
        Ok(all)
    }

    /// Whether an answer begins, or the connection ends, within that time.
    pub async fn answers_within(&mut self, time: Duration) -> bool {
        if !self.unread.is_empty() {
            return true;
        }
        let more = self.stream.read_buf(&mut self.unread);
        timeout(time, more).await.is_ok()
    }
}

struct Reader<R> {
    read: R,
    unread: Vec<u8>,
    interim: usize,
    /// What was asked is HEAD: no body comes, whatever the headers say of one.
    head: bool,
}

impl<R: tokio::io::AsyncRead + Unpin> Reader<R> {
    async fn answer(&mut self) -> Result<Option<Answer>, Error> {
        loop {
            let head = loop {
                if let Some(head) = self.until(b"\r\n\r\n") {
                    break head;
                }
                if !self.more().await {
                    return Ok(None);
                }
            };
            let head = String::from_utf8_lossy(&head).into_owned();
            let mut lines = head.split("\r\n");
            let status = lines.next().and_then(|line| line.split(' ').nth(1));
            let status = status.and_then(|status| status.parse().ok());
            let status: u16 = status.ok_or_else(|| broken("its first line"))?;
            if (100..200).contains(&status) {
                self.interim += 1;
                continue;
            }
            let headers = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            let mut answer = Answer {
                status,
                headers,
                body: Vec::new(),
            };
            if !self.head {
                answer.body = self.body(&answer).await?;
            }
            return Ok(Some(answer));
        }
    }

    async fn body(&mut self, answer: &Answer) -> Result<Vec<u8>, Error> {
        if answer.header("transfer-encoding").is_some() {
            return self.chunks().await;
        }
        let length = answer.header("content-length").unwrap_or("0");
        let length = length.parse().map_err(|_| broken("its content-length"))?;
        self.take(length).await
    }

    async fn chunks(&mut self) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(line) = self.until(b"\r\n") {
                    break line;
                }
                if !self.more().await {
                    return Err(broken("closed within a chunk's size"));
                }
            };
            let size = usize::from_str_radix(&String::from_utf8_lossy(&line), 16);
            let size = size.map_err(|_| broken("a chunk's size"))?;
            body.extend(self.take(size).await?);
            self.take(2).await?;
            if size == 0 {
                return Ok(body);
            }
        }
    }

    /// What was read up to this mark, which goes with it.
    fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        let at = self
            .unread
            .windows(mark.len())
            .position(|window| window == mark)?;
        let found = self.unread.drain(..at).collect();
        self.unread.drain(..mark.len());
        Some(found)
    }

    async fn take(&mut self, size: usize) -> Result<Vec<u8>, Error> {
        while self.unread.len() < size {
            if !self.more().await {
                return Err(broken("closed within a body"));
            }
        }
        Ok(self.unread.drain(..size).collect())
    }

    async fn more(&mut self) -> bool {
        let read = self.read.read_buf(&mut self.unread).await;
        read.is_ok_and(|read| read > 0)
    }
}
