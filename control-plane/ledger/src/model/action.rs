//! What a capability allows, and the body that goes with it.

use super::{Hash, hash_hex};
use serde::{Deserialize, Serialize};

/// One method on one absolute URL, as the capability names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionRecord {
    /// The type of the `authorization_details` element.
    #[serde(rename = "type")]
    pub kind: String,
    /// The method: HTTP's, in upper case, or that of the one message that is POSTed.
    pub method: String,
    /// The normalised absolute URL, with its query.
    pub location: String,
    /// SHA-256 of the one body that it allows, base64url; none allows any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_digest: Option<String>,
    /// The tool, prompt or resource of an `mcp_request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// SHA-256 of the one set of arguments that it allows, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments_digest: Option<String>,
    /// The skill of an `a2a_request`; none allows any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skill: Option<String>,
}

impl ActionRecord {
    /// Bytes of its texts that agents choose.
    pub(crate) fn len(&self) -> usize {
        let named = [&self.name, &self.skill];
        let named = named.into_iter().flatten().map(String::len);
        named.fold(self.location.len(), usize::saturating_add)
    }
}

/// A body that was read before its request was decided; its bytes are evidence
/// beside the line (`body`) where a human was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BodyRecord {
    /// SHA-256 of its bytes as they were sent.
    #[serde(with = "hash_hex")]
    pub sha256: Hash,
    /// How many they are.
    pub bytes: u64,
    /// Its `content-type`, as it was sent; empty without one.
    pub content_type: String,
    /// Its `content-encoding`, as it was sent; empty without one.
    pub content_encoding: String,
}

#[cfg(test)]
mod tests {
    use super::ActionRecord;

    /// Journals of before have nothing of messages, and what has nothing of them is
    /// written as it was.
    #[test]
    fn what_was_written_before_is_read_and_written_as_it_was() {
        for text in [
            r#"{"type":"http_request","method":"GET","location":"https://a.example/"}"#,
            r#"{"type":"http_request","method":"PUT","location":"https://a.example/","content_digest":"x"}"#,
            r#"{"type":"mcp_request","method":"tools/call","location":"https://a.example/mcp","name":"add","arguments_digest":"x"}"#,
            r#"{"type":"a2a_request","method":"SendMessage","location":"https://a.example/a2a","skill":"translate"}"#,
        ] {
            let action: ActionRecord = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&action).unwrap(), text);
        }
        let more = r#"{"type":"x","method":"x","location":"x","narrower":"x"}"#;
        assert!(serde_json::from_str::<ActionRecord>(more).is_err());
    }
}
