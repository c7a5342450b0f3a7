//! Every kind of event is written straight as the line that its value makes.

use super::*;
use crate::{
    event::{Answer, ApprovalUse, Event, Restored, Subject, Superseded},
    model::{
        ActionRecord, AgentRecord, AgentState, ApprovalState, Deferred, EvidenceOf, GrantKind,
        GrantTerms, Hash, HexHash, PolicyFacts, ProofUse, RequestFacts, Scope, Stop, Target,
        TokenRecord, User,
    },
};

/// What has to be escaped, and what sorts otherwise in UTF-16.
const TEXT: &str = "\"\\\u{1}\n\u{7f}é\u{fb33}\u{1f600}";

fn user() -> User {
    User {
        issuer: format!("https://{TEXT}"),
        subject: TEXT.into(),
    }
}

fn subject(user: Option<User>) -> Subject {
    Subject {
        hash: [1; 32],
        jti: TEXT.into(),
        txn: "t".into(),
        agent: "spiffe://writ.example/a".into(),
        user,
    }
}

fn action() -> ActionRecord {
    ActionRecord {
        kind: "http_request".into(),
        method: "GET".into(),
        location: format!("https://files.example/?{TEXT}"),
        ..ActionRecord::default()
    }
}

fn policy() -> PolicyFacts {
    PolicyFacts {
        version: "5".repeat(64),
        determining: vec![TEXT.into(), "b".into()],
    }
}

fn request() -> RequestFacts {
    RequestFacts {
        path: TEXT.into(),
        ..RequestFacts::default()
    }
}

fn approval(user: Option<User>, decided: bool) -> Approval {
    Approval {
        id: "apr_1".into(),
        digest: [2; 32],
        agent: "spiffe://writ.example/a".into(),
        user,
        chain: vec![TEXT.into()],
        lineage: Vec::new(),
        action: action(),
        rules: vec!["r".into()],
        reasons: vec![TEXT.into()],
        approvers: vec!["o".into()],
        approver_sets: vec![vec!["o".into()], vec![]],
        policy_version: "5".repeat(64),
        state: ApprovalState::Pending,
        created_ms: 0,
        expires_ms: audit::canonical::LARGEST_INTEGER,
        decided_by: decided.then(|| "o".into()),
        decided_ms: decided.then_some(7),
        body: None,
    }
}

fn token(user: Option<User>) -> TokenRecord {
    TokenRecord {
        token_hash: [3; 32],
        jti: "j".into(),
        agent: "spiffe://writ.example/a".into(),
        user,
        chain: vec![],
        jkt: "k".into(),
        x5t: None,
        action: action(),
        txn: "t".into(),
        issued_ms: 0,
        expires_ms: 9,
        lineage: vec![HexHash([8; 32])],
        grant: Some(GrantTerms {
            kind: GrantKind::Delegation,
            holder: Some(TEXT.into()),
            scope: vec![Scope {
                methods: vec!["GET".into()],
                locations: vec![TEXT.into()],
            }],
            depth: 1,
            uses: Some(2),
            deferred: Some(Box::new(Deferred {
                approval: TEXT.into(),
                exchange: true,
                content_type: String::new(),
                content_encoding: String::new(),
            })),
        }),
    }
}

fn agent(full: bool) -> AgentRecord {
    let text = || if full { TEXT } else { "" }.to_owned();
    AgentRecord {
        agent: TEXT.into(),
        owner: TEXT.into(),
        purpose: text(),
        environment: text(),
        state: AgentState::Suspended,
        created_ms: 1,
        changed_ms: 2,
        changed_by: TEXT.into(),
        why: text(),
        expires_ms: full.then_some(7),
        void_ms: 0,
    }
}

fn stop(target: Target, full: bool) -> Stop {
    Stop {
        target,
        at_ms: 3,
        by: TEXT.into(),
        why: if full { TEXT } else { "" }.into(),
        until_ms: full.then_some(8),
        lift_asked: full.then(|| (TEXT.into(), 4)),
        lifted: full.then(|| (TEXT.into(), 5)),
    }
}

/// All kinds; with what may be absent, and without.
fn events(full: bool) -> Vec<Event> {
    let hash: Hash = [4; 32];
    let user = full.then(user);
    let used = ApprovalUse {
        id: "apr_1".into(),
        digest: hash,
    };
    let head = Superseded {
        log: "ab".repeat(16),
        entries: 3,
        head: hash,
    };
    let piece = EvidenceOf {
        id: hash,
        expires_ms: 2,
    };
    vec![
        Event::Epoch {
            log: "ab".repeat(16),
            version: TEXT.into(),
        },
        Event::Torn {
            segment: 0,
            offset: 512,
            bytes: 1,
            sha256: hash,
        },
        Event::Snapshot {
            entries: 1,
            sha256: hash,
            bytes: 2,
        },
        Event::Restored(Restored {
            entries: 1,
            head: hash,
            instead_of: full.then_some(head).into_iter().collect(),
        }),
        Event::Confirmed {
            restored: 4,
            by: TEXT.into(),
        },
        Event::Issue {
            token: token(user.clone()).into(),
            evidence: EvidenceOf {
                id: hash,
                expires_ms: 1,
            },
            also: full.then_some(piece).into_iter().collect(),
            once: full.then_some(piece).into_iter().collect(),
            proof: full.then(|| ProofUse {
                id: hash,
                by: TEXT.into(),
                until_ms: 1,
            }),
            under: full.then_some(HexHash(hash)),
            next: full.then(|| Box::new(token(user.clone()))),
            policy: policy(),
        },
        Event::ExchangeRefused {
            agent: TEXT.into(),
            user: user.clone(),
            reason: "policy_denied".into(),
            error: "access_denied".into(),
            request_id: full.then(|| "req_1".into()),
            action: full.then(action),
            policy: full.then(policy),
        },
        Event::Present {
            agent: TEXT.into(),
            once: piece,
            what: TEXT.into(),
        },
        Event::Discover { agent: TEXT.into() },
        Event::Allow {
            token: subject(user.clone()),
            attempt: "a".into(),
            request: request(),
            policy: policy(),
            approval: full.then_some(used),
        },
        Event::Deny {
            token: subject(user.clone()),
            attempt: "a".into(),
            reason: TEXT.into(),
            request: request(),
            policy: policy(),
        },
        Event::Hold {
            token: subject(user.clone()),
            attempt: "a".into(),
            request: request(),
            policy: policy(),
            approval: "apr_1".into(),
            opened: full.then(|| approval(user.clone(), true)),
        },
        Event::Hold {
            token: subject(user.clone()),
            attempt: "a".into(),
            request: request(),
            policy: policy(),
            approval: "apr_1".into(),
            opened: Some(approval(user.clone(), false)),
        },
        Event::Ask {
            agent: TEXT.into(),
            request_id: TEXT.into(),
            policy: policy(),
            approval: "apr_1".into(),
            opened: full.then(|| approval(user.clone(), true)),
        },
        Event::Lapse {
            token: subject(user),
            attempt: "a".into(),
            why: "timeout".into(),
        },
        Event::LapsesOverdue {
            tokens: vec![HexHash(hash); 2],
        },
        Event::Approval {
            id: "apr_1".into(),
            digest: hash,
            decision: if full {
                Answer::Approved
            } else {
                Answer::Denied
            },
            by: TEXT.into(),
            expires_ms: 5,
        },
        Event::ApprovalsExpired {
            ids: vec![TEXT.into()],
        },
        Event::ApprovalsCancelled {
            ids: vec![TEXT.into()],
        },
        Event::Agent(agent(full)),
        Event::Stop(stop(Target::Everything, false)),
        Event::Stop(stop(Target::Token(hash), full)),
        Event::Lift(stop(Target::Agent(TEXT.into()), full)),
        Event::Outcome {
            attempt: "a".into(),
            status: u16::MAX,
            not_forwarded: full,
            response_bytes: audit::canonical::LARGEST_INTEGER,
            details: TEXT.into(),
        },
    ]
}

/// How many kinds there are: a new one has to come into `events` too.
fn kind(event: &Event) -> usize {
    match event {
        Event::Epoch { .. } => 0,
        Event::Torn { .. } => 1,
        Event::Snapshot { .. } => 2,
        Event::Restored(_) => 3,
        Event::Confirmed { .. } => 4,
        Event::Issue { .. } => 5,
        Event::ExchangeRefused { .. } => 6,
        Event::Discover { .. } => 7,
        Event::Allow { .. } => 8,
        Event::Deny { .. } => 9,
        Event::Hold { .. } => 10,
        Event::Lapse { .. } => 11,
        Event::LapsesOverdue { .. } => 12,
        Event::Approval { .. } => 13,
        Event::ApprovalsExpired { .. } => 14,
        Event::Outcome { .. } => 15,
        Event::ApprovalsCancelled { .. } => 16,
        Event::Agent(_) => 17,
        Event::Stop(_) => 18,
        Event::Lift(_) => 19,
        Event::Present { .. } => 20,
        Event::Ask { .. } => 21,
    }
}

#[test]
fn every_event_is_the_line_that_its_value_makes() {
    let place = Place {
        index: 7,
        time_ms: 1_790_000_000_000,
        epoch: 3,
        prev: [0xab; 32],
    };
    let mut kinds = std::collections::BTreeSet::new();
    for event in events(true).into_iter().chain(events(false)) {
        kinds.insert(kind(&event));
        let entry = Entry::Event(Box::new(event));
        let proof = Evidence::with_salt("proof", b"p", &[1; 32]);
        let (named, body) = entry.to_parts().unwrap();
        let slow = Line {
            index: place.index,
            time_ms: place.time_ms,
            prev: place.prev,
            epoch: place.epoch,
            kind: named.clone(),
            body,
            attachments: vec![proof.reference().clone()],
        };
        let fast = encode(&place, &entry, vec![proof]).unwrap();
        assert_eq!(fast.line, slow.encode().unwrap(), "{named}");
        let line = Line::decode(&fast.line).unwrap();
        let read = Entry::from_parts(&line.kind, line.body).unwrap();
        assert_eq!(read, entry, "{named}");
    }
    assert_eq!(kinds.len(), 22);
}
