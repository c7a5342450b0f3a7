//! What `cargo xtask` starts once everything is built; it takes the programs'
//! paths from the environment that xtask sets.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use wasm_test::{bench, demo, up};

/// The whole system on a real Envoy. Started by `cargo xtask`.
#[derive(Parser)]
#[command(name = "writ-system")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a system until it is stopped.
    Up {
        /// Write where everything is to this file, as JSON.
        #[arg(long)]
        ready_file: Option<PathBuf>,
    },
    /// Take the tour and fail if anything differs.
    Demo,
    /// Measure Envoy's CPU per request with and without Writ.
    BenchEdge {
        /// Write the figures to this file, as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(problem) => {
            eprintln!("error: cannot start the runtime: {problem}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match args.command {
            Command::Up { ready_file } => up::run(ready_file).await,
            Command::Demo => demo::run().await,
            Command::BenchEdge { json } => bench::edge::run(json.as_deref()).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}
