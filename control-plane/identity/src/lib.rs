//! Who is calling.
//!
//! - [`SpiffeId`]: a workload's name, parsed strictly.
//! - [`BuiltIn`]: a trust domain for people without SPIRE. It serves the SPIFFE
//!   Workload API and Envoy's SDS on a Unix socket and attests callers by
//!   their peer credentials.
//! - [`Source`]: the consumer of a Workload API, the built-in one or SPIRE's.
//! - [`federation`]: SVIDs of our own trust domain, and of others that are believed.
//! - [`oidc`]: tokens of other issuers.
//! - [`mtls`]: connections whose peer is a SPIFFE ID.
//!
//! The control plane never asks a caller who it is: a process is what the
//! kernel says about it, a proxy is what its certificate says.

mod attest;
mod authority;
mod ca;
mod crowd;
mod evidence;
pub mod federation;
mod files;
mod handshakes;
mod jwt;
mod keyfile;
pub mod mtls;
pub mod oidc;
mod sds;
mod socket;
mod source;
mod svid;
mod throttle;
mod trust_domain;
mod workload_api;

pub use attest::{Caller, FileIdentity, WorkloadEntry};
pub use capability::spiffe::{
    MAX_SPIFFE_ID_BYTES, MAX_TRUST_DOMAIN_BYTES, SpiffeId, SpiffeIdError,
};
pub use evidence::{EvidenceError, JwtEvidence, MAX_JWT_SVID_BYTES};
pub use source::{Source, SourceError, X509Credentials, fetch_jwt_svid, fetch_x509_svid};
pub use trust_domain::{BuiltIn, Clock, Millis, TrustDomainError, TrustDomainSettings};

/// Generated from `proto/workload.proto`.
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the .proto carries the documentation"
)]
mod proto {
    tonic::include_proto!("_");
}
