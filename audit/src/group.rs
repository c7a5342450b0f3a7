//! A group: the lines that became durable in one write, with their attachments.
//!
//! ```text
//! header (160) │ line ⏎ line ⏎ … │ salt evidence salt evidence … │ zeros │ end mark (8)
//! └──────────────── digest ──────┘                               to a multiple of 512
//! ```
//!
//! Every bit is covered: header and lines by the digest, attachments by the
//! hashes in their lines, and the rest is fixed. The end mark stands in the
//! group's last block, so that a write that stopped anywhere leaves either an
//! all-zero block or no end mark, which no flipped bit does.

mod scan;

use std::ops::Range;

pub use scan::{Scan, Sketch};
use sha2::{Digest, Sha256};

use crate::{
    chain::{Hash, leaf_hash},
    line::{Line, LineError},
};

/// Groups start at multiples of this many bytes, so that a torn sector never
/// holds parts of two of them.
pub const BLOCK: usize = 512;
/// Bytes of the header.
pub const HEADER_LEN: usize = 160;
/// The version of everything that `docs/reference/journal.md` lays out.
pub const FORMAT: u32 = 1;
/// Lines in one group.
pub const MAX_LINES: u32 = 4096;
/// Bytes of one group, padding and all.
pub const MAX_GROUP: usize = 4 * 1024 * 1024;

// Neither occurs in text: 0xF7 is no byte of UTF-8, so evidence cannot imitate a header.
pub(crate) const MAGIC: [u8; 8] = *b"\xf7WRITJ\r\n";
const END: [u8; 8] = *b"\xf7ENDOF\r\xf7";
const DIGESTED: usize = 128;

/// A group's header; integers are big-endian on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The log's random name: groups of another log are never taken for this one's.
    pub log: [u8; 16],
    /// The segment that the group is in.
    pub segment: u64,
    /// The group's number, from 0 on, across segments.
    pub group: u64,
    /// The index of its first line.
    pub first: u64,
    /// Entries that were durable before the group was written: the group proves them.
    pub durable: u64,
    /// Lines.
    pub count: u32,
    /// Bytes of lines, newlines included.
    pub lines_len: u32,
    /// Bytes of the whole group, a multiple of [`BLOCK`].
    pub total_len: u32,
    /// The leaf hash of the last line.
    pub head: Hash,
}

/// Bytes that are no whole group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// Nothing starts here: the magic is missing.
    #[error("no group starts here")]
    NoGroup,
    /// A layout that this version does not read.
    #[error("format version {0} is not known")]
    Version(u32),
    /// Lengths that contradict each other, or more bytes than there are.
    #[error("the group's lengths do not fit")]
    Lengths,
    /// Header and lines are not what was digested.
    #[error("the group's digest does not match")]
    Digest,
    /// A line that is none, though the digest matches.
    #[error("line {at} of the group: {error}")]
    Line {
        /// Which line, from 0 on.
        at: u32,
        /// What is wrong with it.
        error: LineError,
    },
    /// The head is not the last line's leaf hash.
    #[error("the group's head is not its last line's")]
    Head,
    /// Padding that is not zero, or no end mark.
    #[error("the group's end is damaged")]
    End,
}

impl Header {
    fn encode(&self) -> [u8; DIGESTED] {
        let mut out = [0; DIGESTED];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            if let Some(to) = out.get_mut(at..at + bytes.len()) {
                to.copy_from_slice(bytes);
            }
            at += bytes.len();
        };
        put(&MAGIC);
        put(&FORMAT.to_be_bytes());
        put(&self.count.to_be_bytes());
        put(&self.log);
        put(&self.segment.to_be_bytes());
        put(&self.group.to_be_bytes());
        put(&self.first.to_be_bytes());
        put(&self.durable.to_be_bytes());
        put(&self.lines_len.to_be_bytes());
        put(&self.total_len.to_be_bytes());
        put(&self.head);
        out
    }

    /// Reads the header at the start of `bytes`; the digest is [`Group::decode`]'s to check.
    ///
    /// # Errors
    /// [`GroupError::NoGroup`], [`GroupError::Version`] or [`GroupError::Lengths`].
    pub fn decode(bytes: &[u8]) -> Result<Self, GroupError> {
        let mut cursor = Cursor(bytes);
        if cursor.take::<8>() != Some(MAGIC) {
            return Err(GroupError::NoGroup);
        }
        let version = cursor.u32().ok_or(GroupError::Lengths)?;
        if version == 0 {
            // No layout's version: a write that stopped inside the header.
            return Err(GroupError::NoGroup);
        }
        if version != FORMAT {
            return Err(GroupError::Version(version));
        }
        let header = cursor.header().ok_or(GroupError::Lengths)?;
        let total = as_usize(header.total_len);
        let least = as_usize(header.lines_len).saturating_add(HEADER_LEN + END.len());
        let fits = total.is_multiple_of(BLOCK) && least <= total && total <= MAX_GROUP;
        if !fits || header.count == 0 || header.count > MAX_LINES {
            return Err(GroupError::Lengths);
        }
        // What is reserved must be zero: one group has one encoding.
        if bytes.get(..DIGESTED) != Some(&header.encode()) {
            return Err(GroupError::Digest);
        }
        Ok(header)
    }
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn header(&mut self) -> Option<Header> {
        let count = self.u32()?;
        let log = self.take()?;
        let (segment, group, first, durable) = (self.u64()?, self.u64()?, self.u64()?, self.u64()?);
        let (lines_len, total_len, head) = (self.u32()?, self.u32()?, self.take()?);
        Some(Header {
            log,
            segment,
            group,
            first,
            durable,
            count,
            lines_len,
            total_len,
            head,
        })
    }
}

/// One line of a decoded group.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry<'a> {
    /// The line's bytes, without the newline.
    pub bytes: &'a [u8],
    /// What they say.
    pub line: Line,
    /// The line's leaf hash.
    pub leaf: Hash,
    /// The attachments' bytes in the order of `line.attachments`, salt first.
    pub attached: Vec<&'a [u8]>,
}

impl Entry<'_> {
    /// Whether every attachment is the one that the line names.
    #[must_use]
    pub fn attachments_match(&self) -> bool {
        self.line
            .attachments
            .iter()
            .zip(&self.attached)
            .all(|(named, bytes)| named.matches(bytes))
    }
}

/// A whole group. It agrees with itself; whether it continues the chain, and
/// whether its attachments match, is the caller's to check.
#[derive(Clone, Debug, PartialEq)]
pub struct Group<'a> {
    /// Its header.
    pub header: Header,
    /// Its lines, at least one.
    pub entries: Vec<Entry<'a>>,
}

impl<'a> Group<'a> {
    /// Decodes the group at the start of `bytes`, which may hold more.
    ///
    /// # Errors
    /// A [`GroupError`] that says what is wrong; no input panics.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, GroupError> {
        let header = Header::decode(bytes)?;
        let whole = bytes
            .get(..as_usize(header.total_len))
            .ok_or(GroupError::Lengths)?;
        let lines_end = HEADER_LEN + as_usize(header.lines_len);
        let (head, lines, rest) = split(whole, lines_end).ok_or(GroupError::Lengths)?;
        let (digested, digest) = head.split_at_checked(DIGESTED).ok_or(GroupError::Lengths)?;
        if Sha256::new()
            .chain_update(digested)
            .chain_update(lines)
            .finalize()
            .as_slice()
            != digest
        {
            return Err(GroupError::Digest);
        }
        let mut rest = rest;
        let mut entries = Vec::with_capacity(as_usize(header.count));
        let mut at = 0;
        for bytes in split_lines(lines)? {
            let line = Line::decode(bytes).map_err(|error| GroupError::Line { at, error })?;
            let mut attached = Vec::with_capacity(line.attachments.len());
            for named in &line.attachments {
                let len = usize::try_from(named.len).map_err(|_| GroupError::Lengths)?;
                let (salted, after) = rest.split_at_checked(len).ok_or(GroupError::Lengths)?;
                attached.push(salted);
                rest = after;
            }
            entries.push(Entry {
                bytes,
                line,
                leaf: leaf_hash(bytes),
                attached,
            });
            at += 1;
        }
        if at != header.count {
            return Err(GroupError::Lengths);
        }
        if entries.last().is_none_or(|last| last.leaf != header.head) {
            return Err(GroupError::Head);
        }
        let padding = rest.strip_suffix(&END).ok_or(GroupError::End)?;
        if padding.len() >= BLOCK || padding.iter().any(|b| *b != 0) {
            return Err(GroupError::End);
        }
        Ok(Self { header, entries })
    }

    /// Where the group ends, counted from its start.
    #[must_use]
    pub fn len(&self) -> usize {
        as_usize(self.header.total_len)
    }

    /// Never: a group has at least one line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The bytes that may be lines in a group whose digest does not match, for naming
/// the entry that was changed. Count and length of the lines may be what is wrong:
/// the lesser of both holds.
pub(crate) fn lines_leniently<'a>(
    bytes: &'a [u8],
    header: &Header,
) -> impl Iterator<Item = &'a [u8]> {
    let rest = bytes.get(HEADER_LEN..).unwrap_or_default();
    let lines = rest.get(..as_usize(header.lines_len)).unwrap_or(rest);
    let lines = lines.strip_suffix(b"\n").unwrap_or(lines);
    lines.split(|b| *b == b'\n').take(as_usize(header.count))
}

fn split(whole: &[u8], lines_end: usize) -> Option<(&[u8], &[u8], &[u8])> {
    let lines: Range<usize> = HEADER_LEN..lines_end;
    Some((
        whole.get(..HEADER_LEN)?,
        whole.get(lines)?,
        whole.get(lines_end..)?,
    ))
}

fn split_lines(lines: &[u8]) -> Result<impl Iterator<Item = &[u8]>, GroupError> {
    let lines = lines.strip_suffix(b"\n").ok_or(GroupError::Lengths)?;
    Ok(lines.split(|b| *b == b'\n'))
}

fn as_usize(n: u32) -> usize {
    // Every platform this runs on has pointers of 32 bits at least.
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Whether bytes from a group's start to the end of what was written look like a
/// write that stopped, rather than like a whole group that was changed.
///
/// True when all of it is zero, when one of its blocks is all zero, or when the
/// block that holds its last byte does not end in an end mark.
#[must_use]
pub fn is_unfinished(bytes: &[u8]) -> bool {
    let Some(last) = bytes.iter().rposition(|b| *b != 0) else {
        return true;
    };
    // More than one group can be is no single write that stopped.
    if last >= MAX_GROUP {
        return false;
    }
    let end = (last / BLOCK).saturating_add(1).saturating_mul(BLOCK);
    let Some(written) = bytes.get(..end) else {
        return true;
    };
    let hole = written
        .chunks(BLOCK)
        .any(|block| block.iter().all(|b| *b == 0));
    let mark = written.last_chunk().is_some_and(|mark: &[u8; END.len()]| {
        // An end mark with a changed bit is still one, and no text has six of its
        // bytes; one that was not written to its end ends in zero.
        mark.last() != Some(&0) && mark.iter().zip(&END).filter(|(a, b)| a == b).count() >= 6
    });
    hole || !mark
}

/// Gathers lines and attachments into the bytes of one group.
#[derive(Debug, Default)]
pub struct Builder {
    lines: Vec<u8>,
    attached: Vec<u8>,
    count: u32,
    head: Hash,
}

impl Builder {
    /// Appends an encoded line and its attachments, salt first, in the line's
    /// order; gives the line's leaf hash.
    pub fn push<'b>(&mut self, line: &[u8], attached: impl IntoIterator<Item = &'b [u8]>) -> Hash {
        self.lines.extend_from_slice(line);
        self.lines.push(b'\n');
        for salted in attached {
            self.attached.extend_from_slice(salted);
        }
        self.count = self.count.saturating_add(1);
        self.head = leaf_hash(line);
        self.head
    }

    /// Lines so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The length that the group would have with `more` bytes of line, newline and attachments.
    #[must_use]
    pub fn len_with(&self, more: usize) -> usize {
        let body = self
            .lines
            .len()
            .saturating_add(self.attached.len())
            .saturating_add(more);
        body.saturating_add(HEADER_LEN + END.len())
            .next_multiple_of(BLOCK)
    }

    /// The group's bytes. Count, lengths and head of `header` are set here.
    ///
    /// # Errors
    /// [`GroupError::Lengths`] when it holds no line or more than a group may.
    pub fn finish(mut self, header: Header) -> Result<(Header, Vec<u8>), GroupError> {
        let mut out = Vec::new();
        let header = self.finish_into(header, &mut out)?;
        Ok((header, out))
    }

    /// As [`Builder::finish`], in place of what `out` has; what was gathered is
    /// gone from here then, and its memory is kept for the next group.
    ///
    /// # Errors
    /// As [`Builder::finish`]'s; everything is as it was.
    pub fn finish_into(&mut self, header: Header, out: &mut Vec<u8>) -> Result<Header, GroupError> {
        let total = self.len_with(0);
        if total > MAX_GROUP || self.count == 0 || self.count > MAX_LINES {
            return Err(GroupError::Lengths);
        }
        let header = Header {
            count: self.count,
            lines_len: u32::try_from(self.lines.len()).map_err(|_| GroupError::Lengths)?,
            total_len: u32::try_from(total).map_err(|_| GroupError::Lengths)?,
            head: self.head,
            ..header
        };
        let digested = header.encode();
        out.clear();
        out.reserve(total);
        out.extend_from_slice(&digested);
        out.extend_from_slice(
            &Sha256::new()
                .chain_update(digested)
                .chain_update(&self.lines)
                .finalize(),
        );
        out.extend_from_slice(&self.lines);
        out.extend_from_slice(&self.attached);
        out.resize(total.saturating_sub(END.len()), 0);
        out.extend_from_slice(&END);
        self.lines.clear();
        self.attached.clear();
        self.count = 0;
        Ok(header)
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
