//! What whoever looks at this control plane has to be told: that a route only
//! observes, that the canary passed. Said on each page and by `writ status`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Warnings at one time. The keys are ours, so this is far away.
const WARNINGS_MAX: usize = 1_024;

/// The warnings that hold now, one for each key.
#[derive(Default)]
pub struct Warnings(Mutex<BTreeMap<String, String>>);

impl Warnings {
    /// Raises a warning, or says it anew; whether it is one that did not hold
    /// before.
    pub fn raise(&self, key: &str, text: &str) -> bool {
        let mut held = self.lock();
        if held.len() >= WARNINGS_MAX && !held.contains_key(key) {
            return false;
        }
        held.insert(key.to_owned(), text.to_owned()).is_none()
    }

    /// Takes a warning back; whether it held.
    pub fn lower(&self, key: &str) -> bool {
        self.lock().remove(key).is_some()
    }

    /// Every warning that holds, by its key.
    pub fn all(&self) -> Vec<String> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_holds_until_it_is_lowered() {
        let warnings = Warnings::default();
        assert!(warnings.raise("canary", "it passed"));
        assert!(!warnings.raise("canary", "it passed again"));
        assert_eq!(warnings.all(), ["it passed again"]);
        assert!(warnings.lower("canary"));
        assert!(!warnings.lower("canary"));
        assert!(warnings.all().is_empty());
    }
}
