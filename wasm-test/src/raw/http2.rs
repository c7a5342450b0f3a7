//! One connection that speaks HTTP/2 with prior knowledge, frame by frame.

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{PATIENCE, broken, connect};
use crate::Error;

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

/// How a request with a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With its headers.
    Headers,
    /// With the last frame of the body.
    Data,
    /// With an empty frame after it.
    Empty,
    /// With trailers.
    Trailers,
    /// Not at all.
    Never,
}

/// What became of one HTTP/2 stream.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// Its status; 0 when it was reset before there was one.
    pub status: u16,
    /// Its body.
    pub body: Vec<u8>,
    /// The error code that it was reset with.
    pub reset: Option<u32>,
    over: bool,
}

impl Stream {
    /// The reason of a refusal; empty when there is none.
    pub fn reason(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let reason = body.get("reason").and_then(serde_json::Value::as_str);
        reason.unwrap_or_default().to_owned()
    }
}

/// The connection.
#[derive(Debug)]
pub struct Http2 {
    stream: TcpStream,
    next: u32,
}

impl Http2 {
    /// Connects to `HOST:PORT` and says the preface.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(authority: &str) -> Result<Http2, Error> {
        let stream = connect(authority).await?;
        let mut connection = Http2 { stream, next: 1 };
        let mut hello = PREFACE.to_vec();
        // SETTINGS_HEADER_TABLE_SIZE 0: no answer refers to an earlier one.
        hello.extend(frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]));
        hello.extend(frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 24).to_be_bytes()));
        connection.send(&hello).await?;
        Ok(connection)
    }

    /// This side's port.
    pub fn local_port(&self) -> u16 {
        self.stream.local_addr().map_or(0, |address| address.port())
    }

    /// The frame of a request without a body, on the next stream.
    pub fn request(&mut self, fields: &[(&str, &[u8])]) -> (u32, Vec<u8>) {
        let (id, block) = self.block(fields);
        (id, frame(HEADERS, END_STREAM | END_HEADERS, id, &block))
    }

    /// The frames of a request that is whole but for its end: the headers, and
    /// the empty DATA frame that ends it, which many streams may send at once.
    pub fn request_and_end(&mut self, fields: &[(&str, &[u8])]) -> (u32, Vec<u8>, Vec<u8>) {
        let (id, block) = self.block(fields);
        let headers = frame(HEADERS, END_HEADERS, id, &block);
        (id, headers, frame(DATA, END_STREAM, id, &[]))
    }

    /// The frame of a request that goes on, on the next stream.
    pub fn open(&mut self, fields: &[(&str, &[u8])]) -> (u32, Vec<u8>) {
        let (id, block) = self.block(fields);
        (id, frame(HEADERS, END_HEADERS, id, &block))
    }

    /// A DATA frame of a stream.
    pub fn data(id: u32, payload: &[u8], last: bool) -> Vec<u8> {
        frame(DATA, if last { END_STREAM } else { 0 }, id, payload)
    }

    /// A second HEADERS frame of a stream: its trailers, which end it or not.
    pub fn trailers(id: u32, fields: &[(&str, &[u8])], last: bool) -> Vec<u8> {
        let flags = if last {
            END_STREAM | END_HEADERS
        } else {
            END_HEADERS
        };
        frame(HEADERS, flags, id, &literals(fields))
    }

    /// A RST_STREAM frame with CANCEL.
    pub fn reset(id: u32) -> Vec<u8> {
        frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())
    }

    /// Sends a request with a body that ends in this way; its stream.
    ///
    /// # Errors
    /// When the other side has closed.
    pub async fn upload(
        &mut self,
        fields: &[(&str, &[u8])],
        body: &[u8],
        end: End,
    ) -> Result<u32, Error> {
        let (id, block) = self.block(fields);
        let last = |it: End| if it == end { END_STREAM } else { 0 };
        let mut bytes = frame(HEADERS, END_HEADERS | last(End::Headers), id, &block);
        if !body.is_empty() {
            bytes.extend(frame(DATA, last(End::Data), id, body));
        }
        match end {
            End::Headers | End::Data | End::Never => {}
            End::Empty => bytes.extend(frame(DATA, END_STREAM, id, &[])),
            End::Trailers => {
                let mut block = vec![0x10];
                text(&mut block, b"x-sum");
                text(&mut block, b"1");
                bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, id, &block));
            }
        }
        self.send(&bytes).await?;
        Ok(id)
    }

    fn block(&mut self, fields: &[(&str, &[u8])]) -> (u32, Vec<u8>) {
        let id = self.next;
        self.next = self.next.saturating_add(2);
        (id, literals(fields))
    }

    /// Sends these bytes and no others.
    ///
    /// # Errors
    /// When the other side has closed.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let sent = self.stream.write_all(bytes).await;
        sent.map_err(Error::http("a connection of frames"))
    }

    /// Reads until these streams are over, or the connection is.
    ///
    /// # Errors
    /// When what comes is no HTTP/2, or takes longer than [`PATIENCE`].
    pub async fn answers(&mut self, wanted: &[u32]) -> Result<BTreeMap<u32, Stream>, Error> {
        let all = timeout(PATIENCE, self.read_answers(wanted)).await;
        all.unwrap_or_else(|_| Err(broken("not all streams end")))
    }

    async fn read_answers(&mut self, wanted: &[u32]) -> Result<BTreeMap<u32, Stream>, Error> {
        let mut streams: BTreeMap<u32, Stream> =
            wanted.iter().map(|id| (*id, Stream::default())).collect();
        while streams.values().any(|stream| !stream.over) {
            let Some((kind, flags, id, payload)) = self.frame().await else {
                break;
            };
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(&frame(SETTINGS, ACK, 0, &[])).await?,
                PING if flags & ACK == 0 => self.send(&frame(PING, ACK, 0, &payload)).await?,
                GOAWAY => break,
                _ => {}
            }
            let Some(stream) = streams.get_mut(&id) else {
                continue;
            };
            match kind {
                HEADERS if stream.status == 0 => {
                    let status = status_of(&payload).ok_or_else(|| broken("a status"))?;
                    // An interim answer is none yet.
                    stream.status = if status < 200 { 0 } else { status };
                }
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
        Ok(streams)
    }

    async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, id @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]);
        let mut payload = vec![0; usize::try_from(length).ok()?];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some((kind, flags, u32::from_be_bytes(id) & 0x7fff_ffff, payload))
    }
}

/// Literal, never indexed, no Huffman code (RFC 7541, section 6.2.3).
fn literals(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x10);
        text(&mut block, name.as_bytes());
        text(&mut block, value);
    }
    block
}

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let [_, a, b, c] = length.to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(id.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A string without Huffman code (RFC 7541, section 5.2).
fn text(block: &mut Vec<u8>, bytes: &[u8]) {
    const PREFIX: usize = 127;
    if let Some(mut rest) = bytes.len().checked_sub(PREFIX) {
        block.push(0x7f);
        while rest >= 128 {
            block.push(low_bits(rest) | 0x80);
            rest /= 128;
        }
        block.push(low_bits(rest));
    } else {
        block.push(low_bits(bytes.len()));
    }
    block.extend(bytes);
}

fn low_bits(number: usize) -> u8 {
    u8::try_from(number % 128).unwrap_or_default()
}

/// `:status`, which comes first: indexed, or a literal of three digits.
fn status_of(block: &[u8]) -> Option<u16> {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    let mut rest = block;
    while let [first, others @ ..] = rest
        && first & 0xe0 == 0x20
    {
        rest = others;
    }
    match rest {
        [first @ 0x88..=0x8e, ..] => INDEXED.get(usize::from(first - 0x88)).copied(),
        [0x48 | 0x08 | 0x18, 3, digits @ ..] => {
            std::str::from_utf8(digits.get(..3)?).ok()?.parse().ok()
        }
        [0x48 | 0x08 | 0x18, length, coded @ ..] if length & 0x80 != 0 => {
            huffman_digits(coded.get(..usize::from(length & 0x7f))?)
        }
        _ => None,
    }
}

/// Three digits in the code of RFC 7541, appendix B: 0, 1, 2 have five bits,
/// the others six.
fn huffman_digits(coded: &[u8]) -> Option<u16> {
    let mut bits = coded
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| u16::from(byte >> at & 1)));
    let mut status = 0;
    for _ in 0..3 {
        let mut code = 0;
        for _ in 0..5 {
            code = code * 2 + bits.next()?;
        }
        let digit = if code <= 2 {
            code
        } else {
            // '3' is 0x19.
            (code * 2 + bits.next()?).checked_sub(0x19)? + 3
        };
        status = status * 10 + digit;
    }
    Some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_in_each_of_its_forms() {
        assert_eq!(status_of(&[0x88]), Some(200));
        assert_eq!(status_of(&[0x20, 0x8d, 0xff]), Some(404));
        assert_eq!(status_of(b"\x48\x03401"), Some(401));
        // 401 in the static code: 011010 00000 00001.
        assert_eq!(status_of(&[0x48, 0x82, 0x68, 0x01]), Some(401));
        assert_eq!(status_of(&[0x48, 0x82]), None);
        assert_eq!(status_of(b"\x40\x01x"), None);
    }

    #[test]
    fn lengths_are_coded_as_section_5_1_says() {
        let mut block = Vec::new();
        text(&mut block, &[b'a'; 300]);
        // 300 = 127 + 45 + 1 * 128.
        assert_eq!(block.get(..3), Some([0x7f, 0xad, 0x01].as_slice()));
        assert_eq!(block.len(), 303);
        let mut short = Vec::new();
        text(&mut short, b"ab");
        assert_eq!(short, b"\x02ab");
    }
}
