//! Tokens that wait for a person: draft-ietf-oauth-deferred-token-response, whose
//! words are all here, but for its errors, which are among the others.
//!
//! A client that says so gets a code instead of a token whose request would be held at the
//! edge. The person is asked at once, about exactly this action. The code is a grant as
//! others are: bound to the agent's key, and known by its hash. It brings the one token,
//! once, when the person has said yes and all else is judged again. The yes is used up by
//! the request, as ever.

mod asking;
mod polls;
mod submitted;

pub(super) use polls::Polls;

use super::error::{Element, Waiting};
use super::evidence::Proven;
use super::form::{Asked, Client, Grant, Params};
use super::grants::{self, bound, is_session, kind};
use super::mint::Failed;
use super::{Asking, Exchange, ExchangeError, Issued, TYPE_ACCESS_TOKEN};
use crate::decide::{Content, Engine, Foreseen};
use crate::state::{self, random_id};
use capability::reason::Reason;
use identity::mtls::Peer;
use ledger::model::{
    ActionRecord, Approval, ApprovalState, Command, Deferred, Given, GrantKind, GrantTerms, Hash,
    PolicyFacts, Refused, TokenRecord,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::sync::Arc;
pub(super) use submitted::Submitted;
use submitted::{CONTENT, CONTENT_ENCODING, CONTENT_TYPE};

/// The grant that a code is shown by.
pub const GRANT_DEFERRED: &str = "urn:ietf:params:oauth:grant-type:deferred";
/// What metadata says of it.
pub const SUPPORTED: &str = "deferred_token_response_supported";

/// The value of `completion_mode` by which a client says that it waits.
const DEFERRED: &str = "deferred";
/// Parameters of the first request, which the later ones neither change nor repeat.
const OF_FIRST: &[&str] = &[
    "completion_mode",
    "client_notification_token",
    "authorization_details",
    "resource",
    "audience",
    "actor_token",
    "actor_token_type",
    "requested_token_type",
    CONTENT,
    CONTENT_TYPE,
    CONTENT_ENCODING,
];

/// A person that another replica asks is shown here within, in ms.
const SHOWN_WITHIN_MS: u64 = 10_000;

/// What a person is to be asked before there is a token.
pub(super) struct Asks {
    approval: Box<Approval>,
    submitted: Submitted,
}

/// What the record of a used code is called: only who has the code and its key finds it.
fn name_of(code: &str, agent: &str, jkt: &str) -> String {
    let text = format!("{code}\n{agent}\n{jkt}");
    capability::b64::encode(&Sha256::digest(text))
}

fn no<T>(reason: Reason, what: &str) -> Result<T, ExchangeError> {
    Err(ExchangeError::Deferral(reason, what.to_owned()))
}

impl Params {
    /// Whether the client waits for a person, instead of its request.
    fn waits(&self) -> bool {
        let modes = self.get("completion_mode").unwrap_or_default();
        modes.split(' ').any(|mode| mode == DEFERRED)
    }

    /// A later request has its code, and what says who asks.
    pub(super) fn check_poll(&self, client: Client) -> Result<(), ExchangeError> {
        let request = |what: String| Err(ExchangeError::Request(what));
        if let Some(other) = OF_FIRST.iter().find(|it| self.get(it).is_some()) {
            return request(format!(
                "`{other}` is of the first request: with {GRANT_DEFERRED} go deferral_code, and what says who asks"
            ));
        }
        let shown = self.get("subject_token").is_some();
        match (client, shown) {
            (Client::None, false) => request(
                "who asks is said by a client_assertion, a client certificate, or the agent's evidence as subject_token".into(),
            ),
            (Client::Svid | Client::Assertion, true) => {
                request("one of subject_token and client_assertion says who asks, not both".into())
            }
            _ => Ok(()),
        }
    }
}

impl Exchange {
    /// Who asks about a code, by its evidence of now, and the code's record.
    pub(super) async fn awaited(
        &self,
        asked: Asked,
        params: &Params,
        peer: Option<&Peer>,
        keys: (&str, Option<&str>),
        now_ms: u64,
    ) -> Result<Proven, ExchangeError> {
        let proven = match params.get("subject_token") {
            Some(shown) if is_session(shown) => {
                params.check_shown("a session", &[TYPE_ACCESS_TOKEN])?;
                let proven = self.in_session(shown, params, keys).await?;
                // What is got rests on the code, and no commit looks at the session again.
                let rights = self.core.ledger.rights();
                let stopped = proven
                    .under
                    .as_deref()
                    .and_then(|it| rights.bar(&Given::from(it), now_ms));
                if stopped.is_some() {
                    return Err(ExchangeError::Stopped);
                }
                proven
            }
            Some(shown) => Proven::alone(self.agent_of(shown, "subject", params, now_ms).await?),
            None => Proven::alone(self.client(asked.client, params, peer, now_ms).await?),
        };
        let agent = proven.agent.evidence.agent.as_str();
        let code = params.needed("deferral_code")?;
        let hash: Hash = Sha256::digest(code).into();
        let unreadable = |refused| ExchangeError::not_recorded(&refused);
        let found = self.core.ledger.grant(&hash).await.map_err(unreadable)?;
        let its_own = found.filter(|it| kind(it) == Some(GrantKind::Deferral) && it.agent == agent);
        let Some(record) = its_own else {
            let spent = self.core.ledger.spent(&hash).await.map_err(unreadable)?;
            let name = name_of(code, agent, keys.0);
            return match spent {
                Some(spent) if spent.jti == name => {
                    no(Reason::TokenSpent, "its token was given already")
                }
                _ => no(Reason::TokenUnknown, "there is none such, or it has ended"),
            };
        };
        bound(&record, keys).map_err(ExchangeError::of_deferral)?;
        if record.expires_ms <= now_ms {
            return Err(ExchangeError::ApprovalExpired);
        }
        Ok(Proven {
            under: Some(record),
            ..proven
        })
    }

    /// The element that a code is for, once a person has said yes.
    pub(super) async fn resolved(&self, asking: Asking<'_>) -> Result<Value, ExchangeError> {
        let Some(record) = asking.proven.under.as_deref() else {
            return Err(ExchangeError::Internal);
        };
        let now_ms = asking.now_ms;
        let error = match self.resolution(record, now_ms) {
            Ok(()) => return Ok(state::element(&record.action)),
            Err(error @ ExchangeError::SlowDown) => return Err(error),
            Err(error) => error,
        };
        let action = Some(record.action.clone());
        if let Err(error) = self.show(asking).await {
            return Err(self.refused(asking.caller, action, None, error).await);
        }
        if error == ExchangeError::StillPending {
            return Err(error);
        }
        Err(self.refused(asking.caller, action, None, error).await)
    }

    /// What counts once is used up by a question too, whatever comes of it.
    async fn show(&self, asking: Asking<'_>) -> Result<(), ExchangeError> {
        let proven = asking.proven;
        let of_user = proven.user.iter().flat_map(|it| it.once);
        for once in proven.agent.once.into_iter().chain(of_user) {
            let shown = Command::Present {
                agent: asking.caller.agent.to_owned(),
                once,
                what: "deferral",
            };
            match self.core.ledger.commit(shown).await {
                Ok(_) => {}
                Err(Refused::Shown) if asking.caller.grant == Grant::Bearer => {
                    return Err(ExchangeError::BearerReplayed);
                }
                Err(Refused::Shown) => return Err(ExchangeError::AssertionReplayed),
                Err(refused) => return Err(ExchangeError::of_question(&refused)),
            }
        }
        Ok(())
    }

    fn resolution(&self, record: &TokenRecord, now_ms: u64) -> Result<(), ExchangeError> {
        let deferred = record.grant.as_ref().and_then(|it| it.deferred.as_ref());
        let deferred = deferred.ok_or(ExchangeError::Internal)?;
        let interval_ms = self.core.config.approval.poll_s.saturating_mul(1000);
        let code = record.token_hash;
        if !self.polls.may(&record.agent, code, now_ms, interval_ms) {
            return Err(ExchangeError::SlowDown);
        }
        let rights = self.core.ledger.rights();
        if rights.bar(&Given::from(record), now_ms).is_some() {
            return Err(ExchangeError::Stopped);
        }
        let approval = self.core.ledger.approval(&deferred.approval);
        let Some(approval) = approval else {
            // What another replica has opened is shown here a moment later.
            let fresh = now_ms < record.issued_ms.saturating_add(SHOWN_WITHIN_MS);
            return Err(match fresh {
                true => ExchangeError::StillPending,
                false => ExchangeError::ApprovalExpired,
            });
        };
        match approval.state {
            ApprovalState::Pending | ApprovalState::Approved if approval.expires_ms <= now_ms => {
                Err(ExchangeError::ApprovalExpired)
            }
            ApprovalState::Pending => Err(ExchangeError::StillPending),
            ApprovalState::Approved => Ok(()),
            ApprovalState::Denied => Err(ExchangeError::ApprovalDenied),
            // An equal request took the one yes, or what that one rested on is stopped: this
            // one, which is not, asks anew.
            ApprovalState::Expired | ApprovalState::Consumed | ApprovalState::Cancelled => {
                Err(ExchangeError::ApprovalExpired)
            }
        }
    }

    /// What a person has to be asked before this token is given, where the client waits for
    /// that; else the request waits at the edge.
    pub(super) async fn asks(
        &self,
        asking: Asking<'_>,
        (action, policy): &(ActionRecord, PolicyFacts),
        params: &Params,
    ) -> Result<Option<Asks>, ExchangeError> {
        let found = match asking.caller.grant {
            Grant::Deferred => self.still_lifted(asking, action),
            // What is shown once can't be shown again with the code.
            Grant::Refresh => Ok(None),
            _ if params.waits() => self.asked_for(asking, action, params),
            _ => Ok(None),
        };
        match found {
            Ok(found) => Ok(found),
            Err(error) => {
                let (action, policy) = (Some(action.clone()), Some(policy.clone()));
                Err(self.refused(asking.caller, action, policy, error).await)
            }
        }
    }

    pub(super) fn foreseen(
        &self,
        asking: Asking<'_>,
        action: &ActionRecord,
        with: Content<'_>,
    ) -> Foreseen {
        let token = TokenRecord {
            action: action.clone(),
            ..self.record(asking, None)
        };
        let core = Arc::clone(&self.core);
        Engine { core }.foresee(&token, with)
    }

    fn asked_for(
        &self,
        asking: Asking<'_>,
        action: &ActionRecord,
        params: &Params,
    ) -> Result<Option<Asks>, ExchangeError> {
        let submitted = Submitted::of(params)?;
        // A message is said by its own members, and one body of it is approved all the same.
        let is_message = state::asked(action).1.is_some();
        if submitted.body.is_some() && action.content_digest.is_none() && !is_message {
            return Err(ExchangeError::Details(format!(
                "`{CONTENT}` goes with the `content_digest` of the action, which is for no other body then; bodies of this location have to be read (edge.route.body)"
            )));
        }
        match self.foreseen(asking, action, submitted.content()) {
            Foreseen::Asks(_, approval) => Ok(Some(Asks {
                approval,
                submitted,
            })),
            Foreseen::Unseen => Err(ExchangeError::Details(format!(
                "a person may have to see the body of this action: submit it whole, as {CONTENT} with content_digest, or ask without completion_mode, and the request is held at the edge instead"
            ))),
            Foreseen::Refused(_, Reason::BodyMismatch | Reason::ActionMismatch) => Err(
                ExchangeError::Details(format!("`{CONTENT}` is not the body that the action says")),
            ),
            // The edge says that of the request itself, as it does without this.
            Foreseen::Passes(_) | Foreseen::Refused(..) => Ok(None),
        }
    }

    /// Whether what was approved still lets the request pass.
    fn still_lifted(
        &self,
        asking: Asking<'_>,
        action: &ActionRecord,
    ) -> Result<Option<Asks>, ExchangeError> {
        let record = asking.proven.under.as_deref();
        let terms = record.and_then(|it| it.grant.as_ref()?.deferred.as_ref());
        let terms = terms.ok_or(ExchangeError::Internal)?;
        let body = self.core.bodies.get(&terms.approval);
        let content = Content {
            media_type: &terms.content_type,
            encoding: &terms.content_encoding,
            body: body.as_deref(),
        };
        match self.foreseen(asking, action, content) {
            // Where there is a body that is not here any more the edge looks at it.
            Foreseen::Passes(_) | Foreseen::Unseen => Ok(None),
            Foreseen::Asks(..) => Err(ExchangeError::ApprovalExpired),
            Foreseen::Refused(policy, reason) => {
                let element = Box::new(Element {
                    index: 0,
                    element: state::element(action),
                    why: self.core.policies.told(&policy.determining),
                });
                Err(match reason {
                    Reason::PolicyError => ExchangeError::PolicyError(element),
                    Reason::AgentInactive => ExchangeError::Inactive,
                    _ => ExchangeError::Denied(element),
                })
            }
        }
    }

    /// Asks a person, and hands out the code; what was approved meanwhile needs none.
    pub(super) async fn defer(
        &self,
        asking: Asking<'_>,
        (action, policy): (ActionRecord, PolicyFacts),
        asks: Asks,
    ) -> Result<Issued, Failed> {
        let Asks {
            approval,
            submitted,
        } = asks;
        let bytes = submitted.body.as_deref().unwrap_or_default();
        let open = |id: &str| self.core.ledger.approval(id).is_some_and(|it| it.is_open());
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let Some(_room) = self.core.bodies.reserve(size, &open) else {
            let error = ExchangeError::Limit("bodies that wait for a human");
            let refused = self.refused(asking.caller, Some(action), Some(policy), error);
            return Err(refused.await.into());
        };
        let known = (&action, &policy);
        match self.asked(asking, known, approval, &submitted).await? {
            Some(approval) => {
                self.code(asking, (action, policy), &approval, &submitted)
                    .await
            }
            None => self.capability(asking, (action, policy), false).await,
        }
    }

    /// Records a code, and answers with it: no token, and an error in its form.
    async fn code(
        &self,
        asking: Asking<'_>,
        (action, policy): (ActionRecord, PolicyFacts),
        approval: &Approval,
        submitted: &Submitted,
    ) -> Result<Issued, Failed> {
        let (caller, times) = (asking.caller, &self.core.config.approval);
        tracing::info!(
            approval = approval.id,
            agent = approval.agent,
            url = format!(
                "{}/approvals/{}",
                self.core.config.server.issuer, approval.id
            ),
            "a token waits for a human"
        );
        let usable_ms = times.approved_s.saturating_mul(1000);
        // Nobody gets longer by it than what they showed of others lasts.
        let ends_ms = [
            asking.proven.user.as_ref().map(|it| it.evidence.expires_ms),
            asking.proven.under.as_ref().map(|it| it.expires_ms),
        ]
        .into_iter()
        .flatten()
        .fold(approval.expires_ms.saturating_add(usable_ms), u64::min);
        let (text, hash) = grants::fresh(GrantKind::Deferral);
        let terms = GrantTerms {
            deferred: Some(Box::new(Deferred {
                approval: approval.id.clone(),
                exchange: caller.grant == Grant::Exchange,
                content_type: submitted.content().media_type.to_owned(),
                content_encoding: submitted.content().encoding.to_owned(),
            })),
            ..grants::own(GrantKind::Deferral, None)
        };
        let token = TokenRecord {
            token_hash: hash,
            jti: name_of(&text, caller.agent, asking.jkt),
            txn: random_id::<16>(""),
            expires_ms: ends_ms,
            action,
            ..self.record(asking, Some(terms))
        };
        // What counts once was used up by the question.
        let command = self.command(asking, token, None, policy, false);
        self.commit(asking, command, (None, None)).await?;
        Err(Failed {
            error: ExchangeError::Pending(Box::new(Waiting {
                code: text,
                expires_in: ends_ms.saturating_sub(asking.now_ms) / 1000,
                interval: times.poll_s,
                approval: approval.id.clone(),
                why: self.core.policies.told(&approval.rules),
            })),
            nothing_happened: false,
        })
    }
}
