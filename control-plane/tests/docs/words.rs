//! Reasons, routes and policy in the book against the code.

use super::book::{code, fenced, pages, quoted, read, rows};
use capability::reason::Reason;
use policy::{Approver, FactKind, Policies, Source};
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn every_reason_is_on_its_page_with_its_status_and_no_other() {
    let rows = rows(
        &read("docs/reference/reasons.md"),
        &["reason", "status", "when", "what to do"],
    );
    let mut listed = Vec::new();
    for row in rows {
        let word = quoted(&row[0])[0];
        let reason = Reason::parse(word).unwrap_or_else(|| panic!("`{word}` is no reason"));
        assert_eq!(row[1], reason.status().to_string(), "{word}");
        assert!(!row[2].is_empty(), "{word} has no when");
        assert!(
            !row[3].is_empty() || row[2].to_lowercase().contains("not given yet"),
            "{word} has no what to do"
        );
        listed.push(reason);
    }
    assert_eq!(listed, Reason::ALL, "all of them, in their order");
}

/// Files that say which paths are served.
const ROUTES: [&str; 10] = [
    "control-plane/src/exchange/authzen/http.rs",
    "control-plane/src/exchange/http.rs",
    "control-plane/src/exchange/tokens/http.rs",
    "control-plane/src/serve/mod.rs",
    "control-plane/src/web/api.rs",
    "control-plane/src/web/rights.rs",
    "control-plane/src/web/admin.rs",
    "control-plane/src/web/agents.rs",
    "control-plane/src/web/inbox.rs",
    "control-plane/src/web/pages.rs",
];

/// What stands between `before` and the next quote, each time.
fn quoted_after(source: &str, before: &str) -> BTreeSet<String> {
    let rest = source.split(before).skip(1);
    rest.map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect()
}

#[test]
fn every_path_is_on_its_page_and_no_other() {
    let mut served = BTreeSet::new();
    for place in ROUTES {
        let source = code(place);
        let before = served.len();
        served.extend(quoted_after(&source, ".route(\""));
        served.extend(quoted_after(&source, ", path = \""));
        assert!(served.len() > before, "no new path in {place}");
    }
    let rows = rows(
        &read("docs/reference/http.md"),
        &["path", "method", "who", "what"],
    );
    let listed: BTreeSet<String> = rows
        .iter()
        .map(|row| quoted(&row[0])[0].to_owned())
        .collect();
    assert_eq!(rows.len(), listed.len(), "a path is there twice");
    assert_eq!(listed, served);
}

/// What programs use is in the OpenAPI document, with the page's methods, and nothing is
/// served that brings no part of it.
#[test]
fn the_openapi_document_has_what_is_served_and_no_other() {
    let document = control_plane::openapi::document("https://writ.example");
    let document = serde_json::to_value(&document).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let described = paths.iter().map(|(path, methods)| {
        let methods = methods.as_object().unwrap().keys();
        let methods: BTreeSet<String> = methods.map(|it| it.to_uppercase()).collect();
        (path.clone(), methods)
    });
    let described: BTreeMap<String, BTreeSet<String>> = described.collect();
    let rows = rows(
        &read("docs/reference/http.md"),
        &["path", "method", "who", "what"],
    );
    let for_programs = |path: &str| {
        ["/api/", "/oauth2/", "/access/", "/.well-known/"]
            .iter()
            .any(|prefix| path.starts_with(prefix))
    };
    let listed = rows.iter().filter(|row| row[2] != "the admin socket");
    let listed = listed.map(|row| {
        let methods = row[1].split(", ").map(str::to_owned).collect();
        (quoted(&row[0])[0].to_owned(), methods)
    });
    let listed: BTreeMap<String, BTreeSet<String>> =
        listed.filter(|(path, _)| for_programs(path)).collect();
    assert_eq!(listed, described);
    for place in ROUTES {
        // That socket tells part of the same to whoever has a uid.
        if place.ends_with("/admin.rs") {
            continue;
        }
        let bare = quoted_after(&code(place), ".route(\"");
        let bare: Vec<_> = bare.iter().filter(|path| for_programs(path)).collect();
        assert!(bare.is_empty(), "{place}: {bare:?}");
    }
}

#[test]
fn the_exchange_s_errors_are_those_of_the_code() {
    // In each the function with the codes, to the next one's documentation.
    let sources = ["error.rs", "tokens/error.rs"].map(|file| {
        let source = code(&format!("control-plane/src/exchange/{file}"));
        let codes = source.split("fn code(").nth(1).unwrap();
        codes.split("\n    }\n").next().unwrap().to_owned()
    });
    let codes = sources
        .iter()
        .flat_map(|it| it.split('"').skip(1).step_by(2));
    let coded: BTreeSet<&str> = codes.collect();
    let rows = rows(
        &read("docs/reference/http.md"),
        &["status", "`error`", "`reason`", "why"],
    );
    let listed: BTreeSet<&str> = rows.iter().map(|row| quoted(&row[1])[0]).collect();
    assert_eq!(listed, coded);
    for reason in rows.iter().flat_map(|row| quoted(&row[2])) {
        assert!(
            reason.ends_with('…') || Reason::parse(reason).is_some(),
            "`{reason}` is no reason"
        );
    }
}

#[test]
fn the_schema_is_the_one_that_policies_are_checked_against() {
    let blocks = fenced(&read("docs/policy.md"), "cedarschema");
    assert_eq!(blocks.len(), 1);
    assert_eq!(blocks[0].trim(), policy::SCHEMA.trim());
}

#[test]
fn every_policy_in_the_book_loads() {
    let approvers = [Approver {
        name: "operator".into(),
        groups: vec!["platform".into()],
    }];
    // What the page on policy has its routes name.
    let facts = BTreeMap::from([
        ("/amount".to_owned(), FactKind::Integer),
        ("/to".to_owned(), FactKind::Text),
    ]);
    let mut seen = 0;
    for page in pages() {
        for text in fenced(&read(&page), "cedar") {
            seen += 1;
            let source = Source {
                name: page.clone(),
                text,
            };
            Policies::load_with(std::slice::from_ref(&source), &approvers, &facts)
                .unwrap_or_else(|errors| panic!("{errors:?}\n{}", source.text));
        }
    }
    assert!(seen >= 4, "only {seen} policies");
}
