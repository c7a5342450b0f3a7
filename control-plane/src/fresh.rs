//! Keys of others, kept fresh.

use crate::clients::Clients;
use crate::exchange::Issuers;
use crate::federated::keep_bundles_fresh;
use crate::state::Core;
use identity::oidc::{FetchError, ForeignIssuer};
use std::sync::Arc;
use std::time::Duration;

/// How often keys are fetched anew, so that one which is withdrawn counts no more.
const REFRESH: Duration = Duration::from_secs(300);
/// The same after a failure.
const RETRY: Duration = Duration::from_secs(15);
/// Letters of a failure that are said.
const WHY_MAX: usize = 512;

/// Keeps the keys of all others fresh: issuers', clients', trust domains'.
pub async fn keep_fresh(core: Arc<Core>) {
    tokio::join!(
        Issuers::keep_fresh(core.clone()),
        Clients::keep_fresh(core.clone()),
        keep_bundles_fresh(core),
    );
}

/// Keeps the keys of one issuer fresh, or of one client, as `what` says, and says so
/// where that fails.
pub async fn keep_keys_fresh(issuer: &ForeignIssuer, what: &str, core: &Core) {
    let name = issuer.issuer();
    let key = format!("{what} {name}");
    loop {
        let wait = match issuer.refresh(core.now()).await {
            Ok(0) => {
                let text =
                    format!("the {what} {name} has no keys now: all of its tokens are refused");
                core.warnings.raise(&key, &text);
                RETRY
            }
            Ok(keys) => {
                tracing::debug!(what, name, keys, "keys are fetched");
                core.warnings.lower(&key);
                REFRESH
            }
            Err(error) => {
                let text = failed(what, name, &error);
                if core.warnings.raise(&key, &text) {
                    tracing::error!(what, name, warning = ?text, "keys can't be fetched");
                }
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

fn failed(what: &str, name: &str, error: &FetchError) -> String {
    // Some of it are the other side's words.
    let error: String = error.to_string().chars().take(WHY_MAX).collect();
    format!(
        "the keys of the {what} {name} can't be fetched, so tokens under new ones are refused, and all of its within a day: {error}"
    )
}
