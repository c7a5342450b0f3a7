//! JWT-SVIDs as evidence of who asks (JWT-SVID.md).

use base64ct::{Base64UrlUnpadded, Encoding};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use spiffe::{BundleSource, JwtBundle, JwtSvid, JwtSvidError, JwtVerificationErrorKind as Kind};

use crate::oidc::SKEW_MS;
use crate::{Millis, SpiffeId};

/// The longest JWT-SVID that is looked at, in bytes.
pub const MAX_JWT_SVID_BYTES: usize = 8 * 1024;

/// What a verified JWT-SVID says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtEvidence {
    /// Whose it is.
    pub agent: SpiffeId,
    /// Until when it may be presented, in milliseconds since the Unix epoch.
    pub expires_ms: Millis,
    /// SHA-256 over the signed bytes, `HEADER.PAYLOAD`. The signature is left
    /// out because ECDSA lets anybody make a second valid one.
    pub evidence_id: [u8; 32],
    /// All that it says: what holds it to a key, or to somebody, is for who asks.
    pub claims: Map<String, Value>,
}

/// Why a JWT-SVID proves nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// It is larger than [`MAX_JWT_SVID_BYTES`].
    #[error("the jwt-svid is larger than 8 KiB")]
    TooLarge,
    /// It is not a JWT-SVID: form, header, claims or algorithm.
    #[error("the jwt-svid is malformed: {0}")]
    Malformed(String),
    /// Its subject is not a workload's SPIFFE ID.
    #[error("the jwt-svid's subject is not a workload's spiffe id")]
    Subject,
    /// Its audience is not exactly the one wanted.
    #[error("the jwt-svid's audience is not exactly {wanted}")]
    Audience {
        /// The only audience that is accepted.
        wanted: String,
    },
    /// It lasts longer than one of its trust domain may.
    #[error("the jwt-svid lasts longer than {most_s} s")]
    Lifetime {
        /// As long as one may last.
        most_s: u64,
    },
    /// It has expired.
    #[error("the jwt-svid has expired")]
    Expired,
    /// It is not valid yet.
    #[error("the jwt-svid is not valid yet")]
    NotYetValid,
    /// No key of its subject's trust domain made the signature.
    #[error("the jwt-svid is not signed by its trust domain")]
    Signature,
    /// The trust bundles can't be read just now.
    #[error("the workload api's trust bundles are not available: {0}")]
    Unavailable(String),
}

/// Verifies a JWT-SVID against trust bundles.
pub(crate) fn verify<B>(
    bundles: &B,
    token: &str,
    audience: &str,
    now: Millis,
) -> Result<JwtEvidence, EvidenceError>
where
    B: BundleSource<Item = JwtBundle>,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    if token.len() > MAX_JWT_SVID_BYTES {
        return Err(EvidenceError::TooLarge);
    }
    let wrong_audience = || EvidenceError::Audience {
        wanted: audience.to_owned(),
    };
    let svid = JwtSvid::parse_and_validate(token, bundles, &[audience])
        .map_err(|error| classify(error, &wrong_audience))?;
    // A token that another audience accepts as well could come from there.
    if svid.audience() != [audience] {
        return Err(wrong_audience());
    }
    let (signed, _) = token
        .rsplit_once('.')
        .ok_or_else(|| EvidenceError::Malformed("three parts are needed".to_owned()))?;
    let claims = claims(signed)?;
    let agent = subject(&claims)?;
    // The keys were chosen by the name as it was read above, which takes other spellings
    // of a trust domain for it (SPIFFE-ID.md, section 2.1: lower case).
    if agent.as_str() != svid.spiffe_id().to_string() {
        return Err(EvidenceError::Subject);
    }
    let expires_ms = u64::try_from(svid.claims().exp())
        .ok()
        .and_then(|seconds| seconds.checked_mul(1000))
        .ok_or(EvidenceError::Expired)?;
    if now >= expires_ms {
        return Err(EvidenceError::Expired);
    }
    // RFC 8417, section 2.2: it tells of something that has happened, as a logout token does.
    if claims.contains_key("events") {
        let what = "it is a security event (`events`), and no statement of who somebody is";
        return Err(EvidenceError::Malformed(what.to_owned()));
    }
    not_from_the_future(&claims, now)?;
    Ok(JwtEvidence {
        agent,
        expires_ms,
        evidence_id: Sha256::digest(signed).into(),
        claims,
    })
}

fn unreadable() -> EvidenceError {
    EvidenceError::Malformed("the claims can't be read".to_owned())
}

/// What was signed, each member of it once.
fn claims(signed: &str) -> Result<Map<String, Value>, EvidenceError> {
    let payload = signed.split_once('.').map(|(_, payload)| payload);
    let payload = payload.and_then(|it| Base64UrlUnpadded::decode_vec(it).ok());
    let payload = payload.ok_or_else(unreadable)?;
    let limits = capability::Limits::default();
    capability::json::parse_object(&payload, &limits).map_err(|_| unreadable())
}

/// The workload that it names, to the letter.
fn subject(claims: &Map<String, Value>) -> Result<SpiffeId, EvidenceError> {
    let name = claims.get("sub").and_then(Value::as_str);
    let name = name.ok_or(EvidenceError::Subject)?;
    let id = SpiffeId::parse(name).map_err(|_| EvidenceError::Subject)?;
    match id.is_workload() {
        true => Ok(id),
        false => Err(EvidenceError::Subject),
    }
}

/// The verification above reads the system's clock, and of `iat` nothing; `nbf` must hold
/// by the caller's as well.
fn not_from_the_future(claims: &Map<String, Value>, now: Millis) -> Result<(), EvidenceError> {
    let latest = [("nbf", now), ("iat", now.saturating_add(SKEW_MS))];
    for (name, latest) in latest {
        let Some(time) = claims.get(name) else {
            continue;
        };
        match time.as_f64() {
            Some(time) if time * 1000.0 <= latest as f64 => {}
            Some(_) => return Err(EvidenceError::NotYetValid),
            None => return Err(unreadable()),
        }
    }
    Ok(())
}

fn classify(error: JwtSvidError, wrong_audience: &dyn Fn() -> EvidenceError) -> EvidenceError {
    match error {
        JwtSvidError::InvalidSubject(_) => EvidenceError::Subject,
        JwtSvidError::InvalidAudience(..) => wrong_audience(),
        JwtSvidError::BundleNotFound(_) | JwtSvidError::AuthorityNotFound(_) => {
            EvidenceError::Signature
        }
        JwtSvidError::BundleSourceError(source) => EvidenceError::Unavailable(source.to_string()),
        JwtSvidError::InvalidToken(ref verification) => match verification.kind() {
            Kind::Expired => EvidenceError::Expired,
            Kind::NotYetValid => EvidenceError::NotYetValid,
            Kind::AudienceMismatch => wrong_audience(),
            Kind::InvalidSignature => EvidenceError::Signature,
            _ => EvidenceError::Malformed(error.to_string()),
        },
        other => EvidenceError::Malformed(other.to_string()),
    }
}
