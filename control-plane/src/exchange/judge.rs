//! Whether this action may be had by this agent: its site, the registry, policy.

use super::delegation::{self, is_covered};
use super::error::Element;
use super::evidence::Proven;
use super::form::Params;
use super::{Asking, Caller, Exchange, ExchangeError};
use crate::config::Site;
use crate::state::{self, Standing, asked, record, split_location};
use capability::action::Action;
use capability::url::Target;
use ledger::model::{ActionRecord, Command, PolicyFacts, Refused};
use policy::Verdict;

/// Resources that a refusal names; the metadata has them all.
const SITES_TOLD: usize = 4;

/// How policy refuses an element.
type Refuse = fn(Box<Element>) -> ExchangeError;

impl Exchange {
    /// Whether this agent may have a token for this action: it is one, the registry and
    /// policy allow it. A refusal is an entry.
    pub(super) async fn judge(
        &self,
        asking: Asking<'_>,
        (index, element): (usize, &serde_json::Value),
        params: Option<&Params>,
    ) -> Result<(ActionRecord, PolicyFacts), ExchangeError> {
        let caller = asking.caller;
        let action = match self.action(element, params, asking.proven) {
            Ok(action) => action,
            Err(error) => return Err(self.refused(caller, None, None, error).await),
        };
        // First, so that who may do nothing has no more of it than who may.
        if let Err(error) = self.rated(caller.agent, asking.now_ms) {
            return Err(self.refused(caller, Some(action), None, error).await);
        }
        if let Some(error) = self.standing(caller.agent).await {
            return Err(self.refused(caller, Some(action), None, error).await);
        }
        let (policy, verdict) = self.ask(caller, &action, asking.now_ms);
        if let Some(refuse) = verdict {
            let error = refuse(Box::new(Element {
                index,
                element: state::element(&action),
                why: self.core.policies.told(&policy.determining),
            }));
            return Err(self
                .refused(caller, Some(action), Some(policy), error)
                .await);
        }
        Ok((action, policy))
    }

    pub(super) fn action(
        &self,
        element: &serde_json::Value,
        params: Option<&Params>,
        proven: &Proven,
    ) -> Result<ActionRecord, ExchangeError> {
        delegation::is_none(element)?;
        let action = Action::from_details(element)
            .map_err(|error| ExchangeError::Details(error.to_string()))?;
        let site = self.site(&action)?;
        let authority = site.authority();
        let path = action.path_and_query();
        let reads = self.core.config.edge.body_of(authority, &path).is_some();
        if action.needs_body() && !reads {
            let what = match action.call() {
                Some(_) => format!("{}: bodies of this location are not read (edge.route.body), so no token can hold the request to one message: ask for an http_request of POST", action.kind()),
                None => "content_digest: bodies of this location are not read (edge.route.body), so no token can hold the request to one: leave it out".into(),
            };
            return Err(ExchangeError::Details(what));
        }
        if let Some(params) = params {
            params.check_target(&site.resource)?;
        }
        if let Some(user) = &proven.user {
            user.check(&action)?;
        }
        // Who may pass on a POST may pass on each message that could be its body.
        if let Some(under) = &proven.under
            && !is_covered(under, action.method(), &action.location())
        {
            return Err(ExchangeError::Details(
                "the delegation does not cover this action at this location".into(),
            ));
        }
        Ok(record(&action))
    }

    /// The site that an action is at: its location is the site's resource, or
    /// under it.
    pub(super) fn site(&self, action: &Action) -> Result<Site, ExchangeError> {
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

    /// Takes one of what the agent may ask for in a second, and all agents of its owner: of
    /// those one that may do nothing takes none.
    pub(super) fn rated(&self, agent: &str, now_ms: u64) -> Result<(), ExchangeError> {
        let rights = self.core.ledger.rights();
        let known = rights.agent(agent);
        let owner = known.filter(|it| it.is_active(now_ms));
        let owner = owner.map(|it| it.owner.as_str());
        self.rates.take(agent, owner, now_ms)
    }

    /// Records agents that nobody has registered, so that somebody can.
    pub(super) async fn standing(&self, agent: &str) -> Option<ExchangeError> {
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

    /// What policy says of the agent, and of each one that it acts for: nobody passes on
    /// what they may not do.
    pub(super) fn ask(
        &self,
        caller: Caller<'_>,
        action: &ActionRecord,
        now_ms: u64,
    ) -> (PolicyFacts, Option<Refuse>) {
        let own = self.ask_of(caller, caller.agent, caller.chain, action, now_ms);
        if own.1.is_some() {
            return own;
        }
        let before = caller.chain.iter().enumerate().skip(1);
        for (at, agent) in before {
            let chain = caller.chain.get(at..).unwrap_or_default();
            // Who stands first acts for nobody but the user.
            let chain = if chain.len() > 1 || caller.user.is_some() {
                chain
            } else {
                &[]
            };
            let asked = self.ask_of(caller, agent, chain, action, now_ms);
            if asked.1.is_some() {
                return asked;
            }
        }
        own
    }

    fn ask_of(
        &self,
        caller: Caller<'_>,
        agent: &str,
        chain: &[String],
        action: &ActionRecord,
        now_ms: u64,
    ) -> (PolicyFacts, Option<Refuse>) {
        let (origin, path, query) = split_location(&action.location);
        let (method, message) = asked(action);
        let verdict = self.core.policies.may_issue(&policy::Question {
            agent,
            chain,
            user: caller
                .user
                .map(|user| (user.issuer.as_str(), user.subject.as_str())),
            method,
            message,
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
}
