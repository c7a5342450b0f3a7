//! Groups of proxies, each with settings of its own: a module that is pinned, or
//! tried on a few before the others get it.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use identity::SpiffeId;

use crate::{Snapshot, registry::bounded};

/// Which proxies are of a group. The certificate's identity decides: what a node
/// says of itself only narrows a group within the identities that it names, so a
/// proxy never gets what is another identity's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The identities that may be of it.
    pub proxies: Vec<SpiffeId>,
    /// Node ids; none: every node.
    pub nodes: Vec<String>,
    /// Envoy's `node.cluster`; none: every one.
    pub clusters: Vec<String>,
    /// `REGION/ZONE/SUB-ZONE` of `node.locality`; none: every one.
    pub localities: Vec<String>,
}

/// What a node says of itself: labels, and never an authority.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    pub(crate) node: String,
    cluster: String,
    locality: String,
}

impl Labels {
    pub(crate) fn of(node: &Node) -> Self {
        let place = node.locality.as_ref();
        let place = place.map(|it| format!("{}/{}/{}", it.region, it.zone, it.sub_zone));
        Self {
            node: bounded(&node.id),
            cluster: bounded(&node.cluster),
            locality: bounded(&place.unwrap_or_default()),
        }
    }
}

impl Group {
    pub(crate) fn has(&self, peer: &SpiffeId, labels: &Labels) -> bool {
        let any_or = |wanted: &[String], said: &String| wanted.is_empty() || wanted.contains(said);
        self.proxies.contains(peer)
            && any_or(&self.nodes, &labels.node)
            && any_or(&self.clusters, &labels.cluster)
            && any_or(&self.localities, &labels.locality)
    }
}

/// What everybody gets: each proxy that of the first group which has it, or what is
/// for all the others.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Snapshots {
    pub(crate) others: Arc<Snapshot>,
    pub(crate) groups: Vec<(Group, Arc<Snapshot>)>,
}

impl Snapshots {
    pub(crate) fn of(&self, peer: &SpiffeId, labels: &Labels) -> &Arc<Snapshot> {
        let mut groups = self.groups.iter();
        let own = groups.find(|(group, _)| group.has(peer, labels));
        own.map_or(&self.others, |(_, snapshot)| snapshot)
    }

    pub(crate) fn group_of(&self, peer: &SpiffeId, labels: &Labels) -> Option<&str> {
        let mut groups = self.groups.iter();
        let own = groups.find(|(group, _)| group.has(peer, labels));
        own.map(|(group, _)| group.name.as_str())
    }

    /// The place of a group's snapshot, or of that of all the others.
    pub(crate) fn place(&mut self, group: Option<&str>) -> Option<&mut Arc<Snapshot>> {
        let Some(name) = group else {
            return Some(&mut self.others);
        };
        let mut groups = self.groups.iter_mut();
        let own = groups.find(|(group, _)| group.name == name);
        own.map(|(_, snapshot)| snapshot)
    }
}
