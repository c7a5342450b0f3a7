//! `cargo xtask`: set up, build, and run everything that a developer needs.
//!
//! Set-up and builds happen here; then `wasm-test` takes over, with the paths
//! of what was found and built in its environment.

mod build;
mod crash;
mod error;
mod fuzz;
mod progress;
mod run;
mod setup;
mod test;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
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
        /// Leave out what needs Envoy, and what needs PostgreSQL where none is found.
        #[arg(long)]
        fast: bool,
    },
    /// Break the ledger: a simulation, killed processes, failing system calls, and
    /// PostgreSQL killed, cut at COMMIT and taken over by a standby.
    Crash {
        /// Seeds to simulate.
        #[arg(long, default_value_t = 100_000)]
        seeds: u64,
        /// SIGKILLs under load; single system calls come on top, and a tenth as many
        /// of each of PostgreSQL's faults.
        #[arg(long, default_value_t = 100)]
        rounds: u32,
        /// Write what was counted to this file as well.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Try attacks and faults by their ids on running systems; fails if any succeeds.
    Attack {
        /// Only rows with these ids, or beginnings of ids.
        #[arg(long, value_name = "ID", num_args = 1..)]
        only: Vec<String>,
        /// On this Envoy, whole version or line, fetched when it is not there: 1.40,
        /// 1.39, 1.38.
        #[arg(long, value_name = "VERSION")]
        envoy: Option<String>,
        /// Write what came of each row to this file as well.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// How many tokens are raced over two replicas.
        #[arg(long, value_name = "N", default_value_t = 1_000)]
        tokens: usize,
        /// How many tokens are raced over two Envoys (H01).
        #[arg(long, value_name = "N", default_value_t = 500)]
        rounds: usize,
        /// How many minutes the soak (H31) and the outage (H14) last; 0 is a short one.
        #[arg(long, value_name = "N", default_value_t = 0)]
        minutes: u64,
        /// How many Envoys come back at once (H32), each of about 100 MiB.
        #[arg(long, value_name = "N", default_value_t = 2)]
        proxies: usize,
    },
    /// Give every parser what libFuzzer can think of.
    Fuzz {
        /// Minutes in all, shared by the targets.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// One of the targets in fuzz/fuzz_targets; all of them otherwise.
        #[arg(long)]
        target: Option<String>,
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
        /// Rounds, each with everything once.
        #[arg(long, value_name = "N", default_value_t = 11)]
        rounds: usize,
    },
    /// The control plane's CPU per exchange, beside the least that one can cost.
    Exchange {
        /// Write the figures to this file as well.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Rounds, each with everything once.
        #[arg(long, value_name = "N", default_value_t = 11)]
        rounds: usize,
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

fn measure(
    progress: &Progress,
    what: &str,
    json: Option<PathBuf>,
    rounds: usize,
) -> Result<(), Error> {
    let mut arguments: Vec<OsString> = vec![what.into()];
    arguments.extend(["--rounds".into(), rounds.to_string().into()]);
    if let Some(path) = json.map(absolute).transpose()? {
        arguments.extend(["--json".into(), path.into_os_string()]);
    }
    run::bench(progress, &arguments)
}

fn dispatch(command: Command) -> Result<(), Error> {
    let progress = Progress::new();
    match command {
        Command::Up { ready_file } => {
            let ready_file = ready_file.map(absolute).transpose()?;
            if let Some(path) = &ready_file {
                writable(path)?;
            }
            let mut arguments = vec!["up".into()];
            if let Some(path) = ready_file {
                arguments.extend(["--ready-file".into(), path.into_os_string()]);
            }
            run::system(&progress, &arguments)
        }
        Command::Demo => run::system(&progress, &["demo".into()]),
        Command::Bench {
            what: Bench::Edge { json, rounds },
        } => measure(&progress, "bench-edge", json, rounds),
        Command::Bench {
            what: Bench::Exchange { json, rounds },
        } => measure(&progress, "bench-exchange", json, rounds),
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
        Command::Attack {
            only,
            envoy,
            json,
            tokens,
            rounds,
            minutes,
            proxies,
        } => {
            let mut arguments: Vec<OsString> = vec!["attack".into()];
            arguments.extend(["--tokens".into(), tokens.to_string().into()]);
            arguments.extend(["--rounds".into(), rounds.to_string().into()]);
            arguments.extend(["--minutes".into(), minutes.to_string().into()]);
            arguments.extend(["--proxies".into(), proxies.to_string().into()]);
            if let Some(path) = json.map(absolute).transpose()? {
                arguments.extend(["--json".into(), path.into_os_string()]);
            }
            if !only.is_empty() {
                arguments.push("--only".into());
                arguments.extend(only.into_iter().map(OsString::from));
            }
            crash::strace(&progress)?;
            run::attack(&progress, &arguments, envoy.as_deref())
        }
        Command::Fuzz { minutes, target } => fuzz::run(&progress, minutes, target.as_deref()),
        Command::Test { fast } => test::run(&progress, fast),
        Command::Lint => test::lint(&progress),
        Command::Setup => {
            let envoy = setup::envoy::find(&progress)?;
            let built = build::everything(&progress, envoy)?;
            println!("{}", places(&built));
            Ok(())
        }
    }
}

/// Where setup has put things.
fn places(built: &build::Built) -> String {
    let envoy = built.envoy.as_deref();
    let envoy = envoy.map_or_else(|| "none".to_owned(), |path| path.display().to_string());
    format!(
        "
writ    {} (a debug build; for production: cargo build --release --bin writ, then {})
filter  {}
envoy   {envoy}",
        built.writ.display(),
        build::target_dir().join("release/writ").display(),
        built.filter_wasm.display(),
    )
}

/// Refuses a file that could not be written, before minutes go into what it
/// would tell of. Nothing is left behind.
fn writable(path: &Path) -> Result<(), Error> {
    let refused = |source| Error::File {
        action: "write the ready file",
        path: path.to_owned(),
        source,
    };
    if path.is_dir() {
        return Err(refused(std::io::ErrorKind::IsADirectory.into()));
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.try", std::process::id()));
    let probe = PathBuf::from(name);
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&probe)
        .and_then(|_| std::fs::remove_file(&probe))
        .map_err(refused)
}

/// Paths are the caller's; what runs later may work in another directory.
fn absolute(path: PathBuf) -> Result<PathBuf, Error> {
    std::path::absolute(&path).map_err(Error::file("resolve", &path))
}

#[cfg(test)]
mod tests {
    use super::writable;

    #[test]
    fn a_file_that_cannot_be_written_is_refused_and_nothing_is_left() {
        let dir = std::env::temp_dir().join(format!("writ-xtask-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let file = dir.join("file");
        assert!(writable(&file).is_ok());
        assert!(std::fs::read_dir(&dir).unwrap().next().is_none());
        assert!(writable(&dir).is_err(), "a directory");
        assert!(writable(&dir.join("none/file")).is_err(), "nowhere");
        std::fs::write(&file, "precious").unwrap();
        assert!(writable(&file.join("below")).is_err(), "below a file");
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
