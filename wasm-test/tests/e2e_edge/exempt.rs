//! What passes without a token, by name and no further; and the check that says
//! so of the running Envoy's own configuration.

use std::path::PathBuf;

use capability::headers::{CREDENTIALS, REINTERPRETING};
use serde_json::{Value, json};
use wasm_test::client::Answer;
use wasm_test::ports;
use wasm_test::system::Options;
use wasm_test::upstream::{REPORT, Record, Upstream};

use super::headers::{other_spellings, spelt_otherwise};
use super::rig::{Field, Rig, field, message};

const APP: &str = "https://app.example";

/// A system with a bit of everything exempt, and an unguarded upstream.
struct Open {
    rig: Rig,
    open: Upstream,
    _logs: tempfile::TempDir,
}

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Guarded,
    Open,
    Envoy,
}

impl Open {
    async fn start() -> Self {
        let logs = tempfile::tempdir().unwrap();
        let open = Upstream::start(0, Some(&logs.path().join("open"))).unwrap();
        let ports = ports::free(None).unwrap();
        let guarded = ports.upstream;
        let config = format!(
            r#"
[[edge.route]]
name = "files"
path_prefix = "/"
upstream = "127.0.0.1:{guarded}"

[[edge.route]]
name = "echo"
path_prefix = "/echo"
upstream = "127.0.0.1:{guarded}"

[[edge.unguarded]]
name = "assets"
path_prefix = "/echo/open"
upstream = "{}"

[[edge.unguarded]]
name = "public"
path_prefix = "/echo/public"
upstream = "localhost:{guarded}"
shares_upstream_with = ["files", "echo"]

[[edge.probe]]
name = "health"
path = "/echo/healthz"
route = "files"

[[edge.probe]]
name = "alive"
path = "/alive"

[[edge.preflight]]
name = "answered"
route = "files"
origins = ["{APP}"]

[[edge.preflight]]
name = "passed"
route = "echo"
"#,
            open.address()
        );
        let options = Options {
            wanted_ports: Some(ports),
            extra_config: config,
            ..Options::default()
        };
        Self {
            rig: Rig::start(options).await,
            open,
            _logs: logs,
        }
    }

    fn arrived(&self) -> (u64, u64) {
        (self.rig.arrived(), self.open.arrived())
    }

    /// Sends a request, and says who got it.
    async fn send(&self, method: &str, path: &str, more: &[Field]) -> (Answer, By) {
        let mut headers = vec![field("host", self.rig.authority())];
        headers.extend_from_slice(more);
        let before = self.arrived();
        let answer = self
            .rig
            .exchange_raw(&message(method, path, &headers))
            .await;
        let now = self.arrived();
        let by = match (now.0 - before.0, now.1 - before.1) {
            (0, 0) => By::Envoy,
            (1, 0) => By::Guarded,
            (0, 1) => By::Open,
            more => panic!("{method} {path} arrived {more:?} times"),
        };
        (answer, by)
    }

    fn last(&self, by: By) -> Record {
        let records = match by {
            By::Guarded => self.rig.records(),
            By::Open => self.open.records().unwrap(),
            By::Envoy => Vec::new(),
        };
        records.into_iter().next_back().expect("no record")
    }
}

/// What a browser asks before a request of this page.
fn preflight(origin: &str) -> Vec<Field> {
    vec![
        field("origin", origin),
        field("access-control-request-method", "GET"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_named_passes_and_nothing_beside_it() {
    let open = Open::start().await;
    let ours = preflight(APP);
    let theirs = preflight("https://evil.example");
    let half = vec![field("origin", APP)];
    let none: Vec<Field> = Vec::new();
    let passes: [(&str, &str, &[Field], u16, By); 15] = [
        ("GET", "/echo/open/style.css", &none, 200, By::Open),
        ("GET", "/echo/open", &none, 200, By::Open),
        ("POST", "/echo/open/x?y=%2F..%2F", &none, 200, By::Open),
        // These mean the same to everybody, and Envoy says it so.
        ("GET", "/echo/x/../open/x", &none, 200, By::Open),
        ("GET", "/echo/%6fpen/x", &none, 200, By::Open),
        ("GET", "/echo/open/;x/../y", &none, 200, By::Open),
        ("GET", "/echo/public/x", &none, 200, By::Guarded),
        ("GET", "/echo/healthz", &none, 200, By::Guarded),
        ("GET", "/alive", &none, 200, By::Envoy),
        ("OPTIONS", REPORT, &ours, 204, By::Envoy),
        ("OPTIONS", "/", &ours, 204, By::Envoy),
        ("OPTIONS", "/echo/x?y=1", &ours, 200, By::Guarded),
        ("OPTIONS", "/echo/x", &theirs, 200, By::Guarded),
        ("OPTIONS", "/echo/open/x", &none, 200, By::Open),
        ("OPTIONS", "/files/open", &ours, 204, By::Envoy),
    ];
    for (method, path, headers, status, by) in passes {
        let (answer, got) = open.send(method, path, headers).await;
        assert_eq!(
            (answer.status, got),
            (status, by),
            "{method} {path}: {}",
            answer.text()
        );
    }
    // Nor does an upstream there say what the edge alone says.
    for path in ["/echo/open/x?spoof=1", "/echo/public/x?spoof=1"] {
        let (answer, _) = open.send("GET", path, &none).await;
        assert_eq!(answer.header("x-own"), Some("stays"), "{path}");
        assert_eq!(answer.header("x-writ-reason"), None, "{path}");
    }
    let refused: [(&str, &str, &[Field]); 26] = [
        ("GET", "/echo/openx", &none),
        ("GET", "/echo", &none),
        ("GET", "/ECHO/open", &none),
        ("GET", "/echo/Open/x", &none),
        ("GET", "/echo/open/../x", &none),
        ("GET", "/echo/open/%2e%2e/x", &none),
        // What an upstream may read as a way out.
        ("GET", "/echo/open/..;/x", &none),
        ("GET", "/echo/open/a%20b", &none),
        ("GET", "/echo/open/%252e%252e/x", &none),
        ("GET", "/echo/open/%c0%ae%c0%ae/x", &none),
        ("GET", "/echo/open/*", &none),
        ("GET", "/echo/public/..;/x", &none),
        ("GET", "/echo/healthz?x", &none),
        ("GET", "/echo/healthz/", &none),
        ("GET", "/echo/healthzz", &none),
        ("PUT", "/echo/healthz", &none),
        ("POST", "/echo/healthz", &none),
        ("OPTIONS", "/echo/healthz", &none),
        ("POST", "/alive", &none),
        ("GET", "/alive?x", &none),
        ("OPTIONS", REPORT, &theirs),
        ("OPTIONS", REPORT, &half),
        ("OPTIONS", REPORT, &none),
        ("GET", REPORT, &ours),
        ("OPTIONS", "/echo/a;b", &ours),
        ("POST", "/echo/x", &ours),
    ];
    for (method, path, headers) in refused {
        let (answer, got) = open.send(method, path, headers).await;
        assert_eq!(got, By::Envoy, "{method} {path}: {}", answer.status);
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (401, "missing_credentials"),
            "{method} {path}"
        );
    }
    open.rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_credential_and_nothing_of_another_request_reaches_an_upstream_unguarded() {
    let open = Open::start().await;
    for (method, path, by) in [
        ("GET", "/echo/open/x", By::Open),
        ("GET", "/echo/public/x", By::Guarded),
        ("GET", "/echo/healthz", By::Guarded),
        ("OPTIONS", "/echo/x", By::Guarded),
    ] {
        let token = open.rig.agent.token("GET", REPORT).await.unwrap();
        let mut headers = open.rig.credentials("GET", REPORT, &token);
        headers.extend(preflight(APP));
        let names: Vec<String> = ["x-writ-agent", "x-writ-token-id", "x-envoy-retry-on"]
            .iter()
            .chain(&CREDENTIALS)
            .chain(&REINTERPRETING)
            .map(|name| (*name).to_owned())
            .collect();
        for name in &names {
            headers.push(field(name, "/admin/delete"));
        }
        headers.push(field("X-Original-URL", "/admin/delete"));
        let (got, who) = open.send(method, path, &headers).await;
        assert_eq!((got.status, who), (200, by), "{method} {path}");
        let record = open.last(who);
        for name in &names {
            assert_eq!(record.header(name), None, "{method} {path}: {name}");
        }
        assert!(!format!("{record:?}").contains(&token), "{record:?}");
        let mut spelt = preflight(APP);
        spelt.extend(other_spellings().iter().map(|name| field(name, "/admin")));
        spelt.push(field("x.own", "kept"));
        let (got, who) = open.send(method, path, &spelt).await;
        assert_eq!((got.status, who), (200, by), "{method} {path}");
        let record = open.last(who);
        assert_eq!(spelt_otherwise(&record), Vec::<&str>::new(), "{path}");
        assert_eq!(record.header("x.own"), Some("kept"), "{path}");
        // It was not looked at, so it is not spent.
        let later = open.rig.present(REPORT, &token).await;
        assert_eq!(later.status, 200, "{}", later.text());
    }
    let (answer, _) = open.send("OPTIONS", REPORT, &preflight(APP)).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some(APP));
    assert_eq!(
        answer.header("access-control-allow-headers"),
        Some("authorization, dpop, content-type")
    );
    assert_eq!(answer.header("vary"), Some("Origin"));
    open.rig.finish().await;
}

/// `writ edge check`, and what it found.
fn check(rig: &Rig, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = rig.system.writ();
    let output = command
        .args(["edge", "check", "--json"])
        .args(arguments)
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| json!({ "unreadable": String::from_utf8_lossy(&output.stderr) }));
    (output.status.code(), report)
}

fn rules(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().into_iter().flatten();
    findings
        .map(|found| found["rule"].as_str().unwrap())
        .collect()
}

/// The running Envoy's own configuration, in a file, as it is and changed.
async fn dumped(rig: &Rig, change: impl FnOnce(&str) -> String) -> PathBuf {
    let url = format!("{}/config_dump", rig.system.admin_url());
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    let changed = change(&text);
    let path = rig.system.state_dir().join("dump.json");
    std::fs::write(&path, changed).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_control_plane_serves_passes_its_own_check() {
    let rig = Rig::start(Options::default()).await;
    let file = dumped(&rig, str::to_owned).await.display().to_string();
    let (code, report) = check(&rig, &[&file]);
    assert_eq!((code, rules(&report)), (Some(0), vec![]), "{report:#}");
    assert_eq!(report["guarded_routes"], 1, "{report:#}");
    // It is looked at, and not past.
    for (from, to, rule) in [
        ("FAIL_RELOAD", "FAIL_OPEN", "fails_open"),
        ("\"inline_bytes\"", "\"inline_string\"", ""),
        ("\"local\"", "\"remote\"", "remote_module"),
        (
            "\"normalize_path\": true",
            "\"normalize_path\": false",
            "path_not_normal",
        ),
        (
            "\"prefix\": \"x-envoy-\"",
            "\"prefix\": \"x-envoy-a\"",
            "headers_not_stripped",
        ),
        ("\"match\": {", "\"match\": {\"grpc\": {}, ", "matches_on"),
        (
            "\"use_remote_address\": true",
            "\"use_remote_address\": false",
            "clients_trusted",
        ),
        (
            "envoy.extensions.filters.http.router.v3.Router",
            "envoy.extensions.filters.http.lua.v3.Lua",
            "filter_after",
        ),
    ] {
        dumped(&rig, |text| {
            assert!(text.contains(from), "the dump has no {from}");
            text.replace(from, to)
        })
        .await;
        let (code, report) = check(&rig, &[&file]);
        if rule.is_empty() {
            assert_eq!(code, Some(0), "{report:#}");
        } else {
            assert_eq!(code, Some(1), "{rule}");
            assert!(rules(&report).contains(&rule), "{rule}: {report:#}");
        }
    }
    let (code, _) = check(&rig, &["/nowhere/dump.json"]);
    assert_eq!(code, Some(2));
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_exempt_is_said_everywhere_and_checked_by_its_names() {
    let open = Open::start().await;
    let rig = &open.rig;
    let told = [
        "assets: /echo/open to ",
        "health: GET /echo/healthz answered by the upstream of files",
        "passed: CORS preflights of echo answered by its upstream",
    ];
    let status = rig.status();
    let shown = rig.system.writ().arg("status").output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let entry = rig.entries_of("config").remove(0);
    let log = std::fs::read_to_string(rig.system.log("control-plane")).unwrap();
    for words in told {
        let warned = format!("WARNING   UNGUARDED by name, no token is asked for: {words}");
        assert!(shown.contains(&warned), "{shown}");
        assert!(status["warnings"].to_string().contains(words), "{status:#}");
        assert!(
            entry["body"]["exempt"].to_string().contains(words),
            "{entry:#}"
        );
        assert!(
            log.contains(&format!(
                "UNGUARDED by name, no token is asked for: {words}"
            )),
            "{words}"
        );
    }
    let file = dumped(rig, str::to_owned).await.display().to_string();
    let config = rig
        .system
        .state_dir()
        .join("writ.toml")
        .display()
        .to_string();
    let (code, report) = check(rig, &["--config", &config, &file]);
    assert_eq!((code, rules(&report)), (Some(0), vec![]), "{report:#}");
    // Without the names nothing is exempt, and each is told of.
    let (code, report) = check(rig, &[&file]);
    assert_eq!(code, Some(1));
    let text = report.to_string();
    for name in ["assets", "public", "health", "passed"] {
        assert!(
            text.contains(&format!("{name}\\\": the filter is switched off")),
            "{name}: {report:#}"
        );
    }
    // Named, but not as one that may share the guarded upstream.
    let named = ["assets", "public", "health", "passed"].map(|name| format!("--unguarded={name}"));
    let mut arguments: Vec<&str> = named.iter().map(String::as_str).collect();
    arguments.push(&file);
    let (code, report) = check(rig, &arguments);
    assert_eq!(
        (code, rules(&report)),
        (Some(1), vec!["shared_upstream"; 3]),
        "{report:#}"
    );
    open.rig.finish().await;
}
