//! What a capability allows, and the body that goes with it.

use super::{Hash, hash_hex};
use serde::{Deserialize, Serialize};

/// One method on one absolute URL, as the capability names it (`http_request`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionRecord {
    /// The type of the `authorization_details` element.
    #[serde(rename = "type")]
    pub kind: String,
    /// The method, upper case.
    pub method: String,
    /// The normalised absolute URL, with its query.
    pub location: String,
    /// SHA-256 of the one body that it allows, base64url; none allows any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_digest: Option<String>,
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
