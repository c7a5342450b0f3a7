//! Bytes on a socket: HTTP/1 and HTTP/2 that nothing repairs.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use wasm_test::client::Answer;

/// Longer than any hold or deadline.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection that speaks HTTP/1.
pub struct Http1 {
    stream: TcpStream,
    unread: Vec<u8>,
    /// How many answers with a status below 200 have come.
    pub interim: usize,
}

impl Http1 {
    pub async fn connect(authority: &str) -> Http1 {
        let stream = TcpStream::connect(authority).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Http1 {
            stream,
            unread: Vec::new(),
            interim: 0,
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// As [`Http1::send`], for what the other side may refuse to read.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Sends a body while an answer is awaited, which may come before all of
    /// it could be sent.
    pub async fn exchange(self, body: &[u8]) -> Option<Answer> {
        let stream = self.stream.into_std().unwrap();
        let mut write = TcpStream::from_std(stream.try_clone().unwrap()).unwrap();
        let stream = TcpStream::from_std(stream).unwrap();
        let mut reader = Http1 {
            stream,
            unread: self.unread,
            interim: self.interim,
        };
        let send = async {
            // The other side may stop reading once it has answered.
            let _stopped = write.write_all(body).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = reader.answer() => answer,
            () = send => None,
        }
    }

    /// The next answer; `None` when the connection was closed instead.
    pub async fn answer(&mut self) -> Option<Answer> {
        timeout(PATIENCE, self.read_answer())
            .await
            .expect("no answer in time")
    }

    /// Whether an answer begins within that time.
    pub async fn answers_within(&mut self, time: Duration) -> bool {
        !self.unread.is_empty() || timeout(time, self.more()).await.is_ok()
    }

    async fn read_answer(&mut self) -> Option<Answer> {
        loop {
            let end = loop {
                if let Some(at) = find(&self.unread, b"\r\n\r\n") {
                    break at;
                }
                if !self.more().await {
                    return None;
                }
            };
            let head = String::from_utf8_lossy(&self.unread[..end]).into_owned();
            self.unread.drain(..end + 4);
            let mut lines = head.split("\r\n");
            let status = lines
                .next()
                .unwrap()
                .split(' ')
                .nth(1)
                .unwrap()
                .parse()
                .unwrap();
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
            answer.body = self.read_body(&answer).await;
            return Some(answer);
        }
    }

    async fn read_body(&mut self, answer: &Answer) -> Vec<u8> {
        if answer.header("transfer-encoding").is_some() {
            let mut body = Vec::new();
            loop {
                let size = usize::from_str_radix(&self.line().await, 16).unwrap();
                body.extend(self.take(size).await);
                self.take(2).await;
                if size == 0 {
                    return body;
                }
            }
        }
        let length = answer.header("content-length").unwrap_or("0");
        self.take(length.parse().unwrap()).await
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(at) = find(&self.unread, b"\r\n") {
                let line: Vec<u8> = self.unread.drain(..at + 2).collect();
                return String::from_utf8_lossy(&line[..at]).into_owned();
            }
            assert!(self.more().await, "closed within a chunk's size");
        }
    }

    async fn take(&mut self, size: usize) -> Vec<u8> {
        while self.unread.len() < size {
            assert!(self.more().await, "closed within a body");
        }
        self.unread.drain(..size).collect()
    }

    async fn more(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.unread).await;
        read.is_ok_and(|read| read > 0)
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// What became of one HTTP/2 stream.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// Its status; 0 when it was reset before there was one.
    pub status: u16,
    pub body: Vec<u8>,
    /// The error code that it was reset with.
    pub reset: Option<u32>,
    over: bool,
}

impl Stream {
    /// The reason of a refusal.
    pub fn reason(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["reason"].as_str().unwrap_or_default().to_owned()
    }
}

/// One connection that speaks HTTP/2 with prior knowledge.
pub struct Http2 {
    stream: TcpStream,
    next: u32,
}

impl Http2 {
    pub async fn connect(authority: &str) -> Http2 {
        let mut stream = TcpStream::connect(authority).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut hello = PREFACE.to_vec();
        // SETTINGS_HEADER_TABLE_SIZE 0: no answer refers to an earlier one.
        hello.extend(frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]));
        hello.extend(frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 24).to_be_bytes()));
        stream.write_all(&hello).await.unwrap();
        Http2 { stream, next: 1 }
    }

    /// The frame of a request without a body, on the next stream.
    pub fn request(&mut self, fields: &[(&str, &[u8])]) -> (u32, Vec<u8>) {
        let id = self.next;
        self.next += 2;
        let mut block = Vec::new();
        for (name, value) in fields {
            // Literal, never indexed, no Huffman code (RFC 7541, section 6.2.3).
            block.push(0x10);
            text(&mut block, name.as_bytes());
            text(&mut block, value);
        }
        (id, frame(HEADERS, END_STREAM | END_HEADERS, id, &block))
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Reads until these streams are over, or the connection is.
    pub async fn answers(&mut self, wanted: &[u32]) -> BTreeMap<u32, Stream> {
        let all = self.read_answers(wanted);
        timeout(PATIENCE, all).await.expect("no answers in time")
    }

    async fn read_answers(&mut self, wanted: &[u32]) -> BTreeMap<u32, Stream> {
        let mut streams: BTreeMap<u32, Stream> =
            wanted.iter().map(|id| (*id, Stream::default())).collect();
        while streams.values().any(|stream| !stream.over) {
            let Some((kind, flags, id, payload)) = self.frame().await else {
                break;
            };
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(&frame(SETTINGS, ACK, 0, &[])).await,
                PING if flags & ACK == 0 => self.send(&frame(PING, ACK, 0, &payload)).await,
                GOAWAY => break,
                _ => {}
            }
            let Some(stream) = streams.get_mut(&id) else {
                continue;
            };
            match kind {
                HEADERS if stream.status == 0 => stream.status = status_of(&payload),
                DATA => stream.body.extend(payload),
                RST_STREAM => {
                    stream.reset = payload.try_into().ok().map(u32::from_be_bytes);
                    stream.over = true;
                }
                _ => {}
            }
            if (kind == HEADERS || kind == DATA) && flags & END_STREAM != 0 {
                stream.over = true;
            }
        }
        streams
    }

    async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).await.ok()?;
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], id & 0x7fff_ffff, payload))
    }
}

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(id.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A string without Huffman code (RFC 7541, section 5.2).
fn text(block: &mut Vec<u8>, bytes: &[u8]) {
    let mut rest = bytes.len();
    if rest < 127 {
        block.push(u8::try_from(rest).unwrap());
    } else {
        block.push(127);
        rest -= 127;
        while rest >= 128 {
            block.push(u8::try_from(rest % 128).unwrap() | 0x80);
            rest /= 128;
        }
        block.push(u8::try_from(rest).unwrap());
    }
    block.extend(bytes);
}

/// `:status`, which comes first: indexed, or a literal of three digits.
fn status_of(block: &[u8]) -> u16 {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    let mut rest = block;
    while let [first, others @ ..] = rest
        && first & 0xe0 == 0x20
    {
        rest = others;
    }
    match rest {
        [first @ 0x88..=0x8e, ..] => INDEXED[usize::from(first - 0x88)],
        [0x48 | 0x08 | 0x18, 3, digits @ ..] => {
            std::str::from_utf8(&digits[..3]).unwrap().parse().unwrap()
        }
        [0x48 | 0x08 | 0x18, length, coded @ ..] if length & 0x80 != 0 => {
            huffman_digits(&coded[..usize::from(length & 0x7f)])
        }
        other => panic!(
            "a block that does not begin with :status: {:02x?}",
            &other[..other.len().min(8)]
        ),
    }
}

/// Three digits in the code of RFC 7541, appendix B: 0, 1, 2 have five bits,
/// the others six.
fn huffman_digits(coded: &[u8]) -> u16 {
    let bits: Vec<u8> = coded
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1))
        .collect();
    let number = |bits: &[u8]| {
        bits.iter()
            .fold(0_u16, |sum, bit| sum * 2 + u16::from(*bit))
    };
    let (mut at, mut status) = (0, 0);
    for _ in 0..3 {
        let short = number(&bits[at..at + 5]);
        let digit = if short <= 2 {
            at += 5;
            short
        } else {
            at += 6;
            number(&bits[at - 6..at]) - 0x19 + 3
        };
        status = status * 10 + digit;
    }
    status
}
