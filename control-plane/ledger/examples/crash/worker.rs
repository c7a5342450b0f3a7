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
/// One of so many tokens has codes and stops beside it.
pub const EACH: u64 = 8;

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
                        let name = format!("{epoch}.{caller}.{n}");
                        let mut told = one(&ledger, &name).await;
                        if n.is_multiple_of(EACH) && told.is_ok() {
                            told = rights(&ledger, &name).await;
                        }
                        if told.is_err() {
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

/// What is known of a right, as [`code_and_stop`] was told it.
async fn rights(ledger: &Ledger, name: &str) -> Result<(), Refused> {
    for (kind, jti, outcome) in code_and_stop(ledger, name).await {
        match outcome {
            Err(Refused::Shown | Refused::ProofUsed | Refused::Stopped(_)) => {}
            outcome => tell(kind, &jti, outcome)?,
        }
    }
    Ok(())
}

/// An entry's kind, the name of its token, and what became of it.
pub type Told = (&'static str, String, Result<Committed, Refused>);

/// A code that two exchanges use at once with one proof, of which one may have a token;
/// and a token that is stopped before it is used, which then it may not be. Ends at what
/// is not acknowledged.
pub async fn code_and_stop(ledger: &Ledger, name: &str) -> Vec<Told> {
    let mut told = Vec::new();
    let code = format!("{name}.code");
    let grant = with_grant(&code);
    let Command::Issue { token: record, .. } = &grant else {
        return told;
    };
    let record = record.clone();
    let made = ledger.commit(grant).await;
    let goes_on = made.is_ok();
    told.push(("issue", code, made));
    if !goes_on {
        return told;
    }
    let race = (0..2).map(|n| {
        let (ledger, jti) = (ledger.clone(), format!("{name}.code.{n}"));
        let command = under(&record, &jti);
        tokio::spawn(async move { (jti, ledger.commit(command).await) })
    });
    for tried in race.collect::<Vec<_>>() {
        if let Ok((jti, outcome)) = tried.await {
            told.push(("issue", jti, outcome));
        }
    }
    let stopped = format!("{name}.stopped");
    let token_hash = audit::leaf_hash(stopped.as_bytes());
    let stop = Command::Stop {
        target: Target::Token(token_hash),
        by: "crash".into(),
        why: String::new(),
        until_ms: Some(now() + 30_000),
        stopper: ledger::model::Stopper::Person,
    };
    let attempt = format!("{stopped}.0");
    for (kind, command) in [
        ("issue", issue(&stopped, token_hash)),
        ("stop", stop),
        ("allow", allow(token_hash, attempt)),
    ] {
        let outcome = ledger.commit(command).await;
        let goes_on = outcome.is_ok();
        told.push((kind, stopped.clone(), outcome));
        if !goes_on {
            break;
        }
    }
    told
}

/// A code that waits for a person.
fn with_grant(jti: &str) -> Command {
    let mut command = issue(jti, audit::leaf_hash(jti.as_bytes()));
    if let Command::Issue { token, .. } = &mut command {
        token.grant = Some(GrantTerms {
            kind: GrantKind::Deferral,
            holder: None,
            scope: Vec::new(),
            depth: 0,
            uses: None,
            deferred: Some(Box::new(Deferred {
                approval: "apr_crash".into(),
                exchange: true,
                content_type: String::new(),
                content_encoding: String::new(),
            })),
        });
    }
    command
}

/// A token that is got with the code, by the proof that all use who have it.
fn under(code: &TokenRecord, jti: &str) -> Command {
    let mut command = issue(jti, audit::leaf_hash(jti.as_bytes()));
    if let Command::Issue {
        token,
        under,
        proof,
        ..
    } = &mut command
    {
        token.lineage = code.heirs();
        token.expires_ms = token.expires_ms.min(code.expires_ms);
        *under = Some(code.token_hash);
        *proof = Some(Box::new(ProofUse {
            id: audit::leaf_hash(code.jti.as_bytes()),
            by: jti.to_owned(),
            until_ms: now() + 60_000,
        }));
    }
    command
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
