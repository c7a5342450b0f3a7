//! The check of Envoy configurations, row by row: each row changes a good
//! configuration and names the rules that have to say so. Ids in their names are
//! those of the list of attacks.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests fail loudly")]

use serde_json::Value;
use std::collections::BTreeSet;
use xds::lint::{Lint, Names, Report, Rule};

const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";

/// The good configuration and the filter's resource.
struct Config {
    bootstrap: Value,
    filter: Value,
}

impl Config {
    fn good() -> Self {
        Self {
            bootstrap: serde_json::from_str(include_str!("good.json")).unwrap(),
            filter: serde_json::from_str(include_str!("filter.json")).unwrap(),
        }
    }

    /// A row's place, which may begin with a word for a longer one.
    fn place(&mut self, place: &str) -> (&mut Value, String) {
        let host = format!("{MANAGER}/route_config/virtual_hosts/0");
        let words = [
            ("@manager", MANAGER.to_owned()),
            ("@guard", format!("{MANAGER}/http_filters/0")),
            ("@router", format!("{MANAGER}/http_filters/1")),
            ("@table", format!("{MANAGER}/route_config")),
            ("@files", format!("{host}/routes/0")),
            ("@host", host),
            ("@listeners", "/static_resources/listeners".to_owned()),
            ("@cluster", "/static_resources/clusters/0".to_owned()),
        ];
        for (word, rest) in [("@plugin", "/typed_config/config"), ("@resource", "")] {
            if let Some(tail) = place.strip_prefix(word) {
                return (&mut self.filter, format!("{rest}{tail}"));
            }
        }
        for (word, full) in words {
            if let Some(tail) = place.strip_prefix(word) {
                return (&mut self.bootstrap, format!("{full}{tail}"));
            }
        }
        (&mut self.bootstrap, place.to_owned())
    }

    fn set(&mut self, place: &str, value: Value) {
        let (root, pointer) = self.place(place);
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let key = key.to_owned();
        match root.pointer_mut(parent).expect(place) {
            Value::Array(list) => {
                let at: usize = key.parse().unwrap();
                if at < list.len() {
                    list.remove(at);
                }
                list.insert(at, value);
            }
            other => drop(other.as_object_mut().unwrap().insert(key, value)),
        }
    }

    fn remove(&mut self, place: &str) {
        let (root, pointer) = self.place(place);
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match root.pointer_mut(parent).expect(place) {
            Value::Array(list) => drop(list.remove(key.parse().unwrap())),
            other => drop(other.as_object_mut().unwrap().remove(key).expect(place)),
        }
    }

    fn report(&self, names: Names) -> Report {
        let mut lint = Lint::new(names);
        let text = serde_json::to_string_pretty(&self.bootstrap).unwrap();
        lint.add("envoy.json", &text).unwrap();
        lint.add("filter.json", &self.filter.to_string()).unwrap();
        lint.report()
    }
}

/// What `"@keep/NAME"` stands for: a part of the good configuration.
fn kept(value: &Value) -> Value {
    let good = Config::good().bootstrap;
    let routes = format!("{MANAGER}/route_config/virtual_hosts/0/routes");
    let place = match value.as_str() {
        Some("@keep/guard") => format!("{MANAGER}/http_filters/0"),
        Some("@keep/router") => format!("{MANAGER}/http_filters/1"),
        Some("@keep/files") => format!("{routes}/0"),
        Some("@keep/all") => format!("{routes}/1"),
        _ => return value.clone(),
    };
    good.pointer(&place).unwrap().clone()
}

fn names(row: &Value) -> Names {
    let set = |key: &str| {
        let list = row.get(key).and_then(Value::as_array);
        let list = list.into_iter().flatten();
        list.map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    Names {
        unguarded: set("unguarded"),
        shared: set("shared"),
        ..Names::default()
    }
}

fn rows() -> Vec<Value> {
    serde_json::from_str(include_str!("rows.json")).unwrap()
}

#[test]
fn every_row_is_found_and_nothing_else() {
    let mut wrong = Vec::new();
    for row in rows() {
        let mut config = Config::good();
        // First what goes, so that places of what comes are those of the result.
        for place in row
            .get("remove")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            config.remove(place.as_str().unwrap());
        }
        for (place, value) in row
            .get("set")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            config.set(place, kept(value));
        }
        let report = config.report(names(&row));
        let mut found: Vec<&str> = report.findings.iter().map(|f| f.rule.as_str()).collect();
        found.sort_unstable();
        let expect = row.get("expect").and_then(Value::as_array).unwrap();
        let mut expect: Vec<&str> = expect.iter().filter_map(Value::as_str).collect();
        expect.sort_unstable();
        let at = row.get("at").and_then(Value::as_str).unwrap_or_default();
        let there = report
            .findings
            .iter()
            .all(|found| found.path.contains(at) && found.line > 0);
        // A row with a note has that one, and one with null has none.
        let noted = match row.get("note") {
            None => true,
            Some(Value::String(note)) => report.notes.iter().any(|it| it.contains(note)),
            Some(_) => report.notes.is_empty(),
        };
        if found != expect || !there || !noted {
            wrong.push(format!(
                "{}: {found:?}, and not {expect:?}: {:?} {:?}",
                row["name"], report.findings, report.notes
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn yaml_is_read_as_envoy_reads_it() {
    let off = [
        "yes",
        "Yes",
        "on",
        "ON",
        "y",
        "true",
        "TRUE",
        "!!bool yes",
        "'yes'",
        "\"1\"",
        "1",
        "what",
    ];
    let on = [
        "no",
        "No",
        "off",
        "n",
        "false",
        "FALSE",
        "!!bool no",
        "'no'",
        "0",
        "~",
        "null",
    ];
    let open = [
        "fail_open",
        "FAIL_OPEN",
        "3",
        "'3'",
        "0x3",
        "3e0",
        "03",
        "!!int 3",
    ];
    let closed = ["fail_reload", "FAIL_CLOSED", "2", "0x2", "'1'", "~"];
    let rows = [
        ("/disabled", off.as_slice(), Some(Rule::FilterOff)),
        ("/disabled", on.as_slice(), None),
        ("policy", open.as_slice(), Some(Rule::FailsOpen)),
        ("policy", closed.as_slice(), None),
    ];
    for (place, values, rule) in rows {
        for value in values {
            let mut config = Config::good();
            let place = match place {
                "policy" => "@plugin/failure_policy".to_owned(),
                place => format!("@guard{place}"),
            };
            config.set(&place, Value::from("@here"));
            let here = |json: &Value| json.to_string().replace("\"@here\"", &format!(" {value} "));
            let mut lint = Lint::new(Names::default());
            lint.add("envoy.yaml", &here(&config.bootstrap)).unwrap();
            lint.add("filter.yaml", &here(&config.filter)).unwrap();
            let findings = lint.report().findings;
            let found: Vec<Rule> = findings.iter().map(|found| found.rule).collect();
            assert_eq!(found, Vec::from_iter(rule), "{place}: {value}");
        }
    }
}

#[test]
fn every_rule_has_a_row() {
    let rows = rows();
    let expected: BTreeSet<&str> = rows
        .iter()
        .flat_map(|row| row.get("expect").and_then(Value::as_array).unwrap())
        .filter_map(Value::as_str)
        .collect();
    let all: BTreeSet<&str> = Rule::ALL.iter().map(|rule| rule.as_str()).collect();
    assert_eq!(expected, all);
}

#[test]
fn a_finding_says_where_it_is() {
    let yaml = "static_resources:\n  listeners:\n  - name: tcp\n    filter_chains:\n    - filters:\n      - typed_config:\n          \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy\n          cluster: x\n";
    let mut lint = Lint::new(Names::default());
    lint.add("a.yaml", yaml).unwrap();
    let report = lint.report();
    let [found] = report.findings.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(
        (found.line, found.path.as_str()),
        (
            7,
            "static_resources.listeners[0].filter_chains[0].filters[0].typed_config"
        )
    );
    assert!(
        found.to_string().starts_with("a.yaml:7: static_resources."),
        "{found}"
    );
}

#[test]
fn what_is_no_configuration_is_no_clean_one() {
    for text in [
        "",
        "a: 1",
        "[]",
        "{\"@type\": \"x\"}",
        "static_resources: {",
        "a: 1\na: 2",
        "plain",
    ] {
        let added = Lint::new(Names::default()).add("x", text);
        assert!(added.is_err(), "{text}");
    }
    // Good, but it says nothing of any listener.
    let path = format!("{}/../../envoy/bootstrap.yaml", env!("CARGO_MANIFEST_DIR"));
    for path in [
        path.clone(),
        path.replace("bootstrap.yaml", "bootstrap-package.yaml"),
    ] {
        let mut lint = Lint::new(Names::default());
        lint.add(&path, &std::fs::read_to_string(&path).unwrap())
            .unwrap();
        let report = lint.report();
        assert_eq!(report.findings, [], "{path}");
        assert!(report.notes.iter().any(|note| note.contains("no listener")));
    }
}
