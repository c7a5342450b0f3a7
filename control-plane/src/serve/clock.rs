//! Says so when the clock can't be right: nothing else would tell why all that lasts is
//! refused.

use crate::state::Core;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// What is no step, and no reason to say anything, in ms.
const MOST_MS: u64 = 10_000;
/// So long is it told that the clock stepped, in ms.
const TOLD_MS: u64 = 3_600_000;

/// Warnings' keys.
const STEPPED: &str = "clock-step";
const BEHIND: &str = "clock-behind";

/// What two looks at a clock tell.
#[derive(Debug, Default)]
struct Watch {
    last: Option<(u64, u64)>,
    stepped_at_ms: Option<u64>,
}

/// What is seen at one look.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// The clock went so many seconds further than time did.
    stepped_s: Option<i64>,
    /// Seconds that it is behind the log's last entry.
    behind_s: Option<u64>,
    /// The last step is long ago.
    over: bool,
}

impl Watch {
    /// A look: the clock, the time that has passed since any moment, and the log's time.
    fn look(&mut self, clock_ms: u64, passed_ms: u64, ledger_ms: u64) -> Seen {
        let went = |from: u64, to: u64| {
            let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
            signed(to).saturating_sub(signed(from))
        };
        let step = self.last.map_or(0, |(clock, passed)| {
            went(clock, clock_ms).saturating_sub(went(passed, passed_ms))
        });
        self.last = Some((clock_ms, passed_ms));
        let stepped = step.unsigned_abs() > MOST_MS;
        if stepped {
            self.stepped_at_ms = Some(passed_ms);
        }
        let since = self.stepped_at_ms.map(|at| passed_ms.saturating_sub(at));
        let over = since.is_some_and(|ms| ms > TOLD_MS);
        if over {
            self.stepped_at_ms = None;
        }
        let behind_ms = ledger_ms.saturating_sub(clock_ms);
        Seen {
            stepped_s: stepped.then_some(step / 1000),
            behind_s: (behind_ms > MOST_MS).then_some(behind_ms / 1000),
            over,
        }
    }
}

/// Looks at the clock for as long as it is polled.
pub(super) async fn watch(core: Arc<Core>) {
    let begin = Instant::now();
    let mut tick = tokio::time::interval(EVERY);
    let mut watch = Watch::default();
    loop {
        tick.tick().await;
        let passed_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        let seen = watch.look((core.clock)(), passed_ms, core.ledger.now());
        if let Some(seconds) = seen.stepped_s {
            tracing::error!(seconds, "ALARM: the clock stepped");
            let text = format!(
                "the clock stepped by {seconds} s: it was set, or this machine slept; what was issued meanwhile proxies judge by their own clocks"
            );
            core.warnings.raise(STEPPED, &text);
        }
        if seen.over {
            core.warnings.lower(STEPPED);
        }
        match seen.behind_s {
            Some(seconds) => {
                let text = format!(
                    "the clock is {seconds} s behind the log's last entry: the log's time stands still until it is reached, and what agents show is judged by that; set the clock right"
                );
                if core.warnings.raise(BEHIND, &text) {
                    tracing::error!(seconds, "ALARM: the clock is behind the log");
                }
            }
            None => {
                if core.warnings.lower(BEHIND) {
                    tracing::info!("the clock has reached the log's time");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_seen_once_and_a_clock_behind_for_as_long_as_it_is() {
        let mut watch = Watch::default();
        let mut look = |clock: u64, passed: u64, ledger: u64| {
            watch.look(clock * 1000, passed * 1000, ledger * 1000)
        };
        let none = Seen::default;
        assert_eq!(look(1_000, 0, 1_000), none(), "a first look tells nothing");
        assert_eq!(look(1_001, 1, 1_001), none());
        assert_eq!(look(1_012, 2, 1_012), none(), "ten seconds are no step");
        let ahead = Seen {
            stepped_s: Some(3_600),
            ..none()
        };
        assert_eq!(look(4_613, 3, 4_613), ahead);
        assert_eq!(look(4_614, 4, 4_614), none());
        let back = Seen {
            stepped_s: Some(-3_600),
            behind_s: Some(3_599),
            over: false,
        };
        assert_eq!(look(1_015, 5, 4_614), back);
        let behind = Seen {
            stepped_s: None,
            ..back
        };
        assert_eq!(look(1_015, 5, 4_614), behind);
        assert_eq!(look(4_606, 3_596, 4_614), none(), "nearly there");
        let over = Seen {
            over: true,
            ..none()
        };
        assert_eq!(look(4_616, 3_606, 4_616), over);
        assert_eq!(look(4_617, 3_607, 4_617), none());
    }
}
