//! Refusals that get no line of their own: those of callers nobody has
//! authenticated, and those of an agent that provokes too many. They are counted
//! by reason and written once a minute, so that refused traffic can't fill the log.
//! And what agents may cause themselves, so many a minute.

use capability::reason::Reason;
use ledger::Ledger;
use ledger::model::Command;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lines that refusals may cause of each agent in a minute, in the long run.
const LINES_PER_AGENT: u64 = 60;
/// Lines that they may cause of it at once, where there were none for a while.
const LINES_AT_ONCE: u64 = 1_024;
/// The same of each agent that may do nothing: one that nobody has registered, or that is
/// suspended, decommissioned or stopped. There are as many at once.
const LINES_PER_BARRED: u64 = 3;
/// And of all of those together.
const LINES_OF_BARRED: u64 = 60;
/// Agents whose lines are counted apart at a time; of others refusals are counted only.
const AGENTS_MAX: usize = 4_096;
/// Tokens that one agent may revoke within a minute, and refresh tokens whose family may be
/// ended within one so that it gets further ones: each is a stop, which everybody's commits
/// are checked against until it is over.
const REVOKED_PER_AGENT: u64 = 30;

/// The counts and the budgets.
pub struct Refusals {
    counts: Mutex<BTreeMap<&'static str, u64>>,
    lines: Mutex<Budget>,
    barred: Mutex<Budget>,
    barred_in_all: Mutex<Budget>,
    revoked: Mutex<Budget>,
    families: Mutex<Budget>,
}

impl Default for Refusals {
    fn default() -> Self {
        let budget = |per_minute, at_once| Mutex::new(Budget::new(per_minute, at_once));
        Self {
            counts: Mutex::default(),
            lines: budget(LINES_PER_AGENT, LINES_AT_ONCE),
            barred: budget(LINES_PER_BARRED, LINES_PER_BARRED),
            barred_in_all: budget(LINES_OF_BARRED, LINES_OF_BARRED),
            revoked: budget(REVOKED_PER_AGENT, REVOKED_PER_AGENT),
            families: budget(REVOKED_PER_AGENT, REVOKED_PER_AGENT),
        }
    }
}

/// How often each agent may still do something: a bucket that time fills again.
struct Budget {
    per_minute: u64,
    at_once: u64,
    used: BTreeMap<String, Used>,
}

/// What is missing in a bucket.
#[derive(Clone, Copy)]
struct Used {
    /// In parts of which a minute has [`MINUTE_MS`] for each time.
    parts: u64,
    at_ms: u64,
}

const MINUTE_MS: u64 = 60_000;

impl Budget {
    fn new(per_minute: u64, at_once: u64) -> Self {
        Self {
            per_minute,
            at_once,
            used: BTreeMap::new(),
        }
    }

    fn missing(&self, used: Used, now_ms: u64) -> u64 {
        let passed = now_ms.saturating_sub(used.at_ms);
        let filled = passed.saturating_mul(self.per_minute);
        used.parts.saturating_sub(filled)
    }

    /// What is missing for an agent; nothing where there is no room for another one.
    fn of(&mut self, agent: &str, now_ms: u64) -> Option<u64> {
        if let Some(used) = self.used.get(agent) {
            return Some(self.missing(*used, now_ms));
        }
        if self.used.len() >= AGENTS_MAX {
            // One that is full is as one that nobody has used.
            let mut used = std::mem::take(&mut self.used);
            used.retain(|_, used| self.missing(*used, now_ms) > 0);
            self.used = used;
        }
        (self.used.len() < AGENTS_MAX).then_some(0)
    }

    fn put(&mut self, agent: &str, parts: u64, now_ms: u64) {
        let known = self.used.get(agent);
        let at_ms = known.map_or(now_ms, |known| known.at_ms.max(now_ms));
        let used = Used { parts, at_ms };
        match self.used.get_mut(agent) {
            Some(known) => *known = used,
            None => {
                self.used.insert(agent.to_owned(), used);
            }
        }
    }

    /// Whether it is there once more.
    fn has(&mut self, agent: &str, now_ms: u64) -> bool {
        let most = self.at_once.saturating_mul(MINUTE_MS);
        let missing = self.of(agent, now_ms);
        missing.is_some_and(|missing| missing.saturating_add(MINUTE_MS) <= most)
    }

    /// Takes it once more, if it is there.
    fn take(&mut self, agent: &str, now_ms: u64) -> bool {
        self.has(agent, now_ms) && self.take_anyhow(agent, now_ms)
    }

    /// Takes it once more, also where it is not there. False: it is not remembered.
    fn take_anyhow(&mut self, agent: &str, now_ms: u64) -> bool {
        let Some(missing) = self.of(agent, now_ms) else {
            return false;
        };
        self.put(agent, missing.saturating_add(MINUTE_MS), now_ms);
        true
    }
}

fn locked(budget: &Mutex<Budget>) -> MutexGuard<'_, Budget> {
    budget.lock().unwrap_or_else(PoisonError::into_inner)
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
        let may = locked(&self.lines).take(agent, now_ms);
        self.counted_unless(may, reason)
    }

    /// The same of an agent that may do nothing.
    pub fn may_have_line_barred(&self, agent: &str, reason: Reason, now_ms: u64) -> bool {
        let may = locked(&self.barred).take(agent, now_ms)
            && locked(&self.barred_in_all).take("", now_ms);
        self.counted_unless(may, reason)
    }

    fn counted_unless(&self, may: bool, reason: Reason) -> bool {
        if !may {
            self.count(reason);
        }
        may
    }

    /// Whether this agent may revoke one more token now.
    pub fn may_revoke(&self, agent: &str, now_ms: u64) -> bool {
        locked(&self.revoked).take(agent, now_ms)
    }

    /// A family of refresh tokens of this agent's was ended, which never has to wait. What
    /// waits for it is the next family.
    pub fn ended_family(&self, agent: &str, now_ms: u64) {
        locked(&self.families).take_anyhow(agent, now_ms);
    }

    /// Whether this agent may get a first refresh token now.
    pub fn may_begin_family(&self, agent: &str, now_ms: u64) -> bool {
        locked(&self.families).has(agent, now_ms)
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

    fn counted(refusals: &Refusals, reason: &str) -> Option<u64> {
        refusals.counts.lock().unwrap().get(reason).copied()
    }

    #[test]
    fn an_agent_has_so_many_lines_and_the_rest_is_counted() {
        let refusals = Refusals::default();
        let lines = |agent: &str, now| {
            (0..2_000)
                .filter(|_| refusals.may_have_line(agent, Reason::TokenSpent, now))
                .count()
        };
        assert_eq!(lines("a", 1_000), 1_024);
        assert_eq!(counted(&refusals, "token_spent"), Some(976));
        assert_eq!(lines("b", 1_000), 1_024, "one does not use up another's");
        assert_eq!(lines("a", 61_000), 60, "and then as many a minute");
        assert_eq!(lines("a", 61_999), 0);
        assert_eq!(lines("a", 62_000), 1);
        assert_eq!(lines("a", 30_000), 0, "a clock that goes back gives none");
        assert_eq!(
            lines("a", 100_000_000),
            1_024,
            "and never more than at once"
        );
    }

    #[test]
    fn who_may_do_nothing_has_few_lines_and_all_of_those_together_not_many() {
        let refusals = Refusals::default();
        let lines = |agent: &str, now| {
            (0..100)
                .filter(|_| refusals.may_have_line_barred(agent, Reason::AgentInactive, now))
                .count()
        };
        assert_eq!(lines("a", 0), 3);
        assert_eq!(counted(&refusals, "agent_inactive"), Some(97));
        assert_eq!(lines("a", 60_000), 3);
        let of_many = (0..500).map(|n| lines(&format!("agent {n}"), 120_000));
        assert_eq!(of_many.sum::<usize>(), 60);
        assert_eq!(lines("one more", 120_000), 0);
        // Those that may act have their own.
        assert!(refusals.may_have_line("one more", Reason::PolicyDenied, 120_000));
        // Names that are made up fill no memory, and all is there again afterwards.
        for n in 0..2 * AGENTS_MAX {
            refusals.may_have_line_barred(&n.to_string(), Reason::AgentInactive, 120_000);
        }
        assert!(locked(&refusals.barred).used.len() <= AGENTS_MAX);
        assert_eq!(lines("again", 240_000), 3);
    }

    #[test]
    fn an_agent_revokes_so_many_a_minute() {
        let refusals = Refusals::default();
        let taken = |agent: &str, now| (0..40).filter(|_| refusals.may_revoke(agent, now)).count();
        assert_eq!(taken("a", 60_000), 30);
        assert_eq!(taken("b", 61_000), 30, "one does not use up another's");
        assert_eq!(taken("a", 61_999), 0);
        assert_eq!(taken("a", 62_000), 1);
        assert_eq!(taken("a", 122_000), 30);
        for n in 0..AGENTS_MAX {
            refusals.may_revoke(&n.to_string(), 180_000);
        }
        assert!(!refusals.may_revoke("one more", 180_000));
        assert!(refusals.may_revoke("0", 180_000));
    }

    #[test]
    fn whose_families_were_ended_waits_for_the_next_and_they_never_do() {
        let refusals = Refusals::default();
        let may = |agent: &str, now| refusals.may_begin_family(agent, now);
        assert!(may("a", 0) && may("a", 0), "asking takes nothing");
        for _ in 0..90 {
            refusals.ended_family("a", 0);
        }
        assert!(
            !may("a", 0) && !may("a", 120_000),
            "ninety are three minutes'"
        );
        assert!(may("a", 122_000) && may("b", 0));
        assert!(refusals.may_revoke("a", 0), "what it revokes is apart");
    }
}
