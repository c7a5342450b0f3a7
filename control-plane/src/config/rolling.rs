//! Keys about what is watched, tried and rolled out.

use super::reader::Table;
use super::types::{Canary, Edge, Group, Rollout};
use capability::decide::Mode;
use std::net::SocketAddr;
use std::sync::Arc;

pub(super) fn metrics_listen(table: &Table<'_>) -> Option<SocketAddr> {
    let text = table.optional_text("metrics_listen")?;
    let address = text.parse().ok();
    if address.is_none() {
        table.error(
            "metrics_listen",
            format!("`{text}` is not an address like 127.0.0.1:8482"),
        );
    }
    address
}

pub(super) fn canary(table: &Table<'_>) -> Canary {
    let canary = Canary {
        // What is off is seen within a minute, whatever else is slow.
        every_s: table.number("every_s", 0, 0, 30),
        targets: table.texts("targets"),
    };
    let is_url = |url: &&String| url.starts_with("http://") || url.starts_with("https://");
    for target in canary.targets.iter().filter(|url| !is_url(url)) {
        table.error(
            "targets",
            format!("`{target}` is not a URL like http://127.0.0.1:8400"),
        );
    }
    table.finish();
    canary
}

pub(super) fn mode(route: &Table<'_>) -> Mode {
    match route.text_or("mode", "enforce").as_str() {
        "enforce" => Mode::Enforce,
        "observe" => Mode::Observe,
        _ => {
            route.error("mode", "say `enforce` or `observe`".into());
            Mode::Enforce
        }
    }
}

/// Groups of proxies; each has a snapshot of its own.
const GROUPS_MAX: usize = 16;
/// Bytes of a group's name.
const NAME_MAX: usize = 64;
/// A step that is watched at all is watched for so many seconds: filters report
/// refusals every 5 s.
const WATCH_MIN_S: u64 = 10;

pub(super) fn rollout(table: &Table<'_>) -> Rollout {
    let rollout = Rollout {
        first: table.texts("first"),
        watch_s: table.number("watch_s", 0, 0, 3_600),
    };
    if (1..WATCH_MIN_S).contains(&rollout.watch_s) {
        let message = format!("nothing shows so soon; say {WATCH_MIN_S} or more, or 0");
        table.error("watch_s", message);
    }
    if !rollout.first.is_empty() && rollout.watch_s == 0 {
        table.error(
            "first",
            "nobody would look at the first ones; say `watch_s` as well".into(),
        );
    }
    table.finish();
    rollout
}

pub(super) fn groups(edge: &Table<'_>, rollout: &Rollout) -> Vec<Group> {
    let tables = edge.tables("group");
    let mut groups: Vec<Group> = Vec::new();
    for table in &tables {
        let group = group(table, rollout);
        if groups.iter().any(|other| other.name == group.name) {
            table.error("name", "another group has this name".into());
        }
        groups.push(group);
    }
    if groups.len() > GROUPS_MAX {
        edge.error("group", format!("more than {GROUPS_MAX} groups"));
    }
    for name in &rollout.first {
        if !groups.iter().any(|group| group.name == *name) {
            edge.error("rollout", format!("`{name}` is no [[edge.group]]"));
        }
    }
    groups
}

fn group(table: &Table<'_>, rollout: &Rollout) -> Group {
    let group = Group {
        name: table.text("name"),
        proxies: table.texts("proxies"),
        nodes: table.texts("nodes"),
        clusters: table.texts("clusters"),
        localities: table.texts("localities"),
        module: table.optional_path("module"),
        proxies_line: table.line_of("proxies"),
        config: table.optional_path("config").and_then(|path| {
            let read = Edge::of_group(&path);
            read.map_err(|errors| table.foreign(errors))
                .ok()
                .map(Arc::new)
        }),
        module_line: table.line_of("module"),
        config_line: table.line_of("config"),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if group.name.len() > NAME_MAX || !group.name.chars().all(plain) {
        let message = format!("at most {NAME_MAX} letters, digits or any of `-_.`");
        table.error("name", message);
    }
    if group.proxies.is_empty() {
        let message = "a group is of identities first; name at least one [[proxy]]";
        table.error("proxies", message.into());
    }
    for key in ["module", "config"] {
        if table.has(key) && rollout.first.contains(&group.name) {
            let message = "edge.rollout.first has this group, and a pinned one tries nothing";
            table.error(key, message.into());
        }
    }
    table.finish();
    group
}
