//! What is given beside capabilities: broker sessions, and delegations.

use super::delegation::Delegation;
use super::form::{Grant, Params, Wanted};
use super::mint::Failed;
use super::users::ForUser;
use super::{Asking, Exchange, ExchangeError, Issued, grants};
use super::{TYPE_ACCESS_TOKEN, TYPE_DELEGATION};
use crate::state::random_id;
use ledger::model::{GrantKind, GrantTerms, PolicyFacts, TokenRecord};

/// A grant that may be made.
pub(super) enum Given {
    Session,
    Delegation(Delegation),
}

impl Exchange {
    /// What is wanted, if it may be: a grant says nothing of what policy allows.
    pub(super) async fn grant_wanted(
        &self,
        asking: Asking<'_>,
        wanted: Wanted,
        params: &Params,
    ) -> Result<Given, ExchangeError> {
        let caller = asking.caller;
        let error = match self.may_be_given(asking, wanted, params) {
            Ok(made) => match self.rated(caller.agent, asking.now_ms) {
                Ok(()) => match self.standing(caller.agent).await {
                    None => return Ok(made),
                    Some(error) => error,
                },
                Err(error) => error,
            },
            Err(error) => error,
        };
        Err(self.refused(caller, None, None, error).await)
    }

    fn may_be_given(
        &self,
        asking: Asking<'_>,
        wanted: Wanted,
        params: &Params,
    ) -> Result<Given, ExchangeError> {
        let (config, proven) = (&self.core.config, asking.proven);
        let request = |what: &str| Err(ExchangeError::Request(what.to_owned()));
        // A grant would not be held to it.
        if proven.user.as_ref().is_some_and(ForUser::is_narrowed) {
            return request(
                "the user's token, or the assertion, is for a `resource`, or for actions, alone: only capabilities are got by it",
            );
        }
        match wanted {
            Wanted::Capability => Err(ExchangeError::Internal),
            Wanted::Session if config.token.session_s == 0 => Err(ExchangeError::Target(
                "there are no sessions here (token.session_s)".into(),
            )),
            Wanted::Session if proven.under.is_some() => {
                request("a session is got by evidence, and not by another grant")
            }
            Wanted::Session => {
                params.check_session_target(&config.server.issuer)?;
                Ok(Given::Session)
            }
            Wanted::Delegation if config.token.delegation_s == 0 => {
                request("nothing can be delegated here (token.delegation_s)")
            }
            Wanted::Delegation => {
                is_passed_on(asking)?;
                let element = params.one_element(&config.limits.read)?;
                let made = self.delegation(&element, asking, params)?;
                Ok(Given::Delegation(made))
            }
        }
    }

    /// Records a grant, and hands it out.
    pub(super) async fn give(&self, asking: Asking<'_>, given: Given) -> Result<Issued, Failed> {
        let issued_s = asking.now_ms / 1000;
        let (terms, expires_s, element, name) = match given {
            Given::Session => {
                let lives = self.core.config.token.session_s;
                let ends_s = issued_s.saturating_add(lives);
                (session(asking), ends_s, None, "session")
            }
            Given::Delegation(it) => (it.terms, it.expires_s, Some(it.element), "delegation"),
        };
        // Nobody gets longer by it than what they showed lasts.
        let shown = asking.proven.agent.evidence.expires_ms;
        let users = asking.proven.user.as_ref().map(|it| it.evidence.expires_ms);
        let ends_s = users.map_or(shown, |ms| shown.min(ms)) / 1000;
        let session = terms.kind == GrantKind::Session;
        let expires_s = if session {
            expires_s.min(ends_s)
        } else {
            expires_s
        };
        let (text, hash) = grants::fresh(terms.kind);
        let mut token = TokenRecord {
            token_hash: hash,
            jti: random_id::<16>(""),
            txn: random_id::<16>(""),
            expires_ms: expires_s.saturating_mul(1000),
            ..self.record(asking, Some(terms))
        };
        name.clone_into(&mut token.action.kind);
        let command = self.command(asking, token, None, PolicyFacts::default(), true);
        self.commit(asking, command, (None, None)).await?;
        let exchanged = asking.caller.grant == Grant::Exchange;
        Ok(Issued {
            access_token: text,
            expires_in: expires_s.saturating_sub(issued_s),
            element,
            issued_type: match session {
                true => exchanged.then_some(TYPE_ACCESS_TOKEN),
                false => Some(TYPE_DELEGATION),
            },
            token_type: if session { "DPoP" } else { "N_A" },
            refresh_token: None,
        })
    }
}

/// A session's terms. It remembers that a user's token was this agent's alone.
fn session(asking: Asking<'_>) -> GrantTerms {
    let alone = asking.proven.user.as_ref().and_then(|it| it.alone);
    GrantTerms {
        holder: alone.map(|_| asking.caller.agent.to_owned()),
        ..grants::own(GrantKind::Session, None)
    }
}

/// The user's word may be passed on: by a delegation another agent gets what it could have
/// got by showing that word itself.
fn is_passed_on(asking: Asking<'_>) -> Result<(), ExchangeError> {
    if let Some(claim) = asking.proven.user.as_ref().and_then(|it| it.alone) {
        return Err(ExchangeError::UserAlone(claim));
    }
    let under = asking.proven.under.as_ref();
    let terms = under.and_then(|it| it.grant.as_ref());
    if terms.is_some_and(GrantTerms::is_alone) {
        return Err(ExchangeError::UserAlone("session"));
    }
    Ok(())
}
