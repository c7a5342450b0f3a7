//! Listings are tried in a process of their own before this one opens them: a
//! damaged sled can panic, hang or take all memory.

use ledger::Probed;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The hidden subcommand that tries.
pub(crate) const SUBCOMMAND: &str = "probe-listings";
/// How long it may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
/// Address space that it may take, in bytes.
const PROBE_MEMORY: u64 = 2 * 1024 * 1024 * 1024;
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// What it says is cut here, in bytes.
const SAID_MAX: u64 = 4096;

/// Tries the listings in `dir` in another process.
pub(crate) fn probe(dir: &Path) -> Probed {
    let unknown = |error: std::io::Error| Probed::Unknown(error.to_string());
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return unknown(error),
    };
    let started = Command::new(program)
        .arg(SUBCOMMAND)
        .arg(dir)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => return unknown(error),
    };
    let until = Instant::now() + PROBE_TIMEOUT;
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if Instant::now() < until => std::thread::sleep(LOOK),
            Ok(None) | Err(_) => break None,
        }
    };
    let Some(status) = ended else {
        // It may have ended just now; then there is nothing to end.
        let _ = child.kill();
        let _ = child.wait();
        return Probed::Damaged(format!("it did not end within {PROBE_TIMEOUT:?}"));
    };
    if status.success() {
        return Probed::Sound;
    }
    let mut said = String::new();
    if let Some(pipe) = child.stderr.take() {
        let _ = pipe.take(SAID_MAX).read_to_string(&mut said);
    }
    let said = said.lines().next().unwrap_or_default();
    Probed::Damaged(format!("{status}: {said}"))
}

/// What the other process does: with little memory, and without leaving a dump.
pub(crate) fn run(dir: &Path) -> ExitCode {
    for (resource, most) in [(Resource::As, PROBE_MEMORY), (Resource::Core, 0)] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        if let Err(error) = setrlimit(resource, limit) {
            eprintln!("writ: the probe cannot be limited: {error}");
            return ExitCode::from(crate::cli::FAILED);
        }
    }
    match ledger::probe_listings(dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::cli::refuse(&error),
    }
}
