//! AuthZEN (Authorization API 1.0, and its Access Request and Approval Profile, draft 1): an
//! agent asks whether it may do something, and asks a person where that is what is missing.
//!
//! An answer is what the exchange and the edge would say now, by their own code. Nothing is
//! promised by it and nothing is written: the request itself is decided when it comes. What
//! is asked of a person is the same approval as a held request's.

mod http;

pub(super) use http::{mtls_routes, routes};

use super::deferral::Submitted;
use super::error::Element;
use super::presented::Shows;
use super::{Asking, Exchange, ExchangeError};
use crate::decide::{Content, Foreseen};
use crate::state::{self, Standing};
use capability::jcs;
use capability::reason::Reason;
use ledger::model::{ActionRecord, Approval, ApprovalState, PolicyFacts};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Where it is asked whether something may be done.
pub const EVALUATION: &str = "/access/v1/evaluation";
/// Where a person is asked.
pub const REQUESTS: &str = "/access/v1/requests";

/// The type of a subject: what its `id` is a SPIFFE ID of.
const AGENT: &str = "agent";

/// What is asked about: an element of `authorization_details` in AuthZEN's words.
struct Subject {
    agent: String,
    element: Value,
}

impl Subject {
    /// Of a request's members; others are not looked at.
    fn read(body: &Map<String, Value>) -> Result<Self, ExchangeError> {
        let wrong = |what: &str| ExchangeError::Request(what.to_owned());
        let text = |name: &str, member: &str| {
            let text = body.get(name)?.as_object()?.get(member)?.as_str()?;
            Some(text.to_owned())
        };
        let agent = match (text("subject", "type").as_deref(), text("subject", "id")) {
            (Some(AGENT), Some(id)) => id,
            _ => return Err(wrong("subject is {type: agent, id: the agent's SPIFFE ID}")),
        };
        let method = text("action", "name");
        let method = method.ok_or_else(|| wrong("action.name is the method"))?;
        let (Some(kind), Some(location)) = (text("resource", "type"), text("resource", "id"))
        else {
            return Err(wrong(
                "resource is {type: http_request, mcp_request or a2a_request, id: the URL}",
            ));
        };
        // What else an element has: its digest, or what it names.
        let more = body.get("resource").and_then(|it| it.get("properties"));
        let mut element = match more {
            None => Map::new(),
            Some(Value::Object(more)) => more.clone(),
            Some(_) => return Err(wrong("resource.properties is an object")),
        };
        for own in ["type", "actions", "locations"] {
            if element.contains_key(own) {
                return Err(wrong(
                    "resource.properties has neither type, actions nor locations",
                ));
            }
        }
        element.insert("type".into(), kind.into());
        element.insert("actions".into(), json!([method]));
        element.insert("locations".into(), json!([location]));
        Ok(Self {
            agent,
            element: Value::Object(element),
        })
    }
}

/// Which evaluation a request belongs to: nothing that is secret, and nothing by itself.
fn binding(agent: &str, action: &ActionRecord) -> String {
    let bound = json!({ "agent": agent, "element": state::element(action) });
    let digest: [u8; 32] = Sha256::digest(jcs::to_string(&bound)).into();
    capability::b64::encode(&digest)
}

/// The answer to an evaluation.
enum Decided {
    Yes,
    No(Reason, Vec<String>),
    /// A person may change it.
    Requestable(Box<Approval>),
}

impl Exchange {
    /// Whether an agent may do this now.
    ///
    /// # Errors
    /// The request, or who makes it, is refused.
    pub(super) async fn evaluation(
        &self,
        body: &Map<String, Value>,
        shows: Shows<'_>,
    ) -> Result<Value, ExchangeError> {
        let server = &self.core.config.server;
        // Who is known by a certificate is known where that is seen, and nowhere else.
        let at_mtls = shows.peer.and(server.mtls_url.as_deref());
        let at = at_mtls.unwrap_or(&server.issuer);
        let shown = self.presented(EVALUATION, shows).await?;
        let asking = shown.asking();
        let action = self.asked_about(asking, body)?;
        self.use_up(&shown)?;
        Ok(match self.decided(asking, &action) {
            Decided::Yes => json!({ "decision": true }),
            Decided::No(reason, why) => {
                let mut context = json!({ "reason": reason.as_str() });
                if let (false, Some(members)) = (why.is_empty(), context.as_object_mut()) {
                    members.insert("why".into(), json!(why));
                }
                json!({ "decision": false, "context": context })
            }
            Decided::Requestable(approval) => json!({
                "decision": false,
                "context": {
                    "reason": Reason::ApprovalPending.as_str(),
                    "why": self.core.policies.told(&approval.rules),
                    "access_request": {
                        "endpoint": format!("{at}{REQUESTS}"),
                        "expires_at": crate::web::time_for_programs(approval.expires_ms),
                        "binding_token": binding(asking.caller.agent, &action),
                    },
                },
            }),
        })
    }

    /// Asks a person about what an evaluation said can be asked for.
    ///
    /// # Errors
    /// The request, or who makes it, is refused; or no person can be asked now.
    pub(super) async fn access_request(
        &self,
        body: &Map<String, Value>,
        shows: Shows<'_>,
    ) -> Result<Value, ExchangeError> {
        let shown = self.presented(REQUESTS, shows).await?;
        let asking = shown.asking();
        let (action, approval) = match self.requestable(asking, body) {
            Ok(known) => known,
            Err(error) => return Err(self.refused(asking.caller, None, None, error).await),
        };
        if let Err(error) = self.use_up(&shown) {
            return Err(self.refused(asking.caller, Some(action), None, error).await);
        }
        let policy = PolicyFacts {
            version: self.core.policies.version().to_owned(),
            determining: Vec::new(),
        };
        let known = (&action, &policy);
        let nothing = Submitted::default();
        match self.asked(asking, known, approval, &nothing).await {
            Ok(Some(approval)) => Ok(self.task(&approval, asking.now_ms)),
            Ok(None) => Err(ExchangeError::Request(
                "it is allowed by now: evaluate again".into(),
            )),
            Err(failed) => {
                if failed.nothing_happened {
                    self.give_back(&shown);
                }
                Err(failed.error)
            }
        }
    }

    /// What a person can be asked about: what the evaluation of it said can be.
    fn requestable(
        &self,
        asking: Asking<'_>,
        body: &Map<String, Value>,
    ) -> Result<(ActionRecord, Box<Approval>), ExchangeError> {
        let action = self.asked_about(asking, body)?;
        let bound = body.get("binding_token").and_then(Value::as_str);
        if bound != Some(binding(asking.caller.agent, &action).as_str()) {
            let what = "binding_token is that of the evaluation of this very request";
            return Err(ExchangeError::Request(what.into()));
        }
        match self.decided(asking, &action) {
            Decided::Requestable(approval) => Ok((action, approval)),
            Decided::No(Reason::AgentInactive, _) => Err(ExchangeError::Inactive),
            Decided::No(Reason::TokenRevoked, _) => Err(ExchangeError::Stopped),
            Decided::Yes | Decided::No(..) => Err(ExchangeError::Request(
                "there is nothing here for a person to say: evaluate again".into(),
            )),
        }
    }

    /// Where an access request stands, for whoever knows its id (128 random bits), which
    /// grants nothing.
    pub(super) fn access_task(&self, id: &str) -> Option<Value> {
        let approval = self.core.ledger.approval(id)?;
        Some(self.task(&approval, self.core.now()))
    }

    fn task(&self, approval: &Approval, now_ms: u64) -> Value {
        let status = status(approval, now_ms);
        let mut body = json!({ "task": {
            "id": approval.id,
            "status": status,
            "status_endpoint": format!("{}{REQUESTS}/{}", self.core.config.server.issuer, approval.id),
            "expires_at": crate::web::time_for_programs(approval.expires_ms),
        }});
        // The yes is found by what it covers, when the agent goes on.
        if let (APPROVED, Some(members)) = (status, body.as_object_mut()) {
            members.insert("result".into(), json!({ "mode": "reevaluate" }));
        }
        body
    }

    /// The action that the body says, of the agent that asks.
    fn asked_about(
        &self,
        asking: Asking<'_>,
        body: &Map<String, Value>,
    ) -> Result<ActionRecord, ExchangeError> {
        let subject = Subject::read(body)?;
        if subject.agent != asking.caller.agent {
            let what = "subject.id: an agent asks about itself";
            return Err(ExchangeError::Request(what.into()));
        }
        self.rated(asking.caller.agent, asking.now_ms)?;
        self.action(&subject.element, None, asking.proven)
    }

    /// As exchange and edge would have it.
    fn decided(&self, asking: Asking<'_>, action: &ActionRecord) -> Decided {
        let caller = asking.caller;
        let no = |reason| Decided::No(reason, Vec::new());
        if self.core.standing(caller.agent) != Standing::Active {
            return no(Reason::AgentInactive);
        }
        if self.stopped(asking).is_some() {
            return no(Reason::TokenRevoked);
        }
        let (policy, refuse) = self.ask(caller, action, asking.now_ms);
        if let Some(refuse) = refuse {
            let why = self.core.policies.told(&policy.determining);
            let element = Element {
                index: 0,
                element: state::element(action),
                why: why.clone(),
            };
            return Decided::No(refuse(Box::new(element)).reason(), why);
        }
        match self.foreseen(asking, action, Content::default()) {
            Foreseen::Passes(_) => Decided::Yes,
            Foreseen::Asks(_, approval) => Decided::Requestable(approval),
            // What decides is a body, which does not come here.
            Foreseen::Unseen => no(Reason::BodyMismatch),
            Foreseen::Refused(policy, reason) => {
                Decided::No(reason, self.core.policies.told(&policy.determining))
            }
        }
    }
}

const APPROVED: &str = "approved";

/// AuthZEN's words. One that was used is no yes any more, which an evaluation says.
fn status(approval: &Approval, now_ms: u64) -> &'static str {
    match approval.state {
        ApprovalState::Pending | ApprovalState::Approved if approval.expires_ms <= now_ms => {
            "expired"
        }
        ApprovalState::Pending => "pending",
        ApprovalState::Approved | ApprovalState::Consumed => APPROVED,
        ApprovalState::Denied => "denied",
        ApprovalState::Expired => "expired",
        ApprovalState::Cancelled => "cancelled",
    }
}
