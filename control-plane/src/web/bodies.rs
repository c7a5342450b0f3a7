//! A body as pages and programs show it: whole and inert, as text where it is
//! text, else byte by byte.

use std::fmt::Write as _;

use super::answers::{BodyAnswer, ContentAnswer};
use super::text::Shown;
use ledger::model::BodyRecord;

/// Bytes on a line, where they are no text.
const BYTES_PER_LINE: usize = 32;

/// A body on a page.
pub(super) struct BodyShown {
    pub(super) bytes: u64,
    pub(super) sha256: String,
    pub(super) content_type: Shown,
    pub(super) content_encoding: Shown,
    /// All of it, line by line; `None` when it is not here.
    pub(super) lines: Option<Vec<Shown>>,
    pub(super) is_text: bool,
}

/// What is known of a body, and its bytes where they are here. Others than the
/// ones that are known are none.
pub(super) fn shown(known: &BodyRecord, bytes: Option<&[u8]>) -> BodyShown {
    let bytes = match bytes {
        _ if known.bytes == 0 => Some([].as_slice()),
        bytes => bytes.filter(|bytes| capability::sha256(bytes) == known.sha256),
    };
    let text = bytes.and_then(|bytes| std::str::from_utf8(bytes).ok());
    let lines = match (text, bytes) {
        (Some(text), _) => Some(text.split('\n').map(Shown::text).collect()),
        (None, Some(bytes)) => Some(bytes.chunks(BYTES_PER_LINE).map(in_hex).collect()),
        (None, None) => None,
    };
    BodyShown {
        bytes: known.bytes,
        sha256: hex::encode(known.sha256),
        content_type: Shown::text(&known.content_type),
        content_encoding: Shown::text(&known.content_encoding),
        lines,
        is_text: text.is_some(),
    }
}

fn in_hex(bytes: &[u8]) -> Shown {
    let mut line = String::new();
    for byte in bytes {
        // Writing to a string does not fail.
        let _ok = write!(line, "{byte:02x} ");
    }
    Shown::text(line.trim_end())
}

/// What is known of a body, for programs.
pub(super) fn body_json(known: &BodyRecord) -> BodyAnswer {
    BodyAnswer {
        sha256: hex::encode(known.sha256),
        bytes: known.bytes,
        content_type: known.content_type.clone(),
        content_encoding: known.content_encoding.clone(),
        content: None,
    }
}

/// The bytes for programs: as text where they are text, and as base64.
pub(super) fn content_json(bytes: &[u8]) -> ContentAnswer {
    use base64ct::{Base64, Encoding};
    ContentAnswer {
        text: std::str::from_utf8(bytes).ok().map(str::to_owned),
        base64: Base64::encode_string(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: &[u8]) -> BodyRecord {
        BodyRecord {
            sha256: capability::sha256(bytes),
            bytes: bytes.len() as u64,
            content_type: "application/json".into(),
            content_encoding: String::new(),
        }
    }

    fn html(known: &[u8], bytes: Option<&[u8]>) -> Option<String> {
        let lines = shown(&record(known), bytes).lines?;
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        Some(lines.join("\n"))
    }

    #[test]
    fn a_body_is_shown_whole_and_inert_or_not_at_all() {
        let text = b"{\"a\": \"<script>alert(1)</script>\",\r\n\"b\": 1}";
        let seen = html(text, Some(text)).unwrap();
        assert!(!seen.contains("<script"), "{seen}");
        assert!(
            seen.contains("alert(1)") && seen.contains("U+000D"),
            "{seen}"
        );
        let long = "x".repeat(100_000);
        assert!(html(long.as_bytes(), Some(long.as_bytes())).unwrap().len() >= 100_000);
        assert_eq!(html(b"\xff\x00", Some(b"\xff\x00")).unwrap(), "ff 00");
        assert_eq!(
            html(b"", None).as_deref(),
            Some(""),
            "nothing is all of nothing"
        );
        for other in [None, Some(b"{}".as_slice()), Some(b"")] {
            assert_eq!(html(text, other), None);
        }
    }
}
