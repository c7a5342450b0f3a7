//! A request, as it goes into a line.

use super::BodyRecord;
use serde::{Deserialize, Serialize};

/// A request as the decider saw it; every field goes into the line, cut to the
/// line's limit where it must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFacts {
    /// Method as received.
    pub method: String,
    /// Authority as received.
    pub authority: String,
    /// Origin-form path with query.
    pub path: String,
    /// Envoy's own request id.
    pub request_id: String,
    /// The proxy's SPIFFE ID, from its certificate.
    pub proxy: String,
    /// The peer's address as the proxy saw it.
    pub source: String,
    /// SHA-256 of the serialised question, hex.
    pub question: String,
    /// The body, where bodies are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<BodyRecord>,
    /// The route only observes: whatever was decided, the request went on.
    #[serde(default, skip_serializing_if = "is_false")]
    pub observed: bool,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_false(truth: &bool) -> bool {
    !truth
}
