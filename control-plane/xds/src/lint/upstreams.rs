//! Clusters: that nothing on the way to an upstream repeats or changes a request,
//! and that no guarded route's upstream is reached unguarded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::reach::{Reach, To};
use super::tree::At;
use super::{Judge, Rule, Unguarded};

const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

impl<'a> Judge<'a> {
    pub(super) fn upstreams(&mut self) {
        let named = std::mem::take(&mut self.guarded);
        let reach = named.iter().flat_map(|name| self.reach(name).clusters);
        let guarded: BTreeSet<String> = reach.collect();
        let pool = self.pool;
        let mut places: BTreeMap<String, String> = BTreeMap::new();
        for cluster in &pool.clusters {
            let name = cluster.text("name");
            if guarded.contains(name) {
                self.cluster(cluster);
                for place in endpoints(cluster) {
                    places.entry(place).or_insert_with(|| name.to_owned());
                }
            }
        }
        self.admin();
        for name in guarded.iter().filter(|name| !pool.has_cluster(name)) {
            self.note(format!(
                "guarded cluster {name:?} is not in what was given, so nobody looked who else leads to its addresses: give a /config_dump"
            ));
        }
        for open in std::mem::take(&mut self.unguarded) {
            let Some(how) = self.shares(&open.to, &guarded, &places) else {
                continue;
            };
            let name = open.name;
            if !self.names.shared.contains(name) {
                self.found(
                    Rule::SharedUpstream,
                    &open.at,
                    format!(
                        "{name:?} is unguarded and leads to {how}; if it may, name it as shared"
                    ),
                );
            } else {
                self.shared(&open, &how);
            }
        }
    }

    /// What something unguarded that may lead to a guarded upstream may not do there.
    fn shared(&mut self, open: &Unguarded<'a>, how: &str) {
        let name = open.name;
        if !open.leaves.is_empty() {
            self.found(
                Rule::HeadersNotStripped,
                &open.at,
                format!(
                    "{name:?} is unguarded and leads to {how}, which may read another request out of what clients say in {}: remove them with request_headers_to_remove or early_header_mutation_extensions",
                    open.leaves.join(", ")
                ),
            );
        }
        for header in open.at.list("request_headers_to_add") {
            if let Some(header) = header.get("header") {
                self.sets(&header, true);
            }
        }
        let matches = open.at.get("match");
        let prefix = matches.as_ref().map_or("", |at| at.text("prefix"));
        let action = open.at.get("route");
        let to = action.as_ref().map_or("", |at| at.text("prefix_rewrite"));
        let whole = prefix.ends_with('/') && to.ends_with('/');
        if !prefix.is_empty() && !to.is_empty() && !whole {
            self.found(
                Rule::RewritesPath,
                &open.at,
                format!(
                    "{name:?} is unguarded and leads to {how}: with prefix {prefix:?} and prefix_rewrite {to:?} what follows the prefix becomes part of another path: match by path_separated_prefix"
                ),
            );
        }
    }

    /// Clusters that are Envoy's own admin interface, which asks nobody who he is.
    fn admin(&mut self) {
        let pool = self.pool;
        let admins = pool.bootstraps.iter().filter_map(|at| at.get("admin"));
        let admins = admins.filter_map(|admin| admin.get("address"));
        let admins: BTreeSet<String> = admins.flat_map(|at| places(&at)).collect();
        for cluster in &pool.clusters {
            let name = cluster.text("name");
            let leads = endpoints(cluster).iter().any(|at| admins.contains(at));
            if leads && !self.is_named(name) {
                self.found(
                    Rule::AdminOpen,
                    cluster,
                    format!("cluster {name:?} is Envoy's own admin interface; if it may be, name it as unguarded"),
                );
            }
        }
    }

    /// How something unguarded leads to a guarded upstream, if it does.
    fn shares(
        &self,
        to: &To,
        guarded: &BTreeSet<String>,
        places: &BTreeMap<String, String>,
    ) -> Option<String> {
        let first = guarded.first()?;
        let reach = match to {
            To::Cluster(name) => self.reach(name),
            To::Any(what) => Reach {
                any: Some(what.clone()),
                ..Reach::default()
            },
        };
        let same = reach.clusters.iter().find(|name| guarded.contains(*name));
        let own = |cluster: &&At<'_>| reach.clusters.contains(cluster.text("name"));
        let mut own = self.pool.clusters.iter().filter(own).flat_map(endpoints);
        let same = same.or_else(|| own.find_map(|place| places.get(&place)));
        match (same, reach.any) {
            (Some(cluster), _) => Some(format!("the upstream of guarded cluster {cluster:?}")),
            (None, Some(what)) => Some(format!(
                "any upstream, by {what}, that of guarded cluster {first:?} among them"
            )),
            (None, None) => None,
        }
    }

    fn cluster(&mut self, at: &At<'a>) {
        let options = at.get("typed_extension_protocol_options");
        let options = options.map(|at| at.entries()).unwrap_or_default();
        for (_, value) in options {
            if let (OPTIONS, options) = value.any() {
                self.repeats(&options);
                self.upstream_filters(&options.list("http_filters"));
            }
        }
        let original = at.get("original_dst_lb_config");
        if let Some(found) = original.filter(|config| config.may_be_true("use_http_header")) {
            self.found(
                Rule::UpstreamChosen,
                &found,
                "the upstream's address is what a header says",
            );
        }
    }
}

/// The addresses of a cluster, as far as they stand in it.
fn endpoints(cluster: &At<'_>) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(eds) = cluster.get("eds_cluster_config") {
        let service = match eds.text("service_name") {
            "" => cluster.text("name"),
            name => name,
        };
        found.push(format!("eds {service}"));
    }
    found.extend(addressed(cluster).iter().flat_map(places));
    found
}

/// The parts of a cluster that say where it connects to.
fn addressed<'a>(cluster: &At<'a>) -> Vec<At<'a>> {
    let parts = ["load_assignment", "transport_socket"];
    parts.iter().filter_map(|part| cluster.get(part)).collect()
}

/// All addresses below here, in whatever message they are.
fn places(at: &At<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for socket in at.everywhere("socket_address") {
        let port = socket.number("port_value");
        let port = port.map_or_else(
            || socket.text("port_value").to_owned(),
            |port| port.to_string(),
        );
        found.push(place(socket.text("address"), &port));
    }
    for pipe in at.everywhere("pipe") {
        found.push(format!("unix {}", pipe.text("path")));
    }
    for internal in at.everywhere("envoy_internal_address") {
        found.push(format!(
            "internal {}",
            internal.text("server_listener_name")
        ));
    }
    found
}

/// Why a cluster's addresses can't be told from what stands in it, if they can't.
pub(super) fn unclear(cluster: &At<'_>) -> Option<&'static str> {
    for part in addressed(cluster) {
        if !part.everywhere("leds_cluster_locality_config").is_empty() {
            return Some("whose addresses come from elsewhere");
        }
        let odd = |socket: &At<'_>| {
            socket.number("port_value").is_none() || socket.said("resolver_name").is_some()
        };
        if part.everywhere("socket_address").iter().any(odd) {
            return Some("one of whose addresses is not a plain one");
        }
    }
    None
}

/// A host and a port in one spelling: this machine has many names.
pub(crate) fn place(host: &str, port: &str) -> String {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let host = match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(address) if address.is_loopback() || address.is_unspecified() => "localhost".to_owned(),
        Ok(address) => address.to_string(),
        Err(_) => host,
    };
    format!("{host}:{port}")
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn this_machine_has_one_name() {
        for host in [
            "127.0.0.1",
            "127.9.9.9",
            "localhost",
            "LOCALHOST.",
            "[::1]",
            "::ffff:127.0.0.1",
            "0.0.0.0",
        ] {
            assert_eq!(place(host, "80"), "localhost:80", "{host}");
        }
        assert_eq!(place("A.example", "80"), "a.example:80");
        assert_ne!(place("a.example", "80"), place("a.example", "81"));
    }
}
