//! The control plane dies, or stands still: nothing passes meanwhile, nothing
//! that was acknowledged is lost, and no token passes twice.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wasm_test::client::{Agent, Call};
use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::rig::{Rig, jti, sha256};

const KILLS: usize = 3;
const CLIENTS: usize = 3;

/// What a client saw of each token that it presented.
type Seen = Arc<Mutex<Vec<(String, u16)>>>;

/// A client that goes on whatever happens.
async fn load(agent: Agent, seen: Seen, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::SeqCst) {
        let Ok(token) = agent.token("GET", REPORT).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let status = match agent.present("GET", REPORT, &token).await {
            Ok(answer) => answer.status,
            Err(_) => 0,
        };
        seen.lock().unwrap().push((token, status));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_load_it_loses_nothing_and_lets_nothing_through_twice() {
    // Three clients of one agent's, each as fast as it can.
    let limits = "[limits]\nexchanges_per_agent = 1000000\nexchanges_per_owner = 1000000\n";
    let options = Options {
        token_lifetime_s: 300,
        extra_config: limits.to_owned(),
        ..Options::default()
    };
    let mut rig = Rig::start(options).await;
    let (seen, stop) = (Seen::default(), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::spawn(load(rig.agent.clone(), seen.clone(), stop.clone())))
        .collect();
    let mut unused = Vec::new();
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(600)).await;
        let mut tokens = Vec::new();
        for _ in 0..5 {
            tokens.push(rig.agent.token("GET", REPORT).await.unwrap());
        }
        rig.system.kill_control_plane();
        for token in &tokens {
            let answer = rig.exchange_raw(&rig.signed("GET", REPORT, token)).await;
            let reason = answer.reason();
            assert_eq!(
                (answer.status, reason.as_str()),
                (503, "control_plane_unavailable")
            );
        }
        // By now every worker knows, so that no question was sent.
        let answer = rig
            .exchange_raw(&rig.signed("GET", REPORT, &tokens[0]))
            .await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("retry-after"), Some("1"), "{}", answer.text());
        let uses = rig.uses();
        assert!(tokens.iter().all(|token| !uses.contains_key(&jti(token))));
        unused.append(&mut tokens);
        rig.system.start_control_plane().await.unwrap();
        rig.recovers().await;
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    // One more start: now every token of the load is from an earlier epoch.
    rig.system.kill_control_plane();
    rig.system.start_control_plane().await.unwrap();
    rig.recovers().await;
    for token in seen.iter().map(|(token, _)| token).chain(&unused) {
        let before = rig.arrived();
        let mut answer = rig.agent.present("GET", REPORT, token).await.unwrap();
        // A machine that is busy may miss a deadline: 503 decides nothing.
        for _ in 0..20 {
            if answer.status != 503 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            answer = rig.agent.present("GET", REPORT, token).await.unwrap();
        }
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (401, "outcome_unknown")
        );
        assert_eq!(
            rig.arrived(),
            before,
            "a token of before the restart passed"
        );
    }
    let passed = seen.iter().filter(|(_, status)| *status == 200).count();
    assert!(passed > 20, "there was no load: {passed}");
    every_use_is_logged(&rig, &seen);
    rig.finish().await;
}

/// Each 200 that a client saw, and each request that the upstream got, has its
/// `allow` in a whole log.
fn every_use_is_logged(rig: &Rig, seen: &[(String, u16)]) {
    rig.verified();
    let allowed = rig.entries_of("allow");
    let member = |name: &str| -> BTreeSet<String> {
        let all = allowed
            .iter()
            .map(|entry| entry["body"]["token"][name].as_str().unwrap().to_owned());
        all.collect()
    };
    let (hashes, jtis) = (member("hash"), member("jti"));
    assert_eq!(hashes.len(), allowed.len(), "a token was allowed twice");
    for (token, _) in seen.iter().filter(|(_, status)| *status == 200) {
        assert!(
            hashes.contains(&sha256(token.as_bytes())),
            "an acknowledged use is not in the log"
        );
    }
    for (jti, uses) in rig.uses() {
        assert_eq!(uses, 1, "{jti} reached the upstream {uses} times");
        assert!(
            jtis.contains(&jti),
            "{jti} reached the upstream without an entry"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_that_never_comes_forwards_nothing_even_when_it_comes_late() {
    let rig = Rig::start(Options::default()).await;
    let path = "/echo/upload";
    let get = rig.agent.token("GET", REPORT).await.unwrap();
    let post = rig.agent.token("POST", path).await.unwrap();
    let proof = rig.proof("POST", path, &post);
    let before = rig.arrived();
    rig.freeze(true).await;
    let start = Instant::now();
    let upload = Call {
        method: "POST",
        path,
        token: Some(&post),
        proof: Some(&proof),
        body: vec![b'x'; 1024 * 1024],
        ..Call::default()
    };
    let (first, second) = tokio::join!(
        rig.agent.present("GET", REPORT, &get),
        rig.agent.send(upload)
    );
    let took = start.elapsed();
    assert!(
        took > Duration::from_millis(1_500),
        "before the deadline: {took:?}"
    );
    assert!(
        took < Duration::from_secs(6),
        "long after the deadline: {took:?}"
    );
    // The upload may find the connection closed before it has sent everything.
    for answer in std::iter::once(first.unwrap()).chain(second) {
        let reason = answer.reason();
        assert_eq!(
            (answer.status, reason.as_str()),
            (503, "control_plane_unavailable")
        );
        assert_eq!(
            answer.header("retry-after"),
            None,
            "nobody knows what became of it"
        );
    }
    assert_eq!(rig.arrived(), before, "an undecided request was forwarded");
    rig.freeze(false).await;
    rig.recovers().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let uses = rig.uses();
    for token in [&get, &post] {
        assert_eq!(uses.get(&jti(token)), None, "a late answer let it through");
    }
    // Spent or not by then: at most one use in all.
    let again = rig.agent.present("GET", REPORT, &get).await.unwrap();
    let expected = match again.status {
        200 => Some(&1),
        _ => {
            assert_eq!(again.reason(), "token_spent");
            None
        }
    };
    assert_eq!(rig.uses().get(&jti(&get)), expected);
    let third = rig.agent.present("GET", REPORT, &get).await.unwrap();
    assert_eq!(
        (third.status, third.reason().as_str()),
        (401, "token_spent")
    );
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_opens_no_listener_without_the_control_plane_and_keeps_what_it_had() {
    let mut rig = Rig::start(Options::default()).await;
    // What it had, it keeps: it refuses by itself.
    rig.system.stop_control_plane().await;
    let before = rig.arrived();
    let bare = rig.exchange_raw(&rig.request("GET", REPORT, &[])).await;
    assert_eq!(
        (bare.status, bare.reason().as_str()),
        (401, "missing_credentials")
    );
    // Started without it, it serves nothing at all.
    rig.system.stop_envoy().await;
    let envoy = {
        let log = rig.system.state_dir().join("envoy-alone.log");
        let mut command = std::process::Command::new(&rig.system.tools().envoy);
        command
            .arg("-c")
            .arg(rig.system.state_dir().join("envoy.yaml"));
        command.args(["--concurrency", "2", "--disable-hot-restart"]);
        command.current_dir(rig.system.state_dir());
        wasm_test::child::Child::spawn("Envoy", &mut command, &log).unwrap()
    };
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        let connected = tokio::net::TcpStream::connect(rig.authority()).await;
        assert!(connected.is_err(), "the listener is open without a filter");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // It finds the control plane by itself once that is there.
    rig.system.start_control_plane().await.unwrap();
    super::rig::eventually("the listener opens", async || {
        tokio::net::TcpStream::connect(rig.authority())
            .await
            .is_ok()
    })
    .await;
    let bare = rig.exchange_raw(&rig.request("GET", REPORT, &[])).await;
    assert_eq!(
        (bare.status, bare.reason().as_str()),
        (401, "missing_credentials")
    );
    assert_eq!(rig.arrived(), before);
    rig.recovers().await;
    rig.finish().await;
    drop(envoy);
}
