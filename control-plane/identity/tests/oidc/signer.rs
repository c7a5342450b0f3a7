//! An issuer's keys of each kind, and what they sign.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RSA_PSS_SHA256,
};
use base64ct::{Base64UrlUnpadded, Encoding as _};
use serde_json::{Value, json};

pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    Base64UrlUnpadded::encode_string(bytes.as_ref())
}

/// Keys of each kind that is taken.
pub struct Signer {
    pub rsa: RsaKeyPair,
    pub ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

impl Signer {
    pub fn new() -> Self {
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            ed: Ed25519KeyPair::generate().unwrap(),
        }
    }

    pub fn jwks(&self) -> Value {
        json!({ "keys": [
            rsa_jwk("rsa", &self.rsa),
            ec_jwk("ec", &self.ec),
            { "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": b64(self.ed.public_key()) },
            { "kty": "oct", "kid": "secret", "k": "AAAA" },
            { "kty": "NEW", "kid": "new" },
        ]})
    }

    pub fn sign(&self, alg: &str, signed: &str) -> Vec<u8> {
        let random = SystemRandom::new();
        let mut rsa = vec![0; self.rsa.public_modulus_len()];
        match alg {
            "RS256" => self
                .rsa
                .sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut rsa)
                .map(|()| rsa)
                .unwrap(),
            "PS256" => self
                .rsa
                .sign(&RSA_PSS_SHA256, &random, signed.as_bytes(), &mut rsa)
                .map(|()| rsa)
                .unwrap(),
            "ES256" => self
                .ec
                .sign(&random, signed.as_bytes())
                .unwrap()
                .as_ref()
                .to_vec(),
            "EdDSA" | "Ed25519" => self.ed.sign(signed.as_bytes()).as_ref().to_vec(),
            _ => Vec::new(),
        }
    }

    pub fn token(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let signature = self.sign(header["alg"].as_str().unwrap_or_default(), &signed);
        format!("{signed}.{}", b64(signature))
    }
}

pub fn rsa_jwk(kid: &str, key: &RsaKeyPair) -> Value {
    let public = key.public_key();
    let n = public.modulus().big_endian_without_leading_zero();
    let e = public.exponent().big_endian_without_leading_zero();
    json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": b64(n), "e": b64(e) })
}

pub fn ec_jwk(kid: &str, key: &EcdsaKeyPair) -> Value {
    let point = key.public_key().as_ref();
    json!({ "kty": "EC", "crv": "P-256", "kid": kid, "x": b64(&point[1..33]), "y": b64(&point[33..65]) })
}
