//! docs/reference/edge-check.md against the rules.

use std::collections::BTreeSet;

use capability::headers::{CREDENTIALS, OURS, REINTERPRETING};

use super::book::{quoted, read, rows};
use xds::lint::Rule;

#[test]
fn every_rule_is_on_the_page_and_no_other() {
    let rows = rows(
        &read("docs/reference/edge-check.md"),
        &["rule", "what it means", "what is looked at"],
    );
    let listed: Vec<&str> = rows.iter().map(|row| quoted(&row[0])[0]).collect();
    let coded: Vec<&str> = Rule::ALL.iter().map(|rule| rule.as_str()).collect();
    assert_eq!(listed, coded);
}

#[test]
fn every_header_that_no_upstream_gets_is_on_the_page_and_no_other() {
    let page = read("docs/reference/filter-config.md");
    let section = page
        .split("## Headers that no upstream gets")
        .nth(1)
        .unwrap();
    let line = section.trim().lines().next().unwrap();
    let told: BTreeSet<&str> = quoted(line).into_iter().collect();
    let all = OURS.iter().chain(&CREDENTIALS).chain(&REINTERPRETING);
    let mut coded: BTreeSet<&str> = all.copied().collect();
    coded.extend(["request_headers_to_remove", "enable_trailers"]);
    coded.insert("early_header_mutation_extensions");
    assert_eq!(told, coded);
}
