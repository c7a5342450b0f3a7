//! Real faults: a process that commits is killed, or its system calls fail, and
//! then everything that it acknowledged has to be there.
//!
//! `crash DIR [--rounds N] [--json FILE] [--simulated FILE] [--postgres N]` runs
//! cases, and adds the simulation's report to its own; `crash worker …` is the
//! process that they run. Faults at single system calls are `strace`'s. With
//! `--postgres` there are PostgreSQL's as well, so many of each kind; `--only
//! postgres` leaves out the others.

mod check;
mod postgres;
#[path = "../../tests/ledger/postgres/proxy.rs"]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    dead_code,
    reason = "the tests' own, and as loud"
)]
mod proxy;
#[path = "../../tests/ledger/postgres/server.rs"]
#[expect(
    clippy::unwrap_used,
    clippy::panic,
    dead_code,
    reason = "the tests' own, and as loud"
)]
mod server;
mod worker;

use std::{
    error::Error,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use check::{Counts, Seen};

type Failure = Box<dyn Error + Send + Sync>;

/// The commit path's system calls, and those of recovery and of going on to
/// another segment.
const CALLS: [&str; 7] = [
    "pwrite64",
    "fdatasync",
    "fsync",
    "rename",
    "openat",
    "write",
    "flock",
];
const FAULTS: [&str; 3] = ["signal=SIGKILL", "error=EIO", "error=ENOSPC"];
/// Each call is hit at its first times, then at growing distances.
const TIMES: [u32; 10] = [1, 2, 3, 4, 5, 7, 11, 19, 35, 67];
/// A worker that nothing stopped ends by itself.
const LONGEST: Duration = Duration::from_secs(30);
/// A journal is begun anew after this many cases, so that replaying stays short.
const CASES_PER_JOURNAL: u32 = 40;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let first = args
        .next()
        .ok_or("usage: crash DIR [--rounds N] [--json FILE] [--simulated FILE]")?;
    if first == "worker" {
        let dir = args.next().ok_or("worker needs a directory")?;
        let commits = args.next().ok_or("and a number")?.parse()?;
        return worker::run(Path::new(&dir), commits);
    }
    let (mut rounds, mut json, mut simulated) = (100, None, None);
    let (mut of_postgres, mut only) = (0, None);
    while let Some(name) = args.next() {
        let value = args.next().ok_or(format!("{name} needs a value"))?;
        match name.as_str() {
            "--rounds" => rounds = value.parse()?,
            "--json" => json = Some(PathBuf::from(value)),
            "--simulated" => simulated = Some(PathBuf::from(value)),
            "--postgres" => of_postgres = value.parse()?,
            "--only" => only = Some(value),
            _ => return Err(format!("no option {name}").into()),
        }
    }
    let mut cases = Cases::new(PathBuf::from(first))?;
    if only.as_deref() != Some("postgres") {
        cases.random_kills(rounds)?;
        cases.single_calls()?;
    }
    let mut counts = cases.finish()?;
    let faults = postgres::run(of_postgres, &mut counts)?;
    if faults.is_none() {
        eprintln!("\nNOT RUN: PostgreSQL's faults\n");
    }
    let mut report = counts.json();
    if let Some(members) = report.as_object_mut() {
        let json = faults.map_or(serde_json::Value::Null, |faults| faults.json());
        members.insert("postgres".into(), json);
    }
    if let (Some(path), Some(members)) = (simulated, report.as_object_mut()) {
        // What the simulation found, as it wrote it down.
        let text = std::fs::read_to_string(path)?;
        members.insert("simulation".into(), serde_json::from_str(&text)?);
    }
    println!("{report}");
    if let Some(path) = json {
        std::fs::write(path, format!("{report:#}\n"))?;
    }
    if counts.is_clean() {
        Ok(())
    } else {
        Err("something was lost, doubled, or cut without a word".into())
    }
}

struct Cases {
    home: PathBuf,
    journal: PathBuf,
    number: u32,
    on_this: u32,
    seen: Seen,
    counts: Counts,
}

impl Cases {
    fn new(home: PathBuf) -> Result<Self, Failure> {
        std::fs::create_dir_all(&home)?;
        let journal = home.join("journal-0");
        Ok(Self {
            home,
            journal,
            number: 0,
            on_this: 0,
            seen: Seen::default(),
            counts: Counts::default(),
        })
    }

    /// SIGKILL at a random moment, under load.
    fn random_kills(&mut self, rounds: u32) -> Result<(), Failure> {
        for round in 0..rounds {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("worker").arg(&self.journal).arg("1000000");
            let after = Duration::from_millis(u64::from(rand::random_range(5..400_u32)));
            self.case(&format!("SIGKILL {round}"), command, Some(after))?;
        }
        Ok(())
    }

    /// Each call of the commit path fails, or is the last, one at a time.
    fn single_calls(&mut self) -> Result<(), Failure> {
        if Command::new("strace").arg("--version").output().is_err() {
            return Err("strace is needed for faults at single system calls: install it".into());
        }
        for fault in FAULTS {
            for call in CALLS {
                for when in TIMES {
                    let mut command = Command::new("strace");
                    command
                        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
                        .arg(format!("trace={call}"))
                        .arg("-e")
                        .arg(format!("inject={call}:{fault}:when={when}"))
                        .arg(std::env::current_exe()?)
                        .arg("worker")
                        .arg(&self.journal)
                        .arg("600");
                    self.case(&format!("{fault} at {call} {when}"), command, None)?;
                }
            }
        }
        Ok(())
    }

    fn case(
        &mut self,
        what: &str,
        mut command: Command,
        kill_after: Option<Duration>,
    ) -> Result<(), Failure> {
        self.counts.cases += 1;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let acknowledged = watch(child, kill_after)?;
        self.seen.add(acknowledged);
        self.on_this += 1;
        if let Err(problem) = self.seen.check(&self.journal, &mut self.counts) {
            eprintln!("after {what} on {}: {problem}", self.journal.display());
            self.another_journal(true)?;
        } else if self.on_this >= CASES_PER_JOURNAL {
            self.another_journal(false)?;
        }
        if self.counts.cases.is_multiple_of(25) {
            eprintln!(
                "{} cases, {} entries acknowledged",
                self.counts.cases, self.counts.acknowledged
            );
        }
        Ok(())
    }

    fn another_journal(&mut self, keep: bool) -> Result<(), Failure> {
        if !keep {
            std::fs::remove_dir_all(&self.journal)?;
        }
        self.number += 1;
        self.journal = self.home.join(format!("journal-{}", self.number));
        self.on_this = 0;
        self.seen = Seen::default();
        Ok(())
    }

    fn finish(self) -> Result<Counts, Failure> {
        if self.counts.is_clean() && self.journal.exists() {
            std::fs::remove_dir_all(&self.journal)?;
        }
        Ok(self.counts)
    }
}

/// Collects what a worker acknowledges until it ends, or is killed.
fn watch(mut child: Child, kill_after: Option<Duration>) -> Result<Vec<check::Ack>, Failure> {
    let output = child.stdout.take().ok_or("the worker has no output")?;
    let reader = std::thread::spawn(move || {
        BufReader::new(output)
            .lines()
            .map_while(Result::ok)
            .filter_map(|line| check::Ack::parse(&line))
            .collect::<Vec<_>>()
    });
    let deadline = SystemTime::now() + kill_after.unwrap_or(LONGEST);
    while child.try_wait()?.is_none() {
        if SystemTime::now() >= deadline {
            // SIGKILL. Under strace the worker goes with its tracer.
            child.kill()?;
            child.wait()?;
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    reader.join().map_err(|_| "the reader panicked".into())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
