//! The built-in trust domain's JWT authority (JWT-SVID.md).

use std::{path::Path, time::Duration};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64ct::{Base64UrlUnpadded, Encoding};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{Millis, SpiffeId, TrustDomainError, keyfile};

const KEY_FILE: &str = "jwt.key";

/// The key that signs JWT-SVIDs.
pub(crate) struct JwtAuthority {
    key: EcdsaKeyPair,
    kid: String,
    jwks: String,
    lifetime: Duration,
}

/// Signing failed, which healthy hardware doesn't do.
#[derive(Debug, thiserror::Error)]
#[error("a JWT-SVID could not be signed")]
pub(crate) struct SigningFault;

impl JwtAuthority {
    /// Reads the key, or makes it on the first start.
    pub(crate) fn open(dir: &Path, lifetime: Duration) -> Result<Self, TrustDomainError> {
        let path = dir.join(KEY_FILE);
        let bad = |_| TrustDomainError::BadFile { path: path.clone() };
        let pair = match keyfile::read(&path)? {
            Some(pem) => KeyPair::from_pem(&pem).map_err(|_| bad(()))?,
            None => {
                let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                keyfile::write(dir, KEY_FILE, &pair.serialize_pem())?;
                pair
            }
        };
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pair.serialized_der())
            .map_err(|_| bad(()))?;
        let (x, y) = coordinates(key.public_key().as_ref()).ok_or_else(|| bad(()))?;
        // RFC 7638: the required members in this order.
        let thumbprint = Sha256::digest(format!(
            r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#
        ));
        let kid = Base64UrlUnpadded::encode_string(&thumbprint);
        let jwks = json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "jwt-svid",
            "kid": kid, "x": x, "y": y,
        }]})
        .to_string();
        Ok(Self {
            key,
            kid,
            jwks,
            lifetime,
        })
    }

    /// The JWK set that verifies what this signs.
    pub(crate) fn jwks(&self) -> &str {
        &self.jwks
    }

    /// Makes a JWT-SVID, another one at each call: who may fetch one at all may
    /// use as many keys as it likes, and the count of DPoP keys per SVID is about
    /// one that was stolen.
    pub(crate) fn issue(
        &self,
        id: &SpiffeId,
        audience: &[String],
        now: Millis,
    ) -> Result<String, SigningFault> {
        let issued = now / 1000;
        let mut id_bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut id_bytes).map_err(|_| SigningFault)?;
        let header = json!({ "alg": "ES256", "kid": self.kid, "typ": "JWT" });
        let claims = json!({
            "jti": encode(&id_bytes),
            "sub": id.as_str(),
            "aud": audience,
            "iat": issued,
            "exp": issued.saturating_add(self.lifetime.as_secs()),
        });
        let mut token = encode(header.to_string().as_bytes());
        token.push('.');
        token.push_str(&encode(claims.to_string().as_bytes()));
        let signature = self
            .key
            .sign(&SystemRandom::new(), token.as_bytes())
            .map_err(|_| SigningFault)?;
        token.push('.');
        token.push_str(&encode(signature.as_ref()));
        Ok(token)
    }
}

fn encode(bytes: &[u8]) -> String {
    Base64UrlUnpadded::encode_string(bytes)
}

/// x and y of an uncompressed P-256 point (SEC 1, section 2.3.3), base64url.
fn coordinates(point: &[u8]) -> Option<(String, String)> {
    match point.split_first()? {
        (4, xy) if xy.len() == 64 => {
            let (x, y) = xy.split_at_checked(32)?;
            Some((encode(x), encode(y)))
        }
        _ => None,
    }
}
