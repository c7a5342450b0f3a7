//! The language of permission: token, proof, key, action, refusal, decision.
//!
//! Pure: no I/O, no clock, no randomness, no HTTP and no async. The filter at
//! the edge and the control plane both speak through this crate, so that what
//! one of them accepts the other reads in the same way.
//!
//! Bytes from outside become [`token::UnverifiedToken`] and
//! [`proof::UnverifiedProof`], which tell nothing but what is needed to verify
//! them. [`gates::check`] turns a request into [`gates::Checked`], and only
//! [`decide::Pending::settle`] turns that, with an answer that fits, into a
//! [`decide::Permit`].

pub mod action;
pub mod b64;
pub mod body;
pub mod decide;
pub mod gates;
pub mod headers;
pub mod jcs;
pub mod json;
pub mod jws;
pub mod key;
pub mod limits;
#[cfg(feature = "portable")]
mod portable;
pub mod proof;
pub mod reason;
pub mod rpc;
pub mod spiffe;
pub mod token;
pub mod url;
pub mod x509;

pub use key::{Algorithm, PublicKey, Verifier, VerifierFault};
pub use limits::Limits;
#[cfg(feature = "portable")]
pub use portable::Portable;
pub use reason::Reason;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// SHA-256 of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Whether two byte strings are equal, in time that depends on their lengths alone.
#[must_use]
pub fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let difference = a.iter().zip(b).fold(0_u8, |seen, (a, b)| seen | (a ^ b));
    difference.ct_eq(&0).into()
}
