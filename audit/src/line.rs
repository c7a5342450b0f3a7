//! One entry as a line of canonical JSON.

use serde_json::{Map, Value, json};

use crate::{
    canonical::{self, Canonical, CanonicalError},
    chain::Hash,
    evidence::{AttachmentRef, MAX_ATTACHMENTS},
};

/// The longest line in bytes, without its newline.
pub const MAX_LINE: usize = 4096;
/// About what a line has besides its body and attachments.
const PARTS_LEN: usize = 224;
/// About what it has for each attachment.
const ATTACHMENT_LEN: usize = 128;

/// One entry. Its encoding has exactly these members, by their short names.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// `i`: its place in the log, from 0 on.
    pub index: u64,
    /// `t`: the ledger's time in milliseconds since the Unix epoch; never falls.
    pub time_ms: u64,
    /// `prev`: the leaf hash of the line before; zeros for the first.
    pub prev: Hash,
    /// `epoch`: which start of the writer appended it, from 1 on.
    pub epoch: u64,
    /// `kind`: what happened.
    pub kind: String,
    /// `body`: the facts, an object.
    pub body: Value,
    /// `att`: what stands beside the line, in the group's order.
    pub attachments: Vec<AttachmentRef>,
}

/// Where and when a line stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinePlace {
    /// `i`: its place in the log, from 0 on.
    pub index: u64,
    /// `t`: the ledger's time in milliseconds since the Unix epoch; never falls.
    pub time_ms: u64,
    /// `prev`: the leaf hash of the line before; zeros for the first.
    pub prev: Hash,
    /// `epoch`: which start of the writer appended it, from 1 on.
    pub epoch: u64,
}

/// Bytes that are no line, or a line that cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Longer than [`MAX_LINE`].
    #[error("a line is at most {MAX_LINE} bytes")]
    TooLong,
    /// Not canonical JSON.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
    /// A member is missing, unknown, or of the wrong type.
    #[error("member {0} is missing or wrong")]
    Member(&'static str),
}

impl Line {
    /// The canonical line, without a newline.
    ///
    /// # Errors
    /// When it is longer than [`MAX_LINE`], or the body holds a number that lines don't.
    pub fn encode(&self) -> Result<Vec<u8>, LineError> {
        let bytes = canonical::encode(&json!({
            "i": self.index,
            "t": self.time_ms,
            "prev": hex::encode(self.prev),
            "epoch": self.epoch,
            "kind": self.kind,
            "body": self.body,
            "att": self.attachments,
        }))?;
        // What cannot be read back must not be written: nesting, member names.
        if bytes.len() > MAX_LINE {
            Err(LineError::TooLong)
        } else {
            Self::decode(&bytes).map(|_| bytes)
        }
    }

    /// The canonical line of parts, without a newline: for writers that have no
    /// [`Value`]. `kind` is not empty, and `body` is an object of known members.
    ///
    /// # Errors
    /// When it is longer than [`MAX_LINE`], or a number is larger than lines hold.
    pub fn encode_parts(
        place: &LinePlace,
        kind: &str,
        body: &Canonical,
        attachments: &[&AttachmentRef],
    ) -> Result<Vec<u8>, LineError> {
        // What cannot be read back must not be written.
        if kind.is_empty() {
            return Err(LineError::Member("kind"));
        }
        if !body.as_bytes().starts_with(b"{") {
            return Err(LineError::Member("body"));
        }
        let good = |a: &&AttachmentRef| a.is_well_formed();
        if attachments.len() > MAX_ATTACHMENTS || !attachments.iter().all(good) {
            return Err(LineError::Member("att"));
        }
        let beside = attachments.len().saturating_mul(ATTACHMENT_LEN);
        let mut out = Vec::with_capacity(PARTS_LEN + body.as_bytes().len() + beside);
        // In the order of their names, which is the canonical one.
        out.extend_from_slice(b"{\"att\":");
        out = canonical::append(attachments, out)?;
        out.extend_from_slice(b",\"body\":");
        out.extend_from_slice(body.as_bytes());
        out.extend_from_slice(b",\"epoch\":");
        out = canonical::append(&place.epoch, out)?;
        out.extend_from_slice(b",\"i\":");
        out = canonical::append(&place.index, out)?;
        out.extend_from_slice(b",\"kind\":");
        out = canonical::append(kind, out)?;
        let mut prev = [0; 64];
        // Cannot fail: the room is twice the hash.
        let _ = hex::encode_to_slice(place.prev, &mut prev);
        out.extend_from_slice(b",\"prev\":\"");
        out.extend_from_slice(&prev);
        out.extend_from_slice(b"\",\"t\":");
        out = canonical::append(&place.time_ms, out)?;
        out.push(b'}');
        if out.len() > MAX_LINE {
            return Err(LineError::TooLong);
        }
        Ok(out)
    }

    /// Reads a line; only the canonical form is one.
    ///
    /// # Errors
    /// A [`LineError`] that says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, LineError> {
        if bytes.len() > MAX_LINE {
            return Err(LineError::TooLong);
        }
        let Value::Object(mut members) = canonical::decode(bytes)? else {
            return Err(LineError::Member("line"));
        };
        let line = Self {
            index: integer(&mut members, "i")?,
            time_ms: integer(&mut members, "t")?,
            prev: hash(&mut members, "prev")?,
            epoch: integer(&mut members, "epoch")?,
            kind: match members.remove("kind") {
                Some(Value::String(kind)) if !kind.is_empty() => kind,
                _ => return Err(LineError::Member("kind")),
            },
            body: match members.remove("body") {
                Some(body @ Value::Object(_)) => body,
                _ => return Err(LineError::Member("body")),
            },
            attachments: attachments(members.remove("att"))?,
        };
        if members.is_empty() {
            Ok(line)
        } else {
            Err(LineError::Member("line"))
        }
    }

    /// Bytes of attachments that follow the group's lines for this one.
    #[must_use]
    pub fn attached_len(&self) -> u64 {
        self.attachments
            .iter()
            .fold(0, |sum, a| a.len.saturating_add(sum))
    }
}

fn integer(members: &mut Map<String, Value>, name: &'static str) -> Result<u64, LineError> {
    members
        .remove(name)
        .and_then(|v| v.as_u64())
        .ok_or(LineError::Member(name))
}

fn hash(members: &mut Map<String, Value>, name: &'static str) -> Result<Hash, LineError> {
    let Some(Value::String(text)) = members.remove(name) else {
        return Err(LineError::Member(name));
    };
    let mut hash = [0; 32];
    hex::decode_to_slice(&text, &mut hash).map_err(|_| LineError::Member(name))?;
    // hex reads upper case as well; only one spelling is a line.
    if hex::encode(hash) == text {
        Ok(hash)
    } else {
        Err(LineError::Member(name))
    }
}

fn attachments(value: Option<Value>) -> Result<Vec<AttachmentRef>, LineError> {
    let wrong = LineError::Member("att");
    let refs: Vec<AttachmentRef> =
        serde_json::from_value(value.ok_or(wrong)?).map_err(|_| wrong)?;
    let good = refs.len() <= MAX_ATTACHMENTS && refs.iter().all(AttachmentRef::is_well_formed);
    if good { Ok(refs) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line {
            index: 7,
            time_ms: 1_700_000_000_000,
            prev: [0xab; 32],
            epoch: 2,
            kind: "allow".into(),
            body: json!({"z": 1, "a": "\u{1F600}\n"}),
            attachments: vec![AttachmentRef::new("proof", &[1; 32], b"x.y.z")],
        }
    }

    #[test]
    fn a_line_reads_back() {
        let bytes = line().encode().unwrap();
        assert!(bytes.starts_with(br#"{"att":[{"len":37,"name":"proof","sha256":""#));
        assert_eq!(Line::decode(&bytes).unwrap(), line());
    }

    #[test]
    fn other_members_and_types_are_refused() {
        let good = String::from_utf8(line().encode().unwrap()).unwrap();
        for (from, to, what) in [
            ("\"i\":7", "\"i\":-7", "i"),
            ("\"i\":7", "\"i\":\"7\"", "i"),
            ("\"i\":7,", "", "i"),
            ("\"kind\":\"allow\"", "\"kind\":\"\"", "kind"),
            ("\"prev\":\"ab", "\"prev\":\"AB", "prev"),
            ("\"prev\":\"ab", "\"prev\":\"", "prev"),
            ("\"t\":1700000000000", "\"t\":1700000000000,\"u\":1", "line"),
            ("\"len\":37", "\"len\":31", "att"),
            ("\"len\":37", "\"extra\":1,\"len\":37", "att"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from}");
            assert_eq!(
                Line::decode(bad.as_bytes()),
                Err(LineError::Member(what)),
                "{from} -> {to}"
            );
        }
        assert_eq!(
            Line::decode(&good.as_bytes()[1..]),
            Err(LineError::Canonical(CanonicalError::Syntax))
        );
    }

    #[test]
    fn parts_make_the_same_line_or_none() {
        let whole = line();
        let place = LinePlace {
            index: whole.index,
            time_ms: whole.time_ms,
            prev: whole.prev,
            epoch: whole.epoch,
        };
        let body = Canonical::of(&whole.body).unwrap();
        let refs: Vec<&AttachmentRef> = whole.attachments.iter().collect();
        let made = Line::encode_parts(&place, &whole.kind, &body, &refs);
        assert_eq!(made, whole.encode());
        let long = AttachmentRef::new(&"n".repeat(33), &[1; 32], b"x");
        let good = AttachmentRef::new("n", &[1; 32], b"x");
        let list = Canonical::of(&json!([])).unwrap();
        for (kind, body, refs, what) in [
            ("", &body, vec![], "kind"),
            ("k", &list, vec![], "body"),
            ("k", &body, vec![&long], "att"),
            ("k", &body, vec![&good; MAX_ATTACHMENTS + 1], "att"),
        ] {
            let refused = Line::encode_parts(&place, kind, body, &refs);
            assert_eq!(refused, Err(LineError::Member(what)));
        }
    }

    #[test]
    fn a_line_ends_at_its_limit() {
        let mut line = line();
        let spare = MAX_LINE - line.encode().unwrap().len();
        line.kind = format!("{}{}", line.kind, "k".repeat(spare));
        assert_eq!(line.encode().unwrap().len(), MAX_LINE);
        line.kind.push('k');
        assert_eq!(line.encode(), Err(LineError::TooLong));
    }
}
