//! Clusters: that nothing on the way to an upstream repeats or changes a request,
//! and that no guarded route's upstream is reached unguarded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::tree::At;
use super::{Judge, Rule};

const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

impl<'a> Judge<'a> {
    pub(super) fn upstreams(&mut self) {
        let guarded: BTreeSet<String> = self.guarded.iter().cloned().collect();
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
            if self.names.shared.contains(open.name) {
                continue;
            }
            let same = guarded.get(&open.cluster).cloned();
            let clusters = pool.clusters.iter();
            let mut own = clusters
                .filter(|cluster| cluster.text("name") == open.cluster)
                .flat_map(endpoints);
            let same = same.or_else(|| own.find_map(|place| places.get(&place).cloned()));
            if let Some(cluster) = same {
                self.found(
                    Rule::SharedUpstream,
                    &open.at,
                    format!("{:?} is unguarded and leads to the upstream of guarded cluster {cluster:?}; if it may, name it as shared", open.name),
                );
            }
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
