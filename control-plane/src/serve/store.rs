//! Opens the ledger that the config names: in a directory, or in a database.

use super::{ServeError, advice, probe};
use crate::config::Config;
use crate::state::Clock;
use std::sync::Arc;

/// The ledger in a database, and whether its log was begun just now.
pub(super) async fn in_database(
    url: &str,
    config: &Config,
    clock: &Clock,
) -> Result<(ledger::Ledger, bool), ServeError> {
    let store = &config.ledger.store;
    let options = ledger::postgres::PostgresOptions {
        limits: ledger_limits(config),
        connections: store.connections,
        replicated: store.replicated,
        plaintext_loopback: store.plaintext_loopback,
        ..ledger::postgres::PostgresOptions::new(url, clock.clone())
    };
    let (ledger, report) = ledger::Ledger::open_postgres(options).await?;
    tracing::info!(
        entries = report.entries,
        start = report.epoch,
        "the ledger is open, in a database"
    );
    if ledger.suspended().is_some() {
        tracing::warn!("a backup was restored: agents are suspended until an admin confirms");
    }
    Ok((ledger, report.created))
}

/// The ledger, and whether its journal was begun just now.
pub(super) fn embedded(
    config: &Config,
    clock: &Clock,
) -> Result<(ledger::Ledger, bool), ServeError> {
    let dir = config.server.data_dir.join("journal");
    let mut options = ledger::Options::new(&dir, clock.clone());
    options.listings = Some(config.server.data_dir.join("listings"));
    // One copy beside the journal: enough to notice that the journal alone was
    // deleted or set back. What is elsewhere notices more.
    options.head_copies = vec![advice::beside(&dir)];
    options.head_copies.extend(config.ledger.head_copy.clone());
    options.probe = Some(Arc::new(probe::probe));
    options.limits = ledger_limits(config);
    let (ledger, report) =
        ledger::Ledger::open(options).map_err(|error| ServeError::Ledger(dir.clone(), error))?;
    advice::say_opened(&dir, &report);
    if let Some(waiting) = &report.suspended {
        tracing::warn!(
            restored = waiting.index,
            entries = waiting.entries,
            "a backup was restored: agents are suspended until `writ ledger confirm`"
        );
    }
    Ok((ledger, report.created))
}

fn ledger_limits(config: &Config) -> ledger::model::Limits {
    ledger::model::Limits {
        outstanding_per_agent: config.limits.outstanding_per_agent,
        outstanding_per_owner: config.limits.outstanding_per_owner,
        held_per_agent: config.limits.held_per_agent,
        held_total: config.limits.held_total,
        keys_per_evidence: config.limits.keys_per_evidence,
        discovered: config.limits.discovered_agents,
        approvals_open: config.limits.open_approvals,
        approvals_open_per_agent: config.limits.open_approvals_per_agent,
        denied_ms: config.approval.denied_s.saturating_mul(1000),
        ..ledger::model::Limits::default()
    }
}
