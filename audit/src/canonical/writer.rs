//! A serde serialiser whose output is canonical as it is written.
//!
//! Members that come in order are written once; others are put in order when
//! their object ends.

use std::{borrow::Cow, cmp::Ordering, fmt};

use serde::ser::{self, Serialize};

use super::{CanonicalError, LARGEST_INTEGER, string};

/// Nesting that is written: less than what serde_json reads back (128).
const DEPTH: usize = 100;
/// Most lines are shorter than this.
const EXPECTED_LEN: usize = 1024;

pub(super) fn to_vec<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CanonicalError> {
    to_vec_of_variant(value).map(|(bytes, _)| bytes)
}

/// With the variant's name when the value is one with content.
pub(super) fn to_vec_of_variant<T: Serialize + ?Sized>(
    value: &T,
) -> Result<(Vec<u8>, Option<String>), CanonicalError> {
    written(value, Vec::with_capacity(EXPECTED_LEN))
}

/// Behind what is there.
pub(super) fn append<T: Serialize + ?Sized>(
    value: &T,
    out: Vec<u8>,
) -> Result<Vec<u8>, CanonicalError> {
    written(value, out).map(|(bytes, _)| bytes)
}

fn written<T: Serialize + ?Sized>(
    value: &T,
    out: Vec<u8>,
) -> Result<(Vec<u8>, Option<String>), CanonicalError> {
    let mut writer = Writer {
        out,
        members: Vec::new(),
        depth: 0,
        variant: None,
    };
    value.serialize(&mut writer)?;
    Ok((writer.out, writer.variant))
}

struct Member {
    key: Cow<'static, str>,
    /// From its key to the end of its value, without a comma.
    start: usize,
    end: usize,
}

struct Writer {
    out: Vec<u8>,
    /// Members of the objects that are open, outermost first.
    members: Vec<Member>,
    depth: usize,
    /// The tag of the outermost value.
    variant: Option<String>,
}

impl ser::Error for CanonicalError {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::Type
    }
}

/// RFC 8785, section 3.2.3: by UTF-16 code units.
fn order(a: &str, b: &str) -> Ordering {
    if a.is_ascii() && b.is_ascii() {
        a.cmp(b)
    } else {
        a.encode_utf16().cmp(b.encode_utf16())
    }
}

impl Writer {
    fn open(&mut self, bracket: u8) -> Result<(), CanonicalError> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > DEPTH {
            return Err(CanonicalError::Syntax);
        }
        self.out.push(bracket);
        Ok(())
    }

    fn close(&mut self, bracket: u8) {
        self.depth = self.depth.saturating_sub(1);
        self.out.push(bracket);
    }

    /// Begins an object; `tag` names the variant that it is the content of.
    fn object(&mut self, tag: Option<&str>) -> Result<Object<'_>, CanonicalError> {
        self.tag(tag)?;
        self.open(b'{')?;
        Ok(Object {
            start: self.out.len(),
            first: self.members.len(),
            ordered: true,
            tagged: tag.is_some(),
            writer: self,
        })
    }

    /// Begins a list; `tag` names the variant that it is the content of.
    fn list(&mut self, tag: Option<&str>) -> Result<List<'_>, CanonicalError> {
        self.tag(tag)?;
        self.open(b'[')?;
        Ok(List {
            empty: true,
            tagged: tag.is_some(),
            writer: self,
        })
    }

    fn tag(&mut self, tag: Option<&str>) -> Result<(), CanonicalError> {
        if let Some(name) = tag {
            if self.depth == 0 {
                self.variant = Some(name.to_owned());
            }
            self.open(b'{')?;
            string(name, &mut self.out)?;
            self.out.push(b':');
        }
        Ok(())
    }

    fn unsigned(&mut self, n: u64, negative: bool) -> Result<(), CanonicalError> {
        if n > LARGEST_INTEGER {
            return Err(CanonicalError::Number);
        }
        if negative {
            self.out.push(b'-');
        }
        // From the last digit on: at most 16 of them.
        let mut digits = [0_u8; 16];
        let mut left = n;
        let mut used = 0_usize;
        for digit in digits.iter_mut().rev() {
            *digit = b'0'.saturating_add(u8::try_from(left % 10).unwrap_or(0));
            left /= 10;
            used = used.saturating_add(1);
            if left == 0 {
                break;
            }
        }
        let from = digits.len().saturating_sub(used);
        self.out
            .extend_from_slice(digits.get(from..).unwrap_or(&[]));
        Ok(())
    }
}

/// An object that is being written.
struct Object<'w> {
    writer: &'w mut Writer,
    /// Behind its bracket.
    start: usize,
    /// Its first member in `members`.
    first: usize,
    ordered: bool,
    tagged: bool,
}

impl Object<'_> {
    fn key(&mut self, key: Cow<'static, str>) -> Result<(), CanonicalError> {
        let before = self.writer.members.get(self.first..).and_then(<[_]>::last);
        if let Some(before) = before {
            self.ordered &= order(&before.key, &key) == Ordering::Less;
            self.writer.out.push(b',');
        }
        let start = self.writer.out.len();
        string(&key, &mut self.writer.out)?;
        self.writer.out.push(b':');
        self.writer.members.push(Member { key, start, end: 0 });
        Ok(())
    }

    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CanonicalError> {
        value.serialize(&mut *self.writer)?;
        let end = self.writer.out.len();
        if let Some(member) = self.writer.members.last_mut() {
            member.end = end;
        }
        Ok(())
    }

    fn end(self) -> Result<(), CanonicalError> {
        if !self.ordered {
            let members = self.writer.members.get_mut(self.first..);
            let members = members.unwrap_or_default();
            members.sort_by(|a, b| order(&a.key, &b.key));
            if members.windows(2).any(|two| {
                let [a, b] = two else { return false };
                a.key == b.key
            }) {
                return Err(CanonicalError::NotCanonical);
            }
            let mut sorted = Vec::with_capacity(self.writer.out.len().saturating_sub(self.start));
            for member in members {
                if !sorted.is_empty() {
                    sorted.push(b',');
                }
                let written = self.writer.out.get(member.start..member.end);
                sorted.extend_from_slice(written.unwrap_or_default());
            }
            self.writer.out.truncate(self.start);
            self.writer.out.extend_from_slice(&sorted);
        }
        self.writer.members.truncate(self.first);
        self.writer.close(b'}');
        if self.tagged {
            self.writer.close(b'}');
        }
        Ok(())
    }
}

/// A list that is being written.
struct List<'w> {
    writer: &'w mut Writer,
    empty: bool,
    tagged: bool,
}

impl List<'_> {
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CanonicalError> {
        if !std::mem::take(&mut self.empty) {
            self.writer.out.push(b',');
        }
        value.serialize(&mut *self.writer)
    }

    fn end(self) -> Result<(), CanonicalError> {
        self.writer.close(b']');
        if self.tagged {
            self.writer.close(b'}');
        }
        Ok(())
    }
}

mod parts;
