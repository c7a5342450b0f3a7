//! Lets gRPC's C core (Python, C++, Ruby) talk to us over a Unix socket.
//!
//! It sends the socket's percent-encoded path as `:authority`, as in
//! `run%2Fwrit%2Fworkload.sock`. The HTTP/2 server beneath us takes that for a
//! malformed host and resets the stream before any of our code sees it. On
//! this socket nothing depends on the authority, so each `%` in it becomes a
//! `-` on the way in: the same length, hence no other byte moves.
//!
//! Only the first fragment of a header block is looked at (pseudo-headers come
//! first, RFC 9113, section 8.3) and only plain literals (C core uses no
//! Huffman code for them). What isn't understood passes unchanged: the server
//! judges it.

/// A connection begins with so many (RFC 9113, section 3.4).
pub(crate) const PREFACE_BYTES: usize = 24;
const FRAME_HEADER_BYTES: usize = 9;
/// We announce no larger frames; the server refuses those that come anyway.
const MAX_FRAME_BYTES: usize = 16 * 1024;
const HEADERS_FRAME: u8 = 1;
const FLAG_PADDED: u8 = 0x08;
const FLAG_PRIORITY: u8 = 0x20;
/// `:authority` in HPACK's static table (RFC 7541, appendix A).
const AUTHORITY_INDEX: usize = 1;

/// Mends one connection's incoming bytes.
pub(crate) struct Mender {
    state: State,
}

enum State {
    /// These many bytes pass as they are.
    Pass(usize),
    /// A frame's header, as far as it has come.
    Header(Vec<u8>),
    /// A HEADERS frame's payload, as far as it has come.
    Hold {
        payload: Vec<u8>,
        missing: usize,
        flags: u8,
    },
}

impl Mender {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Pass(PREFACE_BYTES),
        }
    }

    /// Takes what has arrived and appends what may go on.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Pass(missing) => {
                    let (now, rest) = split(bytes, *missing);
                    out.extend_from_slice(now);
                    *missing -= now.len();
                    bytes = rest;
                    if *missing == 0 {
                        self.state = State::Header(Vec::with_capacity(FRAME_HEADER_BYTES));
                    }
                }
                State::Header(header) => {
                    let (now, rest) = split(bytes, FRAME_HEADER_BYTES - header.len());
                    header.extend_from_slice(now);
                    bytes = rest;
                    if let [a, b, c, kind, flags, _, _, _, _] = header.as_slice() {
                        out.extend_from_slice(header);
                        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
                        self.state = State::payload(length, *kind, *flags);
                    }
                }
                State::Hold {
                    payload,
                    missing,
                    flags,
                } => {
                    let (now, rest) = split(bytes, *missing);
                    payload.extend_from_slice(now);
                    *missing -= now.len();
                    bytes = rest;
                    if *missing == 0 {
                        // `None` means: not understood, and left alone.
                        let _ = mend(payload, *flags);
                        out.extend_from_slice(payload);
                        self.state = State::Header(Vec::with_capacity(FRAME_HEADER_BYTES));
                    }
                }
            }
        }
    }
}

impl State {
    fn payload(length: usize, kind: u8, flags: u8) -> Self {
        match (kind, length) {
            (_, 0) => Self::Header(Vec::with_capacity(FRAME_HEADER_BYTES)),
            (HEADERS_FRAME, 1..=MAX_FRAME_BYTES) => Self::Hold {
                payload: Vec::with_capacity(length),
                missing: length,
                flags,
            },
            _ => Self::Pass(length),
        }
    }
}

fn split(bytes: &[u8], at: usize) -> (&[u8], &[u8]) {
    bytes.split_at_checked(at).unwrap_or((bytes, &[]))
}

/// Mends the header block of a HEADERS frame (RFC 9113, section 6.2).
fn mend(payload: &mut [u8], flags: u8) -> Option<()> {
    let mut start = 0;
    let mut end = payload.len();
    if flags & FLAG_PADDED != 0 {
        end = end.checked_sub(usize::from(*payload.first()?))?;
        start += 1;
    }
    if flags & FLAG_PRIORITY != 0 {
        start += 5;
    }
    let block = payload.get_mut(start..end)?;
    let mut at = 0;
    while at < block.len() {
        at = mend_field(block, at)?;
    }
    Some(())
}

/// Mends one field line at `at` and returns where the next begins (RFC 7541, section 6).
fn mend_field(block: &mut [u8], at: usize) -> Option<usize> {
    let first = *block.get(at)?;
    let prefix = match first {
        0x80.. => return integer(block, at, 7).map(|(_, next)| next),
        0x40..=0x7f => 6,
        0x20..=0x3f => return integer(block, at, 5).map(|(_, next)| next),
        _ => 4,
    };
    let (index, mut next) = integer(block, at, prefix)?;
    let mut is_authority = index == AUTHORITY_INDEX;
    if index == 0 {
        let (huffman, start, end) = string(block, next)?;
        is_authority = !huffman && block.get(start..end)? == b":authority";
        next = end;
    }
    let (huffman, start, end) = string(block, next)?;
    if is_authority && !huffman {
        for byte in block.get_mut(start..end)? {
            if *byte == b'%' {
                *byte = b'-';
            }
        }
    }
    Some(end)
}

/// A string literal (RFC 7541, section 5.2): whether it is Huffman coded, and its bounds.
fn string(block: &[u8], at: usize) -> Option<(bool, usize, usize)> {
    let huffman = block.get(at)? & 0x80 != 0;
    let (length, start) = integer(block, at, 7)?;
    let end = start.checked_add(length)?;
    (end <= block.len()).then_some((huffman, start, end))
}

/// An integer with a prefix of so many bits (RFC 7541, section 5.1), and what follows it.
fn integer(block: &[u8], at: usize, prefix: u32) -> Option<(usize, usize)> {
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(*block.get(at)?) & mask;
    let mut next = at + 1;
    if value < mask {
        return Some((value, next));
    }
    // Three more bytes are 2 MiB: no frame holds more.
    for shift in [0, 7, 14] {
        let byte = usize::from(*block.get(next)?);
        next += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, next));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    }

    fn literal(first: u8, value: &str) -> Vec<u8> {
        let mut field = vec![first, u8::try_from(value.len()).unwrap()];
        field.extend(value.as_bytes());
        field
    }

    fn named(name: &str, value: &str) -> Vec<u8> {
        let mut field = literal(0x40, name);
        field.extend(literal(0, value).split_off(1));
        field
    }

    /// `:path` and `:authority` as literals to be indexed, with the name from
    /// the table or (as C core has it) in full, among other fields.
    fn block(authority: &str) -> Vec<u8> {
        let mut block = vec![0x3f, 0xe1, 0x1f];
        block.extend(literal(0x44, "/SpiffeWorkloadAPI/Fetch%58"));
        block.extend(literal(0x41, authority));
        block.extend([0x83, 0x86]);
        block.extend(named(":authority", authority));
        block.extend(named("x-%2F", "%2F"));
        block
    }

    fn run(input: &[u8], step: usize) -> Vec<u8> {
        let mut mender = Mender::new();
        let mut out = Vec::new();
        for part in input.chunks(step) {
            mender.feed(part, &mut out);
        }
        out
    }

    fn connection(authority: &str) -> Vec<u8> {
        let mut padded = vec![3, 0, 0, 0, 0, 16];
        padded.extend(block(authority));
        padded.extend([0, 0, 0]);
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(4, 0, &[]));
        bytes.extend(frame(1, 4, &block(authority)));
        bytes.extend(frame(0, 1, b"\x41\x03%2F"));
        bytes.extend(frame(1, 0x04 | FLAG_PADDED | FLAG_PRIORITY, &padded));
        bytes
    }

    #[test]
    fn the_authority_alone_is_mended_however_it_arrives() {
        let sent = connection("run%2Fwrit.sock");
        let wanted = connection("run-2Fwrit.sock");
        for step in 1..=sent.len() {
            assert_eq!(run(&sent, step), wanted, "in steps of {step}");
        }
    }

    #[test]
    fn what_is_not_understood_passes_unchanged() {
        let broken: [&[u8]; 6] = [
            &[0x41, 0x7f, b'%'],
            &[0x41, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x40, 0x05, b'%'],
            &[0x41],
            // Huffman coded: the byte is no percent sign.
            &[0x41, 0x81, b'%'],
            &[0x7f, 0xff, 0xff, 0xff, 0xff],
        ];
        for payload in broken {
            for flags in [0, 4, 0x0c, 0x24, 0x2c] {
                let mut bytes = PREFACE.to_vec();
                bytes.extend(frame(1, flags, payload));
                bytes.extend(frame(6, 0, b"pingpong"));
                assert_eq!(run(&bytes, 5), bytes);
            }
        }
    }

    #[test]
    fn larger_frames_than_announced_are_not_held() {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(1, 4, &vec![0x41; MAX_FRAME_BYTES + 1]));
        let mut mender = Mender::new();
        let mut out = Vec::new();
        mender.feed(&bytes, &mut out);
        assert_eq!(out, bytes);
        assert!(matches!(mender.state, State::Header(_)));
    }
}
