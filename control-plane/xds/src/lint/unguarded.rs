//! What is unguarded by name: where it leads, and what it hands on.

use capability::headers::CREDENTIALS;

use super::reach::{To, leads_to};
use super::routes::Place;
use super::stripped::Stripped;
use super::tree::At;
use super::{Judge, Rule};

/// HTTP filters that send nothing anywhere by themselves.
const QUIET: [&str; 23] = [
    "envoy.extensions.filters.http.router.v3.Router",
    "envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency",
    "envoy.extensions.filters.http.admission_control.v3.AdmissionControl",
    "envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit",
    "envoy.extensions.filters.http.buffer.v3.Buffer",
    "envoy.extensions.filters.http.compressor.v3.Compressor",
    "envoy.extensions.filters.http.cors.v3.Cors",
    "envoy.extensions.filters.http.csrf.v3.CsrfPolicy",
    "envoy.extensions.filters.http.decompressor.v3.Decompressor",
    "envoy.extensions.filters.http.fault.v3.HTTPFault",
    "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb",
    "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
    "envoy.extensions.filters.http.header_to_metadata.v3.Config",
    "envoy.extensions.filters.http.health_check.v3.HealthCheck",
    "envoy.extensions.filters.http.json_to_metadata.v3.JsonToMetadata",
    "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
    "envoy.extensions.filters.http.original_src.v3.OriginalSrc",
    "envoy.extensions.filters.http.rbac.v3.RBAC",
    "envoy.extensions.filters.http.set_metadata.v3.Config",
    "io.istio.http.peer_metadata.Config",
    "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
    "stats.PluginConfig",
];
/// HTTP filters that ask the services that they name, and no others.
const ASKING: [&str; 5] = [
    "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
    "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
    "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
    "envoy.extensions.filters.http.oauth2.v3.OAuth2",
    "envoy.extensions.filters.http.ratelimit.v3.RateLimit",
];

impl<'a> Judge<'a> {
    /// A manager without the filter, of this listener.
    pub(super) fn unguarded_manager(&mut self, listener: &'a str, at: &At<'a>) {
        let early = self.stripped(at);
        for filter in at.list("http_filters") {
            self.unguarded_filter(listener, &filter, &early);
        }
        let mut tables = self.tables(at);
        if let Some(scoped) = at.get("scoped_routes") {
            let list = scoped.get("scoped_route_configurations_list");
            let list = list.map(|at| at.list("scoped_route_configurations"));
            let list = list.unwrap_or_default();
            let own = list.iter().filter_map(|one| one.get("route_configuration"));
            let before = tables.len();
            tables.extend(own);
            if list.is_empty() || tables.len().saturating_sub(before) < list.len() {
                let what = "scoped routes that come from elsewhere";
                self.leads_anywhere(what, listener, &scoped, &early);
            }
        }
        for table in tables {
            self.unguarded_table(listener, &table, &early);
        }
    }

    fn leads_anywhere(&mut self, what: &str, name: &'a str, at: &At<'a>, left: &Stripped) {
        let to = To::Any(what.to_owned());
        self.leads(to, name, at, left.leaves_with_ours());
    }

    /// A filter that may answer with what it fetches by itself.
    fn unguarded_filter(&mut self, listener: &'a str, entry: &At<'a>, early: &Stripped) {
        let configs = match entry.get("typed_config") {
            Some(config) => vec![config],
            None => self.resources(entry),
        };
        if configs.is_empty() {
            let what = "an HTTP filter that comes from elsewhere";
            self.leads_anywhere(what, listener, entry, early);
        }
        for config in configs {
            let (kind, filter) = config.any();
            if ASKING.contains(&kind) {
                self.asks(listener, &filter, early);
            } else if !QUIET.contains(&kind) {
                let what = format!("HTTP filter {kind:?}, which may send requests itself");
                self.leads_anywhere(&what, listener, &config, early);
            }
        }
    }

    /// The services that a filter's configuration names.
    fn asks(&mut self, name: &'a str, at: &At<'a>, early: &Stripped) {
        for field in ["cluster", "cluster_name"] {
            for cluster in at.everywhere(field) {
                if let Some(to) = cluster.as_text().filter(|to| !to.is_empty()) {
                    let left = early.leaves_with_ours();
                    self.leads(To::cluster(to), name, &cluster, left);
                }
            }
        }
        for target in at.everywhere("target_uri") {
            let what = "a gRPC service that is no cluster";
            self.leads_anywhere(what, name, &target, early);
        }
    }

    /// A table of a manager without the filter.
    fn unguarded_table(&mut self, listener: &'a str, at: &At<'a>, early: &Stripped) {
        if let Some(elsewhere) = at.get("vhds") {
            let what = "virtual hosts that come from elsewhere";
            let left = early.with_removed(&[at]);
            self.leads_anywhere(what, listener, &elsewhere, &left);
        }
        for told in at.everywhere("typed_per_filter_config") {
            self.asks(listener, &told, early);
        }
        for host in at.list("virtual_hosts") {
            if let Some(tree) = host.get("matcher") {
                let left = early.with_removed(&[at, &host]);
                self.leads_anywhere("a tree of rules", listener, &tree, &left);
            }
            for route in host.list("routes") {
                let Some(action) = route.get("route") else {
                    continue;
                };
                let left = early.with_removed(&[at, &host, &route]).leaves_with_ours();
                for to in leads_to(&action, &[at, &host]) {
                    self.leads(to, listener, &route, left.clone());
                }
            }
        }
    }

    /// A route without the filter, in a table of a manager that has it.
    pub(super) fn unguarded_route(&mut self, place: Place<'_, 'a>, at: &At<'a>, name: &'a str) {
        let Some(action) = at.get("route") else {
            // Envoy answers it itself.
            return;
        };
        let around = [place.table, place.host];
        let stripped = place.early.with_removed(&[place.table, place.host, at]);
        for to in leads_to(&action, &around) {
            self.leads(to, name, at, stripped.leaves());
        }
        for field in ["cluster_header", "cluster_specifier_plugin"] {
            self.chosen(&action, field);
        }
        self.hands_on(name, at, &stripped);
    }

    /// A part of a guarded route without the filter, by the name of its cluster.
    pub(super) fn unguarded_weighted(&mut self, place: Place<'_, 'a>, route: &At<'a>, at: &At<'a>) {
        let name = at.text("name");
        let holders = [place.table, place.host, route, at];
        let stripped = place.early.with_removed(&holders);
        self.leads(To::cluster(name), name, at, stripped.leaves());
        self.hands_on(name, at, &stripped);
    }

    fn hands_on(&mut self, name: &str, at: &At<'a>, stripped: &Stripped) {
        for credential in CREDENTIALS {
            if !stripped.takes(credential) {
                self.found(
                    Rule::CredentialsForwarded,
                    at,
                    format!("{name:?} is unguarded and hands {credential:?} to its upstream: remove it with request_headers_to_remove"),
                );
            }
        }
    }
}
