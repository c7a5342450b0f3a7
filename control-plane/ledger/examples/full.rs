//! Checks a ledger on a disk that is really full: `full DIR`, on a small file
//! system of its own (a tmpfs of 2 MiB will do).
//!
//! Fills it up, and then expects that tokens are refused, that what takes rights
//! away is still recorded, also by ledgers that start on the full disk, and that all
//! goes on once there is space again.

use std::{
    io::Write,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ledger::{Ledger, Options, model::*};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn now() -> Millis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

fn issue(n: u64) -> Command {
    let name = format!("{n}");
    Command::Issue {
        token: TokenRecord {
            token_hash: audit::leaf_hash(name.as_bytes()),
            jti: name.clone(),
            agent: format!("spiffe://writ.example/agent/{n}"),
            user: None,
            chain: Vec::new(),
            jkt: "key".into(),
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
        evidence_id: audit::leaf_hash(&n.to_be_bytes()),
        evidence_expires_ms: now() + 300_000,
        also: Vec::new(),
        once: Vec::new(),
        proof: None,
        under: None,
        next: None,
        policy: PolicyFacts::default(),
        attachments: vec![Evidence::new("proof", &[b'x'; 400])],
    }
}

fn login(n: u64) -> Command {
    Command::Note {
        kind: "login",
        body: serde_json::json!({ "n": n }),
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let dir: PathBuf = std::env::args().nth(1).ok_or("full DIR")?.into();
    let journal = dir.join("journal");
    let mut options = Options::new(&journal, Arc::new(now));
    options.segment_len = 64 * 1024;
    options.head_copies = vec![dir.join("journal.head")];
    let (ledger, _) = Ledger::open(options.clone())?;
    for n in 0..20 {
        ledger.commit(issue(n)).await?;
    }
    let ballast = dir.join("ballast");
    let mut file = std::fs::File::create(&ballast)?;
    while file.write_all(&[0; 4096]).is_ok() {}
    ledger.shutdown().await;
    let mut ledger = ledger;
    for start in 0..4 {
        let (started, report) = Ledger::open(options.clone())?;
        ledger = started;
        let refused = ledger.commit(issue(50)).await.err();
        let (full, told) = (
            report.full && ledger.is_full(),
            ledger.commit(login(start)).await,
        );
        if !full || refused != Some(Refused::Full) || told.is_err() {
            return Err(format!("start {start}: {report:?}, {refused:?}, {told:?}").into());
        }
        if start < 3 {
            ledger.shutdown().await;
        }
    }
    println!("4 starts on the full disk: each took what takes rights away, and no more");
    let mut n = 100;
    let refused = loop {
        match ledger.commit(issue(n)).await {
            Ok(_) => n += 1,
            Err(refused) => break refused,
        }
    };
    println!("full: {} more tokens, then: {refused}", n - 100);
    if refused != Refused::Full {
        return Err("another refusal was expected".into());
    }
    for m in 0..10 {
        ledger.commit(login(m)).await?;
        if ledger.commit(issue(n)).await != Err(Refused::Full) {
            return Err("a token was issued on a full disk".into());
        }
    }
    let (entries, head) = ledger.head();
    println!("what takes rights away is recorded: {entries} entries");
    drop(file);
    std::fs::remove_file(&ballast)?;
    let mut waited = 0;
    while ledger.commit(issue(n)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        waited += 100;
        if waited > 5_000 {
            return Err("it did not go on".into());
        }
    }
    println!("space again: it went on after {waited} ms");
    ledger.shutdown().await;
    let report = audit::verify(&journal, Some((entries, head)));
    println!("verified: {report:?}");
    if report.whole {
        Ok(())
    } else {
        Err("damaged".into())
    }
}
