//! RFC 8693: evidence in, one capability out.
//!
//! Registry, then policy, then mint in memory, then the ledger; only what is
//! durable is handed out.

mod cache;
mod error;
mod evidence;
mod form;
mod http;
mod issuers;
mod metadata;
mod nonces;
mod proof;
mod proofs;

pub use error::ExchangeError;
pub use http::{mtls_routes, routes};
pub use issuers::Issuers;
pub use proofs::SeenProofs;

use crate::config::Site;
use crate::keys::{CapabilityClaims, Mint};
use crate::state::{Core, Standing, element, random_id, split_location};
use capability::action::HttpAction;
use capability::proof::VerifiedProof;
use capability::url::Target;
use evidence::Mapped;
use form::{Grant, Params};
use identity::mtls::Peer;
use ledger::model::{
    ActionRecord, Command, EVIDENCE_KEYS, Evidence, PolicyFacts, Refused, TokenRecord,
};
use nonces::Nonces;
use policy::Verdict;
use proof::Shown;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// `subject_token_type` and its kin (RFC 8693, section 3).
pub const TYPE_JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// The same, of tokens by OpenID Connect issuers.
pub const TYPE_ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
/// The type of what is issued.
pub const TYPE_ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// The grant.
pub const GRANT_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// The grant of a workload that shows its X.509-SVID (RFC 6749, section 4.4): the
/// certificate is all that it has to show.
pub const GRANT_CLIENT: &str = "client_credentials";

/// Proofs that are remembered in all.
const PROOFS_MAX: usize = 262_144;

/// Resources that a refusal names; the metadata has them all.
const SITES_TOLD: usize = 4;

/// The token endpoint's own state.
pub struct Exchange {
    core: Arc<Core>,
    proofs: SeenProofs,
    nonces: Nonces,
    /// `htu` of proofs: the token endpoint as clients know it.
    endpoint: Target,
    /// The same for clients that show an X.509-SVID.
    mtls_endpoint: Option<Target>,
}

/// A capability and what the reply says of it.
pub struct Issued {
    /// The token.
    pub access_token: String,
    /// Seconds that it lives.
    pub expires_in: u64,
    /// The one element, echoed (RFC 9396, section 7).
    pub element: serde_json::Value,
    /// Whether it came for a subject token (RFC 8693), whose answer says its type.
    pub exchanged: bool,
}

/// Who asks, as the evidence says, and what this exchange is called.
#[derive(Clone, Copy)]
struct Caller<'a> {
    agent: &'a str,
    id: &'a str,
    /// The certificate that the token is bound to (RFC 8705, section 3).
    x5t: Option<&'a str>,
}

impl Exchange {
    /// # Errors
    /// When the issuer's URL makes no token endpoint URL, or the key of nonces is
    /// not usable.
    pub fn new(core: Arc<Core>) -> Result<Self, String> {
        let server = &core.config.server;
        let target = |base: &str, key: &str| {
            let url = format!("{base}/oauth2/token");
            Target::location(&url).map_err(|_| format!("`{url}` is not a usable URL; check {key}"))
        };
        let endpoint = target(&server.issuer, "server.issuer")?;
        let mtls_url = server.mtls_url.as_deref();
        let mtls_endpoint = mtls_url
            .map(|url| target(url, "server.mtls_url"))
            .transpose()?;
        let proofs = SeenProofs::new(PROOFS_MAX, core.config.limits.proofs_per_agent);
        let keys = server.data_dir.join("keys");
        let window_s = core.config.token.proof_window_s;
        let nonces =
            Nonces::open(&keys, &server.issuer, window_s).map_err(|error| error.to_string())?;
        Ok(Self {
            core,
            proofs,
            nonces,
            endpoint,
            mtls_endpoint,
        })
    }

    /// Answers one exchange, which is called `id` in a refusal and in its entry.
    /// `peer` is the caller by its client certificate, where it has shown one: then
    /// the token is bound to that, and the evidence has to be the same workload's.
    /// Everything is checked before anything is kept.
    ///
    /// # Errors
    /// An [`ExchangeError`], which has its OAuth form in one place.
    pub async fn exchange(
        &self,
        params: &Params,
        proof: &str,
        id: &str,
        peer: Option<&Peer>,
    ) -> Result<Issued, ExchangeError> {
        let grant = params.check_grant(peer)?;
        let now_ms = self.core.now();
        let proof_text = proof;
        let Shown { proof, until_s } = self.proof(proof, peer, now_ms)?;
        let mapped = self.evidence(grant, params, peer, now_ms).await?;
        let evidence = &mapped.evidence;
        let agent = evidence.agent.to_string();
        let x5t = peer.and_then(|peer| peer.certificate);
        let x5t = x5t.map(|digest| capability::b64::encode(&digest));
        let caller = Caller {
            agent: &agent,
            id,
            x5t: x5t.as_deref(),
        };

        // From here the caller is known, and a refusal is an entry.
        if peer.is_some_and(|peer| peer.id != evidence.agent) {
            return Err(self
                .refused(caller, None, None, ExchangeError::Certificate)
                .await);
        }
        let action = match params
            .one_element(&self.core.config.limits.read)
            .and_then(|element| self.action(&element, params))
        {
            Ok(action) => action,
            Err(error) => return Err(self.refused(caller, None, None, error).await),
        };
        if let Some(error) = self.standing(&agent).await {
            return Err(self.refused(caller, Some(action), None, error).await);
        }
        let (policy, verdict) = self.ask(&agent, &action, now_ms);
        if let Some(error) = verdict {
            return Err(self
                .refused(caller, Some(action), Some(policy), error)
                .await);
        }
        // Last before the mint: what was refused above has used up no proof.
        if let Err(error) = self.proofs.take(&agent, &proof, until_s, now_ms) {
            return Err(self
                .refused(caller, Some(action), Some(policy), error)
                .await);
        }
        let issued = self.issue(caller, mapped, (&proof, proof_text), action, policy, now_ms);
        issued.await.map(|issued| Issued {
            exchanged: grant == Grant::Exchange,
            ..issued
        })
    }

    fn action(
        &self,
        element: &serde_json::Value,
        params: &Params,
    ) -> Result<ActionRecord, ExchangeError> {
        let action = HttpAction::from_details(element)
            .map_err(|error| ExchangeError::Details(error.to_string()))?;
        let site = self.site(&action)?;
        let content_digest = action.content_digest();
        let authority = site.authority();
        let path = action.path_and_query();
        let reads = self.core.config.edge.body_of(authority, &path).is_some();
        if content_digest.is_some() && !reads {
            return Err(ExchangeError::Details(
                "content_digest: bodies of this location are not read (edge.route.body), so no token can hold the request to one: leave it out".into(),
            ));
        }
        params.check_target(&site.resource)?;
        Ok(ActionRecord {
            kind: "http_request".into(),
            method: action.method().to_owned(),
            location: action.location().to_owned(),
            content_digest: content_digest.map(|digest| capability::b64::encode(&digest)),
        })
    }

    /// The site that an action is at: its location is the site's resource, or
    /// under it.
    fn site(&self, action: &HttpAction) -> Result<Site, ExchangeError> {
        let edge = &self.core.config.edge;
        let under = |site: &Site| {
            let resource = Target::location(&site.resource);
            resource.is_ok_and(|resource| action.target().is_within(&resource))
        };
        let found = edge.site_of(action.origin()).filter(under);
        found.ok_or_else(|| {
            let known = edge.all_sites().take(SITES_TOLD).map(|site| site.resource);
            let known = known.collect::<Vec<_>>().join(" or ");
            ExchangeError::Details(format!("`locations` must be a URL under {known}"))
        })
    }

    /// Records agents that nobody has registered, so that somebody can.
    async fn standing(&self, agent: &str) -> Option<ExchangeError> {
        match self.core.standing(agent) {
            Standing::Active => None,
            Standing::Inactive => Some(ExchangeError::Inactive),
            Standing::Unknown => {
                match self
                    .core
                    .ledger
                    .commit(Command::Discover {
                        agent: agent.to_owned(),
                    })
                    .await
                {
                    // Known already, or too many to remember: refused all the same.
                    Ok(_) | Err(Refused::Limit(_) | Refused::AttemptKnown) => {
                        Some(ExchangeError::Unregistered)
                    }
                    Err(refused) => Some(ExchangeError::not_recorded(&refused)),
                }
            }
        }
    }

    fn ask(
        &self,
        agent: &str,
        action: &ActionRecord,
        now_ms: u64,
    ) -> (PolicyFacts, Option<ExchangeError>) {
        let (origin, path, query) = split_location(&action.location);
        let verdict = self.core.policies.may_issue(&policy::Question {
            agent,
            user: None,
            method: &action.method,
            location: &action.location,
            origin,
            path,
            query,
            time_s: now_ms / 1000,
            // There is no body yet.
            body: None,
        });
        let version = self.core.policies.version().to_owned();
        match verdict {
            Verdict::Allow(determining) => (
                PolicyFacts {
                    version,
                    determining,
                },
                None,
            ),
            Verdict::Deny(determining) => (
                PolicyFacts {
                    version,
                    determining,
                },
                Some(ExchangeError::Denied),
            ),
            // A hold is for the edge; `may_issue` has left those rules aside.
            Verdict::Hold(_) => (
                PolicyFacts {
                    version,
                    determining: Vec::new(),
                },
                Some(ExchangeError::Denied),
            ),
            Verdict::Error(problems) => {
                tracing::error!(
                    agent,
                    ?problems,
                    "policy could not be evaluated; the exchange is refused"
                );
                (
                    PolicyFacts {
                        version,
                        determining: Vec::new(),
                    },
                    Some(ExchangeError::PolicyError),
                )
            }
        }
    }

    async fn issue(
        &self,
        caller: Caller<'_>,
        mapped: Mapped,
        (proof, proof_text): (&VerifiedProof, &str),
        action: ActionRecord,
        policy: PolicyFacts,
        now_ms: u64,
    ) -> Result<Issued, ExchangeError> {
        let config = &self.core.config;
        let Mapped {
            evidence,
            told,
            once,
        } = mapped;
        let agent = caller.agent.to_owned();
        let issued_s = now_ms / 1000;
        let expires_s = issued_s.saturating_add(config.token.lifetime_s);
        let (jti, txn) = (random_id::<16>(""), random_id::<16>(""));
        let element = element(&action);
        let mut cnf = serde_json::json!({ "jkt": proof.jkt() });
        if let (Some(x5t), Some(cnf)) = (caller.x5t, cnf.as_object_mut()) {
            cnf.insert("x5t#S256".into(), x5t.into());
        }
        let key = self.core.keys.active(issued_s).map_err(|error| {
            tracing::error!(%error, "no token can be signed");
            ExchangeError::Unavailable
        })?;
        let access_token = key.mint(Mint {
            issuer: config.server.issuer.clone(),
            audience: self.audience(&action)?,
            subject: agent.clone(),
            id: jti.clone(),
            issued_s,
            expires_s,
            claims: CapabilityClaims {
                client_id: agent.clone(),
                txn: txn.clone(),
                cnf,
                authorization_details: [element.clone()],
            },
        });
        let access_token = match access_token.await {
            Ok(token) => token,
            Err(error) => {
                // Nothing came of it.
                self.proofs.give_back(proof);
                if error.is_of_token() {
                    // A warning says it once for all of them.
                    tracing::debug!(%error, "minting failed");
                    let error = ExchangeError::Unavailable;
                    return Err(self
                        .refused(caller, Some(action), Some(policy), error)
                        .await);
                }
                tracing::error!(%error, "minting failed");
                return Err(ExchangeError::Internal);
            }
        };
        // The edge would refuse it, so it is not issued.
        if access_token.len() > config.limits.read.token {
            let error = ExchangeError::Details("the location is too long for a token".into());
            return Err(self
                .refused(caller, Some(action), Some(policy), error)
                .await);
        }
        let token = TokenRecord {
            token_hash: Sha256::digest(access_token.as_bytes()).into(),
            jti,
            agent: agent.clone(),
            user: None,
            chain: Vec::new(),
            jkt: proof.jkt().to_owned(),
            x5t: caller.x5t.map(str::to_owned),
            action: action.clone(),
            txn,
            issued_ms: 0,
            expires_ms: expires_s.saturating_mul(1000),
        };
        let mut attachments = vec![Evidence::new("proof", proof_text.as_bytes())];
        if !told.is_null() {
            attachments.push(Evidence::new("identity", told.to_string().as_bytes()));
        }
        let committed = self.core.ledger.commit(Command::Issue {
            token,
            evidence_id: evidence.evidence_id,
            evidence_expires_ms: evidence.expires_ms,
            also: Vec::new(),
            once: once.into_iter().collect(),
            policy: policy.clone(),
            attachments,
        });
        let committed = committed.await;
        if committed
            .as_ref()
            .is_err_and(|error| *error != Refused::Unknown)
        {
            self.proofs.give_back(proof);
        }
        let error = match committed {
            // Durable: only now does the token leave.
            Ok(_) => {
                return Ok(Issued {
                    access_token,
                    expires_in: config.token.lifetime_s,
                    element,
                    exchanged: true,
                });
            }
            Err(Refused::Limit(EVIDENCE_KEYS)) => {
                tracing::error!(
                    agent,
                    "ALARM: a subject token is shown under ever more DPoP keys: somebody else may have it"
                );
                ExchangeError::EvidenceKeys
            }
            Err(Refused::Limit(what)) => {
                tracing::warn!(agent, what, "the exchange is refused at a limit");
                ExchangeError::Limit(what)
            }
            Err(Refused::TooLarge) => ExchangeError::Details("the location is too long".into()),
            Err(Refused::Shown) => ExchangeError::AssertionReplayed,
            Err(Refused::Stopped(_)) => ExchangeError::Stopped,
            Err(Refused::Suspended | Refused::Inactive) => ExchangeError::Inactive,
            Err(error) => {
                tracing::error!(%error, "the ledger did not take an issue entry");
                return Err(ExchangeError::not_recorded(&error));
            }
        };
        Err(self
            .refused(caller, Some(action), Some(policy), error)
            .await)
    }

    /// The `aud` of a token for this action: its site's resource, and no other's.
    fn audience(&self, action: &ActionRecord) -> Result<String, ExchangeError> {
        let origin = split_location(&action.location).0;
        let site = self.core.config.edge.site_of(origin);
        site.map(|site| site.resource)
            .ok_or(ExchangeError::Internal)
    }

    /// Makes the refusal durable; one that can't be is an outage.
    async fn refused(
        &self,
        caller: Caller<'_>,
        action: Option<ActionRecord>,
        policy: Option<PolicyFacts>,
        error: ExchangeError,
    ) -> ExchangeError {
        if !self
            .core
            .refusals
            .may_have_line(caller.agent, error.reason(), self.core.now())
        {
            return error;
        }
        let command = Command::ExchangeRefused {
            agent: caller.agent.to_owned(),
            reason: error.reason().as_str().to_owned(),
            error: error.code().to_owned(),
            request_id: caller.id.to_owned(),
            action,
            policy,
        };
        match self.core.ledger.commit(command).await {
            Ok(_) => error,
            Err(refused) => {
                tracing::error!(%refused, "a refusal could not be recorded");
                ExchangeError::not_recorded(&refused)
            }
        }
    }

    /// Counts a refusal of somebody unknown.
    pub fn count(&self, error: &ExchangeError) {
        self.core.refusals.count(error.reason());
    }
}
