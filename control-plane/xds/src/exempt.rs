//! What passes without the filter: each by a name of its own, and nothing else.
//!
//! Three kinds, so that none can be had by leaving something out: routes that are
//! unguarded, health probes, CORS preflights. For exactly their Envoy routes the
//! filter is disabled; credentials never go on to an upstream there.

use std::collections::BTreeSet;

use crate::lint::place;
use crate::observing::Observing;
use crate::settings::{Route, SettingsError};

/// The most of each kind.
const MAX_EACH: usize = 32;
/// The most web origins of one preflight.
const MAX_ORIGINS: usize = 16;

/// Everything that is exempt.
#[derive(Debug, Clone, Default)]
pub struct Exempt {
    /// Routes without the filter.
    pub unguarded: Vec<Unguarded>,
    /// Health probes.
    pub probes: Vec<Probe>,
    /// CORS preflights.
    pub preflights: Vec<Preflight>,
    /// Guarded routes on which nothing is refused: all of them.
    pub observing: Vec<Observing>,
    /// Documents that Envoy itself answers with.
    pub metadata: Vec<Metadata>,
}

/// A route without the filter, to paths of plain letters alone: what upstreams
/// read in different ways does not match it.
#[derive(Debug, Clone)]
pub struct Unguarded {
    /// Where it leads.
    pub route: Route,
    /// The guarded routes whose upstream it leads to.
    pub shares_upstream_with: Vec<String>,
}

/// One method on one exact path, without a query.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Its name.
    pub name: String,
    /// `GET` or `HEAD`.
    pub method: String,
    /// The path.
    pub path: String,
    /// The guarded route whose site and upstream answer it; none: Envoy itself
    /// does, at every site.
    pub route: Option<String>,
}

/// `OPTIONS` with `Origin` and `Access-Control-Request-Method` (Fetch, section 3.2.2).
#[derive(Debug, Clone)]
pub struct Preflight {
    /// Its name.
    pub name: String,
    /// The guarded route whose preflights pass.
    pub route: String,
    /// The web origins that Envoy itself answers; none: the upstream answers all.
    pub origins: Vec<String>,
}

/// A JSON document at an exact path (RFC 9728).
#[derive(Debug, Clone)]
pub struct Metadata {
    /// The site; none is the first.
    pub site: Option<String>,
    /// The path.
    pub path: String,
    /// The document.
    pub body: String,
}

impl Exempt {
    /// Everything by which a guarded route could be reached otherwise than the
    /// names say, each with the name that it is about.
    #[must_use]
    pub fn problems(&self, routes: &[Route]) -> Vec<(String, SettingsError)> {
        let mut found = Vec::new();
        let mut add = |name: &str, error: SettingsError| found.push((name.to_owned(), error));
        let lengths = [
            self.unguarded.len(),
            self.probes.len(),
            self.preflights.len(),
        ];
        if lengths.iter().any(|length| *length > MAX_EACH) {
            let text = format!("more than {MAX_EACH} unguarded routes, probes or preflights");
            add("", SettingsError::Exempt(text));
        }
        let mut names: BTreeSet<&str> = routes.iter().map(|it| it.name.as_str()).collect();
        for name in self.names() {
            if !names.insert(name) {
                add(name, SettingsError::Duplicate(name.to_owned()));
            }
        }
        for unguarded in &self.unguarded {
            for error in unguarded.problems(routes) {
                add(&unguarded.route.name, error);
            }
        }
        for probe in &self.probes {
            for error in probe.problems(routes) {
                add(&probe.name, error);
            }
        }
        for observing in &self.observing {
            for error in observing.problems(&self.observing, routes) {
                add(&observing.route, error);
            }
        }
        let mut taken = BTreeSet::new();
        for preflight in &self.preflights {
            if !taken.insert(&preflight.route) {
                let text = format!("another preflight is for the route {:?}", preflight.route);
                add(&preflight.name, SettingsError::Exempt(text));
            }
            for error in preflight.problems(routes) {
                add(&preflight.name, error);
            }
        }
        found
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let unguarded = self.unguarded.iter().map(|it| it.route.name.as_str());
        let probes = self.probes.iter().map(|it| it.name.as_str());
        unguarded
            .chain(probes)
            .chain(self.preflights.iter().map(|it| it.name.as_str()))
    }
}

impl Unguarded {
    fn problems(&self, routes: &[Route]) -> Vec<SettingsError> {
        let own = &self.route;
        let mut found = Vec::new();
        found.extend(own.check().err());
        if !is_plain(&own.path_prefix) {
            found.push(SettingsError::Exempt(format!(
                "the path prefix {:?} of an unguarded route has letters, digits, `.`, `_`, `~`, `-` and `/` alone",
                own.path_prefix
            )));
        }
        let mut shared = BTreeSet::new();
        for route in routes {
            if own.site == route.site && same(&own.path_prefix, &route.path_prefix) {
                found.push(SettingsError::Exempt(format!(
                    "the guarded route {:?} has this path prefix",
                    route.name
                )));
            }
            if upstream(own) != upstream(route) {
                continue;
            }
            shared.insert(route.name.as_str());
            if !self.shares_upstream_with.contains(&route.name) {
                found.push(SettingsError::Exempt(format!(
                    "the guarded route {:?} has this upstream, which could so be reached unguarded; give it another, or name that route in shares_upstream_with",
                    route.name
                )));
            } else if covers(&own.path_prefix, &route.path_prefix) {
                found.push(SettingsError::Exempt(format!(
                    "every path of the guarded route {:?} lies under this prefix, at the same upstream: it would be guarded no more",
                    route.name
                )));
            }
        }
        for name in &self.shares_upstream_with {
            if !shared.contains(name.as_str()) {
                found.push(SettingsError::Exempt(format!(
                    "shares_upstream_with names {name:?}, which is no guarded route with this upstream"
                )));
            }
        }
        found
    }
}

impl Probe {
    fn problems(&self, routes: &[Route]) -> Vec<SettingsError> {
        let mut found = Vec::new();
        found.extend(crate::settings::name(&self.name).err());
        if !matches!(self.method.as_str(), "GET" | "HEAD") {
            found.push(SettingsError::Exempt(format!(
                "a probe's method is GET or HEAD, and not {:?}",
                self.method
            )));
        }
        if !is_plain(&self.path) {
            found.push(SettingsError::Exempt(format!(
                "a probe's path {:?} has letters, digits, `.`, `_`, `~`, `-` and `/` alone",
                self.path
            )));
        }
        if let Some(name) = &self.route {
            found.extend(guarded(name, routes).err());
        }
        found
    }
}

impl Preflight {
    fn problems(&self, routes: &[Route]) -> Vec<SettingsError> {
        let mut found = Vec::new();
        found.extend(crate::settings::name(&self.name).err());
        found.extend(guarded(&self.route, routes).err());
        if self.origins.len() > MAX_ORIGINS {
            let text = format!("more than {MAX_ORIGINS} origins");
            found.push(SettingsError::Exempt(text));
        }
        for origin in &self.origins {
            let rest = origin
                .strip_prefix("https://")
                .or_else(|| origin.strip_prefix("http://"));
            let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let fits = rest.is_some_and(|rest| {
                !rest.is_empty()
                    && rest.len() <= 253
                    && rest.bytes().all(|b| letter(b) || b".-:[]".contains(&b))
            });
            if !fits {
                found.push(SettingsError::Exempt(format!(
                    "`{origin}` is not a web origin like https://app.example: scheme and authority in lower case, nothing after"
                )));
            }
        }
        found
    }
}

/// The guarded route of a name.
pub(crate) fn guarded<'a>(name: &str, routes: &'a [Route]) -> Result<&'a Route, SettingsError> {
    let found = routes.iter().find(|route| route.name == name);
    found.ok_or_else(|| SettingsError::Exempt(format!("{name:?} is no guarded route")))
}

/// A path that everybody reads alike: no encoding, no empty and no dot segment.
pub(crate) fn is_plain(path: &str) -> bool {
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-/".contains(&byte);
    let segments = path.strip_prefix('/').is_some_and(|rest| {
        let parts: Vec<&str> = rest.split('/').collect();
        let (last, before) = parts.split_last().unwrap_or((&"", &[]));
        !before.iter().any(|part| part.is_empty() || is_dots(part)) && !is_dots(last)
    });
    segments && path.len() <= 253 && path.bytes().all(letters)
}

fn is_dots(segment: &str) -> bool {
    matches!(segment, "." | "..")
}

pub(crate) fn upstream(route: &Route) -> String {
    place(&route.upstream_host, &route.upstream_port.to_string())
}

/// Upstreams may know no case, nor a slash at the end.
fn same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/')
        .eq_ignore_ascii_case(other.trim_end_matches('/'))
}

pub(crate) fn covers(prefix: &str, path: &str) -> bool {
    let (prefix, path) = (prefix.to_ascii_lowercase(), path.to_ascii_lowercase());
    let rest = path.strip_prefix(prefix.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, prefix: &str, port: u16) -> Route {
        Route {
            name: name.to_owned(),
            path_prefix: prefix.to_owned(),
            upstream_host: "127.0.0.1".to_owned(),
            upstream_port: port,
            site: None,
            reads_bodies: None,
        }
    }

    fn unguarded(prefix: &str, host: &str, port: u16, shares: &[&str]) -> Unguarded {
        Unguarded {
            route: Route {
                upstream_host: host.to_owned(),
                ..route("open", prefix, port)
            },
            shares_upstream_with: shares.iter().map(|it| (*it).to_owned()).collect(),
        }
    }

    fn told(exempt: &Exempt) -> Vec<String> {
        let routes = [route("files", "/files", 9000), route("all", "/", 9001)];
        let problems = exempt.problems(&routes);
        problems
            .into_iter()
            .map(|(_, error)| error.to_string())
            .collect()
    }

    #[test]
    fn an_unguarded_route_leads_to_no_guarded_upstream_unless_it_says_so() {
        type Row<'a> = (&'a str, &'a str, u16, &'a [&'a str], Option<&'a str>);
        let table: [Row<'_>; 13] = [
            ("/open", "127.0.0.1", 9002, &[], None),
            ("/files/open", "127.0.0.1", 9002, &[], None),
            (
                "/open",
                "127.0.0.1",
                9000,
                &[],
                Some("could so be reached unguarded"),
            ),
            (
                "/open",
                "localhost",
                9000,
                &[],
                Some("could so be reached unguarded"),
            ),
            (
                "/open",
                "::1",
                9000,
                &[],
                Some("could so be reached unguarded"),
            ),
            ("/open", "127.0.0.1", 9000, &["files"], None),
            (
                "/open",
                "127.0.0.1",
                9002,
                &["files"],
                Some("is no guarded route with this upstream"),
            ),
            (
                "/open",
                "127.0.0.1",
                9000,
                &["files", "gone"],
                Some("is no guarded route"),
            ),
            (
                "/files",
                "127.0.0.1",
                9002,
                &[],
                Some("has this path prefix"),
            ),
            (
                "/FILES/",
                "127.0.0.1",
                9002,
                &[],
                Some("has this path prefix"),
            ),
            ("/Files/x", "127.0.0.1", 9000, &["files"], None),
            ("/a;b", "127.0.0.1", 9002, &[], Some("letters, digits")),
            (
                "/open/..",
                "127.0.0.1",
                9002,
                &[],
                Some("must start with a slash"),
            ),
        ];
        for (prefix, host, port, shares, expected) in table {
            let told = told(&Exempt {
                unguarded: vec![unguarded(prefix, host, port, shares)],
                ..Exempt::default()
            });
            match expected {
                None => assert_eq!(told, [""; 0], "{prefix} {host}:{port}"),
                Some(words) => assert!(
                    told.iter().any(|it| it.contains(words)),
                    "{prefix} {host}:{port}: {told:?}"
                ),
            }
        }
        // All of the guarded ones, at their own upstream, on another host or not.
        let mut all = unguarded("/", "127.0.0.1", 9000, &["files"]);
        all.route.site = Some("other".to_owned());
        let told = told(&Exempt {
            unguarded: vec![all],
            ..Exempt::default()
        });
        assert!(
            told.iter().any(|it| it.contains("guarded no more")),
            "{told:?}"
        );
    }

    #[test]
    fn probes_and_preflights_are_narrow_and_name_what_is_there() {
        let probe = |method: &str, path: &str, route: Option<&str>| Exempt {
            probes: vec![Probe {
                name: "health".to_owned(),
                method: method.to_owned(),
                path: path.to_owned(),
                route: route.map(str::to_owned),
            }],
            ..Exempt::default()
        };
        let preflight = |route: &str, origin: &str| Exempt {
            preflights: vec![Preflight {
                name: "cors".to_owned(),
                route: route.to_owned(),
                origins: vec![origin.to_owned()],
            }],
            ..Exempt::default()
        };
        for good in [
            probe("GET", "/healthz", None),
            probe("HEAD", "/files/up", Some("files")),
            preflight("files", "https://app.example"),
            preflight("files", "http://[::1]:3000"),
        ] {
            assert_eq!(told(&good), [""; 0], "{good:?}");
        }
        for bad in [
            probe("POST", "/healthz", None),
            probe("get", "/healthz", None),
            probe("GET", "healthz", None),
            probe("GET", "/healthz?x", None),
            probe("GET", "/%68ealthz", None),
            probe("GET", "/a//b", None),
            probe("GET", "/healthz", Some("gone")),
            preflight("gone", "https://app.example"),
            preflight("files", "*"),
            preflight("files", "null"),
            preflight("files", "https://app.example/"),
            preflight("files", "https://%REQ(x)%"),
        ] {
            assert_eq!(told(&bad).len(), 1, "{bad:?}: {:?}", told(&bad));
        }
        let mut twice = probe("GET", "/healthz", None);
        twice.preflights = preflight("files", "https://a.example").preflights;
        twice.preflights.push(Preflight {
            name: "health".to_owned(),
            ..preflight("files", "https://a.example").preflights.remove(0)
        });
        assert_eq!(told(&twice).len(), 2, "{:?}", told(&twice));
    }
}
