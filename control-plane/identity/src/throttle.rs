//! Warnings that strangers cause, at a rate that doesn't fill a disk.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Warnings in one second.
const MOST: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// Lets ten warnings through in each second.
pub(crate) struct Throttle {
    window: Mutex<Window>,
}

struct Window {
    began: Instant,
    said: u32,
    suppressed: u64,
}

impl Throttle {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            window: Mutex::new(Window {
                began: now,
                said: 0,
                suppressed: 0,
            }),
        }
    }

    /// Whether to warn now; if so, how many warnings were left out since the
    /// last one that wasn't.
    pub(crate) fn pass(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(window.began) >= WINDOW {
            window.began = now;
            window.said = 0;
        }
        if window.said >= MOST {
            window.suppressed = window.suppressed.saturating_add(1);
            return None;
        }
        window.said += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_in_a_second_and_then_a_count() {
        let start = Instant::now();
        let throttle = Throttle::new(start);
        for _ in 0..10 {
            assert_eq!(throttle.pass(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(throttle.pass(start + Duration::from_millis(999)), None);
        }
        let later = start + Duration::from_secs(1);
        assert_eq!(throttle.pass(later), Some(7));
        assert_eq!(throttle.pass(later), Some(0));
    }
}
