//! A request that waits for a human: its one wait, and its three ends.

use super::engine::Ruling;
use super::facts::Facts;
use super::open::Way;
use super::questions::{Entry, Stage};
use super::service::{DecisionsService, Shared};
use super::verdicts::{pending_verdict, refused_verdict, status_url};
use capability::reason::Reason;
use decision_api::{Answer, Hold, answer::Verdict, from_control_plane::Message as Down};
use ledger::model::{Approval, ApprovalState, Bar, Given};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// A request that is held on a stream that was lost waits this long for it to come back.
const STREAM_GRACE: Duration = Duration::from_secs(3);

/// Held requests end within this when we stop.
const HOLDS_END_WITHIN: Duration = Duration::from_secs(3);

impl DecisionsService {
    /// Ends what is held, before the streams end: whoever waits is told that a person
    /// has still to decide, and not that nobody knows what became of it.
    pub async fn end_holds(self) {
        self.shared.stopping.cancel();
        let ended = async {
            while self.shared.holds.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // The answers are on their way.
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        if tokio::time::timeout(HOLDS_END_WITHIN, ended).await.is_err() {
            tracing::warn!("some requests were still held when the streams ended");
        }
    }
}

/// Counts a request while it is held.
struct Held<'h>(&'h AtomicUsize);

impl<'h> Held<'h> {
    fn one(holds: &'h AtomicUsize) -> Self {
        holds.fetch_add(1, Ordering::SeqCst);
        Self(holds)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    /// Keeps a request until a human has decided, its time is over, or its
    /// client is gone. `None`: it was withdrawn, and nobody waits for an answer.
    pub(super) async fn hold(
        &self,
        way: Way<'_>,
        facts: &Facts,
        answer: &(impl Fn(Verdict) -> Answer + Sync),
        approval: Approval,
    ) -> Option<Verdict> {
        let (prefix, entry) = (way.prefix, way.entry);
        let core = &self.engine.core;
        let _held = Held::one(&self.holds);
        let url = format!("{}/approvals/{}", core.config.server.issuer, approval.id);
        tracing::info!(
            approval = approval.id,
            agent = approval.agent,
            url,
            "a request waits for a human"
        );
        let wait = Duration::from_secs(facts.edge.hold_s);
        let mut changes = core.ledger.subscribe_approvals();
        let mut stage = entry.watch();
        let said = answer(Verdict::Hold(Hold {
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            approval_id: approval.id.clone(),
            status_url: status_url(core, &approval),
        }));
        // A client that left during the commit has nobody left to hold for.
        if !entry.hold(said.clone()) {
            self.engine.lapse(facts, "withdrawn").await;
            return None;
        }
        prefix.send(Down::Answer(said));

        let deadline = Instant::now() + wait;
        let mut stream_lost: Option<Instant> = None;
        let mut shown = false;
        let token = self.engine.held(facts).await;
        loop {
            // Of a key or a token no approval knows: what is held asks itself.
            let bar = token
                .as_deref()
                .and_then(|token| core.ledger.rights().bar(&Given::from(token), core.now()));
            if let Some(bar) = bar {
                let reason = match bar {
                    Bar::Stopped(_) => Reason::TokenRevoked,
                    Bar::Inactive => Reason::AgentInactive,
                };
                return self.end(entry, facts, "revoked", reason, &approval).await;
            }
            let state = core.ledger.approval(&approval.id);
            shown |= state.is_some();
            match state.as_ref().map(|found| found.state) {
                // Another replica opened it, and what is shown here is behind the
                // commit that joined it.
                None if !shown => {}
                Some(ApprovalState::Approved) => {
                    let approved = state.unwrap_or_else(|| approval.clone());
                    return self.release(way, facts, &approved).await;
                }
                Some(ApprovalState::Pending) => {}
                Some(ApprovalState::Denied) => {
                    return self
                        .end(
                            entry,
                            facts,
                            "approval_denied",
                            Reason::ApprovalDenied,
                            &approval,
                        )
                        .await;
                }
                // An equal request took the one yes: this one asks anew.
                Some(ApprovalState::Consumed) => {
                    return self
                        .end(entry, facts, "policy", Reason::ApprovalExpired, &approval)
                        .await;
                }
                Some(ApprovalState::Cancelled) => {
                    return self
                        .end(entry, facts, "revoked", Reason::TokenRevoked, &approval)
                        .await;
                }
                Some(ApprovalState::Expired) | None => {
                    return self
                        .end(
                            entry,
                            facts,
                            "approval_expired",
                            Reason::ApprovalExpired,
                            &approval,
                        )
                        .await;
                }
            }
            if *stage.borrow_and_update() == Stage::Withdrawn {
                self.engine.lapse(facts, "withdrawn").await;
                return None;
            }
            if self.stopping.is_cancelled() {
                return self
                    .end(entry, facts, "shutdown", Reason::ApprovalPending, &approval)
                    .await;
            }
            if Instant::now() >= deadline {
                return self
                    .end(entry, facts, "timeout", Reason::ApprovalPending, &approval)
                    .await;
            }
            match (prefix.connected(), stream_lost) {
                (true, _) => stream_lost = None,
                (false, None) => stream_lost = Some(Instant::now()),
                (false, Some(since)) if since.elapsed() >= STREAM_GRACE => {
                    return self
                        .end(
                            entry,
                            facts,
                            "stream_lost",
                            Reason::ControlPlaneUnavailable,
                            &approval,
                        )
                        .await;
                }
                (false, Some(_)) => {}
            }
            let tick = deadline.min(Instant::now() + Duration::from_millis(500));
            tokio::select! {
                _ = changes.changed() => {}
                _ = stage.changed() => {}
                () = self.stopping.cancelled() => {}
                () = tokio::time::sleep_until(tick) => {}
            }
        }
    }

    /// The approval was given: one commit that asks everything again and spends,
    /// for a client that still waits.
    async fn release(&self, way: Way<'_>, facts: &Facts, approval: &Approval) -> Option<Verdict> {
        let (prefix, entry) = (way.prefix, way.entry);
        if !prefix.connected() {
            return self
                .end(
                    entry,
                    facts,
                    "stream_lost",
                    Reason::ControlPlaneUnavailable,
                    approval,
                )
                .await;
        }
        if !entry.begin_commit() {
            self.engine.lapse(facts, "withdrawn").await;
            return None;
        }
        match self.engine.release(facts, approval).await {
            Ruling::Refused(Reason::ApprovalPending, _) => {
                self.engine.lapse(facts, "policy").await;
                Some(pending_verdict(
                    Reason::ApprovalExpired,
                    approval,
                    &self.engine.core,
                ))
            }
            Ruling::Refused(reason, first) => {
                let reason = self.engine.record_refusal(facts, reason).await;
                Some(refused_verdict(reason, first))
            }
            ruling => Some(self.verdict(way, ruling, facts)),
        }
    }

    /// The held request ends without passing; its token lapses.
    async fn end(
        &self,
        entry: &Entry,
        facts: &Facts,
        why: &'static str,
        reason: Reason,
        approval: &Approval,
    ) -> Option<Verdict> {
        if !entry.begin_commit() {
            self.engine.lapse(facts, "withdrawn").await;
            return None;
        }
        if !self.engine.lapse(facts, why).await {
            // Without its entry nothing is said but that it did not pass.
            return Some(refused_verdict(Reason::ControlPlaneUnavailable, None));
        }
        Some(pending_verdict(reason, approval, &self.engine.core))
    }
}
