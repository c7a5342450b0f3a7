//! New modules under load: nothing passes unfiltered, nothing twice, and a
//! module that is no good changes nothing.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wasm_test::client::{Agent, Approver, Call, Verdict};
use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::rig::{Rig, eventually, jti, sha256};

const RELOADS: u8 = 4;
const OTHER: &str = "/files/notes.txt";

/// The module with another hash: a custom section (id 0) is no code.
pub(super) fn relabelled(module: &[u8], label: u8) -> Vec<u8> {
    let section = [0, 5, 4, b'w', b'r', b't', label];
    [module, &section].concat()
}

/// Puts a module in place whole, as a deployment would.
fn deploy(rig: &Rig, module: &[u8]) {
    let file = rig.system.module_file();
    let beside = file.with_extension("new");
    std::fs::write(&beside, module).unwrap();
    std::fs::rename(&beside, &file).unwrap();
}

/// Waits until the control plane serves this module and Envoy has said yes.
async fn taken(rig: &Rig, module: &[u8]) {
    let wanted = sha256(module);
    eventually("the module is served and accepted", async || {
        let status = rig.status();
        let proxy = &status["proxies"][0];
        status["module_sha256"] == wanted.as_str() && proxy["problem"].is_null() && {
            let acked = acks(rig);
            acked
                .last()
                .is_some_and(|ack| acked.iter().filter(|other| *other == ack).count() == 1)
        }
    })
    .await;
}

/// Versions of the filter that Envoy has accepted, by the log.
fn acks(rig: &Rig) -> Vec<String> {
    let said = rig.entries_of("proxy").into_iter();
    said.filter(|entry| entry["body"]["event"] == "ack" && entry["body"]["kind"] == "Filter")
        .map(|entry| entry["body"]["version"].as_str().unwrap().to_owned())
        .collect()
}

/// What the load has done so far.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    good: AtomicU64,
    unavailable: AtomicU64,
    bad: AtomicU64,
    /// The `jti` of each token that was refused with both signatures right.
    denied: Mutex<Vec<String>>,
}

impl Load {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }
}

/// Good requests, each token used twice.
async fn good(agent: Agent, load: Arc<Load>) {
    while load.goes_on() {
        let token = agent.token("GET", REPORT).await.unwrap();
        let first = agent.present("GET", REPORT, &token).await.unwrap();
        match first.status {
            200 => load.good.fetch_add(1, Ordering::SeqCst),
            503 => load.unavailable.fetch_add(1, Ordering::SeqCst),
            // A question was under way when its filter was replaced.
            401 if first.reason() == "outcome_unknown" => {
                load.unavailable.fetch_add(1, Ordering::SeqCst)
            }
            status => panic!("a good request: {status} {}", first.text()),
        };
        let second = agent.present("GET", REPORT, &token).await.unwrap();
        assert!(
            first.status != 200 || second.status != 200,
            "a token passed twice"
        );
    }
}

/// Requests that must never pass: none of these tokens is in the good ones.
async fn bad(agent: Agent, load: Arc<Load>) {
    let thief = agent.with_fresh_key().unwrap();
    while load.goes_on() {
        let token = agent.token("GET", REPORT).await.unwrap();
        let proof = thief.key().proof("GET", &agent.url(REPORT), Some(&token));
        let stolen = Call {
            method: "GET",
            path: REPORT,
            token: Some(&token),
            proof: Some(&proof),
            ..Call::default()
        };
        let bare = Call {
            method: "GET",
            path: REPORT,
            ..Call::default()
        };
        let spoofed = Call {
            headers: &[("x-writ-token-id", "spoofed")],
            ..bare.clone()
        };
        for call in [bare, spoofed, stolen] {
            let answer = agent.send(call).await.unwrap();
            assert!(
                [401, 503].contains(&answer.status),
                "a bad request: {}",
                answer.text()
            );
            load.bad.fetch_add(1, Ordering::SeqCst);
        }
        let other = agent.present("GET", OTHER, &token).await.unwrap();
        match (other.status, other.reason().as_str()) {
            (403, "action_mismatch") => load.denied.lock().unwrap().push(jti(&token)),
            (status, _) => assert_eq!(status, 503, "another action: {}", other.text()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modules_pushed_under_load_let_nothing_through_unfiltered() {
    let options = Options {
        // The bad load uses none of its tokens up.
        extra_config: "[limits]\noutstanding_per_agent = 65536\n\
            exchanges_per_agent = 1000000\nexchanges_per_owner = 1000000\n"
            .to_owned(),
        ..Options::default()
    };
    let rig = Rig::start(options).await;
    let before = rig.arrived();
    let load = Arc::new(Load::default());
    let clients = [
        tokio::spawn(good(rig.agent.clone(), load.clone())),
        tokio::spawn(good(rig.agent.with_fresh_key().unwrap(), load.clone())),
        tokio::spawn(bad(rig.agent.with_fresh_key().unwrap(), load.clone())),
        tokio::spawn(bad(rig.agent.with_fresh_key().unwrap(), load.clone())),
    ];
    let module = std::fs::read(rig.system.module_file()).unwrap();
    for label in 0..RELOADS {
        let versions = acks(&rig).len();
        let next = relabelled(&module, label);
        deploy(&rig, &next);
        taken(&rig, &next).await;
        eventually("Envoy runs it", async || acks(&rig).len() > versions).await;
        let passed = load.good.load(Ordering::SeqCst);
        eventually("good requests recover", async || {
            load.good.load(Ordering::SeqCst) > passed + 20
        })
        .await;
        let configs = rig.entries_of("config");
        assert_eq!(
            configs.last().unwrap()["body"]["module"],
            sha256(&next).as_str()
        );
    }
    load.stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    let (good, unavailable) = (
        load.good.load(Ordering::SeqCst),
        load.unavailable.load(Ordering::SeqCst),
    );
    assert!(
        load.bad.load(Ordering::SeqCst) > 100,
        "there was no bad load"
    );
    assert!(
        unavailable < good / 4,
        "{unavailable} of {good} good requests found no filter"
    );
    // Everything that reached the upstream carried a verified token id, was
    // allowed, and came once; and there is nothing else.
    let uses = rig.uses();
    assert_eq!(uses.values().max(), Some(&1));
    let allowed = rig.entries_of("allow");
    let ids: Vec<&str> = allowed
        .iter()
        .map(|entry| entry["body"]["token"]["jti"].as_str().unwrap())
        .collect();
    assert!(uses.keys().all(|jti| ids.contains(&jti.as_str())));
    assert!(rig.arrived() - before <= u64::try_from(ids.len()).unwrap());
    // A filter that goes hands its refusals in first.
    let denied = std::mem::take(&mut *load.denied.lock().unwrap());
    assert!(denied.len() > 20);
    let lost = || {
        let entries = rig.entries_of("edge_denial");
        let logged = entries
            .iter()
            .map(|entry| entry["body"]["jti"].as_str().unwrap());
        let logged: BTreeSet<&str> = logged.collect();
        denied
            .iter()
            .filter(|jti| !logged.contains(jti.as_str()))
            .count()
    };
    eventually("every refusal is logged", async || lost() == 0).await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_request_survives_a_new_module() {
    let rig = Rig::start(Options {
        hold_s: 20,
        ..Options::default()
    })
    .await;
    let approver = rig.system.approver().await.unwrap();
    let path = "/echo/restricted/held";
    let token = rig.agent.token("GET", path).await.unwrap();
    let before = rig.arrived();
    let mut connection = rig.connect().await;
    connection.send(&rig.signed("GET", path, &token)).await;
    let id = approver.next(&[], Duration::from_secs(10)).await.unwrap();
    let module = std::fs::read(rig.system.module_file()).unwrap();
    let next = relabelled(&module, b'h');
    deploy(&rig, &next);
    taken(&rig, &next).await;
    rig.recovers().await;
    let passed = rig.arrived();
    approver.decide(&id, Verdict::Approve).await.unwrap();
    let answer = connection.answer().await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(rig.arrived(), passed + 1);
    assert_eq!(rig.uses()[&jti(&token)], 1);
    assert!(passed > before);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_is_no_good_changes_nothing() {
    let rig = Rig::start(Options::default()).await;
    let module = std::fs::read(rig.system.module_file()).unwrap();
    let served = rig.status()["module_sha256"].clone();
    let approver = rig.system.approver().await.unwrap();

    // What is no module at all is not pushed, and the control plane says so.
    deploy(&rig, b"this is no module");
    eventually("the log says so", async || {
        let log = std::fs::read_to_string(rig.system.log("control-plane")).unwrap();
        log.contains("not pushed")
    })
    .await;
    assert_eq!(rig.status()["module_sha256"], served);
    rig.good_request().await;

    // Nor is a module that was cut, or that something was added to.
    let cut = module[..module.len() / 2].to_vec();
    let longer = [module.as_slice(), b"\0\x04\x01aA"].concat();
    for damaged in [cut, longer] {
        let said = damage_reports(&rig);
        deploy(&rig, &damaged);
        eventually("the log says so", async || damage_reports(&rig) > said).await;
        assert_eq!(rig.status()["module_sha256"], served);
        rig.good_request().await;
    }

    // What has a module's frame is pushed, and Envoy refuses it.
    let senseless = [b"\0asm\x01\0\0\0".as_slice(), &[10, 2, 0xff, 0xff]].concat();
    refused(&rig, &approver, "no code", &senseless).await;
    refused(&rig, &approver, "no proxy-wasm module", b"\0asm\x01\0\0\0").await;

    // A good one is taken again.
    let good = relabelled(&module, b'g');
    deploy(&rig, &good);
    taken(&rig, &good).await;
    rig.recovers().await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_module_is_refused_again_after_a_restart() {
    let mut rig = Rig::start(Options::default()).await;
    let created = "wasm.envoy.wasm.runtime.v8.created";
    let machines = rig.stat(created).await;
    assert!(machines > 0);
    // A filter that runs goes on running: no restart makes it a new one.
    rig.system.restart_control_plane().await.unwrap();
    rig.recovers().await;
    let problem = |rig: &Rig| rig.status()["proxies"][0]["problem"].clone();
    eventually("Envoy has taken the filter", async || {
        acks(&rig).len() > 1 && problem(&rig).is_null()
    })
    .await;
    // One more was made to try the module out, and none that serves.
    assert!(rig.stat(created).await <= machines + 1);

    let approver = rig.system.approver().await.unwrap();
    refused(&rig, &approver, "no module", b"\0asm\x01\0\0\0").await;
    let before = nacks(&rig);
    rig.system.restart_control_plane().await.unwrap();
    eventually("it is refused again", async || nacks(&rig) > before).await;
    let said = problem(&rig);
    assert!(
        said.as_str().is_some_and(|text| text.contains("Filter")),
        "{said}"
    );
    // The last good one goes on all the while.
    rig.recovers().await;
    rig.finish().await;
}

/// How often the control plane said that a module is damaged.
fn damage_reports(rig: &Rig) -> usize {
    let log = std::fs::read_to_string(rig.system.log("control-plane")).unwrap();
    log.matches("is damaged at byte").count()
}

async fn refused(rig: &Rig, approver: &Approver, what: &str, module: &[u8]) {
    let before = nacks(rig);
    deploy(rig, module);
    eventually(what, async || nacks(rig) > before).await;
    let problem = rig.status()["proxies"][0]["problem"].clone();
    assert!(
        problem.as_str().is_some_and(|text| text.contains("Filter")),
        "{what}: {problem}"
    );
    let page = approver.page("/proxies").await.unwrap();
    assert!(page.text().contains("Filter:"), "{what}: {}", page.text());
    // The last good version goes on.
    for _ in 0..10 {
        rig.good_request().await;
        let arrived = rig.arrived();
        let bare = rig.exchange_raw(&rig.request("GET", REPORT, &[])).await;
        assert_eq!(
            (bare.status, bare.reason().as_str()),
            (401, "missing_credentials"),
            "{what}"
        );
        assert_eq!(rig.arrived(), arrived, "{what}");
    }
}

/// How many refusals of a filter the log has.
fn nacks(rig: &Rig) -> usize {
    let said = rig.entries_of("proxy").into_iter();
    said.filter(|entry| entry["body"]["event"] == "nack" && entry["body"]["kind"] == "Filter")
        .count()
}
