//! Attachments: evidence that stands beside a line, bound to it by a salted hash.
//!
//! The salt keeps the hash from telling what a short or guessable piece of
//! evidence was, once salt and evidence have been erased together.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::chain::Hash;

/// Bytes of salt before each piece of evidence.
pub const SALT_LEN: usize = 32;
/// The longest piece of evidence, in bytes, without its salt.
pub const MAX_EVIDENCE: usize = 128 * 1024;
/// Attachments that one line may have.
pub const MAX_ATTACHMENTS: usize = 8;
/// The longest name of an attachment, in bytes.
pub const MAX_NAME: usize = 32;

/// What a line says about one attachment: an element of `att`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachmentRef {
    /// Its length with the salt, in bytes.
    pub len: u64,
    /// What it is: `token`, `proof`, …
    pub name: String,
    /// SHA-256(salt ‖ evidence), lower-case hex.
    pub sha256: String,
}

impl AttachmentRef {
    /// The reference to a salted piece of evidence.
    #[must_use]
    pub fn new(name: &str, salt: &[u8; SALT_LEN], evidence: &[u8]) -> Self {
        let len = SALT_LEN.saturating_add(evidence.len());
        Self {
            name: name.to_owned(),
            len: u64::try_from(len).unwrap_or(u64::MAX),
            sha256: hex::encode(digest(salt, evidence)),
        }
    }

    /// Whether these bytes, salt first, are the ones the line names.
    #[must_use]
    pub fn matches(&self, salted: &[u8]) -> bool {
        u64::try_from(salted.len()).is_ok_and(|len| len == self.len)
            && hex::encode(Sha256::digest(salted)) == self.sha256
    }

    pub(crate) fn is_well_formed(&self) -> bool {
        let longest = SALT_LEN.saturating_add(MAX_EVIDENCE);
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        usize::try_from(self.len).is_ok_and(|len| (SALT_LEN..=longest).contains(&len))
            && (1..=MAX_NAME).contains(&self.name.len())
            && self.sha256.len() == 64
            && self.sha256.bytes().all(lower_hex)
    }
}

/// SHA-256(salt ‖ evidence).
#[must_use]
pub fn digest(salt: &[u8; SALT_LEN], evidence: &[u8]) -> Hash {
    Sha256::new()
        .chain_update(salt)
        .chain_update(evidence)
        .finalize()
        .into()
}
