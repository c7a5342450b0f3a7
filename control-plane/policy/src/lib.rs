//! Cedar: load, check, decide.
//!
//! Two questions are asked of one policy set: may this capability be issued
//! (exchange), and may this request go through now (request). A rule that wants
//! a human is a `forbid` with `@approvers` that its own id in
//! `context.approvals` lifts; it is left aside at the exchange, since holds
//! happen at the edge.
//!
//! Cedar skips a policy that errors, a `forbid` included. Here any diagnostic
//! denies.

mod facts;
mod lift;
mod load;
mod model;

pub use load::{Approver, LoadError, Source};
pub use model::{SCHEMA, schema};

use cedar_policy::{Authorizer, Decision, Effect, PolicyId};
use std::collections::{BTreeMap, BTreeSet};

/// What is being asked, and about what.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// The agent's SPIFFE ID.
    pub agent: &'a str,
    /// The user it acts for, issuer and subject.
    pub user: Option<(&'a str, &'a str)>,
    /// The agents of the chain that it acts in (RFC 8693's `act`), itself outermost; empty
    /// when it acts for itself.
    pub chain: &'a [String],
    /// The HTTP method.
    pub method: &'a str,
    /// The one message that it is, where the capability is for one.
    pub message: Option<Message<'a>>,
    /// The normalised absolute URL with its query: the resource's id.
    pub location: &'a str,
    /// Its `scheme://authority`.
    pub origin: &'a str,
    /// Its path, without query.
    pub path: &'a str,
    /// Its query, without `?`; empty when there is none.
    pub query: &'a str,
    /// Now, in seconds since the Unix epoch.
    pub time_s: u64,
    /// Its body, where bodies are read.
    pub body: Option<Body<'a>>,
}

/// Whose messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The Model Context Protocol: `context.mcp`.
    Mcp,
    /// Agent2Agent: `context.a2a`.
    A2a,
}

/// One JSON-RPC message as policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Whose.
    pub protocol: Protocol,
    /// Its method.
    pub method: &'a str,
    /// MCP's tool, prompt or resource; A2A's skill.
    pub name: Option<&'a str>,
    /// SHA-256 of the canonical form of its arguments, base64url, where the capability
    /// holds it to them.
    pub arguments_digest: Option<&'a str>,
}

/// A body as policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a> {
    /// SHA-256 of its bytes as they were sent, base64url.
    pub sha256: &'a str,
    /// How many they are.
    pub bytes: u64,
    /// What its route's JSON pointers found.
    pub facts: &'a [(String, Fact)],
}

/// One value of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A string.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// True or false.
    Flag(bool),
}

/// What kind of value a fact is, wherever it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FactKind {
    /// [`Fact::Text`]: `String` in policies.
    Text,
    /// [`Fact::Integer`]: `Long` in policies.
    Integer,
    /// [`Fact::Flag`]: `Bool` in policies.
    Flag,
}

impl Fact {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> FactKind {
        match self {
            Self::Text(_) => FactKind::Text,
            Self::Integer(_) => FactKind::Integer,
            Self::Flag(_) => FactKind::Flag,
        }
    }
}

/// A rule that wants a human before it lets the request pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The rule's id.
    pub rule: String,
    /// Who may decide: names or groups, in the annotation's order.
    pub approvers: Vec<String>,
    /// What `@reason` says; empty when it says nothing.
    pub reason: String,
    /// How long the approval may stay pending, in seconds, when `@ttl` sets it.
    pub ttl_s: Option<u64>,
}

/// What policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may. The ids of the permits that decided.
    Allow(Vec<String>),
    /// It may not. The ids of the forbids that decided; empty when nothing permits it.
    Deny(Vec<String>),
    /// It may once a human has said yes to each of these.
    Hold(Vec<Demand>),
    /// A policy could not be evaluated: deny. The text is for the operator, not for the agent.
    Error(Vec<String>),
}

impl Verdict {
    /// What two verdicts on one request come to: the stricter of them. A request that waits
    /// needs what both demand, each rule once.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let united = |mut all: Vec<String>, more: Vec<String>| {
            more.into_iter().for_each(|id| {
                if !all.contains(&id) {
                    all.push(id);
                }
            });
            all
        };
        match (self, other) {
            (Self::Error(one), Self::Error(two)) => Self::Error(united(one, two)),
            (Self::Error(problems), _) | (_, Self::Error(problems)) => Self::Error(problems),
            (Self::Deny(one), Self::Deny(two)) => Self::Deny(united(one, two)),
            (Self::Deny(ids), _) | (_, Self::Deny(ids)) => Self::Deny(ids),
            (Self::Hold(mut all), Self::Hold(more)) => {
                more.into_iter().for_each(|demand| {
                    if !all.iter().any(|known| known.rule == demand.rule) {
                        all.push(demand);
                    }
                });
                Self::Hold(all)
            }
            (Self::Hold(demands), _) | (_, Self::Hold(demands)) => Self::Hold(demands),
            (Self::Allow(one), Self::Allow(two)) => Self::Allow(united(one, two)),
        }
    }
}

/// A loaded, validated policy set.
#[derive(Debug)]
pub struct Policies {
    all: cedar_policy::PolicySet,
    /// Without the rules that want a human: what the exchange asks.
    without_holds: cedar_policy::PolicySet,
    demands: BTreeMap<PolicyId, Demand>,
    /// The reasons that agents may be told, by their rules' ids.
    told: BTreeMap<PolicyId, String>,
    /// The methods that the schema knows; any other is an error.
    methods: BTreeSet<String>,
    version: String,
}

impl Policies {
    /// Parses and validates `sources`; every problem is reported at once.
    ///
    /// # Errors
    /// Parse errors, validation errors (strict mode), duplicate rule ids, and
    /// `@approvers` that name nobody in `approvers`.
    pub fn load(sources: &[Source], approvers: &[Approver]) -> Result<Self, Vec<LoadError>> {
        Self::load_with(sources, approvers, &BTreeMap::new())
    }

    /// As [`Policies::load`], for policies that may look at these facts of bodies.
    ///
    /// # Errors
    /// As [`Policies::load`].
    pub fn load_with(
        sources: &[Source],
        approvers: &[Approver],
        facts: &BTreeMap<String, FactKind>,
    ) -> Result<Self, Vec<LoadError>> {
        load::load(sources, approvers, facts)
    }

    /// SHA-256 of the policy texts, hex: what the log calls the version.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What the agent may be told of why these rules refuse it: the `@reason` of each one
    /// that says `@tell("agent")`.
    #[must_use]
    pub fn told(&self, rules: &[String]) -> Vec<String> {
        let reason = |rule: &String| self.told.get(&PolicyId::new(rule)).cloned();
        rules.iter().filter_map(reason).collect()
    }

    /// May this capability be issued? Never [`Verdict::Hold`].
    #[must_use]
    pub fn may_issue(&self, question: &Question<'_>) -> Verdict {
        match self.ask(&self.without_holds, "exchange", question, &BTreeSet::new()) {
            Ok((Decision::Allow, ids)) => Verdict::Allow(names(&ids)),
            Ok((Decision::Deny, ids)) => Verdict::Deny(names(&ids)),
            Err(problems) => Verdict::Error(problems),
        }
    }

    /// May this request go through now? `approved` are the ids of rules whose
    /// approvers, quorum, time and digest have been checked by code.
    #[must_use]
    pub fn may_pass(&self, question: &Question<'_>, approved: &BTreeSet<String>) -> Verdict {
        let ids = match self.ask(&self.all, "request", question, approved) {
            Ok((Decision::Allow, ids)) => return Verdict::Allow(names(&ids)),
            Ok((Decision::Deny, ids)) => ids,
            Err(problems) => return Verdict::Error(problems),
        };
        let demands: Option<Vec<Demand>> =
            ids.iter().map(|id| self.demands.get(id).cloned()).collect();
        let Some(demands) = demands.filter(|found| !found.is_empty()) else {
            return Verdict::Deny(names(&ids));
        };
        // Held only when lifting exactly these rules would allow it cleanly.
        let mut lifted = approved.clone();
        lifted.extend(demands.iter().map(|demand| demand.rule.clone()));
        match self.ask(&self.all, "request", question, &lifted) {
            Ok((Decision::Allow, _)) => Verdict::Hold(demands),
            Ok((Decision::Deny, _)) => Verdict::Deny(names(&ids)),
            Err(problems) => Verdict::Error(problems),
        }
    }

    fn ask(
        &self,
        set: &cedar_policy::PolicySet,
        phase: &str,
        question: &Question<'_>,
        approved: &BTreeSet<String>,
    ) -> Result<(Decision, Vec<PolicyId>), Vec<String>> {
        if !self.methods.contains(question.method) {
            return Err(vec!["the schema has no such action".to_owned()]);
        }
        let (request, entities) = model::request(None, phase, question, approved)?;
        let response = Authorizer::new().is_authorized(&request, set, &entities);
        let problems: Vec<String> = response
            .diagnostics()
            .errors()
            .map(ToString::to_string)
            .collect();
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut ids: Vec<PolicyId> = response.diagnostics().reason().cloned().collect();
        ids.sort();
        Ok((response.decision(), ids))
    }
}

fn names(ids: &[PolicyId]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}

/// Whether this policy wants a human: a `forbid` with `@approvers`.
fn wants_human(policy: &cedar_policy::Policy) -> bool {
    policy.effect() == Effect::Forbid && policy.annotation("approvers").is_some()
}

#[cfg(test)]
mod tests;
