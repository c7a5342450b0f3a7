//! What this control plane counts, in Prometheus' text format.
//!
//! Labels are words of this program's own, `&'static str`, and the identities that
//! the config names: nothing that an agent sends can make another series.

use crate::state::Core;
use capability::reason::Reason;
use ledger::model::ApprovalState;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bounds of the decisions' histogram; microseconds.
const BOUNDS_US: [u64; 12] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 2_500_000,
];
/// Versions of the filter that are told apart for one proxy; further ones are `other`.
const VERSIONS_MAX: usize = 4;
/// The longest version that is shown; bytes.
const VERSION_MAX: usize = 32;

/// Counts by `N` labels of the program's own.
#[derive(Default)]
struct Counts<const N: usize>(Mutex<BTreeMap<[&'static str; N], u64>>);

impl<const N: usize> Counts<N> {
    fn add(&self, labels: [&'static str; N], more: u64) {
        let mut counts = lock(&self.0);
        let count = counts.entry(labels).or_default();
        *count = count.saturating_add(more);
    }
}

/// How long decisions took.
#[derive(Default)]
struct Durations {
    buckets: [u64; BOUNDS_US.len()],
    count: u64,
    sum_us: u64,
}

/// All counts since the start.
#[derive(Default)]
pub struct Metrics {
    exchanges: Counts<2>,
    decisions: Counts<2>,
    edge: Counts<2>,
    nacks: Counts<1>,
    canary: Counts<1>,
    rollouts: Counts<1>,
    ended: Counts<1>,
    took: Mutex<Durations>,
    /// By the proxy's identity, which the config names, the filter's versions.
    versions: Mutex<BTreeMap<String, BTreeMap<String, u64>>>,
}

/// No reason: it was not refused.
const NO_REASON: &str = "none";

impl Metrics {
    /// An exchange ended: issued, or refused for a reason.
    pub fn exchanged(&self, refused: Option<Reason>) {
        match refused {
            None => self.exchanges.add(["issued", NO_REASON], 1),
            Some(reason) => self.exchanges.add(["refused", reason.as_str()], 1),
        }
    }

    /// A question was answered: `allow`, `deny` or `hold`.
    pub fn answered(&self, decision: &'static str, reason: Option<Reason>) {
        let reason = reason.map_or(NO_REASON, Reason::as_str);
        self.decisions.add([decision, reason], 1);
    }

    /// A question's answer took so long, where it waited for no human.
    pub fn took(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mut took = lock(&self.took);
        took.count = took.count.saturating_add(1);
        took.sum_us = took.sum_us.saturating_add(us);
        for (bucket, bound) in took.buckets.iter_mut().zip(BOUNDS_US) {
            *bucket = bucket.saturating_add(u64::from(us <= bound));
        }
    }

    /// A filter reported refusals of its own; `observed`: they went on.
    pub fn at_edge(&self, reason: &'static str, observed: bool, count: u64) {
        let mode = if observed { "observe" } else { "enforce" };
        self.edge.add([reason, mode], count);
    }

    /// A proxy refused a configuration of this kind.
    pub fn nacked(&self, kind: &'static str) {
        self.nacks.add([kind], 1);
    }

    /// The canary's probe ended so.
    pub fn probed(&self, result: &'static str) {
        self.canary.add([result], 1);
    }

    /// A step of a roll-out.
    pub fn rolled(&self, step: &'static str) {
        self.rollouts.add([step], 1);
    }

    /// Open requests were ended for this reason.
    pub fn ended(&self, reason: Reason, count: u64) {
        self.ended.add([reason.as_str()], count);
    }

    /// A filter of this version connected; the proxy is one that the config names.
    pub fn connected(&self, proxy: &str, version: &str) {
        let end = version.floor_char_boundary(VERSION_MAX);
        let version = version.get(..end).unwrap_or_default();
        let mut all = lock(&self.versions);
        let of_proxy = all.entry(proxy.to_owned()).or_default();
        let known = of_proxy.contains_key(version) || of_proxy.len() < VERSIONS_MAX;
        let name = if known { version } else { "other" };
        let count = of_proxy.entry(name.to_owned()).or_default();
        *count = count.saturating_add(1);
    }

    /// The page: these counts, and what `core` has at this moment.
    pub fn render(&self, core: &Core, connected: usize) -> String {
        let mut page = Page::default();
        page.family("writ_build_info", "gauge", "The version that runs.");
        page.sample(
            "writ_build_info",
            &[("version", env!("CARGO_PKG_VERSION"))],
            1,
        );
        page.counts(
            (
                "writ_token_exchanges_total",
                "Exchanges, by how they ended.",
            ),
            ["result", "reason"],
            &self.exchanges,
        );
        page.counts(
            (
                "writ_filter_decisions_total",
                "Answers to questions of filters.",
            ),
            ["decision", "reason"],
            &self.decisions,
        );
        page.counts(
            (
                "writ_edge_refusals_total",
                "Refusals that filters made by themselves and reported.",
            ),
            ["reason", "mode"],
            &self.edge,
        );
        page.counts(
            (
                "writ_xds_nacks_total",
                "Configurations that proxies refused.",
            ),
            ["type"],
            &self.nacks,
        );
        page.counts(
            (
                "writ_canary_probes_total",
                "Probes of the canary, by how they ended.",
            ),
            ["result"],
            &self.canary,
        );
        page.counts(
            ("writ_rollout_steps_total", "Steps of roll-outs to proxies."),
            ["step"],
            &self.rollouts,
        );
        page.counts(
            (
                "writ_open_requests_ended_total",
                "Requests under way that were ended, since they were stopped.",
            ),
            ["reason"],
            &self.ended,
        );
        self.durations(&mut page);
        page.family(
            "writ_filter_connections_total",
            "counter",
            "Streams that filters opened, by the filter's version.",
        );
        for (proxy, versions) in lock(&self.versions).iter() {
            for (version, count) in versions {
                let labels = [("proxy", proxy.as_str()), ("version", version)];
                page.sample("writ_filter_connections_total", &labels, *count);
            }
        }
        let pending = core.ledger.approvals();
        let pending = pending
            .iter()
            .filter(|it| it.state == ApprovalState::Pending);
        page.single(
            "writ_approvals_pending",
            "gauge",
            "Approvals that wait for a person.",
            pending.count(),
        );
        page.single(
            "writ_audit_entries_total",
            "counter",
            "Entries of the audit log.",
            core.ledger.head().0,
        );
        page.single(
            "writ_proxies_connected",
            "gauge",
            "Proxies whose configuration stream is open.",
            connected,
        );
        page.single(
            "writ_observe_routes",
            "gauge",
            "Routes on which nothing is refused.",
            core.edges.observed_routes().len(),
        );
        page.single(
            "writ_warnings",
            "gauge",
            "Warnings that hold now; writ status says which.",
            core.warnings.all().len(),
        );
        page.0
    }

    fn durations(&self, page: &mut Page) {
        const NAME: &str = "writ_decision_duration_seconds";
        page.family(
            NAME,
            "histogram",
            "From a question's arrival to its answer, where no human was waited for.",
        );
        let took = lock(&self.took);
        for (count, bound) in took.buckets.iter().zip(BOUNDS_US) {
            let bound = seconds(bound);
            page.sample(&format!("{NAME}_bucket"), &[("le", &bound)], *count);
        }
        page.sample(&format!("{NAME}_bucket"), &[("le", "+Inf")], took.count);
        page.sample(&format!("{NAME}_sum"), &[], seconds(took.sum_us));
        page.sample(&format!("{NAME}_count"), &[], took.count);
    }
}

/// Microseconds as a decimal number of seconds.
fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The text format, version 0.0.4.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // A String takes everything.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            let text = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.0, "{before}{label}=\"{text}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn counts<const N: usize>(
        &mut self,
        (name, help): (&str, &str),
        labels: [&str; N],
        counts: &Counts<N>,
    ) {
        self.family(name, "counter", help);
        for (values, count) in lock(&counts.0).iter() {
            let labels: Vec<(&str, &str)> =
                labels.into_iter().zip(values.iter().copied()).collect();
            self.sample(name, &labels, *count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_versions_are_few() {
        let mut page = Page::default();
        page.sample("a", &[("b", "x\"y\\z\nw"), ("c", "d")], 7);
        assert_eq!(page.0, "a{b=\"x\\\"y\\\\z\\nw\",c=\"d\"} 7\n");
        let metrics = Metrics::default();
        for version in 0..1_000 {
            metrics.connected("spiffe://writ.example/proxy", &format!("9.{version}"));
        }
        let versions = lock(&metrics.versions);
        assert_eq!(
            versions.values().map(BTreeMap::len).sum::<usize>(),
            VERSIONS_MAX + 1
        );
        assert_eq!(versions["spiffe://writ.example/proxy"]["other"], 996);
    }

    #[test]
    fn buckets_add_up() {
        let metrics = Metrics::default();
        for us in [100, 300, 4_000, 9_000_000] {
            metrics.took(Duration::from_micros(us));
        }
        let mut page = Page::default();
        metrics.durations(&mut page);
        for line in [
            "writ_decision_duration_seconds_bucket{le=\"0.000250\"} 1",
            "writ_decision_duration_seconds_bucket{le=\"0.000500\"} 2",
            "writ_decision_duration_seconds_bucket{le=\"2.500000\"} 3",
            "writ_decision_duration_seconds_bucket{le=\"+Inf\"} 4",
            "writ_decision_duration_seconds_sum 9.004400",
            "writ_decision_duration_seconds_count 4",
        ] {
            assert!(page.0.lines().any(|it| it == line), "{line} in\n{}", page.0);
        }
    }
}
