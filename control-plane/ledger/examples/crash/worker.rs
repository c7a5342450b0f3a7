//! The process that is killed: it commits, and says what was acknowledged.

use std::{
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ledger::{Ledger, Options, model::*};

use crate::{Failure, now};

const CALLERS: u64 = 16;
/// Small, so that going on to the next segment is among what is interrupted.
const SEGMENT: usize = 64 * 1024;
const AGENT: &str = "spiffe://writ.example/agent/crash";

/// Commits until `commits` tokens were tried, printing one line for each
/// acknowledged entry.
pub fn run(dir: &Path, commits: u64) -> Result<(), Failure> {
    let mut options = Options::new(dir, Arc::new(now));
    options.segment_len = SEGMENT;
    options.limits.outstanding_per_agent = usize::MAX;
    // What an interrupted start leaves may be no journal yet.
    options.init = true;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (ledger, report) = Ledger::open(options)?;
        let done = Arc::new(AtomicU64::new(0));
        let epoch = report.epoch;
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (ledger, done) = (ledger.clone(), Arc::clone(&done));
                tokio::spawn(async move {
                    while done.fetch_add(1, Ordering::Relaxed) < commits {
                        let n = done.load(Ordering::Relaxed);
                        if one(&ledger, &format!("{epoch}.{caller}.{n}"))
                            .await
                            .is_err()
                        {
                            break;
                        }
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await?;
        }
        ledger.shutdown().await;
        Ok(())
    })
}

/// One token, spent by three attempts at once: one may win.
async fn one(ledger: &Ledger, name: &str) -> Result<(), Refused> {
    let token_hash = audit::leaf_hash(name.as_bytes());
    tell("issue", name, ledger.commit(issue(name, token_hash)).await)?;
    let race = (0..3).map(|n| {
        let (ledger, attempt) = (ledger.clone(), format!("{name}.{n}"));
        tokio::spawn(async move { ledger.commit(allow(token_hash, attempt)).await })
    });
    for tried in race.collect::<Vec<_>>() {
        match tried.await.unwrap_or(Err(Refused::Unavailable)) {
            Err(Refused::NotOutstanding(_)) => {}
            outcome => tell("allow", name, outcome)?,
        }
    }
    Ok(())
}

fn tell(kind: &str, name: &str, outcome: Result<Committed, Refused>) -> Result<(), Refused> {
    let committed = outcome?;
    let index = committed.index.unwrap_or(u64::MAX);
    // One write for each line: what was written before a SIGKILL was said.
    let line = format!("{index} {kind} {name}\n");
    let told = std::io::stdout().write_all(line.as_bytes());
    told.map_err(|_| Refused::Unavailable)
}

fn policy() -> PolicyFacts {
    PolicyFacts {
        version: "0".repeat(64),
        determining: vec!["crash.0".into()],
    }
}

pub fn issue(name: &str, token_hash: Hash) -> Command {
    let token = TokenRecord {
        token_hash,
        jti: name.to_owned(),
        agent: AGENT.into(),
        user: None,
        chain: Vec::new(),
        jkt: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I".into(),
        x5t: None,
        action: ActionRecord {
            kind: "http_request".into(),
            method: "GET".into(),
            location: "http://127.0.0.1:8400/files/report.txt".into(),
            ..ActionRecord::default()
        },
        txn: name.to_owned(),
        issued_ms: 0,
        expires_ms: now() + 30_000,
        lineage: Vec::new(),
        grant: None,
    };
    Command::Issue {
        token,
        evidence_id: audit::leaf_hash(b"evidence"),
        evidence_expires_ms: now() + 60_000,
        also: Vec::new(),
        once: Vec::new(),
        proof: None,
        under: None,
        next: None,
        policy: policy(),
        attachments: vec![Evidence::new("proof", &[b'x'; 300])],
    }
}

pub fn allow(token_hash: Hash, attempt: String) -> Command {
    Command::Allow {
        token_hash,
        attempt,
        request: RequestFacts {
            path: "/files/report.txt".into(),
            ..RequestFacts::default()
        },
        policy: policy(),
        approval: None,
        attachments: vec![Evidence::new("token", &[b'x'; 700])],
    }
}
