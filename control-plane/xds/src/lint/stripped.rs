//! Which headers of a client's are taken off, somewhere on the way.

use std::collections::BTreeSet;

use capability::headers::{OURS, REINTERPRETING};

use super::tree::At;

/// Names and beginnings of names, in lower case.
#[derive(Debug, Clone, Default)]
pub(super) struct Stripped {
    names: BTreeSet<String>,
    prefixes: BTreeSet<String>,
}

impl Stripped {
    /// One name, in any case of letters.
    pub(super) fn name(&mut self, name: &str) {
        self.names.insert(name.to_ascii_lowercase());
    }

    /// What a matcher of names takes; only those for one name or one beginning
    /// are understood. Names have small letters when it looks at them.
    pub(super) fn matcher(&mut self, matcher: &At<'_>) {
        let any_case = matcher.truth("ignore_case");
        let fits = |text: &str| !text.is_empty() && (any_case || text == text.to_ascii_lowercase());
        for (field, all) in [("exact", &mut self.names), ("prefix", &mut self.prefixes)] {
            let text = matcher.text(field);
            all.extend(
                Some(text)
                    .filter(|it| fits(it))
                    .map(str::to_ascii_lowercase),
            );
        }
    }

    /// With what these say in `request_headers_to_remove`.
    pub(super) fn with_removed(&self, holders: &[&At<'_>]) -> Self {
        let mut all = self.clone();
        for name in holders
            .iter()
            .flat_map(|at| at.list("request_headers_to_remove"))
        {
            all.name(name.as_text().unwrap_or_default());
        }
        all
    }

    /// Whether this header is gone.
    pub(super) fn takes(&self, name: &str) -> bool {
        self.names.contains(name) || self.takes_all_of(name)
    }

    /// Whether every header that begins so is gone.
    pub(super) fn takes_all_of(&self, beginning: &str) -> bool {
        self.prefixes
            .iter()
            .any(|prefix| beginning.starts_with(prefix.as_str()))
    }

    /// What is left of that by which upstreams take a request for another one.
    pub(super) fn leaves(&self) -> Vec<&'static str> {
        let all = REINTERPRETING.into_iter();
        all.filter(|name| !self.takes(name)).collect()
    }

    /// As [`Stripped::leaves`], and the headers that only the filter sets.
    pub(super) fn leaves_with_ours(&self) -> Vec<&'static str> {
        let ours = OURS.into_iter().filter(|it| !self.takes_all_of(it));
        ours.chain(self.leaves()).collect()
    }
}
