//! Who holds a private key and signs with it: a file's key in this process, or a token
//! that never gives its key away.

use super::KeyError;
use super::hsm::Hsm;
use async_trait::async_trait;
use base64ct::{Base64UrlUnpadded, Encoding};
use jwt_simple::prelude::{ECDSAP256KeyPairLike, ES256KeyPair, JWTClaims};
use p256::ecdsa::signature::Signer as _;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Bytes of an ES256 signature: r ‖ s (RFC 7518, section 3.4).
pub const SIGNATURE: usize = 64;

/// An ES256 key and its id.
#[async_trait]
pub trait Signer: Send + Sync {
    /// The key's id.
    fn kid(&self) -> &str;

    /// The public half as a JWK, with `kid`, `use` and `alg`.
    fn public_jwk(&self) -> serde_json::Value;

    /// The signature over SHA-256 of these bytes.
    ///
    /// # Errors
    /// When whoever holds the key can't sign now, or is given too much to do.
    async fn sign(&self, input: &[u8]) -> Result<[u8; SIGNATURE], KeyError>;
}

/// A key in a file, and so in this process.
pub struct FileSigner {
    pub(super) pair: ES256KeyPair,
    kid: String,
}

impl FileSigner {
    /// Its id is its RFC 7638 thumbprint.
    #[must_use]
    pub fn new(pair: ES256KeyPair) -> Self {
        let kid = pair.jwk_thumbprint();
        Self {
            pair: pair.with_key_id(&kid),
            kid,
        }
    }
}

#[async_trait]
impl Signer for FileSigner {
    fn kid(&self) -> &str {
        &self.kid
    }

    fn public_jwk(&self) -> serde_json::Value {
        super::public_jwk(&self.pair, &self.kid)
    }

    async fn sign(&self, input: &[u8]) -> Result<[u8; SIGNATURE], KeyError> {
        let key: &p256::ecdsa::SigningKey = self.pair.key_pair().as_ref();
        let signature: p256::ecdsa::Signature = key.try_sign(input).map_err(|_| KeyError::Sign)?;
        Ok(signature.to_bytes().into())
    }
}

/// A public point: x and y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point(pub [u8; 64]);

impl Point {
    /// From base64url of x ‖ y.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = Base64UrlUnpadded::decode_vec(text).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// base64url of x ‖ y.
    pub fn text(&self) -> String {
        Base64UrlUnpadded::encode_string(&self.0)
    }

    fn coordinates(&self) -> (String, String) {
        let (x, y) = self.0.split_at(32);
        let text = Base64UrlUnpadded::encode_string;
        (text(x), text(y))
    }

    /// The key's RFC 7638 thumbprint.
    pub fn thumbprint(&self) -> String {
        let (x, y) = self.coordinates();
        let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        Base64UrlUnpadded::encode_string(&Sha256::digest(members))
    }
}

/// A key in a PKCS#11 token.
pub struct TokenSigner {
    /// The object's id (CKA_ID).
    pub(super) id: Vec<u8>,
    pub(super) point: Point,
    pub(super) kid: String,
    /// None where no token is configured: it is known, and can't sign.
    pub(super) hsm: Option<Arc<Hsm>>,
}

#[async_trait]
impl Signer for TokenSigner {
    fn kid(&self) -> &str {
        &self.kid
    }

    fn public_jwk(&self) -> serde_json::Value {
        let (x, y) = self.point.coordinates();
        json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.kid,
            "x": x, "y": y,
        })
    }

    async fn sign(&self, input: &[u8]) -> Result<[u8; SIGNATURE], KeyError> {
        match &self.hsm {
            Some(hsm) => hsm.sign(&self.id, Sha256::digest(input).into()).await,
            None => Err(KeyError::TokenAway(
                "no keys.pkcs11 is configured".to_owned(),
            )),
        }
    }
}

/// A JWT in compact form (RFC 7515, section 7.1), signed by whoever holds the key.
///
/// # Errors
/// As [`Signer::sign`].
pub async fn jwt<C: Serialize>(
    signer: &dyn Signer,
    typ: &str,
    claims: &JWTClaims<C>,
) -> Result<String, KeyError> {
    let header = json!({ "alg": "ES256", "kid": signer.kid(), "typ": typ });
    let claims = serde_json::to_vec(claims).map_err(|_| KeyError::Sign)?;
    let text = Base64UrlUnpadded::encode_string;
    let mut token = format!("{}.{}", text(header.to_string().as_bytes()), text(&claims));
    let signature = signer.sign(token.as_bytes()).await?;
    token.push('.');
    token.push_str(&text(&signature));
    Ok(token)
}
