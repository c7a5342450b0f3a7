//! Routes that only observe, beside routes that enforce.
//!
//! What such a route lets go on has not been allowed by anybody, as on a route that
//! is unguarded. So no path that a route guards may be reached by it at the same
//! upstream, however that reads paths.

use std::collections::BTreeSet;

use crate::exempt::{covers, guarded, is_plain, upstream};
use crate::settings::{Route, SettingsError};
use serde::{Deserialize, Serialize};

/// A route on which nothing is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observing {
    /// The route's name.
    pub route: String,
    /// The enforcing routes whose upstream it leads to. With any, it observes paths
    /// of plain letters alone.
    pub shares_upstream_with: Vec<String>,
}

impl Observing {
    /// By which an enforcing route's paths could be reached without a token; `all`
    /// are the routes that observe.
    pub(crate) fn problems(&self, all: &[Self], routes: &[Route]) -> Vec<SettingsError> {
        let own = match guarded(&self.route, routes) {
            Ok(own) => own,
            Err(error) => return vec![error],
        };
        let mut found = Vec::new();
        let mut shared = BTreeSet::new();
        for route in routes {
            let observes = all.iter().any(|it| it.route == route.name);
            if observes || upstream(own) != upstream(route) {
                continue;
            }
            shared.insert(route.name.as_str());
            if !self.shares_upstream_with.contains(&route.name) {
                found.push(SettingsError::Exempt(format!(
                    "the route {:?} enforces at this upstream, which could so be reached without a token; give the one that observes another, or name that route in its shares_upstream_with",
                    route.name
                )));
            } else if covers(&own.path_prefix, &route.path_prefix) {
                found.push(SettingsError::Exempt(format!(
                    "every path of the route {:?}, which enforces, lies under this prefix, at the same upstream: in other letters it would be observed",
                    route.name
                )));
            }
        }
        for name in &self.shares_upstream_with {
            if !shared.contains(name.as_str()) {
                found.push(SettingsError::Exempt(format!(
                    "shares_upstream_with names {name:?}, which is no enforcing route with this upstream"
                )));
            }
        }
        if !self.shares_upstream_with.is_empty() && !is_plain(&own.path_prefix) {
            found.push(SettingsError::Exempt(format!(
                "the path prefix {:?} of a route that observes beside an enforcing one has letters, digits, `.`, `_`, `~`, `-` and `/` alone",
                own.path_prefix
            )));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, prefix: &str, host: &str, site: Option<&str>) -> Route {
        Route {
            name: name.to_owned(),
            path_prefix: prefix.to_owned(),
            upstream_host: host.to_owned(),
            upstream_port: 9000,
            site: site.map(str::to_owned),
            reads_bodies: None,
        }
    }

    #[test]
    fn what_another_route_enforces_is_observed_by_no_other_letters() {
        type Row<'a> = (
            &'a str,
            &'a str,
            Option<&'a str>,
            &'a [&'a str],
            Option<&'a str>,
        );
        let table: [Row<'_>; 12] = [
            ("/echo", "10.0.0.9", None, &[], None),
            ("/", "10.0.0.9", None, &[], None),
            (
                "/echo",
                "127.0.0.1",
                None,
                &[],
                Some("\"all\" enforces at this upstream"),
            ),
            (
                "/echo",
                "localhost",
                None,
                &[],
                Some("\"admin\" enforces at this upstream"),
            ),
            (
                "/echo",
                "127.0.0.1",
                None,
                &["all"],
                Some("\"admin\" enforces"),
            ),
            ("/echo", "127.0.0.1", None, &["all", "admin"], None),
            ("/Admin/x", "127.0.0.1", None, &["all", "admin"], None),
            (
                "/Admin",
                "127.0.0.1",
                None,
                &["all", "admin"],
                Some("in other letters"),
            ),
            (
                "/",
                "127.0.0.1",
                Some("other"),
                &["all", "admin"],
                Some("\"admin\", which enforces, lies"),
            ),
            (
                "/echo",
                "127.0.0.1",
                None,
                &["all", "admin", "gone"],
                Some("no enforcing route"),
            ),
            (
                "/echo",
                "127.0.0.1",
                None,
                &["all", "admin", "also"],
                Some("no enforcing route"),
            ),
            (
                "/a;b",
                "127.0.0.1",
                None,
                &["all", "admin"],
                Some("letters, digits"),
            ),
        ];
        for (prefix, host, site, shares, expected) in table {
            let routes = [
                route("all", "/", "127.0.0.1", None),
                route("admin", "/admin", "127.0.0.1", None),
                route("also", "/also", "127.0.0.1", None),
                route("echo", prefix, host, site),
            ];
            let observing = |route: &str, shares: &[&str]| Observing {
                route: route.to_owned(),
                shares_upstream_with: shares.iter().map(|it| (*it).to_owned()).collect(),
            };
            let all = [
                observing("echo", shares),
                observing("also", &["all", "admin"]),
            ];
            let told: Vec<String> = all[0]
                .problems(&all, &routes)
                .iter()
                .map(ToString::to_string)
                .collect();
            match expected {
                None => assert_eq!(told, [""; 0], "{prefix} {host}"),
                Some(words) => assert!(
                    told.iter().any(|it| it.contains(words)),
                    "{prefix} {host}: {told:?}"
                ),
            }
        }
        let lost = Observing {
            route: "gone".to_owned(),
            shares_upstream_with: Vec::new(),
        };
        assert_eq!(lost.problems(&[], &[]).len(), 1);
    }
}
