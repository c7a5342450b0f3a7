//! The further origins, and the names of routes.

use super::{BodyRule, Faults, Members};
use capability::decide::Mode;
use capability::gates::Site;
use capability::url::Origin;
use std::rc::Rc;

/// Further origins.
const SITES_MAX: usize = 64;
/// The member that says where an origin's metadata is, and how long that may be; bytes.
pub(super) const METADATA: &str = "resource_metadata";
const METADATA_MAX: usize = 512;

/// What is said of one route; the proxy does the routing.
pub struct Route {
    /// Its name.
    pub name: String,
    /// What becomes of its refusals.
    pub mode: Mode,
    /// Its upstream is shown the control plane's signed decision.
    pub decision_header: bool,
    /// Proofs have to have a nonce.
    pub nonce: bool,
    path_prefix: String,
    /// The authority of the origin that it belongs to.
    authority: String,
    /// How its bodies are read, if they are.
    pub(super) body: Option<Rc<BodyRule>>,
}

/// A further origin, and the name by which routes call it.
pub struct NamedSite {
    name: String,
    /// What the gates are told.
    pub site: Site,
    /// Where its metadata is, where that is served.
    pub metadata: Option<String>,
}

/// The route of this authority with the longest prefix of this path.
pub(super) fn find<'a>(routes: &'a [Route], authority: &str, path: &str) -> Option<&'a Route> {
    let path = path.split('?').next().unwrap_or_default();
    let matching = routes
        .iter()
        .filter(|route| route.authority == authority && covers(&route.path_prefix, path));
    matching.max_by_key(|route| route.path_prefix.len())
}

/// As the proxy's own routes match: `/files` is `/files` and `/files/…`.
fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
}

/// The further origins. No two may be one to a request, and none may take
/// another's tokens.
pub(super) fn sites(
    members: &Members<'_>,
    first: Option<&Origin>,
    resource: Option<&str>,
    faults: &mut Faults,
) -> Option<Vec<NamedSite>> {
    let mut sites: Vec<NamedSite> = Vec::new();
    let list = members.list("sites", false, faults)?;
    if list.len() > SITES_MAX {
        faults.add(format!("sites: more than {SITES_MAX}"));
    }
    for (at, site) in list.iter().enumerate().take(SITES_MAX) {
        let Some(site) = site.as_object() else {
            faults.add(format!("sites[{at}]: must be an object"));
            continue;
        };
        let label = format!("sites[{at}].");
        let site = Members::new(&label, site);
        site.only(&["name", "origin", "resource", METADATA], faults);
        let name = site.text("name", faults);
        let origin = site.text("origin", faults).and_then(|text| {
            Origin::parse(text)
                .map_err(|error| faults.add(format!("{label}origin: {error}")))
                .ok()
        });
        let aud = site
            .text("resource", faults)
            .filter(|text| faults.url("resource", text));
        let metadata = metadata(&site, faults);
        let (Some(name), Some(origin), Some(aud)) = (name, origin, aud) else {
            continue;
        };
        let earlier = || sites.iter().map(|other| &other.site);
        if sites.iter().any(|other| other.name == name) {
            faults.add(format!("{label}name: the same as an earlier one's"));
        }
        let mut origins = first.into_iter().chain(earlier().map(|it| &it.origin));
        if origins.any(|other| other.same_authority(&origin)) {
            faults.add(format!(
                "{label}origin: no request could be told from an earlier one's"
            ));
        }
        let mut resources = resource
            .into_iter()
            .chain(earlier().map(|it| it.resource.as_str()));
        if resources.any(|other| other == aud) {
            faults.add(format!("{label}resource: the same as an earlier one's"));
        }
        sites.push(NamedSite {
            name: name.to_owned(),
            site: Site {
                resource: aud.to_owned(),
                origin,
            },
            metadata,
        });
    }
    Some(sites)
}

/// The URL of an origin's metadata (RFC 9728), where it has one. It goes into a quoted
/// string as it is.
pub(super) fn metadata(members: &Members<'_>, faults: &mut Faults) -> Option<String> {
    members.map.get(METADATA)?;
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    let text = members.text_within(METADATA, METADATA_MAX, faults)?;
    if !text.bytes().all(plain) {
        faults.must_be(members.label, METADATA, "a URL in its normal form");
        return None;
    }
    faults.url(METADATA, text).then(|| text.to_owned())
}

/// What routes may name: the authorities of the origins.
pub(super) struct Authorities<'a> {
    first: &'a str,
    sites: &'a [NamedSite],
}

impl<'a> Authorities<'a> {
    pub(super) fn of(first: Option<&'a Origin>, sites: Option<&'a [NamedSite]>) -> Self {
        Self {
            first: first.map_or("", Origin::authority),
            sites: sites.unwrap_or_default(),
        }
    }

    fn find(&self, name: Option<&str>) -> Option<&'a str> {
        let Some(name) = name else {
            return Some(self.first);
        };
        let found = self.sites.iter().find(|site| site.name == name)?;
        Some(found.site.origin.authority())
    }
}

/// The guarded routes.
pub(super) fn routes(
    members: &Members<'_>,
    authorities: &Authorities<'_>,
    faults: &mut Faults,
) -> Option<Vec<Route>> {
    let mut routes = Vec::new();
    for (at, route) in members.list("routes", false, faults)?.iter().enumerate() {
        let Some(route) = route.as_object() else {
            faults.add(format!("routes[{at}]: must be an object"));
            continue;
        };
        let label = format!("routes[{at}].");
        let route = Members::new(&label, route);
        let known = [
            "name",
            "path_prefix",
            "mode",
            "decision_header",
            "nonce",
            "site",
            "body",
        ];
        route.only(&known, faults);
        let body = route.object("body", "body.", faults);
        let body = body.and_then(|body| BodyRule::read(&label, &body, faults));
        let (name, prefix) = (
            route.text("name", faults),
            route.text("path_prefix", faults),
        );
        if prefix.is_some_and(|prefix| !prefix.starts_with('/')) {
            faults.add(format!("{label}path_prefix: must begin with /"));
        }
        let named = route.map.get("site");
        let site = named.map(|_| route.text("site", faults).unwrap_or_default());
        // Whoever leaves the mode out gets the one that refuses.
        let modes = [("enforce", Mode::Enforce), ("observe", Mode::Observe)];
        let mode = route.choice("mode", &modes, faults);
        let decision_header = route.truth("decision_header", faults);
        let nonce = route.truth("nonce", faults);
        if (mode, nonce) == (Some(Mode::Observe), Some(true)) {
            faults.add(format!(
                "{label}nonce: a route that observes tells nobody a nonce"
            ));
        }
        if mode == Some(Mode::Observe) && body.is_some() {
            faults.add(format!(
                "{label}body: a route that observes reads no bodies"
            ));
        }
        let authority = authorities.find(site);
        if authority.is_none() {
            faults.add(format!("{label}site: no site has this name"));
        }
        let truths = decision_header.zip(nonce);
        if let (Some(name), Some(prefix), Some(authority), Some(mode), Some(truths)) =
            (name, prefix, authority, mode, truths)
        {
            routes.push(Route {
                name: name.to_owned(),
                mode,
                decision_header: truths.0,
                nonce: truths.1,
                path_prefix: prefix.to_owned(),
                authority: authority.to_owned(),
                body: body.map(Rc::new),
            });
        }
    }
    Some(routes)
}

#[cfg(test)]
mod tests {
    use super::{Mode, Route, covers, find};

    #[test]
    fn a_prefix_is_whole_segments() {
        for (prefix, path, inside) in [
            ("/", "/", true),
            ("/", "/x", true),
            ("/files", "/files", true),
            ("/files", "/files/x", true),
            ("/files", "/files2", false),
            ("/files/", "/files/x", true),
            ("/files/", "/files", false),
            ("/files", "/Files", false),
        ] {
            assert_eq!(covers(prefix, path), inside, "{prefix} {path}");
        }
    }

    #[test]
    fn a_route_is_of_its_authority_and_the_longest_prefix_names_it() {
        let route = |name: &str, path_prefix: &str, authority: &str| Route {
            name: name.to_owned(),
            mode: Mode::Enforce,
            decision_header: false,
            nonce: false,
            path_prefix: path_prefix.to_owned(),
            authority: authority.to_owned(),
            body: None,
        };
        let routes = [
            route("all", "/", "a.example"),
            route("files", "/files", "a.example"),
            route("pay", "/v1", "b.example"),
        ];
        for (authority, path, named) in [
            ("a.example", "/files/x?y=/v1", "files"),
            ("a.example", "/files?x", "files"),
            ("a.example", "/filesx", "all"),
            ("a.example", "/v1", "all"),
            ("b.example", "/v1/x", "pay"),
            ("b.example", "/files", ""),
            ("c.example", "/", ""),
        ] {
            let found = find(&routes, authority, path).map_or("", |route| &route.name);
            assert_eq!(found, named, "{authority} {path}");
        }
    }
}
