//! What the gates refuse: each row with its status, its reason and its place in
//! the log, nothing at the upstream, and the same token still good afterwards,
//! since a gate spends nothing.

mod rows;

use std::collections::BTreeMap;

use serde_json::json;
use wasm_test::client::{Answer, now_s};
use wasm_test::system::Options;
use wasm_test::upstream::REPORT;

use super::raw::Http2;
use super::rig::{Field, Rig, authorization, eventually, field, jti, message, sha256};
use rows::{ByEnvoy, Counted, Entry, ROWS, Row};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_request_is_refused_and_spends_nothing() {
    let rig = Rig::start(Options::default()).await;
    let mut faults = Vec::new();
    let mut jtis = BTreeMap::new();
    for row in ROWS {
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        let before = rig.arrived();
        let answer = rig.exchange_raw(&(row.bytes)(&rig, &token)).await;
        if let Err(fault) = judge(row, &answer) {
            faults.push(format!("{}: {fault}: {}", row.name, answer.summary()));
        }
        if rig.arrived() != before {
            faults.push(format!("{}: it reached the upstream", row.name));
        }
        let after = rig.exchange_raw(&rig.signed("GET", REPORT, &token)).await;
        if after.status != 200 || rig.arrived() != before + 1 {
            faults.push(format!(
                "{}: its token, used rightly: {}",
                row.name,
                after.summary()
            ));
        }
        jtis.insert(jti(&token), row);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(rig.uses().values().max(), Some(&1));
    logged(&rig, &jtis).await;
    assert_eq!(
        rig.stat("wasm.envoy.wasm.runtime.v8.vm_reload_success")
            .await,
        0
    );
    rig.finish().await;
}

/// Status, reason, challenge and form of a refusal.
fn judge(row: &Row, answer: &Answer) -> Result<(), String> {
    if (answer.status, answer.reason().as_str()) != (row.status, row.reason) {
        return Err(format!("not {} {}", row.status, row.reason));
    }
    if row.logged == ByEnvoy {
        return Ok(());
    }
    let json = answer.json();
    let all = answer.headers.iter();
    let challenges: Vec<&String> = all
        .filter(|(name, _)| name == "www-authenticate")
        .map(|(_, value)| value)
        .collect();
    let wanted = usize::from(matches!(row.status, 401 | 403));
    if challenges.len() != wanted {
        return Err(format!("{} challenges", challenges.len()));
    }
    for challenge in challenges {
        let error = challenge.contains("error=");
        if !challenge.starts_with("DPoP ")
            || !challenge.contains(r#"algs="ES256 Ed25519""#)
            || error == (row.reason == "missing_credentials")
        {
            return Err(format!("the challenge {challenge}"));
        }
    }
    let exposed = match wanted {
        0 => "X-Writ-Reason",
        _ => "WWW-Authenticate, X-Writ-Reason",
    };
    if answer.header("access-control-expose-headers") != Some(exposed) {
        return Err(format!("what scripts may read {:?}", answer.headers));
    }
    if answer.header("content-type") != Some("application/problem+json")
        || answer.header("cache-control") != Some("no-store")
        || json["status"] != row.status
        || json["request_id"].as_str() != answer.header("x-request-id")
    {
        return Err(format!("the form {:?} {json}", answer.headers));
    }
    Ok(())
}

/// Every authenticated refusal is an entry, and every other one is counted.
async fn logged(rig: &Rig, jtis: &BTreeMap<String, &Row>) {
    for (jti, row) in jtis.iter().filter(|(_, row)| row.logged == Entry) {
        let entry = rig
            .entry(row.name, |entry| {
                entry["kind"] == "edge_denial" && entry["body"]["jti"] == **jti
            })
            .await;
        assert_eq!(entry["body"]["reason"], row.reason, "{}", row.name);
        assert_eq!(entry["body"]["agent"], wasm_test::system::AGENT);
    }
    let mut wanted: BTreeMap<&str, u64> = BTreeMap::new();
    for row in ROWS.iter().filter(|row| row.logged == Counted) {
        *wanted.entry(row.reason).or_default() += 1;
    }
    eventually("all counted", async || {
        let counted = counts(rig);
        wanted
            .iter()
            .all(|(reason, count)| counted.get(*reason).unwrap_or(&0) >= count)
    })
    .await;
    // What the start sent has no credentials; all else is exactly ours.
    let counted = counts(rig);
    for (reason, count) in wanted
        .iter()
        .filter(|(reason, _)| **reason != "missing_credentials")
    {
        assert_eq!(counted.get(*reason), Some(count), "{reason}");
    }
    let mut entries = rig.entries_of("edge_denial");
    // Before a worker had its stream.
    entries.retain(|entry| entry["body"]["reason"] != "control_plane_unavailable");
    let authenticated = ROWS.iter().filter(|row| row.logged == Entry).count();
    assert_eq!(entries.len(), authenticated, "{entries:?}");
}

/// Refusals counted in the log, by reason.
fn counts(rig: &Rig) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for entry in rig.entries_of("edge_counts") {
        for (reason, count) in entry["body"]["counts"].as_object().unwrap() {
            *counts.entry(reason.clone()).or_default() += count.as_u64().unwrap();
        }
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_well_formed_in_another_way_passes() {
    let rig = Rig::start(Options::default()).await;
    let port = rig.authority();
    let forms: [fn(&Rig, &str) -> Vec<Field>; 4] = [
        |rig, token| {
            vec![
                field("AUTHORIZATION", format!("dpop {token}")),
                field("DPoP", rig.proof("GET", REPORT, token)),
            ]
        },
        |rig, token| {
            // Scheme and host of htu in another case (RFC 3986, section 6.2.2.1).
            let url = rig.agent.url(REPORT).replace("http://", "HTTP://");
            let proof = rig.agent.key().proof("GET", &url, Some(token));
            vec![authorization(token), field("dpop", proof)]
        },
        |rig, token| {
            let past = json!({"iat": now_s() - 200});
            let url = rig.agent.url(REPORT);
            let proof = rig.agent.key().proof_with("GET", &url, Some(token), &past);
            vec![authorization(token), field("dpop", proof)]
        },
        |rig, token| {
            // A header block of 24 KiB, with bytes that are no UTF-8 in it.
            let mut all = rig.credentials("GET", REPORT, token);
            all.push(field("x-pad", "x".repeat(24 * 1024)));
            all.push(field("x-bytes", vec![b'a', 0xff, 0xfe]));
            all
        },
    ];
    for (at, form) in forms.iter().enumerate() {
        let token = rig.agent.token("GET", REPORT).await.unwrap();
        let answer = rig
            .exchange_raw(&rig.request("GET", REPORT, &form(&rig, &token)))
            .await;
        assert_eq!(answer.status, 200, "form {at}: {}", answer.text());
    }
    // The same over HTTP/2, where the authority is a pseudo header.
    let token = rig.agent.token("GET", REPORT).await.unwrap();
    let proof = rig.proof("GET", REPORT, &token);
    let mut h2 = Http2::connect(&port).await;
    let dpop = format!("DPoP {token}");
    let (id, bytes) = h2.request(&[
        (":method", b"GET"),
        (":scheme", b"http"),
        (":authority", port.as_bytes()),
        (":path", REPORT.as_bytes()),
        ("authorization", dpop.as_bytes()),
        ("dpop", proof.as_bytes()),
    ]);
    h2.send(&bytes).await;
    let answer = &h2.answers(&[id]).await[&id];
    assert_eq!(answer.status, 200, "{}", answer.reason());
    assert_eq!(rig.uses().values().max(), Some(&1));
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spent_token_says_what_became_of_its_first_use() {
    let rig = Rig::start(Options::default()).await;
    let path = "/echo/teapot?status=418";
    let token = rig.agent.token("GET", path).await.unwrap();
    let bytes = rig.signed("GET", path, &token);
    let first = rig.exchange_raw(&bytes).await;
    assert_eq!(first.status, 418);
    let before = rig.arrived();
    rig.entry("the outcome", |entry| {
        entry["kind"] == "outcome" && entry["body"]["status"] == 418
    })
    .await;
    let fresh = rig.signed("GET", path, &token);
    for (what, again) in [("byte for byte", &bytes), ("with a fresh proof", &fresh)] {
        let answer = rig.exchange_raw(again).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (401, "token_spent"),
            "{what}"
        );
        let first_use = &answer.json()["first_use"];
        assert_eq!(first_use["result"], "forwarded", "{what}");
        assert_eq!(first_use["upstream_status"], 418, "{what}");
        assert_eq!(
            first_use["request_id"].as_str(),
            first.header("x-request-id"),
            "{what}"
        );
    }
    assert_eq!(rig.arrived(), before, "a replay reached the upstream");
    let hash = sha256(token.as_bytes());
    let replays = rig.entries_of("question_refused");
    let ours = replays.iter().filter(|entry| {
        entry["body"]["token"] == hash.as_str() && entry["body"]["reason"] == "token_spent"
    });
    assert_eq!(ours.count(), 2, "{replays:?}");

    // The proof of a spent token fits no other token.
    let other = rig.agent.token("GET", path).await.unwrap();
    let old = rig.proof("GET", path, &token);
    let reused = rig.request("GET", path, &[authorization(&other), field("dpop", old)]);
    let answer = rig.exchange_raw(&reused).await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (401, "proof_token_hash")
    );
    assert_eq!(rig.arrived(), before);
    let bare = message("GET", path, &[field("host", rig.authority())]);
    assert_eq!(
        rig.exchange_raw(&bare).await.reason(),
        "missing_credentials"
    );
    rig.finish().await;
}
