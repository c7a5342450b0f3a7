//! Route tables: what a guarded route may say, and what an unguarded one must.

use capability::headers::REINTERPRETING;

use super::reach::{self, To};
use super::stripped::Stripped;
use super::tree::At;
use super::{Judge, Rule};

const SWITCH: &str = "envoy.config.route.v3.FilterConfig";
/// Matches on anything but the path: the filter's own edits clear the route
/// cache, and what a client says would choose the upstream.
const MATCHES: [(&str, &str); 9] = [
    ("headers", "headers"),
    ("query_parameters", "the query"),
    ("cookies", "cookies"),
    ("dynamic_metadata", "metadata"),
    ("filter_state", "filter state"),
    ("grpc", "gRPC"),
    ("tls_context", "the client's certificate"),
    ("runtime_fraction", "chance"),
    ("connect_matcher", "CONNECT"),
];
const REWRITES_PATH: [&str; 4] = [
    "prefix_rewrite",
    "regex_rewrite",
    "path_rewrite_policy",
    "path_rewrite",
];
const REWRITES_HOST: [&str; 5] = [
    "host_rewrite_literal",
    "auto_host_rewrite",
    "host_rewrite_header",
    "host_rewrite_path_regex",
    "host_rewrite",
];
const REDIRECTS: [&str; 3] = [
    "internal_redirect_policy",
    "internal_redirect_action",
    "max_internal_redirects",
];

/// Where a route stands: what its table and its host say goes for it too.
#[derive(Clone, Copy)]
pub(super) struct Place<'p, 'a> {
    pub(super) table: &'p At<'a>,
    pub(super) host: &'p At<'a>,
    /// The filter's entry in the chain.
    entry: &'p str,
    /// What is taken off every request.
    pub(super) early: &'p Stripped,
}

impl<'a> Judge<'a> {
    /// The table of a manager that has the filter under the name `entry`.
    pub(super) fn table(&mut self, entry: &str, at: &At<'a>, early: &Stripped) {
        if let Some(elsewhere) = at.said("vhds") {
            self.found(
                Rule::RoutesUnseen,
                &elsewhere,
                "virtual hosts come from elsewhere",
            );
        }
        if let Some(header) = at.said("vhost_header") {
            self.found(
                Rule::MatchesOn,
                &header,
                "the virtual host is chosen by a header other than the authority",
            );
        }
        if at.may_be_true("ignore_path_parameters_in_path_matching") {
            self.found(
                Rule::MatchesOn,
                at,
                "ignore_path_parameters_in_path_matching: what is matched is not what is forwarded",
            );
        }
        self.common(at);
        let off = self.table_switched(entry, at);
        for host in at.list("virtual_hosts") {
            let place = Place {
                table: at,
                host: &host,
                entry,
                early,
            };
            self.host(place, off);
        }
    }

    /// Whether the filter is off for a whole table, which no name exempts: one that
    /// comes into it later would be unguarded unseen.
    fn table_switched(&mut self, entry: &str, at: &At<'a>) -> bool {
        let Some((own, off)) = switch(entry, at) else {
            return false;
        };
        let name = at.text("name");
        self.is_named(name);
        let what = if off {
            "the filter is switched off for a whole table: say so at the virtual hosts or routes that may be without, and name those"
        } else {
            "the filter gets another configuration here"
        };
        self.found(Rule::RouteOverride, &own, format!("{name:?}: {what}"));
        off
    }

    fn host(&mut self, place: Place<'_, 'a>, off: bool) {
        let (host, name) = (place.host, place.host.text("name"));
        if let Some(tree) = host.said("matcher") {
            self.found(
                Rule::MatchesOn,
                &tree,
                format!(
                    "virtual host {name:?} matches by a tree of rules, which may look at anything"
                ),
            );
        }
        self.common(host);
        let whole = self.switched(place.entry, host, name) || off;
        if whole && host.get("matcher").is_some() {
            let left = place.early.with_removed(&[place.table, host]).leaves();
            self.leads(To::Any("its tree of rules".to_owned()), name, host, left);
        }
        let mut open: Vec<At<'a>> = Vec::new();
        for route in host.list("routes") {
            if whole || self.switched(place.entry, &route, route.text("name")) {
                self.unguarded_route(place, &route, if whole { name } else { route.text("name") });
                open.extend(route.get("match"));
                continue;
            }
            self.report.guarded_routes = self.report.guarded_routes.saturating_add(1);
            if let Some(takes) = open.iter().find(|open| takes_all(open, &route)) {
                self.found(
                    Rule::Shadowed,
                    &route,
                    format!(
                        "an earlier unguarded route takes all of its paths: {}",
                        takes.path
                    ),
                );
            }
            self.guarded_route(place, &route);
        }
    }

    /// Whether the filter is off here, by somebody's name; what else is said for
    /// the filter is found wrong.
    fn switched(&mut self, entry: &str, at: &At<'a>, name: &str) -> bool {
        let Some((own, off)) = switch(entry, at) else {
            return false;
        };
        let answers = ["direct_response", "redirect"];
        if off && answers.iter().any(|action| at.get(action).is_some()) {
            // Envoy's own answer reaches no upstream.
            self.is_named(name);
            return true;
        }
        if off && self.is_named(name) {
            return true;
        }
        let what = if off {
            "the filter is switched off; if it may be, name it as unguarded"
        } else {
            "the filter gets another configuration here"
        };
        self.found(Rule::RouteOverride, &own, format!("{name:?}: {what}"));
        false
    }

    fn guarded_route(&mut self, place: Place<'_, 'a>, at: &At<'a>) {
        if let Some(matches) = at.get("match") {
            for (field, what) in MATCHES {
                if let Some(found) = matches.said(field).or_else(|| {
                    // An empty message is a match as well.
                    matches
                        .get(field)
                        .filter(|_| matches!(field, "grpc" | "tls_context" | "connect_matcher"))
                }) {
                    self.found(
                        Rule::MatchesOn,
                        &found,
                        format!("a guarded route matches on {what}: the path alone may choose"),
                    );
                }
            }
        }
        self.common(at);
        let Some(action) = at.get("route") else {
            return;
        };
        self.action(&action);
        self.rewrites(&action);
        let weighted = action.get("weighted_clusters");
        let clusters = weighted.as_ref().map(|at| at.list("clusters"));
        for cluster in clusters.into_iter().flatten() {
            self.common(&cluster);
            self.rewrites(&cluster);
            self.chosen(&cluster, "cluster_header");
            let name = cluster.text("name");
            if self.switched(place.entry, &cluster, name) {
                self.unguarded_weighted(place, at, &cluster);
            } else {
                self.guarded.push(name.to_owned());
            }
        }
        self.guarded
            .extend(reach::cluster(&action).map(str::to_owned));
    }

    /// What a route's action may not do with a request that is allowed once.
    fn action(&mut self, at: &At<'a>) {
        self.chosen(at, "cluster_header");
        self.chosen(at, "cluster_specifier_plugin");
        self.chosen(at, "inline_cluster_specifier_plugin");
        if let Some(weighted) = at.get("weighted_clusters") {
            self.chosen(&weighted, "header_name");
        }
        for field in REDIRECTS {
            let follows = at.get(field);
            let off = |found: &At<'_>| {
                matches!(
                    found.as_text(),
                    Some("0" | "PASS_THROUGH_INTERNAL_REDIRECT")
                )
            };
            if let Some(found) = follows.filter(|found| !off(found)) {
                self.found(
                    Rule::InternalRedirect,
                    &found,
                    "Envoy follows an upstream's redirect with a request that nobody has checked",
                );
            }
        }
        if let Some(early) = at.said("early_data_policy") {
            self.found(
                Rule::Retried,
                &early,
                "requests sent as early data may arrive twice",
            );
        }
        for upgrade in at.list("upgrade_configs") {
            self.upgrade(&upgrade);
        }
    }

    pub(super) fn chosen(&mut self, at: &At<'a>, field: &str) {
        if let Some(found) = at.said(field) {
            self.found(
                Rule::UpstreamChosen,
                &found,
                format!("{field}: the upstream is not a fixed one"),
            );
        }
    }

    fn rewrites(&mut self, at: &At<'a>) {
        for field in REWRITES_PATH {
            if let Some(found) = at.said(field) {
                self.found(
                    Rule::RewritesPath,
                    &found,
                    format!("{field}: the upstream gets another path than was checked"),
                );
            }
        }
        for field in REWRITES_HOST {
            if let Some(found) = at.said(field).filter(|found| !found.is_false()) {
                self.found(
                    Rule::RewritesHost,
                    &found,
                    format!("{field}: the upstream gets another host than was checked"),
                );
            }
        }
    }

    /// What tables, hosts, routes and actions can all say.
    fn common(&mut self, at: &At<'a>) {
        for holder in [Some(at.clone()), at.get("route")].into_iter().flatten() {
            self.repeats(&holder);
        }
        for header in at.list("request_headers_to_add") {
            if let Some(header) = header.get("header") {
                self.sets(&header, true);
            }
        }
    }

    /// Whether a request could be sent more than once.
    pub(super) fn repeats(&mut self, at: &At<'a>) {
        for field in ["retry_policy", "retry_policy_typed_config"] {
            let never = |found: &At<'_>| found.number("num_retries") == Some(0);
            if let Some(found) = at.get(field).filter(|found| !never(found)) {
                self.found(
                    Rule::Retried,
                    &found,
                    "a request that is allowed once may be sent again",
                );
            }
        }
        if let Some(found) = at.get("hedge_policy") {
            self.found(
                Rule::Hedged,
                &found,
                "a request that is allowed once may be sent twice at a time",
            );
        }
        if let Some(found) = at.said("request_mirror_policies") {
            self.found(
                Rule::Mirrored,
                &found,
                "a copy of the request, and what it does, goes to a second place",
            );
        }
    }

    /// A header that is set behind the filter, or before it in its name.
    pub(super) fn sets(&mut self, at: &At<'a>, behind: bool) {
        let name = at.text("key").to_ascii_lowercase();
        let rule = match name.as_str() {
            ":path" => Rule::RewritesPath,
            ":authority" | "host" => Rule::RewritesHost,
            ":method" | "authorization" | "dpop" => Rule::SetsHeaders,
            name if name.starts_with("x-writ-") || name.starts_with("x-envoy-") => {
                Rule::SetsHeaders
            }
            name if behind && (name == "content-type" || REINTERPRETING.contains(&name)) => {
                Rule::SetsHeaders
            }
            _ => return,
        };
        self.found(
            rule,
            at,
            format!("{name:?} is set, though it is the filter's or the request's own"),
        );
    }
}

/// What is said for the filter here, and whether that switches it off.
fn switch<'a>(entry: &str, at: &At<'a>) -> Option<(At<'a>, bool)> {
    let all = at.get("typed_per_filter_config")?.entries();
    let (_, own) = all.into_iter().find(|(key, _)| *key == entry)?;
    let off = match own.any() {
        (SWITCH, switch) => switch.may_be_true("disabled"),
        _ => false,
    };
    Some((own, off))
}

/// Whether the match of an earlier route takes every path of a later one.
fn takes_all(earlier: &At<'_>, later: &At<'_>) -> bool {
    let narrowed = MATCHES
        .iter()
        .any(|(field, _)| earlier.get(field).is_some());
    let Some(later) = later.get("match").filter(|_| !narrowed) else {
        return false;
    };
    let mut paths = ["path", "prefix", "path_separated_prefix"]
        .into_iter()
        .map(|field| later.text(field))
        .filter(|path| !path.is_empty());
    let Some(path) = paths.next() else {
        return false;
    };
    let separated = |prefix: &str| {
        let rest = path.strip_prefix(prefix);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let (prefix, whole) = (
        earlier.text("prefix"),
        earlier.text("path_separated_prefix"),
    );
    (!prefix.is_empty() && path.starts_with(prefix)) || (!whole.is_empty() && separated(whole))
}
