//! What callers show of themselves: a certificate, a JWT-SVID, another issuer's token.

use super::form::{Grant, Params};
use super::{Exchange, ExchangeError};
use identity::JwtEvidence;
use identity::mtls::Peer;

/// What evidence proves.
pub(super) struct Mapped {
    /// Whose it is.
    pub(super) evidence: JwtEvidence,
    /// Who said so, and of whom, for the log, where that was another issuer: never the
    /// token.
    pub(super) told: serde_json::Value,
}

/// A certificate that was shown, as evidence: its key is proven by the connection.
fn certified(peer: &Peer) -> Mapped {
    Mapped {
        evidence: JwtEvidence {
            agent: peer.id.clone(),
            expires_ms: peer.until_ms,
            evidence_id: peer.evidence_id,
        },
        told: serde_json::Value::Null,
    }
}

impl Exchange {
    /// Who the evidence says it is: the certificate's or the JWT-SVID's subject, or the
    /// agent that another issuer's claims are mapped to.
    pub(super) async fn evidence(
        &self,
        grant: Grant,
        params: &Params,
        peer: Option<&Peer>,
        now_ms: u64,
    ) -> Result<Mapped, ExchangeError> {
        // The connection may have outlived it, whatever else is shown.
        if peer.is_some_and(|peer| peer.certificate.is_some() && now_ms >= peer.until_ms) {
            return Err(ExchangeError::CertificateExpired);
        }
        if peer.is_some_and(|peer| !self.core.federation.still_proves(peer, now_ms)) {
            return Err(ExchangeError::CertificateUnproven);
        }
        if let (Grant::Certificate, Some(peer)) = (grant, peer) {
            return Ok(certified(peer));
        }
        let token = params.subject_token()?;
        if let Some(mapped) = self.core.issuers.verify(token, now_ms).await {
            return mapped;
        }
        params.check_svid()?;
        let issuer = &self.core.config.server.issuer;
        Ok(Mapped {
            evidence: self
                .core
                .federation
                .verify_jwt_svid(token, issuer, now_ms)?,
            told: serde_json::Value::Null,
        })
    }
}
