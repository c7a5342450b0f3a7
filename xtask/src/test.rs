//! `cargo xtask test` and `lint`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::Error;
use crate::progress::Progress;
use crate::run::{cargo, loudly, root};
use crate::{build, setup};

/// Test files with this prefix run a real Envoy.
const NEEDS_ENVOY: &str = "e2e_";

/// Sets up, builds and runs all tests; `fast` leaves out those that need Envoy.
///
/// # Errors
/// When set-up or a build fails, or any test does.
pub fn run(progress: &Progress, fast: bool) -> Result<(), Error> {
    let start = Instant::now();
    let envoy = if fast {
        None
    } else {
        Some(setup::envoy::find(progress)?)
    };
    // Tests of the ledger's database say so, loudly, where they go without.
    let postgres = if fast {
        None
    } else {
        Some(setup::postgres::find(progress)?)
    };
    if !fast {
        setup::softhsm::find(progress)?;
    }
    let built = build::everything(progress, envoy)?;
    let mut command = cargo();
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .envs(built.environment());
    if let Some(postgres) = postgres {
        command
            .env("WRIT_POSTGRES", postgres)
            .env("WRIT_REQUIRE_POSTGRES", "1");
    }
    if fast {
        command.args(["--lib", "--bins"]);
        for name in tests_without_envoy(&root())? {
            command.args(["--test", &name]);
        }
    }
    progress.say("running the tests");
    loudly("at least one test", &mut command)?;
    let seconds = start.elapsed().as_secs();
    let what = if fast {
        "all tests that need no Envoy (PostgreSQL's where one was found: else they say SKIPPED)"
    } else {
        "all tests"
    };
    println!("\n{what} passed, in {seconds} s with set-up and builds");
    Ok(())
}

/// Formatting, and clippy with the workspace's table as errors.
///
/// # Errors
/// When either complains.
pub fn lint(progress: &Progress) -> Result<(), Error> {
    progress.say("checking the formatting");
    loudly(
        "cargo fmt --check",
        cargo().args(["fmt", "--all", "--check"]),
    )?;
    progress.say("checking the lints");
    let mut clippy = cargo();
    clippy
        .args(["clippy", "--workspace", "--all-targets"])
        .args(["--", "-D", "warnings"]);
    loudly("cargo clippy", &mut clippy)?;
    println!("formatting and lints are clean");
    Ok(())
}

/// The names of all integration tests of the workspace that need no Envoy.
fn tests_without_envoy(root: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for dir in packages(root)? {
        let Ok(entries) = std::fs::read_dir(dir.join("tests")) else {
            continue;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let target =
                path.extension() == Some(OsStr::new("rs")) || path.join("main.rs").exists();
            let name = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
            if target && !name.starts_with(NEEDS_ENVOY) {
                names.push(name.to_owned());
            }
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Every directory of the repository, one or two levels down, with a Cargo.toml.
fn packages(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(root).map_err(Error::file("read", root))?;
    for dir in entries.flatten().map(|entry| entry.path()) {
        if dir.join("Cargo.toml").exists() {
            let below = std::fs::read_dir(&dir).map_err(Error::file("read", &dir))?;
            let below = below.flatten().map(|entry| entry.path());
            found.extend(below.filter(|path| path.join("Cargo.toml").exists()));
            found.push(dir);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_leaves_out_what_needs_envoy_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let tests = root.path().join("one/tests");
        std::fs::create_dir_all(tests.join("big")).unwrap();
        std::fs::create_dir_all(tests.join("data")).unwrap();
        std::fs::write(root.path().join("one/Cargo.toml"), "").unwrap();
        for file in ["e2e_flow.rs", "tidy.rs", "notes.txt", "big/main.rs"] {
            std::fs::write(tests.join(file), "").unwrap();
        }
        assert_eq!(tests_without_envoy(root.path()).unwrap(), ["big", "tidy"]);
    }
}
