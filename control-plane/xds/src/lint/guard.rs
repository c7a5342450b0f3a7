//! Writ's filter in its chain: that it is there, whole, and last before the router.

use super::tree::{At, last};
use super::{Judge, Rule};
use crate::{BODIES_FILTER_NAME, FILTER_NAME};

const WASM: &str = "envoy.extensions.filters.http.wasm.v3.Wasm";
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const CODEC: &str = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";
const RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
const CACHES: [&str; 2] = [
    "envoy.extensions.filters.http.cache.v3.CacheConfig",
    "envoy.extensions.filters.http.cache_v2.v3.CacheV2Config",
];

impl<'a> Judge<'a> {
    /// Whether an entry of a chain is Writ's filter: by its name, or by what
    /// its plugin calls itself.
    pub(super) fn is_guard(&self, entry: &At<'a>) -> bool {
        entry.text("name") == self.names.filter
            || self.is_plugin(entry, |plugin| plugin.text("root_id") == FILTER_NAME)
    }

    /// Whether an entry is the instance that reads bodies, and lets requests
    /// through: by its name, or by what its plugin is or is told.
    fn is_reader(&self, entry: &At<'a>) -> bool {
        let told = |plugin: &At<'_>| {
            let configuration = plugin.get("configuration").map(|told| told.any().1);
            let value = configuration.and_then(|told| told.get("value"));
            value.is_some_and(|value| {
                let text = value.as_text().unwrap_or_default();
                let text: String = text.split_whitespace().collect();
                value.text("bodies") == "read" || text.contains("\"bodies\":\"read\"")
            })
        };
        entry.text("name") == BODIES_FILTER_NAME
            || self.is_plugin(entry, |plugin| {
                plugin.text("root_id") == BODIES_FILTER_NAME || told(plugin)
            })
    }

    fn is_plugin(&self, entry: &At<'a>, is_it: impl Fn(&At<'a>) -> bool) -> bool {
        match entry.get("typed_config") {
            Some(config) => plugin(&config).is_some_and(|plugin| is_it(&plugin)),
            None => self
                .resources(entry)
                .iter()
                .any(|config| plugin(config).is_some_and(|plugin| is_it(&plugin))),
        }
    }

    /// What ECDS brings for an entry.
    pub(super) fn resources(&self, entry: &At<'a>) -> Vec<At<'a>> {
        let name = entry.text("name");
        let all = self.pool.filters.iter();
        all.filter(|resource| resource.text("name") == name)
            .filter_map(|resource| resource.get("typed_config"))
            .collect()
    }

    pub(super) fn guard(&mut self, entry: &At<'a>) {
        if entry.may_be_true("disabled") {
            self.found(Rule::FilterOff, entry, "the filter is disabled");
        }
        if entry.may_be_true("is_optional") {
            self.found(
                Rule::FilterOff,
                entry,
                "is_optional: an Envoy that doesn't know it goes on without",
            );
        }
        if let Some(config) = entry.get("typed_config") {
            self.wasm(&config);
            return;
        }
        let Some(discovery) = entry.get("config_discovery") else {
            self.found(Rule::FilterReplaced, entry, "it has no configuration");
            return;
        };
        self.discovery(&discovery);
        let resources = self.resources(entry);
        if resources.is_empty() {
            self.found(
                Rule::FilterUnseen,
                &discovery,
                format!(
                    "the filter {:?} is not in what was given: give a /config_dump",
                    entry.text("name")
                ),
            );
        }
        for config in resources {
            self.wasm(&config);
        }
    }

    fn discovery(&mut self, at: &At<'a>) {
        let types = at.list("type_urls");
        let all_wasm = types.iter().all(|url| {
            url.as_text()
                .is_some_and(|url| url.rsplit('/').next() == Some(WASM))
        });
        if types.is_empty() || !all_wasm {
            self.found(
                Rule::FilterReplaced,
                at,
                "type_urls lets something else than a wasm filter stand here",
            );
        }
        let default = at.get("default_config");
        let denies = default.as_ref().is_some_and(denies_all);
        if let Some(default) = &default
            && !denies
        {
            self.found(
                Rule::DefaultConfig,
                default,
                "until the filter is there, this one judges requests, and it does not refuse them all: leave it out",
            );
        }
        if at.may_be_true("apply_default_config_without_warming") && !denies {
            self.found(
                Rule::DefaultConfig,
                at,
                "apply_default_config_without_warming: the listener opens before the filter is there",
            );
        }
    }

    fn wasm(&mut self, at: &At<'a>) {
        let Some(plugin) = plugin(at) else {
            self.found(
                Rule::FilterReplaced,
                at,
                format!("in the filter's place stands {:?}", at.any().0),
            );
            return;
        };
        let closed = [("UNSPECIFIED", 0), ("FAIL_RELOAD", 1), ("FAIL_CLOSED", 2)];
        let policy = plugin.is_absent_or("failure_policy", &closed);
        if !policy || plugin.may_be_true("fail_open") {
            self.found(
                Rule::FailsOpen,
                &plugin,
                "a filter that fails lets requests through: say FAIL_RELOAD or FAIL_CLOSED",
            );
        }
        let callbacks = plugin.said("capability_restriction_config");
        if let Some(some) = callbacks
            && some
                .entries()
                .iter()
                .any(|(key, _)| some.said(key).is_some())
        {
            self.found(
                Rule::FilterOff,
                &some,
                "capability_restriction_config: Envoy leaves out every call that it doesn't list, and a filter that is never called lets requests through: leave it out",
            );
        }
        self.observes(&plugin);
        let vm = plugin.get("vm_config");
        let code = vm.as_ref().and_then(|vm| vm.get("code"));
        if let Some(remote) = code.as_ref().and_then(|code| code.get("remote")) {
            self.found(
                Rule::RemoteModule,
                &remote,
                "Envoy lets requests through while it fetches a module: put the module's bytes in place",
            );
        } else if code.and_then(|code| code.get("local")).is_none() {
            self.found(Rule::FilterReplaced, &plugin, "there is no module");
        }
        if vm.is_some_and(|vm| vm.text("runtime") == "envoy.wasm.runtime.null") {
            self.found(
                Rule::FilterReplaced,
                &plugin,
                "the null runtime runs what is in Envoy, and no module",
            );
        }
    }

    /// Notes the routes on which the filter is told to refuse nothing.
    fn observes(&mut self, plugin: &At<'a>) {
        let configuration = plugin.get("configuration");
        for name in configuration.iter().flat_map(observed) {
            self.note(format!(
                "the filter observes on route {name:?}: it refuses nothing there"
            ));
        }
    }

    /// What stands before the filter. Behind the instance that reads bodies, which
    /// gives the permit that the last one lets through, there is nothing.
    pub(super) fn before(&mut self, filters: &[At<'a>]) {
        let reader = filters.iter().position(|filter| self.is_reader(filter));
        for (place, filter) in filters.iter().enumerate() {
            if reader.is_some_and(|reader| place > reader) {
                self.found(
                    Rule::FilterAfter,
                    filter,
                    format!(
                        "{:?} stands between the instance of the filter that reads bodies and the last one, and could change what the first has checked: put it before both",
                        filter.text("name")
                    ),
                );
            }
            self.cache(filter);
        }
    }

    fn cache(&mut self, at: &At<'a>) {
        // Anywhere in it: other filters hold filters, and ECDS says only the type.
        let mut texts = at.texts();
        texts.extend(self.resources(at).iter().flat_map(At::texts));
        if texts.iter().any(|text| CACHES.contains(&last(text))) {
            self.found(
                Rule::CacheBefore,
                at,
                "a cache before the filter gives answers to whom nobody has checked",
            );
        }
    }

    /// What stands behind the filter: the router, with nothing in it.
    pub(super) fn after(&mut self, at: &At<'a>) {
        match at.get("typed_config").map(|config| config.any()) {
            Some((ROUTER, router)) => {
                let upstream = router.list("upstream_http_filters");
                self.upstream_filters(&upstream);
                if router.may_be_true("respect_expected_rq_timeout") {
                    self.found(
                        Rule::ClientsTrusted,
                        &router,
                        "respect_expected_rq_timeout obeys a header",
                    );
                }
            }
            found => {
                let kind = found.map_or_else(|| at.text("name"), |(kind, _)| kind);
                self.found(
                    Rule::FilterAfter,
                    at,
                    format!("{kind:?} could change what the filter has checked: put it before the filter, or leave it out"),
                );
            }
        }
    }

    /// Filters on the way to an upstream, which are behind Writ's as well.
    pub(super) fn upstream_filters(&mut self, filters: &[At<'a>]) {
        for filter in filters {
            let kind = filter
                .get("typed_config")
                .map_or("", |config| config.any().0);
            if kind != CODEC {
                self.found(
                    Rule::FilterAfter,
                    filter,
                    format!(
                        "{:?} on the way to the upstream could change what the filter has checked",
                        filter.text("name")
                    ),
                );
            }
        }
    }
}

/// The plugin of a wasm filter.
fn plugin<'a>(config: &At<'a>) -> Option<At<'a>> {
    match config.any() {
        (WASM, wasm) => wasm.get("config"),
        _ => None,
    }
}

/// RBAC that allows what its list of policies allows, and the list is empty.
fn denies_all(config: &At<'_>) -> bool {
    let (RBAC, rbac) = config.any() else {
        return false;
    };
    // With a tree of rules, Envoy looks at no list.
    if rbac.get("matcher").is_some() {
        return false;
    }
    let Some(rules) = rbac.get("rules") else {
        // No rules at all allow everything.
        return false;
    };
    rules.is_absent_or("action", &[("ALLOW", 0)]) && rules.said("policies").is_none()
}

/// The routes on which a filter that is told this refuses nothing.
fn observed(configuration: &At<'_>) -> Vec<String> {
    let observes = |mode: &str| mode.eq_ignore_ascii_case("observe");
    let value = configuration.any().1.get("value");
    let Some(value) = value else {
        return Vec::new();
    };
    if let Some(text) = value.as_text() {
        let told: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        let routes = told.get("routes").and_then(serde_json::Value::as_array);
        let text = |route: &serde_json::Value, key: &str| {
            let found = route.get(key).and_then(serde_json::Value::as_str);
            found.unwrap_or_default().to_owned()
        };
        let routes = routes.into_iter().flatten();
        return routes
            .filter(|route| observes(&text(route, "mode")))
            .map(|route| text(route, "name"))
            .collect();
    }
    let routes = value.list("routes").into_iter();
    routes
        .filter(|route| observes(route.text("mode")))
        .map(|route| route.text("name").to_owned())
        .collect()
}
