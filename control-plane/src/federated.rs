//! Other trust domains, whose SVIDs are evidence: their bundles, kept fresh.

use crate::config::Config;
use crate::state::Core;
use identity::Source;
use identity::federation::{DomainSettings, Federation};
use std::sync::Arc;
use std::time::Duration;

/// How long a start waits for the first bundles.
const FIRST_FETCH: Duration = Duration::from_secs(3);
/// Letters of a failure that are said.
const WHY_MAX: usize = 512;

/// Our own trust domain and those of the config; nothing is fetched yet.
///
/// # Errors
/// When a file with authorities is not usable, or our own identity is gone.
pub fn federation(config: &Config, source: Source) -> Result<Federation, String> {
    let domains = config.identity.federated.iter().map(|it| {
        let authorities_pem = it.authorities.as_ref().map(std::fs::read).transpose();
        let authorities_pem = authorities_pem.map_err(|error| {
            let name = &it.trust_domain;
            format!("the trust domain `{name}`: can't read its ca_file: {error}")
        })?;
        Ok(DomainSettings {
            trust_domain: it.trust_domain.clone(),
            bundle: it.bundle.clone(),
            authorities_pem,
            lifetime_max_ms: it.lifetime_max_s.saturating_mul(1000),
        })
    });
    let domains = domains.collect::<Result<_, String>>()?;
    Federation::new(source, domains).map_err(|error| error.to_string())
}

/// Fetches each bundle once before anybody is served, so that who asks at once is not
/// told to come again. What does not come in time is fetched beside what else goes on.
pub async fn fetch_bundles(core: &Core) {
    let all = core.federation.fetched();
    let all = all.map(|name| core.federation.refresh(name, core.now()));
    let _ = tokio::time::timeout(FIRST_FETCH, futures::future::join_all(all)).await;
}

/// Keeps each one's bundle fresh, and says so where that fails.
pub async fn keep_bundles_fresh(core: Arc<Core>) {
    let names: Vec<String> = core.federation.fetched().map(str::to_owned).collect();
    let all = names.into_iter().map(|name| keep_fresh(core.clone(), name));
    futures::future::join_all(all).await;
}

async fn keep_fresh(core: Arc<Core>, name: String) {
    let key = format!("trust domain {name}");
    loop {
        let wait = match core.federation.refresh(&name, core.now()).await {
            Ok(refreshed) if refreshed.keys == 0 => {
                let text = format!(
                    "the trust domain {name} has no keys now: all of its SVIDs are refused"
                );
                core.warnings.raise(&key, &text);
                refreshed.again
            }
            Ok(refreshed) => {
                tracing::debug!(
                    trust_domain = name,
                    keys = refreshed.keys,
                    "a bundle is fetched"
                );
                core.warnings.lower(&key);
                refreshed.again
            }
            Err(error) => {
                // Some of it are the other side's words.
                let error: String = error.to_string().chars().take(WHY_MAX).collect();
                let text = format!(
                    "the bundle of the trust domain {name} can't be fetched, so SVIDs under new keys are refused, and all of its within a day: {error}"
                );
                if core.warnings.raise(&key, &text) {
                    tracing::error!(trust_domain = name, warning = ?text, "a bundle can't be fetched");
                }
                core.federation.retry(&name)
            }
        };
        tokio::time::sleep(wait).await;
    }
}
