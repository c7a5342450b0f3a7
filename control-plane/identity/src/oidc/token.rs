//! A token before and while it is verified.

use base64ct::{Base64UrlUnpadded, Encoding};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::Wanted;
use super::keys::Key;
use crate::Millis;

/// The longest token that is looked at, in bytes.
pub const MAX_FOREIGN_TOKEN_BYTES: usize = 8 * 1024;
/// The algorithms that tokens may be signed with, as `alg` names them.
pub const ALGORITHMS: &[&str] = &["RS256", "PS256", "ES256", "ES384", "EdDSA", "Ed25519"];
/// `iat` and `nbf` may be so far ahead, in ms.
pub const SKEW_MS: Millis = 10_000;

/// Why another issuer's token proves nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForeignError {
    /// It is larger than [`MAX_FOREIGN_TOKEN_BYTES`].
    #[error("it is larger than 8 KiB")]
    TooLarge,
    /// It is no JWS of the compact form, or its header or claims are not what they
    /// have to be.
    #[error("it is malformed: {0}")]
    Malformed(&'static str),
    /// An algorithm that is not taken.
    #[error("its `alg` is none of RS256, PS256, ES256, ES384 and EdDSA")]
    Algorithm,
    /// Another issuer's.
    #[error("its `iss` is another issuer")]
    Issuer,
    /// Made for somebody else, or for others as well.
    #[error("its `aud` is not {wanted} alone")]
    Audience {
        /// The only audience that is accepted.
        wanted: String,
    },
    /// It has expired.
    #[error("it has expired")]
    Expired,
    /// It is not valid yet.
    #[error("it is not valid yet")]
    NotYetValid,
    /// It lives longer than this issuer's tokens may.
    #[error("it lives longer than {most_s} s")]
    Lifetime {
        /// The longest, in seconds.
        most_s: u64,
    },
    /// The issuer has no such key.
    #[error("its issuer has no key of this `kid`")]
    KeyUnknown,
    /// No key of that id made the signature.
    #[error("its signature is not that of the key that it names")]
    Signature,
    /// The issuer's keys can't be had just now.
    #[error("its issuer's keys can't be fetched: {0}")]
    Unavailable(String),
}

/// What a token says that nobody has verified: for choosing who verifies it, and for
/// nothing else.
#[must_use]
pub fn claimed_issuer(token: &str) -> Option<String> {
    claimed(token, "iss")
}

/// Whether a token says that it is an OIDC issuer's: it names one, and a subject that is
/// no SPIFFE ID. Nothing of that is believed.
#[must_use]
pub fn is_foreign(token: &str) -> bool {
    let subject = claimed(token, "sub");
    claimed_issuer(token).is_some() && subject.is_some_and(|it| !it.starts_with("spiffe://"))
}

fn claimed(token: &str, name: &str) -> Option<String> {
    if token.len() > MAX_FOREIGN_TOKEN_BYTES {
        return None;
    }
    // Whatever is wrong with the rest of it is for the verifier to say.
    let claims = object(token.split('.').nth(1)?)?;
    claims.get(name)?.as_str().map(str::to_owned)
}

/// What a token's `typ` may be (RFC 8725, section 3.11).
#[derive(Clone, Copy, Debug)]
pub enum Types<'t> {
    /// None, `JWT`, or one of these.
    Plain(&'t [&'t str]),
    /// This alone.
    Only(&'t str),
}

impl Types<'_> {
    fn take(self, typ: Option<&str>) -> bool {
        let same = |it: &&str| typ.is_some_and(|typ| typ.eq_ignore_ascii_case(it));
        match self {
            Self::Plain(more) => typ.is_none() || same(&"JWT") || more.iter().any(same),
            Self::Only(one) => same(&one),
        }
    }
}

/// The audiences that a token says it is for, unverified: as [`claimed_issuer`].
#[must_use]
pub fn claimed_audience(token: &str) -> Option<String> {
    if token.len() > MAX_FOREIGN_TOKEN_BYTES {
        return None;
    }
    only_audience(&object(token.split('.').nth(1)?)?).map(str::to_owned)
}

/// `aud`, where it is one.
fn only_audience(claims: &Map<String, Value>) -> Option<&str> {
    match claims.get("aud") {
        Some(Value::String(one)) => Some(one.as_str()),
        Some(Value::Array(list)) if list.len() == 1 => list.first().and_then(Value::as_str),
        _ => None,
    }
}

/// A token that was parsed, and not believed.
pub(super) struct Unverified<'t> {
    signed: &'t str,
    signature: &'t str,
    algorithm: Algorithm,
    kid: Option<String>,
    claims: Map<String, Value>,
}

impl<'t> Unverified<'t> {
    pub(super) fn parse(token: &'t str, types: Types<'_>) -> Result<Self, ForeignError> {
        use ForeignError::Malformed;
        if token.len() > MAX_FOREIGN_TOKEN_BYTES {
            return Err(ForeignError::TooLarge);
        }
        let parts = token.rsplit_once('.').and_then(|(signed, signature)| {
            let (header, claims) = signed.split_once('.')?;
            Some((signed, header, claims, signature))
        });
        let Some((signed, header, claims, signature)) = parts else {
            return Err(Malformed("three parts are needed"));
        };
        let header = object(header).ok_or(Malformed("its header is no JSON object"))?;
        let claims = object(claims).ok_or(Malformed("its claims are no JSON object"))?;
        // RFC 8417, section 2.2; OpenID Connect Back-Channel Logout 1.0, section 2.4: it tells
        // of something that has happened, and is no statement of who somebody is.
        if claims.contains_key("events") {
            return Err(Malformed(
                "it is a security event or a logout token (`events`)",
            ));
        }
        // What can't be compared with anybody is nobody's.
        if claims.get("azp").is_some_and(|party| !party.is_string()) {
            return Err(Malformed("its `azp` is no text"));
        }
        // RFC 7515, section 4.1.11: what must be understood is not.
        if header.contains_key("crit") {
            return Err(Malformed("it has a `crit`"));
        }
        // An access token or a proof is no statement of who somebody is.
        let typ = header
            .get("typ")
            .map(|typ| typ.as_str().unwrap_or_default());
        if !types.take(typ) {
            return Err(Malformed(match types {
                Types::Plain(_) => "its `typ` is not JWT",
                Types::Only(_) => "its `typ` is another one",
            }));
        }
        let text = |name: &str| header.get(name).and_then(Value::as_str);
        let algorithm = match text("alg") {
            Some("RS256") => Algorithm::RS256,
            Some("PS256") => Algorithm::PS256,
            Some("ES256") => Algorithm::ES256,
            Some("ES384") => Algorithm::ES384,
            Some("EdDSA" | "Ed25519") => Algorithm::EdDSA,
            _ => return Err(ForeignError::Algorithm),
        };
        // RFC 7515, section 4.1.4: what is there is a text.
        let kid = text("kid").map(str::to_owned);
        if kid.is_none() && header.contains_key("kid") {
            return Err(Malformed("it names no key (`kid`)"));
        }
        Ok(Self {
            signed,
            signature,
            algorithm,
            kid,
            claims,
        })
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The key that it names.
    pub(super) fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    pub(super) fn signed(&self) -> &str {
        self.signed
    }

    pub(super) fn into_claims(self) -> Map<String, Value> {
        self.claims
    }

    /// RFC 7519, section 4.1; when it was made and when it ends, in ms.
    pub(super) fn check_claims(
        &self,
        issuer: &str,
        wanted: &Wanted<'_>,
        now: Millis,
    ) -> Result<(Millis, Millis), ForeignError> {
        use ForeignError::Malformed;
        if self.claims.get("iss").and_then(Value::as_str) != Some(issuer) {
            return Err(ForeignError::Issuer);
        }
        // A token that somebody else accepts as well could come from there.
        let audience = only_audience(&self.claims);
        if !audience.is_some_and(|it| wanted.audiences.contains(&it)) {
            return Err(ForeignError::Audience {
                wanted: wanted
                    .audiences
                    .first()
                    .copied()
                    .unwrap_or_default()
                    .to_owned(),
            });
        }
        let expires = self.time("exp")?.ok_or(Malformed("it has no `exp`"))?;
        let issued = self.time("iat")?.ok_or(Malformed("it has no `iat`"))?;
        let from = self.time("nbf")?.unwrap_or(issued).max(issued);
        if now >= expires {
            return Err(ForeignError::Expired);
        }
        if from > now.saturating_add(SKEW_MS) {
            return Err(ForeignError::NotYetValid);
        }
        if expires < issued {
            return Err(Malformed("its `exp` is before its `iat`"));
        }
        if expires.saturating_sub(issued) > wanted.lifetime_max_ms {
            return Err(ForeignError::Lifetime {
                most_s: wanted.lifetime_max_ms / 1000,
            });
        }
        Ok((issued, expires))
    }

    /// A NumericDate (RFC 7519, section 2), which may have a fraction, in ms.
    fn time(&self, name: &str) -> Result<Option<Millis>, ForeignError> {
        const LATEST_S: f64 = 1e11;
        let Some(value) = self.claims.get(name) else {
            return Ok(None);
        };
        let seconds = value.as_f64().filter(|it| (0.0..LATEST_S).contains(it));
        let seconds = seconds.ok_or(ForeignError::Malformed("a time is no NumericDate"))?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is within bounds that have been looked at"
        )]
        Ok(Some((seconds * 1000.0) as Millis))
    }

    pub(super) fn is_signed_by(&self, key: &Key) -> bool {
        jsonwebtoken::crypto::verify(
            self.signature,
            self.signed.as_bytes(),
            &key.decoding,
            self.algorithm,
        )
        .unwrap_or(false)
    }
}

/// A part of a compact JWS that is a JSON object, each member of it once.
fn object(part: &str) -> Option<Map<String, Value>> {
    let bytes = Base64UrlUnpadded::decode_vec(part).ok()?;
    capability::json::parse_object(&bytes, &capability::Limits::default()).ok()
}
