//! Configurations of the guard that somebody else wrote: broken ones, such as come
//! while requests are under way, and those of another version.

use std::time::Duration;

use serde_json::{Value, json};

use super::check::{holds, same};
use super::edge::{Mark, Over, Shot, a_moment, next_good};
use super::guard::{passes_nothing, stands};
use super::stages::{Stages, options};
use super::{How, Row};
use crate::Error;
use crate::stage::{Stage, eventually, text_at};
use crate::system::Options;
use crate::upstream::REPORT;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "G06",
        how: How::Live(|it| Box::pin(configurations(it))),
    },
    Row {
        id: "G07",
        how: How::Live(|it| Box::pin(updates(it))),
    },
    Row {
        id: "G27",
        how: How::Live(|it| Box::pin(skew(it))),
    },
];

/// A stage with a listener whose guard the row writes: its address, and the guard
/// that the control plane serves.
pub(super) async fn written(options: Options) -> Result<(Stage, String, Value), Error> {
    let stage = Stage::start(Options {
        guard_from_file: true,
        ..options
    })
    .await?;
    let guard = stage.system.guard_in_force().await?;
    let at = stage
        .system
        .variants()
        .last()
        .map_or_else(String::new, crate::system::Variant::address);
    stage.system.write_guard("1", &guard)?;
    eventually("the written guard is in force", async || {
        let bare = Shot::get(&stage, REPORT).to(at.clone());
        bare.fire(Over::Http1)
            .await
            .is_ok_and(|seen| seen.reason == "missing_credentials")
    })
    .await?;
    let stands = async || stands(&stage, "the written guard", &at).await.is_ok();
    eventually("the written guard has its stream", stands).await?;
    Ok((stage, at, guard))
}

/// The guard with another configuration.
fn configured(guard: &Value, configuration: &str) -> Value {
    let mut other = guard.clone();
    if let Some(value) = other.pointer_mut("/typed_config/config/configuration/value") {
        *value = configuration.into();
    }
    other
}

/// The configuration's text.
fn configuration(guard: &Value) -> Result<Value, Error> {
    let text = text_at(guard, "/typed_config/config/configuration/value");
    serde_json::from_str(&text)
        .map_err(|it| Error::Unexpected(format!("the configuration: {it}: {text}")))
}

/// How often an Envoy has refused what a file says.
async fn refusals(stage: &Stage) -> u64 {
    let url = format!(
        "{}/stats?filter=extension_config_discovery",
        stage.system.admin_url()
    );
    let Ok(answer) = reqwest::get(url).await else {
        return 0;
    };
    let text = answer.text().await.unwrap_or_default();
    let counted = ["config_fail", "update_rejected", "config_conflict"];
    let lines = text.lines().filter_map(|line| line.split_once(": "));
    lines
        .filter(|(name, _)| counted.iter().any(|end| name.ends_with(end)))
        .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
        .sum()
}

/// Broken in fifty ways.
fn broken(good: &Value) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    let mut add = |what: &str, text: String| all.push((what.to_owned(), text));
    for (what, text) in [
        ("empty", ""),
        ("a space", " "),
        ("no JSON", "{"),
        ("a list", "[]"),
        ("a number", "1"),
        ("null", "null"),
        ("nothing in it", "{}"),
        ("YAML", "version: 1"),
        ("a protobuf", "\u{8}\u{1}"),
    ] {
        add(what, text.to_owned());
    }
    let text = good.to_string();
    let members: Vec<String> = good
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect();
    let with = |name: &str, value: Value| {
        let mut other = good.clone();
        if let Some(map) = other.as_object_mut() {
            map.insert(name.to_owned(), value);
        }
        other.to_string()
    };
    for name in ["version", "issuer", "resource", "origin", "keys", "cluster"] {
        let mut other = good.clone();
        drop(other.as_object_mut().and_then(|map| map.remove(name)));
        add(&format!("without {name}"), other.to_string());
    }
    for name in &members {
        add(
            &format!("{name} of another type"),
            with(name, json!([[[]]])),
        );
    }
    for (name, value) in [
        ("version", json!(0)),
        ("version", json!(2)),
        ("version", json!("1")),
        ("keys", json!([])),
        (
            "keys",
            json!([{"kid": "a", "jwk": {"kty": "oct", "k": "AAAA"}}]),
        ),
        ("token_check", json!("none")),
        ("token_check", json!("off")),
        ("crypto", json!("none")),
        ("origin", json!("*")),
        ("origin", json!("")),
        ("cluster", json!("a b")),
        ("cluster", json!("")),
        ("hold_ms", json!(-1)),
        ("hold_ms", json!(1_000_000)),
        ("decision_deadline_ms", json!(0)),
        ("limits", json!({"header_block": 1_000_000_000})),
        ("limits", json!({"token_skew_s": 1000})),
        ("observe", json!(true)),
        ("enabled", json!(false)),
        ("fail_open", json!(true)),
    ] {
        add(&format!("{name} {value}"), with(name, value));
    }
    add(
        "cut",
        text.get(..text.len() / 2).unwrap_or_default().to_owned(),
    );
    add("twice", format!("{text}{text}"));
    add("more after it", format!("{text} x"));
    add("a member twice", text.replacen('{', "{\"version\":1,", 1));
    add("too long", with("pad", json!("x".repeat(300 * 1024))));
    all
}

async fn configurations(_: &mut Stages) -> Result<String, Error> {
    let (mut stage, at, guard) = written(options()).await?;
    let good = configuration(&guard)?;
    let faults = broken(&good);
    holds(
        faults.len() >= 50,
        format!("only {} configurations", faults.len()),
    )?;
    for (number, (what, text)) in faults.iter().enumerate() {
        let before = refusals(&stage).await;
        stage
            .system
            .write_guard(&format!("b{number}"), &configured(&guard, text))?;
        eventually(&format!("{what} is refused"), async || {
            refusals(&stage).await > before
        })
        .await?;
        stands(&stage, what, &at).await?;
    }
    // A fresh Envoy with one of them has nothing to keep, and lets nothing pass there.
    let worst = configured(&guard, "{}");
    stage.system.write_guard("w", &worst)?;
    stage.system.kill_envoy(0);
    stage.system.spawn_envoy(0)?;
    passes_nothing(&stage, "a fresh Envoy without a configuration", &at).await?;
    stage.system.write_guard("g", &guard)?;
    stage.system.kill_envoy(0);
    stage.system.start_envoy().await?;
    stage.recovers().await?;
    next_good(&stage).await?;
    stage.stop().await;
    Ok(format!(
        "{} broken configurations were refused, and the one before stayed; a fresh Envoy let nothing pass with one",
        faults.len()
    ))
}

/// A new guard every 200 ms under load.
async fn updates(_: &mut Stages) -> Result<String, Error> {
    const UPDATES: u64 = 20;
    let (stage, at, guard) = written(options()).await?;
    let good = configuration(&guard)?;
    let mark = Mark::now(&stage)?;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (agent, stop, at) = (stage.agent.with_fresh_key()?, stop.clone(), at.clone());
        let agent = agent.by_way_of(&stage.system.http_url(), &format!("http://{at}"));
        clients.spawn(async move {
            let (mut served, mut refused) = (0_u64, 0_u64);
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                let token = agent.token("GET", REPORT).await?;
                let mut passed = 0;
                for _ in 0..2 {
                    let answer = agent.present("GET", REPORT, &token).await?;
                    match (answer.status, answer.reason().as_str()) {
                        (200, _) => passed += 1,
                        (401, "token_spent" | "outcome_unknown") | (503, _) => refused += 1,
                        (status, reason) => {
                            return Err(Error::Unexpected(format!("{status} {reason}")));
                        }
                    }
                }
                holds(passed <= 1, "a token passed twice")?;
                served += passed;
            }
            Ok::<_, Error>((served, refused))
        });
    }
    for number in 0..UPDATES {
        let mut other = good.clone();
        if let Some(map) = other.as_object_mut() {
            map.insert("decision_deadline_ms".to_owned(), (2_000 + number).into());
        }
        stage.system.write_guard(
            &format!("u{number}"),
            &configured(&guard, &other.to_string()),
        )?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    a_moment().await;
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let (mut served, mut refused) = (0, 0);
    while let Some(client) = clients.join_next().await {
        let (more, others) = client.map_err(|it| Error::Unexpected(it.to_string()))??;
        served += more;
        refused += others;
    }
    holds(
        served > 20,
        format!("only {served} requests were served meanwhile"),
    )?;
    same("reached the upstream", mark.arrived(&stage)?, served)?;
    stage.each_once()?;
    stage.recovers().await?;
    next_good(&stage).await?;
    stage.stop().await;
    Ok(format!(
        "{UPDATES} new guards within {} s under load: {served} requests were served, each once; {refused} second uses or requests between two guards were refused",
        UPDATES / 5
    ))
}

/// A guard of another version than its configuration, and the other way round.
async fn skew(_: &mut Stages) -> Result<String, Error> {
    let (stage, at, guard) = written(options()).await?;
    let good = configuration(&guard)?;
    let mut tried = 0;
    for version in [
        json!(0),
        json!(2),
        json!(3),
        json!(null),
        json!("1"),
        json!(1.5),
    ] {
        let mut other = good.clone();
        if let Some(map) = other.as_object_mut() {
            map.insert("version".to_owned(), version.clone());
            // What the other version may have besides.
            map.insert("since_2".to_owned(), json!(true));
        }
        let before = refusals(&stage).await;
        stage.system.write_guard(
            &format!("v{version}"),
            &configured(&guard, &other.to_string()),
        )?;
        eventually("another version is refused", async || {
            refusals(&stage).await > before
        })
        .await?;
        stands(&stage, &format!("version {version}"), &at).await?;
        tried += 1;
    }
    stage.system.write_guard("back", &guard)?;
    next_good(&stage).await?;
    stage.stop().await;
    Ok(format!(
        "{tried} configurations of other versions were refused; another protocol on the stream is refused as faults.rs::another_protocol_is_refused_and_never_guessed_at shows"
    ))
}
