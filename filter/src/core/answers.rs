//! What the control plane says. Only a last word on an open question of ours,
//! in time and with the right echoes, gives a permit; the rest is ignored and
//! counted.

use super::{By, Core, HOLD_MARGIN_MS, MESSAGE_MAX};
use crate::host;
use crate::questions::{Entry, Phase};
use crate::refusal::Refusal;
use crate::stream::Greeting;
use capability::decide::{Echo, Verdict};
use capability::reason::Reason;
use decision_api::from_control_plane::Message as FromServer;
use decision_api::from_filter::Message as ToServer;
use decision_api::{Answer, FromControlPlane, Hold, QuestionId, Withdraw, Withdrawn, answer};
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
            Some(FromServer::DenialsTaken(taken)) => self.denials.taken(taken.sequence),
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
        let mut again: Vec<Vec<u8>> = Vec::new();
        for entry in self.questions.entries() {
            again.push(match entry.phase {
                Phase::Asked | Phase::Held { .. } => entry.ask.clone(),
                Phase::Withdrawing { .. } => {
                    let withdraw = Withdraw {
                        id: Some(entry.request.passage.id().clone()),
                    };
                    decision_api::FromFilter {
                        message: Some(ToServer::Withdraw(withdraw)),
                    }
                    .encode_to_vec()
                }
            });
        }
        for message in again {
            if self.stream.send_encoded(&message, self.now_ms).is_err() {
                return;
            }
        }
        self.denials.reconnected(new_prefix);
        self.report_outcomes();
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
                let Some(entry) = self.take(id) else { return };
                self.refuse(
                    entry.request.http,
                    &entry.request.facts,
                    &Refusal::denied(deny),
                    By::ControlPlane,
                );
            }
            answer::Verdict::Allow(_) if !in_time => {
                let Some(entry) = self.take(id) else { return };
                self.metrics.answers_ignored.add(1);
                self.outcome(
                    entry.request.passage.id(),
                    0,
                    0,
                    "writ: not forwarded, the deadline had passed",
                );
                self.unanswered(&entry);
            }
            answer::Verdict::Allow(allow) => {
                let Some(entry) = self.take(id) else { return };
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
                        self.refuse(
                            request.http,
                            &request.facts,
                            &Refusal::new(refused.reason),
                            By::Filter,
                        );
                    }
                }
            }
        }
    }

    /// Late, repeated or foreign: nobody is let through by it. An allow for a
    /// client that has left is reported as what it became.
    fn answered_nobody(&mut self, id: Option<&QuestionId>, verdict: &answer::Verdict) {
        self.metrics.answers_ignored.add(1);
        if matches!(verdict, answer::Verdict::Hold(_)) || !self.questions.forget(id) {
            return;
        }
        if let (answer::Verdict::Allow(_), Some(id)) = (verdict, id) {
            self.outcome(id, 0, 0, "writ: not forwarded, the client had left");
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
            approval_id: hold.approval_id,
        };
    }

    fn withdrawn(&mut self, withdrawn: &Withdrawn) {
        let id = withdrawn.id.as_ref();
        let withdrawing = self
            .questions
            .find(id)
            .is_some_and(|entry| matches!(entry.phase, Phase::Withdrawing { .. }));
        if !withdrawing {
            // A client that had left, or nothing of ours.
            self.questions.forget(id);
            return;
        }
        let Some(entry) = self.take(id) else { return };
        let refusal = match (withdrawn.confirmed, &entry.phase) {
            (
                true,
                Phase::Withdrawing {
                    approval_id: Some(approval),
                },
            ) => Refusal::still_pending(approval.clone()),
            (true, _) => Refusal::not_asked(),
            (false, _) => Refusal::new(Reason::ControlPlaneUnavailable),
        };
        self.refuse(
            entry.request.http,
            &entry.request.facts,
            &refusal,
            By::Filter,
        );
    }

    /// Nobody knows whether the token is spent: 503, and no word of trying again.
    pub(super) fn unanswered(&mut self, entry: &Entry) {
        self.refuse(
            entry.request.http,
            &entry.request.facts,
            &Refusal::new(Reason::ControlPlaneUnavailable),
            By::Filter,
        );
    }
}
