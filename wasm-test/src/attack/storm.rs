//! H32: every proxy connects at once, to a control plane that has just started.

use std::time::{Duration, Instant};

use super::check::{holds, one_of, same};
use super::stages::{Stages, options};
use crate::Error;
use crate::stage::{Stage, eventually};
use crate::system::Options;
use crate::upstream::REPORT;

/// How often.
const ROUNDS: usize = 3;
/// All of many proxies are back within this.
const BACK_WITHIN: Duration = Duration::from_secs(180);

/// All proxies come at once, again and again.
///
/// # Errors
/// When a request gets through that nobody decided, or they don't all come back.
pub async fn storm(stages: &mut Stages) -> Result<String, Error> {
    let mut seen = of_two(stages.single().await?).await?;
    if stages.proxies > 2 {
        seen = format!("{seen}; {}", of_many(stages.proxies).await?);
    }
    Ok(seen)
}

async fn of_two(stage: &mut Stage) -> Result<String, Error> {
    let mut told = 0;
    for round in 0..ROUNDS {
        let token = stage.agent.token("GET", REPORT).await?;
        let before = stage.arrived()?;
        stage.system.kill_control_plane();
        if round > 0 {
            stage.system.kill_envoy(0);
            stage.system.kill_envoy(1);
            stage.system.spawn_envoy(0)?;
            stage.system.spawn_envoy(1)?;
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(1) {
            // A fresh Envoy has no listener yet, one that stayed says 503.
            if let Ok(answer) = stage.present(REPORT, &token).await {
                one_of(&answer, &[503])?;
                told += 1;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        same("reached the upstream", stage.arrived()?, before)?;
        holds(round > 0 || told > 0, "no proxy was asked meanwhile")?;
        stage.system.start_control_plane().await?;
        eventually("the proxies are back", async || stage.passes().await).await?;
        stage.recovers().await?;
    }
    stage.each_once()?;
    Ok(format!(
        "{ROUNDS} times all of two proxies' workers came back at once; {told} requests meanwhile were told 503"
    ))
}

/// Real ones, of one worker each, on one listener's address.
async fn of_many(proxies: usize) -> Result<String, Error> {
    let mut stage = Stage::start(Options {
        envoys: proxies,
        concurrency: 1,
        ..options()
    })
    .await?;
    let (mut told, mut slowest) = (0, Duration::ZERO);
    for _ in 0..ROUNDS {
        let token = stage.agent.token("GET", REPORT).await?;
        let before = stage.arrived()?;
        stage.system.kill_control_plane();
        let away = Instant::now();
        while away.elapsed() < Duration::from_secs(2) {
            one_of(&stage.present(REPORT, &token).await?, &[503])?;
            told += 1;
        }
        same("reached the upstream", stage.arrived()?, before)?;
        stage.system.start_control_plane().await?;
        let back = Instant::now();
        while let Err(problem) = stage.system.configured().await {
            if back.elapsed() > BACK_WITHIN {
                return Err(problem);
            }
        }
        slowest = slowest.max(back.elapsed());
        stage.recovers().await?;
    }
    stage.each_once()?;
    stage.stop().await;
    Ok(format!(
        "{ROUNDS} times {proxies} Envoys came back at once, within {:.1} s; {told} requests meanwhile were told 503",
        slowest.as_secs_f64()
    ))
}
