//! Evidence by other issuers: whose token it is, as the config maps claims to agents.

use super::ExchangeError;
use super::evidence::Mapped;
use crate::config::{Config, Issuer};
use crate::fresh::keep_keys_fresh;
use crate::state::Core;
use capability::reason::Reason;
use identity::oidc::{
    ForeignError, ForeignEvidence, ForeignIssuer, IssuerSettings, claimed_issuer,
};
use identity::{JwtEvidence, SpiffeId};
use std::sync::Arc;

/// One that is believed, and what it is believed of.
pub(super) struct Known {
    pub(super) issuer: ForeignIssuer,
    pub(super) config: Issuer,
}

/// The issuers that are believed beside the trust domain.
#[derive(Default)]
pub struct Issuers(Vec<Arc<Known>>);

impl Issuers {
    /// Those of the config; nothing is fetched yet.
    ///
    /// # Errors
    /// When a file with authorities is not usable.
    pub fn new(config: &Config) -> Result<Self, String> {
        let issuers = config.identity.issuers.iter().map(|issuer| {
            let wrong = |what: String| format!("the issuer `{}`: {what}", issuer.issuer);
            let authorities_pem = issuer.authorities.as_ref().map(std::fs::read).transpose();
            let settings = IssuerSettings {
                issuer: issuer.issuer.clone(),
                audience: issuer.audience.clone(),
                keys: issuer.keys.clone(),
                authorities_pem: authorities_pem
                    .map_err(|error| wrong(format!("can't read its ca_file: {error}")))?,
                token_file: issuer.token_file.clone(),
                lifetime_max_ms: issuer.lifetime_max_s.saturating_mul(1000),
                types: &[],
                unnamed: false,
            };
            let known = Known {
                issuer: ForeignIssuer::new(settings).map_err(|error| wrong(error.to_string()))?,
                config: issuer.clone(),
            };
            Ok(Arc::new(known))
        });
        issuers.collect::<Result<_, String>>().map(Self)
    }

    /// The one that a token says is its own; nothing of that is believed.
    pub(super) fn named_in(&self, token: &str) -> Option<&Known> {
        if self.0.is_empty() {
            return None;
        }
        let name = claimed_issuer(token)?;
        let mut all = self.0.iter();
        all.find(|known| known.config.issuer == name)
            .map(|known| &**known)
    }

    /// Verifies a token that says it is one of these issuers'; `None`: it does not.
    pub(super) async fn verify(
        &self,
        token: &str,
        now_ms: u64,
    ) -> Option<Result<Mapped, ExchangeError>> {
        let known = self.named_in(token)?;
        let verified = known.issuer.verify(token, now_ms).await;
        Some(
            verified
                .map_err(ExchangeError::from)
                .and_then(|it| known.map(&it)),
        )
    }

    /// Whether an issuer knows an agent by this name: the one that it names, or any.
    pub(super) fn knows(&self, issuer: Option<&str>, name: &str, agent: &str) -> bool {
        let mut all = self.0.iter();
        all.any(|known| {
            let is_it = issuer.is_none_or(|it| it == known.config.issuer);
            let users = known.config.users.as_ref().filter(|_| is_it);
            users.is_some_and(|users| users.is_client(name, agent))
        })
    }

    /// Keeps each one's keys fresh, and says so where that fails.
    pub async fn keep_fresh(core: Arc<Core>) {
        let all = core.issuers.0.iter().map(|known| {
            let (known, core) = (known.clone(), core.clone());
            async move { keep_keys_fresh(&known.issuer, "issuer", &core).await }
        });
        futures::future::join_all(all).await;
    }
}

impl Known {
    /// The one agent whose claims these are.
    fn map(&self, verified: &ForeignEvidence) -> Result<Mapped, ExchangeError> {
        let holds = |claims: &std::collections::BTreeMap<String, String>| {
            let mut claims = claims.iter();
            claims.all(|(name, value)| verified.text(name) == Some(value))
        };
        let mut fitting = self.config.agents.iter().filter(|it| holds(&it.claims));
        let nobodys = |what: &str| Err(ExchangeError::Evidence(Reason::AgentInactive, what.into()));
        let Some(mapping) = fitting.next() else {
            return nobodys("no agent is mapped to its claims; its operator can map one");
        };
        if fitting.any(|other| other.spiffe_id != mapping.spiffe_id) {
            return nobodys(
                "several agents are mapped to its claims; its operator has to tell them apart",
            );
        }
        let agent = SpiffeId::parse(&mapping.spiffe_id).map_err(|_| ExchangeError::Internal)?;
        Ok(Mapped {
            evidence: JwtEvidence {
                agent,
                expires_ms: verified.expires_ms(),
                evidence_id: verified.evidence_id(),
                claims: verified.claims().clone(),
            },
            told: serde_json::json!({
                "issuer": verified.issuer(),
                "subject": verified.text("sub"),
                "claims": mapping.claims,
            }),
            once: None,
            refresh_s: 0,
        })
    }
}

impl From<ForeignError> for ExchangeError {
    fn from(error: ForeignError) -> Self {
        let reason = match &error {
            ForeignError::TooLarge => Reason::TooLarge,
            ForeignError::Algorithm => Reason::TokenAlgorithm,
            ForeignError::Issuer => Reason::TokenIssuer,
            ForeignError::Audience { .. } => Reason::TokenAudience,
            ForeignError::Expired => Reason::TokenExpired,
            ForeignError::NotYetValid => Reason::TokenNotYetValid,
            ForeignError::Lifetime { .. } => Reason::TokenLifetime,
            ForeignError::KeyUnknown => Reason::TokenKeyUnknown,
            ForeignError::Signature => Reason::TokenSignature,
            ForeignError::Malformed(_) => Reason::TokenMalformed,
            // Nobody can be judged without keys: an outage, not the caller's fault.
            ForeignError::Unavailable(_) => return Self::Unavailable,
        };
        Self::Evidence(reason, error.to_string())
    }
}
