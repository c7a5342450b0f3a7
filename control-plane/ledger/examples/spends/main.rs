//! Measures durable spends: `spends MODE [OPTION VALUE]…`, one JSON object as output.
//!
//! - `closed`: callers that each spend one token after another.
//! - `floor`: the same bytes in groups of the same size, written and synced by one
//!   thread, and nothing else.
//! - `open`: arrivals at a fixed rate, whatever the answers do; latencies count
//!   from when each was due.
//! - `postgres`: callers as in `closed`, on a PostgreSQL that is started for it.
//! - `inserts`, `sqlite`: single-row inserts, each a transaction, and nothing decided.
//! - `report`: all of these in turn, as a table, and as JSON with `--json FILE`.
//! - `open-floor`: the same arrivals into a queue whose thread writes and syncs.

mod database;
mod floor;
mod load;
mod report;
#[path = "../../tests/ledger/postgres/server.rs"]
#[expect(
    clippy::unwrap_used,
    clippy::panic,
    dead_code,
    reason = "the tests' own, and as loud"
)]
mod server;

use std::{
    collections::HashMap,
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ledger::{Ledger, Options, model::Millis};
use rustix::time::{ClockId, clock_gettime};

// As `writ` itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn Error + Send + Sync>;

/// What is measured, and how much of it.
pub struct Plan {
    dir: PathBuf,
    callers: usize,
    /// To a database.
    connections: usize,
    count: usize,
    /// Bytes that an entry takes in a floor's group.
    entry: usize,
    /// Bytes of evidence beside each line.
    beside: usize,
    /// Entries in a floor's group.
    group: usize,
    /// Arrivals per second.
    rate: u64,
    seconds: u64,
    /// Whether listings follow, as in the product, on whatever core is free.
    listings: bool,
    /// Bytes of a segment of the journal.
    segment: usize,
}

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let mode = args.next().unwrap_or_else(|| "closed".into());
    let mut options = HashMap::new();
    while let Some(name) = args.next() {
        let value = args.next().ok_or(format!("{name} needs a value"))?;
        options.insert(name, value);
    }
    let number = |name: &str, default: u64| -> Result<u64, Failure> {
        Ok(options.get(name).map_or(Ok(default), |n| n.parse())?)
    };
    let size = |name: &str, default: u64| -> Result<usize, Failure> {
        Ok(usize::try_from(number(name, default)?)?)
    };
    if let Some(core) = options.get("--core") {
        stay_on(core.parse()?)?;
    }
    let plan = Plan {
        dir: options
            .get("--dir")
            .map_or_else(|| std::env::temp_dir().join("writ-spends"), PathBuf::from),
        callers: size("--callers", 256)?,
        connections: size("--connections", 32)?,
        count: size("--count", 300_000)?,
        entry: size("--entry", 1024)?,
        beside: size("--beside", 128)?,
        group: size("--group", 256)?,
        rate: number("--rate", 20_000)?,
        seconds: number("--seconds", 10)?,
        listings: number("--listings", 0)? > 0,
        segment: size("--segment", u64::try_from(audit::segment::SEGMENT_LEN)?)?,
    };
    if mode == "report" {
        return report::run(&plan.dir, options.get("--json").map(Path::new));
    }
    std::fs::create_dir_all(&plan.dir)?;
    let row = match mode.as_str() {
        "floor" => floor::closed(&plan)?,
        "open-floor" => runtime()?.block_on(floor::open(&plan))?,
        "closed" => runtime()?.block_on(load::closed(&plan))?,
        "open" => runtime()?.block_on(load::open(&plan))?,
        "postgres" => several()?.block_on(database::spends(&plan))?,
        "inserts" => several()?.block_on(database::inserts(&plan))?,
        "sqlite" => runtime()?.block_on(database::sqlite(&plan))?,
        other => {
            return Err(format!(
                "no mode {other}: closed, floor, open, open-floor, postgres, inserts, sqlite"
            )
            .into());
        }
    };
    println!("{row}");
    Ok(())
}

// One thread for the callers, one for the ledger: what one core can do.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

// A database is another process anyway: nothing here is about one core.
fn several() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?)
}

fn stay_on(core: usize) -> Result<(), Failure> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Millis::try_from(since.unwrap_or_default().as_millis()).unwrap_or(Millis::MAX)
}

/// CPU time of this process, all threads, user and system.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap_or(0),
        time.tv_nsec.try_into().unwrap_or(0),
    )
}

fn open_ledger(plan: &Plan) -> Result<Ledger, Failure> {
    let mut options = Options::new(plan.dir.join("journal"), Arc::new(now));
    options.listings = plan.listings.then(|| plan.dir.join("listings"));
    options.limits.outstanding_per_agent = usize::MAX;
    options.segment_len = plan.segment;
    Ok(Ledger::open(options)?.0)
}

/// The value below which this share of the latencies lies, in milliseconds.
fn quantile(sorted: &[Duration], share: f64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index among a few million measurements"
    )]
    let at = ((sorted.len() as f64) * share) as usize;
    let at = at.min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(f64::NAN, |d| d.as_secs_f64() * 1e3)
}

fn latencies(mut all: Vec<Duration>) -> serde_json::Value {
    all.sort_unstable();
    serde_json::json!({
        "p50_ms": quantile(&all, 0.50),
        "p99_ms": quantile(&all, 0.99),
        "p999_ms": quantile(&all, 0.999),
        "max_ms": quantile(&all, 1.0),
    })
}
