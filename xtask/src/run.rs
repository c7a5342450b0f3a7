//! Running programs: quietly, loudly, or in this one's place.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::progress::Progress;
use crate::{build, setup};

const TAIL_LINES: usize = 20;
const POLL: Duration = Duration::from_millis(50);

/// The repository's root.
pub fn root() -> PathBuf {
    // Cargo sets it for `cargo run`; the other is where this was built.
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent().map_or(here.clone(), Path::to_owned)
}

/// The cargo that started this, in the repository's root.
pub fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root());
    command
}

/// Runs a program that shows its own progress.
///
/// # Errors
/// When it can't be started or fails.
pub fn loudly(what: &str, command: &mut Command) -> Result<(), Error> {
    let status = command
        .status()
        .map_err(Error::file("start", Path::new(command.get_program())))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Program {
        what: what.to_owned(),
        output: String::new(),
    })
}

/// Runs a program and keeps its output for the error.
///
/// # Errors
/// When it can't be started or fails.
pub fn quietly(what: &str, command: &mut Command) -> Result<Output, Error> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(Error::file("start", Path::new(command.get_program())))?;
    if output.status.success() {
        return Ok(output);
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    Err(Error::Program {
        what: what.to_owned(),
        output: lines.get(from..).unwrap_or_default().join("\n"),
    })
}

/// Runs a program whose failure is an answer, for at most `limit`.
pub fn succeeds_within(command: &mut Command, limit: Duration) -> bool {
    let silent = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let Ok(mut child) = silent.spawn() else {
        return false;
    };
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
            _ => {
                drop(child.kill());
                drop(child.wait());
                return false;
            }
        }
    }
}

/// Sets up and builds everything, then becomes `writ-system` with these
/// arguments: the process keeps its id, and signals reach it directly.
///
/// # Errors
/// When set-up or a build fails; else this doesn't return.
pub fn system(progress: &Progress, arguments: &[OsString]) -> Result<(), Error> {
    let envoy = setup::envoy::find(progress)?;
    let built = build::everything(progress, envoy)?;
    let mut command = Command::new(&built.system);
    command.args(arguments).envs(built.environment());
    let problem = command.exec();
    Err(Error::file("start", &built.system)(problem))
}

/// As [`system`], with a PostgreSQL, and with the Envoy of one version where one
/// is asked for.
///
/// # Errors
/// As [`system`], and when no PostgreSQL can be had.
pub fn attack(
    progress: &Progress,
    arguments: &[OsString],
    version: Option<&str>,
) -> Result<(), Error> {
    let envoy = match version {
        Some(version) => setup::envoy::of_version(progress, version)?,
        None => setup::envoy::find(progress)?,
    };
    let postgres = setup::postgres::find(progress)?;
    let built = build::everything(progress, envoy)?;
    progress.say("building the filter with faults on demand");
    let traps = setup::wasm::build_traps(&setup::wasm::find(progress)?)?;
    let mut command = Command::new(&built.system);
    command
        .args(arguments)
        .envs(built.environment())
        .env("WRIT_TRAPS_WASM", traps)
        .env("WRIT_POSTGRES", postgres);
    let problem = command.exec();
    Err(Error::file("start", &built.system)(problem))
}

/// As [`system`], with optimised programs and with what they are compared to.
///
/// # Errors
/// As [`system`].
pub fn bench(progress: &Progress, arguments: &[OsString]) -> Result<(), Error> {
    let envoy = setup::envoy::find(progress)?;
    let built = build::everything_in(build::Profile::Measure, progress, envoy)?;
    progress.say("building the floor that the filter is compared with");
    let floor = setup::wasm::build_floor(&setup::wasm::find(progress)?)?;
    let mut command = Command::new(&built.system);
    command
        .args(arguments)
        .envs(built.environment())
        .env("WRIT_FLOOR_WASM", floor);
    let problem = command.exec();
    Err(Error::file("start", &built.system)(problem))
}
