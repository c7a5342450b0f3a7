//! JWT-SVIDs of any claims, signed with the built-in trust domain's own key or
//! with a stranger's: what a test can do because the key file is its own.

use std::path::Path;

use base64ct::{Base64, Base64UrlUnpadded, Encoding as _};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::DecodePrivateKey as _;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wasm_test::client::now_s;

/// Who signs.
pub struct Authority {
    key: SigningKey,
    kid: String,
}

impl Authority {
    /// The trust domain's, from `data_dir`.
    pub fn of(data_dir: &Path) -> Authority {
        let pem = std::fs::read_to_string(data_dir.join("trust/jwt.key")).unwrap();
        let body: String = pem.lines().filter(|line| !line.contains("---")).collect();
        let der = Base64::decode_vec(&body).unwrap();
        Authority::with(SigningKey::from_pkcs8_der(&der).unwrap())
    }

    /// Somebody who signs under the trust domain's key id with another key.
    pub fn impostor(&self) -> Authority {
        Authority {
            key: SigningKey::from_slice(&[7; 32]).unwrap(),
            kid: self.kid.clone(),
        }
    }

    /// Another trust domain's.
    pub fn fresh() -> Authority {
        Authority::with(SigningKey::from_slice(&rand::random::<[u8; 32]>()).unwrap())
    }

    /// Its public key, for a bundle (SPIFFE_Trust_Domain_and_Bundle.md, section 4.2).
    pub fn jwk(&self) -> Value {
        let point = self.key.verifying_key().to_sec1_point(false);
        let (x, y) = (encode(point.x().unwrap()), encode(point.y().unwrap()));
        json!({ "kty": "EC", "use": "jwt-svid", "kid": self.kid, "crv": "P-256", "x": x, "y": y })
    }

    /// Its key for signatures of any kind, as a client's JWK set has it.
    pub fn client_jwk(&self) -> Value {
        laid(self.jwk(), &json!({ "use": "sig", "alg": "ES256" }))
    }

    /// The same with its private part.
    pub fn private_jwk(&self) -> Value {
        laid(
            self.client_jwk(),
            &json!({ "d": encode(&self.key.to_bytes()) }),
        )
    }

    /// The same key under another's id.
    pub fn named_as(mut self, other: &Authority) -> Authority {
        self.kid.clone_from(&other.kid);
        self
    }

    fn with(key: SigningKey) -> Authority {
        let point = key.verifying_key().to_sec1_point(false);
        let (x, y) = (encode(point.x().unwrap()), encode(point.y().unwrap()));
        let jwk = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        Authority {
            kid: encode(&Sha256::digest(jwk)),
            key,
        }
    }

    /// A good SVID with `claims` laid over; null takes one away. Each is
    /// evidence of its own.
    pub fn svid(&self, agent: &str, audience: &str, claims: &Value) -> String {
        self.svid_with(agent, audience, claims, &json!({}))
    }

    /// As [`Authority::svid`], with header members laid over as well.
    pub fn svid_with(&self, agent: &str, audience: &str, claims: &Value, header: &Value) -> String {
        let unique: [u8; 8] = rand::random();
        let good = json!({
            "sub": agent, "aud": [audience], "iat": now_s(), "exp": now_s() + 300,
            "jti": encode(&unique),
        });
        let head = json!({ "alg": "ES256", "typ": "JWT", "kid": self.kid });
        let input = format!(
            "{}.{}",
            encode(laid(head, header).to_string().as_bytes()),
            encode(laid(good, claims).to_string().as_bytes())
        );
        let signature: p256::ecdsa::Signature = self.key.sign(input.as_bytes());
        format!("{input}.{}", encode(&signature.to_bytes()))
    }
}

/// The same JWS with another signature that is good: ECDSA lets anybody make one, who has
/// no key (s and n - s are the same to who verifies).
pub fn signed_otherwise(token: &str) -> String {
    let (input, signature) = token.rsplit_once('.').unwrap();
    let signature = Base64UrlUnpadded::decode_vec(signature).unwrap();
    let signature = p256::ecdsa::Signature::from_slice(&signature).unwrap();
    let (r, s) = signature.split_scalars();
    let other = p256::ecdsa::Signature::from_scalars(r, -s).unwrap();
    assert_ne!(other, signature);
    format!("{input}.{}", encode(&other.to_bytes()))
}

fn laid(mut base: Value, over: &Value) -> Value {
    let members = base.as_object_mut().unwrap();
    members.extend(over.as_object().unwrap().clone());
    members.retain(|_, value| !value.is_null());
    base
}

/// base64url without padding.
pub fn encode(bytes: &[u8]) -> String {
    Base64UrlUnpadded::encode_string(bytes)
}

/// Header and claims of a JWS, unverified.
pub fn decoded(token: &str) -> (Value, Value) {
    let part = |at: usize| {
        let part = token.split('.').nth(at).unwrap();
        serde_json::from_slice(&Base64UrlUnpadded::decode_vec(part).unwrap()).unwrap()
    };
    (part(0), part(1))
}
