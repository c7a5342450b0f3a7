//! How often each code is asked about.

use ledger::model::Hash;
use std::collections::HashMap;
use std::sync::Mutex;

/// Codes of one agent whose last question is remembered. It can have fewer that are not used
/// up, so that only one that asks about ever new ones gets there.
const POLLED_PER_AGENT: usize = 4_096;
/// So few codes, or agents, are never looked through.
const SWEEP_MIN: usize = 64;

/// When each code was last asked about: of each agent apart, so that none is told to slow
/// down for what others ask.
#[derive(Default)]
pub struct Polls(Mutex<Asked>);

#[derive(Default)]
struct Asked {
    by_agent: HashMap<String, Codes>,
    sweep_at: usize,
}

#[derive(Default)]
struct Codes {
    last: HashMap<Hash, u64>,
    /// They are looked through when there are twice as many as were left the last time, so
    /// that it costs little for each.
    sweep_at: usize,
}

impl Codes {
    fn sweep(&mut self, soon: impl Fn(u64) -> bool) {
        self.last.retain(|_, last| soon(*last));
        self.sweep_at = self.last.len().saturating_mul(2);
    }
}

impl Polls {
    /// Whether an agent's code may be now, and not too soon after the last time.
    pub(super) fn may(&self, agent: &str, code: Hash, now_ms: u64, interval_ms: u64) -> bool {
        let Ok(mut asked) = self.0.lock() else {
            return false;
        };
        let soon = |last: u64| now_ms < last.saturating_add(interval_ms);
        let agents = asked.by_agent.len();
        if agents >= asked.sweep_at.max(SWEEP_MIN) && !asked.by_agent.contains_key(agent) {
            asked.by_agent.retain(|_, codes| {
                codes.sweep(soon);
                !codes.last.is_empty()
            });
            asked.sweep_at = asked.by_agent.len().saturating_mul(2);
        }
        let codes = asked.by_agent.entry(agent.to_owned()).or_default();
        if codes.last.get(&code).is_some_and(|last| soon(*last)) {
            return false;
        }
        if codes.last.len() >= codes.sweep_at.clamp(SWEEP_MIN, POLLED_PER_AGENT) {
            codes.sweep(soon);
        }
        if codes.last.len() >= POLLED_PER_AGENT {
            return false;
        }
        codes.last.insert(code, now_ms);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn code(n: usize) -> Hash {
        Sha256::digest(n.to_le_bytes()).into()
    }

    #[test]
    fn a_code_is_asked_about_once_in_an_interval() {
        let polls = Polls::default();
        let table = [
            (1, 0, true),
            (1, 4_999, false),
            (2, 4_999, true),
            (1, 5_000, true),
            (1, 9_999, false),
            (1, 2_000, false),
        ];
        for (n, now_ms, may) in table {
            assert_eq!(polls.may("a", code(n), now_ms, 5_000), may, "{n} {now_ms}");
        }
    }

    #[test]
    fn agents_that_ask_about_all_their_codes_slow_nobody_else_down() {
        let polls = Polls::default();
        for agent in 0..64 {
            for n in 0..1_024 {
                let code = code(agent * 1_024 + n);
                assert!(polls.may(&format!("agent {agent}"), code, 1_000, 5_000));
            }
        }
        assert!(polls.may("another", code(1 << 20), 1_000, 5_000));
    }

    #[test]
    fn an_agent_that_asks_about_too_many_waits_and_those_of_before_are_forgotten() {
        let polls = Polls::default();
        let may = |agent: &str, n, now_ms| polls.may(agent, code(n), now_ms, 5_000);
        for n in 0..POLLED_PER_AGENT {
            assert!(may("a", n, 1_000));
        }
        assert!(!may("a", POLLED_PER_AGENT, 5_999));
        assert!(may("b", POLLED_PER_AGENT, 5_999));
        assert!(may("a", POLLED_PER_AGENT, 6_000));
        for n in 0..1_000 {
            assert!(may(&format!("agent {n}"), n, 6_000));
            assert!(may(&format!("later {n}"), n, 60_000));
            assert!(may("a", POLLED_PER_AGENT + n, 60_000 + 5_000 * n as u64));
        }
        let asked = polls.0.lock().unwrap();
        let agents = asked.by_agent.len();
        assert!(agents < 2_100, "{agents} agents");
        let codes = asked.by_agent["a"].last.len();
        assert!(codes <= SWEEP_MIN, "{codes} codes");
    }
}
