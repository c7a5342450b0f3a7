//! Whose rights are taken away: the registry and the stops, checked and applied.

use std::sync::Arc;

use super::State;
use crate::{
    embedded::check::Draft,
    event::Event,
    model::{
        AgentChange, AgentRecord, AgentState, ApprovalState, Bar, EXPIRED_PER_ENTRY, Given,
        LIFT_WAITS_MS, LIFTED_KEPT_MS, Limits, Millis, Refused, Right, Stop, Stopper, Target,
    },
};

/// Of the room for stops, agents have one part in so many for what they revoke.
const TOKEN_PART: usize = 2;
/// Of it, one part in so many is for people, and not for families of refresh tokens.
const PEOPLE_PART: usize = 4;

impl State {
    /// Whether whom something was given to may still use it.
    ///
    /// # Errors
    /// [`Refused::Stopped`] and [`Refused::Inactive`].
    pub(crate) fn may_use(&self, given: &Given<'_>, now: Millis) -> Result<(), Refused> {
        if planted!(StopUnchecked) {
            return Ok(());
        }
        match self.rights.bar(given, now) {
            None => Ok(()),
            Some(Bar::Stopped(what)) => Err(Refused::Stopped(what)),
            Some(Bar::Inactive) => Err(Refused::Inactive),
        }
    }

    pub(crate) fn check_agent(
        &self,
        agent: String,
        change: AgentChange,
        by: String,
        now: Millis,
        limits: &Limits,
    ) -> Result<Draft, Refused> {
        let known = self.rights.agent(&agent);
        if known.is_none() && self.rights.agents.len() >= limits.agents {
            return Err(Refused::Limit("registered agents"));
        }
        let mut record = match known {
            Some(known) => known.clone(),
            None => AgentRecord {
                agent,
                owner: change.owner.clone().ok_or(Refused::NoOwner)?,
                purpose: String::new(),
                environment: String::new(),
                state: AgentState::Discovered,
                created_ms: now,
                changed_ms: now,
                changed_by: String::new(),
                why: String::new(),
                expires_ms: None,
                void_ms: 0,
            },
        };
        let was = record.state;
        let next = change.state.unwrap_or(was);
        if !was.may_become(next) {
            return Err(Refused::Transition(was));
        }
        // What it had while it was active counts no more, also when it is active again.
        let leaves = was == AgentState::Active && next != was;
        let returns = was == AgentState::Suspended && next == AgentState::Active;
        let had_ended = was == AgentState::Active && !record.is_active(now);
        record.state = next;
        record.owner = change.owner.unwrap_or(record.owner);
        record.purpose = change.purpose.unwrap_or(record.purpose);
        record.environment = change.environment.unwrap_or(record.environment);
        record.expires_ms = change.expires_ms.unwrap_or(record.expires_ms);
        record.why = change.why;
        record.changed_ms = now;
        record.changed_by = by;
        if leaves || returns || (had_ended && record.is_active(now) && !planted!(EndForgotten)) {
            record.void_ms = now;
        }
        Ok(Draft::plain(Event::Agent(record)))
    }

    pub(crate) fn check_stop(
        &self,
        (target, stopper): (Target, Stopper),
        by: String,
        why: String,
        until_ms: Option<Millis>,
        now: Millis,
        limits: &Limits,
    ) -> Result<Draft, Refused> {
        let standing = self.rights.stops.get(&target);
        let known = standing.is_some();
        // Who stops what is stopped already never shortens that.
        let standing = standing.filter(|stop| stop.lifted.is_none());
        let until_ms = match standing.map(|stop| stop.until_ms) {
            Some(standing) => standing.and_then(|at| until_ms.map(|until| until.max(at))),
            None => until_ms,
        };
        // What agents stop, or provoke, leaves room: for families, and for people.
        let most = match (&target, stopper) {
            (Target::Token(_), Stopper::Agent) => limits.stops / TOKEN_PART,
            (Target::Token(_), Stopper::Family) => limits.stops - limits.stops / PEOPLE_PART,
            _ => limits.stops,
        };
        // Everything can always be stopped.
        if !known && self.rights.stops.len() >= most && target != Target::Everything {
            return Err(Refused::Limit("stops"));
        }
        Ok(Draft::plain(Event::Stop(Stop {
            target,
            at_ms: now,
            by,
            why,
            until_ms,
            lift_asked: None,
            lifted: None,
        })))
    }

    pub(crate) fn check_lift(
        &self,
        target: &Target,
        by: String,
        now: Millis,
    ) -> Result<Draft, Refused> {
        let known = self.rights.stops.get(target);
        let known = known.filter(|stop| stop.lifted.is_none());
        let mut stop = Stop::clone(known.ok_or(Refused::NotStopped)?);
        let first = stop.lift_asked.take();
        let second = first.is_some_and(|(other, at)| {
            (other != by || planted!(OneLifts)) && now <= at.saturating_add(LIFT_WAITS_MS)
        });
        if *target == Target::Everything && !second {
            stop.lift_asked = Some((by, now));
        } else {
            stop.lifted = Some((by, now));
            stop.at_ms = now;
            stop.until_ms = Some(now.saturating_add(LIFTED_KEPT_MS));
        }
        Ok(Draft::plain(Event::Lift(stop)))
    }

    pub(crate) fn check_cancel(&self, now: Millis) -> Result<Draft, Refused> {
        let gone = self.approvals().filter(|approval| {
            approval.is_open() && self.rights.bar(&Given::from(*approval), now).is_some()
        });
        let ids: Vec<String> = gone
            .take(EXPIRED_PER_ENTRY)
            .map(|approval| approval.id.clone())
            .collect();
        if ids.is_empty() {
            return Err(Refused::ApprovalState(None));
        }
        Ok(Draft::plain(Event::ApprovalsCancelled { ids }))
    }

    pub(super) fn put_agent(&mut self, record: &AgentRecord) {
        self.discovered.remove(&record.agent);
        let was = self.rights.agent(&record.agent).map(|it| it.owner.clone());
        if was.as_ref() != Some(&record.owner) && !planted!(OwnerKept) {
            // What the agent has goes with it.
            let outstanding = self.counts(&record.agent).outstanding;
            self.owners
                .shift(was.as_deref(), &record.owner, outstanding);
        }
        Arc::make_mut(&mut self.rights).put(Right::Agent(record.clone()));
        self.holds_changed += 1;
    }

    pub(super) fn put_stop(&mut self, stop: &Stop) {
        Arc::make_mut(&mut self.rights).put(Right::Stop(stop.clone()));
        self.holds_changed += 1;
    }

    pub(super) fn cancel(&mut self, ids: &[String]) {
        for id in ids {
            self.end_approval(id, ApprovalState::Cancelled);
        }
    }
}
