//! Approvals as the pages and the command line see them: over the ledger, which
//! alone moves them.

mod bodies;
mod keys;
mod stops;

pub use bodies::{BODIES_MAX, Bodies, Room};
pub use keys::{change_in as keys_in, view as key_view};
#[cfg(test)]
pub(crate) use stops::kept_until;

use crate::state::Core;
use crate::web::{
    Activity, Desk, DeskError, KeyChange, KeyView, KeysChanged, Owners, ProxyView, RightsChange,
};
use futures::future::BoxFuture;
use ledger::model::{
    Approval, ApprovalState, Command, Given, Hash, Refused, Rights, Stopper, Suspension, Target,
};
use std::sync::Arc;
use std::time::Duration;

/// How long after its own time a hold counts as forgotten, in seconds.
const OVERDUE_AFTER_S: u64 = 10;

/// The desk at which humans decide.
pub struct ApprovalDesk {
    core: Arc<Core>,
    ads: xds::Ads,
}

impl ApprovalDesk {
    /// Over this core; `ads` knows which proxies are connected.
    #[must_use]
    pub fn new(core: Arc<Core>, ads: xds::Ads) -> Self {
        Self { core, ads }
    }

    async fn decided(
        &self,
        id: &str,
        digest: Hash,
        approve: bool,
        by: &str,
    ) -> Result<Approval, DeskError> {
        let approval = self.core.ledger.approval(id).ok_or(DeskError::NotFound)?;
        // Asked at the click, not when the page was drawn: rights may have gone.
        let approver = self
            .core
            .config
            .approvers
            .iter()
            .find(|approver| approver.name == by);
        // Each rule's demand has to be met, not one of them.
        let may = approver.is_some_and(|approver| {
            !approval.approver_sets.is_empty()
                && approval
                    .approver_sets
                    .iter()
                    .all(|set| approver.is_one_of(set))
        });
        if !may {
            return Err(DeskError::NotAllowed);
        }
        // Nobody says yes to what nobody can see.
        if approve && hides_its_body(&approval) && self.core.bodies.get(id).is_none() {
            return Err(DeskError::BodyGone);
        }
        let command = Command::DecideApproval {
            id: id.to_owned(),
            digest,
            approve,
            by: by.to_owned(),
            usable_ms: self.core.config.approval.approved_s.saturating_mul(1000),
        };
        match self.core.ledger.commit(command).await {
            Ok(committed) => committed
                .approval
                .map(|approval| *approval)
                .ok_or(DeskError::NotFound),
            Err(Refused::ApprovalDigest) => Err(DeskError::Stale),
            Err(Refused::ApprovalState(Some(state))) => Err(DeskError::NotPending(state)),
            Err(Refused::ApprovalState(None)) => Err(DeskError::NotFound),
            Err(Refused::Stopped(_) | Refused::Inactive) => {
                Err(DeskError::NotPending(ApprovalState::Cancelled))
            }
            Err(error) => {
                tracing::error!(%error, id, "a human's decision could not be recorded");
                Err(not_recorded(&error))
            }
        }
    }
}

impl ApprovalDesk {
    async fn confirmed(&self, restored: u64, by: String) -> Result<(), DeskError> {
        if !self.may_administer(&by) {
            return Err(DeskError::NotAdmin);
        }
        let command = Command::ConfirmRestore { restored, by };
        match self.core.ledger.commit(command).await {
            Ok(_) => Ok(()),
            Err(Refused::AttemptKnown) => Err(DeskError::NotSuspended),
            Err(error) => {
                tracing::error!(%error, "the confirmation of a restore could not be recorded");
                Err(not_recorded(&error))
            }
        }
    }
}

impl ApprovalDesk {
    /// Not to be able to say so keeps nobody out: there may be something to stop.
    async fn note_login(&self, body: serde_json::Value) {
        let kind = "login";
        if let Err(error) = self.core.ledger.commit(Command::Note { kind, body }).await {
            tracing::error!(%error, "a login could not be recorded");
        }
    }

    /// What was stopped, or is not any more, where it was that.
    async fn rights_changed(
        &self,
        change: RightsChange,
        by: String,
    ) -> Result<Option<Target>, DeskError> {
        if !self.may_administer(&by) {
            return Err(DeskError::NotAdmin);
        }
        if let RightsChange::Agent { change, .. } = &change
            && let Some(owner) = &change.owner
            && !self.core.config.known_owners().contains_key(owner.as_str())
        {
            return Err(DeskError::NoSuchOwner(self.core.config.told_owners()));
        }
        let (changed, command) = match change {
            RightsChange::Agent { agent, change } => {
                (None, Command::PutAgent { agent, change, by })
            }
            RightsChange::Stop { target, why } => {
                let (target, until_ms) = self.meant(target).await?;
                let stop = Command::Stop {
                    target: target.clone(),
                    by,
                    why,
                    until_ms,
                    stopper: Stopper::Person,
                };
                (Some(target), stop)
            }
            RightsChange::Lift { target } => {
                let target = match self.core.ledger.rights().stops.contains_key(&target) {
                    true => target,
                    false => self.meant(target).await?.0,
                };
                (Some(target.clone()), Command::Lift { target, by })
            }
        };
        match self.core.ledger.commit(command).await {
            Ok(_) => Ok(changed),
            Err(Refused::Unknown) => Err(DeskError::Unknown),
            Err(error) => {
                tracing::warn!(%error, "a change of rights was not made");
                Err(DeskError::Rights(error))
            }
        }
    }
}

/// Whether there is a body that has to be shown.
fn hides_its_body(approval: &Approval) -> bool {
    approval.body.as_ref().is_some_and(|body| body.bytes > 0)
}

/// What a person is told of a commit that was not acknowledged.
fn not_recorded(refused: &Refused) -> DeskError {
    match refused {
        Refused::Unknown => DeskError::Unknown,
        _ => DeskError::Unavailable,
    }
}

impl Desk for ApprovalDesk {
    fn list(&self) -> Vec<Approval> {
        self.core.ledger.approvals()
    }

    fn get(&self, id: &str) -> Option<Approval> {
        self.core.ledger.approval(id)
    }

    fn body(&self, id: &str) -> Option<Arc<[u8]>> {
        self.core.bodies.get(id)
    }

    fn decide(
        &self,
        id: &str,
        digest: Hash,
        approve: bool,
        by: &str,
    ) -> BoxFuture<'_, Result<Approval, DeskError>> {
        let (id, by) = (id.to_owned(), by.to_owned());
        Box::pin(async move { self.decided(&id, digest, approve, &by).await })
    }

    fn journal_full(&self) -> bool {
        self.core.ledger.is_full()
    }

    fn suspended(&self) -> Option<Suspension> {
        self.core.ledger.suspended()
    }

    fn confirm(&self, restored: u64, by: &str) -> BoxFuture<'_, Result<(), DeskError>> {
        let by = by.to_owned();
        Box::pin(async move { self.confirmed(restored, by).await })
    }

    fn rights(&self) -> Arc<Rights> {
        self.core.ledger.rights()
    }

    fn discovered(&self) -> Vec<(String, u64)> {
        self.core.ledger.discovered()
    }

    fn last_seen(&self, agent: &str) -> Option<u64> {
        self.core.seen.last(agent)
    }

    fn may_administer(&self, who: &str) -> bool {
        self.core.config.is_admin(who)
    }

    fn owners(&self) -> Owners {
        let known = self.core.config.known_owners().into_iter();
        let owned = |(name, contact): (&str, Option<&str>)| {
            let contact = contact.map(str::to_owned);
            (name.to_owned(), contact)
        };
        known.map(owned).collect()
    }

    fn may_sign_in(&self, who: &str) -> bool {
        self.core.config.may_sign_in(who)
    }

    fn change_rights(
        &self,
        change: RightsChange,
        by: &str,
    ) -> BoxFuture<'_, Result<Option<Target>, DeskError>> {
        let by = by.to_owned();
        Box::pin(async move { self.rights_changed(change, by).await })
    }

    fn keys(&self) -> Vec<KeyView> {
        self.listed_keys()
    }

    fn change_keys(
        &self,
        change: KeyChange,
        by: &str,
    ) -> BoxFuture<'_, Result<KeysChanged, DeskError>> {
        let by = by.to_owned();
        Box::pin(async move { self.keys_changed(change, by).await })
    }

    fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.core.ledger.subscribe()
    }

    fn logged_in(&self, who: &str, how: &'static str) -> BoxFuture<'_, ()> {
        let body = serde_json::json!({ "who": who, "how": how });
        Box::pin(self.note_login(body))
    }

    fn link_made(&self, who: &str, uid: u32) -> BoxFuture<'_, ()> {
        let body = serde_json::json!({ "who": who, "how": "link", "uid": uid });
        Box::pin(self.note_login(body))
    }

    fn now_ms(&self) -> u64 {
        self.core.ledger.now()
    }

    fn warnings(&self) -> Vec<String> {
        let mut all = self.core.warnings.all();
        let rights = self.core.ledger.rights();
        let everything = rights.stops.get(&Target::Everything);
        if let Some(stop) = everything.filter(|stop| stop.lifted.is_none()) {
            let why = if stop.why.is_empty() {
                "no reason was given"
            } else {
                &stop.why
            };
            all.push(format!(
                "everything is stopped, by {} ({why}): nothing is issued, allowed or approved until two of `server.admins` have lifted it (`writ revoke --lift --everything`)",
                stop.by
            ));
        }
        all
    }

    fn activity(&self, limit: usize) -> Vec<Activity> {
        self.core
            .ledger
            .listing(None, limit)
            .into_iter()
            .map(|entry| Activity {
                index: entry.index,
                time_ms: entry.time_ms,
                kind: entry.kind,
                summary: entry.agent.unwrap_or_default(),
            })
            .collect()
    }

    fn proxies(&self) -> Vec<ProxyView> {
        self.ads
            .status()
            .into_iter()
            .map(|status| proxy_view(&status))
            .collect()
    }
}

/// What one proxy runs, and what it refused.
fn proxy_view(status: &xds::ProxyStatus) -> ProxyView {
    let mut detail = status
        .envoy_version
        .clone()
        .map(|version| format!("Envoy {version}"))
        .unwrap_or_default();
    if let Some(group) = &status.group {
        detail.push_str(&format!(" in the group {group}"));
    }
    let mut problems = Vec::new();
    for kind in &status.types {
        let acked = kind
            .acked
            .as_deref()
            .and_then(|version| version.get(..12))
            .unwrap_or("none");
        detail.push_str(&format!(" {:?} {acked}", kind.kind));
        if let Some(nack) = &kind.nack {
            problems.push(format!("{:?}: {}", kind.kind, nack.error));
        }
    }
    ProxyView {
        id: status.peer.to_string(),
        node: status.node_id.clone(),
        connected: status.connected,
        detail: detail.trim().to_owned(),
        problem: (!problems.is_empty()).then(|| problems.join("; ")),
    }
}

/// Ends what ran out, each second, until the task is dropped.
pub async fn expire(core: Arc<Core>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let now = core.now();
        let due = core.ledger.approvals().iter().any(|approval| {
            matches!(
                approval.state,
                ApprovalState::Pending | ApprovalState::Approved
            ) && approval.expires_ms <= now
        });
        if due && let Err(error) = core.ledger.commit(Command::ExpireApprovals).await {
            tracing::warn!(%error, "approvals that ran out could not be ended; they will be");
        }
        let rights = core.ledger.rights();
        let gone = core.ledger.approvals().iter().any(|approval| {
            approval.is_open() && rights.bar(&Given::from(approval), now).is_some()
        });
        if gone && let Err(error) = core.ledger.commit(Command::CancelApprovals).await {
            tracing::warn!(%error, "approvals of what was stopped could not be ended; they will be, and none of them can be used");
        }
        // A hold ends by itself; one whose lapse could not be written ends here.
        let overdue = core
            .edges
            .hold_max_s()
            .saturating_add(OVERDUE_AFTER_S)
            .saturating_mul(1000);
        let lapse = Command::LapseOverdue {
            held_before_ms: now.saturating_sub(overdue),
        };
        match core.ledger.commit(lapse).await {
            Ok(_) => tracing::warn!("held tokens that nobody had ended were lapsed"),
            Err(Refused::NotOutstanding(_)) => {}
            Err(error) => tracing::warn!(%error, "overdue holds could not be ended; they will be"),
        }
    }
}
