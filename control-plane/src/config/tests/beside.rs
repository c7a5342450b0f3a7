//! Several `[edge]` at a time.

use super::*;

const OWN: &str = r#"
[edge]
listen = "127.0.0.1:8400"
origin = "http://127.0.0.1:8400"
hold_s = 7

[[edge.route]]
name = "files"
path_prefix = "/"
upstream = "127.0.0.1:9000"
"#;

/// The good file, with a group that is pinned to this.
fn pinned(own: &str, more: &str) -> Result<Config, Vec<ConfigError>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.toml");
    std::fs::write(&path, own).unwrap();
    let group = format!(
        "[[edge.group]]\nname = \"a\"\nproxies = [\"spiffe://writ.example/proxy\"]\nconfig = \"{}\"\n{more}\n",
        path.display()
    );
    parse(&GOOD.replace("[policy]", &format!("{group}[policy]")))
}

#[test]
fn a_group_has_an_edge_of_its_own() {
    let config = pinned(OWN, "").unwrap();
    let holds: Vec<u64> = config.edges().map(|edge| edge.hold_s).collect();
    assert_eq!(holds, [25, 7]);
}

#[test]
fn what_is_wrong_with_a_groups_own_is_said_with_its_file_and_line() {
    let table = [
        ("hold_s = 7", "hold_s = 99", "99 is out of bounds"),
        ("hold_s = 7", "holds = 7", "holds: no such key"),
        (
            "hold_s = 7",
            "module = \"/usr/lib/writ/filter.wasm\"",
            "module: no such key",
        ),
        ("hold_s = 7", "[edge.rollout]", "rollout: no such key"),
        (
            "[edge]",
            "[limits]\nheld_total = 1\n[edge]",
            "limits: a group has an [edge] of its own and nothing else",
        ),
        (
            "http://127.0.0.1:8400",
            "http://localhost:8400",
            "have to be the same for all proxies",
        ),
        (
            "hold_s = 7",
            "[[edge.site]]\nname = \"b\"\norigin = \"http://b.example\"",
            "have to be the same for all proxies",
        ),
    ];
    for (from, to, wanted) in table {
        let text = OWN.replacen(from, to, 1);
        assert_ne!(text, OWN, "the case changes nothing: {from}");
        let errors = pinned(&text, "").map(|_| ()).unwrap_err();
        let said = said(&errors, wanted);
        assert!(said.line > 0, "{said}");
    }
    let errors = pinned("", "").map(|_| ()).unwrap_err();
    assert!(
        errors[0].message.contains("the table [edge] is missing"),
        "{errors:?}"
    );
    let errors = pinned(OWN, "[edge.rollout]\nfirst = [\"a\"]\nwatch_s = 10").unwrap_err();
    assert!(
        errors[0].message.contains("a pinned one tries nothing"),
        "{errors:?}"
    );
    let missing = GOOD.replace(
        "[policy]",
        "[[edge.group]]\nname = \"a\"\nproxies = [\"spiffe://writ.example/proxy\"]\nconfig = \"/nowhere/own.toml\"\n[policy]",
    );
    let errors = parse(&missing).unwrap_err();
    assert!(
        errors[0]
            .to_string()
            .contains("/nowhere/own.toml: can't read a group's [edge]"),
        "{errors:?}"
    );
}

fn with(more: &str) -> Edge {
    let text = GOOD.replace("[[edge.route]]", &format!("{more}\n[[edge.route]]"));
    (*parse(&text).unwrap().edge).clone()
}

const BODY: &str = "[[edge.route]]\nname = \"pay\"\npath_prefix = \"/pay\"\nupstream = \"127.0.0.1:9001\"\nbody = \"read\"\nbody_facts = { \"/amount\" = \"long\" }";
const UNGUARDED: &str = "[[edge.unguarded]]\nname = \"assets\"\npath_prefix = \"/assets\"\nupstream = \"127.0.0.1:9002\"";
const OBSERVED: &str = "[[edge.route]]\nname = \"old\"\npath_prefix = \"/old\"\nupstream = \"127.0.0.1:9003\"\nmode = \"observe\"";

#[test]
fn what_is_kept_is_read_again_and_has_a_version_of_its_own() {
    let table = ["", "hold_s = 8", BODY, UNGUARDED, OBSERVED];
    let mut versions = BTreeSet::new();
    for more in table {
        let edge = with(more);
        let kept = Edge::of_kept(&edge.to_keep()).unwrap();
        assert_eq!(kept.version(), edge.version());
        assert_eq!(kept.routes, edge.routes);
        assert_eq!(kept.exempt, edge.exempt);
        assert!(versions.insert(edge.version()), "{more}");
    }
    let grouped = with("[[edge.group]]\nname = \"a\"\nproxies = [\"spiffe://writ.example/proxy\"]");
    assert!(
        versions.contains(&grouped.version()),
        "who gets it is no part of it"
    );
    assert!(Edge::of_kept("{}").is_none() && Edge::of_kept("").is_none());
}

#[test]
fn what_tokens_and_policies_rest_on_is_the_same_for_all() {
    let table = [
        ("", true),
        ("hold_s = 8", true),
        (UNGUARDED, true),
        ("resource = \"http://127.0.0.1:8400/files\"", false),
    ];
    for (more, fits) in table {
        assert_eq!(with(more).apart_from(&with("")).is_none(), fits, "{more}");
    }
    // What is read of bodies, path by path: `/pay`, of no site.
    let body = |from: &str, to: &str| with(&BODY.replace(from, to));
    let table = [
        (body("", ""), true),
        (
            body(
                "upstream = \"127.0.0.1:9001\"",
                "upstream = \"127.0.0.1:9009\"",
            ),
            true,
        ),
        (
            body("body = \"read\"", "body = \"read\"\nbody_limit = 7"),
            true,
        ),
        (body("\"long\"", "\"string\""), false),
        (body("/amount", "/to"), false),
        (body("{ \"/amount\" = \"long\" }", "{}"), false),
        (body("\"/pay\"", "\"/pays\""), false),
        (with(""), false),
        // A route that reads nothing, below the one that does.
        (
            with(&format!(
                "{BODY}\n[[edge.route]]\nname = \"list\"\npath_prefix = \"/pay/list\"\nupstream = \"127.0.0.1:9001\""
            )),
            false,
        ),
    ];
    for (at, (other, fits)) in table.iter().enumerate() {
        let own = with(BODY);
        assert_eq!(own.apart_from(other).is_none(), *fits, "{at}");
        assert_eq!(other.apart_from(&own).is_none(), *fits, "{at}");
    }
}

#[test]
fn nobody_goes_back_to_what_is_open() {
    let table = [
        // before, after, whether the one before may let more through
        ("", "", false),
        ("", BODY, false),
        ("", UNGUARDED, false),
        ("", OBSERVED, false),
        (UNGUARDED, "", true),
        (OBSERVED, "", true),
        (UNGUARDED, UNGUARDED, false),
        (OBSERVED, OBSERVED, false),
        // A route that is new may lie below one that is open.
        (UNGUARDED, &format!("{BODY}\n{UNGUARDED}"), true),
        (BODY, "", false),
    ];
    for (before, after, wanted) in table {
        let more = with(before).lets_more_through_than(&with(after));
        assert_eq!(more, wanted, "from {before:?} to {after:?}");
    }
}

#[test]
fn a_proxy_has_what_its_filters_say_as_far_as_it_may() {
    use crate::edges::{Edges, Served, name_of};
    const PROXY: &str = "spiffe://writ.example/proxy";
    let config = pinned(OWN, "").unwrap();
    let begun = Served::new(std::sync::Arc::new(with("hold_s = 8")));
    let edges = Edges::new(&config, begun.clone());
    let pinned = edges.pinned("a").unwrap().clone();
    let said = |served: &Served| format!("0.1.0+{}", name_of(&"ab".repeat(32), served));
    let hold = |proxy: &str, said: &str| edges.of(proxy, said).hold_s;
    let file = edges.file().clone();
    for (proxy, name, wanted) in [
        (PROXY, said(&file), 25),
        (PROXY, said(&begun), 8),
        (PROXY, said(&pinned), 7),
        // Another identity's, a version that nobody has, and words that are none.
        ("spiffe://writ.example/other", said(&pinned), 8),
        (PROXY, "0.1.0+abababababab.000000000000".to_owned(), 8),
        (PROXY, "0.1.0+abababababab".to_owned(), 8),
        (PROXY, String::new(), 8),
    ] {
        assert_eq!(hold(proxy, &name), wanted, "{proxy} {name}");
    }
    edges.set_for_all(true);
    assert_eq!(hold(PROXY, ""), 25, "what all have");
    assert_eq!(hold(PROXY, &said(&begun)), 8, "who has not heard yet");
    assert_eq!(edges.hold_max_s(), 25);
}

#[test]
fn the_canary_tries_what_all_enforce_and_knows_what_it_leaves_out() {
    use crate::edges::{Edges, Served};
    let more =
        "[[edge.route]]\nname = \"new\"\npath_prefix = \"/new\"\nupstream = \"127.0.0.1:9000\"\n";
    let names = |own: &str| {
        let config = pinned(own, more).unwrap();
        let edges = Edges::new(&config, Served::new(config.edge.clone()));
        let (tried, left_out) = edges.enforced();
        let names = |routes: Vec<Route>| {
            let names = routes.into_iter().map(|it| it.name);
            names.collect::<Vec<_>>().join(" ")
        };
        (names(tried), names(left_out))
    };
    let both = ("files new".to_owned(), String::new());
    assert_eq!(names(&format!("{OWN}\n{more}")), both);
    let one = ("files".to_owned(), "new".to_owned());
    assert_eq!(names(OWN), one, "a group has no such route");
    let observed = more.replace("9000\"", "9001\"\nmode = \"observe\"");
    assert_eq!(
        names(&format!("{OWN}\n{observed}")),
        one,
        "a group only observes it"
    );
}
