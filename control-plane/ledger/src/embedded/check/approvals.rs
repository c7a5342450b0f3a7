//! Whether an approval may be opened, joined or decided.

use super::Draft;
use crate::{
    embedded::state::State,
    event::{Answer, Entry, Event, Subject},
    model::{
        Approval, ApprovalState, Evidence, Given, Hash, Limits, Millis, PolicyFacts, Refused,
        RequestFacts,
    },
};

pub(super) struct HoldParts {
    pub(super) token: Subject,
    pub(super) attempt: String,
    pub(super) request: RequestFacts,
    pub(super) policy: PolicyFacts,
    pub(super) approval: Approval,
    pub(super) attachments: Vec<Evidence>,
}

pub(super) struct AskParts {
    pub(super) request_id: String,
    pub(super) policy: PolicyFacts,
    pub(super) approval: Approval,
    pub(super) attachments: Vec<Evidence>,
}

impl State {
    pub(super) fn check_hold(
        &self,
        hold: HoldParts,
        now: Millis,
        limits: &Limits,
    ) -> Result<Draft, Refused> {
        let HoldParts {
            token,
            attempt,
            request,
            policy,
            approval,
            attachments,
        } = hold;
        let (id, opened) = self.opened(approval, now, limits)?;
        let event = Event::Hold {
            token,
            attempt,
            request,
            policy,
            approval: id.clone(),
            opened,
        };
        Ok(Draft {
            entry: Entry::Event(Box::new(event)),
            attachments,
            approval: Some(id),
        })
    }

    /// The approval's id that is waited for, and the approval where it is opened for that:
    /// else an equal one is pending.
    fn opened(
        &self,
        approval: Approval,
        now: Millis,
        limits: &Limits,
    ) -> Result<(String, Option<Approval>), Refused> {
        // One that is void is as good as cancelled, which it will be: nobody waits for that.
        let equal = |other: &&Approval| {
            other.expires_ms > now
                && other.rules == approval.rules
                && self.may_use(&Given::from(*other), now).is_ok()
        };
        let mut found = None;
        for other in self.open_with(&approval.digest).filter(equal) {
            match other.state {
                ApprovalState::Pending => found = Some(other.id.clone()),
                // Approved after the caller looked: asking a human again would be a second notice.
                ApprovalState::Approved if other.policy_version == approval.policy_version => {
                    return Err(Refused::ApprovalState(Some(ApprovalState::Approved)));
                }
                _ => {}
            }
        }
        match found {
            Some(id) => Ok((id, None)),
            None => {
                // Who was told no does not have people asked until one says yes.
                let denied = self.denied_with(&approval.digest).any(|other| {
                    let until = other.decided_ms.unwrap_or_default();
                    now < until.saturating_add(limits.denied_ms) && other.rules == approval.rules
                });
                if denied && !planted!(DeniedAskedAgain) {
                    return Err(Refused::ApprovalState(Some(ApprovalState::Denied)));
                }
                // An agent's own share ends first: it cannot take what others need.
                if self.open_approvals_of(&approval.agent) >= limits.approvals_open_per_agent {
                    return Err(Refused::Limit("open approvals per agent"));
                }
                if self.open_approvals() >= limits.approvals_open {
                    return Err(Refused::Limit("open approvals"));
                }
                if let Some(known) = self.approval(&approval.id) {
                    return Err(Refused::ApprovalState(Some(known.state)));
                }
                let clean = Approval {
                    state: ApprovalState::Pending,
                    created_ms: now,
                    decided_by: None,
                    decided_ms: None,
                    ..approval
                };
                Ok((clean.id.clone(), Some(clean)))
            }
        }
    }

    /// Whether a human may be asked ahead of a request.
    pub(super) fn check_ask(
        &self,
        ask: AskParts,
        now: Millis,
        limits: &Limits,
    ) -> Result<Draft, Refused> {
        let AskParts {
            request_id,
            policy,
            approval,
            attachments,
        } = ask;
        let approval = Approval {
            created_ms: now,
            ..approval
        };
        self.may_use(&Given::from(&approval), now)?;
        let agent = approval.agent.clone();
        let (id, opened) = self.opened(approval, now, limits)?;
        let event = Event::Ask {
            agent,
            request_id,
            policy,
            approval: id.clone(),
            opened,
        };
        Ok(Draft {
            entry: Entry::Event(Box::new(event)),
            attachments,
            approval: Some(id),
        })
    }

    pub(super) fn check_decision(
        &self,
        id: String,
        digest: Hash,
        approve: bool,
        by: String,
        now: Millis,
        usable_ms: Millis,
    ) -> Result<Draft, Refused> {
        self.approval_in(&id, &digest, ApprovalState::Pending, now)?;
        let (decision, expires_ms) = if approve {
            let approval = self.approval(&id).ok_or(Refused::ApprovalState(None))?;
            self.may_use(&Given::from(approval), now)?;
            (Answer::Approved, now.saturating_add(usable_ms))
        } else {
            (Answer::Denied, now)
        };
        let event = Event::Approval {
            id: id.clone(),
            digest,
            decision,
            by,
            expires_ms,
        };
        Ok(Draft {
            entry: Entry::Event(Box::new(event)),
            attachments: Vec::new(),
            approval: Some(id),
        })
    }
}
