//! `writ ledger`: what an operator does with the journal while `writ serve` does
//! not run, and the confirmation of a restore while it does.

use super::approvals::{Issuer, with_session};
use super::audit::{parse_head, say};
use super::{FAILED, REFUSED, fail, plain, refuse};
use crate::serve::advice;
use audit::Problem;
use audit::chain::Hash;
use clap::{Args, Subcommand};
use ledger::tools::{self, Inspection, ToolError};
use ledger::{OpenReport, Options};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// The ledger's journal.
#[derive(Subcommand)]
pub enum Ledger {
    /// Say what is in a journal's directory, and whether it would open
    Inspect(Look),
    /// Say whether a journal is whole, and its snapshots are what its entries make
    #[command(after_help = "Exit codes: 0 whole, 1 damaged, 2 unreadable.")]
    Verify(Verify),
    /// Throw snapshots and listings away and build them anew from the journal
    Rebuild(Rebuild),
    /// Put a backup in place: approvals end, agents are suspended until `confirm`
    #[command(
        after_help = "With FROM and DIR the same, what is there already is taken as the backup.\n\nExample:\n  writ ledger restore /backup/journal --dir /var/lib/writ/journal"
    )]
    Restore(Restore),
    /// Begin a journal where there is none, whatever else is there
    Init(Init),
    /// Let agents act again after a restore, with a human's session
    Confirm(Confirm),
}

/// Which journal.
#[derive(Args)]
pub struct Place {
    /// The journal's head that is kept elsewhere (ledger.head_copy)
    #[arg(long, value_name = "FILE")]
    head_copy: Option<PathBuf>,
}

/// Look.
#[derive(Args)]
pub struct Look {
    /// The journal's directory
    dir: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Verify.
#[derive(Args)]
pub struct Verify {
    /// The journal's directory
    dir: PathBuf,
    /// A remembered head, as printed by an earlier run
    #[arg(long, value_name = "SIZE:HASH", value_parser = parse_head)]
    head: Option<(u64, Hash)>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Rebuild.
#[derive(Args)]
pub struct Rebuild {
    /// The journal's directory
    dir: PathBuf,
    #[command(flatten)]
    place: Place,
    /// The listings; the directory `listings` beside the journal's
    #[arg(long, value_name = "DIR")]
    listings: Option<PathBuf>,
}

/// Restore.
#[derive(Args)]
pub struct Restore {
    /// The backup: a journal's directory
    from: PathBuf,
    /// Where the journal is to be
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    place: Place,
}

/// Begin.
#[derive(Args)]
pub struct Init {
    /// The journal's directory
    dir: PathBuf,
    #[command(flatten)]
    place: Place,
}

/// Confirm.
#[derive(Args)]
pub struct Confirm {
    #[command(flatten)]
    issuer: Issuer,
    /// The restore that you looked at; without it, what is shown now is confirmed
    #[arg(long, value_name = "INDEX")]
    restored: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Ledger {
    /// Does it.
    pub async fn run(self) -> ExitCode {
        match self {
            Self::Inspect(look) => look.run(),
            Self::Verify(verify) => verify.run(),
            Self::Rebuild(rebuild) => {
                let mut options = options(rebuild.dir.clone(), rebuild.place);
                let beside = || Some(rebuild.dir.parent()?.join("listings"));
                options.listings = rebuild.listings.or_else(beside);
                options.progress = Some(Arc::new(progress));
                done(&rebuild.dir, "rebuilt", tools::rebuild(options).await)
            }
            Self::Restore(restore) => {
                let mut options = options(restore.dir.clone(), restore.place);
                options.progress = Some(Arc::new(progress));
                let report = tools::restore(&restore.from, options).await;
                done(&restore.dir, "restored", report)
            }
            Self::Init(init) => {
                let options = options(init.dir.clone(), init.place);
                done(&init.dir, "begun", tools::init(options).await)
            }
            Self::Confirm(confirm) => confirm.run().await,
        }
    }
}

/// The copy beside the journal is always one of them, as `writ serve` has it.
fn options(dir: PathBuf, place: Place) -> Options {
    let mut options = Options::new(&dir, crate::state::system_clock());
    options.head_copies = vec![advice::beside(&dir)];
    options.head_copies.extend(place.head_copy);
    options
}

/// A bar on a terminal, nothing elsewhere.
fn progress(done: usize, all: usize) {
    const WIDTH: usize = 40;
    let mut out = std::io::stderr();
    if !out.is_terminal() {
        return;
    }
    let full = done.saturating_mul(WIDTH).checked_div(all).unwrap_or(WIDTH);
    let bar = "#".repeat(full) + &" ".repeat(WIDTH.saturating_sub(full));
    let end = if done == all { "\n" } else { "" };
    // Nobody has to see it.
    let _ = write!(out, "\r[{bar}] {done}/{all} segments{end}");
    let _ = out.flush();
}

fn done(dir: &std::path::Path, what: &str, report: Result<OpenReport, ToolError>) -> ExitCode {
    match report {
        Ok(report) => {
            println!(
                "{what}: {} entries, head {}:{}",
                report.entries,
                report.entries,
                hex::encode(report.head)
            );
            if report.suspended.is_some() {
                println!(
                    "Agents are suspended: start `writ serve`, look, and run `writ ledger confirm`."
                );
            }
            ExitCode::SUCCESS
        }
        Err(ToolError::Open(error)) => fail(&format!("{error}\n{}", advice::of(dir, &error))),
        Err(error @ (ToolError::Occupied(_) | ToolError::Backup { .. })) => {
            refuse(&error.to_string())
        }
        Err(error) => fail(&error.to_string()),
    }
}

impl Look {
    fn run(self) -> ExitCode {
        let mut options = options(self.dir.clone(), self.place);
        options.progress = Some(Arc::new(progress));
        let found = match tools::inspect(&options) {
            Ok(found) => found,
            Err(error) => return fail(&error.to_string()),
        };
        if self.json {
            match serde_json::to_string(&found) {
                Ok(text) => println!("{text}"),
                Err(error) => return fail(&error.to_string()),
            }
        } else {
            show(&found);
        }
        match found.problem {
            Some(_) => ExitCode::from(REFUSED),
            None => ExitCode::SUCCESS,
        }
    }
}

fn show(found: &Inspection) {
    println!("log        {}", found.log);
    println!("head       {}", found.head);
    println!("starts     {}", found.epochs);
    println!("segments   {}, {} bytes", found.segments, found.bytes);
    if let Some(bytes) = found.torn_bytes {
        println!("torn       {bytes} bytes behind the last whole group: a start cuts them");
    }
    for snapshot in &found.snapshots {
        let what = match (&snapshot.problem, snapshot.used) {
            (Some(problem), _) => format!("not believed: {problem}"),
            (None, true) => "a start goes on from here".into(),
            (None, false) => "not needed".into(),
        };
        println!("snapshot   {} entries, {what}", snapshot.entries);
    }
    for kept in &found.kept {
        let what = kept.problem.as_deref().unwrap_or("the journal has it");
        println!(
            "kept head  {} in {}: {what}",
            kept.head,
            kept.path.display()
        );
    }
    if let Some(waiting) = &found.suspended {
        println!(
            "suspended  since entry {}: {} entries were restored",
            waiting.index, waiting.entries
        );
    }
    if let Some(pid) = found.in_use_by {
        println!("in use by  process {pid}");
    }
    if let Some(problem) = &found.problem {
        println!("problem    {problem}");
    }
}

impl Verify {
    fn run(self) -> ExitCode {
        let mut options = Options::new(&self.dir, crate::state::system_clock());
        options.progress = Some(Arc::new(progress));
        let found = tools::verify(&options, self.head);
        if self.json {
            match serde_json::to_string(&found) {
                Ok(text) => println!("{text}"),
                Err(error) => return fail(&error.to_string()),
            }
        } else {
            say(
                &self.dir.display().to_string(),
                &found.report,
                self.head.is_some(),
            );
            for snapshot in &found.snapshots {
                let what = match (&snapshot.problem, snapshot.proven) {
                    (Some(problem), _) => format!("damaged: {problem}"),
                    (None, true) => "as its entries make it".into(),
                    (None, false) => "has no entry, so nobody believes it".into(),
                };
                println!("snapshot of {} entries: {what}", snapshot.entries);
            }
        }
        match found.report.problem {
            Some(Problem::Unreadable) => ExitCode::from(FAILED),
            _ if found.is_sound() => ExitCode::SUCCESS,
            _ => ExitCode::from(REFUSED),
        }
    }
}

impl Confirm {
    async fn run(self) -> ExitCode {
        match self.confirm().await {
            Ok(Ok(value)) => {
                if self.json {
                    println!("{value}");
                } else {
                    println!("confirmed: agents may act again");
                }
                ExitCode::SUCCESS
            }
            Ok(Err(problem)) => refuse(&problem),
            Err(error) => fail(&error),
        }
    }

    async fn confirm(&self) -> Result<Result<Value, String>, String> {
        let issuer = &self.issuer.issuer;
        let detail = |problem: &Value| {
            let detail = problem.get("detail").and_then(Value::as_str);
            plain(detail.unwrap_or("refused"))
        };
        let restored = match self.restored {
            Some(restored) => restored,
            None => {
                let path = "/api/v1/ledger";
                let (status, shown) =
                    with_session(issuer, reqwest::Method::GET, path, None).await?;
                if !status.is_success() {
                    return Ok(Err(detail(&shown)));
                }
                let number = |name: &str| {
                    shown
                        .pointer(&format!("/suspended/{name}"))
                        .and_then(Value::as_u64)
                };
                let (Some(restored), Some(entries)) = (number("restored"), number("entries"))
                else {
                    return Ok(Err("nothing waits to be confirmed".into()));
                };
                eprintln!(
                    "confirming the restore of {entries} entries, which entry {restored} records"
                );
                restored
            }
        };
        let (status, value) = with_session(
            issuer,
            reqwest::Method::POST,
            "/api/v1/ledger/confirm",
            Some(json!({ "restored": restored })),
        )
        .await?;
        Ok(if status.is_success() {
            Ok(value)
        } else {
            Err(detail(&value))
        })
    }
}
