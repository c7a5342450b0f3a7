//! The guard's own life: modules and configurations that are no good, that come
//! while requests are under way, or that somebody else wrote.

use std::time::Duration;

use serde_json::Value;

use super::check::{holds, same};
use super::edge::{Audit, Mark, Over, Shot, Want, next_good, wanted};
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
pub(super) async fn stands(stage: &Stage, what: &str, at: &str) -> Result<(), Error> {
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

/// An Envoy whose first filter it has itself refused listens all the same, and
/// answers everything with 500: good requests too, and nothing of them goes on.
pub(super) async fn passes_nothing(stage: &Stage, what: &str, at: &str) -> Result<(), Error> {
    eventually(&format!("{what} listens"), async || {
        tokio::net::TcpStream::connect(at).await.is_ok()
    })
    .await?;
    let mark = Mark::now(stage)?;
    for _ in 0..20 {
        let token = stage.agent.token("GET", REPORT).await?;
        let bare = Shot::get(stage, REPORT).to(at.to_owned());
        let good = bare.clone().with(stage, ("GET", REPORT), &token);
        for shot in [bare, good] {
            for over in [Over::Http1, Over::Http2] {
                wanted(what, &shot.fire(over).await?, Want::Envoy(500))?;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    mark.nothing(what, stage)
}

/// Modules that are none, are damaged, are another's, or are gone: on an Envoy
/// that runs nothing changes, and one that starts lets nothing pass.
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
    // An Envoy that has refused it and starts again gets what it had taken before.
    stage.system.kill_envoy(0);
    stage.system.spawn_envoy(0)?;
    stage.recovers().await?;
    stands(&stage, "an Envoy that starts again", &at).await?;
    // One that nobody knows gets the module that is there.
    stage.system.kill_envoy(0);
    stage.system.stop_control_plane().await;
    stage.system.start_control_plane().await?;
    stage.system.spawn_envoy(0)?;
    passes_nothing(&stage, "a fresh Envoy with a module that is no good", &at).await?;
    deploy(&stage, &relabelled(&good, b'a'))?;
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
    Ok("6 modules that are no good changed nothing on an Envoy that runs, and let nothing pass on a fresh one".to_owned())
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
    let status = stage.system.status();
    let warnings = status.get("warnings").and_then(Value::as_array);
    let text = format!("runs Envoy {number}, which has known holes");
    let told = warnings.is_some_and(|all| {
        all.iter()
            .any(|warning| warning.as_str().is_some_and(|it| it.contains(&text)))
    });
    same("the control plane warns", told, !safe)?;
    stage.good_request().await?;
    Ok(if safe {
        format!("Envoy {number} is not below what is safe, and nobody is warned")
    } else {
        format!("Envoy {number} has known holes, and who looks is told")
    })
}
