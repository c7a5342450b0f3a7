//! Measures spends per second on PostgreSQL:
//! `postgres URL [CONNECTIONS] [CALLERS] [TOKENS]`.
//!
//! Tokens are issued first; then each caller spends one after the other, with a
//! token and a proof beside the line, and waits for each to be durable.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ledger::{Ledger, model::*, postgres::PostgresOptions};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn now() -> Millis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

fn issue(run: u64, n: u64, agents: u64) -> Command {
    let name = format!("{run}.{n}");
    let agent = n % agents;
    Command::Issue {
        token: TokenRecord {
            token_hash: audit::leaf_hash(name.as_bytes()),
            jti: name.clone(),
            agent: format!("spiffe://writ.example/agent/{agent}"),
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
            txn: name,
            issued_ms: 0,
            expires_ms: now() + 300_000,
            lineage: Vec::new(),
            grant: None,
        },
        evidence_id: audit::leaf_hash(&agent.to_be_bytes()),
        evidence_expires_ms: now() + 600_000,
        also: Vec::new(),
        once: Vec::new(),
        proof: None,
        under: None,
        next: None,
        policy: policy(),
        attachments: vec![Evidence::new("proof", &[b'x'; 400])],
    }
}

fn policy() -> PolicyFacts {
    PolicyFacts {
        version: "0".repeat(64),
        determining: vec!["starter.0".into()],
    }
}

fn spend(run: u64, n: u64) -> Command {
    let name = format!("{run}.{n}");
    Command::Allow {
        token_hash: audit::leaf_hash(name.as_bytes()),
        request: RequestFacts {
            path: "/files/report.txt".into(),
            request_id: name.clone(),
            ..RequestFacts::default()
        },
        attempt: name,
        policy: policy(),
        approval: None,
        attachments: vec![
            Evidence::new("token", &[b'x'; 900]),
            Evidence::new("proof", &[b'x'; 500]),
        ],
    }
}

/// Runs `command` for numbers that callers take in turn, until one is not under `end`.
async fn all(
    ledger: &Ledger,
    callers: usize,
    end: u64,
    until: Instant,
    command: Arc<dyn Fn(u64) -> Command + Send + Sync>,
) -> Result<(u64, Vec<Duration>), Failure> {
    let next = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (ledger, next, command) = (ledger.clone(), Arc::clone(&next), Arc::clone(&command));
            tokio::spawn(async move {
                let mut took = Vec::new();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= end || Instant::now() >= until {
                        return Ok::<_, Refused>(took);
                    }
                    let begun = Instant::now();
                    ledger.commit(command(n)).await?;
                    took.push(begun.elapsed());
                }
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await??);
    }
    took.sort_unstable();
    Ok((u64::try_from(took.len())?, took))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let url = args.next().ok_or("name the database: postgres://…")?;
    let connections = args.next().map_or(Ok(16), |n| n.parse())?;
    let callers: usize = args.next().map_or(Ok(1024), |n| n.parse())?;
    let tokens: u64 = args.next().map_or(Ok(200_000), |n| n.parse())?;
    let options = PostgresOptions {
        connections,
        deadline: Duration::from_secs(10),
        limits: Limits {
            outstanding_per_agent: 65_536,
            ..Limits::default()
        },
        ..PostgresOptions::new(url, Arc::new(now))
    };
    let (ledger, report) = Ledger::open_postgres(options).await?;
    let run = report.entries;
    let far = Instant::now() + Duration::from_secs(600);
    let begun = Instant::now();
    let agents = 256;
    all(
        &ledger,
        callers,
        tokens,
        far,
        Arc::new(move |n| issue(run, n, agents)),
    )
    .await?;
    let issued = begun.elapsed();
    // The sequencer catches up first.
    while ledger.head().0 < run + tokens {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let begun = Instant::now();
    let (spent, took) = all(
        &ledger,
        callers,
        tokens,
        far,
        Arc::new(move |n| spend(run, n)),
    )
    .await?;
    let elapsed = begun.elapsed();
    while ledger.head().0 < run + 2 * tokens {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let sequenced = begun.elapsed();
    let at = |per_mille: usize| took.get(took.len() * per_mille / 1000).copied();
    println!(
        "{connections} connections, {callers} callers: {:.0} issues/s, {:.0} spends/s \
         ({:.0}/s with their places in the log), p50 {:?}, p99 {:?}",
        tokens as f64 / issued.as_secs_f64(),
        spent as f64 / elapsed.as_secs_f64(),
        spent as f64 / sequenced.as_secs_f64(),
        at(500).unwrap_or_default(),
        at(990).unwrap_or_default(),
    );
    ledger.shutdown().await;
    Ok(())
}
