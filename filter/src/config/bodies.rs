//! What a configuration says of bodies.

use super::{Faults, Members};
use capability::body::{POINTERS_MAX, is_pointer};

/// A body that is read is at most this long, unless its route says otherwise,
/// and never longer than that; bytes.
const BODY_DEFAULT: usize = 64 * 1024;
const BODY_MAX: usize = 1024 * 1024;

/// What this instance has to do with bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bodies {
    /// They pass, after the answer, with back-pressure.
    Pass,
    /// It reads them, on routes that say so, before it asks.
    Read,
    /// An instance before this one reads them: what that let through has its
    /// permit, and what is on its routes without one is refused.
    Before,
}

/// How the bodies of one route are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyRule {
    /// The longest that is read; bytes.
    pub limit: usize,
    /// The JSON pointers of what policy is told.
    pub facts: Vec<String>,
}

impl Bodies {
    /// The words for them; the first is the default.
    pub(super) const WORDS: [(&'static str, Self); 3] = [
        ("pass", Self::Pass),
        ("read", Self::Read),
        ("before", Self::Before),
    ];
}

impl BodyRule {
    /// Reads `routes[n].body`; `route` is what the errors call the route.
    pub(super) fn read(route: &str, body: &Members<'_>, faults: &mut Faults) -> Option<Self> {
        body.only(&["limit", "facts"], faults);
        let limit = body.size("limit", BODY_DEFAULT, BODY_MAX, faults);
        let mut pointers = Vec::new();
        for pointer in body.list("facts", false, faults)? {
            match pointer.as_str().filter(|text| is_pointer(text)) {
                Some(pointer) => pointers.push(pointer.to_owned()),
                None => faults.add(format!("{route}body.facts: must be JSON pointers")),
            }
        }
        if pointers.len() > POINTERS_MAX {
            faults.add(format!("{route}body.facts: must be at most {POINTERS_MAX}"));
        }
        Some(Self {
            limit: limit?,
            facts: pointers,
        })
    }
}
