//! What comes from outside of the code, and decides when and how it runs: tasks,
//! chance, and time. Under simulation all of it is the seed's.

use std::time::Duration;

#[cfg(not(test))]
pub(crate) use tokio::time::{Instant, sleep, timeout};

#[cfg(test)]
pub(crate) use {
    crate::sim::postgres::{now, sleep, timeout},
    std::time::Instant,
};

/// Now.
#[cfg(not(test))]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// How long ago that was.
pub(crate) fn elapsed(since: Instant) -> Duration {
    now().saturating_duration_since(since)
}

/// Runs a task beside the others.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    #[cfg(test)]
    let Some(task) = crate::sim::postgres::spawn(task) else {
        return;
    };
    tokio::spawn(task);
}

/// Fills bytes at random.
pub(crate) fn fill(bytes: &mut [u8]) {
    #[cfg(test)]
    if crate::sim::postgres::fill(bytes) {
        return;
    }
    rand::fill(bytes);
}

/// A number from `least` on and less than `end`.
pub(crate) fn within(least: u32, end: u32) -> u32 {
    let mut bytes = [0; 4];
    fill(&mut bytes);
    let span = end.saturating_sub(least).max(1);
    least.saturating_add(u32::from_le_bytes(bytes) % span)
}

/// A little longer each time, and never the same for two lanes.
pub(crate) fn backoff(tried: u32) -> Duration {
    Duration::from_micros(u64::from(within(200, 2_000)) << tried.min(6))
}
