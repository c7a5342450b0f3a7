//! Listeners that somebody has made unguarded: nothing in them refuses anything, and
//! the canary says so.

use std::time::{Duration, Instant};

use super::check::{holds, same};
use super::edge::{Mark, Over, Shot, Want, wanted};
use super::stages::{Stages, options};
use super::traps::{TRAP, module_with_traps};
use super::written::written;
use super::{How, Row};
use crate::Error;
use crate::stage::{Stage, text_at};
use crate::system::Options;
use crate::upstream::REPORT;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "F35",
        how: How::Live(|it| Box::pin(turned_off(it))),
    },
    Row {
        id: "F37",
        how: How::Covered(LINTED),
    },
    Row {
        id: "F43",
        how: How::Covered(LINTED),
    },
    Row {
        id: "F44",
        how: How::Never("no listener of Writ's offers HTTP/3: it has no QUIC, and so no 0-RTT"),
    },
    Row {
        id: "G04",
        how: How::Live(|it| Box::pin(fails_open(it))),
    },
];

/// What `writ edge check` refuses, row by row, and that what is served passes it.
const LINTED: &[&str] = &[
    "control-plane/xds/tests/lint/main.rs::every_row_is_found_and_nothing_else",
    "wasm-test/tests/e2e_edge/exempt.rs::what_the_control_plane_serves_passes_its_own_check",
];

/// How soon the canary has to say it.
const ALARM_WITHIN: Duration = Duration::from_secs(60);

/// A system whose canary tries its odd listener once a second.
fn watched() -> Options {
    let common = options();
    Options {
        extra_config: format!(
            "{}[canary]\nevery_s = 1\ntargets = [\"http://{{variant}}\"]\n",
            common.extra_config
        ),
        ..common
    }
}

/// How long the canary takes to say what is so.
async fn alarm(stage: &Stage, since: Instant) -> Result<Duration, Error> {
    let is = |entry: &serde_json::Value| {
        text_at(entry, "/kind") == "canary" && text_at(entry, "/body/event") == "alarm"
    };
    let entry = stage.entry("the canary's alarm", is).await?;
    same(
        "what it says",
        text_at(&entry, "/body/result").as_str(),
        "passed",
    )?;
    let took = since.elapsed();
    holds(took < ALARM_WITHIN, format!("the alarm took {took:?}"))?;
    Ok(took)
}

/// Without credentials to the odd listener, and the upstream has it.
async fn passes_unguarded(stage: &Stage, at: &str) -> Result<bool, Error> {
    let mark = Mark::now(stage)?;
    let bare = Shot::get(stage, REPORT).to(at.to_owned());
    let seen = bare.fire(Over::Http1).await?;
    Ok(seen.status == 200 && mark.arrived(stage)? > 0)
}

/// A route that turns the guard off.
async fn turned_off(_: &mut Stages) -> Result<String, Error> {
    let since = Instant::now();
    let stage = Stage::start(Options {
        unguarded: true,
        ..watched()
    })
    .await?;
    let at = odd(&stage);
    holds(
        passes_unguarded(&stage, &at).await?,
        "the route is guarded after all",
    )?;
    let took = alarm(&stage, since).await?;
    // Writ's own listener is as it was.
    let mark = Mark::now(&stage)?;
    let own = Shot::get(&stage, REPORT).and("x-own", "y");
    wanted(
        "its own listener",
        &own.fire(Over::Http2).await?,
        Want::No(401, "missing_credentials"),
    )?;
    holds(
        !mark
            .records(&stage)?
            .iter()
            .any(|it| it.header("x-own").is_some()),
        "it was forwarded",
    )?;
    stage.recovers().await?;
    stage.stop().await;
    Ok(format!(
        "a route with the guard turned off: the canary raised its alarm {took:.1?} after the start"
    ))
}

fn odd(stage: &Stage) -> String {
    let last = stage.system.variants().last();
    last.map_or_else(String::new, crate::system::Variant::address)
}

/// A guard that lets everything through when it dies, and it dies.
async fn fails_open(_: &mut Stages) -> Result<String, Error> {
    let (stage, at, guard) = written(Options {
        concurrency: 1,
        module: Some(module_with_traps()?),
        ..watched()
    })
    .await?;
    let mut open = guard.clone();
    for (pointer, value) in [
        ("/typed_config/config/failure_policy", "FAIL_OPEN"),
        // A VM of its own: the one at Writ's own listener stays.
        ("/typed_config/config/vm_config/vm_id", "somebody-else's"),
    ] {
        match open.pointer_mut(pointer) {
            Some(member) => *member = value.into(),
            None => return Err(Error::Unexpected(format!("no {pointer} in {}", guard))),
        }
    }
    stage.system.write_guard("open", &open)?;
    // As long as it lives it guards.
    tokio::time::sleep(Duration::from_secs(3)).await;
    holds(
        !passes_unguarded(&stage, &at).await?,
        "it lets everything through already",
    )?;
    let alarms = |stage: &Stage| {
        let entries = stage.entries().unwrap_or_default();
        entries
            .iter()
            .filter(|it| text_at(it, "/kind") == "canary")
            .count()
    };
    same("alarms before", alarms(&stage), 0)?;
    let since = Instant::now();
    let deadly = Shot::get(&stage, REPORT)
        .to(at.clone())
        .and(TRAP, "headers panic");
    drop(deadly.fire(Over::Http1).await?);
    holds(
        passes_unguarded(&stage, &at).await?,
        "it does not fail open after all",
    )?;
    let took = alarm(&stage, since).await?;
    let own = Shot::get(&stage, REPORT).fire(Over::Http1).await?;
    wanted(
        "its own listener",
        &own,
        Want::No(401, "missing_credentials"),
    )?;
    stage.recovers().await?;
    stage.stop().await;
    Ok(format!(
        "a guard that fails open and has died: the canary raised its alarm after {took:.1?}"
    ))
}
