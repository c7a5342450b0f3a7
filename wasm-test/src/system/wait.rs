//! Waiting for processes to answer, with a deadline.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{START_DEADLINE, ServeReady};
use crate::Error;
use crate::child::Child;

const POLL: Duration = Duration::from_millis(50);

/// Polls `holds` until it does.
///
/// # Errors
/// After [`START_DEADLINE`].
pub async fn until<F>(what: &str, holds: impl Fn() -> F) -> Result<(), Error>
where
    F: Future<Output = bool>,
{
    let deadline = Instant::now() + START_DEADLINE;
    while !holds().await {
        if Instant::now() > deadline {
            let seconds = START_DEADLINE.as_secs();
            return Err(Error::Unexpected(format!(
                "waited {seconds} s in vain until {what}"
            )));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Waits for the ready file of a `writ serve`.
pub async fn for_ready_file(child: &mut Child, path: &Path) -> Result<ServeReady, Error> {
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        child.still_running()?;
        if let Ok(text) = std::fs::read(path) {
            return serde_json::from_slice(&text).map_err(|problem| {
                child.error(format!("wrote a ready file that is wrong ({problem})"))
            });
        }
        if Instant::now() > deadline {
            let seconds = START_DEADLINE.as_secs();
            return Err(child.error(format!("is not ready after {seconds} s")));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until Envoy is live, its guarded listener refuses a request that has no
/// credentials with the filter's own challenge, and all of its `threads` that
/// run the filter have a stream to the control plane: a worker without one
/// answers 503.
pub async fn for_guard(
    child: &mut Child,
    client: &reqwest::Client,
    admin: &str,
    proxy: &str,
    threads: u64,
) -> Result<(), Error> {
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        child.still_running()?;
        let Err(problem) = guard_answers(client, admin, proxy, threads).await else {
            // The last stream is open; its greeting takes a round trip.
            tokio::time::sleep(POLL).await;
            return Ok(());
        };
        if Instant::now() > deadline {
            let seconds = START_DEADLINE.as_secs();
            return Err(child.error(format!("is not ready after {seconds} s ({problem})")));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn guard_answers(
    client: &reqwest::Client,
    admin: &str,
    proxy: &str,
    threads: u64,
) -> Result<(), String> {
    let ready = client
        .get(format!("{admin}/ready"))
        .timeout(Duration::from_secs(2))
        .send()
        .await
        .map_err(|problem| format!("its admin interface: {problem}"))?;
    if ready.status() != 200 {
        return Err(format!("its admin interface says {}", ready.status()));
    }
    let refused = client
        .get(format!("{proxy}/"))
        .timeout(Duration::from_secs(2))
        .send()
        .await
        .map_err(|problem| format!("its listener: {problem}"))?;
    let challenge = refused.headers().get("www-authenticate");
    if refused.status() != 401 || challenge.is_none() {
        return Err(format!(
            "its listener answers {} where the filter would answer 401",
            refused.status()
        ));
    }
    streams_are_open(client, admin, threads).await
}

/// Whether all of Envoy's `threads` that run the filter have a stream to the
/// control plane, beside the one that brings the configuration.
pub async fn streams_are_open(
    client: &reqwest::Client,
    admin: &str,
    threads: u64,
) -> Result<(), String> {
    let wanted = threads.saturating_add(1);
    let open = open_streams(client, admin).await?;
    if open < wanted {
        return Err(format!(
            "{open} of {wanted} streams to the control plane are open"
        ));
    }
    Ok(())
}

async fn open_streams(client: &reqwest::Client, admin: &str) -> Result<u64, String> {
    let answer = client
        .get(format!(
            "{admin}/stats?filter=writ_control_plane.upstream_rq_active"
        ))
        .timeout(Duration::from_secs(2))
        .send()
        .await
        .map_err(|problem| format!("its admin interface: {problem}"))?;
    let stats = answer
        .text()
        .await
        .map_err(|problem| format!("its admin interface: {problem}"))?;
    let value = stats
        .lines()
        .find_map(|line| line.rsplit_once(": "))
        .map_or("0", |(_, value)| value);
    value
        .trim()
        .parse()
        .map_err(|_| format!("its admin interface counts {value:?} streams"))
}
