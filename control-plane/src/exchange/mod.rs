//! RFC 8693: evidence in, one capability out.
//!
//! Registry, then policy, then mint in memory, then the ledger; only what is
//! durable is handed out.

mod authzen;
mod batch;
mod cache;
mod claims;
mod deferral;
mod delegation;
mod described;
mod error;
mod evidence;
mod form;
mod giving;
mod grants;
mod http;
mod issuers;
mod judge;
mod metadata;
mod mint;
mod naming;
mod presented;
mod proof;
mod proofs;
mod rates;
mod refreshing;
mod terms;
mod tokens;
mod users;

pub use error::ExchangeError;
pub use grants::Family;
pub use http::{mtls_routes, openapi, routes};
pub use issuers::Issuers;
pub use proofs::SeenProofs;

use crate::nonces::Nonces;
use crate::state::Core;
use capability::url::Target;
use deferral::Polls;
use evidence::Proven;
use form::{Grant, Params, Wanted};
use identity::mtls::Peer;
use ledger::model::{ActionRecord, Command, PolicyFacts, ProofUse, User};
use proof::Shown;
use rates::Rates;
use std::sync::Arc;

/// `subject_token_type` and its kin (RFC 8693, section 3).
pub const TYPE_JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// The same, of ID tokens by OpenID Connect issuers.
pub const TYPE_ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
/// The type of what is issued, and of users' access tokens.
pub const TYPE_ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// The type of what one agent lets another do, which no resource takes.
pub const TYPE_DELEGATION: &str = "urn:writ:params:oauth:token-type:delegation";
/// The grant.
pub const GRANT_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// The grant for an ID-JAG (RFC 7523, section 2.1).
pub const GRANT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// The grant for a refresh token (RFC 6749, section 6).
pub const GRANT_REFRESH: &str = "refresh_token";

/// The grant of a workload that shows its X.509-SVID (RFC 6749, section 4.4): the
/// certificate is all that it has to show.
pub const GRANT_CLIENT: &str = "client_credentials";

/// Proofs that are remembered in all.
const PROOFS_MAX: usize = 262_144;

/// The token endpoint's own state.
pub struct Exchange {
    core: Arc<Core>,
    proofs: SeenProofs,
    nonces: Nonces,
    rates: Rates,
    polls: Polls,
    /// `htu` of proofs: the token endpoint as clients know it.
    endpoint: Target,
    /// The same for clients that show an X.509-SVID.
    mtls_endpoint: Option<Target>,
}

/// What is handed out, and what the reply says of it.
pub struct Issued {
    /// The token.
    pub access_token: String,
    /// Seconds that it lives.
    pub expires_in: u64,
    /// The one element, echoed (RFC 9396, section 7); a session has none.
    pub element: Option<serde_json::Value>,
    /// Its type, where it came for a subject token (RFC 8693), whose answer says that.
    pub issued_type: Option<&'static str>,
    /// How it is shown: `DPoP`, or not at all (RFC 8693, section 2.2.1).
    pub token_type: &'static str,
    /// What another one is got with.
    pub refresh_token: Option<String>,
}

/// Who asks, as the evidence says, and what this exchange is called.
#[derive(Clone, Copy)]
struct Caller<'a> {
    agent: &'a str,
    user: Option<&'a User>,
    /// As [`ledger::model::TokenRecord`] has it.
    chain: &'a [String],
    grant: Grant,
    id: &'a str,
    /// The certificate that the token is bound to (RFC 8705, section 3).
    x5t: Option<&'a str>,
}

/// All that an exchange rests on.
#[derive(Clone, Copy)]
struct Asking<'a> {
    caller: Caller<'a>,
    proven: &'a Proven,
    /// Thumbprint of the proof's key.
    jkt: &'a str,
    /// The proof, for the log.
    proof: &'a str,
    /// That it is used up by this exchange.
    used: &'a ProofUse,
    now_ms: u64,
}

/// Who asks, and for whom, as evidence has proven it.
struct Who {
    agent: String,
    user: Option<User>,
    chain: Vec<String>,
    x5t: Option<String>,
}

impl Who {
    fn of(proven: &Proven, x5t: Option<String>) -> Self {
        Self {
            agent: proven.agent.evidence.agent.to_string(),
            user: proven.user().cloned(),
            chain: proven.chain(),
            x5t,
        }
    }

    fn caller<'a>(&'a self, grant: Grant, id: &'a str) -> Caller<'a> {
        Caller {
            agent: &self.agent,
            user: self.user.as_ref(),
            chain: &self.chain,
            grant,
            id,
            x5t: self.x5t.as_deref(),
        }
    }
}

/// SHA-256 of the certificate that was shown (RFC 8705, section 3.1).
fn x5t_of(peer: Option<&Peer>) -> Option<String> {
    let digest = peer.and_then(|peer| peer.certificate);
    digest.map(|digest| capability::b64::encode(&digest))
}

impl Exchange {
    /// # Errors
    /// When the issuer's URL makes no token endpoint URL, or the key of nonces is
    /// not usable.
    pub fn new(core: Arc<Core>) -> Result<Self, String> {
        let server = &core.config.server;
        let at = |base: &str, path: &str, key: &str| {
            let url = format!("{base}{path}");
            Target::location(&url).map_err(|_| format!("`{url}` is not a usable URL; check {key}"))
        };
        let mtls_url = server.mtls_url.as_deref();
        let path = "/oauth2/token";
        let endpoint = at(&server.issuer, path, "server.issuer")?;
        let mtls_endpoint = mtls_url.map(|url| at(url, path, "server.mtls_url"));
        let mtls_endpoint = mtls_endpoint.transpose()?;
        let proofs = SeenProofs::new(PROOFS_MAX, core.config.limits.proofs_per_agent);
        let keys = server.data_dir.join("keys");
        let window_s = core.config.token.proof_window_s;
        let nonces =
            Nonces::open(&keys, &server.issuer, window_s).map_err(|error| error.to_string())?;
        let limits = &core.config.limits;
        let rates = Rates::new(limits.exchanges_per_agent, limits.exchanges_per_owner);
        Ok(Self {
            core,
            proofs,
            nonces,
            rates,
            polls: Polls::default(),
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
        let asked = params.asked(peer, &self.core.config.server.issuer)?;
        let now_ms = self.core.now();
        let proof_text = proof;
        let Shown { proof, until_s } = self.proof(proof, peer, now_ms)?;
        let x5t = x5t_of(peer);
        let keys = (proof.jkt(), x5t.as_deref());
        let proven = self.proven(asked, params, peer, keys, now_ms).await?;
        let who = Who::of(&proven, x5t);
        let used = proofs::used_by(&proof, until_s, id);
        let asking = Asking {
            caller: who.caller(asked.grant, id),
            proven: &proven,
            jkt: proof.jkt(),
            proof: proof_text,
            used: &used,
            now_ms,
        };
        // From here the caller is known, and a refusal is an entry.
        self.core.saw(&who.agent);
        self.is_peers(asking, peer).await?;
        let made = match asked.wanted {
            Wanted::Capability => {
                let take = || self.proofs.take(&who.agent, &proof, until_s, now_ms);
                // A question about a code uses its proof up, whatever comes of it: the same
                // bytes would bring the token later, when a person has said yes.
                let is_poll = asked.grant == Grant::Deferred;
                if is_poll && let Err(error) = take() {
                    return Err(self.refused(asking.caller, None, None, error).await);
                }
                let element = self.element(asking, params).await?;
                let judged = self.judge(asking, (0, &element), Some(params)).await?;
                let asks = self.asks(asking, &judged, params).await?;
                // Last before the mint: what was refused above has used up no proof.
                if !is_poll && let Err(error) = take() {
                    let (action, policy) = judged;
                    let (action, policy) = (Some(action), Some(policy));
                    return Err(self.refused(asking.caller, action, policy, error).await);
                }
                match asks {
                    Some(asks) => self.defer(asking, judged, asks).await,
                    None => self.capability(asking, judged, true).await,
                }
            }
            Wanted::Session | Wanted::Delegation => {
                let wanted = self.grant_wanted(asking, asked.wanted, params).await?;
                if let Err(error) = self.proofs.take(&who.agent, &proof, until_s, now_ms) {
                    return Err(self.refused(asking.caller, None, None, error).await);
                }
                self.give(asking, wanted).await
            }
        };
        made.map_err(|failed| {
            // What asks about a code has used its proof up, whatever came of it.
            if failed.nothing_happened && asked.grant != Grant::Deferred {
                self.proofs.give_back(&proof);
            }
            failed.error
        })
    }

    /// The one action that is asked for.
    async fn element(
        &self,
        asking: Asking<'_>,
        params: &Params,
    ) -> Result<serde_json::Value, ExchangeError> {
        if asking.caller.grant == Grant::Deferred {
            return self.resolved(asking).await;
        }
        match params.one_element(&self.core.config.limits.read) {
            Ok(element) => Ok(element),
            Err(error) => Err(self.refused(asking.caller, None, None, error).await),
        }
    }

    /// A certificate that was shown is the same workload's as the evidence.
    async fn is_peers(&self, asking: Asking<'_>, peer: Option<&Peer>) -> Result<(), ExchangeError> {
        if peer.is_none_or(|peer| peer.id == asking.proven.agent.evidence.agent) {
            return Ok(());
        }
        let error = ExchangeError::Certificate;
        Err(self.refused(asking.caller, None, None, error).await)
    }

    /// Makes the refusal durable; one that can't be is an outage.
    async fn refused(
        &self,
        caller: Caller<'_>,
        action: Option<ActionRecord>,
        policy: Option<PolicyFacts>,
        error: ExchangeError,
    ) -> ExchangeError {
        let (refusals, now_ms) = (&self.core.refusals, self.core.now());
        // Who may do nothing has lines enough to be seen by, and none to fill the log with.
        let may = match self.core.may_act(caller.agent) {
            true => refusals.may_have_line(caller.agent, error.reason(), now_ms),
            false => refusals.may_have_line_barred(caller.agent, error.reason(), now_ms),
        };
        if !may {
            return error;
        }
        let command = Command::ExchangeRefused {
            agent: caller.agent.to_owned(),
            user: caller.user.cloned(),
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
