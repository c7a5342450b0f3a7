//! Clusters: that nothing on the way to an upstream repeats or changes a request,
//! and that no guarded route's upstream is reached unguarded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::reach::{Reach, To};
use super::tree::At;
use super::{Judge, Rule};

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
            } else if !open.leaves.is_empty() {
                self.found(
                    Rule::HeadersNotStripped,
                    &open.at,
                    format!(
                        "{name:?} is unguarded and leads to {how}, which may read another request out of what clients say in {}: remove them with request_headers_to_remove or early_header_mutation_extensions",
                        open.leaves.join(", ")
                    ),
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
        if let Some(found) = original.filter(|config| config.truth("use_http_header")) {
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
    let Some(assignment) = cluster.get("load_assignment") else {
        return found;
    };
    let localities = assignment.list("endpoints");
    for endpoint in localities.iter().flat_map(|at| at.list("lb_endpoints")) {
        let Some(address) = endpoint
            .get("endpoint")
            .and_then(|endpoint| endpoint.get("address"))
        else {
            continue;
        };
        if let Some(socket) = address.get("socket_address") {
            found.push(place(socket.text("address"), socket.text("port_value")));
        }
        if let Some(pipe) = address.get("pipe") {
            found.push(format!("unix {}", pipe.text("path")));
        }
    }
    found
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
