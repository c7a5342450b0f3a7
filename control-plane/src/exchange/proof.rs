//! The DPoP proof of an exchange (RFC 9449, section 5), and the nonce that heals
//! a wrong clock (section 8).

use super::{Exchange, ExchangeError};
use crate::keys::Native;
use crate::nonces::Told;
use capability::proof::{Expected, UnverifiedProof, VerifiedProof};
use capability::reason::Reason;
use capability::url::Target;
use identity::mtls::Peer;
use identity::oidc::SKEW_MS;
use sha2::{Digest, Sha256};

/// A proof that was checked, and the last second in which it could be shown again.
pub(super) struct Shown {
    /// The proof.
    pub(super) proof: VerifiedProof,
    /// That second.
    pub(super) until_s: u64,
}

impl Exchange {
    /// Checks a proof for the token endpoint, whoever it is from.
    pub(super) fn proof(
        &self,
        proof: &str,
        peer: Option<&Peer>,
        now_ms: u64,
    ) -> Result<Shown, ExchangeError> {
        let at_mtls = peer.and(self.mtls_endpoint.as_ref());
        self.proof_for(proof, at_mtls.unwrap_or(&self.endpoint), None, now_ms)
    }

    /// The same for another place of the issuer's, by the URL that clients know it by; of a
    /// session it has its hash (RFC 9449, section 7).
    pub(super) fn proof_at(
        &self,
        path: &str,
        proof: &str,
        session: Option<&str>,
        peer: Option<&Peer>,
        now_ms: u64,
    ) -> Result<Shown, ExchangeError> {
        let server = &self.core.config.server;
        let at_mtls = peer.and(server.mtls_url.as_deref());
        let url = format!("{}{path}", at_mtls.unwrap_or(&server.issuer));
        let target = Target::location(&url).map_err(|_| ExchangeError::Internal)?;
        let ath: Option<[u8; 32]> = session.map(|it| Sha256::digest(it).into());
        self.proof_for(proof, &target, ath.as_ref(), now_ms)
    }

    fn proof_for(
        &self,
        proof: &str,
        target: &Target,
        ath: Option<&[u8; 32]>,
        now_ms: u64,
    ) -> Result<Shown, ExchangeError> {
        let parsed = UnverifiedProof::parse(proof.as_bytes(), &self.core.config.limits.read)
            .map_err(ExchangeError::Proof)?;
        let (from_s, nonces_from_s) = self.core.proofs_from_s();
        let window_s = self.core.config.token.proof_window_s;
        // A good nonce tells the time better than `iat`, which may be anything then.
        // One that was good once must not be judged by `iat` afterwards: the proof
        // may have been used, and is remembered for as long as its nonce was good.
        let claimed = parsed.claimed_nonce();
        let told = claimed.map_or(Told::Nothing, |nonce| self.nonces.read(nonce, now_ms));
        let made_s = match told {
            Told::Made { made_ms } => Some(made_ms / 1000),
            Told::Nothing => None,
            Told::Stale => return Err(ExchangeError::Nonce),
        };
        let expected = Expected {
            method: "POST",
            target,
            now_ms,
            window_s: made_s.map_or(window_s, |_| u64::MAX),
            ath: ath.copied(),
            jkt: None,
            nonce: None,
        };
        let proof = parsed
            .check(&expected, &Native)
            .map_err(|reason| match reason {
                Reason::ProofTime => ExchangeError::Nonce,
                reason => ExchangeError::Proof(reason),
            })?;
        // One made before the record of used ones began may have been used before it.
        let (since_s, lasts_s, from_s) = match made_s {
            Some(made_s) => (made_s, self.nonces.lifetime_s(), nonces_from_s),
            None => (proof.iat_s(), window_s, from_s),
        };
        // So far ahead no clock is that keeps time; and what is remembered of a restart
        // ends with that.
        let ahead =
            made_s.is_none() && since_s.saturating_mul(1000) > now_ms.saturating_add(SKEW_MS);
        if since_s < from_s || ahead {
            return Err(ExchangeError::Nonce);
        }
        let until_s = since_s.saturating_add(lasts_s);
        Ok(Shown { proof, until_s })
    }

    /// A nonce for the next proof.
    pub fn nonce(&self) -> String {
        self.nonces.fresh(self.core.now())
    }
}
