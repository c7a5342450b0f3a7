//! What became of a token, and the end of one: introspection (RFC 7662) and
//! revocation (RFC 7009).
//!
//! Answers come from the ledger's record of what was issued, which the token's hash
//! finds, and never from what a token says of itself.

mod error;
mod http;

pub use http::routes;

use super::form::{Asked, Grant, Params, Wanted};
use super::grants::Family;
use super::{Exchange, ExchangeError, x5t_of};
use crate::config::TOKEN_LIFETIME_MAX_S;
use crate::state::{Core, element};
use error::TokensError;
use identity::mtls::Peer;
use ledger::model::{
    Bar, Command, FirstUse, Given, GrantKind, Hash, Refused, Stopper, Target, TokenRecord,
    TokenState,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// How long the stop of a token is kept after what it stops can be used, in ms.
const STOP_LINGERS_MS: u64 = 10_000;

/// Until when the stop of what ends then is kept, in ms: a request that it let through may
/// be held, and what a grant `brings` at its last moment is stopped with it.
pub(super) fn revoked_until(core: &Core, ends_ms: u64, brings: bool) -> u64 {
    let held_ms = core.edges.hold_max_s().saturating_mul(1000);
    let brought_ms = match brings {
        true => TOKEN_LIFETIME_MAX_S.saturating_mul(1000),
        false => 0,
    };
    let over_ms = ends_ms.max(core.now()).saturating_add(held_ms);
    let over_ms = over_ms.saturating_add(brought_ms);
    over_ms.saturating_add(STOP_LINGERS_MS)
}

/// Where a token stands that is known, and not to be used.
#[derive(Clone, Copy)]
enum Ended {
    Held,
    Expired,
    Revoked,
}

impl Ended {
    fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// SHA-256 of the token's exact bytes, which the ledger knows it by.
fn hash_of(params: &Params) -> Result<(&str, Hash), TokensError> {
    let token = params.token()?;
    Ok((token, Sha256::digest(token.as_bytes()).into()))
}

impl Exchange {
    /// What is known of a token: RFC 7662's answer. Whoever may not know is told what
    /// is told of an unknown token.
    ///
    /// # Errors
    /// When the caller is nobody, or the ledger can't be read.
    async fn introspect(&self, params: &Params, peer: Option<&Peer>) -> Result<Value, TokensError> {
        let (token, hash) = hash_of(params)?;
        let caller = self.caller(params, peer, "introspection").await?;
        let core = &self.core;
        let server = is_server(core, &caller);
        let found = known(core, &hash).await?;
        let nothing = json!({ "active": false });
        let Some((record, state)) = found else {
            let first = match server {
                true => core.ledger.spent(&hash).await.map_err(unreadable)?,
                false => None,
            };
            return Ok(first.map_or(nothing, |first| spent(first.outcome, &first.request_id)));
        };
        if !server && record.agent != caller {
            return Ok(nothing);
        }
        match ended(core, &record, state, token) {
            None => Ok(active(core, &record)),
            Some(ended) if server => Ok(json!({ "active": false, "writ_state": ended.word() })),
            Some(_) => Ok(nothing),
        }
    }

    /// Ends a token that was issued to the caller, and what is held with it. One that
    /// is not known, or has ended, is as good as revoked (RFC 7009, section 2.2).
    ///
    /// # Errors
    /// When the caller is nobody, the token is another's, or the ledger does not take it.
    async fn revoke(&self, params: &Params, peer: Option<&Peer>) -> Result<(), TokensError> {
        let (token, hash) = hash_of(params)?;
        let caller = self.caller(params, peer, "revocation").await?;
        let core = &self.core;
        let found = known(core, &hash).await?;
        let ended = found
            .as_ref()
            .and_then(|(record, state)| ended(core, record, *state, token));
        let family = match found {
            Some((record, _)) => Some(Family::of(&record)),
            // A used refresh token still names its family.
            None => {
                let of_used = Family::of_grant(&core.ledger, &hash).await;
                of_used.map_err(unreadable)?
            }
        };
        let Some(family) = family else {
            return Ok(());
        };
        if family.agent.as_ref().is_some_and(|agent| *agent != caller) {
            return Err(TokensError::Foreign);
        }
        let over = matches!(ended, Some(Ended::Expired | Ended::Revoked));
        if over || is_stopped(core, &family) {
            return Ok(());
        }
        let now_ms = core.now();
        // What is kept free on a full disk is for what people stop.
        if core.ledger.is_full() {
            return Err(ExchangeError::Full.into());
        }
        if !core.refusals.may_revoke(&caller, now_ms) {
            return Err(TokensError::Busy);
        }
        let stop = Command::Stop {
            target: Target::Token(family.first),
            by: caller,
            why: "revoked by the agent that it was issued to".to_owned(),
            until_ms: Some(revoked_until(core, family.ends_ms, family.brings)),
            stopper: Stopper::Agent,
        };
        core.ledger.commit(stop).await.map_err(|refused| {
            tracing::warn!(%refused, "a token was not revoked");
            match refused {
                Refused::Limit(_) => TokensError::Busy,
                refused => ExchangeError::not_recorded(&refused).into(),
            }
        })?;
        Ok(())
    }

    /// The agent that the caller has authenticated as, by what the token endpoint takes
    /// for that too. An assertion is used up.
    async fn caller(
        &self,
        params: &Params,
        peer: Option<&Peer>,
        what: &'static str,
    ) -> Result<String, TokensError> {
        let asked = params.authentication(peer)?;
        // There is no proof, and nobody acts for anybody.
        let x5t = x5t_of(peer);
        let keys = ("", x5t.as_deref());
        let proven = self.proven(asked, params, peer, keys, self.core.now());
        let proven = proven.await.map_err(ExchangeError::of_client)?.agent;
        let agent = proven.evidence.agent;
        if peer.is_some_and(|peer| peer.id != agent) {
            return Err(ExchangeError::Certificate.into());
        }
        let agent = agent.to_string();
        self.core.saw(&agent);
        self.may_ask(&agent, proven.once.is_some())?;
        if let Some(once) = proven.once {
            let agent = agent.clone();
            let shown = Command::Present { agent, once, what };
            match self.core.ledger.commit(shown).await {
                Ok(_) => {}
                Err(Refused::Shown) => return Err(ExchangeError::AssertionReplayed.into()),
                Err(refused) => return Err(ExchangeError::of_question(&refused).into()),
            }
        }
        Ok(agent)
    }

    /// Whether this caller may ask now: before anything is written for it. A named resource
    /// server need not be an agent.
    fn may_ask(&self, caller: &str, writes: bool) -> Result<(), ExchangeError> {
        let core = &self.core;
        let (now_ms, rights) = (core.now(), core.ledger.rights());
        match rights.bar(&Given::to(caller, now_ms), now_ms) {
            None => {}
            Some(Bar::Stopped(_)) => return Err(ExchangeError::Stopped),
            Some(Bar::Inactive) => return Err(ExchangeError::Inactive),
        }
        let server = is_server(core, caller);
        if !server && rights.agent(caller).is_none() {
            return Err(ExchangeError::Unregistered);
        }
        // A server that is believed by its SVID costs nothing that lasts.
        if writes || !server {
            self.rated(caller, now_ms)?;
        }
        Ok(())
    }
}

/// The record of a token, or of a grant, that is outstanding.
async fn known(
    core: &Core,
    hash: &Hash,
) -> Result<Option<(Arc<TokenRecord>, TokenState)>, TokensError> {
    let token = core.ledger.token(hash).await.map_err(unreadable)?;
    if token.is_some() {
        return Ok(token);
    }
    let grant = core.ledger.grant(hash).await.map_err(unreadable)?;
    Ok(grant.map(|grant| (grant, TokenState::Issued)))
}

/// Whether a stop that nobody has lifted names it.
fn is_stopped(core: &Core, family: &Family) -> bool {
    let rights = core.ledger.rights();
    let stop = rights.stops.get(&Target::Token(family.first));
    stop.is_some_and(|it| it.lifted.is_none())
}

fn unreadable(error: Refused) -> TokensError {
    tracing::warn!(%error, "the ledger could not be read");
    ExchangeError::Unavailable.into()
}

/// Whether the caller is a resource server that may know of every token: the config
/// names it, and nobody has stopped it.
fn is_server(core: &Core, caller: &str) -> bool {
    let now = core.now();
    core.config
        .server
        .introspection
        .iter()
        .any(|it| it == caller)
        && core
            .ledger
            .rights()
            .bar(&Given::to(caller, now), now)
            .is_none()
}

/// Why a token is not to be used, if it is not; `None`: the edge would take it.
fn ended(core: &Core, record: &TokenRecord, state: TokenState, token: &str) -> Option<Ended> {
    let now = core.now();
    let revoked = core.ledger.suspended().is_some()
        || core
            .ledger
            .rights()
            .bar(&Given::from(record), now)
            .is_some()
        || crate::keys::kid(token).is_some_and(|kid| core.keys.is_revoked(&kid));
    match state {
        _ if revoked => Some(Ended::Revoked),
        TokenState::Held => Some(Ended::Held),
        TokenState::Issued if now >= record.expires_ms => Some(Ended::Expired),
        TokenState::Issued => None,
    }
}

/// A spent token, for those who may know (an extension of RFC 7662, section 2.2).
fn spent(outcome: FirstUse, request_id: &str) -> Value {
    let (result, status) = outcome.told();
    let mut first = json!({ "result": result });
    if let Some(first) = first.as_object_mut() {
        if let Some(status) = status {
            first.insert("upstream_status".to_owned(), status.into());
        }
        if !request_id.is_empty() {
            first.insert("request_id".to_owned(), request_id.into());
        }
    }
    json!({ "active": false, "writ_state": "spent", "writ_first_use": first })
}

/// What an active token says, by our own record.
fn active(core: &Core, record: &TokenRecord) -> Value {
    // Who is last acts for nobody, but for the user where there is one.
    let (sub, chain) = match (&record.user, record.chain.split_last()) {
        (Some(user), _) => (&user.subject, record.chain.as_slice()),
        (None, Some((first, others))) => (first, others),
        (None, None) => (&record.agent, [].as_slice()),
    };
    let mut cnf = json!({ "jkt": record.jkt });
    if let (Some(x5t), Some(cnf)) = (&record.x5t, cnf.as_object_mut()) {
        cnf.insert("x5t#S256".to_owned(), x5t.as_str().into());
    }
    let mut body = json!({
        "active": true,
        "iss": core.config.server.issuer,
        "sub": sub,
        "client_id": record.agent,
        "iat": record.issued_ms / 1000,
        "exp": record.expires_ms / 1000,
        "jti": record.jti,
        "txn": record.txn,
        "cnf": cnf,
    });
    // What a grant is for is the token endpoint, and no request (`aud`).
    let (aud, details) = match record.grant {
        Some(_) => (Some(core.config.server.issuer.clone()), None),
        None => {
            let origin = crate::state::split_location(&record.action.location).0;
            let site = core.config.edge.site_of(origin);
            let details = json!([element(&record.action)]);
            (site.map(|site| site.resource), Some(details))
        }
    };
    // The others are shown to the token endpoint alone, as grants.
    let shown = record.grant.as_ref();
    let shown = shown.is_none_or(|grant| grant.kind == GrantKind::Session);
    let more = [
        ("token_type", shown.then(|| "DPoP".into())),
        ("aud", aud.map(Value::from)),
        ("authorization_details", details),
        ("act", super::mint::nested(chain)),
        ("sub_id", record.user.as_ref().map(super::mint::sub_id)),
    ];
    if let Some(body) = body.as_object_mut() {
        let known = more
            .into_iter()
            .filter_map(|(name, it)| Some((name.to_owned(), it?)));
        body.extend(known);
    }
    body
}

impl Params {
    /// How a client authenticates that wants to know of a token.
    fn authentication(&self, peer: Option<&Peer>) -> Result<Asked, TokensError> {
        self.refuse_secret()?;
        let grant = Grant::Client;
        match self.client(grant, peer) {
            // Nothing is wanted of the exchange: that it is a token goes unread.
            Ok(client) => Ok(Asked {
                grant,
                client,
                wanted: Wanted::Capability,
            }),
            Err(ExchangeError::Grant) => Err(TokensError::Unauthenticated),
            Err(other) => Err(other.into()),
        }
    }
}
