//! From an entry to its line and back, with what is too long cut.
//!
//! A long but legal request must still be recordable: when a line would be too
//! long, its longest strings are replaced by `{"cut": prefix, "bytes": length,
//! "sha256": digest}`, down to ever shorter prefixes, and at last long lists by
//! their first elements and `{"more": count, "sha256": digest}`.

use audit::{
    AttachmentRef, Line, LinePlace, SALT_LEN,
    canonical::{self, Canonical},
    line::LineError,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    event::{Entry, EntryError},
    model::{Approval, Evidence, Refused},
};

/// Prefix lengths in bytes, tried in this order.
const CUTS: [usize; 4] = [1024, 512, 256, 128];
/// Elements of a list that are kept when cutting strings is not enough.
const KEPT: usize = 8;
/// The attachment that holds an opened approval whose line had to be cut.
pub(crate) const APPROVAL: &str = "approval";

/// An encoded line with its attachments.
pub(crate) struct Encoded {
    pub(crate) line: Vec<u8>,
    pub(crate) attached: Vec<Evidence>,
}

impl Encoded {
    /// Bytes that it adds to a group.
    pub(crate) fn len(&self) -> usize {
        self.attached
            .iter()
            .fold(self.line.len().saturating_add(1), |sum, a| {
                sum.saturating_add(a.salted().len())
            })
    }

    /// The attachments' bytes in the line's order, salt first.
    pub(crate) fn salted(&self) -> impl Iterator<Item = &[u8]> {
        self.attached.iter().map(Evidence::salted)
    }
}

/// Where a line goes.
pub(crate) type Place = LinePlace;

/// Encodes an entry, cutting what must be cut.
///
/// # Errors
/// [`Refused::TooLarge`] when even the shortest form is too long, an attachment
/// is, or the body has no canonical form.
pub(crate) fn encode(
    place: &Place,
    entry: &Entry,
    attachments: Vec<Evidence>,
) -> Result<Encoded, Refused> {
    let longest = audit::MAX_EVIDENCE.saturating_add(SALT_LEN);
    if attachments.len() > audit::MAX_ATTACHMENTS
        || attachments.iter().any(|a| a.salted().len() > longest)
    {
        return Err(Refused::TooLarge);
    }
    let Entry::Event(event) = entry else {
        return encode_value(place, entry, attachments);
    };
    let (kind, body) = Canonical::of_variant(event).map_err(|_| Refused::TooLarge)?;
    let refs: Vec<&AttachmentRef> = attachments.iter().map(Evidence::reference).collect();
    match Line::encode_parts(place, &kind, &body, &refs) {
        Ok(line) => Ok(Encoded {
            line,
            attached: attachments,
        }),
        Err(LineError::TooLong) => encode_value(place, entry, attachments),
        Err(_) => Err(Refused::TooLarge),
    }
}

/// The way of what has to be cut, and of notes, whose bodies are anybody's: what
/// is encoded is read back before it is written.
fn encode_value(
    place: &Place,
    entry: &Entry,
    mut attached: Vec<Evidence>,
) -> Result<Encoded, Refused> {
    let (kind, whole) = entry.to_parts().ok_or(Refused::TooLarge)?;
    let mut line = Line {
        index: place.index,
        time_ms: place.time_ms,
        prev: place.prev,
        epoch: place.epoch,
        kind,
        body: whole.clone(),
        attachments: attached.iter().map(|a| a.reference().clone()).collect(),
    };
    match line.encode() {
        Ok(line) => return Ok(Encoded { line, attached }),
        Err(LineError::TooLong) => {}
        Err(_) => return Err(Refused::TooLarge),
    }
    // Approvals outlive a restart: what a human will be shown is kept whole beside the line.
    if let Entry::Event(event) = entry
        && let Some(approval) = event.opened()
        && !planted!(CutApprovalNotKept)
    {
        let bytes = serde_json::to_vec(approval).map_err(|_| Refused::TooLarge)?;
        if bytes.len() > audit::MAX_EVIDENCE || attached.len() >= audit::MAX_ATTACHMENTS {
            return Err(Refused::TooLarge);
        }
        let whole = Evidence::new(APPROVAL, &bytes);
        line.attachments.push(whole.reference().clone());
        attached.push(whole);
    }
    for (longest, lists) in CUTS.iter().map(|cut| (*cut, false)).chain([(128, true)]) {
        line.body = cut(&whole, longest, lists).ok_or(Refused::TooLarge)?;
        if let Ok(line) = line.encode() {
            return Ok(Encoded { line, attached });
        }
    }
    Err(Refused::TooLarge)
}

fn cut(value: &Value, longest: usize, lists: bool) -> Option<Value> {
    Some(match value {
        Value::String(text) if text.len() > longest => {
            let end = (0..=longest).rev().find(|at| text.is_char_boundary(*at))?;
            json!({
                "cut": text.get(..end)?,
                "bytes": text.len(),
                "sha256": hex::encode(Sha256::digest(text)),
            })
        }
        Value::Array(items) => {
            let kept = if lists { KEPT } else { items.len() };
            let mut short = items
                .iter()
                .take(kept)
                .map(|v| cut(v, longest, lists))
                .collect::<Option<Vec<_>>>()?;
            if kept < items.len() {
                let all = canonical::encode(value).ok()?;
                short.push(
                    json!({"more": items.len() - kept, "sha256": hex::encode(Sha256::digest(all))}),
                );
            }
            Value::Array(short)
        }
        Value::Object(members) => {
            let mut short = serde_json::Map::new();
            for (key, value) in members {
                short.insert(key.clone(), cut(value, longest, lists)?);
            }
            Value::Object(short)
        }
        other => other.clone(),
    })
}

/// The value that a cut line still says: prefixes stand for strings.
fn uncut(value: Value) -> Value {
    match value {
        Value::Object(mut members) if members.len() == 3 && members.contains_key("cut") => {
            members.remove("cut").unwrap_or_default()
        }
        Value::Object(members) => members
            .into_iter()
            .map(|(key, value)| (key, uncut(value)))
            .collect(),
        Value::Array(items) => {
            let more = |v: &Value| {
                v.as_object()
                    .is_some_and(|o| o.len() == 2 && o.contains_key("more"))
            };
            items
                .into_iter()
                .filter(|item| !more(item))
                .map(uncut)
                .collect()
        }
        other => other,
    }
}

/// Reads a line back as the entry that is replayed.
///
/// # Errors
/// When this version does not know its kind, or an approval that stands beside
/// the line is not the one that the line names.
pub(crate) fn decode(entry: &audit::group::Entry<'_>) -> Result<Entry, EntryError> {
    let line = &entry.line;
    let mut read = Entry::from_parts(&line.kind, note_or(&line.kind, line.body.clone()))?;
    if let Entry::Event(event) = &mut read
        && let Some(opened) = event.opened_mut()
        && let Some((named, salted)) = line
            .attachments
            .iter()
            .zip(&entry.attached)
            .rfind(|(named, _)| named.name == APPROVAL)
    {
        let wrong = |error: String| EntryError::Body {
            kind: line.kind.clone(),
            error,
        };
        if !named.matches(salted) {
            return Err(wrong("the approval beside the line was changed".into()));
        }
        let bytes = salted.get(SALT_LEN..).unwrap_or_default();
        let whole: Approval =
            serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        *opened = whole;
    }
    Ok(read)
}

// A note's body is its sender's own and is never replayed: it stays as it is.
fn note_or(kind: &str, body: Value) -> Value {
    if crate::model::NOTE_KINDS.contains(&kind) {
        body
    } else {
        uncut(body)
    }
}

#[cfg(test)]
mod tests;
