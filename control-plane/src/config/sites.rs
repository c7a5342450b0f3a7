//! Origins: `edge.origin` and each `[[edge.site]]`, by the normaliser that the
//! filter uses as well.

use super::reader::Table;
use super::types::Site;
use capability::url::{Origin, Target};

/// Further origins.
const SITES_MAX: usize = 64;

/// The first origin, its resource, and the further ones.
pub(super) fn read(edge: &Table<'_>) -> (String, String, Vec<Site>) {
    let origin = normal(edge, edge.origin("origin"));
    let resource = resource(edge, edge.optional_text("resource"), &origin);
    let mut seen = vec![Site {
        name: String::new(),
        origin: origin.clone(),
        resource: resource.clone(),
    }];
    let entries = edge.tables("site");
    if entries.len() > SITES_MAX {
        edge.error("site", format!("at most {SITES_MAX} sites"));
    }
    for entry in &entries {
        let site = site(entry);
        let named = |other: &&Site| !site.name.is_empty() && other.name == site.name;
        if seen.iter().any(|other| named(&other)) {
            entry.error("name", "another site has this name".into());
        }
        if let Some(other) = seen.iter().find(|other| clash(&other.origin, &site.origin)) {
            entry.error(
                "origin",
                format!(
                    "no request could be told from one for `{}`: the authority is the same",
                    other.origin
                ),
            );
        }
        seen.push(site);
    }
    (origin, resource, seen.split_off(1))
}

fn site(entry: &Table<'_>) -> Site {
    let origin = normal(entry, entry.origin("origin"));
    let site = Site {
        name: entry.text("name"),
        resource: resource(entry, entry.optional_text("resource"), &origin),
        origin,
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if !site.name.bytes().all(plain) || site.name.len() > 64 {
        entry.error(
            "name",
            "a site's name is at most 64 letters, digits, `-`, `_` and `.`".into(),
        );
    }
    entry.finish();
    site
}

/// As the normaliser writes it, without a default port: else no URL would be under it.
fn normal(table: &Table<'_>, text: String) -> String {
    if text.is_empty() {
        return text;
    }
    match Origin::parse(&text) {
        Ok(origin) => origin.as_str().to_owned(),
        Err(error) => {
            table.error("origin", format!("`{text}`: {error}"));
            text
        }
    }
}

/// The resource: the origin, unless a URL under it is given (RFC 9728, section 1.2).
fn resource(table: &Table<'_>, given: Option<String>, origin: &str) -> String {
    let Some(given) = given else {
        return origin.to_owned();
    };
    let Ok(at) = Origin::parse(origin) else {
        return given;
    };
    if given == origin {
        return given;
    }
    let target = Target::location(&given);
    let fits = target.is_ok_and(|target| {
        *target.origin() == at && target.query().is_none() && target.to_string() == given
    });
    if !fits {
        table.error(
            "resource",
            format!("`{given}` is neither {origin} nor a URL under it, in normal form and without a query"),
        );
    }
    given
}

/// Whether a request's authority could name both.
fn clash(one: &str, other: &str) -> bool {
    let parsed = (Origin::parse(one), Origin::parse(other));
    matches!(parsed, (Ok(one), Ok(other)) if one.same_authority(&other))
}

/// Complains when an entry's `site` is none.
pub(super) fn check_name(entry: &Table<'_>, sites: &[Site], name: Option<&str>) {
    if let Some(name) = name
        && !sites.iter().any(|site| site.name == name)
    {
        entry.error("site", format!("`{name}` is no [[edge.site]]"));
    }
}
