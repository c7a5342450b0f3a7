//! What callers show of themselves: a certificate, a JWT-SVID, another issuer's token.

use super::form::{Grant, Params};
use super::{Exchange, ExchangeError};
use capability::reason::Reason;
use identity::JwtEvidence;
use identity::mtls::Peer;
use ledger::model::EvidenceOf;

/// What evidence proves.
pub(super) struct Mapped {
    /// Whose it is.
    pub(super) evidence: JwtEvidence,
    /// Who said so, and of whom, for the log, where that was another issuer: never the
    /// token.
    pub(super) told: serde_json::Value,
    /// What of it counts once, where it does: the commit that issues on it uses it up.
    pub(super) once: Option<EvidenceOf>,
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
        once: None,
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
        match grant {
            Grant::Svid => {
                let svid = params.client_assertion()?;
                let mapped = self.svid(svid, now_ms).map_err(ExchangeError::of_client)?;
                // A client that says who it is has to be that (RFC 7521, section 4.2).
                if params
                    .client_id()
                    .is_some_and(|id| id != mapped.evidence.agent.as_str())
                {
                    let what = "its `sub` is another workload than client_id".to_owned();
                    return Err(ExchangeError::Client(Reason::TokenIssuer, what));
                }
                Ok(mapped)
            }
            Grant::Assertion => self.assertion(params, now_ms).await,
            Grant::Exchange | Grant::Certificate => {
                let token = params.subject_token()?;
                if let Some(mapped) = self.core.issuers.verify(token, now_ms).await {
                    return mapped;
                }
                params.check_svid()?;
                self.svid(token, now_ms)
            }
        }
    }

    fn svid(&self, token: &str, now_ms: u64) -> Result<Mapped, ExchangeError> {
        let issuer = &self.core.config.server.issuer;
        Ok(Mapped {
            evidence: self
                .core
                .federation
                .verify_jwt_svid(token, issuer, now_ms)?,
            told: serde_json::Value::Null,
            once: None,
        })
    }

    async fn assertion(&self, params: &Params, now_ms: u64) -> Result<Mapped, ExchangeError> {
        let assertion = params.client_assertion()?;
        let clients = &self.core.clients;
        let proven = clients
            .verify(assertion, params.client_id(), now_ms)
            .await?;
        // An epoch begins without the record of those that were used.
        let began_ms = self.core.ledger.epoch_since().unwrap_or_default();
        if proven.issued_ms < began_ms.max(self.core.assertions_from_ms) {
            let what = "it was made before the server's start, or seconds after it, and may have been used: make a new one";
            return Err(ExchangeError::Client(Reason::TokenSpent, what.to_owned()));
        }
        Ok(Mapped {
            evidence: proven.evidence,
            told: proven.told,
            once: Some(proven.once),
        })
    }
}
