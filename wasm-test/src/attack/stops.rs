//! Rows about rights that are taken away: a stop and a request at the same moment,
//! and a stop that a proxy can't hear of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use super::check::{holds, one_of, refused, same};
use super::stages::{Stages, options};
use super::{How, Row};
use crate::Error;
use crate::client::Operator;
use crate::cut::Mode;
use crate::stage::{Stage, eventually};
use crate::system::Options;
use crate::upstream::REPORT;

pub const ROWS: &[Row] = &[
    Row {
        id: "H28",
        how: How::Live(|it| Box::pin(races(it))),
    },
    Row {
        id: "K10",
        how: How::Live(|it| Box::pin(partition(it))),
    },
    Row {
        id: "L11",
        how: How::Covered(&[
            "wasm-test/tests/e2e_issuer/rights.rs::what_is_stopped_gets_nothing_and_what_it_had_is_void_for_good",
            "wasm-test/tests/e2e_edge/ended.rs::what_is_stopped_ends_at_every_proxy_and_nothing_else_does",
        ]),
    },
];

/// Races that run beside each other.
const LANES: usize = 8;
/// A stop comes so much later than in the race before, and then from the start again.
const STEP: Duration = Duration::from_micros(300);
const STEPS: u32 = 24;

async fn stage() -> Result<(Arc<Stage>, Operator), Error> {
    let stage = Stage::start(Options {
        envoys: 2,
        cut: true,
        ..options()
    })
    .await?;
    let operator = stage.system.operator().await?;
    Ok((Arc::new(stage), operator))
}

async fn end(stage: Arc<Stage>) -> Result<(), Error> {
    let stage = Arc::into_inner(stage);
    let stage = stage.ok_or_else(|| Error::Unexpected("the stage is in use".to_owned()))?;
    stage.stop().await;
    Ok(())
}

/// SHA-256 of a token, as a stop and the log have it.
fn digest(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

/// A token is shown and stopped at the same moment, over and over: either comes
/// first, and after the stop nothing is decided for it.
async fn races(stages: &mut Stages) -> Result<String, Error> {
    let rounds = stages.rounds;
    let (stage, operator) = stage().await?;
    let left = Arc::new(AtomicUsize::new(rounds));
    let mut lanes = JoinSet::new();
    for _ in 0..LANES {
        let lane = (stage.clone(), operator.clone(), left.clone());
        lanes.spawn(async move { lane_of(&lane.0, &lane.1, &lane.2).await });
    }
    let (mut passed, mut refused) = (BTreeMap::new(), 0);
    while let Some(lane) = lanes.join_next().await {
        let lane = lane.map_err(|problem| Error::Unexpected(problem.to_string()))??;
        for (hash, served) in lane {
            match served {
                true => drop(passed.insert(hash, ())),
                false => refused += 1,
            }
        }
    }
    same("races", passed.len() + refused, rounds)?;
    let allowed = in_order(&stage.entries()?, &passed)?;
    stage.each_once()?;
    end(stage).await?;
    Ok(format!(
        "{rounds} races: {} passed before their stop, {refused} were refused; {allowed} decisions, each before its stop in the log",
        passed.len()
    ))
}

async fn lane_of(
    stage: &Stage,
    operator: &Operator,
    left: &AtomicUsize,
) -> Result<Vec<(String, bool)>, Error> {
    let mut seen = Vec::new();
    let take = |left: usize| left.checked_sub(1);
    let mut round = 0;
    while left
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
        .is_ok()
    {
        let token = stage.agent.token("GET", REPORT).await?;
        let hash = digest(&token);
        let mut connection = stage.connect().await?;
        connection
            .send(&stage.signed("GET", REPORT, &token))
            .await?;
        tokio::time::sleep(STEP * (round % STEPS)).await;
        round += 1;
        operator.stop(&json!({ "token": hash })).await?;
        // Sent after the acknowledgement, whatever has become of the first.
        let again = stage.present(REPORT, &token).await?;
        let passed = match connection.answer().await {
            Ok(Some(answer)) => {
                one_of(&answer, &[200, 401])?;
                answer.status == 200
            }
            // It had gone on, and was cut off.
            Ok(None) | Err(_) => true,
        };
        // One that was decided and stopped on its way out is spent as well.
        match again.reason().as_str() {
            "token_revoked" if !passed => {}
            _ => refused(&again, 401, "token_spent")?,
        }
        seen.push((hash, passed));
    }
    Ok(seen)
}

/// Each decision stands before its stop, and whatever passed was decided.
fn in_order(entries: &[Value], passed: &BTreeMap<String, ()>) -> Result<usize, Error> {
    let at = |pointer: &str, kind: &str| -> BTreeMap<String, usize> {
        let of_kind = entries
            .iter()
            .enumerate()
            .filter(|(_, it)| it.get("kind").and_then(Value::as_str) == Some(kind));
        of_kind
            .filter_map(|(at, it)| Some((it.pointer(pointer)?.as_str()?.to_owned(), at)))
            .collect()
    };
    let allows = at("/body/token/hash", "allow");
    let stops = at("/body/target/token", "stop");
    let mut decided = 0;
    for (hash, allow) in &allows {
        if let Some(stop) = stops.get(hash) {
            decided += 1;
            holds(allow < stop, format!("{hash} was decided after its stop"))?;
        }
    }
    let undecided = passed.keys().find(|hash| !allows.contains_key(*hash));
    same("passed without a decision", undecided, None)?;
    Ok(decided)
}

/// A proxy hears nothing: it refuses by itself, and what was stopped meanwhile is
/// refused when it is back.
async fn partition(_: &mut Stages) -> Result<String, Error> {
    let (stage, operator) = stage().await?;
    let mut slowest = Duration::ZERO;
    for mode in [Mode::Stall, Mode::Deaf] {
        let token = stage.agent.token("GET", REPORT).await?;
        let before = stage.arrived()?;
        stage.system.cut()?.set(mode);
        operator.stop(&json!({ "token": digest(&token) })).await?;
        // Three seconds, and time for a tick that comes late.
        tokio::time::sleep(Duration::from_millis(4_500)).await;
        for envoy in [0, 1] {
            let mut connection = stage.connect_to(envoy).await?;
            let sent = Instant::now();
            connection
                .send(&stage.signed("GET", REPORT, &token))
                .await?;
            let answer = connection.answer().await?;
            let closed = || Error::Unexpected("closed without an answer".to_owned());
            let answer = answer.ok_or_else(closed)?;
            refused(&answer, 503, "control_plane_unavailable")?;
            holds(answer.header("retry-after").is_some(), "it was asked about")?;
            slowest = slowest.max(sent.elapsed());
        }
        holds(
            slowest < Duration::from_secs(1),
            format!("it was waited for: {slowest:?}"),
        )?;
        same("reached the upstream", stage.arrived()?, before)?;
        stage.system.cut()?.set(Mode::Pass);
        eventually("the proxies are back", async || stage.passes().await).await?;
        stage.recovers().await?;
        refused(&stage.present(REPORT, &token).await?, 401, "token_revoked")?;
    }
    end(stage).await?;
    Ok(format!(
        "cut off in two ways, both proxies refused by themselves within {slowest:.0?}, and the stopped token after that"
    ))
}
