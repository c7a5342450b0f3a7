//! Measures commits per second: `commits [DIR] [CALLERS] [SECONDS]`.
//!
//! Each caller issues a token and spends it, with a token and a proof as
//! attachments, and waits for both to be durable.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ledger::{Ledger, Options, model::*};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn now() -> Millis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

async fn one(ledger: &Ledger, caller: usize, n: u64) -> Result<(), Refused> {
    let name = format!("{caller}.{n}");
    let token_hash = audit::leaf_hash(name.as_bytes());
    let agent = format!("spiffe://writ.example/agent/{caller}");
    let location = "http://127.0.0.1:8400/files/report.txt".to_owned();
    let token = TokenRecord {
        token_hash,
        jti: name.clone(),
        agent,
        user: None,
        chain: Vec::new(),
        jkt: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I".into(),
        action: ActionRecord {
            kind: "http_request".into(),
            method: "GET".into(),
            location,
        },
        txn: name.clone(),
        expires_ms: now() + 30_000,
    };
    let evidence = |name, len| Evidence {
        name,
        bytes: vec![b'x'; len],
    };
    let policy = PolicyFacts {
        version: "0".repeat(64),
        determining: vec!["starter.0".into()],
    };
    let issue = Command::Issue {
        token,
        evidence_id: audit::leaf_hash(&caller.to_be_bytes()),
        evidence_expires_ms: now() + 60_000,
        policy: policy.clone(),
        attachments: vec![evidence("proof", 400)],
    };
    ledger.commit(issue).await?;
    let request = RequestFacts {
        path: "/files/report.txt".into(),
        request_id: name.clone(),
        ..RequestFacts::default()
    };
    let attachments = vec![evidence("token", 900), evidence("proof", 500)];
    let allow = Command::Allow {
        token_hash,
        attempt: name,
        request,
        policy,
        approval: None,
        attachments,
    };
    ledger.commit(allow).await.map(|_| ())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let home: PathBuf = args
        .next()
        .map_or_else(|| std::env::temp_dir().join("writ-commits"), PathBuf::from);
    let callers: usize = args.next().map_or(Ok(256), |n| n.parse())?;
    let seconds: u64 = args.next().map_or(Ok(5), |n| n.parse())?;
    let options = Options {
        listings: Some(home.join("listings")),
        ..Options::new(home.join("journal"), Arc::new(now))
    };
    let opened = Instant::now();
    let (ledger, report) = Ledger::open(options)?;
    println!(
        "opened in {:?}: {} entries replayed",
        opened.elapsed(),
        report.replayed
    );
    let until = Instant::now() + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let mut slowest = Duration::ZERO;
                let mut done = 0;
                while Instant::now() < until {
                    let begun = Instant::now();
                    one(&ledger, caller, done).await?;
                    slowest = slowest.max(begun.elapsed() / 2);
                    done += 1;
                }
                Ok::<_, Refused>((done, slowest))
            })
        })
        .collect();
    let (mut pairs, mut slowest) = (0, Duration::ZERO);
    for task in tasks {
        let (done, slow) = task.await??;
        pairs += done;
        slowest = slowest.max(slow);
    }
    println!(
        "{callers} callers: {} commits per second, slowest {slowest:?}",
        pairs * 2 / seconds
    );
    ledger.shutdown().await;
    Ok(())
}
