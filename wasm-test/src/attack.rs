//! `cargo xtask attack`: each attack and each fault of the list by its id, on
//! running systems.
//!
//! A row is tried here, or names the test that covers it, or says why it can't
//! apply. A group of rows is a file; what rows share is in [`stages`].

mod bodies;
mod bypass;
mod cases;
mod certificates;
mod check;
mod claims;
mod dpop;
mod dpop_live;
mod dpop_replay;
mod ed25519;
mod edge;
mod endless;
mod exhaustion;
mod forge;
mod framing;
mod guard;
mod headers;
mod jwk;
mod jws;
mod jws_forms;
mod jws_live;
mod keys;
mod life;
mod minting;
mod nonces;
mod paths;
mod races;
mod single_use;
mod soak;
mod stages;
mod stops;
mod store;
mod storm;
mod stress;
mod table;
mod targets;
mod told;
mod traps;
mod unguarded;
mod unread;
mod vectors;
mod written;

use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::{Error, tools};
use stages::Stages;

/// A row that takes longer has failed.
const LONGEST: Duration = Duration::from_secs(300);
/// And so much more for each token of a long race.
const PER_TOKEN: Duration = Duration::from_millis(50);

/// How much longer a row may take for each proxy that comes back.
const PER_PROXY: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Ids, or beginnings of ids, of rows; all when it is empty.
    pub only: Vec<String>,
    /// Where the outcomes go as JSON.
    pub json: Option<PathBuf>,
    /// How many tokens are raced over replicas.
    pub tokens: usize,
    /// How many tokens are raced over two Envoys.
    pub rounds: usize,
    /// How many minutes the soak and the outage last; 0 is a short one of each.
    pub minutes: u64,
    /// How many proxies come back at once (H32); with more than two, real Envoys beside
    /// the two.
    pub proxies: usize,
}

/// What a row does: the text says what was seen.
type Work<'a> = Pin<Box<dyn Future<Output = Result<String, Error>> + 'a>>;

/// What tries a row on a running system.
type Live = for<'a> fn(&'a mut Stages) -> Work<'a>;

/// How a row is tried.
enum How {
    /// On a running system.
    Live(Live),
    /// By the requests that the files of requests have for it, and these.
    Cases(cases::More),
    /// By these tests, each `FILE::FUNCTION` of the repository.
    Covered(&'static [&'static str]),
    /// Not at all, and why.
    Never(&'static str),
}

/// One attack or fault.
struct Row {
    id: &'static str,
    how: How,
}

/// All groups, in the order in which they run.
const GROUPS: &[&[Row]] = &[
    jws::ROWS,
    jwk::ROWS,
    dpop::ROWS,
    bodies::ROWS,
    single_use::ROWS,
    bypass::ROWS,
    store::ROWS,
    stress::ROWS,
    certificates::ROWS,
    minting::ROWS,
    paths::ROWS,
    targets::ROWS,
    headers::ROWS,
    claims::ROWS,
    framing::ROWS,
    guard::ROWS,
    written::ROWS,
    unread::ROWS,
    endless::ROWS,
    traps::ROWS,
    unguarded::ROWS,
    life::ROWS,
    stops::ROWS,
    soak::ROWS,
];

/// Runs the rows and says what came of each. A signal ends it, and with it all
/// that it has started.
///
/// # Errors
/// When any row fails, none has a wanted id, or a signal came.
pub async fn run(settings: &Settings) -> Result<(), Error> {
    let listen =
        |kind| signal(kind).map_err(|it| Error::Setup(format!("cannot listen for signals: {it}")));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let stopped = || Err(Error::Setup("stopped by a signal".to_owned()));
    tokio::select! {
        outcome = all(settings) => outcome,
        _ = interrupt.recv() => stopped(),
        _ = terminate.recv() => stopped(),
    }
}

async fn all(settings: &Settings) -> Result<(), Error> {
    let wanted = |row: &&Row| {
        let only = &settings.only;
        only.is_empty() || only.iter().any(|it| row.id.starts_with(it.as_str()))
    };
    let rows: Vec<&Row> = GROUPS
        .iter()
        .flat_map(|rows| rows.iter())
        .filter(wanted)
        .collect();
    if rows.is_empty() {
        let only = settings.only.join(", ");
        return Err(Error::Setup(format!("there is no row {only}")));
    }
    let envoy = envoys_version()?;
    eprintln!("on Envoy {envoy}");
    let mut stages = Stages::new(settings.tokens);
    stages.rounds = settings.rounds;
    stages.minutes = settings.minutes;
    stages.proxies = settings.proxies;
    let mut told = Vec::new();
    for row in rows {
        let start = Instant::now();
        let (outcome, detail) = attempt(row, &mut stages).await;
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{:4} {outcome:14} {seconds:6.1} s  {detail}", row.id);
        told.push((row.id, outcome, detail));
    }
    stages.stop().await;
    report(settings, &envoy, &told)
}

async fn attempt(row: &Row, stages: &mut Stages) -> (&'static str, String) {
    match row.how {
        How::Never(why) => ("not_applicable", why.to_owned()),
        How::Covered(tests) => match tests.iter().find(|test| !exists(test)) {
            Some(missing) => ("failed", format!("there is no test {missing}")),
            None => ("covered_by", tests.join(", ")),
        },
        How::Live(_) | How::Cases(_) => {
            let tokens = u32::try_from(stages.tokens.max(stages.rounds)).unwrap_or(u32::MAX);
            let limit = LONGEST + PER_TOKEN.saturating_mul(tokens) + stages.lasts();
            let limit =
                limit + PER_PROXY.saturating_mul(u32::try_from(stages.proxies).unwrap_or(u32::MAX));
            let tried = async {
                let seen = match row.how {
                    How::Live(work) => work(stages).await?,
                    How::Cases(more) => cases::all(stages, row.id, more).await?,
                    How::Covered(_) | How::Never(_) => String::new(),
                };
                stages.are_well().await?;
                Ok::<_, Error>(seen)
            };
            match tokio::time::timeout(limit, tried).await {
                Ok(Ok(seen)) => ("passed", seen),
                Ok(Err(problem)) => {
                    // Whatever it left behind is nobody else's fault.
                    stages.abandon();
                    ("failed", problem.to_string())
                }
                Err(_) => {
                    stages.abandon();
                    ("failed", format!("took longer than {limit:?}"))
                }
            }
        }
    }
}

/// Whether the repository has this `FILE::FUNCTION`.
fn exists(test: &str) -> bool {
    let Some((file, function)) = test.split_once("::") else {
        return false;
    };
    let text = std::fs::read_to_string(tools::root().join(file));
    text.is_ok_and(|text| text.contains(&format!("fn {function}(")))
}

/// What the Envoy that rows run on says of itself, `1.40.0` of
/// `envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`.
fn envoys_version() -> Result<String, Error> {
    let envoy = tools::Tools::from_env()?.envoy;
    let output = std::process::Command::new(&envoy)
        .arg("--version")
        .output()
        .map_err(Error::file("run", &envoy))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let build = said.rsplit_once("version: ").map(|(_, build)| build);
    let version = build.and_then(|build| build.split('/').nth(1));
    let none = || Error::Setup(format!("{} says no version", envoy.display()));
    version.map(str::to_owned).ok_or_else(none)
}

fn report(settings: &Settings, envoy: &str, told: &[(&str, &str, String)]) -> Result<(), Error> {
    let count = |wanted: &str| told.iter().filter(|(_, it, _)| *it == wanted).count();
    let (passed, failed) = (count("passed"), count("failed"));
    let (covered, never) = (count("covered_by"), count("not_applicable"));
    if let Some(path) = &settings.json {
        let rows: Vec<_> = told
            .iter()
            .map(|(id, outcome, detail)| json!({"id": id, "outcome": outcome, "detail": detail}))
            .collect();
        let all = json!({
            "envoy": envoy, "rows": rows, "passed": passed, "failed": failed,
            "covered_by": covered, "not_applicable": never,
            "totals": {
                "rows": told.len(), "passed": passed, "failed": failed,
                "covered_by": covered, "not_applicable": never,
            },
        });
        std::fs::write(path, format!("{all:#}\n")).map_err(Error::file("write", path))?;
    }
    println!(
        "Envoy {envoy}: {} rows, {passed} passed, {failed} failed, {covered} are covered by tests, {never} can't apply",
        told.len(),
    );
    if failed == 0 {
        return Ok(());
    }
    Err(Error::Unexpected(format!("{failed} rows failed")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_row_has_an_id_of_its_own_and_tests_that_exist() {
        let mut seen = BTreeSet::new();
        for row in GROUPS.iter().flat_map(|rows| rows.iter()) {
            assert!(seen.insert(row.id), "{} is there twice", row.id);
            if let How::Covered(tests) = row.how {
                assert!(!tests.is_empty());
                for test in tests {
                    assert!(exists(test), "{}: there is no test {test}", row.id);
                }
            }
        }
        assert!(seen.len() > 30);
        assert!(!exists("wasm-test/src/attack.rs::not_there"));
    }
}
