//! What filters report: refusals at the edge and outcomes. A batch is
//! acknowledged when it is durable; what is missing is an entry too.

use super::open::Over;
use super::questions::Prefix;
use super::service::{Shared, attempt, own_counter};
use crate::fleet::Requests;
use crate::state::Core;
use capability::reason::Reason;
use decision_api::{
    Denial, DenialBatch, DenialsTaken, Outcome, from_control_plane::Message as Down,
};
use ledger::model::Command;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Bytes of a reported string that reach a line.
const TEXT_MAX: usize = 512;

/// Refusals that one batch may carry.
const BATCH_MAX: usize = 256;

impl Shared {
    /// Takes what became of allowed requests. Waits when too many are being
    /// written, so that a proxy can't queue without end.
    pub(super) async fn outcomes(&self, prefix: &Prefix, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            let over = outcome.id.as_ref().and_then(|id| prefix.open.over(id));
            let own = own_counter(prefix, outcome.id.as_ref());
            let Ok(room) = self.writes.clone().acquire_owned().await else {
                return;
            };
            let core = self.engine.core.clone();
            match (own, over) {
                (Some(counter), _) => {
                    let attempt = attempt(prefix, counter);
                    tokio::spawn(Box::pin(async move {
                        outcome_of(&core, attempt, &outcome).await;
                        drop(room);
                    }));
                }
                // It was let through before we knew this proxy.
                (None, Some(over)) => {
                    let body = late(&prefix.seat.peer, &outcome, &over);
                    tokio::spawn(async move {
                        let kind = "late_outcome";
                        let note = Command::Note { kind, body };
                        if let Err(error) = core.ledger.commit(note).await {
                            tracing::warn!(%error, "an outcome was not recorded");
                        }
                        drop(room);
                    });
                }
                (None, None) => {}
            }
        }
    }

    /// Takes one prefix's batches in their order; one is acknowledged when it is
    /// durable, and not before.
    pub(super) async fn take_denials(
        self: Arc<Self>,
        prefix: Arc<Prefix>,
        mut queue: mpsc::Receiver<DenialBatch>,
    ) {
        let core = &self.engine.core;
        while let Some(batch) = queue.recv().await {
            let mut durable = prefix.denials.lock().await;
            if batch.sequence > *durable {
                let missing = batch.sequence - *durable - 1;
                let name = format!("{}-{}", hex::encode(prefix.bytes), batch.sequence);
                if !take(core, &prefix.seat.peer, &name, &batch, missing).await {
                    continue;
                }
                *durable = batch.sequence;
                core.fleet.decided(&prefix.seat, requests(&batch));
            }
            drop(durable);
            prefix.send(Down::DenialsTaken(DenialsTaken {
                sequence: batch.sequence,
            }));
        }
    }
}

/// What became of a request that an earlier control plane let through.
fn late(proxy: &str, outcome: &Outcome, over: &Over) -> serde_json::Value {
    let id = outcome.id.clone().unwrap_or_default();
    json!({
        "proxy": proxy,
        "attempt": format!("{}-{}", hex::encode(&id.prefix), id.counter),
        "agent": cut(&over.agent),
        "token": hex::encode(over.token_hash),
        "status": outcome.status.min(u32::from(u16::MAX)),
        "response_bytes": outcome.response_bytes.min(1 << 53),
        "details": cut(&outcome.details),
    })
}

/// Makes a batch durable, by one name that a repeat has as well. False when it
/// could not be, so that it comes again.
async fn take(core: &Core, proxy: &str, name: &str, batch: &DenialBatch, missing: u64) -> bool {
    let mut entries = Vec::new();
    let over = batch.entries.len().saturating_sub(BATCH_MAX);
    if missing > 0 || batch.dropped > 0 || over > 0 {
        entries.push(("gap", json!({ "proxy": proxy, "batch": name, "missing_batches": missing, "dropped_denials": batch.dropped, "over": over })));
    }
    for denial in batch.entries.iter().take(BATCH_MAX) {
        entries.push(("edge_denial", line(proxy, name, denial)));
    }
    let (refused, observed) = (counts(batch, false), counts(batch, true));
    if !refused.is_empty() || !observed.is_empty() {
        let mut body = json!({ "proxy": proxy, "batch": name, "counts": refused });
        if let Some(body) = body.as_object_mut().filter(|_| !observed.is_empty()) {
            body.insert("observed".to_owned(), json!(observed));
        }
        entries.push(("edge_counts", body));
    }
    // Together, so that they share a sync.
    let commits = entries
        .into_iter()
        .map(|(kind, body)| core.ledger.commit(Command::Note { kind, body }));
    for result in futures::future::join_all(commits).await {
        if let Err(error) = result {
            tracing::error!(%error, proxy, "refusals at the edge could not be recorded; the proxy will send them again");
            return false;
        }
    }
    // Only now: a batch that comes again is not counted twice.
    for denial in batch.entries.iter().take(BATCH_MAX) {
        let reason = reason(&denial.reason);
        core.metrics.at_edge(reason, denial.observed, 1);
    }
    for count in &batch.counts {
        let reason = reason(&count.reason);
        core.metrics.at_edge(reason, count.observed, count.count);
    }
    true
}

/// What a batch says of requests, for whoever judges the filter.
fn requests(batch: &DenialBatch) -> Requests {
    let known = |observed| {
        let entries = batch.entries.iter();
        let these = entries.filter(|it| it.observed == observed).count();
        u64::try_from(these).unwrap_or(u64::MAX)
    };
    let counts = batch.counts.iter().filter(|it| !it.observed);
    Requests {
        allowed: 0,
        refused: known(false),
        strangers: counts.map(|it| it.count).fold(0, u64::saturating_add),
        observed: known(true),
    }
}

/// Makes an outcome durable. One that can't be leaves the outcome unknown.
pub(super) async fn outcome_of(core: &Core, attempt: String, outcome: &Outcome) {
    let command = Command::Outcome {
        attempt,
        status: u16::try_from(outcome.status).unwrap_or(0),
        response_bytes: outcome.response_bytes,
        details: cut(&outcome.details),
        not_forwarded: outcome.not_forwarded,
    };
    if let Err(error) = core.ledger.commit(command).await {
        tracing::warn!(%error, "an outcome was not recorded");
    }
}

fn line(proxy: &str, name: &str, denial: &Denial) -> serde_json::Value {
    let mut line = json!({
        "proxy": proxy,
        "batch": name,
        "reason": reason(&denial.reason),
        "token": hex::encode(denial.token_hash.get(..32).unwrap_or_default()),
        "jti": cut(&denial.jti),
        "agent": cut(&denial.agent),
        "method": cut(&denial.method),
        "authority": cut(&denial.authority),
        "path": cut(&denial.path),
        "request_id": cut(&denial.request_id),
        "at": denial.time_ms,
    });
    if denial.observed
        && let Some(line) = line.as_object_mut()
    {
        line.insert("observed".to_owned(), true.into());
    }
    line
}

/// By reason: a label outside the closed list counts as ours.
fn counts(batch: &DenialBatch, observed: bool) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    let these = batch.counts.iter().filter(|it| it.observed == observed);
    for count in these {
        let total: &mut u64 = counts.entry(reason(&count.reason)).or_default();
        *total = total.saturating_add(count.count);
    }
    counts.retain(|_, count| *count > 0);
    counts
}

fn reason(text: &str) -> &'static str {
    Reason::parse(text)
        .unwrap_or(Reason::InternalError)
        .as_str()
}

fn cut(text: &str) -> String {
    text.char_indices()
        .take_while(|(at, c)| at + c.len_utf8() <= TEXT_MAX)
        .map(|(_, c)| c)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use decision_api::DenialCount;

    #[test]
    fn what_went_on_all_the_same_is_no_refusal() {
        let denial = |observed| Denial {
            observed,
            ..Denial::default()
        };
        let count = |observed, count| DenialCount {
            reason: "proof_signature".into(),
            count,
            observed,
        };
        let batch = DenialBatch {
            entries: vec![denial(false), denial(true), denial(true)],
            counts: vec![count(false, 5), count(true, 7)],
            ..DenialBatch::default()
        };
        let wanted = Requests {
            allowed: 0,
            refused: 1,
            strangers: 5,
            observed: 2,
        };
        assert_eq!(requests(&batch), wanted);
    }
}
