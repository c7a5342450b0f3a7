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
mod judge;
mod metadata;
mod mint;
mod nonces;
mod proof;
mod proofs;
mod users;

pub use error::ExchangeError;
pub use http::{mtls_routes, routes};
pub use issuers::Issuers;
pub use proofs::SeenProofs;

use crate::state::Core;
use capability::url::Target;
use form::{Grant, Params};
use identity::mtls::Peer;
use ledger::model::{ActionRecord, Command, PolicyFacts, User};
use nonces::Nonces;
use proof::Shown;
use std::sync::Arc;

/// `subject_token_type` and its kin (RFC 8693, section 3).
pub const TYPE_JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// The same, of ID tokens by OpenID Connect issuers.
pub const TYPE_ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
/// The type of what is issued, and of users' access tokens.
pub const TYPE_ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// The grant.
pub const GRANT_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// The grant for an ID-JAG (RFC 7523, section 2.1).
pub const GRANT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

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
    user: Option<&'a User>,
    grant: Grant,
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
        let asked = params.asked(peer)?;
        let now_ms = self.core.now();
        let proof_text = proof;
        let Shown { proof, until_s } = self.proof(proof, peer, now_ms)?;
        let x5t = peer.and_then(|peer| peer.certificate);
        let x5t = x5t.map(|digest| capability::b64::encode(&digest));
        let keys = (proof.jkt(), x5t.as_deref());
        let proven = self.proven(asked, params, peer, keys, now_ms).await?;
        let evidence = &proven.agent.evidence;
        let agent = evidence.agent.to_string();
        let user = proven.user.as_ref().map(|it| it.user.clone());
        let caller = Caller {
            agent: &agent,
            user: user.as_ref(),
            grant: asked.grant,
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
            .and_then(|element| self.action(&element, params, &proven))
        {
            Ok(action) => action,
            Err(error) => return Err(self.refused(caller, None, None, error).await),
        };
        if let Some(error) = self.standing(&agent).await {
            return Err(self.refused(caller, Some(action), None, error).await);
        }
        let (policy, verdict) = self.ask(caller, &action, now_ms);
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
        self.issue(caller, proven, (&proof, proof_text), action, policy, now_ms)
            .await
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
