//! Signature checks by aws-lc, which is there for TLS anyway and several times as fast at
//! P-256 as plain Rust is.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use capability::{Algorithm, Portable, PublicKey, Verifier, VerifierFault};

/// aws-lc for ES256. Ed25519 stays with [`Portable`], whose rule for it is the strict one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Native;

impl Verifier for Native {
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
        match alg {
            Algorithm::Es256 => {
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.raw());
                Ok(key.verify(message, signature).is_ok())
            }
            Algorithm::Ed25519 => Portable.verify(alg, key, message, signature),
        }
    }
}
