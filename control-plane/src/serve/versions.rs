//! Which Envoys have known holes in their wasm host or in how they read paths.
//!
//! The filter is no better than what runs it. Whoever connects with less than the
//! first release of its line that is safe is served, since refusing it would take
//! its routes down, and everybody who looks is told.

use crate::warnings::Warnings;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Nodes with known holes that are remembered, of each proxy's identity.
const HOLED_MAX: usize = 64;

/// Nodes whose Envoys have known holes, with their versions, by their proxies'
/// identities.
#[derive(Default)]
pub struct Holed(Mutex<BTreeMap<String, BTreeMap<String, String>>>);

impl Holed {
    /// A node has connected, and says that it is this Envoy.
    pub fn runs(&self, warnings: &Warnings, proxy: &str, node: &str, envoy: &str) {
        let holed = wanted(envoy).is_some();
        self.change(warnings, proxy, |nodes| {
            if !holed {
                nodes.remove(node);
            } else if nodes.len() < HOLED_MAX || nodes.contains_key(node) {
                nodes.insert(node.to_owned(), envoy.to_owned());
            }
        });
        if holed {
            tracing::error!(proxy, node, envoy, "this Envoy has known holes");
        }
    }

    /// A node has gone.
    pub fn gone(&self, warnings: &Warnings, proxy: &str, node: &str) {
        self.change(warnings, proxy, |nodes| drop(nodes.remove(node)));
    }

    /// One warning for each proxy's identity, of the first of its nodes.
    fn change(
        &self,
        warnings: &Warnings,
        proxy: &str,
        change: impl FnOnce(&mut BTreeMap<String, String>),
    ) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = all.entry(proxy.to_owned()).or_default();
        change(nodes);
        let key = format!("envoy {proxy}");
        let Some((node, envoy)) = nodes.first_key_value() else {
            all.remove(proxy);
            warnings.lower(&key);
            return;
        };
        let instead = wanted(envoy).unwrap_or_default();
        let text = format!(
            "{proxy} ({node:?}) runs Envoy {envoy}, which has known holes: upgrade it to {instead}"
        );
        warnings.raise(&key, &text);
    }
}

/// The first releases that are safe, by their line; from Envoy's advisories of 2026.
const SAFE: [(u64, u64, u64); 5] = [(1, 36, 10), (1, 37, 6), (1, 38, 4), (1, 39, 1), (1, 40, 0)];

/// The version to be had instead, when this one has known holes. `None` also for
/// what is no version.
fn wanted(version: &str) -> Option<String> {
    let mut parts = version.split('.').map(str::parse::<u64>);
    let (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) =
        (parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let own = SAFE.iter().find(|safe| (safe.0, safe.1) == (major, minor));
    let oldest = SAFE.iter().min();
    let least = match own {
        Some(safe) => Some(safe),
        None => oldest.filter(|safe| (major, minor) < (safe.0, safe.1)),
    };
    least
        .filter(|safe| (major, minor, patch) < **safe)
        .map(|(major, minor, patch)| format!("{major}.{minor}.{patch}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_holds_for_as_long_as_a_node_is_there_that_runs_one() {
        let (holed, warnings) = (Holed::default(), Warnings::default());
        let told = |proxy: &str, node: &str, envoy: &str| {
            holed.runs(&warnings, proxy, node, envoy);
            warnings.all()
        };
        assert!(told("p", "a", "1.40.0").is_empty());
        let one = told("p", "b", "1.38.2");
        assert_eq!(
            one,
            ["p (\"b\") runs Envoy 1.38.2, which has known holes: upgrade it to 1.38.4"]
        );
        assert_eq!(told("p", "c", "1.39.0"), one);
        assert_eq!(told("q", "b", "1.38.2").len(), 2);
        let other = told("p", "b", "1.40.0");
        assert!(other[0].contains("\"c\") runs Envoy 1.39.0"), "{other:?}");
        holed.gone(&warnings, "p", "c");
        holed.gone(&warnings, "p", "a");
        assert_eq!(warnings.all().len(), 1, "q's");
        for node in 0..2 * HOLED_MAX {
            told("r", &node.to_string(), "1.38.2");
        }
        assert_eq!(holed.0.lock().unwrap()["r"].len(), HOLED_MAX);
    }

    #[test]
    fn those_below_the_first_safe_one_of_their_line() {
        for (version, instead) in [
            ("1.40.0", None),
            ("1.41.0", None),
            ("2.0.0", None),
            ("1.39.1", None),
            ("1.39.0", Some("1.39.1")),
            ("1.38.2", Some("1.38.4")),
            ("1.38.4", None),
            ("1.35.9", Some("1.36.10")),
            ("1.9.0", Some("1.36.10")),
            ("0.0.0", Some("1.36.10")),
            ("", None),
            ("1.38", None),
            ("1.x.2", None),
        ] {
            assert_eq!(wanted(version).as_deref(), instead, "{version}");
        }
    }
}
