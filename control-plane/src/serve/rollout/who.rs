//! Whom a step is about, and what their filters say of themselves.

use super::super::edge::Release;
use super::{Rollout, Step, judge};
use crate::edges::name_of;
use tokio::time::Instant;

impl Rollout {
    /// Whether the good ones were watched for long enough to compare with.
    pub(super) fn has_base(&mut self) -> bool {
        let runs_good = |(proxy, name): &(xds::ProxyStatus, String)| {
            let (peer, node) = (proxy.peer.as_str(), proxy.node_id.as_str());
            let own = |module: &str| judge::says(module, name);
            self.core.fleet.tally(peer, node, own).live > 0
        };
        let step = self.first_step();
        if self.based.is_none() && self.proxies(step, &self.good).iter().any(runs_good) {
            self.based = Some(Instant::now());
        }
        self.based
            .is_some_and(|since| since.elapsed() >= self.window())
    }

    pub(super) fn first_step(&self) -> Step {
        match self.core.config.edge.rollout.first.as_slice() {
            [] => Step::All,
            _ => Step::First,
        }
    }

    /// What filters of a group say under a release.
    pub(super) fn name_in(&self, group: Option<&str>, release: &Release) -> String {
        let module = group.and_then(|it| self.pinned.get(it));
        let module = module.map(xds::Module::sha256_hex);
        let edge = group.and_then(|it| self.core.edges.pinned(it));
        name_of(
            module.as_ref().unwrap_or(&release.module.sha256),
            edge.unwrap_or(&release.edge),
        )
    }

    /// All that filters may say under a release.
    pub(super) fn names(&self, release: &Release) -> Vec<String> {
        let groups = self.core.config.edge.groups.iter();
        let groups = groups.map(|it| Some(it.name.as_str())).chain([None]);
        groups.map(|it| self.name_in(it, release)).collect()
    }

    /// The connected proxies that a step is about, and what their filters say under
    /// this release.
    pub(super) fn proxies(&self, step: Step, release: &Release) -> Vec<(xds::ProxyStatus, String)> {
        let first = &self.core.config.edge.rollout.first;
        let mut all = self.ads.status();
        all.retain(|proxy| {
            let group = proxy.group.as_ref();
            // Those that are pinned to all that is new have nothing to try.
            let concerned = match step {
                Step::First => group.is_some_and(|it| first.contains(it)),
                Step::All => !group.is_some_and(|it| self.is_pinned(it, release)),
            };
            proxy.connected && concerned
        });
        let named = all.into_iter().map(|proxy| {
            let name = self.name_in(proxy.group.as_deref(), release);
            (proxy, name)
        });
        named.collect()
    }

    pub(super) fn is_pinned(&self, group: &str, release: &Release) -> bool {
        let module = self.pinned.contains_key(group);
        let edge = self.core.edges.pinned(group).is_some();
        let same_module = release.module.sha256 == self.good.module.sha256;
        let same_edge = release.edge.version == self.good.edge.version;
        (module || same_module) && (edge || same_edge) && (module || edge)
    }
}
