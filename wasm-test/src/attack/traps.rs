//! The guard dies: a panic in each callback, memory without end, recursion. It
//! is a build with faults on demand; the one that is shipped has none.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::check::{holds, same};
use super::edge::{Mark, Over, Shot, Want, a_moment, next_good, wanted};
use super::stages::{Stages, options};
use super::{How, Row};
use crate::Error;
use crate::raw::field;
use crate::stage::{Stage, eventually, jti, text_at};
use crate::system::Options;
use crate::upstream::REPORT;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "G01",
        how: How::Live(|it| Box::pin(panics(it))),
    },
    Row {
        id: "G02",
        how: How::Live(|it| Box::pin(callbacks(it))),
    },
    Row {
        id: "G03",
        how: How::Live(|it| Box::pin(exhausts(it))),
    },
];

/// Environment variable with the path of the filter with faults on demand.
const TRAPS: &str = "WRIT_TRAPS_WASM";
/// The header that such a filter obeys.
pub(super) const TRAP: &str = "trap-now";
/// How soon a filter that died is back.
const BACK: Duration = Duration::from_secs(2);
/// A machine under load is late by as much.
const LATE: Duration = Duration::from_secs(3);

/// The largest header block that Envoy takes by the default config, in bytes.
const HEADER_BLOCK: usize = 32 * 1024;

/// The module with faults on demand.
pub(super) fn module_with_traps() -> Result<PathBuf, Error> {
    let module = std::env::var_os(TRAPS).map(PathBuf::from);
    module.ok_or_else(|| {
        Error::Setup(format!(
            "{TRAPS} is not set: run this through `cargo xtask attack`"
        ))
    })
}

/// One Envoy with one worker, whose filter dies when it is told to. The module
/// that is shipped has no such word in it.
async fn stage() -> Result<Stage, Error> {
    let module = module_with_traps()?;
    let read = |path: &PathBuf| std::fs::read(path).map_err(Error::file("read", path));
    let has = |module: &[u8]| {
        module
            .windows(TRAP.len())
            .any(|window| window == TRAP.as_bytes())
    };
    holds(has(&read(&module)?), "the module with traps has none")?;
    let stage = Stage::start(Options {
        concurrency: 1,
        cut: true,
        module: Some(module),
        ..options()
    })
    .await?;
    let shipped = read(&stage.system.tools().filter_wasm)?;
    holds(!has(&shipped), "the module that is shipped has traps")?;
    Ok(stage)
}

/// One of Envoy's counters.
async fn counter(stage: &Stage, name: &str) -> Result<u64, Error> {
    let url = format!("{}/stats?filter=^{name}$", stage.system.admin_url());
    let text = reqwest::get(&url).await.map_err(Error::http(&url))?;
    let text = text.text().await.map_err(Error::http(&url))?;
    let value = text.lines().find_map(|line| line.split_once(": "));
    Ok(value
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0))
}

const RELOADED: &str = "wasm.writ.filter.vm_reload_success";

/// Until a good request passes nothing else does; how long that takes.
async fn back(stage: &Stage, what: &str) -> Result<Duration, Error> {
    let start = Instant::now();
    loop {
        let mark = Mark::now(stage)?;
        let bare = Shot::get(stage, REPORT)
            .and("x-writ-token-id", "spoofed")
            .fire(Over::Http1)
            .await?;
        holds(
            [401, 503].contains(&bare.status),
            format!("{what}: a bare request got {bare:?}"),
        )?;
        mark.nothing(what, stage)?;
        let token = stage.agent.token("GET", REPORT).await?;
        let seen = Shot::get(stage, REPORT)
            .with(stage, ("GET", REPORT), &token)
            .fire(Over::Http1)
            .await?;
        if seen.status == 200 {
            mark.exactly(what, stage, "GET", REPORT)?;
            break;
        }
        holds(seen.status == 503, format!("{what}: {seen:?}"))?;
        mark.nothing(what, stage)?;
        holds(
            start.elapsed() < Duration::from_secs(20),
            format!("{what}: it does not come back"),
        )?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(start.elapsed())
}

/// The middle and the longest of some times, the middle being short enough.
fn times(mut took: Vec<Duration>) -> Result<String, Error> {
    took.sort();
    let middle = took.get(took.len() / 2).copied().unwrap_or_default();
    let longest = took.last().copied().unwrap_or_default();
    holds(
        middle < BACK,
        format!("back after {middle:.1?} in the middle: {took:.1?}"),
    )?;
    holds(
        longest < BACK + LATE,
        format!("back after {longest:.1?} at the longest"),
    )?;
    Ok(format!(
        "back after {middle:.1?} in the middle, {longest:.1?} at the longest"
    ))
}

async fn panics(_: &mut Stages) -> Result<String, Error> {
    const PANICS: usize = 12;
    let stage = stage().await?;
    let mut took = Vec::new();
    for _ in 0..PANICS {
        let reloads = counter(&stage, RELOADED).await?;
        let token = stage.agent.token("GET", REPORT).await?;
        let mark = Mark::now(&stage)?;
        let shot = Shot::get(&stage, REPORT)
            .with(&stage, ("GET", REPORT), &token)
            .and(TRAP, "headers panic");
        wanted("a panic", &shot.fire(Over::Http1).await?, Want::Envoy(503))?;
        mark.nothing("a panic", &stage)?;
        took.push(back(&stage, "a panic").await?);
        let now = counter(&stage, RELOADED).await?;
        holds(now > reloads, "no reload was counted")?;
        // Its question may have been decided: nobody forwards by it.
        let again = stage.present(REPORT, &token).await?;
        holds(
            again.status == 200 || again.reason() == "token_spent",
            again.summary(),
        )?;
        holds(
            stage.uses()?.get(&jti(&token)).copied().unwrap_or(0) <= 1,
            "it ran twice",
        )?;
        // Envoy waits longer after each crash that follows soon after another.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stage.recovers().await?;
    next_good(&stage).await?;
    let told = times(took)?;
    stage.stop().await;
    Ok(format!(
        "{PANICS} panics were told 503 and forwarded nothing; {told}"
    ))
}

/// Where it dies, with how many uses of the upstream at most, and what the client
/// may see.
const PLACES: [(&str, usize, &[u16]); 8] = [
    ("headers", 0, &[503]),
    ("answer", 0, &[0, 408, 503, 504]),
    ("tick", 0, &[0, 408, 503, 504]),
    ("body", 1, &[0, 503]),
    ("trailers", 1, &[0, 200, 503]),
    ("response", 1, &[0, 503]),
    ("log", 1, &[0, 200]),
    ("done", 1, &[0, 200]),
];

async fn callbacks(_: &mut Stages) -> Result<String, Error> {
    const PATH: &str = "/echo/trap";
    let mut stage = stage().await?;
    let mut took = Vec::new();
    let mut seen = Vec::new();
    for (place, most, statuses) in PLACES {
        let token = stage.agent.token("POST", PATH).await?;
        let mut headers = stage.credentials("POST", PATH, &token);
        headers.push(field(TRAP, format!("{place} panic")));
        headers.push(field("transfer-encoding", "chunked"));
        let mut bytes = stage.request("POST", PATH, &headers);
        bytes.extend(b"3\r\nabc\r\n0\r\nx-checksum: a\r\n\r\n");
        let mark = Mark::now(&stage)?;
        if place == "tick" {
            // The decision comes later than the tick.
            stage
                .system
                .cut()?
                .set(crate::cut::Mode::Delay(Duration::from_millis(400)));
        }
        let mut connection = stage.connect().await?;
        connection.send(&bytes).await?;
        let answer = connection.answer().await;
        stage.system.cut()?.set(crate::cut::Mode::Pass);
        let status = answer?.map_or(0, |answer| answer.status);
        holds(
            statuses.contains(&status),
            format!("dead in {place}: {status}"),
        )?;
        a_moment().await;
        let arrived = mark.arrived(&stage)?;
        holds(
            arrived <= u64::try_from(most).unwrap_or(0),
            format!("dead in {place}: {arrived} at the upstream"),
        )?;
        took.push(back(&stage, place).await?);
        holds(
            stage.uses()?.get(&jti(&token)).copied().unwrap_or(0) <= most,
            format!("dead in {place}: it ran twice"),
        )?;
        seen.push(format!("{place} {status}"));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // The stream's end.
    let token = stage.agent.token("GET", REPORT).await?;
    let shot = Shot::get(&stage, REPORT)
        .with(&stage, ("GET", REPORT), &token)
        .and(TRAP, "close panic");
    wanted("armed", &shot.fire(Over::Http1).await?, Want::Served)?;
    stage.system.cut()?.sever();
    a_moment().await;
    took.push(back(&stage, "close").await?);
    stage.recovers().await?;
    configure(&mut stage).await?;
    next_good(&stage).await?;
    let told = times(took)?;
    stage.stop().await;
    Ok(format!(
        "a panic in each of 10 callbacks ({}, close, configure): nothing undecided was forwarded; {told}",
        seen.join(", ")
    ))
}

/// A configuration that the filter dies of is refused, and the one before stays.
async fn configure(stage: &mut Stage) -> Result<(), Error> {
    let file = stage.system.state_dir().join("writ.toml");
    let good = std::fs::read_to_string(&file).map_err(Error::file("read", &file))?;
    let bad = good.replace("name = \"files\"", "name = \"trap-now-configure\"");
    holds(bad != good, "the config names its route in another way")?;
    let nacks = |stage: &Stage| {
        let entries = stage.entries().unwrap_or_default();
        let is = |entry: &&serde_json::Value| {
            text_at(entry, "/kind") == "proxy" && text_at(entry, "/body/event") == "nack"
        };
        entries.iter().filter(is).count()
    };
    let before = nacks(stage);
    std::fs::write(&file, bad).map_err(Error::file("write", &file))?;
    stage.system.restart_control_plane().await?;
    eventually("the deadly configuration is refused", async || {
        nacks(stage) > before
    })
    .await?;
    let mark = Mark::now(stage)?;
    let bare = Shot::get(stage, REPORT).fire(Over::Http1).await?;
    wanted(
        "with the deadly one",
        &bare,
        Want::No(401, "missing_credentials"),
    )?;
    mark.nothing("with the deadly one", stage)?;
    std::fs::write(&file, good).map_err(Error::file("write", &file))?;
    stage.system.restart_control_plane().await?;
    stage.recovers().await
}

/// Memory and stack that run out, and inputs that are made to use them up.
async fn exhausts(stages: &mut Stages) -> Result<String, Error> {
    let trapped = stage().await?;
    let mut took = Vec::new();
    for how in ["grow", "recurse"] {
        let token = trapped.agent.token("GET", REPORT).await?;
        let mark = Mark::now(&trapped)?;
        let shot = Shot::get(&trapped, REPORT)
            .with(&trapped, ("GET", REPORT), &token)
            .and(TRAP, format!("headers {how}"));
        wanted(how, &shot.fire(Over::Http1).await?, Want::Envoy(503))?;
        mark.nothing(how, &trapped)?;
        took.push(back(&trapped, how).await?);
    }
    trapped.recovers().await?;
    next_good(&trapped).await?;
    let told = times(took)?;
    trapped.stop().await;
    let stage = stages.single().await?;
    let reloads = counter(stage, RELOADED).await?;
    let before = super::stress::resident(stage.system.envoy_pid());
    let inputs = crafted(stage).await?;
    same(
        "VMs that died of an input",
        counter(stage, RELOADED).await?,
        reloads,
    )?;
    let grown = super::stress::resident(stage.system.envoy_pid()).saturating_sub(before);
    holds(
        grown < 64 * 1024 * 1024,
        format!("Envoy grew by {} MiB", grown / 1024 / 1024),
    )?;
    next_good(stage).await?;
    Ok(format!(
        "memory and stack ran out: 503, nothing forwarded, {told}; {inputs} crafted inputs were refused and Envoy grew by {} KiB",
        grown / 1024
    ))
}

/// JSON that is deep, wide or long, as a token's and a proof's parts.
async fn crafted(stage: &Stage) -> Result<usize, Error> {
    use base64ct::{Base64UrlUnpadded, Encoding as _};
    let token = stage.agent.token("GET", REPORT).await?;
    let deep = |depth: usize, open: &str, close: &str| {
        format!("{}1{}", open.repeat(depth), close.repeat(depth))
    };
    let mut texts = Vec::new();
    for depth in [15, 16, 17, 64, 128, 1_000, 2_500] {
        texts.push(deep(depth, "[", "]"));
        texts.push(deep(depth, "{\"a\":", "}"));
        texts.push("[".repeat(depth));
    }
    for width in [63, 64, 65, 300] {
        let members: Vec<String> = (0..width).map(|at| format!("\"k{at}\":1")).collect();
        texts.push(format!("{{{}}}", members.join(",")));
    }
    texts.push(format!("{{\"a\":\"{}\"}}", "x".repeat(2_800)));
    texts.push(format!("{{\"a\":{}}}", "9".repeat(2_800)));
    texts.push(format!("{{\"a\":\"{}\"}}", "\\u0041".repeat(400)));
    let parts: Vec<&str> = token.split('.').collect();
    let [head, claims, signature] = parts.as_slice() else {
        return Err(Error::Unexpected(
            "the token has not three parts".to_owned(),
        ));
    };
    let mut sent = 0;
    for text in &texts {
        let part = Base64UrlUnpadded::encode_string(text.as_bytes());
        let tokens = [
            format!("{part}.{claims}.{signature}"),
            format!("{head}.{part}.{signature}"),
        ];
        let proof = format!("{part}.{part}.{signature}");
        let mark = Mark::now(stage)?;
        let mut shots: Vec<Shot> = tokens
            .iter()
            .map(|bad| Shot::get(stage, REPORT).with(stage, ("GET", REPORT), bad))
            .collect();
        shots.push(
            Shot::get(stage, REPORT)
                .and("authorization", format!("DPoP {token}"))
                .and("dpop", proof),
        );
        for shot in shots {
            let start = Instant::now();
            let sizes = shot.headers.iter();
            let block: usize = sizes.map(|(name, value)| name.len() + value.len()).sum();
            let seen = shot.fire(Over::Http1).await?;
            // What is over Envoy's own limit never comes to the filter.
            let told = match seen.status {
                401 => !seen.reason.is_empty(),
                431 => block > HEADER_BLOCK || !seen.reason.is_empty(),
                _ => false,
            };
            holds(
                told,
                format!("{}…: {seen:?}", text.get(..20).unwrap_or_default()),
            )?;
            holds(
                start.elapsed() < Duration::from_secs(2),
                "an input took long",
            )?;
            sent += 1;
        }
        mark.nothing("a crafted input", stage)?;
    }
    Ok(sent)
}
