//! AuthZEN (Authorization API 1.0, and its Access Request and Approval Profile, draft 1): an
//! agent asks whether it may do something, and asks a person where that is what is missing.
//!
//! An answer is what the exchange and the edge would say now, by their own code. Nothing is
//! promised by it and nothing is written: the request itself is decided when it comes. What
//! is asked of a person is the same approval as a held request's.

mod http;

pub(super) use http::{mtls_routes, routes};

use super::deferral::Submitted;
use super::evidence::Proven;
use super::form::Grant;
use super::proof::Shown;
use super::{Asking, Exchange, ExchangeError, Who, proofs, x5t_of};
use crate::decide::{Content, Foreseen};
use crate::state::{self, Standing};
use capability::jcs;
use capability::reason::Reason;
use identity::mtls::Peer;
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
    /// Who asks, by a session or a certificate, with a proof of this very request.
    async fn asks_at(
        &self,
        path: &str,
        (session, proof): (Option<&str>, &str),
        peer: Option<&Peer>,
        now_ms: u64,
    ) -> Result<(Shown, Proven), ExchangeError> {
        let shown = self.proof_at(path, proof, session, peer, now_ms)?;
        let x5t = x5t_of(peer);
        self.check_peer(peer, now_ms)?;
        let keys = (shown.proof.jkt(), x5t.as_deref());
        let proven = match (session, peer) {
            (Some(session), _) => self.session(session, keys).await?,
            (None, Some(peer)) => Self::by_certificate(peer)?,
            (None, None) => return Err(ExchangeError::Proof(Reason::MissingCredentials)),
        };
        Ok((shown, proven))
    }

    /// Whether an agent may do this now.
    ///
    /// # Errors
    /// The request, or who makes it, is refused.
    pub(super) async fn evaluation(
        &self,
        body: &Map<String, Value>,
        shown: (Option<&str>, &str),
        id: &str,
        peer: Option<&Peer>,
    ) -> Result<Value, ExchangeError> {
        let now_ms = self.core.now();
        let (Shown { proof, until_s }, proven) =
            self.asks_at(EVALUATION, shown, peer, now_ms).await?;
        let who = Who::of(&proven, x5t_of(peer));
        let used = proofs::used_by(&proof, until_s, id);
        let asking = Asking {
            caller: who.caller(Grant::Client, id),
            proven: &proven,
            jkt: proof.jkt(),
            proof: shown.1,
            used: &used,
            now_ms,
        };
        let action = self.asked_about(asking, body, peer).await?;
        self.proofs.take(&who.agent, &proof, until_s, now_ms)?;
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
                        "endpoint": format!("{}{REQUESTS}", self.core.config.server.issuer),
                        "expires_at": crate::web::time_for_programs(approval.expires_ms),
                        "binding_token": binding(&who.agent, &action),
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
        shown: (Option<&str>, &str),
        id: &str,
        peer: Option<&Peer>,
    ) -> Result<Value, ExchangeError> {
        let now_ms = self.core.now();
        let (Shown { proof, until_s }, proven) =
            self.asks_at(REQUESTS, shown, peer, now_ms).await?;
        let who = Who::of(&proven, x5t_of(peer));
        let used = proofs::used_by(&proof, until_s, id);
        let asking = Asking {
            caller: who.caller(Grant::Client, id),
            proven: &proven,
            jkt: proof.jkt(),
            proof: shown.1,
            used: &used,
            now_ms,
        };
        let action = self.asked_about(asking, body, peer).await?;
        let bound = body.get("binding_token").and_then(Value::as_str);
        if bound != Some(binding(&who.agent, &action).as_str()) {
            let what = "binding_token is that of the evaluation of this very request";
            return Err(ExchangeError::Request(what.into()));
        }
        if self.core.standing(&who.agent) != Standing::Active {
            return Err(self
                .refused(asking.caller, Some(action), None, ExchangeError::Inactive)
                .await);
        }
        self.proofs.take(&who.agent, &proof, until_s, now_ms)?;
        let Decided::Requestable(approval) = self.decided(asking, &action) else {
            let what = "there is nothing here for a person to say: evaluate again";
            return Err(ExchangeError::Request(what.into()));
        };
        let policy = PolicyFacts {
            version: self.core.policies.version().to_owned(),
            determining: Vec::new(),
        };
        let known = (&action, &policy);
        let nothing = Submitted::default();
        match self.asked(asking, known, approval, &nothing).await {
            Ok(Some(approval)) => Ok(self.task(&approval, now_ms)),
            Ok(None) => Err(ExchangeError::Request(
                "it is allowed by now: evaluate again".into(),
            )),
            Err(failed) => {
                if failed.nothing_happened {
                    self.proofs.give_back(&proof);
                }
                Err(failed.error)
            }
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
    async fn asked_about(
        &self,
        asking: Asking<'_>,
        body: &Map<String, Value>,
        peer: Option<&Peer>,
    ) -> Result<ActionRecord, ExchangeError> {
        self.is_peers(asking, peer).await?;
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
        if refuse.is_some() {
            let why = self.core.policies.told(&policy.determining);
            return Decided::No(Reason::PolicyDenied, why);
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
