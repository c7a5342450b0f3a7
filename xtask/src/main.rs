//! `cargo xtask`: set up, build, and run everything that a developer needs.
//!
//! Set-up and builds happen here; then `wasm-test` takes over, with the paths
//! of what was found and built in its environment.

mod build;
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

/// Set-up, run, test, demo, bench.
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
    /// Envoy's CPU per request and requests per second beside a bare Envoy's.
    Edge {
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
            run::system(&progress, &arguments)
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
