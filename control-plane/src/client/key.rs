//! The agent's key, and the proofs that it makes.

use super::ClientError;
use crate::keys::{KeyError, es256_file};
use base64ct::{Base64UrlUnpadded, Encoding};
use capability::Algorithm;
use capability::proof::{ProofClaims, signing_input};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;

/// The agent's DPoP key. It persists, so that a cached SVID is not used up by
/// fresh keys.
pub struct DpopKey {
    signer: SigningKey,
    jwk: Value,
}

impl DpopKey {
    /// Opens the key file, or makes it with mode 0600.
    ///
    /// # Errors
    /// When it can't be read or made.
    pub fn open(path: &Path) -> Result<Self, ClientError> {
        if let Some(dir) = path.parent() {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|error| KeyError::File(dir.to_owned(), error))?;
        }
        let pair = es256_file(path)?;
        let unreadable = || KeyError::Unreadable(path.to_owned());
        let signer = SigningKey::from_slice(&jwt_bytes(&pair)).map_err(|_| unreadable())?;
        let jwk = jwk_of(&signer).ok_or_else(unreadable)?;
        Ok(Self { signer, jwk })
    }

    /// A key that no file keeps.
    ///
    /// # Errors
    /// [`KeyError::Sign`] when the system has none for us.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = jwt_simple::prelude::ES256KeyPair::generate();
        let signer = SigningKey::from_slice(&jwt_bytes(&pair)).map_err(|_| KeyError::Sign)?;
        let jwk = jwk_of(&signer).ok_or(KeyError::Sign)?;
        Ok(Self { signer, jwk })
    }

    /// The key's thumbprint (RFC 7638): a token's `cnf.jkt`.
    #[must_use]
    pub fn thumbprint(&self) -> String {
        // Its own JWK is one that can be read.
        capability::PublicKey::from_jwk(&self.jwk)
            .map(|key| key.thumbprint())
            .unwrap_or_default()
    }

    /// A fresh proof (RFC 9449, section 4.2).
    #[must_use]
    pub fn proof(&self, method: &str, url: &str, token: Option<&str>, now_s: u64) -> String {
        self.proof_with(method, url, token, now_s, None)
    }

    /// As [`DpopKey::proof`], with the nonce that was asked for.
    #[must_use]
    pub fn proof_with(
        &self,
        method: &str,
        url: &str,
        token: Option<&str>,
        now_s: u64,
        nonce: Option<String>,
    ) -> String {
        let claims = ProofClaims {
            htm: method.to_owned(),
            htu: url.split(['?', '#']).next().unwrap_or(url).to_owned(),
            iat_s: now_s,
            jti: crate::state::random_id::<16>(""),
            ath: token
                .map(|token| Base64UrlUnpadded::encode_string(&Sha256::digest(token.as_bytes()))),
            nonce,
        };
        let input = signing_input(&self.jwk, Algorithm::Es256, &claims);
        let signature: Signature = self.signer.sign(input.as_bytes());
        format!(
            "{input}.{}",
            Base64UrlUnpadded::encode_string(&signature.to_bytes())
        )
    }
}

fn jwk_of(signer: &SigningKey) -> Option<Value> {
    let point = signer.verifying_key().to_sec1_point(false);
    let (x, y) = point.x().zip(point.y())?;
    Some(serde_json::json!({
        "kty": "EC", "crv": "P-256",
        "x": Base64UrlUnpadded::encode_string(x),
        "y": Base64UrlUnpadded::encode_string(y),
    }))
}

fn jwt_bytes(pair: &jwt_simple::prelude::ES256KeyPair) -> zeroize::Zeroizing<Vec<u8>> {
    zeroize::Zeroizing::new(pair.to_bytes())
}
