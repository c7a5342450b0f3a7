//! Routes that the filter is disabled for.

use std::collections::HashMap;

use capability::headers::{CREDENTIALS, REASON, REINTERPRETING};
use envoy_types::{
    pb::{
        envoy::{
            config::{
                core::v3::{
                    DataSource, HeaderValue, HeaderValueOption, data_source,
                    header_value_option::HeaderAppendAction,
                },
                route::v3::{
                    DirectResponseAction, FilterConfig, HeaderMatcher, Route as EnvoyRoute,
                    RouteMatch, header_matcher::HeaderMatchSpecifier, route,
                    route_match::PathSpecifier,
                },
            },
            r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
        },
        google::protobuf::Any,
    },
    util::pack_any,
};

use super::forward;
use crate::{Exempt, FILTER_NAME, Route, Settings};

/// Letters of a path that everybody reads alike: no encoding, no `;`, no `\`.
const PLAIN: &str = "[A-Za-z0-9._~!$&'()+,=:@/-]*";
/// What a browser may send to a guarded route.
const ALLOWED_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE";
const ALLOWED_HEADERS: &str = "authorization, dpop, content-type";
/// How long a browser keeps an answer to a preflight, in seconds.
const PREFLIGHT_AGE_S: &str = "600";

/// A route under this name that the filter is disabled for.
fn exempt_route(name: &str, matches: RouteMatch, action: route::Action) -> EnvoyRoute {
    EnvoyRoute {
        name: name.to_owned(),
        r#match: Some(matches),
        action: Some(action),
        typed_per_filter_config: disabled(),
        request_headers_to_remove: removed(),
        // No upstream says what only the filter says.
        response_headers_to_remove: vec![REASON.to_owned()],
        ..Default::default()
    }
}

/// What no upstream of an exempt route gets: tokens, proofs, and all that makes
/// another request of the one that is exempt. The filter, which is off, takes the
/// same off elsewhere.
fn removed() -> Vec<String> {
    let all = CREDENTIALS.iter().chain(&REINTERPRETING);
    all.map(|name| (*name).to_owned()).collect()
}

fn disabled() -> HashMap<String, Any> {
    let off = FilterConfig {
        disabled: true,
        ..Default::default()
    };
    // One key: a map's order would make the version differ.
    HashMap::from([(FILTER_NAME.to_owned(), pack_any(off))])
}

pub(super) fn unguarded(route: &Route) -> EnvoyRoute {
    let matches = RouteMatch {
        path_specifier: Some(plain_paths(&route.path_prefix)),
        ..Default::default()
    };
    exempt_route(&route.name, matches, forward(route))
}

/// Probes, those that Envoy answers at every site among them.
pub(super) fn probes(settings: &Settings, site: Option<&str>) -> Vec<EnvoyRoute> {
    let mut routes = Vec::new();
    for probe in &settings.exempt.probes {
        let action = match &probe.route {
            None => answer(200, "ok\n"),
            Some(name) => {
                let mut guarded = settings.routes.iter();
                let found = guarded.find(|it| it.name == *name && it.site.as_deref() == site);
                let Some(route) = found else { continue };
                forward(route)
            }
        };
        let matches = RouteMatch {
            path_specifier: Some(PathSpecifier::Path(probe.path.clone())),
            // With the whole `:path` there is no query either.
            headers: vec![
                exactly(":method", &probe.method),
                exactly(":path", &probe.path),
            ],
            ..Default::default()
        };
        routes.push(exempt_route(&probe.name, matches, action));
    }
    routes
}

/// The preflights of one guarded route.
pub(super) fn preflights(exempt: &Exempt, route: &Route) -> Vec<EnvoyRoute> {
    let Some(preflight) = exempt.preflights.iter().find(|it| it.route == route.name) else {
        return Vec::new();
    };
    let matches = |origin: HeaderMatcher| RouteMatch {
        path_specifier: Some(plain_paths(&route.path_prefix)),
        headers: vec![
            exactly(":method", "OPTIONS"),
            origin,
            present("access-control-request-method"),
        ],
        ..Default::default()
    };
    if preflight.origins.is_empty() {
        let passed = exempt_route(&preflight.name, matches(present("origin")), forward(route));
        return vec![passed];
    }
    let answered = preflight.origins.iter().map(|origin| EnvoyRoute {
        response_headers_to_add: vec![
            header("access-control-allow-origin", origin),
            header("access-control-allow-methods", ALLOWED_METHODS),
            header("access-control-allow-headers", ALLOWED_HEADERS),
            header("access-control-max-age", PREFLIGHT_AGE_S),
            header("vary", "Origin"),
        ],
        ..exempt_route(
            &preflight.name,
            matches(exactly("origin", origin)),
            answer(204, ""),
        )
    });
    answered.collect()
}

/// Documents that Envoy answers with.
pub(super) fn documents(exempt: &Exempt, site: Option<&str>) -> Vec<EnvoyRoute> {
    let own = exempt.metadata.iter();
    let own = own.filter(|document| document.site.as_deref() == site);
    own.map(|document| {
        let matches = RouteMatch {
            path_specifier: Some(PathSpecifier::Path(document.path.clone())),
            headers: vec![exactly(":method", "GET")],
            ..Default::default()
        };
        EnvoyRoute {
            response_headers_to_add: vec![header("content-type", "application/json")],
            ..exempt_route("writ.metadata", matches, answer(200, &document.body))
        }
    })
    .collect()
}

/// Paths of plain letters under a prefix, which itself has no others than `.`
/// that mean something to a regular expression.
pub(super) fn plain_paths(prefix: &str) -> PathSpecifier {
    let quoted: String = prefix
        .chars()
        .flat_map(|c| {
            let plain = c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-' | '~');
            [Some('\\').filter(|_| !plain), Some(c)]
        })
        .flatten()
        .collect();
    let regex = if prefix.ends_with('/') {
        format!("{quoted}{PLAIN}")
    } else {
        format!("{quoted}(?:/{PLAIN})?")
    };
    PathSpecifier::SafeRegex(RegexMatcher {
        regex,
        ..Default::default()
    })
}

fn exactly(name: &str, value: &str) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(value.to_owned())),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn present(name: &str) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..Default::default()
    }
}

fn answer(status: u32, body: &str) -> route::Action {
    route::Action::DirectResponse(DirectResponseAction {
        status,
        body: (!body.is_empty()).then(|| DataSource {
            specifier: Some(data_source::Specifier::InlineString(body.to_owned())),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn header(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_quoted() {
        let regex = |prefix: &str| match plain_paths(prefix) {
            PathSpecifier::SafeRegex(matcher) => matcher.regex,
            other => format!("{other:?}"),
        };
        assert_eq!(regex("/"), format!("/{PLAIN}"));
        assert_eq!(regex("/a.b/(c)"), format!("/a\\.b/\\(c\\)(?:/{PLAIN})?"));
    }
}
