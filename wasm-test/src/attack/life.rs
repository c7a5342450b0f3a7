//! What goes on around the guard: workers, drains, logs, metrics, the wire to the
//! control plane, clients that leave, and a long run at full load.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinSet;

use super::check::{holds, one_of, refused, same};
use super::edge::{Mark, Over, Shot, a_moment, next_good};
use super::stages::{Stages, options};
use super::{How, Row};
use crate::Error;
use crate::cut::{Mode, Target};
use crate::raw::Http1;
use crate::stage::{Stage, jti};
use crate::system::Options;
use crate::upstream::REPORT;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "G08",
        how: How::Live(|it| Box::pin(drained(it))),
    },
    Row {
        id: "G10",
        how: How::Covered(&[
            "wasm-test/tests/scripted_host/faults.rs::a_repeated_answer_changes_nothing",
            "wasm-test/tests/scripted_host/faults.rs::answers_that_do_not_fit_are_ignored",
            "wasm-test/tests/scripted_host/faults.rs::answers_on_an_older_stream_are_nobodys",
            "wasm-test/tests/scripted_host/faults.rs::an_allow_after_the_deadline_lets_nothing_through",
        ]),
    },
    Row {
        id: "G18",
        how: How::Live(|it| Box::pin(workers(it))),
    },
    Row {
        id: "G20",
        how: How::Covered(&[
            "wasm-test/tests/scripted_host/faults.rs::a_clock_that_jumps_back_does_not_stretch_a_deadline",
            "wasm-test/tests/scripted_host/hostile.rs::an_expired_token_is_refused_by_the_hosts_clock",
            "control-plane/ledger/tests/ledger/recovery.rs::time_goes_on_from_the_journal",
        ]),
    },
    Row {
        id: "G22",
        how: How::Live(|it| Box::pin(logged_text(it))),
    },
    Row {
        id: "G23",
        how: How::Live(|it| Box::pin(cardinality(it))),
    },
    Row {
        id: "G28",
        how: How::Live(|it| Box::pin(forged_wire(it))),
    },
];

pub(super) fn joined<T>(task: Result<T, tokio::task::JoinError>) -> Result<T, Error> {
    task.map_err(|it| Error::Unexpected(it.to_string()))
}

/// Envoy is told to end while questions are under way.
async fn drained(stages: &mut Stages) -> Result<String, Error> {
    const ROUNDS: u64 = 6;
    let stage = stages.single().await?;
    let (mut served, mut closed) = (0, 0);
    for round in 0..ROUNDS {
        let mut tokens = Vec::new();
        let mut requests = JoinSet::new();
        stage
            .system
            .cut()?
            .set(Mode::Delay(Duration::from_millis(30)));
        for _ in 0..10 {
            let token = stage.agent.token("GET", REPORT).await?;
            let bytes = stage.signed("GET", REPORT, &token);
            let mut connection = stage.connect_to(0).await?;
            tokens.push(token);
            requests.spawn(async move {
                drop(connection.send(&bytes).await);
                connection
                    .answer()
                    .await
                    .ok()
                    .flatten()
                    .map_or(0, |it| it.status)
            });
        }
        tokio::time::sleep(Duration::from_millis(round * 15)).await;
        stage.system.terminate_envoy(0).await;
        stage.system.cut()?.set(Mode::Pass);
        while let Some(request) = requests.join_next().await {
            match joined(request)? {
                200 => served += 1,
                0 | 503 => closed += 1,
                status => return Err(Error::Unexpected(format!("a drained request got {status}"))),
            }
        }
        stage.system.start_envoy().await?;
        stage.recovers().await?;
        for token in &tokens {
            // Withdrawn in time or spent: one use at most in all.
            let again = stage.present(REPORT, token).await?;
            one_of(&again, &[200, 401])?;
            let uses = stage.uses()?.get(&jti(token)).copied().unwrap_or(0);
            holds(uses <= 1, format!("a token ran {uses} times"))?;
        }
    }
    next_good(stage).await?;
    Ok(format!(
        "{ROUNDS} Envoys ended with 10 questions under way each: {served} were served, {closed} were not; none ran twice"
    ))
}

/// The same token on each of four workers at the same moment.
async fn workers(_: &mut Stages) -> Result<String, Error> {
    const WORKERS: usize = 4;
    const TOKENS: usize = 20;
    let stage = Stage::start(Options {
        concurrency: 4,
        ..options()
    })
    .await?;
    let mut connections: Vec<Http1> = Vec::new();
    let busy = async || {
        let url = format!(
            "{}/stats?filter=worker_[0-9]*.downstream_cx_active",
            stage.system.admin_url()
        );
        let Ok(answer) = reqwest::get(url).await else {
            return 0;
        };
        let text = answer.text().await.unwrap_or_default();
        let lines = text
            .lines()
            .filter(|line| line.starts_with("listener.127.0.0.1"));
        lines.filter(|line| !line.ends_with(": 0")).count()
    };
    let start = Instant::now();
    while connections.len() < 8 || busy().await < WORKERS {
        connections.push(stage.connect().await?);
        holds(
            start.elapsed() < Duration::from_secs(20),
            "not every worker gets a connection",
        )?;
    }
    let mark = Mark::now(&stage)?;
    for _ in 0..TOKENS {
        let token = stage.agent.token("GET", REPORT).await?;
        let mut shown = JoinSet::new();
        for mut connection in connections.drain(..) {
            let bytes = stage.signed("GET", REPORT, &token);
            shown.spawn(async move {
                connection.send(&bytes).await?;
                let answer = connection.answer().await?;
                Ok::<_, Error>((connection, answer))
            });
        }
        let mut passed = 0;
        while let Some(one) = shown.join_next().await {
            let (connection, answer) = joined(one)??;
            let answer = answer.ok_or_else(|| Error::Unexpected("closed".to_owned()))?;
            if answer.status == 200 {
                passed += 1;
            } else {
                refused(&answer, 401, "token_spent")?;
            }
            connections.push(connection);
        }
        same("passed", passed, 1)?;
        same("uses", stage.uses()?.get(&jti(&token)), Some(&1))?;
    }
    same(
        "reached the upstream",
        mark.arrived(&stage)?,
        u64::try_from(TOKENS).unwrap_or(0),
    )?;
    let count = connections.len();
    next_good(&stage).await?;
    stage.stop().await;
    Ok(format!(
        "{TOKENS} tokens on {count} connections to {WORKERS} workers at once: each passed once"
    ))
}

/// Texts that end a line, a string or a colour somewhere.
fn naughty() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for byte in (0x01..=0xff_u8).filter(|byte| !matches!(byte, b'\r' | b'\n' | b'\0')) {
        all.push(vec![b'a', byte, b'b']);
    }
    for text in [
        "\",\"reason\":\"none\",\"x\":\"",
        "\\\",\\\"status\\\":200,\\\"x\\\":\\\"",
        "\\u0022}",
        "\\",
        "%0d%0a{\"status\":200}",
        "\u{1b}[2J\u{1b}[31m",
        "\u{202e}gpj.exe",
        "\u{2028}\u{2029}\u{85}",
        "<script>alert(1)</script>",
        "' OR 1=1 --",
        "${jndi:ldap://x/a}",
        "%s%s%n%REQ(authorization)%",
        "{{7*7}}",
        "$(touch /tmp/x)",
        "`id`",
        "\u{feff}",
        "\u{fffd}\u{ffff}",
        "NULL",
        "-1E+1000",
        "../../../etc/passwd",
    ] {
        all.push(text.as_bytes().to_vec());
    }
    all
}

async fn logged_text(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let texts = naughty();
    let token = stage.agent.token("GET", REPORT).await?;
    let mark = Mark::now(stage)?;
    let mut sent = 0;
    for text in &texts {
        for name in [
            "user-agent",
            "referer",
            "x-request-id",
            "x-forwarded-for",
            "content-type",
        ] {
            let shot = Shot::get(stage, "/files/notes.txt").with(
                stage,
                ("GET", "/files/notes.txt"),
                &token,
            );
            let seen = shot.and(name, text.as_slice()).fire(Over::Http1).await?;
            holds(
                seen.is_refusal(),
                format!("{}: {seen:?}", text.escape_ascii()),
            )?;
            sent += 1;
        }
        let seen = Shot::get(stage, [b"/files/", text.as_slice()].concat())
            .fire(Over::Http1)
            .await?;
        holds(
            seen.is_refusal() || seen.status == 426,
            format!("{}: {seen:?}", text.escape_ascii()),
        )?;
        sent += 1;
    }
    mark.nothing("texts", stage)?;
    next_good(stage).await?;
    // Envoy writes its log a moment later.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut lines = 0;
    for part in ["envoy", "envoy-1"] {
        let file = stage.system.log(part);
        let log = std::fs::read(&file).map_err(Error::file("read", &file))?;
        let control = log
            .iter()
            .find(|byte| byte.is_ascii_control() && !matches!(byte, b'\n' | b'\t'));
        holds(
            control.is_none(),
            format!("{part}'s log has a byte {control:?}"),
        )?;
        let text = String::from_utf8(log);
        let text = text.map_err(|it| Error::Unexpected(format!("{part}'s log: {it}")))?;
        for line in text.lines().filter(|line| line.starts_with('{')) {
            let parsed: Result<Value, _> = serde_json::from_str(line);
            holds(
                parsed.is_ok_and(|it| it.get("status").is_some()),
                format!("a line of {part}'s log: {line}"),
            )?;
            lines += 1;
        }
    }
    holds(lines > sent, format!("{lines} lines for {sent} requests"))?;
    for entry in stage.entries()? {
        let line = entry.to_string();
        holds(
            !line.bytes().any(|byte| byte.is_ascii_control()),
            format!("an entry: {line}"),
        )?;
    }
    stage.verified()?;
    Ok(format!(
        "{sent} requests with {} texts: each of {lines} lines of the access logs is one JSON object, and the audit log is whole",
        texts.len()
    ))
}

/// What a client chooses names no series.
async fn cardinality(stages: &mut Stages) -> Result<String, Error> {
    const VALUES: usize = 1_500;
    let stage = stages.single().await?;
    let token = stage.agent.token("GET", REPORT).await?;
    let series = async || -> Result<BTreeSet<String>, Error> {
        let mut names = BTreeSet::new();
        for admin in stage.system.admin_urls() {
            let url = format!("{admin}/stats");
            let text = reqwest::get(&url).await.map_err(Error::http(&url))?;
            let text = text.text().await.map_err(Error::http(&url))?;
            let lines = text.lines().filter_map(|line| line.split_once(": "));
            names.extend(lines.map(|(name, _)| name.to_owned()));
        }
        Ok(names)
    };
    let mut before = BTreeSet::new();
    let mut mark = Mark::now(stage)?;
    for value in 0..VALUES {
        if value == 100 {
            // By now each kind of thing has happened once.
            a_moment().await;
            before = series().await?;
            mark = Mark::now(stage)?;
        }
        let path = format!("/files/v{value}.txt?v={value}");
        let mut shot = Shot::get(stage, path.as_str()).with(stage, ("GET", &path), &token);
        shot = shot
            .and("user-agent", format!("agent-{value}"))
            .and(&format!("x-v{value}"), "v")
            .and(
                "x-forwarded-for",
                format!("10.0.{}.{}", value / 250, value % 250),
            )
            .and("x-request-id", format!("id-{value}"));
        match value % 3 {
            0 => shot.authority = vec![format!("v{value}.example").into_bytes()],
            1 => shot.method = format!("M{value}").into_bytes(),
            _ => {}
        }
        let over = if value % 2 == 0 {
            Over::Http1
        } else {
            Over::Http2
        };
        let seen = shot.fire(over).await?;
        holds(seen.is_refusal(), format!("{value}: {seen:?}"))?;
    }
    mark.nothing("distinct values", stage)?;
    a_moment().await;
    let after = series().await?;
    let new: Vec<&String> = after.difference(&before).collect();
    holds(new.is_empty(), format!("new series: {new:?}"))?;
    next_good(stage).await?;
    Ok(format!(
        "{VALUES} distinct paths, queries, hosts, methods, names and ids: {} series before and after",
        after.len()
    ))
}

/// Somebody else in the control plane's place: without its identity nothing that
/// it says is heard, and bytes that are changed on the way end the stream.
async fn forged_wire(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let answers = crate::bench::answers::Answers::start(&stage.system.workload_api()).await?;
    let mut seen = 0;
    for port in [answers.mutual, answers.plain] {
        let token = stage.agent.token("GET", REPORT).await?;
        let mark = Mark::now(stage)?;
        // The real one is gone, and another stands where Envoy looks for it.
        stage.system.cut()?.redirect(Target::Port(port));
        stage.system.cut()?.sever();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            for envoy in 0..2 {
                let mut connection = stage.connect_to(envoy).await?;
                connection
                    .send(&stage.signed("GET", REPORT, &token))
                    .await?;
                let answer = connection.answer().await?;
                let answer = answer.ok_or_else(|| Error::Unexpected("closed".to_owned()))?;
                refused(&answer, 503, "control_plane_unavailable")?;
                seen += 1;
            }
        }
        mark.nothing("another's word", stage)?;
        stage
            .system
            .cut()?
            .redirect(Target::Port(stage.system.ports().grpc));
        stage.system.cut()?.sever();
        stage.recovers().await?;
        let again = stage.present(REPORT, &token).await?;
        one_of(&again, &[200])?;
    }
    // A bit of each piece from the control plane turned over.
    let token = stage.agent.token("GET", REPORT).await?;
    let mark = Mark::now(stage)?;
    stage.system.cut()?.set(Mode::Forge);
    let answer = stage.present(REPORT, &token).await?;
    refused(&answer, 503, "control_plane_unavailable")?;
    mark.nothing("a changed answer", stage)?;
    stage.system.cut()?.set(Mode::Pass);
    stage.system.cut()?.sever();
    stage.recovers().await?;
    next_good(stage).await?;
    Ok(format!(
        "{seen} requests before impostors of the control plane, and one with its answer changed on the way, were told 503; none arrived"
    ))
}
