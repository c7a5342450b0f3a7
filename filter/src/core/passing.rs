//! The two ends of a request's wait: it goes on, or it is refused.

use super::{By, Core};
use crate::config::Bodies;
use crate::denials::Kept;
use crate::host::{self, HostFault};
use crate::open::Given;
use crate::outcomes::not_forwarded;
use crate::questions::{Facts, Passage, Paused};
use crate::refusal::Refusal;
use capability::decide::{self, Leave, Mode, Observed, Permit};
use capability::headers::CREDENTIALS;
use capability::reason::Reason;
use decision_api::{Allow, End};
use std::rc::Rc;

impl Core {
    /// The only way to the upstream on a route that enforces. Nobody but the
    /// decider makes a permit, and this uses it up.
    pub(super) fn forward(&mut self, permit: Permit, request: &Paused, allow: &Allow) {
        let id = request.passage.id().clone();
        if self.put(request.http).is_err() {
            self.metrics.contexts_lost.add(1);
            self.outcome(not_forwarded(&id, "the request is gone"));
            return;
        }
        let marked = match self.settings.bodies {
            Bodies::Read => host::mark_passed(),
            Bodies::Pass | Bodies::Before => Ok(()),
        };
        let headers = set_verified_headers(allow, request.facts.decision_header);
        if headers.and(marked).is_err() {
            // Spent, and it cannot go on as it must: that no route observes.
            let refusal = Refusal::new(Reason::InternalError);
            let mut refused = request.facts.clone();
            refused.mode = Mode::Enforce;
            self.refuse(request.http, &refused, &refusal, By::Filter);
            self.outcome(not_forwarded(&id, "headers could not be set"));
            return;
        }
        leave_facts(&request.facts, Some(&allow.token_id));
        // Where a route only observes nothing ends what goes on.
        let enforced = request.facts.mode == Mode::Enforce;
        if let (Some(allowed), true) = (request.passage.open(Leave::Permitted(permit)), enforced) {
            let given = Given::of(allowed, allow);
            self.open.enter(request.http, &request.passage, given);
        }
        self.metrics.accepted.add(1);
        resume();
    }

    /// Ends requests that were let through and have been stopped since. What is over,
    /// or was never let through, is left alone.
    pub(super) fn end(&mut self, end: &End) {
        // A word that is not on the closed list is never passed on.
        let reason = Reason::parse(&end.reason).unwrap_or(Reason::InternalError);
        for id in &end.ids {
            let Some(http) = self.open.context_of(id) else {
                continue;
            };
            if self.put(http).is_err() {
                // It stays: the end is said again until its outcome is there.
                self.metrics.contexts_lost.add(1);
                continue;
            }
            let Some(open) = self.open.take(id) else {
                continue;
            };
            open.passage.end(reason);
            let _lost = host::set_fact("ended", reason.as_str());
            if host::reset_request().is_err() {
                host::warn("writ: the host did not end a request that was stopped");
            }
            self.metrics.ended.add(1);
        }
    }

    /// Refuses a request that waits, or lets it go on where its route observes.
    pub(super) fn refuse_paused(&mut self, request: &Paused, refusal: &Refusal, by: By) {
        if let Some(observed) = self.refuse(request.http, &request.facts, refusal, by) {
            let _nothing = request.passage.open(Leave::Observed(observed));
            resume();
        }
    }

    /// As [`Core::refuse_paused`], in the callback in which the request came: it
    /// goes on when that returns.
    pub(super) fn refuse_on_arrival(
        &mut self,
        http: u32,
        facts: &Facts,
        refusal: &Refusal,
    ) -> Option<Rc<Passage>> {
        let observed = self.refuse(http, facts, refusal, By::Filter)?;
        let passage = Passage::unasked();
        let _nothing = passage.open(Leave::Observed(observed));
        Some(passage)
    }

    /// Counts and records a refusal, and answers the request; or gives leave to
    /// forward it, where its route observes.
    fn refuse(&mut self, http: u32, facts: &Facts, refusal: &Refusal, by: By) -> Option<Observed> {
        let reason = refusal.reason();
        let there = self.put(http).is_ok();
        // Without its credentials off it goes nowhere.
        let observed =
            decide::observe(facts.mode, reason).filter(|_| there && strip_credentials().is_ok());
        self.count(reason, observed.is_some());
        if by == By::Filter {
            self.record(facts, reason, observed.is_some());
        }
        if !there {
            self.metrics.contexts_lost.add(1);
            return None;
        }
        let known = facts.caller.as_ref().map(|caller| caller.jti.as_str());
        leave_facts(facts, known);
        if observed.is_some() {
            // The log has the reason all the same, beside the word.
            let _lost = host::set_reason(reason.as_str());
            let _lost = host::set_fact("observed", "true");
        } else if refusal
            .reply(&facts.request_id, facts.metadata.as_deref())
            .is_err()
        {
            host::warn("writ: the host did not take a refusal; the request stays paused");
        }
        observed
    }

    fn count(&self, reason: Reason, observed: bool) {
        if !observed {
            self.metrics.refused(reason);
            return;
        }
        self.metrics.observed(reason);
        if reason == Reason::ControlPlaneUnavailable {
            self.metrics.unobserved.add(1);
        }
    }

    fn record(&mut self, facts: &Facts, reason: Reason, observed: bool) {
        // Without the host's time the entry says 0, which cannot be mistaken.
        let now_ms = host::now_ms().unwrap_or_default();
        match facts.denial(reason.as_str(), now_ms, observed) {
            Some(denial) => {
                if self.denials.push(denial) == Kept::Dropped {
                    self.metrics.denials_dropped.add(1);
                }
            }
            None => self.denials.count(reason, observed),
        }
    }
}

fn resume() {
    if host::resume_request().is_err() {
        host::warn("writ: the host did not resume a request that may go on");
    }
}

/// What the access log joins a request with its entry by. Only for the request in
/// force. A log that lacks them is no reason to refuse.
fn leave_facts(facts: &Facts, token_id: Option<&str>) {
    if !facts.question.is_empty() {
        let _lost = host::set_fact("question", &facts.question);
    }
    if let Some(token_id) = token_id {
        let _lost = host::set_fact("token_id", token_id);
    }
    if let Some(decision_us) = facts.decision_us {
        let _lost = host::set_fact("decision_us", &decision_us.to_string());
    }
}

/// Takes the credentials off. Only for the request in force.
fn strip_credentials() -> Result<(), HostFault> {
    for credential in CREDENTIALS {
        host::remove_request_header(credential)?;
    }
    Ok(())
}

/// Takes the credentials off and sets what was verified. Only for the request
/// in force, and only once it is allowed.
fn set_verified_headers(allow: &Allow, decision_header: bool) -> Result<(), HostFault> {
    strip_credentials()?;
    // An upstream that waits for the signed decision gets nothing without it.
    if decision_header && allow.decision.is_empty() {
        return Err(HostFault);
    }
    let decision = if decision_header { &allow.decision } else { "" };
    let facts = [
        ("x-writ-agent", allow.agent.as_str()),
        ("x-writ-token-id", &allow.token_id),
        ("x-writ-user", &allow.user),
        ("x-writ-decision", decision),
    ];
    for (name, value) in facts {
        if !value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return Err(HostFault);
        }
        if !value.is_empty() {
            host::set_request_header(name, value.as_bytes())?;
        }
    }
    Ok(())
}
