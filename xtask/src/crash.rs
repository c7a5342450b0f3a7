//! `cargo xtask crash`: the ledger under simulated and real faults.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::error::Error;
use crate::progress::Progress;
use crate::run::{cargo, loudly, succeeds_within};
use crate::setup::apt;
use crate::{build, setup};

const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// PostgreSQL's faults take seconds each: so many rounds of the others for one of its.
const ROUNDS_FOR_ONE: u32 = 10;

/// A seed of replicas is many times one of the embedded ledger: so many of that for one.
const SEEDS_FOR_ONE: u64 = 4;

/// Simulates `seeds` seeds, then kills and fails real processes, PostgreSQL's too.
///
/// # Errors
/// When set-up or a build fails, or anything was lost, doubled, or cut silently.
pub fn run(
    progress: &Progress,
    seeds: u64,
    rounds: u32,
    json: Option<PathBuf>,
) -> Result<(), Error> {
    strace(progress)?;
    let postgres = postgres(progress);
    let home = build::target_dir().join(format!("tmp/crash-{}", std::process::id()));
    std::fs::create_dir_all(&home).map_err(Error::file("create", &home))?;
    let simulated = home.join("simulated.json");
    let replicas = (seeds / SEEDS_FOR_ONE).max(1);
    progress.say(&format!(
        "simulating {seeds} seeds of the embedded ledger, and {replicas} of replicas over PostgreSQL"
    ));
    let mut simulation = cargo();
    simulation
        .args(["test", "--workspace", "--lib", "sim::", "--", "--nocapture"])
        .env("WRIT_SIM_SEEDS", seeds.to_string())
        .env("WRIT_SIM_REPLICAS", replicas.to_string())
        .env("WRIT_SIM_REPORT", &simulated);
    loudly("the simulation", &mut simulation)?;

    progress.say("building what is to be killed");
    let mut build = cargo();
    build.args(["build", "--workspace", "--example", "crash"]);
    loudly("building the crash program", &mut build)?;
    progress.say(&format!(
        "{rounds} SIGKILLs under load, then each system call in turn"
    ));
    let mut crash = Command::new(build::target_dir().join("debug/examples/crash"));
    crash.arg(&home).args(["--rounds", &rounds.to_string()]);
    crash.arg("--simulated").arg(&simulated);
    if let Some(postgres) = &postgres {
        let rounds = rounds.div_ceil(ROUNDS_FOR_ONE);
        crash.env("WRIT_POSTGRES", postgres);
        crash.args(["--postgres", &rounds.to_string()]);
    }
    if let Some(path) = json {
        crash.arg("--json").arg(path);
    }
    loudly("at least one case", &mut crash)?;
    if postgres.is_none() {
        eprintln!("\nNOT RUN: PostgreSQL's faults, since there is none to be had; see above");
    }
    std::fs::remove_dir_all(&home).map_err(Error::file("remove", &home))
}

/// Where PostgreSQL is. What needs none is still run where there is none, but
/// nobody can miss that.
fn postgres(progress: &Progress) -> Option<PathBuf> {
    match setup::postgres::find(progress) {
        Ok(found) => Some(found),
        Err(problem) => {
            eprintln!("\nNOT RUN: PostgreSQL's faults: {problem}\n");
            None
        }
    }
}

/// Single system calls are made to fail by strace.
///
/// # Errors
/// When it can't be had.
pub fn strace(progress: &Progress) -> Result<(), Error> {
    let mut version = Command::new("strace");
    version.arg("--version");
    if succeeds_within(&mut version, ANSWERS_WITHIN) {
        return Ok(());
    }
    if setup::apt::usable() {
        return apt::install(progress, &["strace"]);
    }
    Err(Error::Machine(
        "strace is missing, which makes single system calls fail: install the package strace"
            .to_owned(),
    ))
}

/// Where `cargo xtask bench ledger` leaves its journals, on the disk that the target directory is on.
pub fn bench(progress: &Progress, json: Option<&Path>) -> Result<(), Error> {
    let home = build::target_dir().join(format!("tmp/bench-ledger-{}", std::process::id()));
    progress.say("building the ledger for measuring (minutes, the first time)");
    let mut build = cargo();
    build.args([
        "build",
        "--profile",
        "measure",
        "-p",
        "ledger",
        "--features",
        "sqlite",
        "--example",
        "spends",
    ]);
    loudly("building the benchmark", &mut build)?;
    let postgres = setup::postgres::find(progress)?;
    let mut spends = Command::new(build::target_dir().join("measure/examples/spends"));
    spends.env("WRIT_POSTGRES", postgres);
    spends.arg("report").arg("--dir").arg(&home);
    if let Some(path) = json {
        spends.arg("--json").arg(path);
    }
    loudly("the benchmark", &mut spends)?;
    std::fs::remove_dir_all(&home).map_err(Error::file("remove", &home))
}
