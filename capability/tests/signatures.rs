//! Third-party vectors for the portable verifier, keys and proofs.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail loudly"
)]

#[expect(dead_code, reason = "each test file uses its own part")]
mod common;

use capability::key::{PublicKey, ecdsa_der};
use capability::proof::{Expected, UnverifiedProof};
use capability::token::UnverifiedToken;
use capability::url::Target;
use capability::{Algorithm, Limits, Portable, Reason, Verifier, b64, sha256};
use common::vector_json;
use serde_json::Value;

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

/// Runs a Wycheproof file and gives the numbers of accepted and refused cases.
fn wycheproof(file: &str, alg: Algorithm, raw_key: &str) -> Option<(usize, usize)> {
    let file = vector_json(file)?;
    let (mut accepted, mut refused) = (0, 0);
    for group in file["testGroups"].as_array().unwrap() {
        let raw = hex::decode(text(&group["publicKey"], raw_key)).unwrap();
        let key = match alg {
            Algorithm::Es256 => PublicKey::p256(
                raw[1..33].try_into().unwrap(),
                raw[33..].try_into().unwrap(),
            ),
            Algorithm::Ed25519 => PublicKey::ed25519(raw.try_into().unwrap()),
        };
        if let Ok(key) = &key {
            let der = hex::decode(text(group, "publicKeyDer")).unwrap();
            assert_eq!(key.spki_der(), der);
        }
        for case in group["tests"].as_array().unwrap() {
            let message = hex::decode(text(case, "msg")).unwrap();
            let signature = hex::decode(text(case, "sig")).unwrap();
            let good = key
                .as_ref()
                .is_ok_and(|key| Portable.verify(alg, key, &message, &signature) == Ok(true));
            assert_eq!(
                good,
                text(case, "result") == "valid",
                "case {}",
                case["tcId"]
            );
            if good {
                accepted += 1;
            } else {
                refused += 1;
            }
        }
    }
    Some((accepted, refused))
}

#[test]
fn wycheproof_ecdsa_p1363() {
    let file = "wycheproof/ecdsa_secp256r1_sha256_p1363_test.json";
    if let Some(counts) = wycheproof(file, Algorithm::Es256, "uncompressed") {
        assert_eq!(counts, (173, 89));
    }
}

#[test]
fn wycheproof_ed25519() {
    let file = "wycheproof/ed25519_test.json";
    if let Some(counts) = wycheproof(file, Algorithm::Ed25519, "pk") {
        assert_eq!(counts, (88, 63));
    }
}

#[test]
fn thumbprints_of_the_rfcs() {
    let Some(file) = vector_json("rfc/jwk_thumbprints.json") else {
        return;
    };
    for vector in file["vectors"].as_array().unwrap() {
        let key = PublicKey::from_jwk(&vector["jwk"]);
        if vector["jwk"]["kty"] == "RSA" {
            assert!(key.is_err());
            continue;
        }
        let key = key.unwrap();
        assert_eq!(key.thumbprint(), text(vector, "sha256"), "{vector}");
        assert_eq!(PublicKey::from_jwk(&key.to_jwk()), Ok(key));
    }
}

#[test]
fn proofs_of_rfc_9449() {
    let Some(file) = vector_json("rfc/rfc9449_dpop.json") else {
        return;
    };
    assert_eq!(file["vectors"].as_array().unwrap().len(), 11);
    for vector in file["vectors"].as_array().unwrap() {
        let ath = vector["access_token"]
            .as_str()
            .map(|t| sha256(t.as_bytes()));
        let target = Target::location(text(vector, "url")).unwrap();
        let expected = Expected {
            method: text(vector, "method"),
            target: &target,
            now_ms: vector["verify_at"].as_u64().unwrap() * 1000,
            window_s: 300,
            ath,
            jkt: Some(text(&file, "jkt")),
            nonce: None,
        };
        let got = UnverifiedProof::parse(text(vector, "proof").as_bytes(), &Limits::default())
            .and_then(|proof| proof.check(&expected, &Portable))
            .map(|proof| proof.jti().to_owned())
            .map_err(Reason::as_str);
        let want = match text(vector, "id") {
            "rfc9449-resource-wrong-method" => Err("proof_method"),
            "rfc9449-resource-wrong-url" => Err("proof_target"),
            "rfc9449-resource-wrong-token" | "rfc9449-token-proof-at-resource-no-ath" => {
                Err("proof_token_hash")
            }
            "rfc9449-resource-stale" => Err("proof_time"),
            id if id.starts_with("rfc9449-resource") => Ok("e1j3V_bKic8-LAEB".to_owned()),
            _ => Ok("-BwC3ESc6acc2lTc".to_owned()),
        };
        assert_eq!(got.is_ok(), text(vector, "expect") == "accept");
        assert_eq!(got, want, "{}", vector["id"]);
    }
    // Nothing of ours: no `typ`.
    let token = text(&file["bound_jwt"], "jwt");
    let parsed = UnverifiedToken::parse(token.as_bytes(), &Limits::default());
    assert_eq!(parsed.err(), Some(Reason::TokenMalformed));
}

#[test]
fn a_demanded_nonce_has_to_be_there() {
    let key = common::Signing::p256("agent");
    let target = Target::location("https://issuer.example/oauth2/token").unwrap();
    let check = |nonce: Option<&str>, demanded: Option<&str>| {
        let claims = capability::proof::ProofClaims {
            htm: "POST".to_owned(),
            htu: target.to_string(),
            ath: None,
            nonce: nonce.map(str::to_owned),
            ..common::proof_claims("")
        };
        let input =
            capability::proof::signing_input(&key.public().to_jwk(), key.algorithm(), &claims);
        let proof = UnverifiedProof::parse(key.seal(&input).as_bytes(), &Limits::default())?;
        assert_eq!(proof.claimed_nonce(), nonce);
        let expected = Expected {
            method: "POST",
            target: &target,
            now_ms: common::NOW_S * 1000,
            window_s: 60,
            ath: None,
            jkt: None,
            nonce: demanded,
        };
        proof.check(&expected, &Portable).map(|p| p.iat_s())
    };
    assert_eq!(check(Some("n1"), Some("n1")), Ok(common::NOW_S));
    assert_eq!(check(Some("n1"), None), Ok(common::NOW_S));
    assert_eq!(check(None, Some("n1")), Err(Reason::ProofNonce));
    assert_eq!(check(Some("n2"), Some("n1")), Err(Reason::ProofNonce));
    assert_eq!(check(Some(""), Some("")), Err(Reason::ProofNonce));
}

/// The published JWSs, and the same tokens in other bytes: base64url has one
/// form, while n - s verifies, which is why identity is never the bytes.
#[test]
fn same_token_other_bytes() {
    let Some(file) = vector_json("rfc/jws_examples_and_token_identity.json") else {
        return;
    };
    let verify = |jws: &str, jwk: &Value| {
        let key = PublicKey::from_jwk(jwk).unwrap();
        let (signed, signature) = jws.rsplit_once('.').unwrap();
        let signature = b64::decode(signature)?;
        Portable
            .verify(key.algorithm(), &key, signed.as_bytes(), &signature)
            .ok()
    };
    for valid in file["valid"].as_array().unwrap() {
        assert_eq!(verify(text(valid, "jws"), &valid["jwk"]), Some(true));
    }
    let jwk = &file["valid"][0]["jwk"];
    let derived = &file["derived_same_token_identity"];
    assert_eq!(verify(text(derived, "ecdsa_s_negated"), jwk), Some(true));
    let forms = derived["noncanonical_base64url_signature"]
        .as_array()
        .unwrap();
    assert_eq!(forms.len(), 15);
    for form in forms {
        assert_eq!(verify(form.as_str().unwrap(), jwk), None);
    }
    for name in [
        "padded_signature",
        "std_alphabet_signature",
        "whitespace_in_segment",
    ] {
        assert_eq!(verify(text(derived, name), jwk), None, "{name}");
    }
}

#[test]
fn low_order_and_non_canonical_ed25519_points_are_no_keys() {
    let mut candidates: Vec<[u8; 32]> = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    ]
    .iter()
    .map(|text| hex::decode(text).unwrap().try_into().unwrap())
    .collect();
    for point in &candidates {
        // The list is of points that the library calls weak too.
        assert!(
            ed25519_dalek::VerifyingKey::from_bytes(point)
                .unwrap()
                .is_weak()
        );
    }
    for low in 0xed..=0xff {
        let mut point = [0xff; 32];
        (point[0], point[31]) = (low, 0x7f);
        candidates.push(point);
    }
    for point in candidates {
        for sign in [0, 0x80] {
            let mut point = point;
            point[31] |= sign;
            assert!(PublicKey::ed25519(point).is_err(), "{point:x?}");
        }
    }
    assert!(PublicKey::ed25519([2; 32]).is_ok());
}

#[test]
fn p256_coordinates_are_in_the_field() {
    let p: [u8; 32] =
        hex::decode("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff")
            .unwrap()
            .try_into()
            .unwrap();
    let mut below = p;
    below[31] -= 1;
    assert!(PublicKey::p256(below, [1; 32]).is_ok());
    for (x, y) in [
        (p, [1; 32]),
        ([1; 32], p),
        ([0xff; 32], [1; 32]),
        ([0; 32], [1; 32]),
        ([1; 32], [0; 32]),
    ] {
        assert!(PublicKey::p256(x, y).is_err());
    }
}

#[test]
fn a_point_off_its_curve_verifies_nothing() {
    let key = PublicKey::p256([1; 32], [1; 32]).unwrap();
    assert_eq!(
        Portable.verify(Algorithm::Es256, &key, b"", &[1; 64]),
        Ok(false)
    );
}

#[test]
fn der_signatures_are_read_back() {
    let key = common::Signing::p256("k");
    for n in 0..40_u8 {
        let raw = key.signature(&[n]);
        let der = ecdsa_der(&raw).unwrap();
        let back = p256::ecdsa::Signature::from_der(&der).unwrap();
        assert_eq!(back.to_bytes().to_vec(), raw);
    }
    let mut edge = [0; 64];
    (edge[31], edge[32]) = (0x7f, 0x80);
    let der = ecdsa_der(&edge).unwrap();
    assert_eq!(der[..8], [0x30, 38, 2, 1, 0x7f, 2, 33, 0]);
    assert_eq!(ecdsa_der(&[0; 64]).unwrap(), [0x30, 6, 2, 1, 0, 2, 1, 0]);
    assert_eq!(ecdsa_der(&[1; 63]), None);
    assert_eq!(ecdsa_der(&[1; 65]), None);
}
