//! The rules of the house: who may know what, no silent exemptions, no file
//! that grows without end. `docs/decisions/` says why where it isn't plain.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Crates that only these packages may depend on, tests and builds included.
const OWNERS: [(&str, &[&str]); 13] = [
    ("axum", &["control-plane"]),
    ("cedar-policy", &["policy"]),
    ("cryptoki", &["control-plane"]),
    ("envoy-types", &["identity", "xds"]),
    ("proxy-wasm", &["filter"]),
    ("rcgen", &["identity", "wasm-test"]),
    ("regorus", &["policy"]),
    ("sled", &["ledger"]),
    ("sqlx", &["ledger"]),
    ("tonic", &["control-plane", "identity", "xds"]),
    ("tonic-prost", &["control-plane", "identity", "xds"]),
    ("wasmi", &["probe", "wasm-test"]),
    ("wasm-test", &[]),
];

/// Names that only these files and folders may say.
const NAMES: [(&str, &[&str]); 8] = [
    ("cryptoki", &["control-plane/src/keys/hsm/"]),
    (
        "axum",
        &[
            "control-plane/src/web/",
            "control-plane/src/exchange/authzen/http.rs",
            "control-plane/src/exchange/cache.rs",
            "control-plane/src/exchange/http.rs",
            "control-plane/src/exchange/tokens/http.rs",
            "control-plane/src/serve/",
            "control-plane/examples/",
        ],
    ),
    (
        "tonic",
        &[
            "control-plane/identity/",
            "control-plane/xds/",
            "control-plane/src/decide/",
            "control-plane/src/serve/",
        ],
    ),
    (
        "envoy_types",
        &["control-plane/identity/", "control-plane/xds/"],
    ),
    ("sled", &["control-plane/ledger/"]),
    ("sqlx", &["control-plane/ledger/"]),
    ("proxy_wasm", &["filter/"]),
    (
        "hostcalls",
        // The other is what the benchmark compares the filter with.
        &["filter/src/host.rs", "filter/examples/floor.rs"],
    ),
];

/// What the pure packages may not reach, however far away: no async, HTTP,
/// storage, or host.
const IMPURE: [&str; 18] = [
    "async-trait",
    "axum",
    "futures",
    "futures-core",
    "futures-util",
    "http",
    "hyper",
    "mio",
    "proxy-wasm",
    "reqwest",
    "rustix",
    "rustls",
    "sled",
    "socket2",
    "spiffe",
    "tokio",
    "tonic",
    "tracing",
];

/// Ours, and natively at work: nothing in the filter may reach them.
const NATIVE: [&str; 7] = [
    "audit",
    "control-plane",
    "identity",
    "ledger",
    "policy",
    "wasm-test",
    "xds",
];

const LONGEST_FILE: usize = 500;
/// Tests are lists of cases, which read well at some length.
const LONGEST_TEST: usize = 700;

/// Files that were longer when the limit came. A number may only fall; within
/// the limit the line goes.
const LONGER: [(&str, usize); 0] = [];

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap().to_owned()
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(arguments)
        .output()
        .unwrap();
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "cargo {arguments:?}: {problem}");
    String::from_utf8(output.stdout).unwrap()
}

/// Our packages with the names of what they depend on directly.
fn packages() -> Vec<(String, Vec<(String, bool)>)> {
    let text = cargo(&[
        "metadata",
        "--offline",
        "--no-deps",
        "--format-version",
        "1",
    ]);
    let metadata: Value = serde_json::from_str(&text).unwrap();
    let packages = metadata.get("packages").unwrap().as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let name = package["name"].as_str().unwrap().to_owned();
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            let dependencies = dependencies
                .map(|d| (d["name"].as_str().unwrap().to_owned(), d["kind"] == "dev"))
                .collect();
            (name, dependencies)
        })
        .collect()
}

/// Everything that a package's own code reaches, itself left out.
fn reach(package: &str) -> BTreeSet<String> {
    let text = cargo(&[
        "tree",
        "--offline",
        "--package",
        package,
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    text.lines()
        .skip(1)
        .filter_map(|line| line.split(' ').next())
        .map(ToOwned::to_owned)
        .collect()
}

/// Every Rust source file of the repository, by its path from the root.
fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, root: &Path, found: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_str().unwrap().to_owned();
            if name.starts_with('.') || name == "target" {
                continue;
            }
            if path.is_dir() {
                walk(&path, root, found);
            } else if name.ends_with(".rs") {
                let short = path.strip_prefix(root).unwrap();
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((short.to_str().unwrap().to_owned(), text));
            }
        }
    }
    let root = root();
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    assert!(found.len() > 50, "the walk found only {}", found.len());
    found
}

/// The file without line comments, which may speak of anything.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    line.split(|c: char| !part(c)).any(|found| found == word)
}

fn report(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn each_crate_is_known_to_its_owners_only() {
    let packages = packages();
    let mut problems = Vec::new();
    for (name, dependencies) in &packages {
        for (dependency, _) in dependencies {
            let owners = OWNERS.iter().find(|(owned, _)| owned == dependency);
            if owners.is_some_and(|(_, owners)| !owners.contains(&name.as_str())) {
                problems.push(format!("{name} may not depend on {dependency}"));
            }
        }
    }
    report(&problems);
    // A rule about a package that is gone would hold for ever.
    let names: BTreeSet<&str> = packages.iter().map(|(name, _)| name.as_str()).collect();
    let owners = OWNERS.iter().flat_map(|(_, owners)| owners.iter());
    for owner in owners.chain(&NATIVE) {
        assert!(names.contains(owner), "{owner} is no package");
    }
}

#[test]
fn names_stay_where_they_belong() {
    let mut problems = Vec::new();
    for (path, text) in sources() {
        // This file says them all.
        if path == "xtask/tests/tidy.rs" {
            continue;
        }
        for (word, places) in NAMES {
            if places.iter().any(|place| path.starts_with(place)) {
                continue;
            }
            for (number, line) in code(&text) {
                if has_word(line, word) {
                    problems.push(format!("{path}:{number} may not say {word}"));
                }
            }
        }
    }
    report(&problems);
}

#[test]
fn the_pure_packages_reach_nothing_impure() {
    let mut problems = Vec::new();
    for package in ["audit", "capability", "decision-api"] {
        let reach = reach(package);
        for impure in IMPURE {
            if reach.contains(impure) {
                problems.push(format!(
                    "{package} reaches {impure}: `cargo tree -p {package} -i {impure}`"
                ));
            }
        }
    }
    report(&problems);
}

#[test]
fn the_filter_and_the_control_plane_never_meet() {
    let reach = reach("filter");
    for native in NATIVE {
        assert!(!reach.contains(native), "the filter reaches {native}");
    }
    for (name, dependencies) in packages() {
        let on_filter = dependencies
            .iter()
            .any(|(dependency, _)| dependency == "filter");
        assert!(!on_filter, "{name} may not depend on the filter");
    }
}

#[test]
fn nothing_is_exempted_in_silence() {
    // In two pieces, so that this file doesn't say them.
    let banned =
        [["#[", "ignore"], ["#[", "allow("], ["#![", "allow("]].map(|parts| parts.concat());
    let mut problems = Vec::new();
    for (path, text) in sources() {
        for (number, line) in code(&text) {
            for word in &banned {
                if line.contains(word.as_str()) {
                    problems.push(format!("{path}:{number} has {word}"));
                }
            }
        }
    }
    report(&problems);
}

#[test]
fn no_file_grows_without_end() {
    let mut problems = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        // The ledger's simulation is a test, though it has to be within the crate.
        let is_test = ["/tests/", "/src/sim/"]
            .iter()
            .any(|dir| path.contains(dir))
            || path.ends_with("/tests.rs");
        let limit = if is_test { LONGEST_TEST } else { LONGEST_FILE };
        let longer = LONGER.iter().find(|(longer, _)| *longer == path);
        let allowed = longer.map_or(limit, |(_, most)| *most);
        if lines > allowed {
            problems.push(format!("{path} has {lines} lines, {allowed} are allowed"));
        }
        if longer.is_some() && lines <= limit {
            problems.push(format!("{path} has {lines} lines: take it off the list"));
        }
    }
    report(&problems);
}
