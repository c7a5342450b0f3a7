//! aws-lc judges ES256 signatures as the portable check does.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

#[path = "../../capability/tests/common/mod.rs"]
#[expect(dead_code, reason = "each test file uses its own part")]
mod common;

use capability::{Algorithm, Portable, PublicKey, Verifier};
use common::vector_json;
use control_plane::keys::Native;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};

fn both(key: &PublicKey, message: &[u8], signature: &[u8]) -> (bool, bool) {
    let of = |verifier: &dyn Verifier| verifier.verify(Algorithm::Es256, key, message, signature);
    (of(&Native).unwrap(), of(&Portable).unwrap())
}

#[test]
fn wycheproof_is_judged_alike() {
    let Some(file) = vector_json("wycheproof/ecdsa_secp256r1_sha256_p1363_test.json") else {
        return;
    };
    let mut seen = (0, 0);
    for group in file["testGroups"].as_array().unwrap() {
        let raw = hex::decode(group["publicKey"]["uncompressed"].as_str().unwrap()).unwrap();
        let (x, y) = (&raw[1..33], &raw[33..]);
        let Ok(key) = PublicKey::p256(x.try_into().unwrap(), y.try_into().unwrap()) else {
            continue;
        };
        for case in group["tests"].as_array().unwrap() {
            let bytes = |name: &str| hex::decode(case[name].as_str().unwrap()).unwrap();
            let good = case["result"] == "valid";
            let judged = both(&key, &bytes("msg"), &bytes("sig"));
            assert_eq!(judged, (good, good), "case {}", case["tcId"]);
            seen.0 += usize::from(good);
            seen.1 += usize::from(!good);
        }
    }
    assert_eq!(seen, (173, 89));
}

#[test]
fn signatures_and_keys_that_are_wrong_by_a_little_are_judged_alike() {
    let signing = SigningKey::from_slice(&[7; 32]).unwrap();
    let point = signing.verifying_key().to_sec1_point(false);
    let raw: &[u8] = point.as_bytes();
    let (x, y): ([u8; 32], [u8; 32]) = (
        raw[1..33].try_into().unwrap(),
        raw[33..].try_into().unwrap(),
    );
    let key = PublicKey::p256(x, y).unwrap();
    let message = b"what is signed";
    let good: Signature = signing.sign(message);
    let good: Vec<u8> = good.to_bytes().to_vec();
    assert_eq!(both(&key, message, &good), (true, true));
    assert_eq!(both(&key, b"another", &good), (false, false));
    for bit in 0..good.len() * 8 {
        let mut other = good.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(both(&key, message, &other), (false, false), "bit {bit}");
    }
    for length in (0..200).filter(|length| *length != good.len()) {
        let mut other = good.clone();
        other.resize(length, 0);
        assert_eq!(
            both(&key, message, &other),
            (false, false),
            "{length} bytes"
        );
    }
    // Both halves of what is twice a signature, zero, and the order and beyond.
    let order =
        hex::decode("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551").unwrap();
    for part in [vec![0; 32], order, vec![255; 32]] {
        for other in [
            [&part, &good[32..]].concat(),
            [&good[..32], &part].concat(),
            [&part[..], &part].concat(),
        ] {
            assert_eq!(both(&key, message, &other), (false, false), "{other:02x?}");
        }
    }
    let mut off = y;
    off[31] ^= 1;
    if let Ok(off) = PublicKey::p256(x, off) {
        assert_eq!(both(&off, message, &good), (false, false), "off its curve");
    }
    assert_eq!(
        Native.verify(Algorithm::Ed25519, &key, message, &good),
        Ok(false),
        "another algorithm's"
    );
}
