//! The wire between a proxy's filter and the control plane: `writ.decision.v1`.
//!
//! Messages only, so that the filter can use them without a gRPC stack; the
//! service's server half is generated in `control-plane/src/decide`.
#![expect(
    missing_docs,
    reason = "generated; the .proto carries the documentation"
)]

include!(concat!(env!("OUT_DIR"), "/writ.decision.v1.rs"));

/// The protocol version that both ends must speak.
pub const PROTOCOL: u32 = 5;
