//! How often each code is asked about.

use ledger::model::Hash;
use std::collections::HashMap;
use std::sync::Mutex;

/// Codes whose last question is remembered.
const POLLED_MAX: usize = 16_384;

/// When each code was last asked about.
#[derive(Default)]
pub struct Polls(Mutex<HashMap<Hash, u64>>);

impl Polls {
    /// Whether it may be now, and not too soon after the last time.
    pub(super) fn may(&self, code: Hash, now_ms: u64, interval_ms: u64) -> bool {
        let Ok(mut polls) = self.0.lock() else {
            return false;
        };
        let soon = |last: u64| now_ms < last.saturating_add(interval_ms);
        if polls.get(&code).is_some_and(|last| soon(*last)) {
            return false;
        }
        if polls.len() >= POLLED_MAX {
            polls.retain(|_, last| soon(*last));
        }
        if polls.len() >= POLLED_MAX {
            return false;
        }
        polls.insert(code, now_ms);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

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
        for (code, now_ms, may) in table {
            assert_eq!(polls.may([code; 32], now_ms, 5_000), may, "{code} {now_ms}");
        }
    }

    #[test]
    fn when_there_are_too_many_codes_those_that_may_ask_again_are_forgotten() {
        let polls = Polls::default();
        let code = |n: usize| -> Hash { Sha256::digest(n.to_le_bytes()).into() };
        for n in 0..POLLED_MAX {
            assert!(polls.may(code(n), 1_000, 5_000));
        }
        assert!(!polls.may(code(POLLED_MAX), 5_999, 5_000));
        assert!(polls.may(code(POLLED_MAX), 6_000, 5_000));
    }
}
