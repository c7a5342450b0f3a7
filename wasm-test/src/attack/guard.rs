//! The guard's own life: modules and configurations that are no good, that come
//! while requests are under way, or that somebody else wrote.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::check::{holds, same};
use super::edge::{Audit, Mark, Over, Shot, Want, a_moment, next_good, wanted};
use super::stages::{Stages, options};
use super::{How, Row};
use crate::Error;
use crate::stage::{Stage, eventually, text_at};
use crate::system::Options;
use crate::upstream::REPORT;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "G05",
        how: How::Live(|it| Box::pin(modules(it))),
    },
    Row {
        id: "G06",
        how: How::Live(|it| Box::pin(configurations(it))),
    },
    Row {
        id: "G07",
        how: How::Live(|it| Box::pin(updates(it))),
    },
    Row {
        id: "G19",
        how: How::Live(|it| Box::pin(nothing_shared(it))),
    },
    Row {
        id: "G24",
        how: How::Live(|it| Box::pin(unmatched(it))),
    },
    Row {
        id: "G26",
        how: How::Live(|it| Box::pin(versions(it))),
    },
    Row {
        id: "G27",
        how: How::Live(|it| Box::pin(skew(it))),
    },
];

/// The module with another hash: a custom section (id 0) is no code.
fn relabelled(module: &[u8], label: u8) -> Vec<u8> {
    let section = [0, 5, 4, b'w', b'r', b't', label];
    [module, &section].concat()
}

/// Puts a module in place whole, as a deployment would.
fn deploy(stage: &Stage, module: &[u8]) -> Result<(), Error> {
    let file = stage.system.module_file();
    let beside = file.with_extension("new");
    std::fs::write(&beside, module)
        .and_then(|()| std::fs::rename(&beside, &file))
        .map_err(Error::file("write", &file))
}

fn module(stage: &Stage) -> Result<Vec<u8>, Error> {
    let file = stage.system.module_file();
    std::fs::read(&file).map_err(Error::file("read", &file))
}

/// What Envoy has said of filters, by the log: how often yes, how often no.
fn said(stage: &Stage) -> Result<(usize, usize), Error> {
    let entries = stage.entries()?;
    let count = |event: &str| {
        let is = |entry: &&Value| {
            text_at(entry, "/kind") == "proxy"
                && text_at(entry, "/body/event") == event
                && text_at(entry, "/body/kind") == "Filter"
        };
        entries.iter().filter(is).count()
    };
    Ok((count("ack"), count("nack")))
}

/// The guard stands: a bare request is refused, and a good one passes once.
async fn stands(stage: &Stage, what: &str, at: &str) -> Result<(), Error> {
    let mark = Mark::now(stage)?;
    let bare = Shot::get(stage, REPORT).to(at.to_owned());
    let spoofed = bare
        .clone()
        .and("x-writ-token-id", "spoofed")
        .and("x-writ-agent", "admin");
    for shot in [bare, spoofed] {
        for over in [Over::Http1, Over::Http2] {
            let seen = shot.fire(over).await?;
            wanted(what, &seen, Want::No(401, "missing_credentials"))?;
        }
    }
    mark.nothing(what, stage)?;
    let token = stage.agent.token("GET", REPORT).await?;
    let shot = Shot::get(stage, REPORT).with(stage, ("GET", REPORT), &token);
    wanted(
        what,
        &shot.to(at.to_owned()).fire(Over::Http1).await?,
        Want::Served,
    )?;
    mark.exactly(what, stage, "GET", REPORT).map(drop)
}

/// Nobody listens, for a while.
async fn stays_closed(stage: &Stage, what: &str) -> Result<(), Error> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        holds(
            stage.connect().await.is_err(),
            format!("{what}: the listener is open"),
        )?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Modules that are none, are damaged, are another's, or are gone: on an Envoy
/// that runs nothing changes, and one that starts opens no listener.
async fn modules(_: &mut Stages) -> Result<String, Error> {
    let mut stage = Stage::start(options()).await?;
    let good = module(&stage)?;
    let at = stage.address();
    let cut = good.get(..good.len() / 2).unwrap_or_default().to_vec();
    let unusable: [(&str, &[u8], bool); 6] = [
        ("no module", b"this is no module", false),
        ("empty", b"", false),
        ("cut", &cut, false),
        (
            "too long",
            &[good.as_slice(), b"\0\x04\x01aA"].concat(),
            false,
        ),
        // What has a module's frame is for Envoy to judge.
        ("no proxy-wasm module", b"\0asm\x01\0\0\0", true),
        (
            "no code",
            &[b"\0asm\x01\0\0\0".as_slice(), &[10, 2, 0xff, 0xff]].concat(),
            true,
        ),
    ];
    for (what, bytes, pushed) in unusable {
        let (_, nacks) = said(&stage)?;
        deploy(&stage, bytes)?;
        if pushed {
            eventually(what, async || {
                said(&stage).is_ok_and(|(_, now)| now > nacks)
            })
            .await?;
        } else {
            // The control plane looks at the file every second or so.
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            same(&format!("{what}: pushed"), said(&stage)?.1, nacks)?;
        }
        stands(&stage, what, &at).await?;
    }
    // The last one is what a fresh Envoy gets.
    stage.system.kill_envoy(0);
    stage.system.spawn_envoy(0)?;
    stays_closed(&stage, "a fresh Envoy with a module that is no good").await?;
    deploy(&stage, &relabelled(&good, b'a'))?;
    eventually("it opens with a good one", async || {
        stage.connect().await.is_ok()
    })
    .await?;
    stage.recovers().await?;
    // Gone: what runs goes on, and a control plane without it does not start.
    std::fs::remove_file(stage.system.module_file())
        .map_err(Error::file("remove", &stage.system.module_file()))?;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    stands(&stage, "the module is gone", &at).await?;
    stage.system.stop_control_plane().await;
    holds(
        stage.system.start_control_plane().await.is_err(),
        "it started without a module",
    )?;
    stage.system.stop_control_plane().await;
    let mark = Mark::now(&stage)?;
    let bare = Shot::get(&stage, REPORT).fire(Over::Http1).await?;
    wanted(
        "without a control plane",
        &bare,
        Want::No(401, "missing_credentials"),
    )?;
    mark.nothing("without a control plane", &stage)?;
    deploy(&stage, &good)?;
    stage.system.start_control_plane().await?;
    stage.recovers().await?;
    next_good(&stage).await?;
    stage.stop().await;
    Ok("6 modules that are no good changed nothing on an Envoy that runs, and opened no listener on a fresh one".to_owned())
}

/// A stage with a listener whose guard the row writes: its address, and the guard
/// that the control plane serves.
async fn written() -> Result<(Stage, String, Value), Error> {
    let stage = Stage::start(Options {
        guard_from_file: true,
        ..options()
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
    let (mut stage, at, guard) = written().await?;
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
    // A fresh Envoy with one of them has nothing to keep, and opens nothing there.
    let worst = configured(&guard, "{}");
    stage.system.write_guard("w", &worst)?;
    stage.system.kill_envoy(0);
    stage.system.spawn_envoy(0)?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        holds(
            tokio::net::TcpStream::connect(&at).await.is_err(),
            "a fresh Envoy serves without a configuration",
        )?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stage.system.write_guard("g", &guard)?;
    stage.system.kill_envoy(0);
    stage.system.start_envoy().await?;
    stage.recovers().await?;
    next_good(&stage).await?;
    stage.stop().await;
    Ok(format!(
        "{} broken configurations were refused, and the one before stayed; a fresh Envoy opened no listener with one",
        faults.len()
    ))
}

/// A new guard every 200 ms under load.
async fn updates(_: &mut Stages) -> Result<String, Error> {
    const UPDATES: u64 = 20;
    let (stage, at, guard) = written().await?;
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

/// What a reload wipes is nothing that anybody relies on.
async fn nothing_shared(_: &mut Stages) -> Result<String, Error> {
    let stage = Stage::start(options()).await?;
    let good = module(&stage)?;
    // The SDK imports all that a host has; what the filter calls is in one file.
    let calls = crate::tools::root().join("filter/src/host.rs");
    let text = std::fs::read_to_string(&calls).map_err(Error::file("read", &calls))?;
    let shared = text.contains("shared_data");
    holds(!shared, "the filter keeps something in shared data")?;
    for label in [b'x', b'y'] {
        let token = stage.agent.token("GET", REPORT).await?;
        same(
            "first use",
            stage.present(REPORT, &token).await?.status,
            200,
        )?;
        let (acks, _) = said(&stage)?;
        deploy(&stage, &relabelled(&good, label))?;
        eventually("the new module runs", async || {
            said(&stage).is_ok_and(|(now, _)| now > acks)
        })
        .await?;
        stage.recovers().await?;
        let mark = Mark::now(&stage)?;
        for over in [Over::Http1, Over::Http2] {
            let again = Shot::get(&stage, REPORT).with(&stage, ("GET", REPORT), &token);
            wanted(
                "after the reload",
                &again.fire(over).await?,
                Want::No(401, "token_spent"),
            )?;
        }
        mark.nothing("after the reload", &stage)?;
    }
    next_good(&stage).await?;
    stage.stop().await;
    Ok("two tokens that were used before a reload are spent after it; the filter keeps nothing in shared data".to_owned())
}

/// Authorities and paths that no route has.
async fn unmatched(_: &mut Stages) -> Result<String, Error> {
    let ports = crate::ports::free(None)?;
    let stage = Stage::start(Options {
        wanted_ports: Some(ports),
        extra_config: format!(
            "{}[[edge.route]]\nname = \"files\"\npath_prefix = \"/files\"\nupstream = \"127.0.0.1:{}\"\n",
            options().extra_config,
            ports.upstream
        ),
        ..options()
    })
    .await?;
    let mut audit = Audit::begin(&stage)?;
    let mark = Mark::now(&stage)?;
    for target in [
        "/",
        "/echo/x",
        "/filesystem",
        "/admin/keys.txt",
        "/files-other",
    ] {
        for over in [Over::Http1, Over::Http2] {
            let bare = Shot::get(&stage, target);
            wanted(
                target,
                &bare.fire(over).await?,
                Want::No(401, "missing_credentials"),
            )?;
            audit.count("missing_credentials");
            let mut elsewhere = bare;
            elsewhere.authority = vec![b"other.example".to_vec()];
            wanted(
                target,
                &elsewhere.fire(over).await?,
                Want::No(401, "missing_credentials"),
            )?;
            audit.count("missing_credentials");
        }
    }
    // With everything right there is still no upstream for it.
    let token = stage.agent.token("GET", "/echo/x").await?;
    let shot = Shot::get(&stage, "/echo/x").with(&stage, ("GET", "/echo/x"), &token);
    wanted(
        "a path without a route",
        &shot.fire(Over::Http1).await?,
        Want::Envoy(404),
    )?;
    mark.nothing("a path without a route", &stage)?;
    let logged = audit.settled(&stage).await?;
    next_good(&stage).await?;
    stage.stop().await;
    Ok(format!(
        "20 requests for what no route has were refused by the guard, and one with a token found no upstream; {logged}"
    ))
}

/// The oldest Envoys that are safe for this, by their minor version.
const SAFE: [(u32, u32); 5] = [(36, 10), (37, 6), (38, 4), (39, 1), (40, 0)];

async fn versions(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let url = format!("{}/server_info", stage.system.admin_url());
    let info = reqwest::get(&url).await.map_err(Error::http(&url))?;
    let info: Value = info.json().await.map_err(Error::http(&url))?;
    let version = text_at(&info, "/version");
    let number = version.split('/').nth(1).unwrap_or_default();
    let mut parts = number
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor, patch) = (
        parts.next(),
        parts.next().unwrap_or(0),
        parts.next().unwrap_or(0),
    );
    same("Envoy's major version", major, Some(1))?;
    let least = SAFE
        .iter()
        .find(|(known, _)| *known == minor)
        .map(|(_, patch)| *patch);
    let newest = SAFE.last().map_or(0, |(minor, _)| *minor);
    let safe = least.map_or(minor > newest, |least| patch >= least);
    holds(
        safe,
        format!("Envoy {number} has holes in its wasm host or its paths"),
    )?;
    stage.good_request().await?;
    Ok(format!("Envoy {number} is not below what is safe"))
}

/// A guard of another version than its configuration, and the other way round.
async fn skew(_: &mut Stages) -> Result<String, Error> {
    let (stage, at, guard) = written().await?;
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
