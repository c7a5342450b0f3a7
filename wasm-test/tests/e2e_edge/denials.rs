//! Refusals at the edge reach the log: those of authenticated callers one by
//! one, others as counts, also when the control plane or Envoy goes away.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use serde_json::Value;
use wasm_test::client::DpopKey;
use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::rig::{Rig, authorization, eventually, field, jti};

const OTHER: &str = "/files/notes.txt";
const COUNT: usize = 60;

/// Tokens for `REPORT`.
async fn tokens(rig: &Rig, count: usize) -> Vec<String> {
    let mut tokens = Vec::new();
    for _ in 0..count {
        tokens.push(rig.agent.token("GET", REPORT).await.unwrap());
    }
    tokens
}

/// Shows each token for another action than its own.
async fn refused(rig: &Rig, tokens: &[String]) {
    let before = rig.arrived();
    let all = tokens.iter().map(async |token| {
        let answer = rig.exchange_raw(&rig.signed("GET", OTHER, token)).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (403, "action_mismatch")
        );
    });
    join_all(all).await;
    assert_eq!(rig.arrived(), before);
}

fn denied(rig: &Rig) -> Vec<String> {
    let entries = rig.entries_of("edge_denial").into_iter();
    let mismatches = entries.filter(|entry| entry["body"]["reason"] == "action_mismatch");
    mismatches
        .map(|entry| entry["body"]["jti"].as_str().unwrap().to_owned())
        .collect()
}

/// Refusals that a gap entry says are missing.
fn missing(rig: &Rig) -> u64 {
    let number = |entry: &Value, name: &str| entry["body"][name].as_u64().unwrap_or(0);
    let gaps = rig.entries_of("gap");
    gaps.iter()
        .map(|gap| number(gap, "dropped_denials") + number(gap, "missing_batches"))
        .sum()
}

fn counted(rig: &Rig, reason: &str) -> u64 {
    let entries = rig.entries_of("edge_counts");
    entries
        .iter()
        .filter_map(|entry| entry["body"]["counts"][reason].as_u64())
        .sum()
}

fn has_all(found: &[String], tokens: &[String]) -> bool {
    let found: BTreeSet<&String> = found.iter().collect();
    tokens.iter().all(|token| found.contains(&jti(token)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_for_the_known_and_counts_for_the_others() {
    let rig = Rig::start(Options {
        token_lifetime_s: 300,
        ..Options::default()
    })
    .await;
    let tokens = tokens(&rig, COUNT).await;
    refused(&rig, &tokens).await;
    let thief = DpopKey::generate().unwrap();
    for token in &tokens {
        let proof = thief.proof("GET", &rig.agent.url(REPORT), Some(token));
        let stolen = [authorization(token), field("dpop", proof)];
        let answer = rig.exchange_raw(&rig.request("GET", REPORT, &stolen)).await;
        assert_eq!(answer.reason(), "proof_key_mismatch");
    }
    let stolen = u64::try_from(COUNT).unwrap();
    eventually("entries and counts", async || {
        denied(&rig).len() >= COUNT && counted(&rig, "proof_key_mismatch") >= stolen
    })
    .await;
    let denied = denied(&rig);
    assert_eq!(denied.len(), COUNT, "an entry came twice");
    assert!(has_all(&denied, &tokens));
    assert_eq!(counted(&rig, "proof_key_mismatch"), stolen);
    assert_eq!(missing(&rig), 0);
    // Nothing of it spent anything.
    for token in &tokens {
        assert_eq!(rig.present(REPORT, token).await.status, 200);
    }
    assert_eq!(rig.uses().values().max(), Some(&1));
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn none_is_lost_while_the_control_plane_is_away() {
    let mut rig = Rig::start(Options {
        token_lifetime_s: 300,
        ..Options::default()
    })
    .await;
    let tokens = tokens(&rig, 3 * COUNT).await;
    // Some just before it dies, some while it is dead.
    let (before, rest) = tokens.split_at(COUNT);
    refused(&rig, before).await;
    rig.system.kill_control_plane();
    let (meanwhile, after) = rest.split_at(COUNT);
    refused(&rig, meanwhile).await;
    for _ in 0..COUNT {
        let bare = rig
            .exchange_raw(&rig.request("GET", REPORT, &[authorization("x")]))
            .await;
        assert_eq!(bare.reason(), "malformed_credentials");
    }
    rig.system.start_control_plane().await.unwrap();
    refused(&rig, after).await;
    rig.recovers().await;
    let wanted = u64::try_from(COUNT).unwrap();
    eventually("all of them, or a gap that says so", async || {
        (has_all(&denied(&rig), &tokens) || missing(&rig) > 0)
            && counted(&rig, "malformed_credentials") >= wanted
    })
    .await;
    assert!(
        has_all(&denied(&rig), &tokens),
        "the buffer had room for all of them"
    );
    // A batch whose acknowledgement was lost may be there twice, none more often.
    let mut often: BTreeMap<String, usize> = BTreeMap::new();
    for jti in denied(&rig) {
        *often.entry(jti).or_default() += 1;
    }
    assert!(often.values().all(|times| *times <= 2), "{often:?}");
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_fit_are_a_gap_in_the_log() {
    let mut rig = Rig::start(Options {
        concurrency: 1,
        token_lifetime_s: 300,
        ..Options::default()
    })
    .await;
    // One token refused many times: the filter keeps 1,024 entries a worker.
    let many = 1_100;
    let token = tokens(&rig, 1).await;
    rig.system.kill_control_plane();
    let mut connection = rig.connect().await;
    for _ in 0..many {
        connection.send(&rig.signed("GET", OTHER, &token[0])).await;
        let answer = connection.answer().await.unwrap();
        assert_eq!(answer.reason(), "action_mismatch");
    }
    rig.system.start_control_plane().await.unwrap();
    rig.recovers().await;
    // Envoy's own log has each refusal once, also those of the recovery.
    let told = || u64::try_from(rig.entries_of("edge_denial").len()).unwrap() + missing(&rig);
    let refused = || {
        let log = std::fs::read_to_string(rig.system.log("envoy")).unwrap();
        let reasons = ["action_mismatch", "control_plane_unavailable"];
        let reasons = reasons.map(|reason| format!("\"reason\":\"{reason}\""));
        let is_one = |line: &&str| reasons.iter().any(|reason| line.contains(reason));
        u64::try_from(log.lines().filter(is_one).count()).unwrap()
    };
    let many = u64::try_from(many).unwrap();
    eventually("entries and gap add up", async || {
        refused() >= many && told() == refused()
    })
    .await;
    assert!(missing(&rig) > 0);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_envoy_hands_in_what_it_has() {
    let mut rig = Rig::start(Options {
        token_lifetime_s: 300,
        ..Options::default()
    })
    .await;
    let tokens = tokens(&rig, COUNT).await;
    refused(&rig, &tokens).await;
    for _ in 0..COUNT {
        let bare = rig
            .exchange_raw(&rig.request("GET", REPORT, &[authorization("x")]))
            .await;
        assert_eq!(bare.reason(), "malformed_credentials");
    }
    rig.system.stop_envoy().await;
    let wanted = u64::try_from(COUNT).unwrap();
    eventually("entries and counts", async || {
        has_all(&denied(&rig), &tokens) && counted(&rig, "malformed_credentials") >= wanted
    })
    .await;
    rig.system.start_envoy().await.unwrap();
    rig.recovers().await;
    rig.finish().await;
}
