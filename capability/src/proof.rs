//! DPoP proofs (RFC 9449).

use serde_json::{Map, Value, json};

use crate::jws::{self, Compact, Malformed};
use crate::key::{Algorithm, PublicKey, Verifier};
use crate::limits::Limits;
use crate::reason::Reason;
use crate::url::Target;
use crate::{b64, json, same_bytes, sha256};

/// The claims of a proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofClaims {
    /// The request's method.
    pub htm: String,
    /// The request's URL, query and fragment aside.
    pub htu: String,
    /// When it was made, in whole seconds since the Unix epoch.
    pub iat_s: u64,
    /// Its identity, with the key's thumbprint.
    pub jti: String,
    /// Base64url SHA-256 of the token, at a resource.
    pub ath: Option<String>,
    /// The server's nonce.
    pub nonce: Option<String>,
}

/// What a proof is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The request's method, with its case.
    pub method: &'a str,
    /// The URL that the client used.
    pub target: &'a Target,
    /// The time.
    pub now_ms: u64,
    /// How far `iat` may lie from now, either way.
    pub window_s: u64,
    /// SHA-256 of the token, at a resource; none ignores the claim.
    pub ath: Option<[u8; 32]>,
    /// The thumbprint that the token is bound to; none takes any key.
    pub jkt: Option<&'a str>,
    /// The nonce that is demanded; none ignores the claim.
    pub nonce: Option<&'a str>,
}

/// A proof that parses. It tells nothing but what is needed to verify it.
#[derive(Clone, Debug)]
pub struct UnverifiedProof {
    compact: Compact,
    claims: ProofClaims,
    alg: Algorithm,
    key: PublicKey,
    jkt: String,
}

impl UnverifiedProof {
    /// Parses a proof and demands its form: size, three segments, `typ` exactly
    /// `dpop+jwt` with its case, `alg`, a public `jwk` that fits it, and the
    /// claims with their types. A `jti` has at most 256 bytes.
    ///
    /// # Errors
    /// `too_large`, `proof_malformed` or `proof_algorithm`.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, Reason> {
        if bytes.len() > limits.proof {
            return Err(Reason::TooLarge);
        }
        let malformed = |_: Malformed| Reason::ProofMalformed;
        let compact = Compact::parse(bytes, limits).map_err(malformed)?;
        if compact.header_text("typ") != Some("dpop+jwt") {
            return Err(Reason::ProofMalformed);
        }
        let alg = compact.header_text("alg").ok_or(Reason::ProofMalformed)?;
        let alg = Algorithm::parse(alg).ok_or(Reason::ProofAlgorithm)?;
        let jwk = compact.header.get("jwk").ok_or(Reason::ProofMalformed)?;
        let key = PublicKey::from_jwk(jwk).map_err(|_| Reason::ProofMalformed)?;
        if key.algorithm() != alg {
            return Err(Reason::ProofAlgorithm);
        }
        let claims = read_claims(&compact.payload).map_err(malformed)?;
        let jkt = key.thumbprint();
        Ok(Self {
            compact,
            claims,
            alg,
            key,
            jkt,
        })
    }

    /// The nonce that the proof claims, to be judged by whoever made it.
    #[must_use]
    pub fn claimed_nonce(&self) -> Option<&str> {
        self.claims.nonce.as_deref()
    }

    /// The checks in the order of the gates, for an endpoint of its own.
    ///
    /// # Errors
    /// `proof_key_mismatch`, `proof_method`, `proof_target`, `proof_time`,
    /// `proof_nonce`, `proof_token_hash`, `proof_signature`, or
    /// `internal_error` when the signature could not be checked.
    pub fn check<V: Verifier>(
        self,
        expected: &Expected<'_>,
        verifier: &V,
    ) -> Result<VerifiedProof, Reason> {
        if let Some(jkt) = expected.jkt {
            self.bound_to(jkt)?;
        }
        self.made_for(expected.method, expected.target)?;
        self.fresh(expected.now_ms, expected.window_s)?;
        if let Some(nonce) = expected.nonce {
            self.has_one_of(&[nonce])?;
        }
        if let Some(ath) = expected.ath {
            self.covers_token(&ath)?;
        }
        self.verify(verifier)
    }

    pub(crate) fn bound_to(&self, jkt: &str) -> Result<(), Reason> {
        demand(
            same_bytes(self.jkt.as_bytes(), jkt.as_bytes()),
            Reason::ProofKeyMismatch,
        )
    }

    pub(crate) fn made_for(&self, method: &str, target: &Target) -> Result<(), Reason> {
        demand(self.claims.htm == method, Reason::ProofMethod)?;
        demand(target.is_htu(&self.claims.htu), Reason::ProofTarget)
    }

    pub(crate) fn fresh(&self, now_ms: u64, window_s: u64) -> Result<(), Reason> {
        let iat_ms = self.claims.iat_s.saturating_mul(1000);
        let distance_ms = iat_ms.abs_diff(now_ms);
        demand(
            distance_ms <= window_s.saturating_mul(1000),
            Reason::ProofTime,
        )
    }

    pub(crate) fn has_one_of<S: AsRef<str>>(&self, nonces: &[S]) -> Result<(), Reason> {
        let claimed = self.claims.nonce.as_deref().unwrap_or_default();
        let is_it = |nonce: &S| same_bytes(claimed.as_bytes(), nonce.as_ref().as_bytes());
        // No nonce is never one that is demanded.
        let good = !claimed.is_empty() && nonces.iter().any(is_it);
        demand(good, Reason::ProofNonce)
    }

    pub(crate) fn covers_token(&self, hash: &[u8; 32]) -> Result<(), Reason> {
        let claimed = self.claims.ath.as_deref().and_then(b64::decode32);
        let same = claimed.is_some_and(|claimed| same_bytes(&claimed, hash));
        demand(same, Reason::ProofTokenHash)
    }

    pub(crate) fn verify<V: Verifier>(self, verifier: &V) -> Result<VerifiedProof, Reason> {
        let Compact {
            signed, signature, ..
        } = &self.compact;
        match verifier.verify(self.alg, &self.key, signed, signature) {
            Ok(true) => Ok(VerifiedProof {
                claims: self.claims,
                key: self.key,
                jkt: self.jkt,
            }),
            Ok(false) => Err(Reason::ProofSignature),
            Err(_) => Err(Reason::InternalError),
        }
    }
}

/// A proof that was compared with its request and whose signature is good.
/// Whether it was used before is the ledger's to say, by (`jkt`, `jti`).
#[derive(Clone, Debug)]
pub struct VerifiedProof {
    claims: ProofClaims,
    key: PublicKey,
    jkt: String,
}

impl VerifiedProof {
    /// The thumbprint of its key (RFC 7638).
    #[must_use]
    pub fn jkt(&self) -> &str {
        &self.jkt
    }

    /// Its identity, with [`VerifiedProof::jkt`].
    #[must_use]
    pub fn jti(&self) -> &str {
        &self.claims.jti
    }

    /// What it is known by wherever uses are remembered: SHA-256 of thumbprint, a
    /// zero byte and `jti`. Never the `jti` alone, which anybody can burn under a
    /// key of their own, and never the bytes, which have a twin.
    #[must_use]
    pub fn id(&self) -> [u8; 32] {
        sha256(&[self.jkt.as_bytes(), &[0], self.claims.jti.as_bytes()].concat())
    }

    /// When it was made, in seconds.
    #[must_use]
    pub fn iat_s(&self) -> u64 {
        self.claims.iat_s
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> &PublicKey {
        &self.key
    }
}

/// `header.claims` of a new proof. The caller signs it and appends "." and the
/// base64url signature.
#[must_use]
pub fn signing_input(jwk: &Value, alg: Algorithm, claims: &ProofClaims) -> String {
    let header = json!({"typ": "dpop+jwt", "alg": alg.as_str(), "jwk": jwk});
    let mut payload = json!({
        "htm": claims.htm,
        "htu": claims.htu,
        "iat": claims.iat_s,
        "jti": claims.jti,
    });
    if let Value::Object(payload) = &mut payload {
        for (name, value) in [("ath", &claims.ath), ("nonce", &claims.nonce)] {
            if let Some(value) = value {
                payload.insert(name.to_owned(), json!(value));
            }
        }
    }
    jws::signing_input(&header, &payload)
}

fn read_claims(claims: &Map<String, Value>) -> Result<ProofClaims, Malformed> {
    let owned = |value: &Value| value.as_str().map(str::to_owned);
    Ok(ProofClaims {
        htm: jws::text(claims, "htm").ok_or(Malformed)?,
        htu: jws::text(claims, "htu").ok_or(Malformed)?,
        iat_s: claims.get("iat").and_then(json::integer).ok_or(Malformed)?,
        jti: jws::identifier(claims, "jti").ok_or(Malformed)?,
        ath: jws::optional(claims, "ath", owned)?,
        nonce: jws::optional(claims, "nonce", owned)?,
    })
}

fn demand(holds: bool, reason: Reason) -> Result<(), Reason> {
    if holds { Ok(()) } else { Err(reason) }
}
