//! What the filter counts. Every name is defined once, at configuration, so no
//! label comes from a request. What is counted reaches the host on the next
//! tick: a call for each would be a tenth of what a request costs here.

use crate::host::{self, HostFault};
use capability::reason::Reason;
use std::cell::Cell;

/// The filter's counters and gauges. Hosts add a prefix of their own
/// (Envoy: `wasmcustom.`).
pub struct Metrics {
    /// `writ.accepted`: requests that went on.
    pub accepted: Metric,
    /// `writ.held`: requests that began to wait for a human.
    pub held: Metric,
    /// `writ.answers_ignored`: answers that were late, foreign, repeated or
    /// did not echo their question.
    pub answers_ignored: Metric,
    /// `writ.clients_gone`: requests whose client left before the answer.
    pub clients_gone: Metric,
    /// `writ.contexts_lost`: requests that the host would not put in force.
    pub contexts_lost: Metric,
    /// `writ.deadlines`: questions that were not answered in time.
    pub deadlines: Metric,
    /// `writ.streams_opened`: streams to the control plane.
    pub streams_opened: Metric,
    /// `writ.denials_dropped`: refusals that found the buffer full.
    pub denials_dropped: Metric,
    /// `writ.outcomes_dropped`: outcomes that found the buffer full.
    pub outcomes_dropped: Metric,
    /// `writ.in_flight`: questions without an answer, over all workers.
    pub in_flight: Metric,
    refused: Vec<(Reason, Metric)>,
}

impl Metrics {
    /// Defines them all, and shows whether signatures are checked by the
    /// portable code (`writ.portable_crypto`, 0 or 1).
    pub fn define(portable_crypto: bool) -> Result<Self, HostFault> {
        let mut refused = Vec::new();
        for reason in Reason::ALL {
            refused.push((
                *reason,
                counter(&format!("writ.refused.{}", reason.as_str()))?,
            ));
        }
        host::record(
            host::gauge("writ.portable_crypto")?,
            u64::from(portable_crypto),
        );
        Ok(Self {
            accepted: counter("writ.accepted")?,
            held: counter("writ.held")?,
            answers_ignored: counter("writ.answers_ignored")?,
            clients_gone: counter("writ.clients_gone")?,
            contexts_lost: counter("writ.contexts_lost")?,
            deadlines: counter("writ.deadlines")?,
            streams_opened: counter("writ.streams_opened")?,
            denials_dropped: counter("writ.denials_dropped")?,
            outcomes_dropped: counter("writ.outcomes_dropped")?,
            in_flight: Metric::of(host::gauge("writ.in_flight")?),
            refused,
        })
    }

    /// Counts a refusal under `writ.refused.<reason>`.
    pub fn refused(&self, reason: Reason) {
        if let Some((_, counter)) = self.refused.iter().find(|(known, _)| *known == reason) {
            counter.add(1);
        }
    }

    /// Tells the host what has been counted since the last time.
    pub fn flush(&self) {
        let refused = self.refused.iter().map(|(_, metric)| metric);
        let others = [
            &self.accepted,
            &self.held,
            &self.answers_ignored,
            &self.clients_gone,
            &self.contexts_lost,
            &self.deadlines,
            &self.streams_opened,
            &self.denials_dropped,
            &self.outcomes_dropped,
            &self.in_flight,
        ];
        for metric in refused.chain(others) {
            metric.flush();
        }
    }
}

fn counter(name: &str) -> Result<Metric, HostFault> {
    host::counter(name).map(Metric::of)
}

/// A counter, or a gauge to which each worker adds its own part.
pub struct Metric {
    id: u32,
    untold: Cell<i64>,
}

impl Metric {
    fn of(id: u32) -> Self {
        Self {
            id,
            untold: Cell::new(0),
        }
    }

    /// Adds to it, or takes away from a gauge.
    pub fn add(&self, amount: i64) {
        self.untold.set(self.untold.get().saturating_add(amount));
    }

    fn flush(&self) {
        match self.untold.take() {
            0 => {}
            amount => host::add(self.id, amount),
        }
    }
}
