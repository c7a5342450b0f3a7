//! Requests that are under way when what allowed them is stopped: answers that still
//! stream and uploads that still come end within a second, at every proxy, also when
//! the control plane did not see them begin.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};
use wasm_test::client::{Agent, Operator};
use wasm_test::cut::Mode;
use wasm_test::raw::{Http1, field, message};
use wasm_test::stage::Stage;
use wasm_test::system::{AGENT, Options};

use super::reload::relabelled;
use super::rig::{authorization, eventually, sha256};

const ENVOYS: usize = 3;
/// Ten pieces a second, for longer than any test.
const STREAM: &str = "/files/stream?drip=6000";
const WITHIN: Duration = Duration::from_secs(1);
/// `/echo/seen` observes; the rest enforces.
const ROUTES: &str = r#"
[edge]
route = [
  { name = "files", path_prefix = "/", upstream = "{upstream}" },
  { name = "seen", path_prefix = "/echo/seen", upstream = "{upstream}", mode = "observe", shares_upstream_with = ["files"] },
]
"#;

fn options(envoys: usize) -> Options {
    Options {
        envoys,
        concurrency: 1,
        token_lifetime_s: 300,
        ..Options::default()
    }
}

/// A request that is under way.
struct Going {
    connection: Http1,
    token: String,
}

impl Going {
    async fn to(stage: &Stage, agent: &Agent, envoy: usize, path: &str) -> Going {
        let token = agent.token("GET", path).await.unwrap();
        let mut going = Going {
            connection: stage.connect_to(envoy).await.unwrap(),
            token,
        };
        let bytes = signed(agent, "GET", path, &going.token, &[]);
        going.connection.send(&bytes).await.unwrap();
        let begun = going.connection.answers_within(Duration::from_secs(10));
        assert!(begun.await, "it does not begin");
        going
    }

    /// An upload whose body does not end.
    async fn upload(stage: &Stage, agent: &Agent, envoy: usize) -> Going {
        let path = "/echo/upload";
        let token = agent.token("PUT", path).await.unwrap();
        let arrived = stage.arrived().unwrap();
        let mut connection = stage.connect_to(envoy).await.unwrap();
        let mut bytes = signed(agent, "PUT", path, &token, &[("content-length", "100")]);
        bytes.extend_from_slice(b"a part of it");
        connection.send(&bytes).await.unwrap();
        eventually("the upload reaches the upstream", async || {
            stage.arrived().unwrap() > arrived
        })
        .await;
        Going { connection, token }
    }

    /// How long after that moment it ended, and that its answer was not whole.
    async fn ends(&mut self, since: Instant) -> Duration {
        let rest = self.connection.until_it_ends().await.unwrap();
        let took = since.elapsed();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "it came to its own end");
        took
    }

    async fn goes_on(&mut self) {
        // What has come already says nothing.
        for _ in 0..3 {
            let more = self.connection.next_piece(Duration::from_secs(2)).await;
            assert!(more.unwrap() > 0, "it was ended");
        }
    }
}

fn signed(agent: &Agent, method: &str, path: &str, token: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let proof = agent.key().proof(method, &agent.url(path), Some(token));
    let mut headers = vec![
        field("host", agent.authority()),
        authorization(token),
        field("dpop", proof),
    ];
    headers.extend(more.iter().map(|(name, value)| field(name, *value)));
    message(method, path, &headers)
}

/// Stops a target; when that was acknowledged.
async fn stop(operator: &Operator, target: &Value) -> Instant {
    operator.stop(target).await.unwrap();
    Instant::now()
}

/// Each ends in time.
async fn all_end(going: &mut [Going], since: Instant) {
    let took = join_all(going.iter_mut().map(|it| it.ends(since))).await;
    assert!(took.iter().all(|took| *took < WITHIN), "{took:?}");
}

fn entries(stage: &Stage, kind: &str) -> Vec<Value> {
    let all = stage.entries().unwrap();
    all.into_iter().filter(|it| it["kind"] == kind).collect()
}

/// The log says of each that it was ended, and why.
async fn said_in_the_log(stage: &Stage, going: &[Going], reason: &str) {
    let details = format!("writ: ended, {reason}");
    eventually("each outcome is in the log", async || {
        let allowed = entries(stage, "allow");
        let outcomes = entries(stage, "outcome");
        going.iter().all(|going| {
            let hash = sha256(going.token.as_bytes());
            let allow = allowed
                .iter()
                .find(|it| it["body"]["token"]["hash"] == hash.as_str())
                .unwrap();
            let attempt = &allow["body"]["attempt"];
            let outcome = outcomes.iter().find(|it| it["body"]["attempt"] == *attempt);
            outcome.is_some_and(|it| it["body"]["details"] == details.as_str())
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stopped_ends_at_every_proxy_and_nothing_else_does() {
    let stage = Stage::start(Options {
        extra_config: ROUTES.to_owned(),
        ..options(ENVOYS)
    })
    .await
    .unwrap();
    let operator = stage.system.operator().await.unwrap();
    let agent = &stage.agent;
    let other = agent.with_fresh_key().unwrap();
    let mut bystanders = Vec::new();
    for envoy in 0..ENVOYS {
        bystanders.push(Going::to(&stage, &other, envoy, STREAM).await);
    }
    // Where the route only observes nothing is ended.
    let mut observed = Going::to(&stage, agent, 0, "/echo/seen/stream?drip=6000").await;
    let key = json!({ "key": agent.key().thumbprint() });
    for what in ["token", "key"] {
        let mut going = Vec::new();
        for envoy in 0..ENVOYS {
            going.push(Going::to(&stage, agent, envoy, STREAM).await);
            going.push(Going::upload(&stage, agent, envoy).await);
        }
        if what == "token" {
            let target = json!({ "token": sha256(going[0].token.as_bytes()) });
            let since = stop(&operator, &target).await;
            all_end(&mut going[..1], since).await;
            for going in going.iter_mut().skip(2).step_by(2) {
                going.goes_on().await;
            }
            said_in_the_log(&stage, &going[..1], "token_revoked").await;
            continue;
        }
        let since = stop(&operator, &key).await;
        all_end(&mut going, since).await;
        said_in_the_log(&stage, &going, "token_revoked").await;
        operator.lift(&key).await.unwrap();
    }
    for going in bystanders.iter_mut().chain([&mut observed]) {
        going.goes_on().await;
    }
    // Now all of it, in two ways that are said otherwise.
    let since = stop(&operator, &json!({ "agent": AGENT })).await;
    all_end(&mut bystanders, since).await;
    operator.lift(&json!({ "agent": AGENT })).await.unwrap();
    let mut going = vec![Going::to(&stage, agent, 1, STREAM).await];
    let suspended = json!({ "agent": AGENT, "state": "suspended", "why": "a test" });
    operator
        .send(reqwest::Method::PUT, "/api/v1/agents", &suspended)
        .await
        .unwrap();
    all_end(&mut going, Instant::now()).await;
    said_in_the_log(&stage, &going, "agent_inactive").await;
    observed.goes_on().await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_control_plane_let_through_ends_as_well() {
    let mut stage = Stage::start(options(2)).await.unwrap();
    let mut going = Vec::new();
    for envoy in 0..2 {
        going.push(Going::to(&stage, &stage.agent, envoy, STREAM).await);
    }
    let other = stage.agent.with_fresh_key().unwrap();
    let mut bystander = Going::to(&stage, &other, 0, STREAM).await;
    for _ in 0..2 {
        stage.system.kill_control_plane();
        // Without it what was let through goes on.
        for going in &mut going {
            going.goes_on().await;
        }
        stage.system.start_control_plane().await.unwrap();
        stage.recovers().await.unwrap();
    }
    let operator = stage.system.operator().await.unwrap();
    let key = json!({ "key": stage.agent.key().thumbprint() });
    let since = stop(&operator, &key).await;
    all_end(&mut going, since).await;
    bystander.goes_on().await;
    eventually("the log has their ends", async || {
        let late = entries(&stage, "late_outcome");
        going.iter().all(|going| {
            let hash = sha256(going.token.as_bytes());
            late.iter().any(|it| {
                it["body"]["token"] == hash.as_str()
                    && it["body"]["agent"] == AGENT
                    && it["body"]["details"] == "writ: ended, token_revoked"
            })
        })
    })
    .await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stopped_while_its_proxy_was_away_ends_when_it_is_back() {
    let stage = Stage::start(Options {
        cut: true,
        ..options(1)
    })
    .await
    .unwrap();
    let operator = stage.system.operator().await.unwrap();
    let key = json!({ "key": stage.agent.key().thumbprint() });
    // Once the proxy notices, and once it does not.
    for mode in [Mode::Refuse, Mode::Stall] {
        let mut going = vec![Going::to(&stage, &stage.agent, 0, STREAM).await];
        let cut = stage.system.cut().unwrap();
        cut.set(mode);
        if mode == Mode::Refuse {
            cut.sever();
        }
        stop(&operator, &key).await;
        going[0].goes_on().await;
        cut.set(Mode::Pass);
        let since = Instant::now();
        let took = going[0].ends(since).await;
        assert!(took < WITHIN * 3, "{mode:?}: {took:?}");
        operator.lift(&key).await.unwrap();
        stage.recovers().await.unwrap();
        said_in_the_log(&stage, &going, "token_revoked").await;
    }
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_began_under_an_earlier_module_ends_as_well() {
    let stage = Stage::start(options(1)).await.unwrap();
    let operator = stage.system.operator().await.unwrap();
    let mut going = vec![Going::to(&stage, &stage.agent, 0, STREAM).await];
    let module = std::fs::read(stage.system.module_file()).unwrap();
    let next = relabelled(&module, b'e');
    let beside = stage.system.module_file().with_extension("new");
    std::fs::write(&beside, &next).unwrap();
    std::fs::rename(&beside, stage.system.module_file()).unwrap();
    eventually("Envoy has the new module", async || {
        stage.system.status()["module_sha256"] == sha256(&next).as_str()
    })
    .await;
    stage.recovers().await.unwrap();
    going.push(Going::to(&stage, &stage.agent, 0, STREAM).await);
    let key = json!({ "key": stage.agent.key().thumbprint() });
    let since = stop(&operator, &key).await;
    all_end(&mut going, since).await;
    stage.stop().await;
}
