//! What the filter counts. Every name is defined once, at configuration, so no
//! label comes from a request.

use crate::host::{self, HostFault};
use capability::reason::Reason;

/// The filter's counters and gauges. Hosts add a prefix of their own
/// (Envoy: `wasmcustom.`).
pub struct Metrics {
    /// `writ.accepted`: requests that went on.
    pub accepted: Counter,
    /// `writ.held`: requests that began to wait for a human.
    pub held: Counter,
    /// `writ.answers_ignored`: answers that were late, foreign, repeated or
    /// did not echo their question.
    pub answers_ignored: Counter,
    /// `writ.clients_gone`: requests whose client left before the answer.
    pub clients_gone: Counter,
    /// `writ.contexts_lost`: requests that the host would not put in force.
    pub contexts_lost: Counter,
    /// `writ.deadlines`: questions that were not answered in time.
    pub deadlines: Counter,
    /// `writ.streams_opened`: streams to the control plane.
    pub streams_opened: Counter,
    /// `writ.denials_dropped`: refusals that found the buffer full.
    pub denials_dropped: Counter,
    /// `writ.outcomes_dropped`: outcomes that found the buffer full.
    pub outcomes_dropped: Counter,
    /// `writ.in_flight`: questions without an answer, over all workers.
    pub in_flight: Gauge,
    refused: Vec<(Reason, Counter)>,
}

impl Metrics {
    /// Defines them all, and shows whether signatures are checked by the
    /// portable code (`writ.portable_crypto`, 0 or 1).
    pub fn define(portable_crypto: bool) -> Result<Self, HostFault> {
        let mut refused = Vec::new();
        for reason in Reason::ALL {
            refused.push((
                *reason,
                Counter::define(&format!("writ.refused.{}", reason.as_str()))?,
            ));
        }
        host::record(
            host::gauge("writ.portable_crypto")?,
            u64::from(portable_crypto),
        );
        Ok(Self {
            accepted: Counter::define("writ.accepted")?,
            held: Counter::define("writ.held")?,
            answers_ignored: Counter::define("writ.answers_ignored")?,
            clients_gone: Counter::define("writ.clients_gone")?,
            contexts_lost: Counter::define("writ.contexts_lost")?,
            deadlines: Counter::define("writ.deadlines")?,
            streams_opened: Counter::define("writ.streams_opened")?,
            denials_dropped: Counter::define("writ.denials_dropped")?,
            outcomes_dropped: Counter::define("writ.outcomes_dropped")?,
            in_flight: Gauge(host::gauge("writ.in_flight")?),
            refused,
        })
    }

    /// Counts a refusal under `writ.refused.<reason>`.
    pub fn refused(&self, reason: Reason) {
        if let Some((_, counter)) = self.refused.iter().find(|(known, _)| *known == reason) {
            counter.add(1);
        }
    }
}

/// A number that only grows.
pub struct Counter(u32);

impl Counter {
    fn define(name: &str) -> Result<Self, HostFault> {
        host::counter(name).map(Self)
    }

    /// Adds to it.
    pub fn add(&self, amount: i64) {
        host::add(self.0, amount);
    }
}

/// A number that goes up and down; each worker adds its own part.
pub struct Gauge(u32);

impl Gauge {
    /// Adds to it, or takes away.
    pub fn add(&self, amount: i64) {
        host::add(self.0, amount);
    }
}
