//! Writes a large journal quickly: `fill DIR [ENTRIES] [ENTRY_BYTES]`.
//!
//! The entries are issues and allows of a little over `ENTRY_BYTES` with what
//! stands beside them, in groups as a busy ledger has them; one in a thousand
//! opens an approval. There are no snapshots in it: the first start after it
//! replays all, and later ones go on from the snapshot that it took.

use std::{fs::File, io::Write, path::PathBuf};

use audit::{
    AttachmentRef, Hash, Line, SALT_LEN,
    group::{BLOCK, Builder, Header},
    leaf_hash, segment,
};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const START_MS: u64 = 1_790_000_000_000;
/// Lines of one group.
const GROUP_LINES: u32 = 200;

struct Filler {
    dir: PathBuf,
    log: [u8; 16],
    file: Vec<u8>,
    segment: u64,
    group: u64,
    index: u64,
    head: Hash,
    epoch: u64,
    evidence: Vec<u8>,
}

impl Filler {
    fn line(&mut self, builder: &mut Builder, kind: &str, body: Value) -> Result<(), Failure> {
        let salt = [7; SALT_LEN];
        let salted = [salt.as_slice(), &self.evidence].concat();
        let beside = !matches!(kind, "epoch" | "outcome");
        let reference = AttachmentRef::new("proof", &salt, &self.evidence);
        let line = Line {
            index: self.index,
            time_ms: START_MS + self.index / 100,
            prev: self.head,
            epoch: self.epoch,
            kind: kind.to_owned(),
            body,
            attachments: beside.then_some(reference).into_iter().collect(),
        };
        let bytes = line.encode()?;
        builder.push(&bytes, beside.then_some(salted.as_slice()));
        self.head = leaf_hash(&bytes);
        self.index += 1;
        Ok(())
    }

    fn finish(&mut self, builder: Builder, first: u64) -> Result<(), Failure> {
        if self.file.len() + builder.len_with(0) > segment::SEGMENT_LEN {
            self.write()?;
            self.segment += 1;
        }
        let header = Header {
            log: self.log,
            segment: self.segment,
            group: self.group,
            first,
            durable: first,
            count: 0,
            lines_len: 0,
            total_len: 0,
            head: [0; 32],
        };
        let (_, bytes) = builder.finish(header)?;
        debug_assert!(bytes.len().is_multiple_of(BLOCK));
        self.file.extend_from_slice(&bytes);
        self.group += 1;
        Ok(())
    }

    fn write(&mut self) -> Result<(), Failure> {
        self.file.resize(segment::SEGMENT_LEN, 0);
        let path = self.dir.join(segment::file_name(self.segment));
        let mut file = File::create(path)?;
        file.write_all(&self.file)?;
        self.file.clear();
        Ok(())
    }
}

fn body(n: u64) -> (&'static str, Value) {
    let name = format!("{:08}.{n:012}", n % 256);
    let hash = hex::encode(leaf_hash(name.as_bytes()));
    let agent = format!("spiffe://writ.example/agent/{}", n % 256);
    let action = json!({"type": "http_request", "method": "GET", "location": "http://127.0.0.1:8400/files/report.txt"});
    let policy = json!({"version": "0".repeat(64), "determining": ["starter.0"]});
    let subject = json!({"hash": hash, "jti": name, "txn": name, "agent": agent});
    let request = json!({"method": "GET", "authority": "127.0.0.1:8400", "path": "/files/report.txt", "request_id": name, "proxy": "spiffe://writ.example/proxy", "source": "127.0.0.1:50000", "question": hash});
    if n % 1000 == 999 {
        let id = format!("apr_{n:022}");
        let opened = json!({"id": id, "digest": hash, "agent": agent, "chain": [], "action": action, "rules": ["ask"], "reasons": ["payments need a human"], "approvers": ["operator"], "approver_sets": [["operator"]], "policy_version": "v1", "state": "pending", "created_ms": START_MS, "expires_ms": START_MS + 900_000});
        let hold = json!({"token": subject, "attempt": name, "request": request, "policy": policy, "approval": id, "opened": opened});
        return ("hold", hold);
    }
    if n.is_multiple_of(1000) && n > 0 {
        let ids = [format!("apr_{:022}", n - 1)];
        return ("approvals_expired", json!({ "ids": ids }));
    }
    match n % 2 {
        0 => {
            let token = json!({"token_hash": hash, "jti": name, "agent": agent, "chain": [], "jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I", "action": action, "txn": name, "expires_ms": START_MS + 30_000});
            let evidence = json!({"id": hash, "expires_ms": START_MS + 60_000});
            (
                "issue",
                json!({"token": token, "evidence": evidence, "policy": policy}),
            )
        }
        _ => (
            "allow",
            json!({"token": subject, "attempt": name, "request": request, "policy": policy}),
        ),
    }
}

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let dir: PathBuf = args
        .next()
        .ok_or("fill DIR [ENTRIES] [ENTRY_BYTES]")?
        .into();
    let entries: u64 = args.next().map_or(Ok(1_000_000), |n| n.parse())?;
    let bytes: usize = args.next().map_or(Ok(1024), |n| n.parse())?;
    std::fs::create_dir_all(&dir)?;
    let log = [0xf1; 16];
    let mut filler = Filler {
        dir,
        log,
        file: Vec::new(),
        segment: 0,
        group: 0,
        index: 0,
        head: [0; 32],
        epoch: 1,
        // A line of these is about 700 bytes long.
        evidence: vec![b'x'; bytes.saturating_sub(700)],
    };
    let mut builder = Builder::default();
    let begun = json!({"log": hex::encode(log), "version": "0.1.0"});
    filler.line(&mut builder, "epoch", begun)?;
    let mut first = 0;
    for n in 1..entries {
        let (kind, body) = body(n);
        filler.line(&mut builder, kind, body)?;
        if builder.count() >= GROUP_LINES {
            filler.finish(std::mem::take(&mut builder), first)?;
            first = filler.index;
        }
    }
    if builder.count() > 0 {
        filler.finish(builder, first)?;
    }
    filler.write()?;
    println!(
        "{entries} entries in {} segments, head {}:{}",
        filler.segment + 1,
        filler.index,
        hex::encode(filler.head)
    );
    Ok(())
}
