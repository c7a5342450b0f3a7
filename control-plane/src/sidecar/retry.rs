//! How often, and after how long, what has spent nothing is tried again.

use std::time::Duration;

/// Tries of one exchange, and showings of one token that the edge turned away.
pub const TRIES: u32 = 3;
/// The issuer's `Retry-After`, seconds; it has no other.
pub const ISSUER_RETRY_S: u64 = 1;
/// A `Retry-After` that is longer is the agent's to wait for.
pub const WAIT_MAX: Duration = Duration::from_secs(5);
/// OAuth's word for what may be tried again, which has spent nothing.
pub const TEMPORARY: &str = "temporarily_unavailable";

/// The wait, half as long again at most, so that many don't come at once.
pub async fn pause(wait: Duration) {
    let more = rand::random_range(0.0..0.5);
    tokio::time::sleep(wait.mul_f64(1.0 + more)).await;
}
