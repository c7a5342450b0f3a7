//! Many clients: a thousand that leave while they are held, and full load for as
//! long as is said.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::check::{holds, same};
use super::edge::{Mark, Seen, Want, next_good, wanted};
use super::life::joined;
use super::stages::{Stages, options};
use super::stress::resident;
use super::{How, Row};
use crate::Error;
use crate::stage::{Stage, eventually};
use crate::system::Options;
use crate::upstream::REPORT;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "G-gone",
        how: How::Live(|it| Box::pin(clients_gone(it))),
    },
    Row {
        id: "G-soak",
        how: How::Live(|it| Box::pin(soak(it))),
    },
];

/// A thousand clients leave while they are held.
async fn clients_gone(stages: &mut Stages) -> Result<String, Error> {
    const CLIENTS: usize = 1_000;
    const PATH: &str = "/echo/restricted/gone";
    let _unused = stages;
    let stage = Stage::start(Options {
        hold_s: 30,
        token_lifetime_s: 120,
        extra_config: "[limits]\noutstanding_per_agent = 65536\nheld_per_agent = 256\n\
            exchanges_per_agent = 1000000\nexchanges_per_owner = 1000000\n"
            .to_owned(),
        ..Options::default()
    })
    .await?;
    let (mark, mut held, mut pending) = (Mark::now(&stage)?, Vec::new(), 0);
    let gauge = async || {
        let url = format!("{}/stats?filter=writ.in_flight", stage.system.admin_url());
        let Ok(answer) = reqwest::get(url).await else {
            return u64::MAX;
        };
        let text = answer.text().await.unwrap_or_default();
        let value = text.lines().find_map(|line| line.split_once(": "));
        value
            .and_then(|(_, value)| value.trim().parse().ok())
            .unwrap_or(0)
    };
    for round in 0..CLIENTS / 200 {
        for client in 0..200 {
            let token = stage.agent.token("GET", PATH).await?;
            let mut connection = stage.connect().await?;
            connection.send(&stage.signed("GET", PATH, &token)).await?;
            held.push(connection);
            pending += usize::from(client == 0 && round == 0);
        }
        eventually("they are held", async || gauge().await >= 200).await?;
        // All of them leave at once.
        held.clear();
        eventually("their questions are withdrawn", async || gauge().await == 0).await?;
    }
    same("rounds", pending, 1)?;
    mark.nothing("clients that left", &stage)?;
    stage.recovers().await?;
    next_good(&stage).await?;
    stage.stop().await;
    Ok(format!(
        "{CLIENTS} clients left while they were held, 200 at a time: no question was left, and none was forwarded"
    ))
}

/// How long a run at full load is when nobody says.
const SHORTEST: Duration = Duration::from_secs(30);

/// Full load for as long as is said: neither part's memory grows any more after
/// the first third.
async fn soak(stages: &mut Stages) -> Result<String, Error> {
    const CLIENTS: usize = 8;
    const MIB: u64 = 1024 * 1024;
    let length = stages.lasts().max(SHORTEST);
    let stage = Stage::start(Options {
        concurrency: 2,
        ..options()
    })
    .await?;
    let stop = Arc::new(AtomicBool::new(false));
    let (served, others) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let agent = stage.agent.with_fresh_key()?;
        let (stop, served, others) = (stop.clone(), served.clone(), others.clone());
        clients.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let token = agent.token("GET", REPORT).await?;
                let first = agent.present("GET", REPORT, &token).await?;
                match first.status {
                    200 => served.fetch_add(1, Ordering::SeqCst),
                    503 => others.fetch_add(1, Ordering::SeqCst),
                    _ => return Err(Error::Unexpected(first.summary())),
                };
                // Spent, another action, and no credentials.
                if number % 2 == 0 {
                    let path = if number % 4 == 0 {
                        REPORT
                    } else {
                        "/files/notes.txt"
                    };
                    let again = agent.present("GET", path, &token).await?;
                    holds([401, 403, 503].contains(&again.status), again.summary())?;
                    others.fetch_add(1, Ordering::SeqCst);
                }
            }
            Ok::<_, Error>(())
        });
    }
    let start = Instant::now();
    let mut sizes = Vec::new();
    while start.elapsed() < length {
        tokio::time::sleep(length / 60).await;
        sizes.push((
            resident(stage.system.envoy_pid()),
            resident(stage.system.control_plane_pid()),
        ));
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        joined(client)??;
    }
    // The middle of the second and of the last third, so that a moment's peak is none.
    let middle = |part: usize, of: fn(&(u64, u64)) -> u64| {
        let third = sizes.len() / 3;
        let mut some: Vec<u64> = sizes
            .iter()
            .skip(part * third)
            .take(third)
            .map(of)
            .collect();
        some.sort_unstable();
        some.get(some.len() / 2).copied().unwrap_or(0)
    };
    let growth =
        |of: fn(&(u64, u64)) -> u64| (middle(1, of), middle(2, of).saturating_sub(middle(1, of)));
    let ((envoy, more), (plane, plane_more)) = (growth(|it| it.0), growth(|it| it.1));
    let (served, others) = (served.load(Ordering::SeqCst), others.load(Ordering::SeqCst));
    holds(
        more < 8 * MIB,
        format!("Envoy grew from {} MiB by {} KiB", envoy / MIB, more / 1024),
    )?;
    // The control plane remembers spent tokens until they expire: two minutes.
    let young = length < Duration::from_secs(400);
    holds(
        young || plane_more < 32 * MIB,
        format!(
            "the control plane grew from {} MiB by {} KiB",
            plane / MIB,
            plane_more / 1024
        ),
    )?;
    stage.recovers().await?;
    stage.each_once()?;
    let ended = wanted(
        "the next",
        &Seen::of(
            &stage
                .present(REPORT, &stage.agent.token("GET", REPORT).await?)
                .await?,
        ),
        Want::Served,
    );
    stage.stop().await;
    ended?;
    Ok(format!(
        "{:.0} s at full load, {served} requests served and {others} refused: Envoy with 2 workers had {} MiB and grew by {} KiB between the middle and the last third, the control plane had {} MiB and grew by {} KiB",
        length.as_secs_f64(),
        envoy / MIB,
        more / 1024,
        plane / MIB,
        plane_more / 1024
    ))
}
