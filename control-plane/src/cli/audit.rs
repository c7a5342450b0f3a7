//! `writ audit`: reads the journal's files and trusts nothing else.

use super::{FAILED, REFUSED, fail};
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
        /// The audit directory
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
        /// The audit directory
        dir: PathBuf,
        /// Start with the last N entries
        #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
        last: usize,
        /// Stop at the end instead of waiting for more
        #[arg(long)]
        no_follow: bool,
    },
}

fn parse_head(text: &str) -> Result<(u64, Hash), String> {
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
                let report = verify(&dir, head);
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
            } => tail(&dir, last, !no_follow).await,
        }
    }
}

fn say(dir: &str, report: &Report, against: bool) {
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
        Some(Problem::Unreadable) | None => {
            "unreadable: there is no log that this program can read"
        }
    };
    println!("damaged: {dir}: {what}{at}");
    println!(
        "{entries} entries before it are whole, head {}",
        report.head
    );
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
                if !print(&mut kept) || !follow {
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
