//! A DPoP key and its proofs (RFC 9449, section 4.2).

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64ct::{Base64, Base64UrlUnpadded, Encoding as _};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::DecodePrivateKey as _;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::Error;

/// A P-256 key that signs proofs.
#[derive(Clone, Debug)]
pub struct DpopKey {
    signing: SigningKey,
    jwk: Value,
}

impl DpopKey {
    /// A fresh key.
    ///
    /// # Errors
    /// When the random bytes are no P-256 key, which has a chance of 2^-32.
    pub fn generate() -> Result<DpopKey, Error> {
        let bytes: [u8; 32] = rand::random();
        let signing = SigningKey::from_slice(&bytes)
            .map_err(|_| Error::Unexpected("random bytes were no P-256 key".to_owned()))?;
        Ok(DpopKey::of(signing))
    }

    /// The key of a file (PKCS#8 in PEM), which may be another's than an agent's.
    ///
    /// # Errors
    /// When it can't be read, or is no P-256 key.
    pub fn read(path: &Path) -> Result<DpopKey, Error> {
        let pem = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
        let body: String = pem.lines().filter(|line| !line.contains("---")).collect();
        let key = Base64::decode_vec(&body).ok();
        let key = key.and_then(|der| SigningKey::from_pkcs8_der(&der).ok());
        let wrong = || Error::Setup(format!("{} is no P-256 key", path.display()));
        key.map(DpopKey::of).ok_or_else(wrong)
    }

    fn of(signing: SigningKey) -> DpopKey {
        let point = signing.verifying_key().to_sec1_point(false);
        let coordinate =
            |bytes: Option<&[u8]>| Base64UrlUnpadded::encode_string(bytes.unwrap_or_default());
        let jwk = json!({
            "crv": "P-256",
            "kty": "EC",
            "x": coordinate(point.x().map(AsRef::as_ref)),
            "y": coordinate(point.y().map(AsRef::as_ref)),
        });
        DpopKey { signing, jwk }
    }

    /// The public key as a JWK.
    pub fn jwk(&self) -> &Value {
        &self.jwk
    }

    /// Its RFC 7638 thumbprint.
    pub fn thumbprint(&self) -> String {
        // The four members are already in lexicographic order.
        Base64UrlUnpadded::encode_string(&Sha256::digest(self.jwk.to_string()))
    }

    /// A proof for `method` on `url`, bound to `token` when there is one.
    pub fn proof(&self, method: &str, url: &str, token: Option<&str>) -> String {
        self.proof_with(method, url, token, &json!({}))
    }

    /// As [`DpopKey::proof`], with `claims` laid over the usual ones; a null
    /// takes a claim away.
    pub fn proof_with(
        &self,
        method: &str,
        url: &str,
        token: Option<&str>,
        claims: &Value,
    ) -> String {
        let jti: [u8; 16] = rand::random();
        // htu has neither query nor fragment.
        let htu = url.split(['?', '#']).next().unwrap_or(url);
        let mut all = Map::new();
        all.insert(
            "jti".to_owned(),
            Base64UrlUnpadded::encode_string(&jti).into(),
        );
        all.insert("htm".to_owned(), method.into());
        all.insert("htu".to_owned(), htu.into());
        all.insert("iat".to_owned(), now_s().into());
        if let Some(token) = token {
            all.insert("ath".to_owned(), token_digest(token).into());
        }
        if let Some(claims) = claims.as_object() {
            all.extend(claims.clone());
        }
        all.retain(|_, value| !value.is_null());
        let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": self.jwk});
        self.sign(&header, &Value::Object(all))
    }

    /// A JWS of any header and claims.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| Base64UrlUnpadded::encode_string(value.to_string().as_bytes());
        let input = format!("{}.{}", part(header), part(claims));
        let signature: Signature = self.signing.sign(input.as_bytes());
        let signature = Base64UrlUnpadded::encode_string(&signature.to_bytes());
        format!("{input}.{signature}")
    }
}

/// `ath`: the digest of a token's ASCII form.
pub fn token_digest(token: &str) -> String {
    Base64UrlUnpadded::encode_string(&Sha256::digest(token.as_bytes()))
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use p256::ecdsa::signature::Verifier as _;

    #[test]
    fn a_proof_verifies_with_its_own_jwk_and_has_the_claims() {
        let key = DpopKey::generate().unwrap();
        let proof = key.proof("GET", "http://a/b?c=d", Some("tok"));
        let parts: Vec<&str> = proof.split('.').collect();
        let decode = |part: &str| Base64UrlUnpadded::decode_vec(part).unwrap();
        let claims: Value = serde_json::from_slice(&decode(parts[1])).unwrap();
        assert_eq!(claims["htu"], "http://a/b");
        assert_eq!(claims["ath"], token_digest("tok"));
        let signature = Signature::from_slice(&decode(parts[2])).unwrap();
        let input = format!("{}.{}", parts[0], parts[1]);
        key.signing
            .verifying_key()
            .verify(input.as_bytes(), &signature)
            .unwrap();
    }

    #[test]
    fn null_takes_a_claim_away() {
        let key = DpopKey::generate().unwrap();
        let proof = key.proof_with("GET", "http://a/", None, &json!({"jti": null}));
        let claims = proof.split('.').nth(1).unwrap();
        let claims = Base64UrlUnpadded::decode_vec(claims).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        assert!(claims.get("jti").is_none());
        assert_eq!(claims["htm"], "GET");
    }
}
