//! Measures how long it takes until a journal decides: `opening DIR [rebuild | N]`.
//!
//! Prints how long opening took, what it read, how long the first commit after
//! it took, and the memory that the process has had at most. Ends without a
//! shutdown, as SIGKILL would, unless it rebuilt; with N, after so many more
//! entries of about 1 KiB.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use ledger::{Ledger, Options, model::*};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn now() -> Millis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

fn main() -> Result<(), Failure> {
    let begun = Instant::now();
    let mut args = std::env::args().skip(1);
    let dir: PathBuf = args.next().ok_or("opening DIR [rebuild]")?.into();
    let what = args.next();
    let rebuild = what.as_deref() == Some("rebuild");
    let more: usize = what.and_then(|n| n.parse().ok()).unwrap_or_default();
    let options = Options {
        rebuild,
        ..Options::new(dir, Arc::new(now))
    };
    let (ledger, report) = Ledger::open(options)?;
    let opened = begun.elapsed();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let note = Command::Note {
        kind: "config",
        body: serde_json::json!({}),
    };
    runtime.block_on(ledger.commit(note))?;
    println!(
        "open in {opened:?}, decided in {:?}: {} entries, {} replayed, from snapshot {:?}, {} approvals",
        begun.elapsed(),
        report.entries,
        report.replayed,
        report.snapshot,
        ledger.approvals().len(),
    );
    let status = std::fs::read_to_string("/proc/self/status")?;
    for line in status.lines().filter(|line| line.starts_with("VmHWM")) {
        println!("{line}");
    }
    let left = (0..more).collect::<Vec<_>>();
    for some in left.chunks(1024) {
        let notes = some.iter().map(|n| {
            let ledger = ledger.clone();
            let body = serde_json::json!({ "n": n, "text": "x".repeat(800) });
            let kind = "config";
            runtime.spawn(async move { ledger.commit(Command::Note { kind, body }).await })
        });
        for note in notes.collect::<Vec<_>>() {
            runtime.block_on(note)??;
        }
    }
    if rebuild {
        runtime.block_on(ledger.shutdown());
    }
    std::process::exit(0);
}
