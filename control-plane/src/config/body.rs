//! What `[[edge.route]]` says of bodies.

use super::reader::Table;
use super::types::{BodyRead, Edge, Route};
use capability::body::{POINTERS_MAX, is_pointer};
use capability::rpc::Protocol;
use policy::FactKind;
use std::collections::BTreeMap;

/// The longest body that is read, in bytes: without `body_limit`, and at most.
const LIMIT: u64 = 64 * 1024;
const LIMIT_MAX: u64 = 1024 * 1024;
/// The kinds of facts, as the file has them.
const KINDS: [(&str, FactKind); 3] = [
    ("string", FactKind::Text),
    ("long", FactKind::Integer),
    ("bool", FactKind::Flag),
];

impl Edge {
    /// The types of `authorization_details` elements that tokens for this site may have;
    /// for any, without one. Messages are for routes that read bodies alone.
    #[must_use]
    pub fn details_types(&self, site: Option<&str>) -> Vec<&'static str> {
        let here = |route: &&Route| {
            site.is_none_or(|site| route.site.as_deref().unwrap_or_default() == site)
        };
        let reads = self.routes.iter().filter(here).any(|it| it.body.is_some());
        let messages = Protocol::ALL.map(Protocol::kind);
        let messages = messages.into_iter().filter(|_| reads);
        std::iter::once("http_request").chain(messages).collect()
    }
}

/// How this route's bodies are read, if they are.
pub(super) fn read(route: &Table<'_>) -> Option<BodyRead> {
    let word = route.text_or("body", "pass");
    let limit = route.number("body_limit", LIMIT, 1, LIMIT_MAX);
    let facts = facts(&route.by_name("body_facts"));
    match word.as_str() {
        "read" => Some(BodyRead {
            limit: usize::try_from(limit).unwrap_or_default(),
            facts,
        }),
        "pass" => {
            // They would read like a promise.
            for key in ["body_limit", "body_facts"] {
                if route.has(key) {
                    route.error(key, "it means nothing without body = \"read\"".into());
                }
            }
            None
        }
        _ => {
            route.error("body", "it is \"pass\" or \"read\"".into());
            None
        }
    }
}

fn facts(table: &Table<'_>) -> BTreeMap<String, FactKind> {
    let mut facts = BTreeMap::new();
    let pointers = table.keys();
    if let Some(over) = pointers.get(POINTERS_MAX) {
        table.error(
            over,
            format!("at most {POINTERS_MAX} facts of one route are read"),
        );
    }
    for pointer in pointers {
        let word = table.text(&pointer);
        let kind = KINDS.iter().find(|(known, _)| *known == word);
        if !is_pointer(&pointer) {
            let wanted = "a JSON pointer like \"/payment/amount\" is wanted (RFC 6901): printable ASCII without quotes and backslashes, 128 bytes at most";
            table.error(&pointer, wanted.into());
        } else if let Some((_, kind)) = kind {
            facts.insert(pointer, *kind);
        } else if !word.is_empty() {
            let wanted =
                "\"string\", \"long\" or \"bool\" is wanted: the one kind that its value has";
            table.error(&pointer, wanted.into());
        }
    }
    facts
}

/// A pointer is of one kind in all routes: policies see one schema.
pub(super) fn check_kinds(edge: &Table<'_>, routes: &[Route]) {
    let mut known: BTreeMap<&str, FactKind> = BTreeMap::new();
    for route in routes {
        for (pointer, kind) in route.body.iter().flat_map(|body| &body.facts) {
            if *known.entry(pointer).or_insert(*kind) != *kind {
                edge.error(
                    "route",
                    format!("body_facts: `{pointer}` is of another kind in another route"),
                );
            }
        }
    }
}
