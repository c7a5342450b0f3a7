//! Several origins, and what is exempt.

use super::{GOOD, parse};

const SITE: &str = "[[edge.site]]\nname = \"pay\"\norigin = \"http://pay.example\"\n";
const ASSETS: &str = "[[edge.unguarded]]\nname = \"assets\"\npath_prefix = \"/assets\"\nupstream = \"127.0.0.1:9001\"\n";

fn with(more: &str) -> String {
    GOOD.replacen("[policy]", &format!("{more}\n[policy]"), 1)
}

#[test]
fn a_file_with_one_origin_says_what_it_said() {
    let config = parse(GOOD).unwrap();
    let sites: Vec<_> = config.edge.all_sites().collect();
    assert_eq!(sites.len(), 1);
    assert_eq!(sites[0].resource, config.edge.origin);
    assert!(config.edge.exempt.told().is_empty());
    assert!(
        config
            .edge
            .metadata_for_envoy("http://127.0.0.1:8480")
            .is_empty()
    );
}

#[test]
fn a_site_is_found_by_its_origin_and_nothing_else() {
    let text = with(&format!("{SITE}resource = \"http://pay.example/v1\"\n"));
    let edge = parse(&text).unwrap().edge;
    let resource = |origin: &str| edge.site_of(origin).map(|site| site.resource);
    assert_eq!(
        resource("http://pay.example").as_deref(),
        Some("http://pay.example/v1")
    );
    assert_eq!(
        resource("http://127.0.0.1:8400").as_deref(),
        Some("http://127.0.0.1:8400")
    );
    for other in [
        "http://pay.example:80",
        "https://pay.example",
        "http://pay.exampl",
        "http://pay.example.org",
        "",
    ] {
        assert_eq!(resource(other), None, "{other}");
    }
    // A default port is no part of an origin.
    let text = GOOD.replace(
        "origin = \"http://127.0.0.1:8400\"",
        "origin = \"http://a.example:80\"",
    );
    assert_eq!(parse(&text).unwrap().edge.origin, "http://a.example");
}

#[test]
fn a_host_that_pages_and_edge_share_is_advised_against() {
    let advised = |issuer: &str, origin: &str, more: &str| {
        let text = with(more).replace("http://127.0.0.1:8480", issuer).replace(
            "origin = \"http://127.0.0.1:8400\"",
            &format!("origin = \"{origin}\""),
        );
        parse(&text).unwrap().advice().join("\n")
    };
    let shared = advised("http://127.0.0.1:8480", "http://127.0.0.1:8400", "");
    assert!(shared.contains("`127.0.0.1`"), "{shared}");
    let shared = advised("https://writ.example", "https://writ.example:8443", "");
    assert!(shared.contains("https://writ.example:8443"), "{shared}");
    let site = SITE.replace("http://pay.example", "http://[::1]:8402");
    let shared = advised("http://[::1]:8480", "http://127.0.0.1:8400", &site);
    assert!(shared.contains("http://[::1]:8402"), "{shared}");
    let apart = advised("https://writ.example", "https://a.writ.example", SITE);
    assert_eq!(apart, "");
}

#[test]
fn what_is_wrong_with_origins_and_exemptions_is_named() {
    let site = |more: &str| format!("{SITE}{more}");
    let table: Vec<(String, &str)> = vec![
        (site("origim = 1"), "no such key"),
        (
            site("resource = \"http://pay.example/v1?x\""),
            "without a query",
        ),
        (
            site("resource = \"http://other.example\""),
            "nor a URL under it",
        ),
        (
            site("resource = \"http://pay.example/a/../b\""),
            "in normal form",
        ),
        (format!("{SITE}{SITE}"), "another site has this name"),
        (format!("{SITE}{SITE}"), "the authority is the same"),
        (
            SITE.replace("http://pay.example", "http://127.0.0.1:8400"),
            "the authority is the same",
        ),
        (
            SITE.replace("http://pay.example", "https://127.0.0.1:8400"),
            "the authority is the same",
        ),
        (
            format!(
                "{SITE}{}",
                SITE.replace("http://pay", "https://pay")
                    .replace("\"pay\"", "\"two\"")
            ),
            "the authority is the same",
        ),
        (
            format!(
                "{SITE}{}",
                SITE.replace(".example", ".example:80")
                    .replace("\"pay\"", "\"two\"")
            ),
            "the authority is the same",
        ),
        (SITE.replace("\"pay\"", "\"a b\""), "letters, digits"),
        (
            SITE.replace("pay.example", "pay..example"),
            "host or port is not valid",
        ),
        (
            format!("{ASSETS}site = \"gone\""),
            "`gone` is no [[edge.site]]",
        ),
        (
            ASSETS.replace("9001", "9000"),
            "could so be reached unguarded",
        ),
        (
            ASSETS.replace("127.0.0.1:9001", "localhost:9000"),
            "could so be reached unguarded",
        ),
        (
            format!("{ASSETS}shares_upstream_with = [\"files\"]"),
            "no guarded route with this upstream",
        ),
        (ASSETS.replace("/assets", "/"), "has this path prefix"),
        (
            ASSETS.replace("\"assets\"", "\"files\""),
            "two routes have the name",
        ),
        (ASSETS.replace("/assets", "/a;b"), "letters, digits"),
        (format!("{ASSETS}guard = false"), "no such key"),
        (
            "[[edge.probe]]\nname = \"up\"\npath = \"/up\"\nmethod = \"POST\"\n".into(),
            "GET or HEAD",
        ),
        (
            "[[edge.probe]]\nname = \"up\"\npath = \"/up*\"\n".into(),
            "a probe's path",
        ),
        (
            "[[edge.probe]]\nname = \"up\"\npath = \"/up\"\nroute = \"gone\"\n".into(),
            "is no guarded route",
        ),
        (
            "[[edge.preflight]]\nname = \"cors\"\nroute = \"gone\"\n".into(),
            "is no guarded route",
        ),
        (
            "[[edge.preflight]]\nname = \"cors\"\nroute = \"files\"\norigins = [\"*\"]\n".into(),
            "is not a web origin",
        ),
        (
            "[[edge.preflight]]\nname = \"cors\"\n".into(),
            "edge.preflight.route: this is missing",
        ),
    ];
    for (more, words) in table {
        let errors = parse(&with(&more)).err().unwrap_or_default();
        let found = errors
            .iter()
            .any(|error| error.line > 0 && error.to_string().contains(words));
        assert!(found, "no {words:?} for {more}: {errors:#?}");
    }
    let unguarded_route = GOOD.replace(
        "path_prefix = \"/\"",
        "path_prefix = \"/\"\nunguarded = true",
    );
    assert!(parse(&unguarded_route).is_err());
}

#[test]
fn all_that_is_wrong_comes_at_once() {
    let more = format!("{SITE}resource = \"x\"\n{}", ASSETS.replace("9001", "9000"));
    assert_eq!(parse(&with(&more)).unwrap_err().len(), 2);
}

#[test]
fn a_guarded_route_below_an_unguarded_one_keeps_its_upstream_to_itself() {
    // The same paths at another site, to the same upstream, and all letters' cases.
    for (prefix, good) in [
        ("/files/public", true),
        ("/other", true),
        ("/files", false),
        ("/FILES", false),
        ("/", false),
    ] {
        let text = with(&format!(
            "{SITE}{}site = \"pay\"\nshares_upstream_with = [\"files\"]\n",
            ASSETS.replace("9001", "9000").replace("/assets", prefix)
        ));
        let text = text.replacen("path_prefix = \"/\"", "path_prefix = \"/files\"", 1);
        let parsed = parse(&text);
        assert_eq!(parsed.is_ok(), good, "{prefix}: {parsed:?}");
    }
}

#[test]
fn a_route_observes_beside_one_that_enforces_by_its_name_alone() {
    let observes = |prefix: &str, port: u16, more: &str| {
        with(&format!(
            "[[edge.route]]\nname = \"echo\"\npath_prefix = \"{prefix}\"\nupstream = \"localhost:{port}\"\n{more}"
        ))
    };
    let mode = "mode = \"observe\"\n";
    let shares = format!("{mode}shares_upstream_with = [\"files\"]\n");
    for good in [
        observes("/echo", 9001, mode),
        observes("/echo", 9000, &shares),
        observes("/echo", 9000, ""),
    ] {
        parse(&good).unwrap();
    }
    let both = observes("/echo", 9000, &shares)
        .replace("path_prefix = \"/\"", "path_prefix = \"/Echo/x\"");
    for (text, words) in [
        (
            observes("/echo", 9000, mode),
            "edge.route.name: the route \"files\" enforces at this upstream",
        ),
        (
            observes("/echo", 9001, &shares),
            "no enforcing route with this upstream",
        ),
        (
            observes("/echo", 9000, &shares.replace("observe", "enforce")),
            "shares_upstream_with: a route that enforces",
        ),
        (observes("/a;b", 9000, &shares), "letters, digits"),
        (both, "in other letters it would be observed"),
    ] {
        let errors = parse(&text).err().unwrap_or_default();
        let found = errors
            .iter()
            .any(|error| error.line > 0 && error.to_string().contains(words));
        assert!(found, "no {words:?} for {text}: {errors:#?}");
    }
}

#[test]
fn metadata_is_between_host_and_path_of_the_resource() {
    let text = with(&format!(
        "{SITE}resource = \"http://pay.example/v1\"\n[edge.x]\n"
    ));
    let text = text
        .replace("[edge.x]\n", "")
        .replace("[edge]\n", "[edge]\nmetadata = true\n");
    let edge = parse(&text).unwrap().edge;
    let paths: Vec<_> = edge
        .metadata_for_envoy("http://127.0.0.1:8480")
        .into_iter()
        .map(|document| (document.site, document.path))
        .collect();
    let path = "/.well-known/oauth-protected-resource";
    assert_eq!(
        paths,
        [
            (None, path.to_owned()),
            (Some("pay".to_owned()), format!("{path}/v1"))
        ]
    );
}
