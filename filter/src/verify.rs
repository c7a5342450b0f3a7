//! Who checks signatures: the host's own library for ES256, ten times as fast
//! as the same arithmetic here, and this module for Ed25519, which hosts do not
//! offer. The host is believed only after it has told a good signature from a
//! bad one.

use crate::host::{self, HostFault};
use capability::key::{Algorithm, PublicKey, Verifier, VerifierFault, ecdsa_der};
use capability::{Portable, b64};
use serde_json::json;

/// The filter's verifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crypto {
    /// ES256 by the host.
    Host,
    /// ES256 by this module, because the configuration asks for it by name.
    Portable,
}

impl Verifier for Crypto {
    fn verify(
        &self,
        algorithm: Algorithm,
        key: &PublicKey,
        message: &[u8],
        signature: &[u8],
    ) -> Result<bool, VerifierFault> {
        match (self, algorithm) {
            (Self::Host, Algorithm::Es256) => {
                // A signature that is not r ‖ s is no signature (RFC 7518, section 3.4).
                let Some(der) = ecdsa_der(signature) else {
                    return Ok(false);
                };
                host::verify_signature(&key.spki_der(), &der, message)
                    .map_err(|HostFault| VerifierFault)
            }
            (Self::Portable, Algorithm::Es256) | (_, Algorithm::Ed25519) => {
                Portable.verify(algorithm, key, message, signature)
            }
        }
    }
}

/// Why a verifier may not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfCheckFailed {
    /// It could not say; with the host: it has no `verify_signature`.
    Missing,
    /// It refused a good signature.
    RefusesGood,
    /// It accepted a bad one.
    AcceptsBad,
}

impl SelfCheckFailed {
    /// What is wrong and what to do.
    pub fn explain(self) -> &'static str {
        match self {
            Self::Missing => {
                "crypto: the host does not check signatures (no foreign function verify_signature); \
                 use a host that does, or set \"crypto\": \"portable\" and accept that it is slower"
            }
            Self::RefusesGood => {
                "crypto: the self-check failed: a good signature was refused; do not use this host"
            }
            Self::AcceptsBad => {
                "crypto: the self-check failed: a bad signature was accepted; do not use this host"
            }
        }
    }
}

/// A key that signs nothing but this text, and its signature (r ‖ s).
const CHECK_X: &str = "dpYT0pECf4-RmIIFWxryUuaqETlRHbHcwB5dH5yqmRo";
const CHECK_Y: &str = "3osz1PGS6qAnpSUa0kmXZm6ghOD4ordGGYS6gCTEO7A";
const CHECK_TEXT: &[u8] = b"writ: is a good signature told from a bad one?";
const CHECK_OTHER_TEXT: &[u8] = b"writ: is a bad signature told from a good one?";
const CHECK_SIGNATURE: &str =
    "Nv045YzsfaVocdcirJVg50dfEhwJRn1VdzVSBxSyPxm4lZnWB4v1ynt8rNo1ScEU1U8MV6Zr3AGZLjsg0-zZpA";

/// Proves that ES256 is checked rightly: one good signature, one bad one.
pub fn self_check(crypto: Crypto) -> Result<(), SelfCheckFailed> {
    let jwk = json!({"kty": "EC", "crv": "P-256", "x": CHECK_X, "y": CHECK_Y});
    let key = PublicKey::from_jwk(&jwk).map_err(|_error| SelfCheckFailed::Missing)?;
    let signature = b64::decode(CHECK_SIGNATURE).ok_or(SelfCheckFailed::Missing)?;
    let says = |text| {
        crypto
            .verify(Algorithm::Es256, &key, text, &signature)
            .map_err(|VerifierFault| SelfCheckFailed::Missing)
    };
    if !says(CHECK_TEXT)? {
        return Err(SelfCheckFailed::RefusesGood);
    }
    if says(CHECK_OTHER_TEXT)? {
        return Err(SelfCheckFailed::AcceptsBad);
    }
    Ok(())
}
