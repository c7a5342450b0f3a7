//! A desk without a ledger, for the tests and for looking at the pages.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use ledger::model::{ActionRecord, Approval, ApprovalState, Hash, Millis, Suspension, User};
use tokio::sync::watch;

use super::{
    Activity, Desk, DeskError, KeyChange, KeyRefusal, KeyView, KeysChanged, ProxyView, RightsChange,
};

pub(super) struct FakeDesk {
    pub(super) approvals: Mutex<Vec<Approval>>,
    pub(super) now: AtomicU64,
    pub(super) signed_in: Mutex<Vec<(String, &'static str)>>,
    /// Whom links were made for, and by which uid.
    pub(super) links: Mutex<Vec<(String, u32)>>,
    pub(super) activity: Vec<Activity>,
    pub(super) proxies: Vec<ProxyView>,
    pub(super) suspended: Mutex<Option<Suspension>>,
    pub(super) rights: Mutex<std::sync::Arc<ledger::model::Rights>>,
    pub(super) discovered: Mutex<Vec<(String, Millis)>>,
    pub(super) seen: Mutex<std::collections::BTreeMap<String, Millis>>,
    /// What was changed of rights, and by whom.
    pub(super) changed: Mutex<Vec<(RightsChange, String)>>,
    /// What was changed of keys, and by whom.
    pub(super) keys_changed: Mutex<Vec<(KeyChange, String)>>,
    /// The body of any approval that has one.
    pub(super) body: Mutex<Option<std::sync::Arc<[u8]>>>,
    changes: watch::Sender<u64>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeDesk {
    pub(super) fn new(now: Millis, approvals: Vec<Approval>) -> Self {
        Self {
            approvals: Mutex::new(approvals),
            now: AtomicU64::new(now),
            signed_in: Mutex::default(),
            links: Mutex::default(),
            activity: Vec::new(),
            proxies: Vec::new(),
            suspended: Mutex::default(),
            rights: Mutex::default(),
            discovered: Mutex::default(),
            seen: Mutex::default(),
            changed: Mutex::default(),
            keys_changed: Mutex::default(),
            body: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Vec<Approval>)) {
        change(&mut lock(&self.approvals));
        self.changes.send_modify(|version| *version += 1);
    }

    fn owned(&self, change: &RightsChange) -> Result<(), DeskError> {
        match change {
            RightsChange::Agent { change, .. } => match &change.owner {
                Some(owner) if !self.owners().contains_key(owner) => Err(DeskError::NoSuchOwner(
                    "no such owner: there is `team`".into(),
                )),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn settle(
        &self,
        id: &str,
        digest: Hash,
        approve: bool,
        by: &str,
    ) -> Result<Approval, DeskError> {
        let now = self.now_ms();
        let mut result = Err(DeskError::NotFound);
        self.change(|approvals| {
            let Some(approval) = approvals.iter_mut().find(|approval| approval.id == id) else {
                return;
            };
            result = if approval.digest != digest {
                Err(DeskError::Stale)
            } else if approval.state != ApprovalState::Pending {
                Err(DeskError::NotPending(approval.state))
            } else if !approval.approvers.is_empty()
                && !approval.approvers.iter().any(|name| name == by)
            {
                Err(DeskError::NotAllowed)
            } else {
                approval.state = if approve {
                    ApprovalState::Approved
                } else {
                    ApprovalState::Denied
                };
                approval.decided_by = Some(by.to_owned());
                approval.decided_ms = Some(now);
                Ok(approval.clone())
            };
        });
        result
    }
}

impl Desk for FakeDesk {
    fn list(&self) -> Vec<Approval> {
        lock(&self.approvals).clone()
    }

    fn get(&self, id: &str) -> Option<Approval> {
        lock(&self.approvals)
            .iter()
            .find(|approval| approval.id == id)
            .cloned()
    }

    fn decide(
        &self,
        id: &str,
        digest: Hash,
        approve: bool,
        by: &str,
    ) -> BoxFuture<'_, Result<Approval, DeskError>> {
        let result = self.settle(id, digest, approve, by);
        async move { result }.boxed()
    }

    fn body(&self, _id: &str) -> Option<std::sync::Arc<[u8]>> {
        lock(&self.body).clone()
    }

    fn journal_full(&self) -> bool {
        false
    }

    fn suspended(&self) -> Option<Suspension> {
        lock(&self.suspended).clone()
    }

    fn confirm(&self, restored: u64, by: &str) -> BoxFuture<'_, Result<(), DeskError>> {
        let mut suspended = lock(&self.suspended);
        let result = match &*suspended {
            _ if by != "operator" => Err(DeskError::NotAdmin),
            Some(waiting) if waiting.index == restored => Ok(()),
            _ => Err(DeskError::NotSuspended),
        };
        if result.is_ok() {
            *suspended = None;
        }
        async move { result }.boxed()
    }

    fn rights(&self) -> std::sync::Arc<ledger::model::Rights> {
        lock(&self.rights).clone()
    }

    fn discovered(&self) -> Vec<(String, u64)> {
        lock(&self.discovered).clone()
    }

    fn last_seen(&self, agent: &str) -> Option<Millis> {
        lock(&self.seen).get(agent).copied()
    }

    fn may_administer(&self, who: &str) -> bool {
        who == "operator"
    }

    fn owners(&self) -> std::collections::BTreeMap<String, Option<String>> {
        let known = [
            ("team", Some("#team")),
            ("ops <1>", None),
            ("owner-0", None),
        ];
        let owned = |(name, contact): (&str, Option<&str>)| {
            let contact = contact.map(str::to_owned);
            (name.to_owned(), contact)
        };
        known.into_iter().map(owned).collect()
    }

    fn may_sign_in(&self, who: &str) -> bool {
        ["operator", "bob"].contains(&who)
    }

    fn change_rights(
        &self,
        change: RightsChange,
        by: &str,
    ) -> BoxFuture<'_, Result<Option<ledger::model::Target>, DeskError>> {
        let result = match (&change, by) {
            (_, by) if by != "operator" => Err(DeskError::NotAdmin),
            (RightsChange::Stop { target, .. } | RightsChange::Lift { target }, _) => {
                Ok(Some(target.clone()))
            }
            (RightsChange::Agent { .. }, _) => self.owned(&change).map(|()| None),
        };
        if result.is_ok() {
            lock(&self.changed).push((change, by.to_owned()));
        }
        async move { result }.boxed()
    }

    fn keys(&self) -> Vec<KeyView> {
        vec![key("one", "active")]
    }

    fn change_keys(
        &self,
        change: KeyChange,
        by: &str,
    ) -> BoxFuture<'_, Result<KeysChanged, DeskError>> {
        let result = match (by, &change) {
            ("operator", KeyChange::Revoke { kid, .. }) if kid != "one" => {
                Err(DeskError::Key(KeyRefusal::Unknown, "no such key".into()))
            }
            ("operator", _) => Ok(KeysChanged {
                key: key("two", "next"),
                replaced_by: None,
                problem: None,
            }),
            _ => Err(DeskError::NotAdmin),
        };
        if result.is_ok() {
            lock(&self.keys_changed).push((change, by.to_owned()));
        }
        async move { result }.boxed()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn logged_in(&self, who: &str, how: &'static str) -> BoxFuture<'_, ()> {
        lock(&self.signed_in).push((who.to_owned(), how));
        async {}.boxed()
    }

    fn link_made(&self, who: &str, uid: u32) -> BoxFuture<'_, ()> {
        lock(&self.links).push((who.to_owned(), uid));
        async {}.boxed()
    }

    fn now_ms(&self) -> Millis {
        self.now.load(Ordering::SeqCst)
    }

    fn activity(&self, limit: usize) -> Vec<Activity> {
        self.activity.iter().take(limit).cloned().collect()
    }

    fn proxies(&self) -> Vec<ProxyView> {
        self.proxies.clone()
    }
}

fn key(kid: &str, standing: &'static str) -> KeyView {
    KeyView {
        kid: kid.to_owned(),
        standing,
        from_s: 0,
        revoked_s: None,
        held: "file",
    }
}

/// A pending approval for one URL.
pub(super) fn approval(id: &str, now: Millis, location: &str) -> Approval {
    Approval {
        id: id.to_owned(),
        digest: [0x5a; 32],
        agent: "spiffe://writ.example/agent/demo".to_owned(),
        user: Some(User {
            issuer: "https://id.example".to_owned(),
            subject: "maria".to_owned(),
        }),
        chain: Vec::new(),
        lineage: Vec::new(),
        action: ActionRecord {
            kind: "http_request".to_owned(),
            method: "DELETE".to_owned(),
            location: location.to_owned(),
            ..ActionRecord::default()
        },
        rules: vec!["delete-needs-a-person".to_owned()],
        reasons: vec!["Deleting a report can't be undone.".to_owned()],
        approver_sets: vec![vec!["platform".to_owned()]],
        approvers: vec!["operator".to_owned()],
        policy_version: "0f".repeat(32),
        state: ApprovalState::Pending,
        created_ms: now,
        expires_ms: now + 15 * 60 * 1000,
        decided_by: None,
        decided_ms: None,
        body: None,
    }
}
