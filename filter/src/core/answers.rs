//! What the control plane says. Only a last word on an open question of ours,
//! in time and with the right echoes, gives a permit; the rest is ignored and
//! counted.

use super::{By, Core, HOLD_MARGIN_MS, MESSAGE_MAX, TOO_LATE};
use crate::host;
use crate::outcomes::not_forwarded;
use crate::questions::{Awaited, Entry, Phase};
use crate::refusal::Refusal;
use crate::stream::Greeting;
use capability::decide::{Echo, Mode, Verdict};
use capability::reason::Reason;
use decision_api::from_control_plane::Message as FromServer;
use decision_api::{Answer, FromControlPlane, Hold, QuestionId, Withdrawn, answer};
use prost::Message;

impl Core {
    /// A message arrived on a stream.
    pub fn received(&mut self, stream: u32, size: usize) {
        if !self.stream.is(stream) {
            return;
        }
        let message = (size <= MESSAGE_MAX)
            .then(|| host::received(size).ok())
            .flatten();
        let Some(message) =
            message.and_then(|bytes| FromControlPlane::decode(bytes.as_slice()).ok())
        else {
            // What cannot be read may have been an answer: begin again, and ask again.
            host::warn(
                "writ: a message from the control plane could not be read; the stream is opened again",
            );
            self.stream.drop_link(self.now_ms);
            return;
        };
        self.stream.heard(self.now_ms);
        match message.message {
            Some(FromServer::Welcome(welcome)) => {
                if let Ok(here_ms) = host::now_ms() {
                    self.metrics.clock.compare(here_ms, welcome.time_ms);
                }
                match self.stream.welcomed(welcome, self.now_ms) {
                    Greeting::Resumed => self.resumed(false),
                    Greeting::New => self.resumed(true),
                    Greeting::Refused => {}
                }
            }
            // Nothing is believed before the greeting.
            Some(_) if !self.stream.is_up() => self.metrics.answers_ignored.add(1),
            Some(FromServer::Answer(answer)) => self.answered(answer),
            Some(FromServer::Withdrawn(withdrawn)) => self.withdrawn(&withdrawn),
            Some(FromServer::BodyWanted(wanted)) => self.body_wanted(&wanted),
            Some(FromServer::DenialsTaken(taken)) => self.denials.taken(taken.sequence),
            Some(FromServer::End(end)) => self.end(&end),
            Some(FromServer::Heartbeat(beat)) => {
                if let Ok(here_ms) = host::now_ms() {
                    self.metrics.clock.compare(here_ms, beat.time_ms);
                }
                self.stream.told(beat.nonces);
            }
            None => {}
        }
    }

    /// A stream ended.
    pub fn closed(&mut self, stream: u32) {
        self.stream.closed(stream, self.now_ms);
    }

    /// The stream is open again: what is still paused is asked again with the
    /// same ids and bytes, which is idempotent, and what waited is sent.
    fn resumed(&mut self, new_prefix: bool) {
        let mut withdrawn: Vec<QuestionId> = self.questions.gone().collect();
        let mut asked: Vec<Vec<u8>> = Vec::new();
        for entry in self.questions.entries() {
            match entry.phase {
                Phase::Asked | Phase::Held { .. } => asked.push(entry.ask.clone()),
                Phase::Withdrawing { .. } => withdrawn.push(entry.request.passage.id().clone()),
            }
        }
        // First what is over, then what is not: what the other side does not know of
        // it can't end.
        self.report_outcomes();
        let waiting = self.questions.entries();
        let waiting = waiting.map(|entry| entry.request.passage.id().clone());
        for message in self.open.tell(waiting).into_iter().chain(asked) {
            if self.stream.send_encoded(&message, self.now_ms).is_err() {
                return;
            }
        }
        for id in withdrawn {
            if !self.withdraw(&id) {
                return;
            }
        }
        self.denials.reconnected(new_prefix);
        self.report_denials();
    }

    fn answered(&mut self, answer: Answer) {
        let Some(verdict) = answer.verdict else {
            self.metrics.answers_ignored.add(1);
            return;
        };
        let id = answer.id.as_ref();
        let fits = |entry: &Entry| {
            entry
                .pending
                .is_answered_by(&answer.token_hash, &answer.question_digest)
        };
        let Some(entry) = self.questions.find(id) else {
            self.answered_nobody(id, &verdict);
            return;
        };
        // An answer to another question leaves this one as it was.
        let in_time = !matches!(entry.phase, Phase::Withdrawing { .. });
        if !fits(entry) {
            self.metrics.answers_ignored.add(1);
            return;
        }
        match verdict {
            answer::Verdict::Hold(hold) => self.held(id, hold),
            answer::Verdict::Deny(deny) => {
                let Some(mut entry) = self.take(id) else {
                    return;
                };
                self.clock(&mut entry, answer.time_ms);
                let refusal = match entry.body {
                    Some(_) => Refusal::denied(deny).of_a_body(),
                    None => Refusal::denied(deny),
                };
                self.refuse_paused(&entry.request, &refusal, By::ControlPlane);
            }
            answer::Verdict::Allow(_) if !in_time => {
                let Some(entry) = self.take(id) else { return };
                self.metrics.answers_ignored.add(1);
                // Where the route observes it goes on, unheard.
                if entry.request.facts.mode == Mode::Enforce {
                    self.outcome(not_forwarded(entry.request.passage.id(), TOO_LATE));
                }
                self.refuse_unanswered(&entry);
            }
            answer::Verdict::Allow(allow) => {
                let Some(mut entry) = self.take(id) else {
                    return;
                };
                self.clock(&mut entry, answer.time_ms);
                let echo = Echo {
                    token_hash: &answer.token_hash,
                    question_digest: &answer.question_digest,
                    verdict: Verdict::Allow,
                };
                let Entry {
                    request, pending, ..
                } = entry;
                match pending.settle(echo) {
                    Ok(permit) => self.forward(permit, &request, &allow),
                    Err(refused) => {
                        self.refuse_paused(&request, &Refusal::new(refused.reason), By::Filter);
                    }
                }
            }
        }
    }

    /// Notes how long the last answer took, and what the other side's clock says.
    fn clock(&self, entry: &mut Entry, there_ms: u64) {
        let Ok(now_us) = host::now_us() else { return };
        self.metrics.clock.compare(now_us / 1000, there_ms);
        let took_us = now_us.saturating_sub(entry.asked_us);
        entry.request.facts.decision_us = Some(took_us);
        // A human's time is not the decision's.
        if entry.phase == Phase::Asked {
            self.metrics.decided_in(took_us);
        }
    }

    /// Late, repeated or foreign: nobody is let through by it. A hold is
    /// withdrawn again, or a human would be asked, and a token kept, for nobody;
    /// an allow is reported as what it became.
    fn answered_nobody(&mut self, id: Option<&QuestionId>, verdict: &answer::Verdict) {
        self.metrics.answers_ignored.add(1);
        let Some(id) = id.filter(|id| self.questions.was_asked(id, self.stream.prefix())) else {
            return;
        };
        match verdict {
            answer::Verdict::Hold(_) => {
                // One that does not leave is said again on the next stream.
                self.withdraw(id);
            }
            answer::Verdict::Allow(_) => {
                if let Some(why) = self.questions.forget(id) {
                    self.outcome(not_forwarded(id, why));
                }
            }
            answer::Verdict::Deny(_) => {
                self.questions.forget(id);
            }
        }
    }

    fn held(&mut self, id: Option<&QuestionId>, hold: Hold) {
        let (now_ms, hold_ms) = (self.now_ms, self.settings.hold_ms);
        let Some(entry) = self.questions.find(id) else {
            return;
        };
        let since_ms = match &entry.phase {
            Phase::Asked => {
                self.metrics.held.add(1);
                now_ms
            }
            // Holding again does not stretch the wait.
            Phase::Held { since_ms, .. } => *since_ms,
            Phase::Withdrawing { .. } => {
                self.metrics.answers_ignored.add(1);
                return;
            }
        };
        let wanted_ms = now_ms.saturating_add(u64::from(hold.wait_ms));
        let ends_ms = wanted_ms.min(since_ms.saturating_add(hold_ms));
        entry.deadline_ms = ends_ms.saturating_add(HOLD_MARGIN_MS);
        entry.phase = Phase::Held {
            since_ms,
            awaited: Awaited {
                approval_id: hold.approval_id,
                status_url: hold.status_url,
            },
        };
    }

    fn withdrawn(&mut self, withdrawn: &Withdrawn) {
        let Some(id) = withdrawn.id.as_ref() else {
            return;
        };
        let Some(entry) = self.questions.find(Some(id)) else {
            // A client that had left. What was decided before is still to come.
            if withdrawn.confirmed {
                self.questions.forget(id);
            }
            return;
        };
        if !matches!(entry.phase, Phase::Withdrawing { .. }) {
            return;
        }
        let Some(entry) = self.take(Some(id)) else {
            return;
        };
        if !withdrawn.confirmed {
            self.unanswered(&entry);
            return;
        }
        let refusal = match &entry.phase {
            Phase::Withdrawing {
                awaited: Some(awaited),
            } => Refusal::still_pending(awaited),
            _ => Refusal::not_asked(),
        };
        self.refuse_paused(&entry.request, &refusal, By::Filter);
    }

    /// The request is refused for want of an answer, which may come yet.
    pub(super) fn unanswered(&mut self, entry: &Entry) {
        // Where the route observes it goes on all the same: of an allow that comes
        // yet nobody may say that nothing was sent.
        if entry.request.facts.mode == Mode::Enforce {
            self.leave(entry.request.passage.id(), TOO_LATE);
        }
        self.refuse_unanswered(entry);
    }

    /// Nobody knows whether the token is spent: 503, and no word of trying again.
    fn refuse_unanswered(&mut self, entry: &Entry) {
        let refusal = Refusal::new(Reason::ControlPlaneUnavailable);
        self.refuse_paused(&entry.request, &refusal, By::Filter);
    }
}
