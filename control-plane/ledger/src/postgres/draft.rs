//! An entry before it has its place: the line up to where the place goes.
//!
//! A line's members stand in the order of their names, so that `epoch`, `i`,
//! `kind`, `prev` and `t` come last. What is before them is settled when an
//! entry is committed; the sequencer adds the rest without reading it.

use crate::{
    event::Entry,
    lines::{self, Encoded, Place},
    model::{Evidence, Hash, Refused},
};

/// The largest number that a line holds. A draft is measured with it, so that
/// any place fits.
const LARGEST: u64 = (1 << 53) - 1;

/// An entry that waits for its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(crate) kind: String,
    pub(crate) head: Vec<u8>,
    /// The attachments' bytes in the line's order, salt first.
    pub(crate) attached: Vec<u8>,
}

impl Draft {
    /// # Errors
    /// [`Refused::TooLarge`] when it would not fit a line in every place.
    pub(crate) fn new(entry: &Entry, attachments: Vec<Evidence>) -> Result<Self, Refused> {
        let place = Place {
            index: LARGEST,
            time_ms: LARGEST,
            epoch: LARGEST,
            prev: [0; 32],
        };
        let encoded = lines::encode(&place, entry, attachments)?;
        let kind = match entry {
            Entry::Note { kind, .. } => kind.clone(),
            Entry::Event(_) => kind_of(&encoded).ok_or(Refused::TooLarge)?,
        };
        let tail = tail(&kind, &place);
        let head = encoded.line.strip_suffix(tail.as_bytes());
        Ok(Self {
            head: head.ok_or(Refused::TooLarge)?.to_vec(),
            attached: encoded.salted().fold(Vec::new(), |mut all, bytes| {
                all.extend_from_slice(bytes);
                all
            }),
            kind,
        })
    }
}

/// The kind as the line has it: a word, behind the index.
fn kind_of(encoded: &Encoded) -> Option<String> {
    let mark: &[u8] = br#","kind":""#;
    let at = encoded.line.windows(mark.len()).rposition(|w| w == mark)?;
    let rest = encoded.line.get(at.checked_add(mark.len())?..)?;
    let end = rest.iter().position(|b| *b == b'"')?;
    String::from_utf8(rest.get(..end)?.to_vec()).ok()
}

fn tail(kind: &str, place: &Place) -> String {
    let Place {
        index,
        time_ms,
        epoch,
        prev,
    } = place;
    let prev = hex::encode(prev);
    format!(r#","epoch":{epoch},"i":{index},"kind":"{kind}","prev":"{prev}","t":{time_ms}}}"#)
}

/// The line of a draft in its place.
pub(crate) fn line(head: &[u8], kind: &str, place: &Place) -> Vec<u8> {
    [head, tail(kind, place).as_bytes()].concat()
}

/// The leaf hashes of a group, one after the other, as its row has them.
pub(crate) fn leaves_of(bytes: &[u8]) -> impl Iterator<Item = Hash> {
    bytes.as_chunks::<32>().0.iter().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    #[test]
    fn a_draft_in_its_place_is_the_line_that_would_have_been_written() {
        let place = Place {
            index: 7,
            time_ms: 1_790_000_000_000,
            epoch: 3,
            prev: [0xab; 32],
        };
        let note = Entry::Note {
            kind: "config".into(),
            body: serde_json::json!({"kind": "x", "t": 1, "s": "\",\"kind\":\"outcome\""}),
        };
        let event = Entry::Event(Box::new(Event::Discover {
            agent: "spiffe://a/\",\"kind\":\"b".into(),
        }));
        for entry in [note, event] {
            let evidence = || vec![Evidence::with_salt("proof", b"p", &[1; 32])];
            let draft = Draft::new(&entry, evidence()).unwrap();
            let whole = lines::encode(&place, &entry, evidence()).unwrap();
            assert_eq!(line(&draft.head, &draft.kind, &place), whole.line);
            assert_eq!(audit::Line::decode(&whole.line).unwrap().kind, draft.kind);
            assert_eq!(draft.attached, [[1; 32].as_slice(), b"p"].concat());
        }
    }

    #[test]
    fn what_fits_no_place_is_refused_or_cut_when_it_is_committed() {
        for len in 3_800..4_000 {
            let entry = Entry::Note {
                kind: "config".into(),
                body: (0..len / 8)
                    .map(|n| (format!("{n:04}"), serde_json::Value::from(0)))
                    .collect(),
            };
            let Ok(draft) = Draft::new(&entry, Vec::new()) else {
                continue;
            };
            let place = Place {
                index: LARGEST,
                time_ms: LARGEST,
                epoch: LARGEST,
                prev: [0xff; 32],
            };
            let line = line(&draft.head, &draft.kind, &place);
            assert!(audit::Line::decode(&line).is_ok());
        }
    }
}
