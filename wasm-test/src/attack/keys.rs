//! Rows about the keys that sign tokens: rotated under load, and revoked.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use capability::b64;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::check::{holds, refused, same};
use super::forge::{Forger, Key};
use super::stages::Stages;
use crate::Error;
use crate::client::{Answer, now_s};
use crate::raw::field;
use crate::stage::{Stage, jti, text_at};
use crate::upstream::REPORT;

/// How long a revocation may take to be everywhere.
const EVERYWHERE: Duration = Duration::from_secs(5);

/// `writ keys` with these words, on the running system's files.
fn writ_keys(stage: &Stage, words: &[&str]) -> Result<String, Error> {
    let mut command = stage.system.writ();
    command.arg("keys").args(words).arg("--files");
    command
        .arg("--config")
        .arg(stage.system.state_dir().join("writ.toml"));
    let output = command
        .output()
        .map_err(Error::file("run", &stage.system.tools().writ))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    holds(
        output.status.success(),
        format!("writ keys {words:?}: {problem}"),
    )?;
    Ok(said)
}

/// The keys by where they stand.
fn standing(stage: &Stage, word: &str) -> Result<Vec<String>, Error> {
    let said = writ_keys(stage, &["list", "--json"])?;
    let all: Vec<Value> = serde_json::from_str(&said)
        .map_err(|problem| Error::Unexpected(format!("writ keys list: {problem}")))?;
    let ours = all.iter().filter(|key| text_at(key, "/standing") == word);
    Ok(ours.map(|key| text_at(key, "/kid")).collect())
}

fn kid(token: &str) -> String {
    let header = token.split('.').next().and_then(b64::decode);
    let header: Value = serde_json::from_slice(&header.unwrap_or_default()).unwrap_or_default();
    text_at(&header, "/kid")
}

/// A token that nobody issued, sealed by this key, at one of the Envoys.
async fn forged(stage: &Stage, forger: &Forger, envoy: usize) -> Result<Answer, Error> {
    let jkt = stage.agent.key().thumbprint();
    let token = forger.token(REPORT, &jkt, &json!({}))?;
    let mut connection = stage.connect_to(envoy).await?;
    connection
        .send(&stage.signed("GET", REPORT, &token))
        .await?;
    let closed = || Error::Unexpected("closed without an answer".to_owned());
    connection.answer().await?.ok_or_else(closed)
}

/// Waits until forged tokens get this reason at every worker of both Envoys: how
/// long it was until the last other answer.
async fn until_everywhere(stage: &Stage, forger: &Forger, reason: &str) -> Result<Duration, Error> {
    const IN_A_ROW: usize = 20;
    let start = Instant::now();
    let (mut row, mut last) = (0, Duration::ZERO);
    while row < IN_A_ROW {
        // The two by turns, each time another of their workers.
        let asked = start.elapsed();
        let answer = forged(stage, forger, row % 2).await?;
        holds(answer.status != 200, "a token that nobody issued passed")?;
        if answer.reason() == reason {
            row += 1;
            continue;
        }
        (row, last) = (0, asked);
        let got = answer.summary();
        holds(
            asked < Duration::from_secs(40),
            format!("still {got} instead of {reason}"),
        )?;
    }
    Ok(last)
}

async fn published(stage: &Stage) -> Result<Vec<String>, Error> {
    let url = format!("{}/.well-known/jwks.json", stage.system.http_url());
    let got = reqwest::get(&url).await.map_err(Error::http(&url))?;
    let keys = Answer::read(got).await?.json();
    let all = keys.pointer("/keys").and_then(Value::as_array).cloned();
    Ok(all
        .unwrap_or_default()
        .iter()
        .map(|key| text_at(key, "/kid"))
        .collect())
}

/// What came of many good requests.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    passed: AtomicUsize,
    away: AtomicUsize,
    wrong: AtomicUsize,
}

/// Keys change while good requests go on; no key counts before it is known, or by
/// a name that is not its own.
pub async fn rotated(stages: &mut Stages) -> Result<String, Error> {
    const CLIENTS: usize = 3;
    let stage = stages.single().await?;
    let old = Forger::active(&stage.system)?;
    let load = Arc::new(Load::default());
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (agent, load) = (stage.agent.clone(), Arc::clone(&load));
        clients.spawn(async move {
            while !load.stop.load(Ordering::SeqCst) {
                let Ok(token) = agent.token("GET", REPORT).await else {
                    load.wrong.fetch_add(1, Ordering::SeqCst);
                    continue;
                };
                let answer = agent.present("GET", REPORT, &token).await;
                let counter = match answer.map(|it| it.status) {
                    Ok(200) => &load.passed,
                    Ok(503) => &load.away,
                    _ => &load.wrong,
                };
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    let work = rotate_thrice(stage, &old).await;
    load.stop.store(true, Ordering::SeqCst);
    while clients.join_next().await.is_some() {}
    work?;
    let count = |it: &AtomicUsize| it.load(Ordering::SeqCst);
    let (passed, away, wrong) = (count(&load.passed), count(&load.away), count(&load.wrong));
    let all = passed + away + wrong;
    same("good requests that were told that they are bad", wrong, 0)?;
    holds(passed > 200, format!("{passed} passed"))?;
    holds(away * 50 <= all, format!("{away} of {all} were told 503"))?;
    stage.good_request().await?;
    stage.each_once()?;
    Ok(format!(
        "two rotations on demand and one on schedule under load: {passed} requests passed, {away} of {all} were told to come again, none that it is bad"
    ))
}

/// The one key that is to sign next, once it is made.
async fn next_key(stage: &Stage) -> Result<String, Error> {
    let start = Instant::now();
    loop {
        let next = standing(stage, "next")?;
        if let [next] = next.as_slice() {
            return Ok(next.clone());
        }
        holds(
            next.is_empty() && start.elapsed() < Duration::from_secs(5),
            format!("{} new keys", next.len()),
        )?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A list whose last key has signed for two days: the schedule is due.
fn make_old(path: &Path) -> Result<(), Error> {
    let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
    let mut list: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
    let count = u64::try_from(list.len()).unwrap_or(0);
    for (at, key) in (0..).zip(&mut list) {
        if let Some(members) = key.as_object_mut() {
            // The others signed until a moment ago.
            let from_s = now_s() - 2 * 86_400 - (count - at);
            members.insert("from_s".to_owned(), json!(from_s));
            members.remove("made_s");
        }
    }
    std::fs::write(path, json!(list).to_string()).map_err(Error::file("write", path))
}

async fn rotate_thrice(stage: &Stage, old: &Forger) -> Result<(), Error> {
    let mut before = old.kid.clone();
    let path = stage.system.state_dir().join("data/keys/token-keys.json");
    for _ in 0..2 {
        until_everywhere(stage, old, "token_unknown").await?;
        writ_keys(stage, &["rotate"])?;
        before = until_next_signs(stage, &before).await?;
    }
    // The new key under the old one's name, and the old key under the new one's.
    let new = Forger::active(&stage.system)?;
    let jkt = stage.agent.key().thumbprint();
    for (key, kid) in [(&new.issuer, &old.kid), (&old.issuer, &new.kid)] {
        let header = json!({"typ": "at+jwt", "alg": "ES256", "kid": kid}).to_string();
        let token = key.seal(
            header.as_bytes(),
            new.claims(REPORT, &jkt).to_string().as_bytes(),
        );
        refused(
            &stage.present(REPORT, &token).await?,
            401,
            "token_signature",
        )?;
    }
    // A list with one name twice is no list, and changes nothing.
    let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let list: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
    let doubled: Vec<&Value> = list.iter().chain(&list).collect();
    let put =
        |list: &Value| std::fs::write(&path, list.to_string()).map_err(Error::file("write", &path));
    put(&json!(doubled))?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let token = stage.agent.token("GET", REPORT).await?;
    same("the key that signs", kid(&token), new.kid.clone())?;
    // An hour later, as far as the list goes: what the first key has signed is over,
    // and so the key is known no more.
    let mut later = list.clone();
    for (at, key) in later.iter_mut().enumerate() {
        if let Some(members) = key.as_object_mut() {
            let from_s = if at == 0 {
                0
            } else {
                now_s() - 3_600 + u64::try_from(at).unwrap_or(0)
            };
            members.insert("from_s".to_owned(), json!(from_s));
        }
    }
    put(&json!(later))?;
    until_everywhere(stage, old, "token_key_unknown").await?;
    holds(
        !published(stage).await?.contains(&old.kid),
        "it is published still",
    )?;
    until_everywhere(stage, &new, "token_unknown").await?;
    // Two days later, as far as the list goes: the schedule makes one by itself.
    let count = |stage: &Stage| -> Result<usize, Error> {
        let all = stage.entries()?;
        let ours = all.iter().filter(|it| text_at(it, "/kind") == "keys");
        let ours = ours.filter(|it| text_at(it, "/body/why") == "schedule");
        Ok(ours.count())
    };
    same("rotations on schedule", count(stage)?, 0)?;
    make_old(&path)?;
    until_next_signs(stage, &new.kid).await?;
    until_everywhere(stage, &new, "token_unknown").await?;
    same("rotations on schedule", count(stage)?, 1)?;
    Ok(())
}

/// Waits until the key after this one signs; which it is.
async fn until_next_signs(stage: &Stage, before: &str) -> Result<String, Error> {
    let next = next_key(stage).await?;
    holds(next != before, "no new key")?;
    // Its tokens pass the gates before any is issued, and once they are.
    let start = Instant::now();
    while kid(&stage.agent.token("GET", REPORT).await?) != next {
        holds(
            start.elapsed() < Duration::from_secs(30),
            "the new key does not sign",
        )?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    holds(
        published(stage).await?.contains(&next),
        "it is not published",
    )?;
    holds(
        published(stage).await?.iter().any(|it| it == before),
        "the old one is gone already",
    )?;
    Ok(next)
}

/// A key is revoked: none of its tokens is good any more, anywhere, in five seconds.
pub async fn revoked(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let old = Forger::active(&stage.system)?;
    until_everywhere(stage, &old, "token_unknown").await?;
    let mut outstanding = Vec::new();
    for _ in 0..20 {
        outstanding.push(stage.agent.token("GET", REPORT).await?);
    }
    same(
        "the key that signs",
        kid(outstanding.first().map_or("", String::as_str)),
        old.kid.clone(),
    )?;
    let before = stage.arrived()?;
    writ_keys(stage, &["revoke", &old.kid])?;
    let took = until_everywhere(stage, &old, "token_key_unknown").await?;
    holds(took < EVERYWHERE, format!("it took {took:?}"))?;
    for token in &outstanding {
        let answer = stage.present(REPORT, token).await?;
        refused(&answer, 401, "token_key_unknown")?;
    }
    same("reached the upstream", stage.arrived()?, before)?;
    same(
        "revoked",
        standing(stage, "revoked")?,
        vec![old.kid.clone()],
    )?;
    holds(
        !published(stage).await?.contains(&old.kid),
        "it is published still",
    )?;
    // Another signs, and what it signs is good.
    stage.recovers().await?;
    let token = stage.agent.token("GET", REPORT).await?;
    holds(kid(&token) != old.kid, "it signs still")?;
    same(
        "a new token",
        stage.present(REPORT, &token).await?.status,
        200,
    )?;
    // It stays so.
    stage.system.restart_control_plane().await?;
    stage.recovers().await?;
    until_everywhere(stage, &old, "token_key_unknown").await?;
    for token in &outstanding {
        same("uses", stage.uses()?.get(&jti(token)), None)?;
    }
    // A proof by a key of that name is no way around it.
    let thief = Key::p256("thief")?;
    let jkt = stage.agent.key().thumbprint();
    let header = json!({"typ": "at+jwt", "alg": "ES256", "kid": old.kid}).to_string();
    let claims = old.claims(REPORT, &jkt).to_string();
    let token = thief.seal(header.as_bytes(), claims.as_bytes());
    let headers = [
        field("authorization", format!("DPoP {token}")),
        field(
            "dpop",
            stage
                .agent
                .key()
                .proof("GET", &stage.agent.url(REPORT), Some(&token)),
        ),
    ];
    let answer = stage
        .exchange(&stage.request("GET", REPORT, &headers))
        .await?;
    refused(&answer, 401, "token_key_unknown")?;
    Ok(format!(
        "{} outstanding tokens and all forged ones were refused at every worker {:.1} s after the command, and after a restart",
        outstanding.len(),
        took.as_secs_f64()
    ))
}
