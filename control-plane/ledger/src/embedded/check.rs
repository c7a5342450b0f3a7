//! Whether a command may still happen, against the state as it will be when it
//! is written. Callers evaluated at an older version; what can have changed
//! since is checked again here, in the ledger's one thread.

mod approvals;
mod grants;
mod proofs;

use approvals::{AskParts, HoldParts};

use crate::{
    embedded::state::{Outstanding, State},
    event::{ApprovalUse, Entry, Event, Subject},
    model::{
        Approval, ApprovalState, Command, EVIDENCE_KEYS, EXPIRED_PER_ENTRY, Evidence, EvidenceOf,
        Given, Hash, HexHash, Limits, Millis, NOTE_KINDS, OVERDUE_PER_ENTRY, Refused, TokenRecord,
    },
};

/// Sizes in lines stay within what every JSON reader takes exactly.
const LARGEST_INTEGER: u64 = (1 << 53) - 1;

/// A command that may be committed: its entry, what goes beside the line, and
/// the id of the approval that the answer shows.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) entry: Entry,
    pub(crate) attachments: Vec<Evidence>,
    pub(crate) approval: Option<String>,
}

impl Draft {
    pub(crate) fn plain(event: Event) -> Self {
        Self {
            entry: Entry::Event(Box::new(event)),
            attachments: Vec::new(),
            approval: None,
        }
    }

    fn with(event: Event, attachments: Vec<Evidence>) -> Self {
        Self {
            entry: Entry::Event(Box::new(event)),
            attachments,
            approval: None,
        }
    }
}

impl State {
    /// Checks one command at ledger time `now`.
    ///
    /// # Errors
    /// A [`Refused`] that says what is stale; the state is as it was.
    pub(crate) fn check(
        &self,
        command: Command,
        now: Millis,
        limits: &Limits,
    ) -> Result<Draft, Refused> {
        if self.suspended.is_some() && grants(&command) {
            return Err(Refused::Suspended);
        }
        match command {
            Command::Issue {
                token,
                evidence_id,
                evidence_expires_ms,
                also,
                once,
                proof,
                under,
                next,
                policy,
                attachments,
            } => {
                let issued = |token: TokenRecord| TokenRecord {
                    issued_ms: now,
                    ..token
                };
                let (token, next) = (issued(token), next.map(issued));
                let evidence = EvidenceOf {
                    id: evidence_id,
                    expires_ms: evidence_expires_ms,
                };
                self.check_issue(&token, (&evidence, &also, &once), now, limits)?;
                self.check_proof(proof.as_deref(), now)?;
                self.check_grants(&token, under, next.as_ref(), now)?;
                Ok(Draft::with(
                    Event::Issue {
                        token: token.into(),
                        evidence,
                        also,
                        once,
                        proof: proof.map(|proof| *proof),
                        under: under.map(HexHash),
                        next: next.map(Box::new),
                        policy,
                    },
                    attachments,
                ))
            }
            Command::ExchangeRefused {
                agent,
                user,
                reason,
                error,
                request_id,
                action,
                policy,
            } => Ok(Draft::plain(Event::ExchangeRefused {
                agent,
                user,
                reason,
                error,
                request_id: Some(request_id),
                action,
                policy,
            })),
            Command::Present { agent, once, what } => {
                self.may_use(&Given::to(&agent, now), now)?;
                self.check_evidence(&agent, "", (&[], &[once]), limits)?;
                let what = what.to_owned();
                Ok(Draft::plain(Event::Present { agent, once, what }))
            }
            Command::Discover { agent } => self.check_discover(agent, limits),
            Command::Allow {
                token_hash,
                attempt,
                request,
                policy,
                approval,
                attachments,
            } => {
                let token = self.spendable(&token_hash, &attempt, now)?;
                self.may_use(&Given::from(&*self.outstanding(&token_hash)?.record), now)?;
                let approval = match approval {
                    Some((id, digest)) => Some(self.usable(id, digest, now)?),
                    None => None,
                };
                let id = approval.as_ref().map(|used| used.id.clone());
                let event = Event::Allow {
                    token,
                    attempt,
                    request,
                    policy,
                    approval,
                };
                Ok(Draft {
                    entry: Entry::Event(Box::new(event)),
                    attachments,
                    approval: id,
                })
            }
            Command::Deny {
                token_hash,
                attempt,
                reason,
                request,
                policy,
                attachments,
            } => {
                let token = self.spendable(&token_hash, &attempt, now)?;
                Ok(Draft::with(
                    Event::Deny {
                        token,
                        attempt,
                        reason,
                        request,
                        policy,
                    },
                    attachments,
                ))
            }
            Command::Hold {
                token_hash,
                attempt,
                request,
                policy,
                approval,
                attachments,
            } => {
                let token = self.holdable(&token_hash, &attempt, now, limits)?;
                self.may_use(&Given::from(&*self.outstanding(&token_hash)?.record), now)?;
                self.check_hold(
                    HoldParts {
                        token,
                        attempt,
                        request,
                        policy,
                        approval,
                        attachments,
                    },
                    now,
                    limits,
                )
            }
            Command::Ask {
                request_id,
                policy,
                approval,
                attachments,
            } => {
                let ask = AskParts {
                    request_id,
                    policy,
                    approval,
                    attachments,
                };
                self.check_ask(ask, now, limits)
            }
            Command::Lapse {
                token_hash,
                attempt,
                why,
            } => {
                let token = self.outstanding(&token_hash)?;
                if token.held_by() != Some(attempt.as_str()) {
                    return Err(Refused::HeldElsewhere);
                }
                let token = Subject::from(&*token.record);
                Ok(Draft::plain(Event::Lapse {
                    token,
                    attempt,
                    why: why.to_owned(),
                }))
            }
            Command::LapseOverdue { held_before_ms } => self.check_overdue(held_before_ms),
            Command::DecideApproval {
                id,
                digest,
                approve,
                by,
                usable_ms,
            } => self.check_decision(id, digest, approve, by, now, usable_ms),
            Command::ExpireApprovals => self.check_expiry(now),
            Command::PutAgent { agent, change, by } => {
                self.check_agent(agent, change, by, now, limits)
            }
            Command::Stop {
                target,
                by,
                why,
                until_ms,
                stopper,
            } => self.check_stop((target, stopper), by, why, until_ms, now, limits),
            Command::Lift { target, by } => self.check_lift(&target, by, now),
            Command::CancelApprovals => self.check_cancel(now),
            Command::ConfirmRestore { restored, by } => match &self.suspended {
                Some(waiting) if waiting.index == restored => {
                    Ok(Draft::plain(Event::Confirmed { restored, by }))
                }
                _ => Err(Refused::AttemptKnown),
            },
            Command::Outcome {
                attempt,
                status,
                not_forwarded,
                response_bytes,
                details,
            } => {
                if !self.awaits_outcome(&attempt) && !planted!(OutcomeTwice) {
                    let known = self.attempt(&attempt).is_some();
                    return Err(if known {
                        Refused::AttemptKnown
                    } else {
                        Refused::NotOutstanding(None)
                    });
                }
                let response_bytes = response_bytes.min(LARGEST_INTEGER);
                Ok(Draft::plain(Event::Outcome {
                    attempt,
                    status,
                    not_forwarded,
                    response_bytes,
                    details,
                }))
            }
            Command::Note { kind, body } => {
                if !NOTE_KINDS.contains(&kind) {
                    return Err(Refused::Limit("kinds of notes"));
                }
                let entry = Entry::Note {
                    kind: kind.to_owned(),
                    body,
                };
                Ok(Draft {
                    entry,
                    attachments: Vec::new(),
                    approval: None,
                })
            }
        }
    }

    fn outstanding(&self, hash: &Hash) -> Result<&Outstanding, Refused> {
        let found = self.token(hash);
        // A grant allows no request, whoever shows it where.
        let found = found.filter(|it| it.record.grant.is_none() || planted!(GrantPasses));
        found.ok_or_else(|| Refused::NotOutstanding(self.spent(hash)))
    }

    fn check_issue(
        &self,
        token: &TokenRecord,
        (evidence, also, once): (&EvidenceOf, &[EvidenceOf], &[EvidenceOf]),
        now: Millis,
        limits: &Limits,
    ) -> Result<(), Refused> {
        if token.expires_ms <= now {
            return Err(Refused::TokenExpired);
        }
        if self.is_known(&token.token_hash) {
            return Err(Refused::AttemptKnown);
        }
        self.may_use(&Given::from(token), now)?;
        let outstanding = self.counts(&token.agent).outstanding;
        let most = limits.outstanding_per_agent;
        if outstanding >= most + usize::from(planted!(OutstandingOverrun)) {
            return Err(Refused::Limit("outstanding tokens per agent"));
        }
        let owner = self.rights.agent(&token.agent).map(|it| it.owner.as_str());
        let of_owner = owner.map_or(0, |owner| self.outstanding_of_owner(owner));
        let most = limits.outstanding_per_owner;
        if of_owner >= most.saturating_add(usize::from(planted!(OwnerOverrun))) {
            return Err(Refused::Limit("outstanding tokens per owner"));
        }
        let full = limits.is_full_for_grants(outstanding, of_owner);
        if token.grant.is_some() && full && !planted!(GrantsOverrun) {
            return Err(Refused::Limit(
                "grants: half of an agent's outstanding tokens, and no last one",
            ));
        }
        let shown: Vec<EvidenceOf> = std::iter::once(evidence).chain(also).copied().collect();
        self.check_evidence(&token.agent, &token.jkt, (&shown, once), limits)
    }

    /// What an agent shows, under this key: there is room for it, and what may be shown
    /// `once` was not shown before.
    fn check_evidence(
        &self,
        agent: &str,
        jkt: &str,
        (shown, once): (&[EvidenceOf], &[EvidenceOf]),
        limits: &Limits,
    ) -> Result<(), Refused> {
        let mut fresh = 0;
        for piece in shown {
            let (known, keys) = self.evidence_keys(&piece.id, jkt);
            if !known && keys >= limits.keys_per_evidence + usize::from(planted!(KeysOverrun)) {
                return Err(Refused::Limit(EVIDENCE_KEYS));
            }
            fresh += usize::from(keys == 0);
        }
        for piece in once {
            let (_, keys) = self.evidence_keys(&piece.id, jkt);
            if keys > 0 && !planted!(OnceTwice) {
                return Err(Refused::Shown);
            }
            fresh += usize::from(keys == 0);
        }
        if fresh > 0 {
            if self.evidence_of(agent) + fresh > limits.evidence_per_agent {
                return Err(Refused::Limit("evidence per agent"));
            }
            if self.evidence_total() + fresh > limits.evidence_total {
                return Err(Refused::Limit("evidence"));
            }
        }
        Ok(())
    }

    fn check_discover(&self, agent: String, limits: &Limits) -> Result<Draft, Refused> {
        if self.discovered().contains_key(&agent) || self.rights.agent(&agent).is_some() {
            return Err(Refused::AttemptKnown);
        }
        if self.discovered().len() >= limits.discovered {
            return Err(Refused::Limit("discovered agents"));
        }
        Ok(Draft::plain(Event::Discover { agent }))
    }

    /// A token that this attempt may spend: issued and unexpired, or held by it.
    /// A held one was checked when it was held, and may have ended since.
    fn spendable(&self, hash: &Hash, attempt: &str, now: Millis) -> Result<Subject, Refused> {
        let token = self.outstanding(hash)?;
        match token.held_by() {
            Some(holder) if holder == attempt || planted!(HeldByOther) => {}
            Some(_) => return Err(Refused::HeldElsewhere),
            None => self.fresh(token, attempt, now)?,
        }
        Ok(Subject::from(&*token.record))
    }

    fn fresh(&self, token: &Outstanding, attempt: &str, now: Millis) -> Result<(), Refused> {
        if token.record.expires_ms <= now && !planted!(ExpiredSpent) {
            return Err(Refused::TokenExpired);
        }
        if self.attempt(attempt).is_some() && !planted!(AttemptUnchecked) {
            return Err(Refused::AttemptKnown);
        }
        Ok(())
    }

    fn holdable(
        &self,
        hash: &Hash,
        attempt: &str,
        now: Millis,
        limits: &Limits,
    ) -> Result<Subject, Refused> {
        let token = self.outstanding(hash)?;
        match token.held_by() {
            Some(holder) if holder == attempt => return Err(Refused::AttemptKnown),
            Some(_) => return Err(Refused::HeldElsewhere),
            None => self.fresh(token, attempt, now)?,
        }
        let most = limits.held_per_agent + usize::from(planted!(HeldOverrun));
        if self.counts(&token.record.agent).held >= most {
            return Err(Refused::Limit("held requests per agent"));
        }
        if self.held() >= limits.held_total {
            return Err(Refused::Limit("held requests"));
        }
        Ok(Subject::from(&*token.record))
    }

    /// The approval that an allow names: approved, unused, in time, for this digest.
    fn usable(&self, id: String, digest: Hash, now: Millis) -> Result<ApprovalUse, Refused> {
        self.approval_in(&id, &digest, ApprovalState::Approved, now)?;
        let approval = self.approval(&id).ok_or(Refused::ApprovalState(None))?;
        // It grants nothing any more; who asks is not barred by that.
        self.may_use(&Given::from(approval), now)
            .map_err(|_| Refused::ApprovalState(Some(ApprovalState::Cancelled)))?;
        Ok(ApprovalUse { id, digest })
    }

    pub(super) fn approval_in(
        &self,
        id: &str,
        digest: &Hash,
        state: ApprovalState,
        now: Millis,
    ) -> Result<(), Refused> {
        let approval = self.approval(id).ok_or(Refused::ApprovalState(None))?;
        let again = planted!(ApprovalTwice) && approval.state == ApprovalState::Consumed;
        if approval.state != state && !again {
            return Err(Refused::ApprovalState(Some(approval.state)));
        }
        if approval.expires_ms <= now && !planted!(ApprovalExpiryUnchecked) {
            return Err(Refused::ApprovalState(Some(ApprovalState::Expired)));
        }
        if approval.digest != *digest && !planted!(ApprovalDigestUnchecked) {
            return Err(Refused::ApprovalDigest);
        }
        Ok(())
    }

    fn check_overdue(&self, held_before_ms: Millis) -> Result<Draft, Refused> {
        let tokens: Vec<HexHash> = self
            .held_before(held_before_ms)
            .take(OVERDUE_PER_ENTRY)
            .map(HexHash)
            .collect();
        if tokens.is_empty() {
            return Err(Refused::NotOutstanding(None));
        }
        Ok(Draft::plain(Event::LapsesOverdue { tokens }))
    }

    fn check_expiry(&self, now: Millis) -> Result<Draft, Refused> {
        let over = |a: &&Approval| {
            matches!(a.state, ApprovalState::Pending | ApprovalState::Approved)
                && a.expires_ms <= now
        };
        let ids: Vec<String> = self
            .approvals()
            .filter(over)
            .take(EXPIRED_PER_ENTRY)
            .map(|a| a.id.clone())
            .collect();
        if ids.is_empty() {
            return Err(Refused::ApprovalState(None));
        }
        Ok(Draft::plain(Event::ApprovalsExpired { ids }))
    }
}

/// What gives an agent something, and so is refused while agents are suspended.
fn grants(command: &Command) -> bool {
    matches!(
        command,
        Command::Issue { .. }
            | Command::Allow { .. }
            | Command::Hold { .. }
            | Command::Ask { .. }
            | Command::DecideApproval { approve: true, .. }
    )
}
