//! Which Envoys have known holes in their wasm host or in how they read paths.
//!
//! The filter is no better than what runs it. Whoever connects with less than the
//! first release of its line that is safe is served, since refusing it would take
//! its routes down, and everybody who looks is told.

/// The first releases that are safe, by their line; from Envoy's advisories of 2026.
const SAFE: [(u64, u64, u64); 5] = [(1, 36, 10), (1, 37, 6), (1, 38, 4), (1, 39, 1), (1, 40, 0)];

/// The version to be had instead, when this one has known holes. `None` also for
/// what is no version.
#[must_use]
pub fn wanted(version: &str) -> Option<String> {
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
