//! What is taken from an agent, what is passed on of it, and to where.

use super::problem::Problem;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Uri, request::Parts};
use reqwest::Url;
use std::net::SocketAddr;

/// Headers that are between two neighbours (RFC 9110, section 7.6.1), or that
/// the sidecar makes itself.
const DROPPED: [&str; 14] = [
    "authorization",
    "connection",
    "content-length",
    "dpop",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Beginnings of headers that a proxy says of a request, never an agent.
const DROPPED_PREFIXES: [&str; 3] = ["x-writ-", "x-envoy-", "x-forwarded-"];
/// Of an answer.
const DROPPED_BACK: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// A target's name is at most this long, in bytes.
const NAME_MAX: usize = 64;

/// One guarded origin, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Requests for it begin with `/NAME`; without a name, all others are for it.
    pub name: Option<String>,
    /// Its URL, without a slash at the end.
    base: String,
}

impl std::str::FromStr for Target {
    type Err = String;

    /// `https://origin[/base]` or `NAME=https://origin[/base]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let named = text
            .split_once('=')
            .filter(|(name, _)| !name.contains([':', '/']));
        let (name, text) = match named {
            Some((name, url)) => (Some(name), url),
            None => (None, text),
        };
        if let Some(name) = name {
            let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(good) {
                return Err(format!(
                    "`{name}` is no name: use letters, digits, `-` and `_`, {NAME_MAX} at most"
                ));
            }
        }
        let url = Url::parse(text).map_err(|error| format!("`{text}` is no URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("`{text}` is neither http nor https"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a target has no user and no password".into());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!("`{text}` has a query or a fragment"));
        }
        let base = url.as_str().trim_end_matches('/').to_owned();
        if base != text.trim_end_matches('/') {
            return Err(format!("`{text}` is not in its normal form: write {base}"));
        }
        Ok(Self {
            name: name.map(ToOwned::to_owned),
            base,
        })
    }
}

/// The URL that a request is for.
///
/// # Errors
/// When no target has the path, or when a URL's reader would change it: then the
/// token would be for something else than what was asked.
pub fn url_for(targets: &[Target], uri: &Uri) -> Result<String, Problem> {
    let wanted = uri.path_and_query().map_or("/", |it| it.as_str());
    if !wanted.starts_with('/') {
        return Err(Problem::request("the path has to begin with a slash"));
    }
    let under = |target: &Target| {
        let name = target.name.as_ref()?;
        let rest = wanted.strip_prefix('/')?.strip_prefix(name.as_str())?;
        let ends = rest.is_empty() || rest.starts_with(['/', '?']);
        ends.then(|| (target.base.clone(), rest.to_owned()))
    };
    let named = targets.iter().find_map(under);
    let rest_of = || {
        let target = targets.iter().find(|target| target.name.is_none())?;
        Some((target.base.clone(), wanted.to_owned()))
    };
    let (base, rest) = named.or_else(rest_of).ok_or_else(Problem::no_target)?;
    let slash = if rest.starts_with('/') { "" } else { "/" };
    let url = format!("{base}{slash}{rest}");
    match Url::parse(&url) {
        Ok(read) if read.as_str() == url => Ok(url),
        _ => Err(Problem::request("the URL is not in its normal form")),
    }
}

/// The names under which the sidecar is called.
#[derive(Clone, Debug)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// The listener's own, and those that were given.
    pub fn new(listener: SocketAddr, given: &[String]) -> Self {
        let port = listener.port();
        let own = ["127.0.0.1", "localhost", "[::1]"].map(|host| format!("{host}:{port}"));
        let given = given.iter().map(|host| host.to_ascii_lowercase());
        Self(own.into_iter().chain(given).collect())
    }

    fn has(&self, authority: &str) -> bool {
        self.0.contains(&authority.to_ascii_lowercase())
    }

    /// Whether the request was meant for this listener. A page in a browser that
    /// had its own name resolved to this machine says that name here.
    ///
    /// # Errors
    /// When it names another host, or none, or two.
    pub fn check(&self, parts: &Parts) -> Result<(), Problem> {
        let mut hosts = parts.headers.get_all(header::HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok());
        match (host, hosts.next()) {
            (Some(host), None) if self.has(host) => {}
            _ => return Err(Problem::host("the Host header has to be the sidecar's own")),
        }
        if let Some(authority) = parts.uri.authority()
            && (!self.has(authority.as_str()) || parts.uri.scheme_str() != Some("http"))
        {
            return Err(Problem::host("the request is for another host"));
        }
        for origin in parts.headers.get_all(header::ORIGIN) {
            let own = origin
                .to_str()
                .ok()
                .and_then(|it| it.strip_prefix("http://"));
            if !own.is_some_and(|host| self.has(host)) {
                return Err(Problem::host("a page of another origin sent this"));
            }
        }
        Ok(())
    }
}

/// Whether the request is one that can be passed on at all, whoever sent it.
///
/// # Errors
/// When a browser says that it is another site's, and on CONNECT and upgrades.
pub fn check_kind(parts: &Parts) -> Result<(), Problem> {
    for site in parts.headers.get_all("sec-fetch-site") {
        if !matches!(site.as_bytes(), b"none" | b"same-origin") {
            return Err(Problem::host("a page of another site sent this"));
        }
    }
    if parts.method == Method::CONNECT {
        return Err(Problem::request("CONNECT is not passed on"));
    }
    // That HTTP/2 is offered may be ignored (RFC 9110, section 7.8), and some
    // clients offer it always.
    let offers = parts.headers.get_all(header::UPGRADE).iter();
    if offers
        .into_iter()
        .any(|offer| !offer.as_bytes().eq_ignore_ascii_case(b"h2c"))
    {
        return Err(Problem::request("an upgrade is not passed on"));
    }
    Ok(())
}

/// The headers that go on: nothing that speaks of who asks or of the way here.
pub fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let named = named_by_connection(headers);
    kept(headers, |name| {
        let text = name.as_str();
        !DROPPED.contains(&text)
            && !DROPPED_PREFIXES
                .iter()
                .any(|prefix| text.starts_with(prefix))
            && !named.iter().any(|other| other == text)
            && text != "http2-settings"
    })
}

/// The headers of an answer that go back.
pub fn returned(headers: &HeaderMap) -> HeaderMap {
    let named = named_by_connection(headers);
    kept(headers, |name| {
        !DROPPED_BACK.contains(&name.as_str()) && !named.iter().any(|it| it == name.as_str())
    })
}

fn kept(headers: &HeaderMap, keep: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let pairs = headers.iter().filter(|(name, _)| keep(name));
    let mut kept = HeaderMap::new();
    for (name, value) in pairs {
        kept.append(name.clone(), value.clone());
    }
    kept
}

fn named_by_connection(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::CONNECTION).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    let names = texts.flat_map(|text| text.split(','));
    names.map(|name| name.trim().to_ascii_lowercase()).collect()
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
