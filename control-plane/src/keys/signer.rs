//! Who holds a private key and signs with it: a file's key in this process, or a token
//! that never gives its key away.

use super::KeyError;
use super::hsm::{Hsm, Wanted};
use async_trait::async_trait;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64ct::{Base64UrlUnpadded, Encoding};
use jwt_simple::prelude::{ECDSAP256KeyPairLike, ES256KeyPair, JWTClaims};
use p256::ecdsa::signature::Signer as _;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Bytes of an ES256 signature: r ‖ s (RFC 7518, section 3.4).
pub const SIGNATURE: usize = 64;
/// What is signed to see whether a key works. It is no JWT, nor anything else that
/// somebody would believe.
pub(super) const TRIAL: &[u8] = b"writ tries a key";

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

/// What a token gave, as r ‖ s, when it is a signature over SHA-256 of `input` by the
/// key of this point. Tokens give r ‖ s, each of the same length (PKCS#11, section
/// 6.3.1), and some DER instead; which it is, verifying says.
pub(super) fn verified(point: &Point, input: &[u8], given: &[u8]) -> Option<[u8; SIGNATURE]> {
    let fits = |signature: &[u8; SIGNATURE]| {
        let mut key = vec![0x04];
        key.extend(point.0);
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key);
        key.verify(input, signature).is_ok()
    };
    raw(given).filter(fits).or_else(|| {
        let der = p256::ecdsa::Signature::from_der(given).ok()?;
        Some(<[u8; SIGNATURE]>::from(der.to_bytes())).filter(fits)
    })
}

/// r ‖ s, each made 32 bytes long.
fn raw(given: &[u8]) -> Option<[u8; SIGNATURE]> {
    if given.is_empty() || given.len() > SIGNATURE || !given.len().is_multiple_of(2) {
        return None;
    }
    let (r, s) = given.split_at(given.len() / 2);
    let mut whole = [0; SIGNATURE];
    let (left, right) = whole.split_at_mut(SIGNATURE / 2);
    for (place, number) in [(left, r), (right, s)] {
        let from = place.len().checked_sub(number.len())?;
        place.get_mut(from..)?.copy_from_slice(number);
    }
    Some(whole)
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
            Some(hsm) => {
                let (id, point) = (self.id.clone(), self.point);
                let input = input.to_vec();
                hsm.sign(Wanted { id, point, input }).await
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use p256::ecdsa::{Signature, SigningKey};

    fn key(number: u8) -> (SigningKey, Point) {
        let key = SigningKey::from_slice(&[number; 32]).unwrap();
        let point = key.verifying_key().to_sec1_point(false);
        (key, Point(point.as_bytes()[1..].try_into().unwrap()))
    }

    /// Whether its numbers begin with a zero.
    fn begins_with_zero(signature: &Signature) -> bool {
        let bytes = signature.to_bytes();
        bytes[0] == 0 && bytes[32] == 0
    }

    #[test]
    fn a_signature_is_taken_in_each_form_that_tokens_have() {
        let (key, point) = key(1);
        // Many, so that numbers of all lengths come.
        for number in 0..2_000_u32 {
            let input = number.to_be_bytes();
            let signature: Signature = key.sign(&input);
            let raw: [u8; 64] = signature.to_bytes().into();
            let der = signature.to_der();
            assert_eq!(verified(&point, &input, &raw), Some(raw));
            assert_eq!(verified(&point, &input, der.as_bytes()), Some(raw));
        }
        let short = (0..u32::MAX)
            .map(u32::to_be_bytes)
            .find(|input| begins_with_zero(&key.sign(input)));
        let input = short.unwrap();
        let signature: Signature = key.sign(&input);
        let raw: [u8; 64] = signature.to_bytes().into();
        let cut = [&raw[1..32], &raw[33..]].concat();
        assert_eq!(verified(&point, &input, &cut), Some(raw));
    }

    #[test]
    fn what_is_no_signature_by_the_key_is_none() {
        let (key, point) = key(1);
        let (_, others) = self::key(2);
        let signature: Signature = key.sign(b"one");
        let raw: [u8; 64] = signature.to_bytes().into();
        let der = signature.to_der();
        for given in [&raw[..], der.as_bytes()] {
            assert!(verified(&point, b"one", given).is_some());
            assert_eq!(verified(&point, b"two", given), None);
            assert_eq!(verified(&others, b"one", given), None);
            for at in 0..given.len() {
                let mut bent = given.to_vec();
                bent[at] ^= 1;
                assert_eq!(verified(&point, b"one", &bent), None, "{at}");
                assert_eq!(verified(&point, b"one", &given[..at]), None, "{at}");
            }
            let longer = [given, &[0]].concat();
            assert_eq!(verified(&point, b"one", &longer), None);
        }
        for given in [&[][..], &[0; 2], &[0; 64], &[0xff; 64], &[0; 65]] {
            assert_eq!(verified(&point, b"one", given), None, "{given:?}");
        }
        // A point that is not on the curve.
        assert_eq!(verified(&Point([1; 64]), b"one", &raw), None);
    }

    #[test]
    fn a_token_s_key_has_the_id_and_form_of_a_file_s() {
        let pair = ES256KeyPair::generate();
        let file = FileSigner::new(pair);
        let jwk = file.public_jwk();
        let coordinate = |name: &str| {
            let text = jwk[name].as_str().unwrap();
            Base64UrlUnpadded::decode_vec(text).unwrap()
        };
        let point = [coordinate("x"), coordinate("y")].concat();
        let point = Point(point.try_into().unwrap());
        assert_eq!(Point::parse(&point.text()), Some(point));
        let token = TokenSigner {
            id: Vec::new(),
            point,
            kid: point.thumbprint(),
            hsm: None,
        };
        assert_eq!(token.kid(), file.kid());
        assert_eq!(token.public_jwk(), jwk);
    }

    #[tokio::test]
    async fn a_signer_that_is_not_the_first_makes_the_same_tokens() {
        let file = FileSigner::new(ES256KeyPair::generate());
        let claims =
            jwt_simple::prelude::Claims::create(jwt_simple::prelude::Duration::from_secs(9));
        let token = jwt(&file, "at+jwt", &claims).await.unwrap();
        let options = jwt_simple::prelude::VerificationOptions {
            required_signature_type: Some("at+jwt".to_owned()),
            ..Default::default()
        };
        use jwt_simple::prelude::{ECDSAP256PublicKeyLike, NoCustomClaims};
        let public = file.pair.public_key();
        public
            .verify_token::<NoCustomClaims>(&token, Some(options))
            .unwrap();
    }
}
