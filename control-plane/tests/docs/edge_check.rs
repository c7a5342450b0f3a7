//! docs/reference/edge-check.md against the rules.

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
