//! Refusals that get no line of their own: those of callers nobody has
//! authenticated, and those of an agent that provokes too many. They are counted
//! by reason and written once a minute, so that refused traffic can't fill the log.
//! And what agents may cause themselves, so many a minute.

use capability::reason::Reason;
use ledger::Ledger;
use ledger::model::Command;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Lines per agent and second that refusals may cause.
const LINES_PER_AGENT: u32 = 500;
/// Agents whose lines are counted within one second; beyond, refusals are counted only.
const AGENTS_MAX: usize = 4_096;
/// Tokens that one agent may revoke within a minute: each is a stop, which everybody's
/// commits are checked against until it is over. The agents are as many as above.
const REVOKED_PER_AGENT: u32 = 30;

/// The counts and the budgets.
#[derive(Default)]
pub struct Refusals {
    counts: Mutex<BTreeMap<&'static str, u64>>,
    second: Mutex<Budget>,
    minute: Mutex<Budget>,
}

/// How often each agent did something in one period, which has a number.
type Budget = (u64, BTreeMap<String, u32>);

/// Whether this agent may do it once more.
fn take(budget: &Mutex<Budget>, period: u64, agent: &str, most: u32) -> bool {
    let mut budget = budget.lock().unwrap_or_else(PoisonError::into_inner);
    if budget.0 != period {
        *budget = (period, BTreeMap::new());
    }
    let known = budget.1.len();
    match budget.1.get_mut(agent) {
        Some(count) => {
            *count = count.saturating_add(1);
            *count <= most
        }
        None if known < AGENTS_MAX => {
            budget.1.insert(agent.to_owned(), 1);
            true
        }
        None => false,
    }
}

impl Refusals {
    /// Counts a refusal that gets no line.
    pub fn count(&self, reason: Reason) {
        self.add(reason.as_str(), 1);
    }

    fn add(&self, reason: &'static str, more: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(reason).or_default();
        *count = count.saturating_add(more);
    }

    /// Whether a refusal of this agent's may have a line now; it is counted when
    /// it may not.
    pub fn may_have_line(&self, agent: &str, reason: Reason, now_ms: u64) -> bool {
        let may = take(&self.second, now_ms / 1000, agent, LINES_PER_AGENT);
        if !may {
            self.count(reason);
        }
        may
    }

    /// Whether this agent may revoke one more token now.
    pub fn may_revoke(&self, agent: &str, now_ms: u64) -> bool {
        take(&self.minute, now_ms / 60_000, agent, REVOKED_PER_AGENT)
    }

    /// Moves the counts into the log; called each minute and at the end. What
    /// could not be written is kept for the next time.
    pub async fn flush(&self, ledger: &Ledger) {
        let counts =
            std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        if counts.is_empty() {
            return;
        }
        let body = serde_json::json!({ "counts": counts });
        if let Err(error) = ledger
            .commit(Command::Note {
                kind: "exchange_counts",
                body,
            })
            .await
        {
            tracing::error!(%error, "the counts of refusals could not be recorded yet");
            for (reason, count) in counts {
                self.add(reason, count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_has_so_many_lines_a_second_and_the_rest_is_counted() {
        let refusals = Refusals::default();
        let lines = |agent: &str, now| {
            (0..700)
                .filter(|_| refusals.may_have_line(agent, Reason::TokenSpent, now))
                .count()
        };
        assert_eq!(lines("a", 1_000), 500);
        assert_eq!(
            lines("b", 1_999),
            500,
            "one agent does not use up another's"
        );
        assert_eq!(lines("a", 2_000), 500);
        assert_eq!(
            refusals.counts.lock().unwrap().get("token_spent"),
            Some(&600)
        );
    }

    #[test]
    fn an_agent_revokes_so_many_a_minute() {
        let refusals = Refusals::default();
        let taken = |agent: &str, now| (0..40).filter(|_| refusals.may_revoke(agent, now)).count();
        assert_eq!(taken("a", 60_000), 30);
        assert_eq!(taken("b", 61_000), 30, "one does not use up another's");
        assert_eq!(taken("a", 119_999), 0);
        assert_eq!(taken("a", 120_000), 30);
        for n in 0..AGENTS_MAX {
            refusals.may_revoke(&n.to_string(), 180_000);
        }
        assert!(!refusals.may_revoke("one more", 180_000));
        assert!(refusals.may_revoke("0", 180_000));
    }
}
