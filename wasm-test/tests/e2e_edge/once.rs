//! A token is spent at most once, however many use it at the same moment.

use std::collections::BTreeMap;

use futures::future::join_all;
use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::raw::{Http1, Http2};
use super::rig::{Rig, jti, sha256};

const AT_ONCE: usize = 20;
const WORKERS: u32 = 4;
const ROUNDS: usize = 100;

async fn rig() -> Rig {
    let options = Options {
        concurrency: WORKERS,
        ..Options::default()
    };
    Rig::start(options).await
}

/// One of `answers` passed, and all others were told that the token is spent.
fn passed_once(round: usize, answers: impl Iterator<Item = (u16, String)>) {
    let mut counts: BTreeMap<(u16, String), usize> = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer).or_default() += 1;
    }
    let wanted = BTreeMap::from([
        ((200, String::new()), 1),
        ((401, "token_spent".to_owned()), AT_ONCE - 1),
    ]);
    assert_eq!(counts, wanted, "round {round}");
}

/// Each token reached the upstream once and has one `allow` in a whole log, and
/// no refusal is missing there: an agent that provokes too many a second has
/// the rest of them counted.
async fn logged_once(rig: &mut Rig, tokens: &[String]) {
    let uses = rig.uses();
    let allows = rig.entries_of("allow");
    for token in tokens {
        assert_eq!(uses.get(&jti(token)), Some(&1));
        let hash = sha256(token.as_bytes());
        let allowed = allows
            .iter()
            .filter(|e| e["body"]["token"]["hash"] == hash.as_str());
        assert_eq!(allowed.count(), 1);
    }
    // What is counted is written at the end.
    rig.system.stop_control_plane().await;
    let lines = rig.entries_of("question_refused");
    let lines = lines
        .iter()
        .filter(|entry| entry["body"]["reason"] == "token_spent");
    let counts = rig.entries_of("exchange_counts");
    let counts = counts
        .iter()
        .filter_map(|entry| entry["body"]["counts"]["token_spent"].as_u64());
    let told = u64::try_from(lines.count()).unwrap() + counts.sum::<u64>();
    assert_eq!(told, u64::try_from(tokens.len() * (AT_ONCE - 1)).unwrap());
    rig.system.start_control_plane().await.unwrap();
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_uses_on_connections_of_their_own() {
    let mut rig = rig().await;
    let mut connections = join_all((0..AT_ONCE).map(|_| rig.connect())).await;
    let mut tokens = Vec::new();
    for round in 0..ROUNDS {
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        let same = rig.signed("GET", REPORT, &token);
        let before = rig.arrived();
        // Every second round sends the very same bytes on all.
        let requests: Vec<Vec<u8>> = (0..AT_ONCE)
            .map(|_| match round % 2 {
                0 => same.clone(),
                _ => rig.signed("GET", REPORT, &token),
            })
            .collect();
        // All but the last byte first, so that the last bytes come together.
        for (connection, request) in connections.iter_mut().zip(&requests) {
            connection.send(&request[..request.len() - 1]).await;
        }
        join_all(connections.iter_mut().map(|c| c.send(b"\n"))).await;
        let answers = join_all(connections.iter_mut().map(Http1::answer)).await;
        let answers = answers.into_iter().flatten();
        passed_once(
            round,
            answers.map(|answer| (answer.status, answer.reason())),
        );
        assert_eq!(rig.arrived(), before + 1, "round {round}");
        tokens.push(token);
    }
    logged_once(&mut rig, &tokens).await;
    assert!(busy_workers(&rig).await > 1, "one worker served all of it");
    rig.finish().await;
}

/// How many of Envoy's workers had a connection.
async fn busy_workers(rig: &Rig) -> usize {
    let address = rig.authority();
    let mut busy = 0;
    for worker in 0..WORKERS {
        let name = format!(
            "listener.{}.worker_{worker}.downstream_cx_total",
            address.replace(':', "_")
        );
        busy += usize::from(rig.stat(&name.replace('.', "\\.")).await > 0);
    }
    busy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_uses_in_one_segment_of_http_2() {
    let mut rig = rig().await;
    let authority = rig.authority();
    let mut connection = Http2::connect(&authority).await;
    let mut tokens = Vec::new();
    for round in 0..ROUNDS {
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        let authorization = format!("DPoP {token}");
        let before = rig.arrived();
        let (mut ids, mut segment) = (Vec::new(), Vec::new());
        for _ in 0..AT_ONCE {
            let proof = rig.proof("GET", REPORT, &token);
            let (id, frame) = connection.request(&[
                (":method", b"GET"),
                (":scheme", b"http"),
                (":authority", authority.as_bytes()),
                (":path", REPORT.as_bytes()),
                ("authorization", authorization.as_bytes()),
                ("dpop", proof.as_bytes()),
            ]);
            ids.push(id);
            segment.extend(frame);
        }
        // Loopback takes up to 64 KiB in one segment.
        assert!(segment.len() < 64 * 1024);
        connection.send(&segment).await;
        let answers = connection.answers(&ids).await;
        passed_once(
            round,
            answers
                .values()
                .map(|stream| (stream.status, stream.reason())),
        );
        assert_eq!(rig.arrived(), before + 1, "round {round}");
        tokens.push(token);
    }
    logged_once(&mut rig, &tokens).await;
    rig.finish().await;
}
