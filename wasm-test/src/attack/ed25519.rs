//! Ed25519 at its edges: points of low order, points in other spellings, torsion,
//! and scalars that are no scalars (RFC 8032, section 5.1.7).

use capability::{b64, sha256};
use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
use curve25519_dalek::{EdwardsPoint, Scalar};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

use super::cases::PATH;
use super::forge::{Forger, random};
use super::vectors;
use crate::Error;
use crate::client::now_s;

/// The order of the group, little-endian.
const L: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// All encodings of points of low order: the eight, and six that are not canonical.
pub fn low_order() -> Vec<[u8; 32]> {
    let mut all: Vec<[u8; 32]> = EIGHT_TORSION
        .iter()
        .map(|it| it.compress().to_bytes())
        .collect();
    // y = 1 and y = p - 1 with the sign of x = 0; y = p and y = p + 1, with either.
    let of = |first: u8, middle: u8, last: u8| {
        let mut bytes = [middle; 32];
        bytes[0] = first;
        bytes[31] = last;
        bytes
    };
    all.extend([
        of(0x01, 0x00, 0x80),
        of(0xec, 0xff, 0xff),
        of(0xed, 0xff, 0x7f),
        of(0xed, 0xff, 0xff),
        of(0xee, 0xff, 0x7f),
        of(0xee, 0xff, 0xff),
    ]);
    all
}

/// A public JWK of any 32 bytes.
pub fn jwk(x: &[u8; 32]) -> Value {
    json!({"crv": "Ed25519", "kty": "OKP", "x": b64::encode(x)})
}

/// The thumbprint of [`jwk`], whatever the bytes are.
fn thumbprint(x: &[u8; 32]) -> String {
    let text = format!(
        r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#,
        b64::encode(x)
    );
    b64::encode(&sha256(text.as_bytes()))
}

/// The signing input of a proof under this key, for this token at the edge.
fn input(forger: &Forger, x: &[u8; 32], token: &str) -> String {
    let header = json!({"typ": "dpop+jwt", "alg": "Ed25519", "jwk": jwk(x)});
    let claims = json!({
        "htm": "GET", "htu": format!("{}/files/a.txt", forger.names.origin), "iat": now_s(),
        "jti": random(), "ath": b64::encode(&sha256(token.as_bytes())),
    });
    let part = |value: &Value| b64::encode(value.to_string().as_bytes());
    format!("{}.{}", part(&header), part(&claims))
}

/// A request whose token is bound to this key and whose proof has the signature
/// that `sign` makes of R ‖ A ‖ input's hash, r and a.
fn row(
    forger: &Forger,
    name: String,
    expect: &str,
    x: [u8; 32],
    sign: impl Fn(&[u8]) -> Vec<u8>,
) -> Result<Value, Error> {
    let token = forger.token(PATH, &thumbprint(&x), &json!({}))?;
    let input = input(forger, &x, &token);
    let proof = format!("{input}.{}", b64::encode(&sign(input.as_bytes())));
    Ok(json!({"name": name, "expect": expect, "token": {"raw": token}, "proof": {"raw": proof}}))
}

fn secret(name: &str) -> Scalar {
    Scalar::from_bytes_mod_order(sha256(name.as_bytes()))
}

/// s = r + H(R ‖ A ‖ m) a, over the encodings as they are shown.
fn scalar(r: Scalar, shown: &[u8; 32], a: Scalar, x: &[u8; 32], message: &[u8]) -> Scalar {
    let mut hash = Sha512::new();
    hash.update(shown);
    hash.update(x);
    hash.update(message);
    r + Scalar::from_bytes_mod_order_wide(&hash.finalize().into()) * a
}

/// Keys and R of low order, with and without canonical encodings, and torsion in
/// R, in the key and in both.
pub fn weak_points(forger: &Forger) -> Result<Vec<Value>, Error> {
    let mut rows = Vec::new();
    let weak = low_order();
    for (at, x) in weak.iter().enumerate() {
        for (of, shown) in weak.iter().enumerate() {
            // With a key of low order and S = 0 some of these fit any text.
            let signature = [shown.as_slice(), &[0; 32]].concat();
            let name = format!("key {at} of low order, R {of}, S 0");
            rows.push(row(forger, name, "proof_malformed", *x, |_| {
                signature.clone()
            })?);
        }
    }
    let (r, a) = (secret("r"), secret("a"));
    let (shown, public) = (ED25519_BASEPOINT_POINT * r, ED25519_BASEPOINT_POINT * a);
    let good = |point: EdwardsPoint| point.compress().to_bytes();
    for (of, torsion) in EIGHT_TORSION.iter().enumerate() {
        let (mixed_r, mixed_a) = (good(shown + torsion), good(public + torsion));
        let plain = good(public);
        // Only without torsion is it a good signature; without the cofactor in the
        // check some with torsion in the key pass, and both builds say which.
        let expect = if of == 0 { "native" } else { "proof_signature" };
        for (name, x, shown, expect) in [
            ("R", plain, mixed_r, expect),
            ("the key", mixed_a, good(shown), "native"),
            ("both", mixed_a, mixed_r, "native"),
        ] {
            let name = format!("torsion {of} in {name}");
            rows.push(row(forger, name, expect, x, |message| {
                let s = scalar(r, &shown, a, &x, message);
                [shown, s.to_bytes()].concat()
            })?);
        }
        let zero_r = good(*torsion);
        rows.push(row(
            forger,
            format!("R is torsion {of} alone"),
            "proof_signature",
            plain,
            |message| {
                let s = scalar(Scalar::ZERO, &zero_r, a, &plain, message);
                [zero_r, s.to_bytes()].concat()
            },
        )?);
    }
    Ok(rows)
}

/// S + kL, which a check without a range would take, and the invalid signatures of
/// Wycheproof.
pub fn other_scalars(forger: &Forger) -> Result<Vec<Value>, Error> {
    let (r, a) = (secret("r"), secret("a"));
    let shown = (ED25519_BASEPOINT_POINT * r).compress().to_bytes();
    let x = (ED25519_BASEPOINT_POINT * a).compress().to_bytes();
    let mut rows = Vec::new();
    for k in 0..15_u8 {
        let expect = if k == 0 { "ok" } else { "proof_signature" };
        rows.push(row(forger, format!("S + {k} L"), expect, x, |message| {
            let mut s = scalar(r, &shown, a, &x, message).to_bytes();
            for _ in 0..k {
                s = plus_l(s);
            }
            [shown, s].concat()
        })?);
    }
    let file = vectors::json("wycheproof/ed25519_test.json")?;
    for group in vectors::list(&file, "/testGroups") {
        for test in vectors::list(group, "/tests") {
            if vectors::text(test, "/result") != "invalid" {
                continue;
            }
            let id = test.get("tcId").unwrap_or(&Value::Null);
            rows.push(
                json!({"name": format!("Wycheproof {id}"), "expect": "proof_signature",
                "proof": {"key": "ed25519", "signature": vectors::text(test, "/sig")}}),
            );
        }
    }
    Ok(rows)
}

/// Another 32 bytes that are the same scalar, while there is room.
fn plus_l(s: [u8; 32]) -> [u8; 32] {
    let mut carry = 0;
    let mut sum = [0; 32];
    for ((out, a), b) in sum.iter_mut().zip(s).zip(L) {
        let digit = u16::from(a) + u16::from(b) + carry;
        *out = u8::try_from(digit % 256).unwrap_or_default();
        carry = digit / 256;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_fourteen_spellings_of_low_order() {
        let all = low_order();
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), 14);
        assert!(
            all.iter()
                .all(|it| capability::PublicKey::ed25519(*it).is_err())
        );
    }

    #[test]
    fn a_scalar_and_l_is_the_same_scalar() {
        let s = secret("s");
        let more = plus_l(s.to_bytes());
        assert_ne!(more, s.to_bytes());
        assert_eq!(Scalar::from_bytes_mod_order(more), s);
    }
}
