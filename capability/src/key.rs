//! Public keys as JWKs (RFC 7517), their thumbprints (RFC 7638) and the
//! algorithms that go with them.

use serde_json::{Map, Value, json};

use crate::{b64, sha256};

/// The signature algorithms that are accepted. Nothing symmetric, and no RSA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256; a JWS carries r ‖ s (RFC 7518, section 3.4).
    Es256,
    /// Ed25519 (RFC 8037); `EdDSA` is the older spelling (RFC 9864).
    Ed25519,
}

impl Algorithm {
    /// Reads a JWS `alg`; none for every algorithm that is not accepted.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "ES256" => Some(Self::Es256),
            "Ed25519" | "EdDSA" => Some(Self::Ed25519),
            _ => None,
        }
    }

    /// The name as RFC 9864 has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Ed25519 => "Ed25519",
        }
    }
}

/// Why a JWK is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not an object, or a member has the wrong type.
    #[error("the JWK has to be a JSON object with `kty`, `crv`, `x` and, for P-256, `y`")]
    Malformed,
    /// Neither P-256 nor Ed25519.
    #[error("the JWK has to be an EC key on P-256 or an OKP key on Ed25519")]
    Unsupported,
    /// It holds a private or symmetric part.
    #[error("the JWK holds private or symmetric key material: send the public key alone")]
    Private,
    /// `use`, `key_ops` or `alg` says that it is not for this.
    #[error("the JWK is not meant for verifying signatures with its algorithm")]
    NotForSigning,
    /// A coordinate is not 32 bytes of strict base64url.
    #[error("each coordinate has to be 32 bytes in base64url without padding")]
    Coordinate,
    /// Infinity, out of the field, or of low order.
    #[error("the key is a point that verifies nothing: make another key")]
    WeakPoint,
}

/// The host could not check a signature at all, which says nothing about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature check is not available on this host")]
pub struct VerifierFault;

/// Checks signatures: BoringSSL through the host, or [`crate::Portable`].
pub trait Verifier {
    /// Whether `signature` (r ‖ s, or an Ed25519 signature) over `message` is
    /// good. A key that is not on its curve makes it false.
    ///
    /// # Errors
    /// The check itself could not be made.
    fn verify(
        &self,
        alg: Algorithm,
        key: &PublicKey,
        message: &[u8],
        signature: &[u8],
    ) -> Result<bool, VerifierFault>;
}

/// A public key: on P-256 or Ed25519, and nothing private beside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PublicKey(Point);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Point {
    P256 { x: [u8; 32], y: [u8; 32] },
    Ed25519([u8; 32]),
}

/// Members of private and symmetric JWKs (RFC 7518, section 6).
const PRIVATE: [&str; 9] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"];

/// The order of P-256's field, big-endian.
const P256_P: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
];

/// 1, big-endian.
const ONE: [u8; 32] = {
    let mut one = [0; 32];
    one[31] = 1;
    one
};

/// p - 1 of Ed25519's field, 2^255 - 20, big-endian.
const ED25519_P_MINUS_ONE: [u8; 32] = {
    let mut number = [0xff; 32];
    number[0] = 0x7f;
    number[31] = 0xec;
    number
};

/// y of the points of order 8 on Ed25519, little-endian, sign left out.
const ORDER_8: [[u8; 32]; 2] = [
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
];

impl PublicKey {
    /// Reads a public JWK. Members that say nothing about the key's use are
    /// ignored, certificates among them.
    ///
    /// # Errors
    /// See [`KeyError`]. Whether a P-256 point is on its curve is left to the
    /// [`Verifier`].
    pub fn from_jwk(jwk: &Value) -> Result<Self, KeyError> {
        let jwk = jwk.as_object().ok_or(KeyError::Malformed)?;
        if PRIVATE.iter().any(|name| jwk.contains_key(*name)) {
            return Err(KeyError::Private);
        }
        let key = match (text(jwk, "kty")?, text(jwk, "crv")) {
            ("EC", Ok("P-256")) => Self::p256(coordinate(jwk, "x")?, coordinate(jwk, "y")?)?,
            ("OKP", Ok("Ed25519")) => Self::ed25519(coordinate(jwk, "x")?)?,
            ("oct", _) => return Err(KeyError::Private),
            _ => return Err(KeyError::Unsupported),
        };
        key.check_use(jwk)?;
        Ok(key)
    }

    /// A P-256 key from its coordinates, big-endian.
    ///
    /// # Errors
    /// A coordinate that is zero or not in the field.
    pub fn p256(x: [u8; 32], y: [u8; 32]) -> Result<Self, KeyError> {
        if [x, y].iter().any(|c| *c == [0; 32] || *c >= P256_P) {
            return Err(KeyError::WeakPoint);
        }
        Ok(Self(Point::P256 { x, y }))
    }

    /// An Ed25519 key from its encoding.
    ///
    /// # Errors
    /// A point of low order, or an encoding that is not canonical.
    pub fn ed25519(encoding: [u8; 32]) -> Result<Self, KeyError> {
        let mut y = encoding;
        y[31] &= 0x7f;
        // Big-endian, so that arrays compare as numbers.
        let mut number = y;
        number.reverse();
        // Orders 1, 2 and 4 have y = 1, p - 1 and 0; from p on, nothing is canonical.
        let low_order = number <= ONE || number >= ED25519_P_MINUS_ONE || ORDER_8.contains(&y);
        if low_order {
            return Err(KeyError::WeakPoint);
        }
        Ok(Self(Point::Ed25519(encoding)))
    }

    /// The algorithm that goes with the key.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Point::P256 { .. } => Algorithm::Es256,
            Point::Ed25519(_) => Algorithm::Ed25519,
        }
    }

    /// The SHA-256 thumbprint in base64url (RFC 7638): what `cnf.jkt` holds.
    #[must_use]
    pub fn thumbprint(&self) -> String {
        // The required members only, in lexical order; their values need no escapes.
        let text = match &self.0 {
            Point::P256 { x, y } => [
                r#"{"crv":"P-256","kty":"EC","x":""#,
                &b64::encode(x),
                r#"","y":""#,
                &b64::encode(y),
                r#""}"#,
            ]
            .concat(),
            Point::Ed25519(x) => [
                r#"{"crv":"Ed25519","kty":"OKP","x":""#,
                &b64::encode(x),
                r#""}"#,
            ]
            .concat(),
        };
        b64::encode(&sha256(text.as_bytes()))
    }

    /// The key as a JWK with the required members alone.
    #[must_use]
    pub fn to_jwk(&self) -> Value {
        match &self.0 {
            Point::P256 { x, y } => {
                json!({"kty": "EC", "crv": "P-256", "x": b64::encode(x), "y": b64::encode(y)})
            }
            Point::Ed25519(x) => json!({"kty": "OKP", "crv": "Ed25519", "x": b64::encode(x)}),
        }
    }

    /// DER SubjectPublicKeyInfo (RFC 5480, RFC 8410).
    #[must_use]
    pub fn spki_der(&self) -> Vec<u8> {
        const P256: [u8; 27] = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
        ];
        const ED25519: [u8; 12] = [
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ];
        match &self.0 {
            Point::P256 { x, y } => [&P256[..], x, y].concat(),
            Point::Ed25519(x) => [&ED25519[..], x].concat(),
        }
    }

    /// The raw point: 0x04 ‖ x ‖ y (SEC 1), or the 32 bytes of Ed25519.
    #[must_use]
    pub fn raw(&self) -> Vec<u8> {
        match &self.0 {
            Point::P256 { x, y } => [&[4][..], x, y].concat(),
            Point::Ed25519(x) => x.to_vec(),
        }
    }

    fn check_use(&self, jwk: &Map<String, Value>) -> Result<(), KeyError> {
        let fits = |name: &str, good: &dyn Fn(&Value) -> bool| jwk.get(name).is_none_or(good);
        let alg = self.algorithm();
        let sound = fits("use", &|v| v == "sig")
            && fits("key_ops", &|v| {
                v.as_array()
                    .is_some_and(|ops| ops.iter().any(|op| op == "verify"))
            })
            && fits("alg", &|v| {
                v.as_str().and_then(Algorithm::parse) == Some(alg)
            });
        if sound {
            Ok(())
        } else {
            Err(KeyError::NotForSigning)
        }
    }
}

/// DER `SEQUENCE { r, s }` of a JWS's r ‖ s, for hosts that want that. None
/// when it is not 64 bytes.
#[must_use]
pub fn ecdsa_der(signature: &[u8]) -> Option<Vec<u8>> {
    let signature: &[u8; 64] = signature.try_into().ok()?;
    let (r, s) = signature.split_at(32);
    let mut der = Vec::with_capacity(ECDSA_DER_MAX);
    der.extend_from_slice(&[0x30, 0]);
    push_der_integer(&mut der, r)?;
    push_der_integer(&mut der, s)?;
    let length = u8::try_from(der.len().checked_sub(2)?).ok()?;
    *der.get_mut(1)? = length;
    Some(der)
}

/// Two integers of at most 33 bytes, each with tag and length, and those of the
/// sequence.
const ECDSA_DER_MAX: usize = 72;

/// A DER INTEGER of an unsigned big-endian number of up to 32 bytes.
fn push_der_integer(der: &mut Vec<u8>, number: &[u8]) -> Option<()> {
    let zeros = number.iter().take_while(|b| **b == 0).count();
    let digits = number.get(zeros..)?;
    // A leading zero keeps the number positive, and stands for zero itself.
    let lead: &[u8] = match digits.first() {
        Some(first) if *first < 0x80 => &[],
        _ => &[0],
    };
    let length = u8::try_from(lead.len().checked_add(digits.len())?).ok()?;
    der.extend_from_slice(&[0x02, length]);
    der.extend_from_slice(lead);
    der.extend_from_slice(digits);
    Some(())
}

fn text<'a>(jwk: &'a Map<String, Value>, name: &str) -> Result<&'a str, KeyError> {
    jwk.get(name)
        .and_then(Value::as_str)
        .ok_or(KeyError::Malformed)
}

fn coordinate(jwk: &Map<String, Value>, name: &str) -> Result<[u8; 32], KeyError> {
    b64::decode32(text(jwk, name)?).ok_or(KeyError::Coordinate)
}
