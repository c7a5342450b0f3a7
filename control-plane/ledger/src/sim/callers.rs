//! Callers: what they know, and what they ask for next, rightly or wrongly.

use crate::{
    model::{
        ActionRecord, AgentChange, AgentState, Approval, ApprovalState, Command, Committed,
        Evidence, EvidenceOf, Hash, Millis, PolicyFacts, ProofUse, RESERVED_NOTE_KINDS,
        RequestFacts, Stopper, Target, TokenRecord,
    },
    sim::{
        asking as grants,
        history::Brief,
        kinds::{Kind, Turns},
        rng::Rng,
        whom,
    },
};

pub(super) const AGENTS: [&str; 2] = [
    "spiffe://sim.example/agent/a",
    "spiffe://sim.example/agent/b",
];
const RULES: [&str; 2] = ["ask", "ask-twice"];
/// Tokens, approvals and attempts that callers remember.
const REMEMBERED: usize = 8;

#[derive(Clone)]
struct Token {
    hash: Hash,
    expires_ms: Millis,
    epoch: u64,
    used_by: Option<String>,
    /// The grant that it was got with.
    under: Option<Hash>,
}

/// What the callers know between them.
pub(crate) struct Callers {
    rng: Rng,
    names: u64,
    tokens: Vec<Token>,
    approvals: Vec<(String, Hash)>,
    attempts: Vec<String>,
    /// The last command of each kind that was asked for, to be asked again.
    again: Vec<Command>,
    stopped: Vec<Target>,
    /// Grants, as their callers know them, with the epoch that they are of.
    grants: Vec<(u64, TokenRecord)>,
    /// What is asked for before anything else.
    first: Vec<Command>,
    /// What its kind of world is about.
    turns: Turns,
}

fn hash(name: &str) -> Hash {
    audit::leaf_hash(name.as_bytes())
}

fn owned(agent: &str, owner: String, state: AgentState, by: String) -> Command {
    Command::PutAgent {
        agent: agent.into(),
        change: AgentChange {
            owner: Some(owner),
            state: Some(state),
            ..AgentChange::default()
        },
        by,
    }
}

/// What its line must be about.
pub(crate) fn brief(command: &Command) -> Brief {
    let plain = |kind: &str| Brief {
        kind: kind.to_owned(),
        ..Brief::default()
    };
    let about = |kind: &str, token: &Hash, attempt: Option<&String>| Brief {
        token: Some(hex::encode(token)),
        attempt: attempt.cloned(),
        ..plain(kind)
    };
    match command {
        Command::Issue { token, .. } => about("issue", &token.token_hash, None),
        Command::Allow {
            token_hash,
            attempt,
            ..
        } => about("allow", token_hash, Some(attempt)),
        Command::Deny {
            token_hash,
            attempt,
            ..
        } => about("deny", token_hash, Some(attempt)),
        Command::Hold {
            token_hash,
            attempt,
            ..
        } => about("hold", token_hash, Some(attempt)),
        Command::Ask { .. } => plain("ask"),
        Command::Lapse {
            token_hash,
            attempt,
            ..
        } => about("lapse", token_hash, Some(attempt)),
        Command::LapseOverdue { .. } => plain("lapses_overdue"),
        Command::DecideApproval { .. } => plain("approval"),
        Command::ExpireApprovals => plain("approvals_expired"),
        Command::Outcome { attempt, .. } => Brief {
            attempt: Some(attempt.clone()),
            ..plain("outcome")
        },
        Command::ExchangeRefused { .. } => plain("exchange_refused"),
        Command::PutAgent { .. } => plain("agent"),
        Command::Stop { .. } => plain("stop"),
        Command::Lift { .. } => plain("lift"),
        Command::CancelApprovals => plain("approvals_cancelled"),
        Command::Discover { .. } => plain("discover"),
        Command::Present { .. } => plain("present"),
        Command::Note { kind, .. } => plain(kind),
        _ => plain("another"),
    }
}

/// Whether it is taken on a full disk, by the reference and not by the code.
pub(crate) fn is_essential(command: &Command) -> bool {
    match command {
        Command::Lapse { .. }
        | Command::LapseOverdue { .. }
        | Command::DecideApproval { approve: false, .. }
        | Command::ExpireApprovals
        | Command::CancelApprovals
        | Command::Stop { .. }
        | Command::Outcome { .. } => true,
        Command::Note { kind, .. } => RESERVED_NOTE_KINDS.contains(kind),
        _ => false,
    }
}

impl Callers {
    pub(crate) fn new(rng: Rng, kind: Kind) -> Self {
        let all = AGENTS.iter().filter(|_| kind.registers());
        let all =
            all.map(|agent| owned(agent, "owner 0".into(), AgentState::Active, "alice".into()));
        Self {
            rng,
            names: 0,
            tokens: Vec::new(),
            approvals: Vec::new(),
            attempts: Vec::new(),
            again: Vec::new(),
            stopped: Vec::new(),
            grants: Vec::new(),
            first: all.collect(),
            turns: Turns::new(kind),
        }
    }

    fn name(&mut self, of: &str) -> String {
        self.names += 1;
        format!("{of}{}", self.names)
    }

    fn evidence(&mut self, name: &'static str) -> Evidence {
        let len = self.rng.one(&[1, 30, 400, 900, 1_700]);
        let mut salt = [0; audit::SALT_LEN];
        self.rng.fill(&mut salt);
        let bytes = vec![b'e'; len];
        Evidence::with_salt(name, &bytes, &salt)
    }

    fn attachments(&mut self) -> Vec<Evidence> {
        let mut all = Vec::new();
        for name in ["token", "proof"] {
            if self.rng.percent(50) {
                all.push(self.evidence(name));
            }
        }
        all
    }

    fn action(&mut self, lengths: &[usize]) -> ActionRecord {
        let len = self.rng.one(lengths);
        ActionRecord {
            kind: "http_request".into(),
            method: "GET".into(),
            location: format!("http://sim.example/{}", "p".repeat(len)),
            ..ActionRecord::default()
        }
    }

    fn request(&mut self) -> RequestFacts {
        let len = self.rng.one(&[1, 1, 1, 1, 40, 2_500]);
        RequestFacts {
            method: "GET".into(),
            path: format!("/{}", "q".repeat(len)),
            request_id: self.name("r"),
            ..RequestFacts::default()
        }
    }

    fn policy(&mut self) -> PolicyFacts {
        let rules = self.rng.one(&[1, 1, 1, 1, 1, 1, 1, 400]);
        PolicyFacts {
            version: "1".into(),
            determining: vec!["allow-this".into(); rules],
        }
    }

    /// The next command, at a time that is about the ledger's.
    pub(crate) fn next(&mut self, now: Millis, epoch: u64) -> Command {
        // The same question comes again, its answer being lost.
        if self.rng.percent(8) && !self.again.is_empty() {
            let at = self.rng.below(self.again.len());
            return self.again[at].clone();
        }
        let command = self.fresh(now, epoch);
        if !matches!(command, Command::Issue { .. } | Command::Note { .. }) {
            self.again.push(command.clone());
            if self.again.len() > REMEMBERED {
                self.again.remove(0);
            }
        }
        command
    }

    fn fresh(&mut self, now: Millis, epoch: u64) -> Command {
        if let Some(first) = self.first.pop() {
            return first;
        }
        if let Some(command) = self.turns.instead(&self.grants, now, epoch) {
            return command;
        }
        match self.rng.below(100) {
            0..28 => self.issue(now, epoch),
            28..46 => self.allow(epoch),
            46..54 => self.deny(epoch),
            54..65 => self.hold(now, epoch),
            65..68 => self.ask(now),
            68..73 => self.lapse(epoch),
            73 => Command::LapseOverdue {
                held_before_ms: now.saturating_sub(self.rng.one(&[0, 100, 5_000])),
            },
            74..84 => self.decide(),
            84..86 => Command::ExpireApprovals,
            86..92 => self.outcome(),
            92 if self.rng.percent(30) => Command::Present {
                agent: self.rng.one(&AGENTS).into(),
                once: self.piece(now),
                what: "introspection",
            },
            92 => Command::Discover {
                agent: format!("stranger {}", self.rng.below(6)),
            },
            93 => Command::ExchangeRefused {
                request_id: self.name("r"),
                agent: self.rng.one(&AGENTS).into(),
                user: None,
                reason: "policy_denied".into(),
                error: "access_denied".into(),
                action: Some(self.action(&[3, 3, 3_900])),
                policy: Some(self.policy()),
            },
            94..96 => self.rights(now),
            _ => self.note(),
        }
    }

    /// Mostly what ends a stop again: else nothing would happen any more.
    fn rights(&mut self, now: Millis) -> Command {
        let by = self.rng.one(&["alice", "bob"]).to_owned();
        if !self.stopped.is_empty() && self.rng.percent(60) {
            let at = self.rng.below(self.stopped.len());
            let target = self.stopped[at].clone();
            if self
                .rng
                .percent(if target == Target::Everything { 20 } else { 60 })
            {
                self.stopped.remove(at);
            }
            return Command::Lift { target, by };
        }
        let agent: String = self.rng.one(&AGENTS).into();
        if self.rng.percent(30) {
            let state = self.rng.one(&[
                AgentState::Active,
                AgentState::Active,
                AgentState::Suspended,
            ]);
            let owner = format!("owner {}", self.rng.below(2));
            return owned(&agent, owner, state, by);
        }
        if self.rng.percent(15) {
            return Command::CancelApprovals;
        }
        let target = match self.rng.below(8) {
            0 => Target::Everything,
            1..4 => whom::stopped(agent, self.names),
            4 => Target::Owner(format!("owner {}", self.rng.below(2))),
            5 => Target::Key(format!("key {}", self.rng.below(4))),
            _ => Target::Token(self.stoppable()),
        };
        self.stopped.push(target.clone());
        let (until_ms, stopper) = match target {
            Target::Token(_) => (Some(now + 60_000), Stopper::Agent),
            _ => (None, Stopper::Person),
        };
        Command::Stop {
            target,
            by,
            why: "why".into(),
            until_ms,
            stopper,
        }
    }

    /// A grant that something was got with which may be shown yet, or else one that
    /// somebody has, or a token.
    fn stoppable(&mut self) -> Hash {
        let used: Vec<Hash> = self.tokens.iter().filter_map(|it| it.under).collect();
        let grants: Vec<Hash> = self.grants.iter().map(|(_, it)| it.token_hash).collect();
        let picked = self.rng.pick(&used).or(self.rng.pick(&grants)).copied();
        picked.unwrap_or_else(|| self.token(0).0)
    }

    pub(crate) fn note(&mut self) -> Command {
        let kind = self
            .rng
            .one(&["config", "gap", "login", "proxy", "edge_counts"]);
        let len = self.rng.one(&[1, 1, 1, 1, 700, 6_000]);
        Command::Note {
            kind,
            body: serde_json::json!({ "text": "n".repeat(len) }),
        }
    }

    fn issue(&mut self, now: Millis, epoch: u64) -> Command {
        let mut token_hash = hash(&self.name("token"));
        let mut expires_ms = now + self.rng.one(&[0, 40, 2_000, 30_000, 30_000, 30_000]);
        // A second time, while it is known for sure that the first was answered in this epoch.
        if self.rng.percent(4)
            && let Some(known) = self.tokens.last().filter(|known| known.epoch == epoch)
        {
            (token_hash, expires_ms) = (known.hash, known.expires_ms);
        }
        let token = TokenRecord {
            token_hash,
            jti: format!("j{}", self.names),
            agent: self.rng.one(&AGENTS).into(),
            user: whom::user(&format!("j{}", self.names)),
            chain: Vec::new(),
            jkt: format!("key {}", self.rng.below(4)),
            x5t: None,
            // What is cut in the line is whole in the state until the epoch ends.
            action: self.action(&[3, 60]),
            txn: "task".into(),
            issued_ms: 0,
            expires_ms,
            lineage: Vec::new(),
            grant: None,
        };
        let mut asked = grants::Asked {
            token,
            under: None,
            next: None,
        };
        grants::ask(
            &mut self.rng,
            &self.grants,
            &mut asked,
            epoch,
            &mut self.names,
        );
        self.turns.ask(&self.grants, epoch, &mut asked);
        let grants::Asked { token, under, next } = asked;
        Command::Issue {
            token,
            evidence_id: [self.rng.below(3) as u8; 32],
            evidence_expires_ms: now + 1_000_000_000,
            also: Vec::new(),
            once: self.once(now),
            proof: self.proof(now),
            under,
            next,
            policy: self.policy(),
            attachments: self.attachments(),
        }
    }

    fn once(&mut self, now: Millis) -> Vec<EvidenceOf> {
        if self.rng.percent(97) {
            return Vec::new();
        }
        vec![self.piece(now)]
    }

    /// The same for what is asked about at one time, by one of two exchanges. It takes no
    /// turn of the dice, so that what comes after is what it would be without.
    fn proof(&self, now: Millis) -> Option<Box<ProofUse>> {
        let dice = hash(&format!("proof {}", self.names));
        if dice[0] > 50 {
            return None;
        }
        let mut id = [8; 32];
        id[..8].copy_from_slice(&(self.names / 16).to_be_bytes());
        Some(Box::new(ProofUse {
            id,
            by: format!("exchange {}", dice[1] % 2),
            until_ms: now + 1_000_000_000,
        }))
    }

    fn piece(&mut self, now: Millis) -> EvidenceOf {
        let mut id = [9; 32];
        id[0] = self.rng.below(2) as u8;
        EvidenceOf {
            id,
            expires_ms: now + 1_000_000_000,
        }
    }

    /// A token, mostly one of now, with the attempt that it was last used by.
    fn token(&mut self, epoch: u64) -> (Hash, Option<String>) {
        let now: Vec<Token> = self
            .tokens
            .iter()
            .filter(|t| t.epoch == epoch)
            .cloned()
            .collect();
        let from = if self.rng.percent(90) {
            &now
        } else {
            &self.tokens
        };
        let picked = self.rng.pick(from).cloned();
        picked.map_or_else(|| (hash("never issued"), None), |t| (t.hash, t.used_by))
    }

    fn attempt(&mut self, last: Option<&String>) -> String {
        let other = self.rng.pick(&self.attempts).cloned();
        match (self.rng.below(10), last, other) {
            (0..5, Some(last), _) => last.clone(),
            (5, _, Some(other)) => other,
            _ => self.name("attempt"),
        }
    }

    fn allow(&mut self, epoch: u64) -> Command {
        let (token_hash, last) = self.token(epoch);
        let attempt = self.attempt(last.as_ref());
        let approval = if self.rng.percent(60) {
            self.approval()
        } else {
            None
        };
        Command::Allow {
            token_hash,
            attempt,
            request: self.request(),
            policy: self.policy(),
            approval,
            attachments: self.attachments(),
        }
    }

    fn deny(&mut self, epoch: u64) -> Command {
        let (token_hash, last) = self.token(epoch);
        Command::Deny {
            token_hash,
            attempt: self.attempt(last.as_ref()),
            reason: "policy_denied".into(),
            request: self.request(),
            policy: self.policy(),
            attachments: self.attachments(),
        }
    }

    fn hold(&mut self, now: Millis, epoch: u64) -> Command {
        let (token_hash, _) = self.token(epoch);
        let approval = self.wanted(now);
        Command::Hold {
            token_hash,
            attempt: self.attempt(None),
            request: self.request(),
            policy: self.policy(),
            approval,
            attachments: self.attachments(),
        }
    }

    fn ask(&mut self, now: Millis) -> Command {
        Command::Ask {
            request_id: self.name("r"),
            policy: self.policy(),
            approval: self.wanted(now),
            attachments: self.attachments(),
        }
    }

    fn wanted(&mut self, now: Millis) -> Approval {
        let digest = [self.rng.below(3) as u8; 32];
        let rule = self.rng.one(&RULES);
        let id = self.name("apr_");
        Approval {
            user: whom::user(&id),
            id,
            digest,
            agent: self.rng.one(&AGENTS).into(),
            chain: Vec::new(),
            lineage: Vec::new(),
            action: self.action(&[3, 3, 3, 1_500, 3_900]),
            rules: vec![rule.into()],
            reasons: Vec::new(),
            approvers: vec!["ops".into()],
            approver_sets: vec![vec!["ops".into()]],
            policy_version: "1".into(),
            state: ApprovalState::Pending,
            created_ms: 0,
            expires_ms: now + self.rng.one(&[10, 3_000, 900_000, 900_000]),
            decided_by: None,
            decided_ms: None,
            body: None,
        }
    }

    fn lapse(&mut self, epoch: u64) -> Command {
        let (token_hash, last) = self.token(epoch);
        Command::Lapse {
            token_hash,
            attempt: self.attempt(last.as_ref()),
            why: "timeout",
        }
    }

    /// An approval that somebody knows of, sometimes with another digest.
    fn approval(&mut self) -> Option<(String, Hash)> {
        let (id, digest) = self.rng.pick(&self.approvals).cloned()?;
        let digest = if self.rng.percent(10) {
            [9; 32]
        } else {
            digest
        };
        Some((id, digest))
    }

    fn decide(&mut self) -> Command {
        let (id, digest) = self.approval().unwrap_or_else(|| ("none".into(), [0; 32]));
        Command::DecideApproval {
            id,
            digest,
            approve: self.rng.percent(75),
            by: "ops".into(),
            usable_ms: self.rng.one(&[0, 20, 600_000, 600_000]),
        }
    }

    fn outcome(&mut self) -> Command {
        let attempt = self.rng.pick(&self.attempts).cloned();
        Command::Outcome {
            attempt: attempt.unwrap_or_else(|| "none".into()),
            status: self.rng.one(&[0, 200, 503]),
            not_forwarded: self.rng.percent(50),
            response_bytes: 5,
            details: "via_upstream".into(),
        }
    }

    /// A command was answered: what its caller learns.
    pub(crate) fn learn(&mut self, command: &Command, committed: &Committed, epoch: u64) {
        match command {
            Command::Issue {
                token, next, under, ..
            } => {
                let made = [Some(token), next.as_ref()].into_iter().flatten();
                let made = made.filter(|it| it.grant.is_some());
                self.grants.extend(made.map(|it| (epoch, it.clone())));
                if self.grants.len() > REMEMBERED {
                    self.grants.remove(0);
                }
                self.tokens.push(Token {
                    hash: token.token_hash,
                    expires_ms: token.expires_ms,
                    epoch,
                    used_by: None,
                    under: *under,
                });
                self.tokens
                    .sort_by_key(|token| (token.epoch, token.expires_ms));
                if self.tokens.len() > REMEMBERED {
                    self.tokens.remove(0);
                }
            }
            Command::Allow {
                token_hash,
                attempt,
                ..
            }
            | Command::Deny {
                token_hash,
                attempt,
                ..
            }
            | Command::Hold {
                token_hash,
                attempt,
                ..
            } => {
                for token in self.tokens.iter_mut().filter(|t| t.hash == *token_hash) {
                    token.used_by = Some(attempt.clone());
                }
                self.attempts.push(attempt.clone());
                if self.attempts.len() > REMEMBERED {
                    self.attempts.remove(0);
                }
            }
            _ => {}
        }
        if let Some(approval) = &committed.approval
            && !self.approvals.iter().any(|(id, _)| *id == approval.id)
        {
            self.approvals.push((approval.id.clone(), approval.digest));
            if self.approvals.len() > REMEMBERED {
                self.approvals.remove(0);
            }
        }
    }
}
