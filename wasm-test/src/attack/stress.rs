//! Load, exhaustion and time: floods, leaks, files, slow disks, storms, bombs.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::check::{holds, one_of, same};
use super::stages::{Stages, options};
use super::{How, Row, exhaustion};
use crate::Error;
use crate::child::Child;
use crate::client::Answer;
use crate::raw::{Http1, field, message};
use crate::stage::{Stage, eventually, jti};
use crate::system::Options;
use crate::upstream::REPORT;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "N01",
        how: How::Live(|it| Box::pin(flood(it))),
    },
    Row {
        id: "N03",
        how: How::Live(|it| Box::pin(exhaustion::memory(it))),
    },
    Row {
        id: "N04",
        how: How::Live(|it| Box::pin(exhaustion::files(it))),
    },
    Row {
        id: "N05",
        how: How::Live(|it| Box::pin(slow_disk(it))),
    },
    Row {
        id: "N07",
        how: How::Live(|it| Box::pin(retry_storm(it))),
    },
    Row {
        id: "N08",
        how: How::Covered(&[
            "control-plane/ledger/tests/ledger/recovery.rs::time_goes_on_from_the_journal",
            "control-plane/ledger/src/sim/tests.rs::every_planted_bug_is_found",
        ]),
    },
    Row {
        id: "N09",
        how: How::Live(|it| Box::pin(exhaustion::full_logs(it))),
    },
    Row {
        id: "N11",
        how: How::Live(|it| Box::pin(patterns(it))),
    },
    Row {
        id: "N12",
        how: How::Live(|it| Box::pin(bombs(it))),
    },
];

/// Good requests, one after the other: how long each took, in order of length.
pub(super) async fn good(stage: &Stage, count: usize) -> Result<Vec<Duration>, Error> {
    let mut took = Vec::new();
    for _ in 0..count {
        let token = stage.agent.token("GET", REPORT).await?;
        let bytes = stage.signed("GET", REPORT, &token);
        let start = Instant::now();
        let answer = stage.exchange(&bytes).await?;
        took.push(start.elapsed());
        answer.expect("a good request", 200)?;
    }
    took.sort();
    Ok(took)
}

pub(super) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let at = sorted.len().saturating_sub(1) * percent / 100;
    sorted.get(at).copied().unwrap_or_default()
}

/// Good requests each of which is sent when it is due: how long each took from
/// then, in order of length.
async fn paced(stage: &Stage, count: u32, gap: Duration) -> Result<Vec<Duration>, Error> {
    let mut ready = Vec::new();
    for _ in 0..count {
        let token = stage.agent.token("GET", REPORT).await?;
        ready.push(stage.signed("GET", REPORT, &token));
    }
    let (start, mut took) = (tokio::time::Instant::now(), Vec::new());
    for (number, bytes) in (0..).zip(&ready) {
        let due = start + gap * number;
        tokio::time::sleep_until(due).await;
        stage.exchange(bytes).await?.expect("a good request", 200)?;
        took.push(due.elapsed());
    }
    took.sort();
    Ok(took)
}

/// Who sends one forged request after the other, until it is stopped: how many.
struct Senders {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    tasks: JoinSet<Result<(), Error>>,
}

impl Senders {
    /// `gap` is the time from one to the next of each sender.
    async fn start(stage: &Stage, bytes: &[u8], many: usize, gap: Duration) -> Result<Self, Error> {
        let mut senders = Senders {
            stop: Arc::default(),
            sent: Arc::default(),
            tasks: JoinSet::new(),
        };
        for number in 0..many {
            let mut connection = stage.connect_to(number % 2).await?;
            let (stop, sent) = (Arc::clone(&senders.stop), Arc::clone(&senders.sent));
            let bytes = bytes.to_vec();
            let mut tick = tokio::time::interval(gap.max(Duration::from_nanos(1)));
            senders.tasks.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    if !gap.is_zero() {
                        tick.tick().await;
                    }
                    connection.send(&bytes).await?;
                    let answer = connection.answer().await?;
                    let reason = answer.map(|answer| answer.reason()).unwrap_or_default();
                    same("a forged token", reason.as_str(), "token_signature")?;
                    sent.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            });
        }
        Ok(senders)
    }

    async fn stopped(mut self) -> Result<u64, Error> {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(sender) = self.tasks.join_next().await {
            sender.map_err(|it| Error::Unexpected(it.to_string()))??;
        }
        Ok(self.sent.load(Ordering::SeqCst))
    }
}

/// Forged signatures at ten times the rate of good requests, and then as many as
/// eight senders can send.
async fn flood(stages: &mut Stages) -> Result<String, Error> {
    const GOOD: u32 = 200;
    const GAP: Duration = Duration::from_millis(25);
    const SENDERS: usize = 8;
    // Others on the same cores are in every figure: the best of some tries counts.
    const TRIES: usize = 5;
    let stage = stages.single().await?;
    let token = stage.agent.token("GET", REPORT).await?;
    // The last character of a signature has bits to spare; one in the middle has none.
    let at = token.len().saturating_sub(40);
    let forged: String = token
        .char_indices()
        .map(|(index, c)| match (index == at, c) {
            (true, 'A') => 'B',
            (true, _) => 'A',
            (false, c) => c,
        })
        .collect();
    let bytes = stage.signed("GET", REPORT, &forged);
    let before = stage.arrived()?;
    let each = GAP * u32::try_from(SENDERS).unwrap_or(8) / 10;
    let (mut tried, mut good_ones) = (Vec::new(), 0);
    for _ in 0..TRIES {
        let quiet = percentile(&paced(stage, GOOD, GAP).await?, 99);
        let senders = Senders::start(stage, &bytes, SENDERS, each).await?;
        let start = Instant::now();
        let busy = paced(stage, GOOD, GAP).await;
        let took = start.elapsed();
        let sent = senders.stopped().await?;
        let busy = percentile(&busy?, 99);
        good_ones += 2 * u64::from(GOOD);
        let rate = sent / took.as_secs().max(1);
        let ratio = busy.as_secs_f64() / quiet.as_secs_f64().max(1e-6);
        tried.push(format!("{quiet:.1?} to {busy:.1?} beside {rate}/s"));
        if ratio <= 2.0 {
            break;
        }
        holds(
            tried.len() < TRIES,
            format!("p99 of good requests: {tried:?}"),
        )?;
    }
    let senders = Senders::start(stage, &bytes, SENDERS, Duration::ZERO).await?;
    let busy = good(stage, 60).await;
    let sent = senders.stopped().await?;
    let most = percentile(&busy?, 99);
    good_ones += 60;
    same("reached the upstream", stage.arrived()?, before + good_ones)?;
    // Everything shares a few cores here, senders among them; a queue would show.
    holds(
        most < Duration::from_secs(1),
        format!("p99 went to {most:.1?}"),
    )?;
    stage.good_request().await?;
    holds(sent > 600, format!("{sent} forged tokens are no flood"))?;
    Ok(format!(
        "p99 of good requests, 40/s, without and beside ten times as many forged ones: {}; beside {sent} more, as fast as they are answered: {most:.1?}",
        tried.join(", ")
    ))
}

/// Resident memory in bytes.
pub(super) fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0_u64) * 4096
}

/// Each sync of the journal takes long.
async fn slow_disk(stages: &mut Stages) -> Result<String, Error> {
    const CLIENTS: usize = 20;
    let stage = stages.single().await?;
    let mut tokens = Vec::new();
    for _ in 0..CLIENTS {
        tokens.push(stage.agent.token("GET", REPORT).await?);
    }
    let mut command = Command::new("strace");
    command
        .args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=fdatasync",
            "-e",
        ])
        .arg("inject=fdatasync:delay_enter=400000")
        .args(["-p", &stage.system.control_plane_pid().to_string()])
        .stdin(Stdio::null());
    let mut tracer = Child::spawn(
        "strace",
        &mut command,
        &stage.system.state_dir().join("strace.log"),
    )?;
    tokio::time::sleep(Duration::from_millis(700)).await;
    tracer.still_running()?;
    let address = stage.address();
    let mut asked = JoinSet::new();
    for token in &tokens {
        let (bytes, address) = (stage.signed("GET", REPORT, token), address.clone());
        asked.spawn(async move {
            let start = Instant::now();
            let mut connection = Http1::connect(&address).await?;
            connection.send(&bytes).await?;
            let answer = connection.answer().await?;
            Ok::<_, Error>((answer.map_or(0, |it| it.status), start.elapsed()))
        });
    }
    let start = Instant::now();
    let health = reqwest::get(format!("{}/healthz", stage.system.http_url())).await;
    let health_took = start.elapsed();
    holds(
        health.is_ok_and(|it| it.status() == 200),
        "health is not answered",
    )?;
    let (mut passed, mut longest) = (0, Duration::ZERO);
    while let Some(one) = asked.join_next().await {
        let (status, took) = one.map_err(|it| Error::Unexpected(it.to_string()))??;
        holds(
            [200, 503].contains(&status),
            format!("a request was told {status}"),
        )?;
        passed += usize::from(status == 200);
        longest = longest.max(took);
    }
    tracer.stop().await;
    holds(
        longest >= Duration::from_millis(400),
        format!("no sync was slow: the longest took {longest:?}"),
    )?;
    holds(
        longest < Duration::from_secs(5),
        format!("one waited {longest:?}"),
    )?;
    holds(
        health_took < Duration::from_secs(1),
        format!("health took {health_took:?}"),
    )?;
    stage.recovers().await?;
    stage.each_once()?;
    Ok(format!(
        "syncs of 400 ms and more: {passed} of {CLIENTS} requests passed, the longest took {longest:.1?}; health answered after {health_took:.1?}"
    ))
}

/// Many clients try again and again while the control plane is away.
async fn retry_storm(stages: &mut Stages) -> Result<String, Error> {
    const CLIENTS: usize = 24;
    let stage = stages.single().await?;
    let (stop, sent) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let token = stage.agent.token("GET", REPORT).await?;
    let bytes = stage.signed("GET", REPORT, &token);
    stage.system.stop_control_plane().await;
    let before = stage.arrived()?;
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let mut connection = stage.connect_to(number % 2).await?;
        let (stop, sent, bytes) = (Arc::clone(&stop), Arc::clone(&sent), bytes.clone());
        clients.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                connection.send(&bytes).await?;
                let answer = connection.answer().await?;
                let status = answer.map_or(0, |it| it.status);
                // Afterwards the token is one of an earlier start.
                holds(
                    [401, 503].contains(&status),
                    format!("it was told {status}"),
                )?;
                sent.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok::<_, Error>(())
        });
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    same("reached the upstream", stage.arrived()?, before)?;
    stage.system.start_control_plane().await?;
    let start = Instant::now();
    eventually("good requests pass", async || stage.passes().await).await?;
    let first = start.elapsed();
    stage.recovers().await?;
    let all = start.elapsed();
    stop.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.map_err(|it| Error::Unexpected(it.to_string()))??;
    }
    same("uses of the token", stage.uses()?.get(&jti(&token)), None)?;
    stage.each_once()?;
    let sent = sent.load(Ordering::SeqCst);
    Ok(format!(
        "{CLIENTS} clients asked {sent} times during and after an outage of 4 s; the first good request passed {first:.1?} after the start, all workers' after {all:.1?}"
    ))
}

/// A policy whose pattern has many stars, and paths made for it.
async fn patterns(_: &mut Stages) -> Result<String, Error> {
    let policy = tempfile::NamedTempFile::new()
        .map_err(Error::file("make a file in", &std::env::temp_dir()))?;
    let stars = "*a".repeat(40);
    let text = format!(
        "@id(\"bomb\")\nforbid (principal, action, resource) when {{ resource.path like \"/files/{stars}b\" }};\n\
         @id(\"rest\")\npermit (principal, action, resource);\n"
    );
    std::fs::write(policy.path(), text).map_err(Error::file("write", policy.path()))?;
    let stage = Stage::start(Options {
        policy: Some(policy.path().to_owned()),
        ..options()
    })
    .await?;
    let plain = percentile(&good(&stage, 20).await?, 50);
    let mut longest = Duration::ZERO;
    for length in [100, 500, 900] {
        let path = format!("/files/{}", "a".repeat(length));
        for _ in 0..5 {
            let start = Instant::now();
            let token = stage.agent.token("GET", &path).await?;
            let answer = stage.present(&path, &token).await?;
            longest = longest.max(start.elapsed());
            // The upstream has no such file: it was asked.
            one_of(&answer, &[404])?;
        }
    }
    stage.good_request().await?;
    stage.stop().await;
    holds(
        longest < Duration::from_secs(1),
        format!("one took {longest:?}"),
    )?;
    Ok(format!(
        "40 stars against up to 900 characters: exchange and request took {longest:.1?} at most, a plain request {plain:.1?}"
    ))
}

/// What blows up when it is unpacked or parsed. Proof and SVID are good, so that
/// everything is read as far as it would be.
async fn bombs(stages: &mut Stages) -> Result<String, Error> {
    const GROWTH: u64 = 16 * 1024 * 1024;
    let stage = stages.single().await?;
    let pid = stage.system.control_plane_pid();
    let before = resident(pid);
    let svid = stage.agent.svid().await?;
    let mut told = Vec::new();
    for (what, details) in [
        ("nested", "[".repeat(9_000)),
        ("nested and closed", "[".repeat(200) + &"]".repeat(200)),
        ("wide", format!("[{}{{}}]", "{},".repeat(3_000))),
    ] {
        let proof = stage.agent.token_proof();
        let start = Instant::now();
        let answer = stage.agent.post_token(&svid, &details, &proof).await?;
        holds(start.elapsed() < Duration::from_secs(2), "it took long")?;
        let got = (answer.status, answer.oauth_error());
        same(what, got, (400, "invalid_authorization_details".to_owned()))?;
        told.push(what);
    }
    let many = "a=b&".repeat(7_500).into_bytes();
    let large = vec![b'b'; 1024 * 1024];
    let packed = packed(24 * 1024 * 1024)?;
    for (what, body, encoding, status) in [
        ("many parameters", many, None, 400),
        ("large", large, None, 413),
        ("packed", packed.clone(), Some("gzip"), 400),
        ("packed twice", packed, Some("gzip, gzip"), 400),
    ] {
        let answer = posted(stage, &body, encoding).await?;
        let got = (answer.status, answer.oauth_error());
        same(what, got, (status, "invalid_request".to_owned()))?;
        told.push(what);
    }
    stage.good_request().await?;
    let grown = resident(pid).saturating_sub(before);
    holds(grown < GROWTH, format!("it grew by {grown} bytes"))?;
    Ok(format!(
        "refused at the token endpoint: {}; the control plane grew by {} KiB",
        told.join(", "),
        grown / 1024
    ))
}

/// Zeros, packed by gzip to a thousandth.
fn packed(zeros: usize) -> Result<Vec<u8>, Error> {
    let failed = || Error::file("run", std::path::Path::new("gzip"));
    let mut child = Command::new("sh")
        .args(["-c", &format!("head -c {zeros} /dev/zero | gzip -9")])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed())?;
    let mut bytes = Vec::new();
    if let Some(mut out) = child.stdout.take() {
        std::io::Read::read_to_end(&mut out, &mut bytes).map_err(failed())?;
    }
    child.wait().map_err(failed())?;
    holds(bytes.starts_with(&[0x1f, 0x8b]), "gzip gave no gzip")?;
    Ok(bytes)
}

/// A body at the token endpoint, with a good proof.
async fn posted(stage: &Stage, body: &[u8], encoding: Option<&str>) -> Result<Answer, Error> {
    let http = stage.system.http_url();
    let http = http.trim_start_matches("http://");
    let mut headers = vec![
        field("host", http),
        field("content-type", "application/x-www-form-urlencoded"),
        field("content-length", body.len().to_string()),
        field("connection", "close"),
        field("dpop", stage.agent.token_proof()),
    ];
    headers.extend(encoding.map(|encoding| field("content-encoding", encoding)));
    let start = Instant::now();
    let mut connection = Http1::connect(http).await?;
    connection
        .send(&message("POST", "/oauth2/token", &headers))
        .await?;
    let closed = || Error::Unexpected("closed without an answer".to_owned());
    let answer = connection.exchange(body).await?.ok_or_else(closed)?;
    holds(start.elapsed() < Duration::from_secs(2), "it took long")?;
    Ok(answer)
}
