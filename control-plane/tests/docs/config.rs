//! docs/reference/config.md against the reader.

use super::book::{code, fenced, quoted, read, rows};
use control_plane::config::{Config, ConfigError};
use std::collections::BTreeSet;
use std::path::PathBuf;

const PAGE: &str = "docs/reference/config.md";
const COLUMNS: [&str; 5] = ["key", "type", "default", "bounds", "what it is"];

/// One row of the page.
pub struct Key {
    /// Its dotted path, arrays left out.
    pub path: String,
    kind: String,
    /// `required`, `none`, or the value in backticks.
    pub default: String,
    /// `A to B`, or empty.
    pub bounds: String,
}

/// All rows of the page.
pub fn keys() -> Vec<Key> {
    let keys = rows(&read(PAGE), &COLUMNS).into_iter().map(|row| Key {
        path: quoted(&row[0])[0].to_owned(),
        kind: row[1].clone(),
        default: quoted(&row[2])
            .first()
            .map_or(row[2].clone(), |value| (*value).to_owned()),
        bounds: row[3].clone(),
    });
    keys.collect()
}

/// The file that the sample pins a group to.
const PINNED: &str = "/etc/writ/edge-pinned.toml";

fn sample() -> String {
    let mut blocks = fenced(&read(PAGE), "toml");
    assert_eq!(blocks.len(), 1, "the page has one file with every key");
    blocks.remove(0)
}

fn parse(text: &str) -> Result<Config, Vec<ConfigError>> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("policy.cedar"), "").unwrap();
    let own = dir.path().join("own.toml");
    std::fs::write(&own, edge_alone(text)).unwrap();
    let text = text.replace(PINNED, &own.display().to_string());
    Config::parse(&dir.path().join("writ.toml"), &text)
}

/// What a group may be pinned to, of a whole file.
fn edge_alone(text: &str) -> String {
    let mut taken = false;
    let lines = text.lines().filter(|line| {
        if line.starts_with('[') {
            let name = line.trim_matches(['[', ']']);
            let others = ["edge.rollout", "edge.group"];
            taken = name == "edge" || (name.starts_with("edge.") && !others.contains(&name));
        }
        taken && !line.starts_with("module = ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The sample's keys, each with the number of its line.
fn sample_keys(text: &str) -> Vec<(String, usize)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            section = line
                .split('#')
                .next()
                .unwrap()
                .trim()
                .trim_matches(['[', ']'])
                .to_owned();
        } else if let Some((key, _)) = line.split_once(" = ") {
            found.push((format!("{section}.{key}"), number));
        }
    }
    found
}

/// The sample with one key's line replaced.
fn with(path: &str, line: &str) -> String {
    let text = sample();
    let keys = sample_keys(&text);
    let (_, at) = keys
        .iter()
        .find(|(key, _)| key == path)
        .unwrap_or_else(|| panic!("the sample has no {path}"));
    let lines = text
        .lines()
        .enumerate()
        .map(|(number, old)| if number == *at { line } else { old });
    lines.collect::<Vec<_>>().join("\n")
}

fn set(path: &str, value: &str) -> String {
    with(path, &format!("{} = {value}", leaf(path)))
}

fn leaf(path: &str) -> &str {
    path.rsplit('.').next().unwrap()
}

fn refusal(text: &str, expected: &str) {
    let errors = parse(text).err().unwrap_or_default();
    assert!(
        errors
            .iter()
            .any(|error| error.to_string().contains(expected)),
        "no `{expected}` in {errors:?} for\n{text}"
    );
}

fn shown(text: &str) -> String {
    let mut config = parse(text).unwrap_or_else(|errors| panic!("{errors:?}\n{text}"));
    config.version.clear();
    format!("{config:?}")
}

#[test]
fn the_page_has_the_keys_of_its_file() {
    let listed: Vec<String> = keys().into_iter().map(|key| key.path).collect();
    let in_file: Vec<String> = sample_keys(&sample())
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    assert_eq!(
        listed, in_file,
        "tables and file have the same keys in the same order"
    );
    shown(&sample());
}

/// What the reader asks for, by leaf name: `table.number("hold_s", …)`.
#[test]
fn the_file_has_every_key_that_the_reader_asks_for() {
    const METHODS: [&str; 19] = [
        "by_name",
        "within",
        "text",
        "text_or",
        "texts",
        "flag",
        "number",
        "optional_number",
        "path",
        "optional_path",
        "address",
        "origin",
        "host_port",
        "spiffe_id",
        "spiffe_ids",
        "size",
        "optional_text",
        "optional_address",
        "optional_origin",
    ];
    let source: String = [
        "body",
        "check",
        "clients",
        "exempt",
        "federated",
        "issuers",
        "keys",
        "mod",
        "people",
        "rolling",
        "sites",
        "users",
    ]
    .map(|file| code(&format!("control-plane/src/config/{file}.rs")))
    .concat();
    let mut asked = Vec::new();
    for method in METHODS {
        let call = format!("{method}(\"");
        for (at, _) in source.match_indices(&call) {
            if !source[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
                asked.push(
                    source[at + call.len()..]
                        .split('"')
                        .next()
                        .unwrap()
                        .to_owned(),
                );
            }
        }
    }
    let mut in_file: Vec<String> = sample_keys(&sample())
        .iter()
        .map(|(key, _)| leaf(key).to_owned())
        .collect();
    asked.sort();
    in_file.sort();
    assert_eq!(asked, in_file);
}

#[test]
fn a_key_that_is_not_on_the_page_is_an_error() {
    let text = sample();
    for (path, at) in sample_keys(&text) {
        let line = text.lines().nth(at).unwrap();
        refusal(
            &with(&path, &format!("{line}\n{}_x = 1", leaf(&path))),
            &format!("{path}_x: no such key"),
        );
    }
    for section in ["surprise", "edge.surprise"] {
        refusal(
            &format!("{text}\n[{section}]\n"),
            &format!("{section}: no such key"),
        );
    }
}

/// Without what means nothing when this key has its default.
fn bare(path: &str, text: String) -> String {
    let without = match path {
        // What says how long one may take is the edge's.
        "edge.route.body" => "body_",
        "keys.shared" => "rotate_every_days",
        _ => return text,
    };
    let lines = text.lines().filter(|line| !line.starts_with(without));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn defaults_types_and_bounds_are_the_readers() {
    for key in keys() {
        let path = key.path.as_str();
        let without = bare(path, with(path, ""));
        match key.default.as_str() {
            "required" => assert!(parse(&without).is_err(), "{path} is not required"),
            "none" => drop(shown(&without)),
            value => assert_eq!(
                shown(&without),
                shown(&bare(path, set(path, value))),
                "the default of {path} is not {value}"
            ),
        }
        let wanted = match key.kind.as_str() {
            "number" => "a whole number is wanted",
            "true/false" => "true or false is wanted",
            "strings" => "a list of strings is wanted",
            "table" => "a table is wanted",
            "origin" | "address" | "path" | "string" | "SPIFFE ID" | "host:port" => {
                "a string is wanted"
            }
            other => panic!("{path}: `{other}` is no type"),
        };
        refusal(&set(path, "1.5"), wanted);
        assert_eq!(key.bounds.is_empty(), key.kind != "number", "{path}");
        if let Some((least, most)) = key.bounds.split_once(" to ") {
            let (least, most): (u64, u64) = (least.parse().unwrap(), most.parse().unwrap());
            shown(&set(path, &least.to_string()));
            shown(&set(path, &most.to_string()));
            refusal(&set(path, &(most + 1).to_string()), "out of bounds");
            if least > 0 {
                refusal(&set(path, &(least - 1).to_string()), "out of bounds");
            }
        }
    }
}

#[test]
fn the_kinds_are_told_apart_as_the_page_says() {
    for (path, value, message) in [
        ("server.data_dir", "\"data\"", "not an absolute path"),
        (
            "server.issuer",
            "\"http://127.0.0.1:8480/\"",
            "nothing after",
        ),
        ("server.listen", "\"localhost:8480\"", "is not an address"),
        ("agent.spiffe_id", "\"demo\"", "is not a SPIFFE ID"),
        ("server.login_as", "\"nobody\"", "is no [[approver]]"),
        (
            "proxy.spiffe_id",
            "\"spiffe://writ.example/agent/demo\"",
            "a proxy must not be one",
        ),
        (
            "identity.workload.spiffe_id",
            "\"spiffe://other.example/proxy\"",
            "is not in the trust domain",
        ),
    ] {
        refusal(&set(path, value), message);
    }
    let open = set("server.listen", "\"0.0.0.0:8480\"");
    refusal(&open, "an http issuer is for loopback only");
    refusal(
        &open.replace("dev_single_uid = false", "dev_single_uid = true"),
        "one uid for everything",
    );
}

#[test]
fn the_starter_is_good_as_it_stands() {
    let path: PathBuf = super::book::root().join("deploy/starter/writ.toml");
    let config = Config::read(&path).unwrap();
    policy::Policies::load_with(&config.policies, &config.approvers, &config.edge.facts()).unwrap();
    let known: BTreeSet<String> = keys().into_iter().map(|key| key.path).collect();
    for (key, _) in sample_keys(&std::fs::read_to_string(&path).unwrap()) {
        assert!(known.contains(key.trim_end()), "{key}");
    }
}
