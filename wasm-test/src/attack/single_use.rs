//! Single use at one control plane: races, crashes, retries, and slowness.

use std::time::{Duration, Instant};

use super::check::{holds, one_of, refused, same};
use super::races::race;
use super::stages::Stages;
use super::{How, Row};
use crate::Error;
use crate::client::Answer;
use crate::cut::Mode;
use crate::raw::field;
use crate::stage::{Stage, jti, text_at};
use crate::upstream::REPORT;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "H01",
        how: How::Live(|it| Box::pin(two_proxies(it))),
    },
    Row {
        id: "H02",
        how: How::Live(|it| Box::pin(one_segment(it))),
    },
    Row {
        id: "H08",
        how: How::Live(|it| Box::pin(envoy_dies(it))),
    },
    Row {
        id: "H10",
        how: How::Live(|it| Box::pin(retries(it))),
    },
    Row {
        id: "H11",
        how: How::Live(|it| Box::pin(hedging(it))),
    },
    Row {
        id: "H12",
        how: How::Live(|it| Box::pin(pool(it))),
    },
    Row {
        id: "H14",
        how: How::Live(|it| Box::pin(down(it))),
    },
    Row {
        id: "H15",
        how: How::Live(|it| Box::pin(slow(it))),
    },
    Row {
        id: "H19",
        how: How::Covered(&[
            "control-plane/ledger/examples/crash/main.rs::single_calls",
            "control-plane/ledger/src/sim/exhaustive.rs::a_power_loss_before_each_call_loses_nothing",
            "wasm-test/tests/e2e_edge/crash.rs::killed_under_load_it_loses_nothing_and_lets_nothing_through_twice",
        ]),
    },
    Row {
        id: "H20",
        how: How::Covered(&[
            "control-plane/ledger/examples/crash/main.rs::single_calls",
            "control-plane/ledger/src/sim/exhaustive.rs::each_call_may_fail_and_nothing_is_lost",
            "control-plane/ledger/tests/ledger/recovery.rs::a_journal_that_cannot_go_on_ends_the_process",
        ]),
    },
    Row {
        id: "H21",
        how: How::Covered(&[
            "control-plane/ledger/src/sim/exhaustive.rs::a_power_loss_before_each_call_loses_nothing",
            "control-plane/ledger/src/sim/tests.rs::seeds_hold_every_invariant",
        ]),
    },
    Row {
        id: "H22",
        how: How::Covered(&[
            "wasm-test/tests/e2e_edge/restore.rs::a_backup_opens_nothing_before_a_person_has_confirmed_it",
            "control-plane/ledger/tests/embedded/restoring.rs::nothing_that_was_used_since_the_backup_comes_back",
        ]),
    },
    Row {
        id: "H23",
        how: How::Live(|it| Box::pin(journal_gone(it))),
    },
    Row {
        id: "H24",
        how: How::Covered(&[
            "wasm-test/tests/e2e_issuer/starting.rs::two_never_share_a_data_dir_or_a_socket",
            "control-plane/ledger/tests/ledger/concurrency.rs::one_writer_only_and_none_after_shutdown",
        ]),
    },
    Row {
        id: "H26",
        how: How::Never(
            "a control plane has one issuer, and its record of a token is by the SHA-256 of its bytes",
        ),
    },
    Row {
        id: "H27",
        how: How::Never("no token has more than one use: there is no counter"),
    },
    Row {
        id: "H32",
        how: How::Live(|it| Box::pin(super::storm::storm(it))),
    },
];

async fn two_proxies(stages: &mut Stages) -> Result<String, Error> {
    let tokens = stages.rounds;
    let stage = stages.single().await?;
    let tally = race(&[(&*stage, 0), (&*stage, 1)], tokens).await?;
    tally.expect(tokens)?;
    stage.each_once()?;
    Ok(tally.words(tokens))
}

/// HTTP/2 requests in one segment, whole ones and ones whose ends come together.
async fn one_segment(stages: &mut Stages) -> Result<String, Error> {
    const ROUNDS: usize = 20;
    let stage = stages.single().await?;
    let mut connection = stage.connect_http2(0).await?;
    for round in 0..ROUNDS {
        let ends_together = round % 2 == 1;
        // All headers fit into one segment of loopback; ends are nine bytes each.
        let copies = if ends_together { 90 } else { 30 };
        let token = stage.agent.token("GET", REPORT).await?;
        let authorization = format!("DPoP {token}");
        let url = stage.agent.url(REPORT);
        let (mut ids, mut heads, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..copies {
            let proof = stage.agent.key().proof("GET", &url, Some(&token));
            let fields: [(&str, &[u8]); 6] = [
                (":method", b"GET"),
                (":scheme", b"http"),
                (":authority", stage.agent.authority().as_bytes()),
                (":path", REPORT.as_bytes()),
                ("authorization", authorization.as_bytes()),
                ("dpop", proof.as_bytes()),
            ];
            let (id, head, end) = if ends_together {
                connection.request_and_end(&fields)
            } else {
                let (id, head) = connection.request(&fields);
                (id, head, Vec::new())
            };
            ids.push(id);
            heads.extend(head);
            ends.extend(end);
        }
        connection.send(&heads).await?;
        if ends_together {
            tokio::time::sleep(Duration::from_millis(50)).await;
            connection.send(&ends).await?;
        }
        let answers = connection.answers(&ids).await?;
        let count = |status, reason: &str| {
            let is = |it: &&crate::raw::Stream| it.status == status && it.reason() == reason;
            answers.values().filter(is).count()
        };
        same("passed", count(200, ""), 1)?;
        same("spent", count(401, "token_spent"), copies - 1)?;
        same("uses", stage.uses()?.get(&jti(&token)), Some(&1))?;
    }
    stage.good_request().await?;
    stage.each_once()?;
    Ok(format!(
        "{ROUNDS} tokens, 30 or 90 copies in one segment each: each passed once"
    ))
}

/// Envoy is killed before, while and after the upstream has the request.
async fn envoy_dies(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut unknown = 0;
    for (asked, ms, path) in [
        (false, 100, "/echo/slow?ms=3000"),
        (true, 700, "/echo/slow?ms=3000&asked=1"),
        (true, 400, "/echo/quick"),
    ] {
        let token = stage.agent.token("GET", path).await?;
        let mut connection = stage.connect_to(0).await?;
        if !asked {
            // The question does not arrive before Envoy is gone.
            stage.system.cut()?.set(Mode::Stall);
        }
        connection.send(&stage.signed("GET", path, &token)).await?;
        tokio::time::sleep(Duration::from_millis(ms)).await;
        let reached = stage.arrived()?;
        stage.system.kill_envoy(0);
        stage.system.cut()?.set(Mode::Pass);
        let closed = connection.answer().await;
        if path.contains("slow") {
            holds(
                !matches!(closed, Ok(Some(_))),
                "an answer came from the dead",
            )?;
        }
        stage.system.start_envoy().await?;
        stage.recovers().await?;
        let before = stage.arrived()?;
        let again = stage.present(path, &token).await?;
        if asked {
            refused(&again, 401, "token_spent")?;
            same("reached the upstream again", stage.arrived()?, before)?;
            let result = text_at(&again.json(), "/first_use/result");
            // Only Envoy could have told what became of it.
            let known = !path.contains("slow") && result == "forwarded";
            holds(known || result == "unknown", format!("{path}: {result}"))?;
            unknown += usize::from(!known);
        } else {
            one_of(&again, &[200, 401])?;
        }
        let uses = stage.uses()?.get(&jti(&token)).copied().unwrap_or(0);
        holds(
            uses <= 1,
            format!("{path} ran {uses} times, {reached} had arrived"),
        )?;
    }
    stage.each_once()?;
    Ok(format!(
        "killed at three moments: none ran twice; of {unknown} it is told that nobody knows what became of the first use"
    ))
}

/// What a client can ask Envoy to do again, when it is believed.
const AGAIN: [(&str, &str); 7] = [
    (
        "x-envoy-retry-on",
        "5xx,reset,connect-failure,gateway-error,retriable-4xx",
    ),
    ("x-envoy-max-retries", "5"),
    ("x-envoy-retriable-status-codes", "503,502,500"),
    ("x-envoy-upstream-rq-timeout-ms", "5000"),
    ("x-envoy-upstream-rq-per-try-timeout-ms", "100"),
    ("x-envoy-hedge-on-per-try-timeout", "true"),
    ("x-envoy-attempt-count", "3"),
];

async fn with_headers(
    stage: &Stage,
    path: &str,
    token: &str,
    more: &[(&str, &str)],
) -> Result<Answer, Error> {
    let mut headers = stage.credentials("GET", path, token);
    headers.extend(more.iter().map(|(name, value)| field(name, *value)));
    stage.exchange(&stage.request("GET", path, &headers)).await
}

async fn retries(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut tried = 0;
    for path in [
        "/echo/r?reset=1",
        "/echo/r?status=503",
        "/echo/r?status=502",
        "/echo/r?status=500",
    ] {
        for _ in 0..5 {
            let token = stage.agent.token("GET", path).await?;
            let answer = with_headers(stage, path, &token, &AGAIN).await?;
            one_of(&answer, &[500, 502, 503])?;
            same(path, stage.uses()?.get(&jti(&token)), Some(&1))?;
            tried += 1;
        }
    }
    let asked = |record: &crate::upstream::Record| {
        record
            .headers
            .iter()
            .any(|(name, _)| name.starts_with("x-envoy-"))
    };
    let leaked = stage.records()?.iter().filter(|it| asked(it)).count();
    same("requests with a client's x-envoy- header", leaked, 0)?;
    stage.good_request().await?;
    stage.each_once()?;
    Ok(format!(
        "{tried} requests that failed or were reset ran once each, whatever the client asked for"
    ))
}

async fn hedging(stages: &mut Stages) -> Result<String, Error> {
    const PATH: &str = "/echo/hedge?ms=900";
    let stage = stages.single().await?;
    for _ in 0..5 {
        let token = stage.agent.token("GET", PATH).await?;
        let answer = with_headers(stage, PATH, &token, &AGAIN).await?;
        same("status", answer.status, 200)?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        same("uses", stage.uses()?.get(&jti(&token)), Some(&1))?;
    }
    stage.good_request().await?;
    stage.each_once()?;
    Ok("5 slow requests with a time for each try ran once each".to_owned())
}

/// The upstream closes an idle connection while the next request is sent on it.
async fn pool(stages: &mut Stages) -> Result<String, Error> {
    const LINGER_MS: u64 = 15;
    let stage = stages.single().await?;
    let (mut passed, mut failed) = (0, 0);
    for round in 0..60_u64 {
        let path = format!("/echo/pool?linger={LINGER_MS}&n={round}");
        let warm = stage.agent.token("GET", &path).await?;
        let next = stage.agent.token("GET", REPORT).await?;
        let mut connection = stage.connect_to(0).await?;
        connection.send(&stage.signed("GET", &path, &warm)).await?;
        connection.answer().await?;
        let bytes = stage.signed("GET", REPORT, &next);
        // Around the moment of the close, a fraction of a millisecond apart.
        let around = Duration::from_micros(LINGER_MS * 1000 - 4_000 + (round % 20) * 400);
        tokio::time::sleep(around).await;
        connection.send(&bytes).await?;
        let closed = || Error::Unexpected("closed without an answer".to_owned());
        let answer = connection.answer().await?.ok_or_else(closed)?;
        one_of(&answer, &[200, 503])?;
        let uses = stage.uses()?.get(&jti(&next)).copied().unwrap_or(0);
        if answer.status == 200 {
            same("uses", uses, 1)?;
            passed += 1;
        } else {
            holds(uses <= 1, "it ran twice")?;
            refused(&stage.present(REPORT, &next).await?, 401, "token_spent")?;
            failed += 1;
        }
    }
    stage.good_request().await?;
    stage.each_once()?;
    holds(
        failed > 0,
        "no request met a connection that was being closed",
    )?;
    Ok(format!(
        "60 requests on connections that were being closed: {passed} passed, {failed} were told 503, none ran twice"
    ))
}

async fn down(stages: &mut Stages) -> Result<String, Error> {
    const AWAY: Duration = Duration::from_secs(5);
    const LIFETIME: Duration = Duration::from_secs(100); // At least.
    let away = AWAY.max(stages.lasts());
    let stage = stages.single().await?;
    let token = stage.agent.token("GET", REPORT).await?;
    stage.system.stop_control_plane().await;
    let before = stage.arrived()?;
    let (start, mut asked, mut ended) = (Instant::now(), 0, 0);
    while start.elapsed() < away {
        for envoy in 0..2 {
            let mut connection = stage.connect_to(envoy).await?;
            connection
                .send(&stage.signed("GET", REPORT, &token))
                .await?;
            let closed = || Error::Unexpected("closed without an answer".to_owned());
            let answer = connection.answer().await?.ok_or_else(closed)?;
            asked += 1;
            let over = ended > 0 || answer.status == 401 && start.elapsed() > LIFETIME;
            match over {
                true => refused(&answer, 401, "token_expired")?,
                false => refused(&answer, 503, "control_plane_unavailable")?,
            }
            ended += usize::from(over);
        }
        same("reached the upstream", stage.arrived()?, before)?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stage.system.start_control_plane().await?;
    stage.recovers().await?;
    let id = jti(&token);
    let told = |entry: &serde_json::Value| {
        text_at(entry, "/kind") == "edge_denial" && text_at(entry, "/body/jti") == id
    };
    stage.entry("a refusal while it was down", told).await?;
    let reason = if ended == 0 {
        "outcome_unknown"
    } else {
        "token_expired"
    };
    refused(&stage.present(REPORT, &token).await?, 401, reason)?;
    same(
        "uses of a token of before",
        stage.uses()?.get(&jti(&token)),
        None,
    )?;
    Ok(format!(
        "{asked} requests in {away:?}: {ended} were told 401 when their token had ended, all others 503, and none reached the upstream"
    ))
}

async fn slow(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut seen = Vec::new();
    let ms = Duration::from_millis;
    for (mode, in_time) in [
        (Mode::Delay(ms(100)), true),
        (Mode::Delay(ms(600)), true),
        (Mode::Delay(ms(2_500)), false),
        (Mode::Deaf, false),
        (Mode::Stall, false),
    ] {
        let token = stage.agent.token("GET", REPORT).await?;
        stage.system.cut()?.set(mode);
        let start = Instant::now();
        let answer = stage.present(REPORT, &token).await?;
        let took = start.elapsed();
        if in_time {
            same(&format!("{mode:?}"), answer.status, 200)?;
        } else {
            refused(&answer, 503, "control_plane_unavailable")?;
        }
        holds(took < Duration::from_secs(5), format!("{mode:?}: {took:?}"))?;
        let passed = usize::from(in_time);
        let uses = || Ok::<_, Error>(stage.uses()?.get(&jti(&token)).copied().unwrap_or(0));
        same("forwarded", uses()?, passed)?;
        stage.system.cut()?.set(Mode::Pass);
        // Whatever was decided late lets nothing through.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        same("forwarded late", uses()?, passed)?;
        stage.recovers().await?;
        let again = stage.present(REPORT, &token).await?;
        // Nobody was told that it is unspent, and maybe it is not.
        if again.status != 200 || in_time {
            refused(&again, 401, "token_spent")?;
        }
        holds(uses()? <= 1, "it ran twice")?;
        seen.push(format!("{mode:?}: {} after {took:.1?}", answer.status));
    }
    stage.each_once()?;
    Ok(seen.join("; "))
}

async fn journal_gone(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    stage.system.stop_control_plane().await;
    let journal = stage.system.audit_dir();
    let aside = journal.with_extension("aside");
    std::fs::rename(&journal, &aside).map_err(Error::file("move away", &journal))?;
    let mut refusals = 0;
    for empty in [false, true] {
        // A start that was refused may have made the directory.
        drop(std::fs::remove_dir_all(&journal));
        if empty {
            std::fs::create_dir(&journal).map_err(Error::file("make", &journal))?;
        }
        holds(
            stage.system.start_control_plane().await.is_err(),
            "it began another journal by itself",
        )?;
        stage.system.stop_control_plane().await;
        refusals += 1;
    }
    drop(std::fs::remove_dir_all(&journal));
    std::fs::rename(&aside, &journal).map_err(Error::file("move back", &aside))?;
    stage.system.start_control_plane().await?;
    stage.recovers().await?;
    stage.each_once()?;
    Ok(format!(
        "{refusals} starts without the journal were refused; with it, it starts"
    ))
}
