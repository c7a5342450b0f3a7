//! `writ sidecar`, as an agent uses it that knows nothing of Writ.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use reqwest::{Client, Response};
use serde_json::{Value, json};
use wasm_test::child::Child;
use wasm_test::client::{Approver, Verdict};
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::{KEYS, PAYROLL, REPORT};

use crate::cutter::Cutter;
use crate::plane::{run, text};

/// Who is nobody here.
const OTHER: u32 = 65_534;

/// A sidecar that runs beside a system.
pub struct Side {
    child: Child,
    places: Vec<String>,
    // Others may enter it, unlike the system's own.
    dir: tempfile::TempDir,
}

impl Side {
    pub async fn start(system: &System, args: &[&str]) -> Side {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::Builder::new().prefix("writ-").tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let ready = dir.path().join("ready");
        let mut command = system.writ();
        command.args(["sidecar", "--listen", "127.0.0.1:0", "--target"]);
        command.arg(system.origin());
        command.args(["--listen-unix", "side.sock", "--ready-file"]);
        command.arg(&ready).args(args).current_dir(dir.path());
        let home = dir.path().join("home");
        std::fs::create_dir(&home).unwrap();
        for name in ["STATE", "CONFIG", "DATA", "CACHE"] {
            command.env(format!("XDG_{name}_HOME"), home.join(name));
        }
        command.env("HOME", &home).env("TMPDIR", &home);
        let mut child = Child::spawn("the sidecar", &mut command, &dir.path().join("log")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !ready.exists() {
            child.still_running().unwrap();
            assert!(Instant::now() < deadline, "not ready in 20 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let places = std::fs::read_to_string(&ready).unwrap();
        let places: Vec<String> = places.lines().map(ToOwned::to_owned).collect();
        while !text(&std::fs::read(child.log()).unwrap()).contains(&places[0]) {
            assert!(Instant::now() < deadline, "it does not say where");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Side { child, places, dir }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.places[0])
    }

    /// What it could keep things in.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Where it runs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("side.sock")
    }

    pub async fn get(&self, path: &str) -> Response {
        client().get(self.url(path)).send().await.unwrap()
    }
}

/// A client of no particular kind.
fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

/// Status and the problem document's reason.
async fn refusal(response: Response) -> (u16, String, Value) {
    let status = response.status().as_u16();
    let kind = response.headers()["content-type"]
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(kind, "application/problem+json", "{status}");
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["type"], problem["reason"]);
    (
        status,
        problem["reason"].as_str().unwrap().to_owned(),
        problem,
    )
}

/// Everything under /files/ may be done; what is restricted waits for a person.
pub fn options(dir: &Path) -> Options {
    let path = dir.join("policy.cedar");
    let text = r#"
permit (principal is Writ::Agent, action, resource) when { resource.path like "/files/*" };
@id("restricted-needs-approval")
@approvers("platform")
forbid (principal, action, resource)
when { resource.path like "/files/restricted/*" }
unless { context.approvals.contains("restricted-needs-approval") };
@id("closed")
@tell("agent")
@reason("Closed until Friday.")
forbid (principal, action, resource)
when { resource.path like "/files/closed/*" };
"#;
    std::fs::write(&path, text).unwrap();
    Options {
        policy: Some(path),
        hold_s: 1,
        ..Options::default()
    }
}

#[tokio::test]
async fn a_plain_client_gets_answers_and_the_upstream_each_request_once() {
    let dir = tempfile::tempdir().unwrap();
    let system = System::for_test(options(dir.path())).await.unwrap();
    let side = Side::start(&system, &[]).await;
    let upstream = system.upstream().unwrap();
    let mark = upstream.mark();

    let answer = side.get(REPORT).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.unwrap().contains("Quarterly report"));
    let spoofed = [
        ("authorization", "Bearer not-needed"),
        ("dpop", "x"),
        ("x-writ-agent", "spiffe://evil.example/a"),
        ("x-writ-user", "root"),
        ("x-envoy-original-path", "/admin/keys.txt"),
        ("x-forwarded-for", "10.9.9.9"),
        ("forwarded", "for=10.9.9.9"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("x-mine", "kept"),
    ];
    let mut request = client()
        .post(side.url("/files/echo?a=1&b=%20"))
        .body("hello");
    for (name, value) in spoofed {
        request = request.header(name, value);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json::<Value>().await.unwrap()["body_bytes"], 5);

    let records = upstream.records_since(mark).unwrap();
    let lines: Vec<_> = records
        .iter()
        .map(|it| (it.method.as_str(), it.path.as_str()))
        .collect();
    assert_eq!(lines, [("GET", REPORT), ("POST", "/files/echo?a=1&b=%20")]);
    for record in &records {
        let agents: Vec<_> = record
            .headers
            .iter()
            .filter(|(name, _)| name == "x-writ-agent")
            .collect();
        assert_eq!(agents, [&("x-writ-agent".to_owned(), AGENT.to_owned())]);
        for gone in ["authorization", "dpop", "x-writ-user", "forwarded", "x-hop"] {
            assert_eq!(record.header(gone), None, "{gone}");
        }
        let all = format!("{:?}", record.headers);
        assert!(
            !all.contains("10.9.9.9") && !all.contains("keys.txt"),
            "{all}"
        );
    }
    assert_eq!(records[1].header("x-mine"), Some("kept"));

    // The issuer's no.
    let (status, reason, problem) = refusal(side.get(KEYS).await).await;
    assert_eq!((status, reason.as_str()), (403, "policy_denied"));
    assert!(problem["request_id"].as_str().unwrap().starts_with("req_"));
    assert_eq!(problem["error"], "access_denied");
    assert_eq!(problem["why"], Value::Null);
    let (_, reason, problem) = refusal(side.get("/files/closed/a.txt").await).await;
    assert_eq!(reason, "policy_denied");
    assert_eq!(problem["why"], json!(["Closed until Friday."]));
    for (more, stdout) in [(None, false), (Some("--json"), true)] {
        let mut call = system.writ();
        call.env_remove("XDG_STATE_HOME").arg("call").args(more);
        call.arg(format!("{}/files/closed/a.txt", system.proxy_url()));
        let said = run(call).await;
        assert_eq!(said.status.code(), Some(1));
        if stdout {
            let said: Value = serde_json::from_slice(&said.stdout).unwrap();
            assert_eq!(said["why"], json!(["Closed until Friday."]));
        } else {
            let said = text(&said.stderr);
            assert!(said.contains("  why: Closed until Friday."), "{said}");
        }
    }
    // Refused before a token is asked for.
    let big = vec![b'x'; 8 * 1024 * 1024 + 1];
    let big = client()
        .post(side.url("/files/echo"))
        .body(big)
        .send()
        .await;
    // It may be hung up on while it still sends.
    if let Ok(answer) = big {
        assert_eq!(refusal(answer).await.1, "too_large");
    }
    assert_eq!(upstream.records_since(mark).unwrap().len(), 2);
    system.stop().await;
}

#[tokio::test]
async fn an_answer_streams_and_a_stop_lets_it_end() {
    let dir = tempfile::tempdir().unwrap();
    let system = System::for_test(options(dir.path())).await.unwrap();
    let mut side = Side::start(&system, &[]).await;
    let mut answer = side.get(&format!("{REPORT}?drip=30")).await;
    let first = answer.chunk().await.unwrap().unwrap();
    let begun = Instant::now();
    side.child.terminate();
    let mut bytes = first.len();
    while let Some(chunk) = answer.chunk().await.unwrap() {
        bytes += chunk.len();
    }
    assert!(
        begun.elapsed() > Duration::from_millis(1500),
        "it came at once"
    );
    assert_eq!(bytes, 30 * b"data: .\n\n".len());
    let deadline = Instant::now() + Duration::from_secs(5);
    let ended = loop {
        match side.child.ended() {
            Some(status) => break status,
            None => assert!(Instant::now() < deadline, "it does not end"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(ended.code(), Some(0));
    assert!(!side.socket().exists());
    system.stop().await;
}

/// curl as another user.
fn curl_as(uid: u32, args: &[&str]) -> Command {
    let uid = uid.to_string();
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        &uid,
        "--regid",
        &uid,
        "--clear-groups",
        "curl",
        "-sS",
        "--noproxy",
        "*",
    ]);
    command.args(args).current_dir("/");
    command
}

fn reason_of(output: &Output) -> String {
    let problem: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let reason = problem["reason"].as_str().map(ToOwned::to_owned);
    reason.unwrap_or_else(|| text(&output.stdout))
}

#[tokio::test]
async fn another_users_process_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("LEFT OUT: only root can run a process as another user");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let system = System::for_test(options(dir.path())).await.unwrap();
    let side = Side::start(&system, &[]).await;
    let before = system.upstream().unwrap().arrived();
    let refused = run(curl_as(OTHER, &[&side.url(REPORT)])).await;
    assert_eq!(reason_of(&refused), "caller_refused", "{refused:?}");
    let socket = side.socket().display().to_string();
    let closed = run(curl_as(
        OTHER,
        &["--unix-socket", &socket, &side.url(REPORT)],
    ))
    .await;
    assert_eq!(
        closed.status.code(),
        Some(7),
        "its mode is 0600: {closed:?}"
    );
    assert_eq!(system.upstream().unwrap().arrived(), before);
    let own = run(curl_as(
        0,
        &["--unix-socket", &socket, "http://any.name/files/report.txt"],
    ))
    .await;
    assert!(reason_of(&own).starts_with("Quarterly report"), "{own:?}");
    assert_eq!(system.upstream().unwrap().arrived(), before + 1);

    let side = Side::start(&system, &["--allow-uid", &OTHER.to_string()]).await;
    let socket = side.socket().display().to_string();
    for via in [&[][..], &["--unix-socket", &socket]] {
        let mut args = via.to_vec();
        let url = side.url(REPORT);
        args.push(&url);
        let taken = run(curl_as(OTHER, &args)).await;
        assert!(
            reason_of(&taken).starts_with("Quarterly report"),
            "{taken:?}"
        );
        let refused = run(curl_as(0, &args)).await;
        assert_eq!(reason_of(&refused), "caller_refused", "{via:?}");
    }
    assert_eq!(system.upstream().unwrap().arrived(), before + 3);
    system.stop().await;
}

#[tokio::test]
async fn what_a_page_or_a_foreign_name_sends_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let system = System::for_test(options(dir.path())).await.unwrap();
    let side = Side::start(&system, &["--allow-host", "tools.internal:1"]).await;
    let before = system.upstream().unwrap().arrived();
    for (name, value, reason) in [
        ("host", "evil.example", "host_refused"),
        ("host", "127.0.0.1:1", "host_refused"),
        ("origin", "http://evil.example", "host_refused"),
        ("sec-fetch-site", "cross-site", "host_refused"),
        ("upgrade", "websocket", "request_refused"),
    ] {
        let request = client().get(side.url(REPORT)).header(name, value);
        let (_, said, _) = refusal(request.send().await.unwrap()).await;
        assert_eq!(said, reason, "{name}: {value}");
    }
    assert_eq!(system.upstream().unwrap().arrived(), before);
    let named = client()
        .get(side.url(REPORT))
        .header("host", "tools.internal:1");
    assert_eq!(named.send().await.unwrap().status(), 200);

    // What it does not start with.
    for (args, why) in [
        (["--listen", "0.0.0.0:0"], "machine alone"),
        (["--listen", "10.0.0.1:80"], "machine alone"),
    ] {
        let mut command = system.writ();
        command
            .arg("sidecar")
            .args(args)
            .args(["--target", &system.origin()]);
        let output = run(command).await;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(text(&output.stderr).contains(why), "{output:?}");
    }
    system.stop().await;
}

#[tokio::test]
async fn a_held_request_waits_for_the_person() {
    let dir = tempfile::tempdir().unwrap();
    // The same is asked again after a no.
    let asks_again = Options {
        extra_config: "[approval]\ndenied_s = 0\n".to_owned(),
        ..options(dir.path())
    };
    let system = System::for_test(asks_again).await.unwrap();
    let approver = system.approver().await.unwrap();
    let upstream = system.upstream().unwrap();
    let side = Side::start(&system, &["--wait", "30"]).await;
    for (verdict, status, passed) in [(Verdict::Approve, 200, 1), (Verdict::Deny, 403, 0)] {
        let before = upstream.arrived();
        let answer = decided(&side, &approver, verdict).await;
        assert_eq!(answer.status(), status);
        if status == 403 {
            assert_eq!(refusal(answer).await.1, "approval_denied");
        } else {
            assert!(answer.text().await.unwrap().contains("salary"));
        }
        assert_eq!(upstream.arrived() - before, passed);
    }
    // Nobody decides: the edge's own document, as it came.
    let before = upstream.arrived();
    let side = Side::start(&system, &["--wait", "1"]).await;
    let answer = side.get(PAYROLL).await;
    assert!(answer.headers().contains_key("retry-after"));
    let (status, reason, problem) = refusal(answer).await;
    assert_eq!((status, reason.as_str()), (403, "approval_pending"));
    assert!(
        problem["status_url"]
            .as_str()
            .unwrap()
            .starts_with(&system.issuer())
    );
    assert_eq!(upstream.arrived(), before);
    system.stop().await;
}

/// Asks, lets the proxy's own hold pass, and decides.
async fn decided(side: &Side, approver: &Approver, verdict: Verdict) -> Response {
    let known = approver.inbox().await.unwrap();
    let request = client().get(side.url(PAYROLL));
    let waiting = tokio::spawn(request.send());
    let id = approver
        .next(&known, Duration::from_secs(10))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(
        !waiting.is_finished(),
        "it gave up at the end of the proxy's hold"
    );
    assert_eq!(approver.decide(&id, verdict).await.unwrap().status, 303);
    waiting.await.unwrap().unwrap()
}

#[tokio::test]
async fn without_a_control_plane_nothing_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let mut system = System::for_test(options(dir.path())).await.unwrap();
    let side = Side::start(&system, &[]).await;
    assert_eq!(side.get(REPORT).await.status(), 200);
    let before = system.upstream().unwrap().arrived();
    system.stop_control_plane().await;
    let answer = side.get(REPORT).await;
    assert!(answer.headers().contains_key("retry-after"));
    let (status, reason, _) = refusal(answer).await;
    assert_eq!(
        (status, reason.as_str()),
        (503, "control_plane_unavailable")
    );
    assert_eq!(system.upstream().unwrap().arrived(), before);
    system.start_control_plane().await.unwrap();
    // Envoy's stream comes back by itself, and what it turns away till then has
    // spent nothing.
    let deadline = Instant::now() + Duration::from_secs(20);
    while side.get(REPORT).await.status() != 200 {
        assert!(Instant::now() < deadline, "it does not come back");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(system.upstream().unwrap().arrived(), before + 1);
    system.stop_envoy().await;
    let (status, reason, _) = refusal(side.get(REPORT).await).await;
    assert_eq!((status, reason.as_str()), (502, "proxy_unavailable"));
    system.stop().await;
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_and_nothing_is_done_twice() {
    let dir = tempfile::tempdir().unwrap();
    // The sidecar uses the cutter's address, so that is the origin; Envoy is behind it.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let options = Options {
        extra_config: format!("[edge]\norigin = {origin:?}"),
        origin: Some(origin),
        ..options(dir.path())
    };
    let system = System::for_test(options).await.unwrap();
    let envoy = system.proxy_url().replace("http://", "").parse().unwrap();
    let cutter = Cutter::start(listener, envoy);
    let side = Side::start(&system, &[]).await;
    let upstream = system.upstream().unwrap();
    // Each request has a connection of its own, since each is cut.
    let (before, seen) = (upstream.arrived(), cutter.seen());
    cutter.cut_next(1);
    let (status, reason, problem) = refusal(side.get(REPORT).await).await;
    assert_eq!((status, reason.as_str()), (502, "answer_lost"), "{problem}");
    assert_eq!(problem["first_use"]["result"], "forwarded");
    assert_eq!(problem["first_use"]["upstream_status"], 200);
    assert!(cutter.seen() - seen >= 2);
    assert_eq!(upstream.arrived() - before, 1, "done once");
    system.stop().await;
    drop(cutter);
}

#[tokio::test]
async fn an_unknown_outcome_is_said_and_never_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let options = Options {
        extra_config: format!("[edge]\norigin = {origin:?}"),
        origin: Some(origin),
        ..options(dir.path())
    };
    let system = System::for_test(options).await.unwrap();
    let envoy = system.proxy_url().replace("http://", "").parse().unwrap();
    let cutter = Cutter::start(listener, envoy);
    let side = Side::start(&system, &[]).await;
    let upstream = system.upstream().unwrap();
    let (before, seen) = (upstream.arrived(), cutter.seen());
    cutter.cut_next(9);
    let answer = side.get(REPORT).await;
    assert_eq!(answer.headers()["x-should-retry"], "false");
    let (status, reason, problem) = refusal(answer).await;
    assert_eq!(
        (status, reason.as_str()),
        (502, "outcome_unknown"),
        "{problem}"
    );
    assert_eq!(cutter.seen() - seen, 2, "shown once more, and no more");
    assert_eq!(upstream.arrived() - before, 1);

    // A filter of before does not say that its refusal of the second showing is its own.
    cutter.hide_whose();
    cutter.cut_next(1);
    let (status, reason, _) = refusal(side.get(REPORT).await).await;
    assert_eq!((status, reason.as_str()), (502, "outcome_unknown"));
    assert_eq!(upstream.arrived() - before, 2);
    system.stop().await;
    drop(cutter);
}
