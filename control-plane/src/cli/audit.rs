//! `writ audit`: reads the journal's files and trusts nothing else.

use super::print::nobody_reads;
use super::{FAILED, REFUSED, fail};
use ::ledger::postgres::{LogReader, PostgresOptions};
use audit::chain::Hash;
use audit::reader::Reader;
use audit::verify::{Problem, Report, verify};
use clap::Subcommand;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The audit log.
#[derive(Subcommand)]
pub enum Audit {
    /// Say whether a log is whole, or where it was cut, changed or reordered
    #[command(
        after_help = "Exit codes: 0 whole, 1 damaged, 2 unreadable.\nA cut at the end shows only against a head that was kept elsewhere: keep what this prints, and give it to --head next time.\n\nExample:\n  writ audit verify /var/lib/writ/journal --head 1042:9f86d0…"
    )]
    Verify {
        /// The audit directory, or the URL of the database that holds the log
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// A remembered head, as printed by an earlier run
        #[arg(long, value_name = "SIZE:HASH", value_parser = parse_head)]
        head: Option<(u64, Hash)>,
        /// Print {"whole","entries","head","problem","index"}
        #[arg(long)]
        json: bool,
    },
    /// Print entries as they are appended, one JSON line each
    Tail {
        /// The audit directory, or the URL of the database that holds the log
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Start with the last N entries
        #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
        last: usize,
        /// Stop at the end instead of waiting for more
        #[arg(long)]
        no_follow: bool,
    },
}

pub(super) fn parse_head(text: &str) -> Result<(u64, Hash), String> {
    let wrong = || format!("`{text}` is not SIZE:HASH, the hash being 64 hexadecimal digits");
    let (size, hash) = text.split_once(':').ok_or_else(wrong)?;
    let size = size.parse().map_err(|_| wrong())?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(hash, &mut bytes).map_err(|_| wrong())?;
    Ok((size, bytes))
}

impl Audit {
    /// Verifies or prints.
    pub async fn run(self) -> ExitCode {
        match self {
            Self::Verify { dir, head, json } => {
                let report = match database(&dir) {
                    Some(Ok(options)) => match ::ledger::postgres::verify(&options, head).await {
                        Ok(report) => report,
                        Err(error) => return fail(&error.to_string()),
                    },
                    Some(Err(error)) => return fail(&error),
                    None => verify(&dir, head),
                };
                if json {
                    match serde_json::to_string(&report) {
                        Ok(text) => println!("{text}"),
                        Err(error) => return fail(&error.to_string()),
                    }
                } else {
                    say(&dir.display().to_string(), &report, head.is_some());
                }
                match (report.whole, report.problem) {
                    (true, _) => ExitCode::SUCCESS,
                    (false, Some(Problem::Unreadable)) => ExitCode::from(FAILED),
                    (false, _) => ExitCode::from(REFUSED),
                }
            }
            Self::Tail {
                dir,
                last,
                no_follow,
            } => match database(&dir) {
                Some(Ok(options)) => tail_database(&options, last, !no_follow).await,
                Some(Err(error)) => fail(&error),
                None => tail(&dir, last, !no_follow).await,
            },
        }
    }
}

pub(super) fn say(dir: &str, report: &Report, against: bool) {
    let entries = report.entries;
    if report.whole {
        println!("whole: {entries} entries");
        println!("head:  {}", report.head);
        if !against {
            println!(
                "A cut at the end shows only against a remembered head: keep this one elsewhere."
            );
        }
        return;
    }
    if matches!(report.problem, Some(Problem::Unreadable) | None) {
        eprintln!("writ: {}", unreadable(dir, report.index));
        return;
    }
    let at = report
        .index
        .map(|index| format!(" at entry {index}"))
        .unwrap_or_default();
    let what = match report.problem {
        Some(Problem::Cut) => "cut: entries that the remembered head covers are missing",
        Some(Problem::Changed) => {
            "changed: an entry, its evidence or its place in the chain is not what it was"
        }
        Some(Problem::Reordered) => {
            "reordered: an entry stands in another place than its own, or twice"
        }
        Some(Problem::Gap) => "gap: entries are missing before others",
        // Said above.
        Some(Problem::Unreadable) | None => return,
    };
    println!("damaged: {dir}: {what}{at}");
    println!(
        "{entries} entries before it are whole, head {}",
        report.head
    );
}

/// Why nothing could be judged: that is no damage.
fn unreadable(dir: &str, index: Option<u64>) -> String {
    if let Some(index) = index {
        return format!(
            "can't read `{dir}` from entry {index} on: its format is newer than this program's"
        );
    }
    let files = match std::fs::read_dir(dir) {
        Ok(files) => files,
        Err(error) => return format!("can't read `{dir}`: {error}"),
    };
    let segments = files.flatten().map(|file| file.path()).filter(|path| {
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        path.extension().is_some_and(|it| it == "seg") && stem != Some("spare")
    });
    let mut some = false;
    for path in segments {
        some = true;
        if let Err(error) = std::fs::File::open(&path) {
            return format!("can't read `{}`: {error}", path.display());
        }
    }
    if some {
        format!("can't read the journal in `{dir}`")
    } else {
        format!("there is no journal in `{dir}`")
    }
}

/// What to connect to, where the argument is a database's URL. Reading needs no
/// promise of a standby, and loopback is as good as it was for who wrote.
fn database(dir: &std::path::Path) -> Option<Result<PostgresOptions, String>> {
    let url = dir
        .to_str()
        .filter(|text| ::ledger::postgres::is_url(text))?;
    Some(super::store_url(url).map(|url| PostgresOptions {
        plaintext_loopback: true,
        ..PostgresOptions::new(url, std::sync::Arc::new(|| 0))
    }))
}

async fn tail_database(options: &PostgresOptions, last: usize, follow: bool) -> ExitCode {
    let last = u64::try_from(last).unwrap_or(u64::MAX);
    let opened = async {
        let entries = LogReader::connect(options, 0).await?.entries().await?;
        LogReader::connect(options, entries.saturating_sub(last)).await
    };
    let mut reader = match opened.await {
        Ok(reader) => reader,
        Err(error) => return fail(&error.to_string()),
    };
    loop {
        match reader.next().await {
            Ok(Some(entry)) => {
                let line = String::from_utf8_lossy(&entry.line).into_owned();
                if !print(&mut [line].into()) {
                    return ExitCode::SUCCESS;
                }
            }
            Ok(None) if follow && !nobody_reads() => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Ok(None) => return ExitCode::SUCCESS,
            Err(error) => return fail(&error.to_string()),
        }
    }
}

async fn tail(dir: &std::path::Path, last: usize, follow: bool) -> ExitCode {
    let mut reader = Reader::new(dir);
    let mut kept = std::collections::VecDeque::new();
    let mut at_end = false;
    if let Err(error) = std::fs::read_dir(dir) {
        return fail(&format!("can't read `{}`: {error}", dir.display()));
    }
    loop {
        match reader.next_group() {
            Ok(Some(entries)) => {
                for entry in entries {
                    kept.push_back(entry.text);
                    if !at_end && kept.len() > last {
                        kept.pop_front();
                    }
                }
                if at_end && !print(&mut kept) {
                    return ExitCode::SUCCESS;
                }
            }
            Ok(None) => {
                at_end = true;
                if !print(&mut kept) || !follow || nobody_reads() {
                    return ExitCode::SUCCESS;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => {
                print(&mut kept);
                return fail(&format!("{error}; `writ audit verify` says more"));
            }
        }
    }
}

/// False when nobody reads any more.
fn print(lines: &mut std::collections::VecDeque<String>) -> bool {
    let mut out = std::io::stdout().lock();
    while let Some(line) = lines.pop_front() {
        if writeln!(out, "{line}").is_err() {
            return false;
        }
    }
    out.flush().is_ok()
}
