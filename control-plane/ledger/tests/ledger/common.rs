//! What the ledger's tests share.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ledger::{Ledger, Options, model::*};

pub const START: Millis = 1_790_000_000_000;
pub const AGENT: &str = "spiffe://writ.example/agent/demo";
pub const SEGMENT: usize = 64 * 1024;

/// Less than a token lives.
pub const PROVEN_MS: Millis = 20_000;

/// The command with a proof that is used by this exchange, for a while.
pub fn proven(mut command: Command, id: Hash, by: &str) -> Command {
    if let Command::Issue { proof, .. } = &mut command {
        *proof = Some(Box::new(ProofUse {
            id,
            by: by.to_owned(),
            until_ms: START + PROVEN_MS,
        }));
    }
    command
}

/// A clock that tests set.
#[derive(Clone)]
pub struct TestClock(Arc<AtomicU64>);

impl TestClock {
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(START)))
    }

    pub fn set(&self, ms: Millis) {
        self.0.store(ms, Ordering::SeqCst);
    }

    pub fn options(&self, dir: &Path) -> Options {
        let time = Arc::clone(&self.0);
        Options {
            segment_len: SEGMENT,
            on_fatal: Arc::new(|what| eprintln!("fatal: {what}")),
            ..Options::new(dir, Arc::new(move || time.load(Ordering::SeqCst)))
        }
    }

    pub fn open(&self, dir: &Path) -> Ledger {
        Ledger::open(self.options(dir)).unwrap().0
    }
}

pub fn action() -> ActionRecord {
    ActionRecord {
        kind: "http_request".into(),
        method: "GET".into(),
        location: "http://127.0.0.1:8400/files/report.txt".into(),
        ..ActionRecord::default()
    }
}

pub fn hash(name: &str) -> Hash {
    audit::leaf_hash(name.as_bytes())
}

pub fn token(name: &str) -> TokenRecord {
    TokenRecord {
        token_hash: hash(name),
        jti: format!("jti-{name}"),
        agent: AGENT.into(),
        user: None,
        chain: vec![],
        jkt: "key".into(),
        x5t: None,
        action: action(),
        txn: "task".into(),
        issued_ms: 0,
        expires_ms: START + 30_000,
        lineage: Vec::new(),
        grant: None,
    }
}

pub fn issue(token: TokenRecord) -> Command {
    Command::Issue {
        token,
        evidence_id: [3; 32],
        evidence_expires_ms: START + 3_600_000,
        also: Vec::new(),
        once: Vec::new(),
        proof: None,
        under: None,
        next: None,
        policy: policy(),
        attachments: vec![Evidence::new("proof", b"e.x.change")],
    }
}

pub fn policy() -> PolicyFacts {
    PolicyFacts {
        version: "v1".into(),
        determining: vec!["allow-files".into()],
    }
}

pub fn request() -> RequestFacts {
    RequestFacts {
        method: "GET".into(),
        authority: "127.0.0.1:8400".into(),
        path: "/files/report.txt".into(),
        request_id: "req".into(),
        proxy: "spiffe://writ.example/proxy".into(),
        source: "127.0.0.1:50000".into(),
        question: "00".repeat(32),
        body: None,
        certificate: String::new(),
        observed: false,
    }
}

pub fn evidence() -> Vec<Evidence> {
    ["token", "proof"]
        .map(|name| Evidence::new(name, format!("{name}.of.it").as_bytes()))
        .to_vec()
}

pub fn allow(name: &str, attempt: &str, approval: Option<(&str, Hash)>) -> Command {
    Command::Allow {
        token_hash: hash(name),
        attempt: attempt.into(),
        request: request(),
        policy: policy(),
        approval: approval.map(|(id, digest)| (id.to_owned(), digest)),
        attachments: evidence(),
    }
}

pub fn deny(name: &str, attempt: &str) -> Command {
    Command::Deny {
        token_hash: hash(name),
        attempt: attempt.into(),
        reason: "policy_denied".into(),
        request: request(),
        policy: policy(),
        attachments: evidence(),
    }
}

pub fn approval(id: &str, digest: Hash) -> Approval {
    Approval {
        id: id.into(),
        digest,
        agent: AGENT.into(),
        user: None,
        chain: vec![],
        lineage: Vec::new(),
        action: action(),
        rules: vec!["ask".into()],
        reasons: vec!["payments need a human".into()],
        approvers: vec!["ops".into(), "board".into()],
        approver_sets: vec![vec!["ops".into(), "board".into()]],
        policy_version: "v1".into(),
        state: ApprovalState::Pending,
        created_ms: START,
        expires_ms: START + 900_000,
        decided_by: None,
        decided_ms: None,
        body: None,
    }
}

pub fn hold(name: &str, attempt: &str, approval: Approval) -> Command {
    Command::Hold {
        token_hash: hash(name),
        attempt: attempt.into(),
        request: request(),
        policy: policy(),
        approval,
        attachments: evidence(),
    }
}

pub fn lapse(name: &str, attempt: &str) -> Command {
    Command::Lapse {
        token_hash: hash(name),
        attempt: attempt.into(),
        why: "timeout",
    }
}

pub fn answer(id: &str, digest: Hash, approve: bool) -> Command {
    Command::DecideApproval {
        id: id.into(),
        digest,
        approve,
        by: "alice".into(),
        usable_ms: 600_000,
    }
}

pub fn outcome(attempt: &str, status: u16) -> Command {
    Command::Outcome {
        attempt: attempt.into(),
        status,
        not_forwarded: false,
        response_bytes: 5,
        details: "via_upstream".into(),
    }
}

pub fn note(kind: &'static str, n: usize) -> Command {
    Command::Note {
        kind,
        body: serde_json::json!({ "n": n }),
    }
}

/// Copies a journal's files, but not its lock.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "lock" {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Tests read the journal as an auditor would.
pub fn lines(dir: &Path) -> Vec<audit::reader::Entry> {
    let mut reader = audit::reader::Reader::new(dir);
    let mut all = Vec::new();
    while let Some(entries) = reader.next_group().unwrap() {
        all.extend(entries);
    }
    all
}
