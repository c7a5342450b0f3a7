//! What operators watch: metrics whose series nobody outside can add to, the access
//! log joined with the audit log, and the canary.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use wasm_test::client::DpopKey;
use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::rig::{Rig, authorization, eventually, field, jti};

const OTHER: &str = "/files/notes.txt";
/// Requests whose every value is another.
const DISTINCT: usize = 2_000;

async fn text(url: String) -> String {
    reqwest::get(url).await.unwrap().text().await.unwrap()
}

/// The names of Envoy's statistics that the filter made.
async fn series(rig: &Rig) -> BTreeSet<String> {
    let all = text(format!("{}/stats?filter=writ", rig.system.admin_url())).await;
    let names = all.lines().filter_map(|line| line.split(": ").next());
    names.map(ToOwned::to_owned).collect()
}

/// The series of a page in Prometheus' text format, each with its value; the page
/// has to be one.
fn parse(page: &str) -> Vec<(String, f64)> {
    let mut families = BTreeSet::new();
    let mut found = Vec::new();
    for line in page.lines() {
        if let Some(about) = line.strip_prefix("# ") {
            let mut words = about.splitn(3, ' ');
            let (what, name, rest) = (words.next(), words.next().unwrap(), words.next().unwrap());
            assert!(!rest.is_empty(), "{line}");
            match what {
                Some("HELP") => assert!(families.insert(name.to_owned()), "{name} twice"),
                Some("TYPE") => {
                    assert!(["counter", "gauge", "histogram"].contains(&rest), "{line}")
                }
                _ => panic!("{line}"),
            }
            assert!(name.starts_with("writ_"), "{line}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        let of = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        let family = of
            .filter(|family| families.contains(*family))
            .unwrap_or(name);
        assert!(families.contains(family), "{line} is of no family");
        found.push((series.to_owned(), value.parse().unwrap()));
    }
    let names: BTreeSet<&String> = found.iter().map(|(series, _)| series).collect();
    assert_eq!(names.len(), found.len(), "a series is there twice");
    found
}

fn value(page: &[(String, f64)], series: &str) -> f64 {
    page.iter()
        .find(|(name, _)| name == series)
        .map_or(0.0, |(_, value)| *value)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_adds_a_series() {
    let port = wasm_test::ports::one().unwrap();
    let rig = Rig::start(Options {
        extra_config: format!("[server]\nmetrics_listen = \"127.0.0.1:{port}\"\n"),
        ..Options::default()
    })
    .await;
    let page = async || text(format!("http://127.0.0.1:{port}/metrics")).await;
    // One of each kind first.
    let kinds = ["x", "e30.e30.x"];
    for token in kinds {
        let garbage = [authorization(token), field("dpop", "x")];
        rig.exchange_raw(&rig.request("GET", REPORT, &garbage))
            .await;
    }
    rig.exchange_raw(&rig.request("GET", REPORT, &[])).await;
    let spent = rig.agent.token("GET", REPORT).await.unwrap();
    for _ in 0..2 {
        rig.present(REPORT, &spent).await;
    }
    eventually("it is counted", async || {
        let page = page().await;
        page.contains("writ_edge_refusals_total{reason=\"token_malformed\"")
            && page.contains("writ_edge_refusals_total{reason=\"missing_credentials\"")
            && page.contains("reason=\"token_spent\"")
    })
    .await;
    let before = (series(&rig).await, parse(&page().await));
    let histogram = text(format!(
        "{}/stats?filter=decision_us",
        rig.system.admin_url()
    ))
    .await;
    assert!(histogram.contains("writ.decision_us: P0"), "{histogram}");

    let mut connection = rig.connect().await;
    for number in 0..DISTINCT {
        let headers = [
            field("host", rig.authority()),
            authorization(&format!("a{number}.b{number}.c{number}")),
            field("dpop", format!("d{number}.e.f")),
            field("user-agent", format!("agent-{number}")),
            field("x-request-id", format!("request-{number}")),
        ];
        let path = format!("/files/{number}?q={number}");
        connection
            .send(&wasm_test::raw::message("GET", &path, &headers))
            .await;
        assert_eq!(connection.answer().await.expect("no answer").status, 401);
    }
    let known = value(
        &before.1,
        "writ_edge_refusals_total{reason=\"token_malformed\",mode=\"enforce\"}",
    );
    let after = known + f64::from(u32::try_from(DISTINCT).unwrap());
    let malformed = "writ_edge_refusals_total{reason=\"token_malformed\",mode=\"enforce\"}";
    eventually("all of them are counted", async || {
        value(&parse(&page().await), malformed) >= after
    })
    .await;
    let now = (series(&rig).await, parse(&page().await));
    assert_eq!(now.0, before.0);
    let names = |page: &[(String, f64)]| -> BTreeSet<String> {
        page.iter().map(|(series, _)| series.clone()).collect()
    };
    assert_eq!(names(&now.1), names(&before.1));
    assert!(value(&now.1, "writ_audit_entries_total") > 0.0);
    assert!(value(&now.1, "writ_decision_duration_seconds_count") >= 2.0);
    assert_eq!(value(&now.1, "writ_proxies_connected"), 1.0);
    assert!(
        page().await.contains(
            "writ_filter_connections_total{proxy=\"spiffe://writ.example/proxy\",version="
        )
    );
    promtool(&page().await);
    // Nothing of it is on the listener that agents reach.
    let public = reqwest::get(format!("{}/metrics", rig.system.http_url()))
        .await
        .unwrap();
    assert_eq!(public.status(), 404);
    rig.finish().await;
}

/// Prometheus' own judgement, where it is installed.
fn promtool(page: &str) {
    use std::io::Write as _;
    let tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut tool) = tool else {
        eprintln!("SKIPPED: no promtool on the PATH; the page was parsed all the same");
        return;
    };
    tool.stdin
        .take()
        .unwrap()
        .write_all(page.as_bytes())
        .unwrap();
    let output = tool.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_line_of_the_access_log_has_its_entry() {
    let rig = Rig::start(Options {
        token_lifetime_s: 300,
        ..Options::default()
    })
    .await;
    // Allowed, spent twice, refused by the filter, and by nobody known.
    let good = rig.agent.token("GET", REPORT).await.unwrap();
    for status in [200, 401] {
        assert_eq!(rig.present(REPORT, &good).await.status, status);
    }
    let other = rig.agent.token("GET", REPORT).await.unwrap();
    assert_eq!(
        rig.exchange_raw(&rig.signed("GET", OTHER, &other))
            .await
            .status,
        403
    );
    let thief = DpopKey::generate().unwrap();
    let proof = thief.proof("GET", &rig.agent.url(REPORT), Some(&other));
    let stolen = [authorization(&other), field("dpop", proof)];
    assert_eq!(
        rig.exchange_raw(&rig.request("GET", REPORT, &stolen))
            .await
            .status,
        401
    );
    rig.entry("the mismatch", |entry| {
        entry["kind"] == "edge_denial" && entry["body"]["jti"] == jti(&other)
    })
    .await;

    let lines = || -> Vec<Value> {
        let log = std::fs::read_to_string(rig.system.log("envoy")).unwrap();
        let lines = log.lines().filter(|line| line.starts_with('{'));
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    };
    eventually("Envoy has logged all of them", async || {
        lines()
            .iter()
            .any(|line| line["reason"] == "proof_key_mismatch")
    })
    .await;
    let (lines, entries) = (lines(), rig.entries());
    let (mut allowed, mut refused, mut at_edge, mut unknown) = (0, 0, 0, 0);
    for line in &lines {
        assert!(line["route"] == "files", "{line}");
        let id = line["request_id"].as_str().unwrap();
        let of_request = |entry: &&Value| {
            let body = &entry["body"];
            body["request"]["request_id"] == id || body["request_id"] == id
        };
        let entry = entries.iter().find(of_request);
        let Some(question) = line["question"].as_str() else {
            if line["token_id"].is_null() {
                // Nobody was authenticated: it is in the counts.
                assert!(entry.is_none(), "{line}");
                unknown += 1;
                continue;
            }
            let entry = entry.unwrap_or_else(|| panic!("no entry for {line}"));
            assert_eq!(entry["kind"], "edge_denial", "{line}");
            assert_eq!(entry["body"]["reason"], line["reason"]);
            assert_eq!(entry["body"]["jti"], line["token_id"]);
            at_edge += 1;
            continue;
        };
        let entry = entry.unwrap_or_else(|| panic!("no entry for {line}"));
        assert_eq!(entry["body"]["attempt"], question, "{line}");
        assert!(
            line["decision_us"]
                .as_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
                > 0,
            "{line}"
        );
        match entry["kind"].as_str().unwrap() {
            "allow" => {
                assert_eq!(line["status"], 200);
                assert!(line["reason"].is_null(), "{line}");
                assert_eq!(entry["body"]["token"]["jti"], line["token_id"]);
                allowed += 1;
            }
            kind => {
                assert_eq!(kind, "question_refused", "{line}");
                assert_eq!(entry["body"]["reason"], line["reason"]);
                refused += 1;
            }
        }
    }
    assert!(
        allowed >= 2 && refused >= 1 && at_edge >= 1 && unknown >= 1,
        "{allowed} {refused} {at_edge} {unknown}"
    );
    rig.finish().await;
}

/// Puts a module in place whole, as a deployment would.
pub(super) fn deploy(rig: &Rig, module: &[u8]) {
    let file = rig.system.module_file();
    let beside = file.with_extension("new");
    std::fs::write(&beside, module).unwrap();
    std::fs::rename(&beside, &file).unwrap();
}

/// A filter that lets everything through: the least that a host takes for one.
pub(super) fn open_filter() -> Vec<u8> {
    // (module (memory (export "memory") 1)
    //   (func (export "proxy_abi_version_0_2_1"))
    //   (func (export "malloc") (param i32) (result i32) i32.const 1024))
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    let mut section = |id: u8, body: &[u8]| {
        module.push(id);
        module.push(u8::try_from(body.len()).unwrap());
        module.extend_from_slice(body);
    };
    // Types: () -> (), (i32) -> i32.
    section(1, &[2, 0x60, 0, 0, 0x60, 1, 0x7f, 1, 0x7f]);
    section(3, &[2, 0, 1]);
    section(5, &[1, 0, 1]);
    let mut exports = vec![3];
    for (name, kind, index) in [
        ("memory", 2_u8, 0_u8),
        ("proxy_abi_version_0_2_1", 0, 0),
        ("malloc", 0, 1),
    ] {
        exports.push(u8::try_from(name.len()).unwrap());
        exports.extend_from_slice(name.as_bytes());
        exports.extend_from_slice(&[kind, index]);
    }
    section(7, &exports);
    section(10, &[2, 2, 0, 0x0b, 5, 0, 0x41, 0x80, 0x08, 0x0b]);
    module
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_canary_alarms_when_the_filter_is_replaced_by_an_open_one() {
    let rig = Rig::start(Options {
        extra_config: r#"
[canary]
every_s = 2
[edge]
route = [
  { name = "files", path_prefix = "/", upstream = "{upstream}" },
  { name = "echo", path_prefix = "/echo", upstream = "{upstream}" },
]
"#
        .to_owned(),
        ..Options::default()
    })
    .await;
    let canary = |rig: &Rig| -> Vec<String> {
        let records = rig.records().into_iter().map(|record| record.path);
        records
            .filter(|path| path.ends_with("/.writ-canary"))
            .collect()
    };
    // All is well: its spent tokens are known as such, and nothing of it gets through.
    eventually("the canary has tried both routes", async || {
        let spent = rig.entries_of("question_refused");
        let paths: BTreeSet<&str> = spent
            .iter()
            .filter(|entry| entry["body"]["reason"] == "token_spent")
            .filter_map(|entry| entry["body"]["request"]["path"].as_str())
            .collect();
        paths.len() == 2
    })
    .await;
    assert!(canary(&rig).is_empty());
    assert_eq!(rig.status()["warnings"], serde_json::json!([]));
    assert!(rig.entries_of("canary").is_empty());

    let start = Instant::now();
    let good = std::fs::read(rig.system.module_file()).unwrap();
    deploy(&rig, &open_filter());
    eventually("the alarm is raised for both routes", async || {
        let alarms = rig.entries_of("canary");
        let routes: BTreeSet<&str> = alarms
            .iter()
            .filter(|entry| {
                entry["body"]["event"] == "alarm" && entry["body"]["result"] == "passed"
            })
            .filter_map(|entry| entry["body"]["route"].as_str())
            .collect();
        routes.len() == 2
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(60));
    // What passed was the canary's own, with nothing that would do anything.
    assert!(!canary(&rig).is_empty());
    let warnings = rig.status()["warnings"].to_string();
    assert!(
        warnings.contains("CANARY") && warnings.contains("nothing guards it"),
        "{warnings}"
    );
    let log = std::fs::read_to_string(rig.system.log("control-plane")).unwrap();
    assert!(
        log.lines()
            .any(|line| line.contains("ERROR") && line.contains("CANARY"))
    );

    // The filter is back, and so is the peace.
    deploy(&rig, &good);
    eventually("the alarm is over", async || {
        rig.status()["warnings"] == serde_json::json!([])
    })
    .await;
    rig.recovers().await;
    rig.finish().await;
}
