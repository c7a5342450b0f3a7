//! What callers show: of themselves a certificate, a JWT-SVID, another issuer's token or an
//! assertion; of whom they act for a user's token or an ID-JAG.

use super::claims::{self, ProvenKeys};
use super::form::{Asked, Client, Grant, Params};
use super::grants::{is_delegation, is_delegation_text, is_session};
use super::users::{Acting, ForUser};
use super::{Exchange, ExchangeError, TYPE_ACCESS_TOKEN, TYPE_DELEGATION, TYPE_ID_TOKEN, TYPE_JWT};
use capability::reason::Reason;
use identity::JwtEvidence;
use identity::mtls::Peer;
use identity::oidc::is_foreign;
use ledger::model::{EvidenceOf, TokenRecord, User};
use std::sync::Arc;

/// What evidence proves of an agent.
pub(super) struct Mapped {
    /// Whose it is.
    pub(super) evidence: JwtEvidence,
    /// Who said so, and of whom, for the log, where that was another issuer: never the
    /// token.
    pub(super) told: serde_json::Value,
    /// What of it counts once, where it does: the commit that issues on it uses it up.
    pub(super) once: Option<EvidenceOf>,
    /// Seconds for which it may go on by refresh tokens.
    pub(super) refresh_s: u64,
}

/// Who acts, and for whom.
pub(super) struct Proven {
    /// The agent.
    pub(super) agent: Mapped,
    /// The user whom it acts for, by what was shown of them.
    pub(super) user: Option<ForUser>,
    /// The session, the delegation or the refresh token that was shown.
    pub(super) under: Option<Arc<TokenRecord>>,
}

impl Proven {
    pub(super) fn alone(agent: Mapped) -> Self {
        Self {
            agent,
            user: None,
            under: None,
        }
    }

    /// The user whom the agent acts for, whoever said so.
    pub(super) fn user(&self) -> Option<&User> {
        let shown = self.user.as_ref().map(|it| &it.user);
        shown.or_else(|| self.under.as_ref()?.user.as_ref())
    }

    /// The chain that it acts in, the agent outermost (RFC 8693, section 4.1).
    pub(super) fn chain(&self) -> Vec<String> {
        let agent = self.agent.evidence.agent.as_str();
        match &self.under {
            Some(grant) if is_delegation(grant) => grant.delegated_chain(agent),
            Some(grant) => grant.chain.clone(),
            None => self.user.iter().map(|_| agent.to_owned()).collect(),
        }
    }
}

/// A certificate that was shown, as evidence: its key is proven by the connection.
fn certified(peer: &Peer) -> Mapped {
    Mapped {
        evidence: JwtEvidence {
            agent: peer.id.clone(),
            expires_ms: peer.until_ms,
            evidence_id: peer.evidence_id,
            claims: serde_json::Map::new(),
        },
        told: serde_json::Value::Null,
        once: None,
        refresh_s: 0,
    }
}

impl Exchange {
    /// Who the evidence says it is, and whom it acts for. `jkt` is the key of the proof,
    /// and `x5t` the certificate: what a user's token may be bound to.
    pub(super) async fn proven(
        &self,
        asked: Asked,
        params: &Params,
        peer: Option<&Peer>,
        keys: ProvenKeys<'_>,
        now_ms: u64,
    ) -> Result<Proven, ExchangeError> {
        let proven = self.shown(asked, params, peer, keys, now_ms).await?;
        self.check_own(&proven.agent, params, keys)?;
        Ok(proven)
    }

    /// What the agent's own evidence says of who may use it, and what it is called.
    fn check_own(
        &self,
        agent: &Mapped,
        params: &Params,
        keys: ProvenKeys<'_>,
    ) -> Result<(), ExchangeError> {
        let JwtEvidence { agent, claims, .. } = &agent.evidence;
        let (id, issuers) = (agent.as_str(), &self.core.issuers);
        let issuer = claims.get("iss").and_then(serde_json::Value::as_str);
        let named = |name: &str| {
            name == id || issuer.is_some_and(|issuer| issuers.knows(Some(issuer), name, id))
        };
        claims::own(claims, &named, keys).map_err(|error| {
            if params.actor_token().is_some() {
                error.of_actor()
            } else if params.asserts() {
                error.of_client()
            } else {
                error
            }
        })?;
        let known = |client: &str| {
            client == id || self.names_of(id).contains(&client) || issuers.knows(None, client, id)
        };
        if params.client_id().is_some_and(|client| !known(client)) {
            return Err(ExchangeError::Request(
                "`client_id` is another than the agent whose evidence is shown: it is its SPIFFE ID, or a client that it is here, or is left out".into(),
            ));
        }
        Ok(())
    }

    async fn shown(
        &self,
        asked: Asked,
        params: &Params,
        peer: Option<&Peer>,
        (jkt, x5t): ProvenKeys<'_>,
        now_ms: u64,
    ) -> Result<Proven, ExchangeError> {
        self.check_peer(peer, now_ms)?;
        let issuers = &self.core.issuers;
        let shown = match asked.grant {
            Grant::Client => {
                let agent = self.client(asked.client, params, peer, now_ms).await?;
                return Ok(Proven::alone(agent));
            }
            Grant::Refresh => {
                // A key that was withdrawn ends what was got by it (RFC 6749, section 6).
                let client = self.client(asked.client, params, peer, now_ms).await?;
                // What is proven of the agent is the refresh token's; this is only shown.
                self.check_own(&client, params, (jkt, x5t))?;
                let refresh = params.refresh_token()?;
                return self.refreshed(refresh, client, (jkt, x5t)).await;
            }
            Grant::Deferred => {
                return self.awaited(asked, params, peer, (jkt, x5t), now_ms).await;
            }
            Grant::Bearer => params.assertion()?,
            Grant::Exchange => params.subject_token()?,
        };
        if asked.grant == Grant::Exchange && is_session(shown) {
            params.check_shown("a session", &[TYPE_ACCESS_TOKEN])?;
            return self.in_session(shown, params, (jkt, x5t)).await;
        }
        let actor = params.actor_token();
        let by_itself = asked.grant == Grant::Exchange
            && actor.is_none()
            && matches!(asked.client, Client::None | Client::Certificate)
            && !is_delegation_text(shown)
            && !issuers.is_a_users(shown);
        if by_itself {
            let agent = self.agent_of(shown, "subject", params, now_ms).await?;
            return Ok(Proven::alone(agent));
        }
        let agent = match actor {
            Some(actor) => {
                let agent = self.agent_of(actor, "actor", params, now_ms).await;
                agent.map_err(ExchangeError::of_actor)?
            }
            None => self.client(asked.client, params, peer, now_ms).await?,
        };
        if asked.grant == Grant::Exchange && is_delegation_text(shown) {
            params.check_shown("a delegation", &[TYPE_DELEGATION, TYPE_JWT])?;
            return self.delegated(shown, agent).await;
        }
        let id = agent.evidence.agent.as_str();
        let acting = Acting {
            agent: id,
            names: self.names_of(id),
            jkt,
            x5t,
        };
        let user = match asked.grant {
            Grant::Bearer => {
                let granted = issuers.granted(shown, &self.core, &acting, now_ms).await;
                granted.map_err(ExchangeError::of_grant)?
            }
            _ => {
                let types = [TYPE_ID_TOKEN, TYPE_ACCESS_TOKEN, TYPE_JWT];
                params.check_shown("a user's", &types)?;
                let id_token = params.is_id_token();
                issuers.user(shown, id_token, &acting, now_ms).await?
            }
        };
        Ok(Proven {
            agent,
            user: Some(user),
            under: None,
        })
    }

    /// A connection may have outlived its certificate, whatever else is shown.
    pub(super) fn check_peer(&self, peer: Option<&Peer>, now_ms: u64) -> Result<(), ExchangeError> {
        if peer.is_some_and(|peer| peer.certificate.is_some() && now_ms >= peer.until_ms) {
            return Err(ExchangeError::CertificateExpired);
        }
        if peer.is_some_and(|peer| !self.core.federation.still_proves(peer, now_ms)) {
            return Err(ExchangeError::CertificateUnproven);
        }
        let long = peer.and_then(|peer| self.core.federation.lasts_too_long(peer, now_ms));
        if let Some(most_s) = long {
            return Err(ExchangeError::CertificateLifetime(most_s));
        }
        Ok(())
    }

    /// Whom a certificate alone says it is.
    pub(super) fn by_certificate(peer: &Peer) -> Result<Proven, ExchangeError> {
        if peer.certificate.is_none() {
            return Err(ExchangeError::Proof(Reason::MissingCredentials));
        }
        Ok(Proven::alone(certified(peer)))
    }

    /// What clients an agent is, here.
    fn names_of(&self, agent: &str) -> Vec<&str> {
        let own = self.core.config.clients.iter();
        let own = own.filter(|it| it.agent == agent);
        own.map(|it| it.client_id.as_str()).collect()
    }

    /// Whom a client authenticates as.
    pub(super) async fn client(
        &self,
        client: Client,
        params: &Params,
        peer: Option<&Peer>,
        now_ms: u64,
    ) -> Result<Mapped, ExchangeError> {
        match (client, peer) {
            (Client::Certificate, Some(peer)) => Ok(certified(peer)),
            (Client::Certificate | Client::None, _) => Err(ExchangeError::Request(
                "the subject_token is a user's, or a delegation: an actor_token, a client_assertion or a client certificate has to say which agent acts".into(),
            )),
            (Client::Svid, _) => {
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
            (Client::Assertion, _) => self.assertion(params, now_ms).await,
        }
    }

    /// Whose a token is: a JWT-SVID, or another issuer's. `role` is `subject` or `actor`.
    pub(super) async fn agent_of(
        &self,
        token: &str,
        role: &str,
        params: &Params,
        now_ms: u64,
    ) -> Result<Mapped, ExchangeError> {
        if role == "subject" {
            // An access token is no statement of who an agent is.
            params.check_shown("an agent's evidence", &[TYPE_JWT, TYPE_ID_TOKEN])?;
        }
        if let Some(mapped) = self.core.issuers.verify(token, now_ms).await {
            return mapped;
        }
        params.check_svid(role)?;
        // One of an issuer that nobody has configured is no bad SVID.
        self.svid(token, now_ms).map_err(|error| {
            let what =
                "its `iss` is no issuer that is believed here, and its `sub` is no SPIFFE ID";
            match is_foreign(token) {
                true => ExchangeError::Evidence(Reason::TokenIssuer, what.to_owned()),
                false => error,
            }
        })
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
            refresh_s: 0,
        })
    }

    async fn assertion(&self, params: &Params, now_ms: u64) -> Result<Mapped, ExchangeError> {
        let assertion = params.client_assertion()?;
        let clients = &self.core.clients;
        let proven = clients
            .verify(assertion, params.client_id(), now_ms)
            .await?;
        if proven.issued_ms < self.core.once_from_ms() {
            let what = "it was made before the server's start, or seconds after it, and may have been used: make a new one";
            return Err(ExchangeError::Client(Reason::TokenSpent, what.to_owned()));
        }
        Ok(Mapped {
            evidence: proven.evidence,
            told: proven.told,
            once: Some(proven.once),
            refresh_s: proven.refresh_s,
        })
    }
}
