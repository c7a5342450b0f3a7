//! A changed module is tried on a few first, goes on to all when all is well, and is
//! taken back by itself when it is not.

use std::collections::BTreeSet;

use serde_json::Value;
use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::rig::{Rig, eventually, sha256};
use super::watching::{deploy, open_filter};

const OTHER: &str = "/files/notes.txt";

async fn start() -> Rig {
    Rig::start(Options {
        envoys: 2,
        token_lifetime_s: 300,
        extra_config: r#"
[edge.rollout]
first = ["first"]
watch_s = 6
[[edge.group]]
name = "first"
proxies = ["spiffe://writ.example/proxy"]
nodes = ["writ-proxy-0"]
"#
        .to_owned(),
        ..Options::default()
    })
    .await
}

/// The module with another hash: a custom section (id 0) is no code.
fn relabelled(module: &[u8], label: u8) -> Vec<u8> {
    [module, &[0, 5, 4, b'r', b'o', b'l', label]].concat()
}

/// The steps of this module, oldest first, and why the last one was taken.
fn steps(rig: &Rig, module: &[u8]) -> (Vec<String>, String) {
    let entries = rig.entries_of("rollout").into_iter().rev();
    let mut own: Vec<Value> = entries
        .filter(|entry| entry["body"]["module"] == sha256(module))
        .collect();
    own.sort_by_key(|entry| entry["i"].as_u64());
    let text = |entry: &Value, name: &str| entry["body"][name].as_str().unwrap().to_owned();
    let why = own
        .last()
        .map(|entry| text(entry, "why"))
        .unwrap_or_default();
    (own.iter().map(|entry| text(entry, "event")).collect(), why)
}

/// The filter's version that each node works with.
fn versions(rig: &Rig) -> Vec<(String, String)> {
    let status = rig.status();
    let proxies = status["proxies"].as_array().unwrap();
    let version = |detail: &str| {
        let at = detail.split("Filter ").nth(1).unwrap_or_default();
        at.split(' ').next().unwrap_or_default().to_owned()
    };
    proxies
        .iter()
        .map(|it| {
            (
                it["node"].as_str().unwrap().to_owned(),
                version(it["detail"].as_str().unwrap()),
            )
        })
        .collect()
}

async fn reaches(rig: &Rig, module: &[u8], wanted: &[&str]) {
    eventually("the roll-out's steps", async || {
        steps(rig, module).0 == wanted
    })
    .await;
}

fn all_run_one(rig: &Rig) -> bool {
    let versions: BTreeSet<String> = versions(rig).into_iter().map(|it| it.1).collect();
    versions.len() == 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_a_few_then_all_and_back_by_itself() {
    let rig = start().await;
    let old = std::fs::read(rig.system.module_file()).unwrap();
    assert!(all_run_one(&rig), "{:?}", versions(&rig));
    assert!(
        rig.status()["proxies"][0]["detail"]
            .to_string()
            .contains("in the group first")
    );

    // A good one: node 0 has it alone, and then all.
    let good = relabelled(&old, 1);
    deploy(&rig, &good);
    reaches(&rig, &good, &["try"]).await;
    eventually("node 0 alone runs it", async || !all_run_one(&rig)).await;
    assert!(
        rig.status()["warnings"]
            .to_string()
            .contains("is tried on the groups first")
    );
    assert_eq!(
        rig.status()["module_sha256"],
        sha256(&old),
        "it is not what all get yet"
    );
    reaches(&rig, &good, &["try", "all", "done"]).await;
    eventually("all run it", async || all_run_one(&rig)).await;
    assert_eq!(rig.status()["warnings"], serde_json::json!([]));
    assert_eq!(rig.status()["module_sha256"], sha256(&good));
    let wanted = versions(&rig);

    // One that Envoy refuses, and one that lets everything through.
    let mut empty = b"\0asm\x01\0\0\0".to_vec();
    empty.extend([0, 5, 4, b'n', b'o', b'n', b'e']);
    for (module, why) in [(empty, "refused it"), (open_filter(), "opened a stream")] {
        deploy(&rig, &module);
        reaches(&rig, &module, &["try", "back"]).await;
        assert!(
            steps(&rig, &module).1.contains(why),
            "{:?}",
            steps(&rig, &module)
        );
        eventually("all run the good one", async || versions(&rig) == wanted).await;
        assert!(
            rig.status()["warnings"]
                .to_string()
                .contains("was taken back")
        );
        assert_eq!(rig.status()["module_sha256"], sha256(&good));
        rig.recovers().await;
    }

    // One under which refusals jump.
    let mut tokens = Vec::new();
    for _ in 0..100 {
        tokens.push(rig.agent.token("GET", REPORT).await.unwrap());
    }
    let strict = relabelled(&old, 2);
    deploy(&rig, &strict);
    eventually("node 0 runs it", async || versions(&rig) != wanted).await;
    for token in &tokens {
        let answer = rig.exchange_raw(&rig.signed("GET", OTHER, token)).await;
        assert_eq!(answer.status, 403);
    }
    eventually("it is taken back", async || {
        steps(&rig, &strict)
            .0
            .last()
            .is_some_and(|step| step == "back")
    })
    .await;
    let why = steps(&rig, &strict).1;
    assert!(why.contains("refusals jumped"), "{why}");
    eventually("all run the good one", async || versions(&rig) == wanted).await;
    rig.recovers().await;
    rig.finish().await;
}
