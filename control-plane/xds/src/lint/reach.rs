//! Where something unguarded leads: the clusters that it names, those behind them,
//! and what leaves the choice to somebody else.

use std::collections::BTreeSet;

use super::Judge;
use super::tree::At;
use super::upstreams::unclear;

const AGGREGATE: &str = "envoy.extensions.clusters.aggregate.v3.ClusterConfig";
const COMPOSITE: &str = "envoy.extensions.clusters.composite.v3.ClusterConfig";
const DNS: &str = "envoy.extensions.clusters.dns.v3.DnsCluster";
/// Kinds of clusters whose addresses are their own; a name counts only where no
/// message says another kind.
const PLAIN: [&str; 5] = [
    "envoy.cluster.static",
    "envoy.cluster.strict_dns",
    "envoy.cluster.logical_dns",
    "envoy.cluster.eds",
    "envoy.clusters.dns",
];
/// Types of clusters whose addresses are their own.
const OWN: [(&str, u64); 4] = [
    ("STATIC", 0),
    ("STRICT_DNS", 1),
    ("LOGICAL_DNS", 2),
    ("EDS", 3),
];
/// What chooses a cluster by a request, or by code.
const CHOOSERS: [&str; 3] = [
    "cluster_header",
    "cluster_specifier_plugin",
    "inline_cluster_specifier_plugin",
];

/// Where one way leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum To {
    /// To this cluster.
    Cluster(String),
    /// To any: what chooses.
    Any(String),
}

/// What a cluster's name stands for.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Itself, and the clusters that it is made of.
    pub(super) clusters: BTreeSet<String>,
    /// What chooses among all addresses, when something does.
    pub(super) any: Option<String>,
}

/// The one cluster that an action names.
pub(super) fn cluster<'a>(action: &At<'a>) -> Option<&'a str> {
    Some(action.text("cluster")).filter(|name| !name.is_empty())
}

/// The clusters that an action sends a request itself to.
fn clusters<'a>(action: &At<'a>) -> Vec<&'a str> {
    let mut names: Vec<&str> = weighted(action).iter().map(|at| at.text("name")).collect();
    names.retain(|name| !name.is_empty());
    names.extend(cluster(action));
    names
}

/// Everywhere that an action leads, its copies too; `around` is what its table and
/// its host say for it.
pub(super) fn leads_to<'a>(action: &At<'a>, around: &[&At<'a>]) -> Vec<To> {
    let mut found: Vec<To> = clusters(action).into_iter().map(To::cluster).collect();
    let choosers = |at: &At<'a>| {
        let there = CHOOSERS.iter().filter(|field| at.said(field).is_some());
        there
            .map(|field| To::Any((*field).to_owned()))
            .collect::<Vec<_>>()
    };
    found.extend(choosers(action));
    for one in weighted(action) {
        found.extend(choosers(&one));
    }
    for holder in around.iter().copied().chain([action]) {
        for mirror in holder.list("request_mirror_policies") {
            found.extend(cluster(&mirror).map(To::cluster));
            found.extend(choosers(&mirror));
        }
    }
    found
}

fn weighted<'a>(action: &At<'a>) -> Vec<At<'a>> {
    let weighted = action.get("weighted_clusters");
    weighted.map(|at| at.list("clusters")).unwrap_or_default()
}

impl To {
    /// To the cluster of this name.
    pub(super) fn cluster(name: &str) -> Self {
        Self::Cluster(name.to_owned())
    }
}

impl Judge<'_> {
    /// What this name stands for, through clusters that are made of others.
    pub(super) fn reach(&self, name: &str) -> Reach {
        let mut reach = Reach::default();
        let mut open = vec![name.to_owned()];
        while let Some(name) = open.pop() {
            if !self.pool.has_cluster(&name) {
                reach.any = Some(format!(
                    "cluster {name:?}, which is not in what was given: give a /config_dump"
                ));
            }
            for cluster in &self.pool.clusters {
                if cluster.text("name") != name {
                    continue;
                }
                if !cluster.is_absent_or("type", &OWN) {
                    let what = cluster.text("type");
                    reach.any = Some(format!("cluster {name:?} of the type {what:?}"));
                }
                if let Some(why) = unclear(cluster) {
                    reach.any = Some(format!("cluster {name:?}, {why}"));
                }
                let Some(kind) = cluster.get("cluster_type") else {
                    continue;
                };
                match kind.get("typed_config").map(|config| config.any()) {
                    Some((AGGREGATE | COMPOSITE, config)) => {
                        let members = config.list("clusters");
                        let name = |at: &At<'_>| at.as_text().unwrap_or(at.text("name")).to_owned();
                        let new = members.iter().map(name);
                        open.extend(new.filter(|name| !reach.clusters.contains(name)));
                    }
                    Some((DNS, _)) => {}
                    None if PLAIN.contains(&kind.text("name")) => {}
                    _ => {
                        let what = kind.text("name");
                        reach.any = Some(format!("cluster {name:?} of the kind {what:?}"));
                    }
                }
            }
            reach.clusters.insert(name);
        }
        reach
    }
}
