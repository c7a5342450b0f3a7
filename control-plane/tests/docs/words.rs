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

#[test]
fn every_path_is_on_its_page_and_no_other() {
    let mut served = BTreeSet::new();
    for place in [
        "control-plane/src/exchange/http.rs",
        "control-plane/src/serve/mod.rs",
        "control-plane/src/web/admin.rs",
        "control-plane/src/web/api.rs",
        "control-plane/src/web/inbox.rs",
        "control-plane/src/web/pages.rs",
    ] {
        let source = code(place);
        let paths = source
            .split(".route(\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().to_owned());
        let before = served.len();
        served.extend(paths);
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

#[test]
fn the_exchange_s_errors_are_those_of_the_code() {
    let source = read("control-plane/src/exchange/error.rs");
    let codes = source
        .split("fn code(")
        .nth(1)
        .unwrap()
        .split("fn reason(")
        .next()
        .unwrap();
    let coded: BTreeSet<&str> = codes.split('"').skip(1).step_by(2).collect();
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
