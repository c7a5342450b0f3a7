//! RDS: path prefix to cluster, and nothing else but what is exempt by name.

mod exempt;

use envoy_types::{
    pb::{
        envoy::config::route::v3::{
            FilterConfig, Route as EnvoyRoute, RouteAction, RouteConfiguration, RouteMatch,
            VirtualHost, route, route_action::ClusterSpecifier, route_match::PathSpecifier,
        },
        google::protobuf::{Any, Duration, UInt64Value},
    },
    util::pack_any,
};

use crate::{BODIES_FILTER_NAME, Exempt, ROUTES_NAME, Route, Settings, cluster};

/// What Envoy may buffer of a body beyond its limit, so that the filter sees one
/// that is too long before Envoy answers by itself: as much as comes at a time.
const BUFFER_MARGIN_BYTES: u64 = 256 * 1024;

/// What Envoy adds by itself on the way in; upstreams get verified facts only.
const ENVOYS_OWN: [&str; 4] = [
    "x-envoy-external-address",
    "x-envoy-internal",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-attempt-count",
];

pub(crate) fn build(settings: &Settings) -> RouteConfiguration {
    let further = settings.sites.iter().map(|site| {
        let name = format!("writ.origin.{}", site.name);
        host(settings, name, &site.authority, Some(&site.name))
    });
    let first = host(
        settings,
        "writ.origin".to_owned(),
        &settings.authority,
        None,
    );
    RouteConfiguration {
        name: ROUTES_NAME.to_owned(),
        virtual_hosts: std::iter::once(first).chain(further).collect(),
        request_headers_to_remove: ENVOYS_OWN.map(str::to_owned).to_vec(),
        ..Default::default()
    }
}

/// One authority and its routes. Envoy takes the first match; the longest
/// prefix is meant, and before each guarded one what is exempt of it.
fn host(settings: &Settings, name: String, authority: &str, site: Option<&str>) -> VirtualHost {
    let exempt = &settings.exempt;
    let mut routes = exempt::documents(exempt, site);
    routes.extend(exempt::probes(settings, site));
    let guarded = settings.routes.iter().map(|route| (route, false));
    let unguarded = exempt.unguarded.iter().map(|it| (&it.route, true));
    let all = guarded.chain(unguarded);
    let mut all: Vec<(&Route, bool)> = all.filter(|(it, _)| it.site.as_deref() == site).collect();
    all.sort_by(|(a, _), (b, _)| {
        (b.path_prefix.len(), &b.path_prefix).cmp(&(a.path_prefix.len(), &a.path_prefix))
    });
    for (route, unguarded) in all {
        if unguarded {
            routes.push(exempt::unguarded(route));
        } else {
            routes.extend(exempt::preflights(exempt, route));
            routes.extend(observed(exempt, route));
            routes.push(guarded_route(exempt, route));
        }
    }
    VirtualHost {
        name,
        domains: domains(authority),
        routes,
        ..Default::default()
    }
}

/// What is observed of a route whose upstream an enforcing one has: paths of plain
/// letters. The filter observes where this name is the route's; all other paths of
/// it have another, and are enforced.
fn observed(exempt: &Exempt, route: &Route) -> Option<EnvoyRoute> {
    shares_while_observing(exempt, route).then(|| EnvoyRoute {
        name: route.name.clone(),
        r#match: Some(RouteMatch {
            path_specifier: Some(exempt::plain_paths(&route.path_prefix)),
            ..Default::default()
        }),
        action: Some(forward(route)),
        ..Default::default()
    })
}

fn shares_while_observing(exempt: &Exempt, route: &Route) -> bool {
    let mut own = exempt.observing.iter().filter(|it| it.route == route.name);
    own.any(|it| !it.shares_upstream_with.is_empty())
}

fn guarded_route(exempt: &Exempt, route: &Route) -> EnvoyRoute {
    // No route of a config has a name with a colon.
    let name = match shares_while_observing(exempt, route) {
        true => format!("{}:enforced", route.name),
        false => route.name.clone(),
    };
    let path = if route.path_prefix.ends_with('/') {
        PathSpecifier::Prefix(route.path_prefix.clone())
    } else {
        PathSpecifier::PathSeparatedPrefix(route.path_prefix.clone())
    };
    // Off by default, it is on here, by a configuration that is there and empty.
    // Where this is missing the other instance, which is on here in any case,
    // refuses what has not been read.
    let on = FilterConfig {
        config: Some(Any::default()),
        ..Default::default()
    };
    let reader = || (BODIES_FILTER_NAME.to_owned(), pack_any(on));
    let buffered = route
        .reads_bodies
        .and_then(|limit| u64::try_from(limit).ok());
    EnvoyRoute {
        name,
        typed_per_filter_config: route.reads_bodies.map(|_| reader()).into_iter().collect(),
        request_body_buffer_limit: buffered.map(|limit| UInt64Value {
            value: limit.saturating_add(BUFFER_MARGIN_BYTES),
        }),
        r#match: Some(RouteMatch {
            path_specifier: Some(path),
            ..Default::default()
        }),
        action: Some(forward(route)),
        ..Default::default()
    }
}

/// To the route's upstream, and nothing else.
fn forward(route: &Route) -> route::Action {
    route::Action::Route(RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster::name(route))),
        // No deadline for the whole answer: streams of events may be
        // long. The stream's idle timeout still holds.
        timeout: Some(Duration {
            seconds: 0,
            nanos: 0,
        }),
        ..Default::default()
    })
}

/// The authority as clients write it: a default port may be there or not.
pub(crate) fn domains(authority: &str) -> Vec<String> {
    let mut domains = vec![authority.to_owned()];
    let bare = [":80", ":443"]
        .into_iter()
        .find_map(|port| authority.strip_suffix(port));
    match bare {
        Some(bare) => domains.push(bare.to_owned()),
        None if !has_port(authority) => {
            domains.push(format!("{authority}:80"));
            domains.push(format!("{authority}:443"));
        }
        None => {}
    }
    domains
}

fn has_port(authority: &str) -> bool {
    // The colons of an IPv6 address are inside its brackets.
    let after_address = authority
        .rsplit_once(']')
        .map_or(authority, |(_, rest)| rest);
    after_address.contains(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_ports_are_optional_and_others_are_not() {
        assert_eq!(domains("a.example:8400"), ["a.example:8400"]);
        assert_eq!(domains("a.example:443"), ["a.example:443", "a.example"]);
        assert_eq!(
            domains("a.example"),
            ["a.example", "a.example:80", "a.example:443"]
        );
        assert_eq!(domains("[::1]:8400"), ["[::1]:8400"]);
        assert_eq!(domains("[::1]"), ["[::1]", "[::1]:80", "[::1]:443"]);
    }
}
