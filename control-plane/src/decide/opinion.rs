//! What the registry and policy say of a request, with the approval that may
//! lift the rules which want a human.

use super::engine::Engine;
use super::facts::{Facts, body_digest, body_facts, digest_of};
use crate::state::{Standing, asked, split_location};
use capability::reason::Reason;
use ledger::model::{Approval, ApprovalState, PolicyFacts, TokenRecord};
use policy::{Demand, Verdict};
use std::collections::BTreeSet;

/// What policy and the registry say of a request at this moment.
pub(super) enum Opinion {
    Allow(PolicyFacts, Option<Box<Approval>>),
    Deny(PolicyFacts, Reason),
    Hold(PolicyFacts, Vec<Demand>),
}

/// What policy is told of a body; nothing where bodies are not read.
#[derive(Default)]
struct Told {
    sha256: Option<String>,
    bytes: u64,
    facts: Vec<(String, policy::Fact)>,
}

impl Engine {
    pub(super) fn opinion(&self, token: &TokenRecord, facts: &Facts) -> Opinion {
        let digest = digest_of(token, facts);
        let approved = self.core.ledger.approved_unused(&digest);
        self.opinion_with(token, facts, approved.as_ref())
    }

    pub(super) fn opinion_with(
        &self,
        token: &TokenRecord,
        request: &Facts,
        approval: Option<&Approval>,
    ) -> Opinion {
        let version = self.core.policies.version().to_owned();
        let facts = |determining| PolicyFacts {
            version: version.clone(),
            determining,
        };
        if self.core.standing(&token.agent) != Standing::Active {
            return Opinion::Deny(facts(Vec::new()), Reason::AgentInactive);
        }
        let Some(body) = self.body(request) else {
            tracing::error!(
                agent = token.agent,
                path = request.question.path,
                "a body has not the facts that its route names; the request is refused"
            );
            return Opinion::Deny(facts(Vec::new()), Reason::PolicyError);
        };
        let first = self.ask(token, &body, &BTreeSet::new());
        let demands = match first {
            Verdict::Allow(ids) => return Opinion::Allow(facts(ids), None),
            Verdict::Deny(ids) => return Opinion::Deny(facts(ids), Reason::PolicyDenied),
            Verdict::Error(problems) => {
                tracing::error!(
                    ?problems,
                    agent = token.agent,
                    "policy could not be evaluated; the request is refused"
                );
                return Opinion::Deny(facts(Vec::new()), Reason::PolicyError);
            }
            Verdict::Hold(demands) => demands,
        };
        let ids = || {
            demands
                .iter()
                .map(|demand| demand.rule.clone())
                .collect::<Vec<_>>()
        };
        // One person has to be able to meet every rule's demands.
        let nobody = !self.core.config.approvers.iter().any(|approver| {
            demands
                .iter()
                .all(|demand| approver.is_one_of(&demand.approvers))
        });
        if nobody {
            tracing::error!(rules = ?ids(), "no approver is named by all of these rules, so nobody can lift them; the request is refused");
            return Opinion::Deny(facts(ids()), Reason::PolicyDenied);
        }
        let Some(approval) =
            approval.filter(|approval| self.lifts(approval, token, request, &demands))
        else {
            return Opinion::Hold(facts(ids()), demands);
        };
        let lifted: BTreeSet<String> = ids().into_iter().collect();
        match self.ask(token, &body, &lifted) {
            Verdict::Allow(ids) => Opinion::Allow(facts(ids), Some(Box::new(approval.clone()))),
            Verdict::Deny(ids) => Opinion::Deny(facts(ids), Reason::PolicyDenied),
            Verdict::Hold(_) => Opinion::Hold(facts(ids()), demands),
            Verdict::Error(problems) => {
                tracing::error!(
                    ?problems,
                    agent = token.agent,
                    "policy could not be evaluated; the request is refused"
                );
                Opinion::Deny(facts(Vec::new()), Reason::PolicyError)
            }
        }
    }

    /// Whether this approval meets every rule's demands: same action, approved,
    /// in time, for these rules, by one whom each of them names.
    fn lifts(
        &self,
        approval: &Approval,
        token: &TokenRecord,
        facts: &Facts,
        demands: &[Demand],
    ) -> bool {
        let digest = digest_of(token, facts);
        let by = approval.decided_by.as_deref().unwrap_or_default();
        let approver = self
            .core
            .config
            .approvers
            .iter()
            .find(|approver| approver.name == by);
        approval.digest == digest
            && approval.state == ApprovalState::Approved
            && self.core.ledger.now() < approval.expires_ms
            && approver.is_some_and(|approver| {
                demands.iter().all(|demand| {
                    approval.rules.contains(&demand.rule) && approver.is_one_of(&demand.approvers)
                })
            })
    }

    /// What policy is told of the body; `None` when something of that is missing.
    fn body(&self, request: &Facts) -> Option<Told> {
        let question = &request.question;
        let Some(digest) = body_digest(question) else {
            return Some(Told::default());
        };
        let edge = &request.edge;
        let facts = match edge.body_of(&question.authority, &question.path) {
            Some(wanted) => body_facts(wanted, question)?,
            None => Vec::new(),
        };
        Some(Told {
            sha256: Some(capability::b64::encode(&digest)),
            bytes: question.body.as_ref().map_or(0, |body| body.size),
            facts,
        })
    }

    /// What policy says of the agent, and of each one that it acts for: nobody has another
    /// do what they may not, or may only with a person's yes.
    fn ask(&self, token: &TokenRecord, body: &Told, approved: &BTreeSet<String>) -> Verdict {
        let own = self.ask_of(token, &token.agent, &token.chain, body, approved);
        let before = token.chain.iter().enumerate().skip(1);
        before.fold(own, |said, (at, agent)| {
            let chain = token.chain.get(at..).unwrap_or_default();
            // Who stands first acts for nobody but the user.
            let alone = chain.len() == 1 && token.user.is_none();
            let chain = if alone { &[] } else { chain };
            said.and(self.ask_of(token, agent, chain, body, approved))
        })
    }

    fn ask_of(
        &self,
        token: &TokenRecord,
        agent: &str,
        chain: &[String],
        body: &Told,
        approved: &BTreeSet<String>,
    ) -> Verdict {
        let (origin, path, query) = split_location(&token.action.location);
        let (method, message) = asked(&token.action);
        self.core.policies.may_pass(
            &policy::Question {
                agent,
                user: token
                    .user
                    .as_ref()
                    .map(|user| (user.issuer.as_str(), user.subject.as_str())),
                chain,
                method,
                message,
                location: &token.action.location,
                origin,
                path,
                query,
                time_s: self.core.now() / 1000,
                body: body.sha256.as_deref().map(|sha256| policy::Body {
                    sha256,
                    bytes: body.bytes,
                    facts: &body.facts,
                }),
            },
            approved,
        )
    }
}
