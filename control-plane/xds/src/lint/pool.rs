//! The resources that some files hold: bootstraps, dumps of a running Envoy
//! (`/config_dump`), answers of an xDS server, or single resources.

use super::tree::At;

/// All resources of all files.
#[derive(Debug, Default)]
pub(super) struct Pool<'a> {
    pub(super) bootstraps: Vec<At<'a>>,
    pub(super) listeners: Vec<At<'a>>,
    pub(super) routes: Vec<At<'a>>,
    pub(super) filters: Vec<At<'a>>,
    pub(super) clusters: Vec<At<'a>>,
    /// Whether listeners are those of a running Envoy.
    pub(super) dumped: bool,
}

impl<'a> Pool<'a> {
    /// Whether a cluster has this name.
    pub(super) fn has_cluster(&self, name: &str) -> bool {
        let mut all = self.clusters.iter();
        all.any(|cluster| cluster.text("name") == name)
    }

    /// Takes what a file holds; false when that is nothing of Envoy's.
    pub(super) fn add(&mut self, root: &At<'a>) -> bool {
        if root.get("configs").is_some() {
            for part in root.list("configs") {
                self.dump(&part);
            }
            return true;
        }
        if root.get("resources").is_some() {
            return root
                .list("resources")
                .iter()
                .all(|part| self.resource(part));
        }
        if !root.text("@type").is_empty() {
            return self.resource(root);
        }
        let sections = ["static_resources", "dynamic_resources", "admin", "node"];
        if sections.iter().any(|name| root.get(name).is_some()) {
            self.bootstrap(root);
            return true;
        }
        false
    }

    fn bootstrap(&mut self, at: &At<'a>) {
        self.bootstraps.push(at.clone());
        if let Some(fixed) = at.get("static_resources") {
            self.listeners.extend(fixed.list("listeners"));
            self.clusters.extend(fixed.list("clusters"));
        }
    }

    fn dump(&mut self, part: &At<'a>) {
        let each = |list: &str, member: &str| {
            let found = part.list(list).into_iter();
            found.filter_map(|at| at.get(member)).collect::<Vec<_>>()
        };
        match part.any().0 {
            // Its static resources are in the other dumps once more.
            "envoy.admin.v3.BootstrapConfigDump" => {
                self.bootstraps.extend(part.get("bootstrap"));
            }
            "envoy.admin.v3.ListenersConfigDump" => {
                self.dumped = true;
                self.listeners.extend(each("static_listeners", "listener"));
                for dynamic in part.list("dynamic_listeners") {
                    // What a proxy refused is not in force.
                    for state in ["active_state", "warming_state", "draining_state"] {
                        let state = dynamic.get(state);
                        let listener = state.and_then(|state| state.get("listener"));
                        self.listeners.extend(listener);
                    }
                }
            }
            "envoy.admin.v3.RoutesConfigDump" => {
                self.routes
                    .extend(each("static_route_configs", "route_config"));
                self.routes
                    .extend(each("dynamic_route_configs", "route_config"));
            }
            "envoy.admin.v3.ClustersConfigDump" => {
                self.clusters.extend(each("static_clusters", "cluster"));
                self.clusters
                    .extend(each("dynamic_active_clusters", "cluster"));
                self.clusters
                    .extend(each("dynamic_warming_clusters", "cluster"));
            }
            "envoy.admin.v3.EcdsConfigDump" => {
                self.filters.extend(each("ecds_filters", "ecds_filter"));
            }
            _ => {}
        }
    }

    fn resource(&mut self, at: &At<'a>) -> bool {
        let (kind, at) = at.any();
        let into = match kind {
            "envoy.config.listener.v3.Listener" => &mut self.listeners,
            "envoy.config.route.v3.RouteConfiguration" => &mut self.routes,
            "envoy.config.cluster.v3.Cluster" => &mut self.clusters,
            "envoy.config.core.v3.TypedExtensionConfig" => &mut self.filters,
            "envoy.config.bootstrap.v3.Bootstrap" => {
                self.bootstrap(&at);
                return true;
            }
            _ => return false,
        };
        into.push(at);
        true
    }
}
