//! Bodies that are late: such as never end, and such as wait to be asked for.

use std::time::{Duration, Instant};

use super::check::{holds, same};
use super::edge::{Audit, Mark, Seen, a_moment, next_good};
use super::stages::Stages;
use super::unread::{UPLOAD, arrived_whole, body, head};
use super::{How, Row};
use crate::Error;
use crate::cut::Mode;
use crate::raw::{Http1, field};
use crate::stage::{Stage, jti};

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "G14-unread",
        how: How::Live(|it| Box::pin(endless(it))),
    },
    Row {
        id: "G15",
        how: How::Live(|it| Box::pin(hundred(it))),
    },
];

/// Uploads that never end: silent after a while, and a byte a second.
async fn endless(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut seen = Vec::new();
    for decided in [true, false] {
        let (head, token) = head(stage, &[field("transfer-encoding", "chunked")]).await?;
        let mark = Mark::now(stage)?;
        if !decided {
            stage.system.cut()?.set(Mode::Stall);
        }
        let start = Instant::now();
        let mut connection = stage.connect().await?;
        connection
            .send(&[head.as_slice(), b"3\r\nabc\r\n"].concat())
            .await?;
        let answer = connection.answer().await;
        stage.system.cut()?.set(Mode::Pass);
        let status = answer?.map_or(0, |answer| answer.status);
        let took = start.elapsed();
        holds(
            [0, 408, 503, 504].contains(&status),
            format!("a silent upload: {status}"),
        )?;
        holds(
            took < Duration::from_secs(20),
            format!("its slot was kept for {took:?}"),
        )?;
        a_moment().await;
        let records = mark.records(stage)?;
        holds(
            records.iter().all(|record| !record.complete),
            format!("{records:?}"),
        )?;
        holds(
            decided || mark.arrived(stage)? == 0,
            "an undecided upload reached the upstream",
        )?;
        holds(
            stage.uses()?.get(&jti(&token)).copied().unwrap_or(0) <= 1,
            "it ran twice",
        )?;
        seen.push(format!("{status} after {took:.1?}"));
        stage.recovers().await?;
    }
    let slow = trickle(stage).await?;
    next_good(stage).await?;
    let active = stat(stage, "http.writ.downstream_rq_active").await?;
    holds(active <= 1, format!("{active} requests are still there"))?;
    Ok(format!(
        "silent uploads got {}; a byte a second got {slow}",
        seen.join(" and ")
    ))
}

/// A byte a second, for as long as it is taken.
async fn trickle(stage: &Stage) -> Result<String, Error> {
    const LONGEST: Duration = Duration::from_secs(90);
    let (head, _) = head(stage, &[field("transfer-encoding", "chunked")]).await?;
    let mark = Mark::now(stage)?;
    let start = Instant::now();
    let mut connection: Http1 = stage.connect().await?;
    connection.send(&head).await?;
    while !connection.answers_within(Duration::from_secs(1)).await {
        holds(
            start.elapsed() < LONGEST,
            "an upload without an end keeps its slot",
        )?;
        if connection.send(b"1\r\na\r\n").await.is_err() {
            break;
        }
    }
    let status = connection
        .answer()
        .await
        .ok()
        .flatten()
        .map_or(0, |answer| answer.status);
    holds(
        [0, 408, 504].contains(&status),
        format!("a slow upload: {status}"),
    )?;
    let took = start.elapsed();
    a_moment().await;
    let whole = mark
        .records(stage)?
        .into_iter()
        .filter(|record| record.complete);
    same("whole uploads", whole.count(), 0)?;
    Ok(format!("{status} after {took:.1?}"))
}

async fn stat(stage: &Stage, name: &str) -> Result<u64, Error> {
    let mut sum = 0;
    for admin in stage.system.admin_urls() {
        let url = format!("{admin}/stats?filter=^{name}$");
        let text = reqwest::get(&url).await.map_err(Error::http(&url))?;
        let text = text.text().await.map_err(Error::http(&url))?;
        let value = text.lines().find_map(|line| line.split_once(": "));
        sum += value
            .and_then(|(_, value)| value.trim().parse().ok())
            .unwrap_or(0_u64);
    }
    Ok(sum)
}

/// A client that waits for a 100 has it from Envoy; the upstream has nothing.
async fn hundred(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let upload = body(1_000);
    let more = [
        field("content-length", "1000"),
        field("expect", "100-continue"),
    ];
    let (bytes, token) = head(stage, &more).await?;
    let mark = Mark::now(stage)?;
    stage.system.cut()?.set(Mode::Stall);
    let mut connection = stage.connect().await?;
    connection.send(&bytes).await?;
    let told = connection.answers_within(Duration::from_secs(1)).await;
    let early = mark.arrived(stage)?;
    stage.system.cut()?.set(Mode::Pass);
    same("before the decision", early, 0)?;
    connection.send(&upload).await?;
    let answer = connection.answer().await?;
    same("status", answer.map(|answer| answer.status), Some(200))?;
    holds(
        !told || connection.interim == 1,
        "something else than a 100 came early",
    )?;
    arrived_whole("after a 100", mark, stage, &token, &upload)?;
    // One that is refused has its answer and no upstream.
    let mut audit = Audit::begin(stage)?;
    let mark = Mark::now(stage)?;
    let mut connection = stage.connect().await?;
    connection
        .send(&stage.request("POST", UPLOAD, &more))
        .await?;
    let answer = connection.answer().await?;
    let seen = answer.map(|it| Seen::of(&it));
    same(
        "reason",
        seen.map(|seen| seen.reason),
        Some("missing_credentials".to_owned()),
    )?;
    audit.count("missing_credentials");
    mark.nothing("a refused one", stage)?;
    next_good(stage).await?;
    let logged = audit.settled(stage).await?;
    Ok(format!(
        "Envoy's 100 came at once ({told}) and the upstream had nothing before the decision; {logged}"
    ))
}
