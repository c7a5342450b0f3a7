//! Signature checks in plain Rust, for hosts that have none of their own.

use ed25519_dalek::Signature as EdSignature;
use p256::ecdsa::signature::Verifier as _;

use crate::key::{Algorithm, PublicKey, Verifier, VerifierFault};

/// p256 and ed25519-dalek. Some ten times slower in a wasm filter than the
/// host's own check, so it is used only where the config asks for it by name.
///
/// The one rule for Ed25519 is `verify_strict`: no low-order point, nothing
/// that is not canonical. For ECDSA both s and n - s verify, so a token's
/// identity is its `jti` and never its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Portable;

impl Verifier for Portable {
    fn verify(
        &self,
        alg: Algorithm,
        key: &PublicKey,
        message: &[u8],
        signature: &[u8],
    ) -> Result<bool, VerifierFault> {
        if alg != key.algorithm() {
            return Ok(false);
        }
        Ok(match alg {
            Algorithm::Es256 => es256(&key.raw(), message, signature),
            Algorithm::Ed25519 => ed25519(&key.raw(), message, signature),
        }
        .is_some())
    }
}

fn es256(point: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
    let signature = p256::ecdsa::Signature::from_slice(signature).ok()?;
    key.verify(message, &signature).ok()
}

fn ed25519(point: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
    let key = ed25519_dalek::VerifyingKey::from_bytes(point.try_into().ok()?).ok()?;
    let signature = EdSignature::from_slice(signature).ok()?;
    key.verify_strict(message, &signature).ok()
}
