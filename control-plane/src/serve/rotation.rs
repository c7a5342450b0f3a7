//! Another key that signs tokens, on schedule: what `writ keys rotate` does, done by
//! the control plane itself.

use crate::keys::{self, Hsm, KeyError};
use crate::state::Core;
use ledger::model::Command;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// How often it looks whether it is time.
const LOOK: Duration = Duration::from_secs(1);
/// What did not work is tried again after so long.
const AGAIN: Duration = Duration::from_secs(60);
/// The key of the warning.
const WARNING: &str = "keys rotation";
/// Seconds of a day.
const DAY_S: u64 = 86_400;

/// Looks for as long as we run.
pub async fn run(core: Arc<Core>) {
    let every_s = core.config.keys.rotate_every_days.saturating_mul(DAY_S);
    loop {
        let wait = if look(&core, every_s).await {
            core.warnings.lower(WARNING);
            LOOK
        } else {
            AGAIN
        };
        tokio::time::sleep(wait).await;
    }
}

/// The key of the warning about the token.
const AWAY: &str = "keys token";
/// How often the PKCS#11 token is looked at.
const WATCH: Duration = Duration::from_secs(1);

/// Says that the PKCS#11 token is away or signs wrongly, and that it is well again.
pub async fn watch_token(core: Arc<Core>) {
    let Some(token) = core.keys.place().token.clone() else {
        return;
    };
    loop {
        match is_well(&core, &token).await {
            Err(error) => {
                let text = format!("NO TOKEN IS ISSUED: {error}");
                if core.warnings.raise(AWAY, &text) {
                    tracing::error!("{text}");
                }
            }
            Ok(()) => {
                if core.warnings.lower(AWAY) {
                    tracing::info!("the PKCS#11 token is well again");
                }
            }
        }
        tokio::time::sleep(WATCH).await;
    }
}

/// Whether it is there, and signs where it did not when it was asked last.
async fn is_well(core: &Core, token: &Arc<Hsm>) -> Result<(), KeyError> {
    let looked = token.clone();
    let seen = tokio::task::spawn_blocking(move || looked.look()).await;
    seen.unwrap_or_else(|error| Err(KeyError::TokenAway(error.to_string())))?;
    let key = core.keys.active(core.now() / 1000)?;
    if token.is_failing() {
        key.try_out().await?;
    }
    Ok(())
}

/// False when a key should have been made and was not.
async fn look(core: &Arc<Core>, every_s: u64) -> bool {
    let now_s = core.now() / 1000;
    if !core.keys.is_due(now_s, every_s) {
        return true;
    }
    // It waits for a lock, and writes.
    let place = core.keys.place().clone();
    let rotate = move || keys::rotate_if_due(&place, now_s, every_s);
    let problem = match tokio::task::spawn_blocking(rotate).await {
        Ok(Ok(None)) => return true,
        Ok(Ok(Some(made))) => {
            say(core, &made).await;
            return true;
        }
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let text = format!("the keys are due for their rotation, which failed: {problem}");
    tracing::error!("{text}");
    core.warnings.raise(WARNING, &text);
    false
}

/// Its own entry says why there is another key. That proxies know it is an entry of
/// its own, which comes before they do.
async fn say(core: &Core, made: &keys::Listed) {
    tracing::info!(
        kid = made.kid,
        from_s = made.from_s,
        "another key, on schedule"
    );
    let body = json!({
        "event": "rotated", "why": "schedule", "kid": made.kid, "from_s": made.from_s,
        "every_days": core.config.keys.rotate_every_days,
    });
    let note = Command::Note { kind: "keys", body };
    if let Err(error) = core.ledger.commit(note).await {
        tracing::error!(%error, "a rotation on schedule could not be recorded; the entry of what proxies know has its key");
    }
}
