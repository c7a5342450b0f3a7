//! `cargo xtask`: set up, build, and run everything that a developer needs.
//!
//! Set-up and builds happen here; then `wasm-test` takes over, with the paths
//! of what was found and built in its environment.

mod build;
mod crash;
mod error;
mod progress;
mod run;
mod setup;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use error::Error;
use progress::Progress;

/// Set-up, run, test, break, demo, bench.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a control plane, Envoy and a demo upstream, until Ctrl-C.
    Up {
        /// Write where everything is to this file, as JSON, once all of it answers.
        #[arg(long, value_name = "FILE")]
        ready_file: Option<PathBuf>,
    },
    /// Take a tour of a running system; fails if anything differs.
    Demo,
    /// Run all tests.
    Test {
        /// Leave out what needs Envoy.
        #[arg(long)]
        fast: bool,
    },
    /// Break the ledger: a simulation, then killed processes and failing system calls.
    Crash {
        /// Seeds to simulate.
        #[arg(long, default_value_t = 100_000)]
        seeds: u64,
        /// SIGKILLs under load; single system calls come on top.
        #[arg(long, default_value_t = 100)]
        rounds: u32,
        /// Write what was counted to this file as well.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Check formatting and lints.
    Lint,
    /// Measure.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Find or install what the others need, and build it.
    Setup,
}

#[derive(Subcommand)]
enum Bench {
    /// Envoy's CPU per request and requests per second beside a bare Envoy's,
    /// the least that such a filter can cost, and `jwt_authn` with `ext_authz`.
    Edge {
        /// Write the figures to this file as well.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Durable spends per second and their cost, beside what the disk alone can do.
    Ledger {
        /// Write the figures to this file as well.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let outcome = dispatch(Args::parse().command);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<(), Error> {
    let progress = Progress::new();
    match command {
        Command::Up { ready_file } => {
            let ready_file = ready_file.map(absolute).transpose()?;
            let mut arguments = vec!["up".into()];
            if let Some(path) = ready_file {
                arguments.extend(["--ready-file".into(), path.into_os_string()]);
            }
            run::system(&progress, &arguments)
        }
        Command::Demo => run::system(&progress, &["demo".into()]),
        Command::Bench {
            what: Bench::Edge { json },
        } => {
            let mut arguments = vec!["bench-edge".into()];
            if let Some(path) = json.map(absolute).transpose()? {
                arguments.extend(["--json".into(), path.into_os_string()]);
            }
            run::bench(&progress, &arguments)
        }
        Command::Bench {
            what: Bench::Ledger { json },
        } => {
            let json = json.map(absolute).transpose()?;
            crash::bench(&progress, json.as_deref())
        }
        Command::Crash {
            seeds,
            rounds,
            json,
        } => {
            let json = json.map(absolute).transpose()?;
            crash::run(&progress, seeds, rounds, json)
        }
        Command::Test { fast } => test::run(&progress, fast),
        Command::Lint => test::lint(&progress),
        Command::Setup => {
            let envoy = setup::envoy::find(&progress)?;
            build::everything(&progress, envoy).map(|_| ())
        }
    }
}

/// Paths are the caller's; what runs later may work in another directory.
fn absolute(path: PathBuf) -> Result<PathBuf, Error> {
    std::path::absolute(&path).map_err(Error::file("resolve", &path))
}
