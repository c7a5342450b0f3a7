//! Every relative link leads somewhere.

use super::book::{pages, read, root};
use std::path::Path;

/// The links' targets, fenced blocks left out.
fn targets(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if !inside {
            found.extend(
                line.split("](")
                    .skip(1)
                    .filter_map(|rest| rest.split(')').next())
                    .map(str::to_owned),
            );
        }
    }
    found
}

/// A heading's anchor, as forges make it.
fn anchor(heading: &str) -> String {
    let kept = heading
        .trim()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let mut problems = Vec::new();
    let mut seen = 0;
    for page in pages() {
        for target in targets(&read(&page)) {
            if target.contains("://") {
                continue;
            }
            seen += 1;
            let (file, heading) = target.split_once('#').unwrap_or((&target, ""));
            let path = match file {
                "" => root().join(&page),
                _ => root()
                    .join(&page)
                    .parent()
                    .unwrap_or(Path::new("."))
                    .join(file),
            };
            if !path.exists() {
                problems.push(format!("{page}: {target} is not there"));
                continue;
            }
            if heading.is_empty() {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let mut headings = text
                .lines()
                .filter(|line| line.starts_with('#'))
                .map(|line| anchor(line.trim_start_matches('#')));
            if !headings.any(|found| found == heading) {
                problems.push(format!("{page}: {target} has no such heading"));
            }
        }
    }
    assert!(seen > 40, "only {seen} links were found");
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}
