//! docs/reference/limits.md against the config's reader and the constants.

use super::book::{number, quoted, read, root, rows};
use capability::gates::EdgeConfig;
use capability::limits::Limits;
use capability::url::Origin;
use std::collections::BTreeSet;

const PAGE: &str = "docs/reference/limits.md";

/// A people's number in the unit that the name ends with; bytes and counts as they are.
fn in_unit_of(name: &str, text: &str) -> u64 {
    if name.ends_with("_s") {
        number(text) / 1000
    } else {
        number(text)
    }
}

#[test]
fn settings_have_the_defaults_and_bounds_of_the_config() {
    let keys = super::config::keys();
    let rows = rows(
        &read(PAGE),
        &["what", "key", "default", "bounds", "enforced in"],
    );
    let mut listed = BTreeSet::new();
    for row in rows {
        let name = quoted(&row[1])[0];
        let key = keys
            .iter()
            .find(|key| key.path == name)
            .unwrap_or_else(|| panic!("no key {name}"));
        assert_eq!(in_unit_of(name, &row[2]).to_string(), key.default, "{name}");
        let (least, most) = row[3].split_once(" to ").unwrap();
        let bounds = format!("{} to {}", in_unit_of(name, least), in_unit_of(name, most));
        assert_eq!(bounds, key.bounds, "{name}");
        assert!(listed.insert(name.to_owned()), "{name} twice");
        for place in quoted(&row[4]).iter().filter(|place| place.contains('/')) {
            assert!(root().join(place).exists(), "{place}");
        }
    }
    let limited = keys
        .iter()
        .filter(|key| !key.bounds.is_empty() && key.path != "identity.workload.uid");
    assert_eq!(
        listed,
        limited.map(|key| key.path.clone()).collect(),
        "every bounded key is a limit"
    );
}

#[test]
fn what_the_filter_reads_is_limited_as_the_page_says() {
    let (default, ceiling) = (Limits::default(), Limits::CEILING);
    let edge = EdgeConfig::new("i", "r", Origin::parse("https://a.example").unwrap());
    let filter = read("filter/src/config.rs").replace('_', "");
    let wide = |size: usize| u64::try_from(size).unwrap();
    let rows = rows(&read(PAGE), &["what", "member", "default", "ceiling"]);
    assert_eq!(rows.len(), 9);
    for row in rows {
        let name = quoted(&row[1])[0];
        let told = (in_unit_of(name, &row[2]), in_unit_of(name, &row[3]));
        let coded = match name {
            "header_block" => (wide(default.header_block), wide(ceiling.header_block)),
            "token" => (wide(default.token), wide(ceiling.token)),
            "proof" => (wide(default.proof), wide(ceiling.proof)),
            "json_depth" => (wide(default.json_depth), wide(ceiling.json_depth)),
            "json_members" => (wide(default.json_members), wide(ceiling.json_members)),
            "token_skew_s" => (edge.token_skew_s, 10),
            "token_lifetime_max_s" => (
                edge.token_lifetime_max_s,
                control_plane::config::TOKEN_LIFETIME_MAX_S,
            ),
            "denials_buffered" | "open_requests" => {
                let member = name.replace('_', "");
                let line = format!("\"{member}\", {}, {}", told.0, told.1);
                assert!(filter.contains(&line), "the filter does not say {line}");
                told
            }
            other => panic!("`{other}` is no member"),
        };
        assert_eq!(told, coded, "{name}");
        let words = [
            format!("`{name}`"),
            format!("`{}`", name.trim_end_matches("_x")),
        ];
        assert!(
            words
                .iter()
                .any(|word| read("docs/reference/filter-config.md").contains(word.as_str())),
            "{name}"
        );
    }
}

/// The value that `source` gives `name`: a constant, a field or a call. Times come in ms.
fn coded(source: &str, name: &str) -> Option<u64> {
    let spelled =
        |at: usize| !source[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let mut found = source
        .match_indices(name)
        .filter(|(at, _)| spelled(*at))
        .filter_map(|(at, _)| {
            let rest = &source[at + name.len()..];
            if let Some(argument) = rest.strip_prefix('(') {
                return product(argument.split(')').next()?);
            }
            let rest = rest.strip_prefix(':')?;
            let declared = rest.split(';').next()?;
            match declared.split_once(" = ") {
                Some((kind, value)) if !kind.contains('\n') => product(value),
                _ => product(rest.split(',').next()?),
            }
        });
    let value = found.next()?;
    let lower = name.to_lowercase();
    Some(match lower.rsplit('_').next() {
        Some("s") => value * 1000,
        Some("kib") => value * 1024,
        _ => value,
    })
}

/// `10 * 60 * 1000`, `Duration::from_secs(3)`.
fn product(text: &str) -> Option<u64> {
    let text = text.trim();
    for (call, scale) in [
        ("Duration::from_secs(", 1000),
        ("Duration::from_millis(", 1),
    ] {
        if let Some(inner) = text.strip_prefix(call) {
            return Some(product(inner.split(')').next()?)? * scale);
        }
    }
    text.split('*')
        .map(|factor| factor.trim().replace('_', "").parse::<u64>().ok())
        .product()
}

#[test]
fn products_are_read_from_source() {
    assert_eq!(
        coded("const A_MS: u64 = 10 * 60 * 1000;", "A_MS"),
        Some(600_000)
    );
    assert_eq!(
        coded("const A: Duration = Duration::from_secs(3);", "A"),
        Some(3000)
    );
    assert_eq!(
        coded("const TTL_S: u64 = 24 * 60;", "TTL_S"),
        Some(1_440_000)
    );
    assert_eq!(coded("    entries: 65_536,\n", "entries"), Some(65_536));
    assert_eq!(coded("new(Seen::new(7))", "Seen::new"), Some(7));
    assert_eq!(coded("const NOT_A: u64 = 1;", "A"), None);
}

#[test]
fn fixed_numbers_are_those_of_the_code() {
    let rows = rows(&read(PAGE), &["what", "value", "name", "where"]);
    assert!(rows.len() > 40, "only {} rows", rows.len());
    for row in rows {
        let (name, place) = (quoted(&row[2])[0], quoted(&row[3])[0]);
        let source = read(place);
        // `TTL_MAX_S` is in seconds, as its name says.
        let value = coded(&source, name).unwrap_or_else(|| panic!("{place} has no {name}"));
        assert_eq!(number(&row[1]), value, "{name} in {place}");
    }
}
