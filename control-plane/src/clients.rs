//! Clients that are no SPIFFE workloads: `private_key_jwt` (RFC 7523, section 2.2).

use crate::config::Config;
use crate::exchange::ExchangeError;
use crate::fresh::keep_keys_fresh;
use crate::state::Core;
use capability::reason::Reason;
use identity::oidc::{ForeignEvidence, ForeignIssuer, IssuerSettings, claimed_issuer};
use identity::{JwtEvidence, SpiffeId};
use ledger::model::EvidenceOf;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// The longest that an assertion may live, from `iat` to `exp`, in ms.
const ASSERTION_LIFETIME_MAX_MS: u64 = 300_000;
/// Bytes of a `jti`.
const JTI_MAX: usize = 256;
/// `typ` of an assertion beside `JWT` (draft-ietf-oauth-rfc7523bis, section 4).
const TYPES: &[&str] = &["client-authentication+jwt"];

/// Who has authenticated.
pub struct Authenticated {
    /// The agent that it is, and its assertion as evidence.
    pub evidence: JwtEvidence,
    /// What the log has of it.
    pub told: serde_json::Value,
    /// When the assertion was made, in ms.
    pub issued_ms: u64,
    /// SHA-256 over who made it and what it is called, and its end: it counts once.
    pub once: EvidenceOf,
    /// Seconds for which it may go on by refresh tokens.
    pub refresh_s: u64,
}

struct Client {
    keys: ForeignIssuer,
    agent: String,
    refresh_s: u64,
}

/// The clients of the config.
pub struct Clients(Vec<Arc<Client>>);

impl Clients {
    /// Those of the config; no keys are fetched yet.
    ///
    /// # Errors
    /// When a file with authorities is not usable.
    pub fn new(config: &Config) -> Result<Self, String> {
        let all = config.clients.iter().map(|client| {
            let wrong = |what: String| format!("the client `{}`: {what}", client.client_id);
            let authorities_pem = client.authorities.as_ref().map(std::fs::read).transpose();
            let settings = IssuerSettings {
                issuer: client.client_id.clone(),
                // RFC 7523bis: the issuer alone, or another server could show it here.
                audience: config.server.issuer.clone(),
                keys: client.keys.clone(),
                authorities_pem: authorities_pem
                    .map_err(|error| wrong(format!("can't read its ca_file: {error}")))?,
                token_file: None,
                lifetime_max_ms: ASSERTION_LIFETIME_MAX_MS,
                types: TYPES,
                unnamed: true,
            };
            Ok(Arc::new(Client {
                keys: ForeignIssuer::new(settings).map_err(|error| wrong(error.to_string()))?,
                agent: client.agent.clone(),
                refresh_s: client.refresh_s,
            }))
        });
        all.collect::<Result<_, String>>().map(Self)
    }

    /// Verifies an assertion. `client_id` is the request's, where it has one.
    ///
    /// # Errors
    /// When it is nobody's, or proves nothing.
    pub async fn verify(
        &self,
        assertion: &str,
        client_id: Option<&str>,
        now_ms: u64,
    ) -> Result<Authenticated, ExchangeError> {
        let refused = |reason, what: &str| Err(ExchangeError::Client(reason, what.to_owned()));
        let name = claimed_issuer(assertion);
        let mut all = self.0.iter();
        let Some(client) = all.find(|it| Some(it.keys.issuer()) == name.as_deref()) else {
            return refused(
                Reason::TokenIssuer,
                "its `iss` is no client that is known here",
            );
        };
        if client_id.is_some_and(|id| id != client.keys.issuer()) {
            return refused(
                Reason::TokenIssuer,
                "its `iss` is another client than client_id",
            );
        }
        let verified = client.keys.verify(assertion, now_ms).await;
        let verified = verified.map_err(|error| ExchangeError::from(error).of_client())?;
        // RFC 7523, section 3: a client speaks for itself.
        if verified.text("sub") != Some(verified.issuer()) {
            return refused(Reason::TokenMalformed, "its `sub` is not the client");
        }
        let jti = verified.text("jti").unwrap_or_default();
        if jti.is_empty() || jti.len() > JTI_MAX {
            return refused(
                Reason::TokenMalformed,
                "it has no `jti` of at most 256 bytes",
            );
        }
        client.authenticated(&verified, jti)
    }

    /// Keeps each one's keys fresh, and says so where that fails.
    pub async fn keep_fresh(core: Arc<Core>) {
        let all = core.clients.0.iter().map(|client| {
            let (client, core) = (client.clone(), core.clone());
            async move { keep_keys_fresh(&client.keys, "client", &core).await }
        });
        futures::future::join_all(all).await;
    }
}

impl Client {
    fn authenticated(
        &self,
        verified: &ForeignEvidence,
        jti: &str,
    ) -> Result<Authenticated, ExchangeError> {
        let agent = SpiffeId::parse(&self.agent).map_err(|_| ExchangeError::Internal)?;
        // JSON keeps the two apart, whatever is in them.
        let named = serde_json::json!([verified.issuer(), jti]).to_string();
        Ok(Authenticated {
            evidence: JwtEvidence {
                agent,
                expires_ms: verified.expires_ms(),
                evidence_id: verified.evidence_id(),
                claims: verified.claims().clone(),
            },
            told: serde_json::json!({ "client": verified.issuer(), "assertion": jti }),
            issued_ms: verified.issued_ms(),
            once: EvidenceOf {
                id: Sha256::digest(named).into(),
                expires_ms: verified.expires_ms(),
            },
            refresh_s: self.refresh_s,
        })
    }
}
