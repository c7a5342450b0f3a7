//! What `cargo xtask` starts once everything is built; it takes the programs'
//! paths from the environment that xtask sets.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use wasm_test::{attack, bench, demo, up};

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
    /// Try attacks and faults on running systems.
    Attack {
        /// Only rows with these ids, or beginnings of ids.
        #[arg(long, num_args = 1..)]
        only: Vec<String>,
        /// Write what came of each row to this file, as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        /// How many tokens are raced over replicas.
        #[arg(long, default_value_t = 1_000)]
        tokens: usize,
        /// How many tokens are raced over two Envoys.
        #[arg(long, default_value_t = 500)]
        rounds: usize,
        /// How many minutes the soak and the outage last.
        #[arg(long, default_value_t = 0)]
        minutes: u64,
        /// How many proxies come back at once (H32).
        #[arg(long, default_value_t = 2)]
        proxies: usize,
    },
    /// Measure Envoy's CPU per request with and without Writ.
    BenchEdge {
        /// Write the figures to this file, as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Rounds, each with every row.
        #[arg(long, default_value_t = 11)]
        rounds: usize,
    },
    /// What an exchange costs the control plane.
    BenchExchange {
        /// Write the figures to this file, as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Rounds, each with every row.
        #[arg(long, default_value_t = 11)]
        rounds: usize,
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
            Command::Attack {
                only,
                json,
                tokens,
                rounds,
                minutes,
                proxies,
            } => {
                attack::run(&attack::Settings {
                    only,
                    json,
                    tokens,
                    rounds,
                    minutes,
                    proxies,
                })
                .await
            }
            Command::BenchEdge { json, rounds } => bench::edge::run(json.as_deref(), rounds).await,
            Command::BenchExchange { json, rounds } => {
                bench::exchange::run(json.as_deref(), rounds).await
            }
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
