//! Several replicas on one database: races over all of them, and a database
//! that is cut off, slow, or does not say what became of a commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::check::{holds, one_of, refused, same};
use super::races::race;
use super::stages::Stages;
use super::{How, Row};
use crate::Error;
use crate::client::Agent;
use crate::cut::Mode;
use crate::stage::{Pair, eventually, jti};
use crate::upstream::REPORT;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "H03",
        how: How::Live(|it| Box::pin(replicas(it))),
    },
    Row {
        id: "H04",
        how: How::Covered(&[
            "control-plane/ledger/src/sim/tests.rs::every_planted_bug_is_found",
            "control-plane/ledger/tests/ledger/postgres/replicas.rs::of_two_replicas_one_wins_each_token",
        ]),
    },
    Row {
        id: "H06",
        how: How::Covered(&[
            "control-plane/ledger/tests/ledger/postgres/faults.rs::serialization_failures_are_tried_again_once_each",
        ]),
    },
    Row {
        id: "H07",
        how: How::Live(|it| Box::pin(commit_unknown(it))),
    },
    Row {
        id: "H16",
        how: How::Live(|it| Box::pin(partition(it))),
    },
    Row {
        id: "H18",
        how: How::Covered(&[
            "control-plane/ledger/tests/ledger/postgres/settings.rs::a_server_that_loses_commits_is_refused_by_name",
            "control-plane/ledger/tests/ledger/postgres/settings.rs::settings_that_are_changed_while_it_is_used_stop_it",
        ]),
    },
    Row {
        id: "H30",
        how: How::Live(|it| Box::pin(slow_store(it))),
    },
    Row {
        id: "H31",
        how: How::Live(|it| Box::pin(soak(it))),
    },
];

async fn replicas(stages: &mut Stages) -> Result<String, Error> {
    let tokens = stages.tokens;
    let pair = stages.pair().await?;
    let tally = race(&[(&pair.first, 0), (&pair.second, 0)], tokens).await?;
    tally.expect(tokens)?;
    agrees(pair).await?;
    Ok(tally.words(tokens))
}

/// Each use has its entry, once they have their places.
async fn agrees(pair: &Pair) -> Result<(), Error> {
    let uses = pair.first.uses()?;
    eventually("each use has its entry", async || {
        let allowed = pair.first.allowed();
        allowed.is_ok_and(|allowed| uses.keys().all(|jti| allowed.contains_key(jti)))
    })
    .await?;
    pair.first.each_once()
}

/// COMMIT is lost on the way there, or its answer on the way back.
async fn commit_unknown(stages: &mut Stages) -> Result<String, Error> {
    const ROUNDS: usize = 30;
    let pair = stages.pair().await?;
    let line = |pair: &Pair| {
        pair.lines
            .first()
            .map(crate::cut::Cut::commits)
            .unwrap_or_default()
    };
    let (mut passed, mut told) = (0, 0);
    // Of the questions, and of the answers.
    let mut cut = [0, 0];
    for round in 0..ROUNDS {
        let token = pair.first.agent.token("GET", REPORT).await?;
        let bytes = pair.first.signed("GET", REPORT, &token);
        let (_, cut_before) = line(pair);
        let [first, _] = &pair.lines;
        first.set(if round % 2 == 0 {
            Mode::CommitAnswerLost
        } else {
            Mode::CommitLost
        });
        let sent = pair.first.exchange(&bytes);
        let mend = async {
            tokio::time::sleep(Duration::from_millis(
                20 + 25 * (u64::try_from(round).unwrap_or(0) % 8),
            ))
            .await;
            first.set(Mode::Pass);
        };
        let (answer, ()) = tokio::join!(sent, mend);
        let answer = answer?;
        one_of(&answer, &[200, 401, 503])?;
        if answer.status == 401 {
            // Asked again under the same attempt it would be no refusal: this is a
            // commit whose result could not be learnt.
            holds(
                ["outcome_unknown", "token_spent"].contains(&answer.reason().as_str()),
                answer.summary(),
            )?;
        }
        let uses = |pair: &Pair| {
            Ok::<_, Error>(pair.first.uses()?.get(&jti(&token)).copied().unwrap_or(0))
        };
        let at_once = usize::from(answer.status == 200);
        same("forwarded", uses(pair)?, at_once)?;
        passed += at_once;
        told += 1 - at_once;
        // The other replica has a sound line: nobody gets a second use.
        let again = pair.first.signed("GET", REPORT, &token);
        let other = pair.second.exchange(&again).await?;
        one_of(
            &other,
            if at_once == 1 {
                &[401]
            } else {
                &[200, 401, 503]
            },
        )?;
        holds(uses(pair)? <= 1, "it ran twice")?;
        let (_, cut_after) = line(pair);
        if let Some(of_kind) = cut.get_mut((round + 1) % 2) {
            *of_kind += cut_after - cut_before;
        }
    }
    let [lost, unanswered] = cut;
    holds(lost > 0 && unanswered > 0, format!("cut: {cut:?}"))?;
    holds(told > 0, "no request was told that its commit was cut")?;
    pair.recovers().await?;
    agrees(pair).await?;
    Ok(format!(
        "{lost} commits and the answers of {unanswered} were cut in {ROUNDS} rounds: {passed} requests passed all the same, {told} were refused, none ran twice"
    ))
}

/// One replica loses the database, the other keeps it.
async fn partition(stages: &mut Stages) -> Result<String, Error> {
    let pair = stages.pair().await?;
    let token = pair.first.agent.token("GET", REPORT).await?;
    let mut tried = 0;
    for mode in [Mode::Stall, Mode::Refuse] {
        let [first, _] = &pair.lines;
        first.set(mode);
        if mode == Mode::Refuse {
            first.sever();
        }
        let before = pair.first.arrived()?;
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            let answer = pair.first.present(REPORT, &token).await?;
            refused(&answer, 503, "control_plane_unavailable")?;
            holds(
                pair.first
                    .agent
                    .exchange("GET", REPORT)
                    .await
                    .map_or(true, |it| it.status != 200),
                "the side without the database issued a token",
            )?;
            same("reached the upstream", pair.first.arrived()?, before)?;
            tried += 1;
        }
        pair.second.good_request().await?;
        first.set(Mode::Pass);
        pair.recovers().await?;
    }
    // What was told 503 may be spent or not; it runs once at most.
    let answer = pair.first.present(REPORT, &token).await?;
    one_of(&answer, &[200, 401])?;
    agrees(pair).await?;
    Ok(format!(
        "{tried} requests and exchanges at the side without the database were refused, while the other went on"
    ))
}

/// The database takes long for each thing, and many ask at once.
async fn slow_store(stages: &mut Stages) -> Result<String, Error> {
    const CLIENTS: usize = 100;
    let pair = stages.pair().await?;
    let mut tokens = Vec::new();
    for _ in 0..CLIENTS {
        tokens.push(pair.first.agent.token("GET", REPORT).await?);
    }
    let [first, _] = &pair.lines;
    first.set(Mode::Delay(Duration::from_millis(60)));
    let mut asked = JoinSet::new();
    let address = pair.first.address();
    for token in &tokens {
        let bytes = pair.first.signed("GET", REPORT, token);
        let address = address.clone();
        asked.spawn(async move {
            let start = Instant::now();
            let mut connection = crate::raw::Http1::connect(&address).await?;
            connection.send(&bytes).await?;
            let answer = connection.answer().await?;
            Ok::<_, Error>((answer.map_or(0, |answer| answer.status), start.elapsed()))
        });
    }
    let (mut passed, mut denied, mut longest) = (0, 0, Duration::ZERO);
    while let Some(one) = asked.join_next().await {
        let (status, took) = one.map_err(|it| Error::Unexpected(it.to_string()))??;
        match status {
            200 => passed += 1,
            503 => denied += 1,
            other => return Err(Error::Unexpected(format!("a request was told {other}"))),
        }
        longest = longest.max(took);
    }
    holds(
        longest < Duration::from_secs(6),
        format!("one waited {longest:?}"),
    )?;
    first.set(Mode::Pass);
    let back = Instant::now();
    pair.recovers().await?;
    let back = back.elapsed();
    agrees(pair).await?;
    Ok(format!(
        "{CLIENTS} at once on a slow database: {passed} passed, {denied} were told 503, the longest after {longest:.1?}; well again after {back:.1?}"
    ))
}

/// What a client of the soak saw: the tokens that were told 200.
async fn client(agent: Agent, address: String, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut passed = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let Ok(token) = agent.token("GET", REPORT).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let proof = agent.key().proof("GET", &agent.url(REPORT), Some(&token));
        let authority = agent.authority();
        let bytes = format!(
            "GET {REPORT} HTTP/1.1\r\nhost: {authority}\r\nauthorization: DPoP {token}\r\ndpop: {proof}\r\n\r\n"
        );
        // Shown twice, whatever the first time brought.
        for _ in 0..2 {
            let answer = async {
                let mut connection = crate::raw::Http1::connect(&address).await?;
                connection.send(bytes.as_bytes()).await?;
                connection.answer().await
            };
            if let Ok(Some(answer)) = answer.await
                && answer.status == 200
            {
                passed.push(jti(&token));
            }
        }
    }
    passed
}

/// Three sets of tokens at the end of it all: what was told 200 is among what
/// reached the upstream, and that is among what the log let pass. What is over is
/// what nobody was answered for, or not any more.
fn compared(pair: &Pair, told: &[String]) -> Result<String, Error> {
    let set = |jtis: Vec<&String>| jtis.into_iter().cloned().collect::<BTreeSet<String>>();
    let (uses, allowed) = (pair.first.uses()?, pair.first.allowed()?);
    let twice = |of: &BTreeMap<String, usize>| of.values().filter(|times| **times != 1).count();
    same("tokens that were used twice", twice(&uses), 0)?;
    same("tokens with two entries", twice(&allowed), 0)?;
    let answered = set(told.iter().collect());
    let (used, entered) = (set(uses.keys().collect()), set(allowed.keys().collect()));
    same("tokens that were told 200 once", answered.len(), told.len())?;
    let unused: Vec<_> = answered.difference(&used).collect();
    same("a 200 for what never reached the upstream", unused.len(), 0)?;
    let unentered: Vec<_> = used.difference(&entered).collect();
    same("used without an entry", unentered.len(), 0)?;
    holds(
        told.len() > 50,
        format!("there was no load: {}", told.len()),
    )?;
    let entries = pair.first.verified()?;
    Ok(format!(
        "{} answers of 200, all among {} uses, all among {} entries that let pass, none twice; {} entries in a whole log",
        told.len(),
        used.len(),
        entered.len(),
        entries
    ))
}

/// Load on both, while lines are cut, stalled and slowed, commits are lost, and
/// control planes and Envoys are killed.
async fn soak(stages: &mut Stages) -> Result<String, Error> {
    const FAULTS: usize = 40;
    let (start, lasts) = (Instant::now(), stages.lasts());
    let pair = stages.pair().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for stage in [&pair.first, &pair.second] {
        for _ in 0..3 {
            clients.spawn(client(
                stage.agent.clone(),
                stage.address(),
                Arc::clone(&stop),
            ));
        }
    }
    let mut of_kind = [0; 10];
    while of_kind.iter().sum::<usize>() < FAULTS || start.elapsed() < lasts {
        let fault = rand::random_range(0..of_kind.len());
        if let Some(count) = of_kind.get_mut(fault) {
            *count += 1;
        }
        let Pair {
            first,
            second,
            lines,
            ..
        } = &mut *pair;
        let [one, two] = &*lines;
        let (stage, line) = if rand::random() {
            (first, one)
        } else {
            (second, two)
        };
        let pause = Duration::from_millis(rand::random_range(200..1_500));
        match fault {
            0 => line.sever(),
            1 => line.set(Mode::Stall),
            2 => line.set(Mode::Delay(Duration::from_millis(40))),
            3 => line.set(Mode::CommitAnswerLost),
            4 => line.set(Mode::CommitLost),
            5 => line.set(Mode::Throttle(20_000)),
            6 => {
                // Neither replica has its database.
                for line in [one, two] {
                    line.set(Mode::Refuse);
                    line.sever();
                }
            }
            7 => {
                stage.system.stop_control_plane().await;
                line.set(Mode::Pass);
                stage.system.start_control_plane().await?;
            }
            8 => {
                stage.system.kill_control_plane();
                line.set(Mode::Pass);
                stage.system.start_control_plane().await?;
            }
            _ => {
                stage.system.kill_envoy(0);
                stage.system.spawn_envoy(0)?;
            }
        }
        tokio::time::sleep(pause).await;
        one.set(Mode::Pass);
        two.set(Mode::Pass);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    stop.store(true, Ordering::SeqCst);
    let mut told = Vec::new();
    while let Some(passed) = clients.join_next().await {
        told.extend(passed.map_err(|it| Error::Unexpected(it.to_string()))?);
    }
    pair.recovers().await?;
    agrees(pair).await?;
    let seen = compared(pair, &told)?;
    Ok(format!(
        "faults of each kind under load for {:.0?}: {of_kind:?}; {seen}",
        start.elapsed()
    ))
}
