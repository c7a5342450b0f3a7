//! The ledger under load.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use audit::group::Header;
use ledger::{Ledger, model::*};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{Failure, Plan, cpu, latencies, now, open_ledger};

const LIFETIME_MS: Millis = 300_000;
// In a database each has a row, which its mints take turns at.
const AGENTS: usize = 256;

pub fn hash(n: usize) -> Hash {
    audit::leaf_hash(&n.to_be_bytes())
}

fn policy() -> PolicyFacts {
    PolicyFacts {
        version: "5".repeat(64),
        determining: vec!["starter.read".into()],
    }
}

fn issue(n: usize) -> Command {
    Command::Issue {
        token: TokenRecord {
            token_hash: hash(n),
            jti: format!("cap_{n:022}"),
            agent: format!("spiffe://writ.example/agent/load-{}", n % AGENTS),
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
            txn: format!("txn_{n:022}"),
            issued_ms: 0,
            expires_ms: now() + LIFETIME_MS,
            lineage: Vec::new(),
            grant: None,
        },
        evidence_id: hash(usize::MAX - n % AGENTS),
        evidence_expires_ms: now() + LIFETIME_MS,
        also: Vec::new(),
        once: Vec::new(),
        proof: None,
        under: None,
        next: None,
        policy: policy(),
        attachments: Vec::new(),
    }
}

fn allow(n: usize, beside: usize) -> Command {
    Command::Allow {
        token_hash: hash(n),
        attempt: format!("{n:032x}"),
        request: RequestFacts {
            method: "GET".into(),
            authority: "127.0.0.1:8400".into(),
            path: "/files/report.txt".into(),
            request_id: format!("{n:036}"),
            proxy: "spiffe://writ.example/proxy/envoy".into(),
            source: "127.0.0.1:40000".into(),
            question: "7".repeat(64),
            body: None,
            certificate: String::new(),
            observed: false,
        },
        policy: policy(),
        approval: None,
        attachments: vec![Evidence::new("proof", &vec![b'x'; beside])],
    }
}

/// Issues what will be spent; not measured.
async fn prepare(ledger: &Ledger, count: usize) -> Result<(), Failure> {
    let waiting: Vec<_> = (0..count.div_ceil(1_000))
        .map(|chunk| chunk * 1_000..count.min((chunk + 1) * 1_000))
        .collect();
    for chunk in waiting {
        let all = chunk.map(|n| ledger.commit(issue(n)));
        for done in futures::future::join_all(all).await {
            done?;
        }
    }
    Ok(())
}

/// Groups that were written, entries in them, and their bytes.
struct Written {
    groups: u64,
    entries: u64,
    bytes: u64,
}

/// What the journal holds from entry `from` on, by its groups' headers.
fn written(plan: &Plan, from: u64) -> Result<Written, Failure> {
    let mut all = Written {
        groups: 0,
        entries: 0,
        bytes: 0,
    };
    for (_, path) in audit::reader::segments(&plan.dir.join("journal"))? {
        let bytes = std::fs::read(path)?;
        let mut rest = bytes.as_slice();
        while let Ok(header) = Header::decode(rest) {
            if header.first >= from {
                all.groups += 1;
                all.entries += u64::from(header.count);
                all.bytes += u64::from(header.total_len);
            }
            let len = usize::try_from(header.total_len)?;
            rest = rest.get(len..).unwrap_or_default();
        }
    }
    Ok(all)
}

/// Callers that each spend one token after another.
pub async fn closed(plan: &Plan) -> Result<Value, Failure> {
    let ledger = open_ledger(plan)?;
    let from = u64::try_from(plan.count)?;
    let mut row = closed_on(plan, "closed", ledger).await?;
    describe(&mut row, &written(plan, from)?);
    Ok(row)
}

/// The same on a ledger that is open; it is shut down at the end.
pub async fn closed_on(plan: &Plan, mode: &str, ledger: Ledger) -> Result<Value, Failure> {
    let beside = plan.beside;
    prepare(&ledger, plan.count).await?;
    let next = Arc::new(AtomicUsize::new(0));
    let (begun, used) = (Instant::now(), cpu());
    let callers: Vec<_> = (0..plan.callers)
        .map(|_| {
            let (ledger, next, count) = (ledger.clone(), Arc::clone(&next), plan.count);
            tokio::spawn(async move {
                let mut waits = Vec::new();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        return Ok::<_, Refused>(waits);
                    }
                    let asked = Instant::now();
                    ledger.commit(allow(n, beside)).await?;
                    waits.push(asked.elapsed());
                }
            })
        })
        .collect();
    let mut waits = Vec::new();
    for caller in callers {
        waits.extend(caller.await??);
    }
    let (elapsed, used) = (begun.elapsed(), cpu().saturating_sub(used));
    ledger.shutdown().await;
    Ok(row(mode, plan, plan.count, elapsed, used, waits))
}

/// Arrivals at a fixed rate.
pub async fn open(plan: &Plan) -> Result<Value, Failure> {
    let ledger = open_ledger(plan)?;
    let beside = plan.beside;
    let count = usize::try_from(plan.rate * plan.seconds)?;
    prepare(&ledger, count).await?;
    let from = ledger.head().0;
    let used = cpu();
    let begun = Instant::now();
    let waits = arrivals(plan.rate, count, begun, |n| {
        let ledger = ledger.clone();
        async move { ledger.commit(allow(n, beside)).await.map(drop) }
    })
    .await?;
    let (elapsed, used) = (begun.elapsed(), cpu().saturating_sub(used));
    ledger.shutdown().await;
    let mut row = row("open", plan, count, elapsed, used, waits);
    describe(&mut row, &written(plan, from)?);
    Ok(row)
}

fn describe(row: &mut Value, written: &Written) {
    if let Some(members) = row.as_object_mut() {
        let groups = written.groups.max(1);
        members.insert("groups".into(), written.groups.into());
        members.insert("group_entries".into(), (written.entries / groups).into());
        let each = written.bytes / written.entries.max(1);
        members.insert("entry_bytes".into(), each.into());
    }
}

/// Starts `count` tasks, each when it is due, and times them from then. A task is
/// gone when it is done, as a request's would be: kept until the end, they would
/// cost more than what is measured.
pub async fn arrivals<F, E>(
    rate: u64,
    count: usize,
    begun: Instant,
    mut one: impl FnMut(usize) -> F,
) -> Result<Vec<Duration>, Failure>
where
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Into<Failure> + Send + 'static,
{
    let (done, mut results) = mpsc::unbounded_channel();
    let due = |n: usize| {
        let nanos = u64::try_from(n)
            .unwrap_or(u64::MAX)
            .saturating_mul(1_000_000_000)
            / rate;
        begun + Duration::from_nanos(nanos)
    };
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let mut n = 0;
    while n < count {
        tick.tick().await;
        while n < count && due(n) <= Instant::now() {
            let (work, due, done) = (one(n), due(n), done.clone());
            tokio::spawn(async move {
                let waited = work.await.map(|()| due.elapsed());
                // Nobody listens any more once one has failed.
                let _ = done.send(waited);
            });
            n += 1;
        }
    }
    let mut waits = Vec::with_capacity(count);
    drop(done);
    while let Some(waited) = results.recv().await {
        waits.push(waited.map_err(Into::into)?);
    }
    if waits.len() < count {
        return Err("a task was lost".into());
    }
    Ok(waits)
}

pub fn row(
    mode: &str,
    plan: &Plan,
    count: usize,
    elapsed: Duration,
    used: Duration,
    waits: Vec<Duration>,
) -> Value {
    let each =
        |d: Duration| d.as_secs_f64() * 1e6 / f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    json!({
        "mode": mode,
        "callers": plan.callers,
        "count": count,
        "per_s": 1e6 / each(elapsed),
        "cpu_us": each(used),
        "latency": latencies(waits),
    })
}
