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
    /// `writ.silences`: streams that were given up since their peer was silent.
    pub silences: Metric,
    /// `writ.unheard`: requests that could not be asked about for that reason.
    pub unheard: Metric,
    /// `writ.ended`: requests that went on and were stopped then.
    pub ended: Metric,
    /// `writ.denials_dropped`: refusals that found the buffer full.
    pub denials_dropped: Metric,
    /// `writ.outcomes_dropped`: outcomes that found the buffer full.
    pub outcomes_dropped: Metric,
    /// `writ.in_flight`: questions without an answer, over all workers.
    pub in_flight: Metric,
    /// `writ.bodies`: bodies that are being read or wait for an answer, over all workers.
    pub bodies: Metric,
    /// `writ.unobserved`: requests that went on, on a route that observes, without
    /// the control plane having been asked.
    pub unobserved: Metric,
    /// `writ.clock_ahead_ms`, `writ.clock_behind_ms`: how far the proxy's clock was
    /// from the control plane's when that last said its time; the way is part of it.
    pub clock: Clock,
    decision_us: u32,
    refused: Vec<(Reason, Metric)>,
    observed: Vec<(Reason, Metric)>,
}

impl Metrics {
    /// Defines them all, and shows whether signatures are checked by the
    /// portable code (`writ.portable_crypto`, 0 or 1) and how many routes only
    /// observe (`writ.observe_routes`).
    pub fn define(portable_crypto: bool, observing: usize) -> Result<Self, HostFault> {
        host::record(
            host::gauge("writ.portable_crypto")?,
            u64::from(portable_crypto),
        );
        host::record(
            host::gauge("writ.observe_routes")?,
            u64::try_from(observing).unwrap_or(u64::MAX),
        );
        Ok(Self {
            accepted: counter("writ.accepted")?,
            held: counter("writ.held")?,
            answers_ignored: counter("writ.answers_ignored")?,
            clients_gone: counter("writ.clients_gone")?,
            contexts_lost: counter("writ.contexts_lost")?,
            deadlines: counter("writ.deadlines")?,
            streams_opened: counter("writ.streams_opened")?,
            silences: counter("writ.silences")?,
            unheard: counter("writ.unheard")?,
            ended: counter("writ.ended")?,
            denials_dropped: counter("writ.denials_dropped")?,
            outcomes_dropped: counter("writ.outcomes_dropped")?,
            in_flight: Metric::of(host::gauge("writ.in_flight")?),
            bodies: Metric::of(host::gauge("writ.bodies")?),
            unobserved: counter("writ.unobserved")?,
            clock: Clock::define()?,
            decision_us: host::histogram("writ.decision_us")?,
            refused: by_reason("writ.refused")?,
            observed: by_reason("writ.observed")?,
        })
    }

    /// A decision took so long, from the question to its last answer: a histogram,
    /// `writ.decision_us`. What waited for a human is not in it.
    pub fn decided_in(&self, microseconds: u64) {
        host::record(self.decision_us, microseconds);
    }

    /// Counts a refusal under `writ.refused.<reason>`.
    pub fn refused(&self, reason: Reason) {
        add_to(&self.refused, reason);
    }

    /// Counts, under `writ.observed.<reason>`, a request that went on where a
    /// route that enforces would have refused it.
    pub fn observed(&self, reason: Reason) {
        add_to(&self.observed, reason);
    }

    /// Tells the host what has been counted since the last time.
    pub fn flush(&self) {
        self.clock.flush();
        let by_reason = self.refused.iter().chain(&self.observed);
        let by_reason = by_reason.map(|(_, metric)| metric);
        let others = [
            &self.accepted,
            &self.held,
            &self.answers_ignored,
            &self.clients_gone,
            &self.contexts_lost,
            &self.deadlines,
            &self.streams_opened,
            &self.silences,
            &self.unheard,
            &self.ended,
            &self.denials_dropped,
            &self.outcomes_dropped,
            &self.in_flight,
            &self.bodies,
            &self.unobserved,
        ];
        for metric in by_reason.chain(others) {
            metric.flush();
        }
    }
}

/// One counter for each reason of the closed list: what an attacker sends can't
/// make another.
fn by_reason(name: &str) -> Result<Vec<(Reason, Metric)>, HostFault> {
    let of = |reason: &Reason| Ok((*reason, counter(&format!("{name}.{}", reason.as_str()))?));
    Reason::ALL.iter().map(of).collect()
}

fn add_to(counters: &[(Reason, Metric)], reason: Reason) {
    if let Some((_, counter)) = counters.iter().find(|(known, _)| *known == reason) {
        counter.add(1);
    }
}

/// How far two clocks are apart: two gauges, since one can't be negative. Workers
/// share them, and the last word counts.
pub struct Clock {
    ahead: u32,
    behind: u32,
    untold: Cell<Option<(u64, u64)>>,
}

impl Clock {
    fn define() -> Result<Self, HostFault> {
        Ok(Self {
            ahead: host::gauge("writ.clock_ahead_ms")?,
            behind: host::gauge("writ.clock_behind_ms")?,
            untold: Cell::new(None),
        })
    }

    /// The control plane said its time when it was so late here; both in ms since
    /// the Unix epoch.
    pub fn compare(&self, here_ms: u64, there_ms: u64) {
        if there_ms != 0 {
            let apart = (
                here_ms.saturating_sub(there_ms),
                there_ms.saturating_sub(here_ms),
            );
            self.untold.set(Some(apart));
        }
    }

    fn flush(&self) {
        if let Some((ahead, behind)) = self.untold.take() {
            host::record(self.ahead, ahead);
            host::record(self.behind, behind);
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
