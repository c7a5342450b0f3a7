//! An issuer's keys (RFC 7517).

use std::collections::BTreeMap;

use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

/// Keys of one issuer; more are refused.
const KEYS_MAX: usize = 64;
/// Bytes of a key's id.
const KID_MAX: usize = 256;

/// A key that verifies signatures of some algorithms.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) decoding: DecodingKey,
    algorithms: Vec<Algorithm>,
}

impl Key {
    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// `None` for what is no key to verify with, or none that is known (section 5).
    fn of(jwk: &Jwk) -> Option<Self> {
        let common = &jwk.common;
        let other_use = |it: &PublicKeyUse| *it != PublicKeyUse::Signature;
        let operations = common.key_operations.as_ref();
        let verifies = |it: &Vec<KeyOperations>| it.contains(&KeyOperations::Verify);
        if common.public_key_use.as_ref().is_some_and(other_use) || !operations.is_none_or(verifies)
        {
            return None;
        }
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => vec![Algorithm::RS256, Algorithm::PS256],
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                vec![Algorithm::ES256]
            }
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => {
                vec![Algorithm::ES384]
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                vec![Algorithm::EdDSA]
            }
            _ => return None,
        };
        if let Some(only) = &common.key_algorithm {
            algorithms.retain(|it| KeyAlgorithm::from(*it) == *only);
        }
        let decoding = DecodingKey::from_jwk(jwk).ok()?;
        (!algorithms.is_empty()).then_some(Self {
            decoding,
            algorithms,
        })
    }
}

/// Whether a JWK set has keys that can be used; how many.
///
/// # Errors
/// What is wrong with the set.
pub fn check_keys(bytes: &[u8]) -> Result<usize, String> {
    match Keys::parse(bytes)?.count() {
        0 => Err("it has no key with an id that can verify a signature".to_owned()),
        keys => Ok(keys),
    }
}

/// Keys by their ids.
pub(super) struct Keys(BTreeMap<String, Vec<Key>>);

impl Keys {
    /// Reads a JWK set; what is no key to verify with is left out.
    ///
    /// # Errors
    /// What is wrong with the set. That it has no such key is not.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let set = capability::json::parse_object(bytes, &super::document_limits())
            .map_err(|_| "it is not one JSON object".to_owned())?;
        let Some(Value::Array(list)) = set.get("keys") else {
            return Err("it has no list `keys`".to_owned());
        };
        if list.len() > KEYS_MAX {
            return Err(format!("it has more than {KEYS_MAX} keys"));
        }
        let mut keys: BTreeMap<String, Vec<Key>> = BTreeMap::new();
        for value in list {
            let jwk: Option<Jwk> = serde_json::from_value(value.clone()).ok();
            let Some(jwk) = jwk else { continue };
            // A token names its key, so one without a name is nobody's.
            let kid = jwk.common.key_id.clone().filter(|it| it.len() <= KID_MAX);
            if let (Some(kid), Some(key)) = (kid, Key::of(&jwk)) {
                keys.entry(kid).or_default().push(key);
            }
        }
        // None is an answer: all of them are withdrawn.
        Ok(Self(keys))
    }

    /// Those of this id, or without one all of them; `None` where there are none.
    pub(super) fn of(&self, kid: Option<&str>) -> Option<Vec<Key>> {
        match kid {
            Some(kid) => self.0.get(kid).cloned(),
            None => {
                let all: Vec<Key> = self.0.values().flatten().cloned().collect();
                (!all.is_empty()).then_some(all)
            }
        }
    }

    pub(super) fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}
