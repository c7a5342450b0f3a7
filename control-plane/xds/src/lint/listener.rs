//! Listeners, and what a connection manager lets clients say.

use capability::headers::OURS;

use super::reach::{To, leads_to};
use super::stripped::Stripped;
use super::tree::At;
use super::{Judge, Rule, Unguarded};

const MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const EARLY_MUTATION: &str =
    "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
/// Network filters that look at a connection and forward nothing themselves. The
/// last three can also say where a later `tcp_proxy` leads.
const ONLY_LOOK: [&str; 10] = [
    "envoy.extensions.filters.network.rbac.v3.RBAC",
    "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
    "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit",
    "envoy.extensions.filters.network.ratelimit.v3.RateLimit",
    "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "io.istio.http.peer_metadata.Config",
    SET_STATE,
    SNI_CLUSTER,
    WASM,
];
const SNI_CLUSTER: &str = "envoy.extensions.filters.network.sni_cluster.v3.SniCluster";
const SET_STATE: &str = "envoy.extensions.filters.network.set_filter_state.v3.Config";
const WASM: &str = "envoy.extensions.filters.network.wasm.v3.Wasm";
/// The filter state that `tcp_proxy` takes for its cluster.
const TCP_CLUSTER: &str = "envoy.tcp_proxy.cluster";

impl<'a> Judge<'a> {
    pub(super) fn listener(&mut self, at: &At<'a>) {
        let name = at.text("name");
        let mut chains = at.list("filter_chains");
        chains.extend(at.get("default_filter_chain"));
        let early = at.list("listener_filters");
        let early = early.iter().find_map(steers);
        for chain in &chains {
            let filters = chain.list("filters");
            let steered = filters.iter().find_map(steers);
            let steered = steered.or_else(|| early.clone());
            for filter in &filters {
                self.network_filter(name, filter, steered.as_deref());
            }
        }
        if let Some(api) = at
            .get("api_listener")
            .and_then(|api| api.get("api_listener"))
        {
            self.typed(name, &api, early.as_deref());
        }
        if let Some(elsewhere) = at.get("fcds_config") {
            self.anywhere(name, &elsewhere, "its filter chains come from elsewhere");
        }
        for filter in at.list("listener_filters") {
            let kind = filter.get("typed_config").map_or("", |at| at.any().0);
            if kind.contains(".udp_proxy.") {
                self.anywhere(name, &filter, "it forwards datagrams");
            }
        }
    }

    /// A network filter; `steered` says what in its chain may choose a `tcp_proxy`'s
    /// cluster.
    fn network_filter(&mut self, listener: &'a str, at: &At<'a>, steered: Option<&str>) {
        match at.get("typed_config") {
            Some(config) => self.typed(listener, &config, steered),
            None => self.anywhere(listener, at, "a filter of it comes from elsewhere"),
        }
    }

    fn typed(&mut self, listener: &'a str, at: &At<'a>, steered: Option<&str>) {
        match at.any() {
            (MANAGER, manager) => self.manager(listener, &manager),
            (kind, _) if ONLY_LOOK.contains(&kind) => {}
            (TCP_PROXY, proxy) => {
                // Nobody looks at its headers, so nobody takes any off.
                let mut all = leads_to(&proxy, &[]);
                all.extend(steered.map(|what| To::Any(what.to_owned())));
                for to in all {
                    self.leads(to, listener, &proxy, Vec::new());
                }
                self.bypass(listener, &proxy, "it forwards connections");
            }
            (kind, at) => {
                let what = format!("it hands connections to {kind:?}");
                self.anywhere(listener, &at, &what);
            }
        }
    }

    /// What forwards to nobody knows where.
    fn anywhere(&mut self, listener: &'a str, at: &At<'a>, what: &str) {
        let by = format!("what can't be followed: {what}");
        self.leads(To::Any(by), listener, at, Vec::new());
        self.bypass(listener, at, what);
    }

    fn bypass(&mut self, listener: &str, at: &At<'a>, what: &str) {
        if !self.is_named(listener) {
            self.found(
                Rule::NotHttp,
                at,
                format!("listener {listener:?}: {what}, and no request of it meets the filter; if it may, name it as unguarded"),
            );
        }
    }

    /// Notes where something unguarded leads, and which headers it leaves on.
    pub(super) fn leads(&mut self, to: To, name: &'a str, at: &At<'a>, leaves: Vec<&'static str>) {
        self.unguarded.push(Unguarded {
            to,
            name,
            at: at.clone(),
            leaves,
        });
    }

    fn manager(&mut self, listener: &'a str, at: &At<'a>) {
        let filters = at.list("http_filters");
        let place = filters.iter().position(|filter| self.is_guard(filter));
        let Some(place) = place else {
            if !self.is_named(listener) {
                self.found(
                    Rule::NoFilter,
                    at,
                    format!("listener {listener:?} has no filter {:?}; if it may be without, name it as unguarded", self.names.filter),
                );
            }
            self.unguarded_manager(listener, at);
            return;
        };
        let (before, rest) = filters.split_at(place);
        self.before(before);
        let mut rest = rest.iter();
        let entry = rest.next().map_or("", |filter| {
            self.guard(filter);
            filter.text("name")
        });
        for filter in rest {
            self.after(filter);
        }
        self.paths(at);
        self.clients(at);
        let early = self.stripped(at);
        self.headers(at, &early);
        for upgrade in at.list("upgrade_configs") {
            self.upgrade(&upgrade);
        }
        if let Some(scoped) = at.get("scoped_routes") {
            self.found(
                Rule::MatchesOn,
                &scoped,
                "the route table is chosen by a header",
            );
        }
        for table in self.tables(at) {
            self.table(entry, &table, &early);
        }
    }

    /// The route tables of a manager, wherever they are.
    pub(super) fn tables(&mut self, at: &At<'a>) -> Vec<At<'a>> {
        if let Some(own) = at.get("route_config") {
            return vec![own];
        }
        let Some(rds) = at.get("rds") else {
            return Vec::new();
        };
        let name = rds.text("route_config_name");
        let all = self.pool.routes.iter();
        let found: Vec<_> = all
            .filter(|table| table.text("name") == name)
            .cloned()
            .collect();
        if found.is_empty() {
            self.found(
                Rule::RoutesUnseen,
                &rds,
                format!("the routes {name:?} are not in what was given: give a /config_dump"),
            );
        }
        found
    }

    /// What is compared must be what is forwarded.
    fn paths(&mut self, at: &At<'a>) {
        if !at.truth("normalize_path") {
            self.found(Rule::PathNotNormal, at, "normalize_path is not true");
        }
        if !at.truth("merge_slashes") {
            self.found(Rule::PathNotNormal, at, "merge_slashes is not true");
        }
        let escaped = "path_with_escaped_slashes_action";
        let words = [
            ("REJECT_REQUEST", 2),
            ("UNESCAPE_AND_REDIRECT", 3),
            ("UNESCAPE_AND_FORWARD", 4),
        ];
        if !words
            .iter()
            .any(|(word, number)| at.is_word(escaped, word, *number))
        {
            self.found(
                Rule::PathNotNormal,
                at,
                format!("{escaped} keeps escaped slashes: say REJECT_REQUEST"),
            );
        }
        // One of its transformations is seen by filters alone.
        if let Some(options) = at.said("path_normalization_options") {
            self.found(
                Rule::RewritesPath,
                &options,
                "path_normalization_options: filters may see another path than the upstream",
            );
        }
        let action = at
            .get("common_http_protocol_options")
            .is_some_and(|options| {
                let name = "headers_with_underscores_action";
                options.is_word(name, "REJECT_REQUEST", 1)
                    || options.is_word(name, "DROP_HEADER", 2)
            });
        if !action {
            self.found(
                Rule::Underscores,
                at,
                "headers_with_underscores_action lets x_writ_agent through, which upstreams may read as x-writ-agent: say REJECT_REQUEST",
            );
        }
    }

    /// Nobody is internal, and an address is the connection's.
    fn clients(&mut self, at: &At<'a>) {
        if !at.truth("use_remote_address") {
            self.found(
                Rule::ClientsTrusted,
                at,
                "use_remote_address is not true: the client's address is what its x-forwarded-for says",
            );
        }
        let hops = "xff_num_trusted_hops";
        if at.get(hops).is_some() && at.number(hops) != Some(0) {
            self.found(
                Rule::ClientsTrusted,
                at,
                "xff_num_trusted_hops: the client's address is what a header says",
            );
        }
        if let Some(detection) = at.said("original_ip_detection_extensions") {
            self.found(
                Rule::ClientsTrusted,
                &detection,
                "the client's address is what an extension reads from the request",
            );
        }
        let Some(internal) = at.get("internal_address_config") else {
            self.found(
                Rule::ClientsTrusted,
                at,
                "internal_address_config is missing: which clients are internal is Envoy's default, and Envoy obeys the retry, timeout and hedge headers of internal clients",
            );
            return;
        };
        let ranges = internal.list("cidr_ranges");
        let nobody = |range: &At<'_>| {
            let bits = range.number("prefix_len");
            let unspecified = matches!(range.text("address_prefix"), "0.0.0.0" | "::");
            unspecified && matches!(bits, Some(32 | 128))
        };
        if internal.may_be_true("unix_sockets") || ranges.is_empty() || !ranges.iter().all(nobody) {
            self.found(
                Rule::ClientsTrusted,
                &internal,
                "some clients count as internal: the only range is 0.0.0.0/32, which nobody has, and unix_sockets is false",
            );
        }
    }

    /// What is gone before anything looks at a request; what is set then is found.
    pub(super) fn stripped(&mut self, at: &At<'a>) -> Stripped {
        let mut stripped = Stripped::default();
        for extension in at.list("early_header_mutation_extensions") {
            let Some((EARLY_MUTATION, config)) = extension.get("typed_config").map(|at| at.any())
            else {
                continue;
            };
            for mutation in config.list("mutations") {
                stripped.name(mutation.text("remove"));
                let matcher = mutation
                    .get("remove_on_match")
                    .and_then(|at| at.get("key_matcher"));
                if let Some(matcher) = matcher {
                    stripped.matcher(&matcher);
                }
                if let Some(append) = mutation.get("append").and_then(|at| at.get("header")) {
                    self.sets(&append, false);
                }
            }
        }
        stripped
    }

    fn headers(&mut self, at: &At<'a>, early: &Stripped) {
        for wanted in OURS {
            if !early.takes_all_of(wanted) {
                self.found(
                    Rule::HeadersNotStripped,
                    at,
                    format!("a client's {wanted}* headers are not removed by early_header_mutation_extensions, before anything obeys them"),
                );
            }
        }
        let forward = "forward_client_cert_details";
        let named = at.said(forward).is_some();
        let safe = [("SANITIZE", 0), ("SANITIZE_SET", 3)];
        if named
            && !safe
                .iter()
                .any(|(word, number)| at.is_word(forward, word, *number))
        {
            self.found(
                Rule::CertificateHeader,
                at,
                format!("{forward} passes on what a client says of its certificate: say SANITIZE"),
            );
        }
        if let Some(matcher) = at.said("forward_client_cert_matcher") {
            self.found(
                Rule::CertificateHeader,
                &matcher,
                "what a client says of its certificate may be passed on",
            );
        }
    }

    pub(super) fn upgrade(&mut self, at: &At<'a>) {
        if at.get("enabled").is_none_or(|enabled| !enabled.is_false()) {
            self.found(
                Rule::Upgrade,
                at,
                format!(
                    "after the upgrade {:?} nothing of the connection is checked",
                    at.text("upgrade_type")
                ),
            );
        }
    }
}

/// What a filter says, or may say, of the cluster of a `tcp_proxy` behind it.
fn steers(filter: &At<'_>) -> Option<String> {
    let config = filter.get("typed_config");
    let kind = config.as_ref().map_or("", |config| config.any().0);
    let named = |at: &At<'_>| {
        let keys = at.everywhere("object_key");
        keys.iter().any(|key| key.as_text() == Some(TCP_CLUSTER))
    };
    if kind.contains(".set_filter_state.") {
        let says = config.is_some_and(|config| named(&config));
        return says.then(|| format!("{TCP_CLUSTER:?} in the filter state"));
    }
    let code = [".wasm.", ".lua.", ".golang.", ".dynamic_modules."];
    let steers = kind == SNI_CLUSTER || code.iter().any(|code| kind.contains(code));
    steers.then(|| format!("{kind:?}, which may set {TCP_CLUSTER:?}"))
}
