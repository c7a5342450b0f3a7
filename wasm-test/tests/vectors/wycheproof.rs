//! Wycheproof's signatures, JWSs and JWKs, and CCTV's Ed25519.

use capability::key::PublicKey;
use serde_json::{Value, json};

use crate::common::vector_json;
use crate::probe::both_of;

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

/// The JWK of a file's raw key; none for one that is no key here.
fn jwk(raw: &str) -> Option<Value> {
    let raw = hex::decode(raw).unwrap();
    let key = match raw.len() {
        32 => PublicKey::ed25519(raw.try_into().unwrap()),
        _ => PublicKey::p256(
            raw[1..33].try_into().unwrap(),
            raw[33..].try_into().unwrap(),
        ),
    };
    key.ok().map(|key| key.to_jwk())
}

fn is_good(jwk: Option<&Value>, message: &str, signature: &str) -> bool {
    jwk.is_some_and(|jwk| {
        both_of(
            "verify",
            &json!({"jwk": jwk, "msg": message, "sig": signature}),
        ) == "good"
    })
}

/// Runs a file and gives the numbers of accepted and refused cases.
fn signatures(file: &str, raw_key: &str) -> Option<(usize, usize)> {
    let file = vector_json(file)?;
    let (mut accepted, mut refused) = (0, 0);
    for group in file["testGroups"].as_array().unwrap() {
        let jwk = jwk(text(&group["publicKey"], raw_key));
        for case in group["tests"].as_array().unwrap() {
            let good = is_good(jwk.as_ref(), text(case, "msg"), text(case, "sig"));
            let expected = text(case, "result") == "valid";
            assert_eq!(good, expected, "case {}", case["tcId"]);
            *(if good { &mut accepted } else { &mut refused }) += 1;
        }
    }
    Some((accepted, refused))
}

#[test]
fn ecdsa_p1363() {
    let file = "wycheproof/ecdsa_secp256r1_sha256_p1363_test.json";
    if let Some(counts) = signatures(file, "uncompressed") {
        assert_eq!(counts, (173, 89));
    }
}

#[test]
fn ed25519() {
    if let Some(counts) = signatures("wycheproof/ed25519_test.json", "pk") {
        assert_eq!(counts, (88, 63));
    }
}

/// RFC 7518, section 3.4: r and s side by side, so that what is good as DER is
/// no signature.
#[test]
fn der_is_no_signature_of_a_jws() {
    let Some(file) = vector_json("wycheproof/ecdsa_secp256r1_sha256_test.json") else {
        return;
    };
    let mut valid = 0;
    for group in file["testGroups"].as_array().unwrap() {
        let jwk = jwk(text(&group["publicKey"], "uncompressed"));
        for case in group["tests"].as_array().unwrap() {
            valid += usize::from(case["result"] == "valid");
            let good = is_good(jwk.as_ref(), text(case, "msg"), text(case, "sig"));
            assert!(!good, "case {}", case["tcId"]);
        }
    }
    assert_eq!(valid, 174);
}

/// The cases of a file with JWSs that are accepted under the group's key: one
/// key, or a set in which every key is tried.
fn accepted(file: &str) -> Option<Vec<u64>> {
    let file = vector_json(file)?;
    let mut accepted = Vec::new();
    for group in file["testGroups"].as_array().unwrap() {
        let key = group.get("public").unwrap_or(&group["private"]);
        let keys = match key.get("keys") {
            Some(keys) => keys.as_array().unwrap().clone(),
            None => vec![key.clone()],
        };
        for case in group["tests"].as_array().unwrap() {
            // Encrypted ones are in five parts, which is malformed.
            let jws = case.get("jws").unwrap_or(&case["jwe"]);
            let good =
                |jwk: &Value| both_of("jws", &json!({"jwk": jwk, "jws": jws})).starts_with("ok ");
            if keys.iter().any(good) {
                accepted.push(case["tcId"].as_u64().unwrap());
            }
        }
    }
    Some(accepted)
}

/// What is accepted is ES256 under a P-256 key that is for it, and nothing of
/// HMAC, RSA, other curves and other shapes.
#[test]
fn json_web_signatures_and_keys() {
    for (file, good) in [
        ("json_web_signature_test.json", &[18, 378][..]),
        ("json_web_key_test.json", &[]),
        ("json_web_crypto_test.json", &[18]),
        ("json_web_encryption_test.json", &[]),
    ] {
        if let Some(accepted) = accepted(&format!("wycheproof/{file}")) {
            assert_eq!(accepted, good, "{file}");
        }
    }
}

/// CCTV's corners of Ed25519, where libraries differ. The rule is RFC 8032's
/// strict one; the number is ed25519-dalek's `verify_strict`.
#[test]
fn the_corners_of_ed25519() {
    let Some(file) = vector_json("cctv/ed25519vectors.json") else {
        return;
    };
    let cases = file.as_array().unwrap();
    assert_eq!(cases.len(), 914);
    let good = cases.iter().filter(|case| {
        let jwk = jwk(text(case, "key"));
        is_good(
            jwk.as_ref(),
            &hex::encode(text(case, "msg")),
            text(case, "sig"),
        )
    });
    assert_eq!(good.count(), 43);
}
