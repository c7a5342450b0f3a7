//! An approval's life in the state, and what a restore does to all of them.

use std::{collections::VecDeque, sync::Arc};

use super::{ENDED_APPROVALS, State};
use crate::{
    event::{Answer, Restored},
    model::{Approval, ApprovalState, Hash, Millis, Suspension},
};

/// Approvals that ended and are still shown, those that ended first before. What a person
/// said no to is apart: it is not forgotten for the ends of others.
#[derive(Clone, Default)]
#[cfg_attr(test, derive(Debug, PartialEq))]
pub(crate) struct Ended {
    denied: VecDeque<String>,
    others: VecDeque<String>,
}

impl Ended {
    pub(super) fn add(&mut self, approval: &Approval) {
        let id = approval.id.clone();
        match approval.state {
            ApprovalState::Denied => self.denied.push_back(id),
            _ => self.others.push_back(id),
        }
    }

    /// The oldest, where there are too many of its kind.
    fn over(&mut self) -> Option<String> {
        let mut kinds = [&mut self.denied, &mut self.others].into_iter();
        kinds.find_map(|ids| {
            let over = ids.len() > ENDED_APPROVALS;
            over.then(|| ids.pop_front()).flatten()
        })
    }

    pub(super) fn len(&self) -> usize {
        self.denied.len() + self.others.len()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &String> {
        self.others.iter().chain(&self.denied)
    }
}

impl State {
    pub(super) fn open_approval(&mut self, approval: &Approval) {
        self.open
            .entry(approval.digest)
            .or_default()
            .push(approval.id.clone());
        self.open_agents.add(&approval.agent);
        self.approvals
            .insert(approval.id.clone(), Arc::new(approval.clone()));
        self.holds_changed += 1;
    }

    pub(super) fn decide(
        &mut self,
        now: Millis,
        id: &str,
        decision: Answer,
        by: &str,
        expires_ms: Millis,
    ) {
        let Some(approval) = self.approvals.get_mut(id).map(Arc::make_mut) else {
            return;
        };
        approval.decided_by = Some(by.to_owned());
        approval.decided_ms = Some(now);
        match decision {
            Answer::Approved => {
                approval.state = ApprovalState::Approved;
                approval.expires_ms = expires_ms;
                self.holds_changed += 1;
            }
            Answer::Denied => self.end_approval(id, ApprovalState::Denied),
        }
    }

    pub(super) fn end_approval(&mut self, id: &str, state: ApprovalState) {
        let Some(approval) = self.approvals.get_mut(id).map(Arc::make_mut) else {
            return;
        };
        if !matches!(
            approval.state,
            ApprovalState::Pending | ApprovalState::Approved
        ) {
            return;
        }
        approval.state = state;
        self.holds_changed += 1;
        self.open_agents.remove(&approval.agent);
        if let Some(ids) = self.open.get_mut(&approval.digest) {
            ids.retain(|other| other != id);
            if ids.is_empty() {
                self.open.remove(&approval.digest);
            }
        }
        self.ended.add(approval);
        while let Some(oldest) = self.ended.over() {
            self.approvals.remove(&oldest);
        }
    }

    /// Those of a digest that a person said no to, as long as they are remembered.
    pub(crate) fn denied_with(&self, digest: &Hash) -> impl Iterator<Item = &Approval> {
        let denied = self.ended.denied.iter().filter_map(|id| self.approval(id));
        denied.filter(move |approval| approval.digest == *digest)
    }

    /// A backup stands in for what was lost. What was decided since is not
    /// known: what is open grants nothing any more, and agents wait for an admin.
    pub(super) fn restored(&mut self, index: u64, now: Millis, restored: &Restored) {
        let open: Vec<String> = self.open.values().flatten().cloned().collect();
        for id in self.in_order(open) {
            self.end_approval(&id, ApprovalState::Expired);
        }
        self.suspended = Some(Suspension {
            index,
            time_ms: now,
            entries: restored.entries,
            head: restored.head,
        });
    }

    /// By age: which of the ended are forgotten first must not rest on a map's order.
    fn in_order(&self, mut ids: Vec<String>) -> Vec<String> {
        let age = |id: &String| self.approval(id).map(|a| (a.created_ms, a.id.clone()));
        ids.sort_by_key(age);
        ids
    }
}
