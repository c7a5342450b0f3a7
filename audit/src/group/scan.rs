//! A group's lines without their bodies: enough to follow the chain quickly.
//!
//! A canonical line ends in members of fixed shape, so that they can be read
//! from its end. What is judged is the group's digest, the lines' leaf hashes and
//! those members; that bodies are canonical is [`Group::decode`](super::Group)'s
//! to check, as is what stands beside the lines.

use sha2::{Digest, Sha256};

use super::{DIGESTED, END, GroupError, HEADER_LEN, Header, as_usize, split, split_lines};
use crate::{
    chain::{Hash, leaf_hash},
    line::{LineError, MAX_LINE},
};

/// A line, as far as its place in the journal goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sketch<'a> {
    /// The line's bytes, without the newline.
    pub bytes: &'a [u8],
    /// Their leaf hash.
    pub leaf: Hash,
    /// `i`.
    pub index: u64,
    /// `t`.
    pub time_ms: u64,
    /// `prev`.
    pub prev: Hash,
    /// `epoch`.
    pub epoch: u64,
    /// `kind`.
    pub kind: &'a str,
}

impl<'a> Sketch<'a> {
    /// Reads the members behind the body.
    ///
    /// # Errors
    /// [`LineError::TooLong`], or the member that is not where a canonical line has it.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, LineError> {
        if bytes.len() > MAX_LINE {
            return Err(LineError::TooLong);
        }
        let rest = bytes.strip_suffix(b"}").ok_or(LineError::Member("line"))?;
        let (rest, time_ms) = number(rest, b",\"t\":", "t")?;
        let (rest, prev) = text(rest, b",\"prev\":", "prev")?;
        let (rest, kind) = text(rest, b",\"kind\":", "kind")?;
        let (rest, index) = number(rest, b",\"i\":", "i")?;
        let (rest, epoch) = number(rest, b",\"epoch\":", "epoch")?;
        if !rest.starts_with(b"{\"att\":[") || !rest.ends_with(b"}") {
            return Err(LineError::Member("line"));
        }
        let mut hash = [0; 32];
        hex::decode_to_slice(prev, &mut hash).map_err(|_| LineError::Member("prev"))?;
        Ok(Self {
            bytes,
            leaf: leaf_hash(bytes),
            index,
            time_ms,
            prev: hash,
            epoch,
            kind,
        })
    }

    /// Whether the body's first member is called so. Members stand in their
    /// names' order.
    #[must_use]
    pub fn body_begins_with(&self, member: &str) -> bool {
        // No string holds this: its quotation marks would be escaped.
        const BODY: &[u8] = b"],\"body\":{\"";
        let at = if self.bytes.starts_with(b"{\"att\":[]") {
            Some(b"{\"att\":[".len())
        } else {
            self.bytes.windows(BODY.len()).position(|w| w == BODY)
        };
        let name = at.and_then(|at| self.bytes.get(at.saturating_add(BODY.len())..));
        name.and_then(|rest| rest.strip_prefix(member.as_bytes()))
            .is_some_and(|rest| rest.starts_with(b"\":"))
    }
}

/// A group, as far as its place in the journal goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan<'a> {
    /// Its header.
    pub header: Header,
    /// Its lines, at least one.
    pub lines: Vec<Sketch<'a>>,
}

impl<'a> Scan<'a> {
    /// Scans the group at the start of `bytes`, which may hold more.
    ///
    /// # Errors
    /// A [`GroupError`]; [`GroupError::Line`] for a line that is not canonical
    /// where it was looked at.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, GroupError> {
        let header = Header::decode(bytes)?;
        let whole = bytes
            .get(..as_usize(header.total_len))
            .ok_or(GroupError::Lengths)?;
        let lines_end = HEADER_LEN + as_usize(header.lines_len);
        let (head, text, rest) = split(whole, lines_end).ok_or(GroupError::Lengths)?;
        let (digested, digest) = head.split_at_checked(DIGESTED).ok_or(GroupError::Lengths)?;
        let found = Sha256::new().chain_update(digested).chain_update(text);
        if found.finalize().as_slice() != digest {
            return Err(GroupError::Digest);
        }
        if !rest.ends_with(&END) {
            return Err(GroupError::End);
        }
        let mut lines = Vec::with_capacity(as_usize(header.count));
        for (at, bytes) in (0..).zip(split_lines(text)?) {
            lines.push(Sketch::decode(bytes).map_err(|error| GroupError::Line { at, error })?);
        }
        if lines.len() != as_usize(header.count) {
            return Err(GroupError::Lengths);
        }
        if lines.last().is_none_or(|last| last.leaf != header.head) {
            return Err(GroupError::Head);
        }
        Ok(Self { header, lines })
    }

    /// Where the group ends, counted from its start.
    #[must_use]
    pub fn len(&self) -> usize {
        as_usize(self.header.total_len)
    }

    /// Never: a group has at least one line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

/// Takes a number off the end, and the name before it.
fn number<'a>(
    bytes: &'a [u8],
    name: &[u8],
    member: &'static str,
) -> Result<(&'a [u8], u64), LineError> {
    let wrong = LineError::Member(member);
    let digits = bytes
        .iter()
        .rev()
        .take_while(|b| b.is_ascii_digit())
        .count();
    let (rest, digits) = bytes
        .split_at_checked(bytes.len().saturating_sub(digits))
        .ok_or(wrong)?;
    if digits.len() > 1 && digits.starts_with(b"0") {
        return Err(wrong);
    }
    let number = std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or(wrong)?;
    Ok((rest.strip_suffix(name).ok_or(wrong)?, number))
}

/// Takes a string of letters, digits and underscores off the end, and the name before it.
fn text<'a>(
    bytes: &'a [u8],
    name: &[u8],
    member: &'static str,
) -> Result<(&'a [u8], &'a str), LineError> {
    let wrong = LineError::Member(member);
    let bytes = bytes.strip_suffix(b"\"").ok_or(wrong)?;
    let plain = |b: &&u8| b.is_ascii_lowercase() || b.is_ascii_digit() || **b == b'_';
    let len = bytes.iter().rev().take_while(plain).count();
    let (rest, text) = bytes
        .split_at_checked(bytes.len().saturating_sub(len))
        .ok_or(wrong)?;
    let rest = rest
        .strip_suffix(b"\"")
        .and_then(|rest| rest.strip_suffix(name));
    let text = std::str::from_utf8(text).map_err(|_| wrong)?;
    match rest {
        Some(rest) if !text.is_empty() => Ok((rest, text)),
        _ => Err(wrong),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Builder, Group};
    use super::*;
    use crate::{AttachmentRef, Line};

    fn line(index: u64, body: serde_json::Value, attachments: Vec<AttachmentRef>) -> Line {
        Line {
            index,
            time_ms: 1_790_000_000_000 + index,
            prev: [7; 32],
            epoch: 3,
            kind: "allow".into(),
            body,
            attachments,
        }
    }

    fn header() -> Header {
        Header {
            log: [9; 16],
            segment: 2,
            group: 5,
            first: 0,
            durable: 0,
            count: 0,
            lines_len: 0,
            total_len: 0,
            head: [0; 32],
        }
    }

    #[test]
    fn a_scan_sees_what_decoding_sees() {
        // A body that imitates what stands behind it, as far as a string can.
        let sly =
            "],\"body\":{\"approval\":1},\"epoch\":9,\"i\":9,\"kind\":\"x\",\"prev\":\"\",\"t\":9}";
        let salted = [1; 40];
        let lines = [
            line(0, json!({}), vec![]),
            line(1, json!({"approval": {"id": sly}, "attempt": sly}), vec![]),
            line(
                2,
                json!({"attempt": sly, "zz": {"approval": 1}}),
                vec![AttachmentRef::new("proof", &[1; 32], &[1; 8])],
            ),
        ];
        let mut builder = Builder::default();
        for line in &lines {
            let attached = line.attachments.iter().map(|_| salted.as_slice());
            builder.push(&line.encode().unwrap(), attached);
        }
        let (_, bytes) = builder.finish(header()).unwrap();
        let (whole, scan) = (
            Group::decode(&bytes).unwrap(),
            Scan::decode(&bytes).unwrap(),
        );
        assert_eq!((whole.header, whole.len()), (scan.header, scan.len()));
        assert_eq!(scan.lines.len(), 3);
        for (entry, sketch) in whole.entries.iter().zip(&scan.lines) {
            let line = &entry.line;
            assert_eq!(
                (
                    entry.bytes,
                    entry.leaf,
                    line.index,
                    line.time_ms,
                    line.prev,
                    line.epoch,
                    line.kind.as_str()
                ),
                (
                    sketch.bytes,
                    sketch.leaf,
                    sketch.index,
                    sketch.time_ms,
                    sketch.prev,
                    sketch.epoch,
                    sketch.kind
                )
            );
        }
        let approvals: Vec<bool> = scan
            .lines
            .iter()
            .map(|line| line.body_begins_with("approval"))
            .collect();
        assert_eq!(approvals, [false, true, false]);
        assert!(scan.lines[2].body_begins_with("attempt"));
        // The padding apart, no byte may change.
        let covered = HEADER_LEN + as_usize(scan.header.lines_len);
        for at in (0..covered).chain(bytes.len() - 8..bytes.len()) {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Scan::decode(&changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        let good = String::from_utf8(line(7, json!({}), vec![]).encode().unwrap()).unwrap();
        assert!(Sketch::decode(good.as_bytes()).is_ok());
        for (from, to, member) in [
            ("\"i\":7", "\"i\":07", "i"),
            ("\"i\":7", "\"i\":-7", "i"),
            ("\"i\":7", "\"j\":7", "i"),
            ("\"kind\":\"allow\"", "\"kind\":\"\"", "kind"),
            ("\"kind\":\"allow\"", "\"kind\":\"Allow\"", "kind"),
            ("\"prev\":\"07", "\"prev\":\"", "prev"),
            ("{\"att\":[]", "{\"atx\":[]", "line"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            let found = Sketch::decode(bad.as_bytes());
            assert_eq!(found, Err(LineError::Member(member)), "{bad}");
        }
        let long = format!("{good}{}", " ".repeat(MAX_LINE));
        assert_eq!(Sketch::decode(long.as_bytes()), Err(LineError::TooLong));
    }
}
