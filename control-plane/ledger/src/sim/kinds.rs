//! Kinds of worlds: what hardly comes about where everything may happen has worlds of its
//! own. In them callers ask for it at some turns, instead of anything else. Which turns, is
//! no turn of the dice: other worlds are what they would be without.

use std::collections::BTreeMap;

use crate::{
    model::{
        AgentChange, AgentState, Command, GrantKind, GrantTerms, Limits, Millis, Stopper, Target,
        TokenRecord,
    },
    sim::{
        asking::{self, Asked},
        callers::AGENTS,
        whom::dice,
    },
};

/// What a world is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Everything.
    Any,
    /// The agents are one owner's, who has a limit that they reach before their own.
    Owned,
    /// Delegations are passed on, and the keys are stopped of those who gave them.
    Passing,
    /// Registrations end and are renewed.
    Ending,
}

/// Limits that are reached within a few dozen commands.
fn small_limits() -> Limits {
    Limits {
        outstanding_per_agent: 4,
        outstanding_per_owner: usize::MAX,
        held_per_agent: 2,
        held_total: 3,
        keys_per_evidence: 2,
        evidence_per_agent: 2,
        evidence_total: 3,
        discovered: 3,
        agents: 3,
        stops: 6,
        approvals_open_per_agent: 3,
        approvals_open: 4,
        denied_ms: 1_000,
    }
}

impl Kind {
    pub(crate) fn of(seed: u64) -> Self {
        match seed % 16 {
            at if at % 4 == 3 => Self::Owned,
            5 => Self::Passing,
            10 => Self::Ending,
            _ => Self::Any,
        }
    }

    /// Its limits, with what one owner's agents may have between them.
    pub(crate) fn limits(self, of_owner: usize) -> Limits {
        let small = small_limits();
        match self {
            Self::Any | Self::Ending => small,
            Self::Owned => Limits {
                outstanding_per_owner: of_owner,
                ..small
            },
            // Those who pass something on have keys of their own.
            Self::Passing => Limits {
                keys_per_evidence: 4,
                ..small
            },
        }
    }

    /// Whether the agents are somebody's before they ask for anything.
    pub(crate) fn registers(self) -> bool {
        matches!(self, Self::Owned | Self::Ending)
    }
}

/// What the callers of such a world know.
pub(crate) struct Turns {
    kind: Kind,
    turns: u64,
    /// The key that is stopped, until it is not any more.
    stopped: Option<String>,
    /// When registrations end.
    ends: BTreeMap<&'static str, Millis>,
}

impl Turns {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            turns: 0,
            stopped: None,
            ends: BTreeMap::new(),
        }
    }

    /// What is asked for at this turn, if it is one of those.
    pub(crate) fn instead(
        &mut self,
        grants: &[(u64, TokenRecord)],
        now: Millis,
        epoch: u64,
    ) -> Option<Command> {
        self.turns += 1;
        let dice = dice(&format!("turn {}", self.turns));
        match self.kind {
            Kind::Passing => self.stop_key(dice, grants, epoch),
            Kind::Ending => self.put_end(dice, now),
            Kind::Any | Kind::Owned => None,
        }
    }

    /// The key of a delegation that was passed on is stopped, or may be used again.
    fn stop_key(
        &mut self,
        dice: [u8; 32],
        grants: &[(u64, TokenRecord)],
        epoch: u64,
    ) -> Option<Command> {
        if dice[0] >= 40 {
            return None;
        }
        let by = "alice".to_owned();
        if let Some(key) = self.stopped.take() {
            let target = Target::Key(key);
            return Some(Command::Lift { target, by });
        }
        let passed_on = |it: &&TokenRecord| {
            let of = |other: &TokenRecord| other.lineage.iter().any(|hash| hash.0 == it.token_hash);
            of_now(grants, epoch).any(of)
        };
        let key = of_now(grants, epoch).find(passed_on)?.jkt.clone();
        self.stopped = Some(key.clone());
        Some(Command::Stop {
            target: Target::Key(key),
            by,
            why: "why".into(),
            until_ms: None,
            stopper: Stopper::Person,
        })
    }

    /// A registration gets an end, or is renewed after it.
    fn put_end(&mut self, dice: [u8; 32], now: Millis) -> Option<Command> {
        let agent = AGENTS[usize::from(dice[1]) % AGENTS.len()];
        let ends = match (self.ends.get(agent), dice[0]) {
            (Some(ends), 0..90) if *ends <= now => (dice[2] < 128).then_some(now + 20_000),
            (None, 0..30) => Some(now + [5, 40, 3_000][usize::from(dice[2]) % 3]),
            _ => return None,
        };
        match ends {
            Some(ends) => self.ends.insert(agent, ends),
            None => self.ends.remove(agent),
        };
        Some(Command::PutAgent {
            agent: agent.into(),
            change: AgentChange {
                owner: Some("owner 0".into()),
                state: Some(AgentState::Active),
                expires_ms: Some(ends),
                ..AgentChange::default()
            },
            by: "alice".into(),
        })
    }

    /// In a world of delegations most of what is asked for is one, is passed on, or is got
    /// with what was.
    pub(crate) fn ask(&self, grants: &[(u64, TokenRecord)], epoch: u64, asked: &mut Asked) {
        if self.kind != Kind::Passing {
            return;
        }
        let dice = dice(&format!("pass {}", asked.token.jti));
        let first = of_now(grants, epoch).find(|it| it.lineage.is_empty());
        let second = of_now(grants, epoch).find(|it| !it.lineage.is_empty());
        let (under, made) = match (dice[0], first, second) {
            (0..110, _, Some(second)) => (Some(second), None),
            (0..220, Some(first), _) => (Some(first), Some(delegation(AGENTS[0], 0))),
            (0..220, None, _) => (None, Some(delegation(AGENTS[1], 1))),
            _ => return,
        };
        let token = &mut asked.token;
        token.jkt = format!("key {}", dice[1] % 4);
        token.grant = made;
        token.lineage.clear();
        token.chain.clear();
        (asked.under, asked.next) = (None, None);
        match under {
            Some(grant) => asking::take(grant, asked),
            None => asked.token.agent = AGENTS[0].into(),
        }
    }
}

fn delegation(holder: &str, depth: u8) -> GrantTerms {
    GrantTerms {
        kind: GrantKind::Delegation,
        holder: Some(holder.to_owned()),
        scope: Vec::new(),
        depth,
        uses: None,
        deferred: None,
    }
}

/// The delegations that callers know of this epoch, the last one first.
fn of_now(grants: &[(u64, TokenRecord)], epoch: u64) -> impl Iterator<Item = &TokenRecord> {
    let of_now = grants.iter().rev().filter(move |(of, _)| *of == epoch);
    let delegates = |it: &&TokenRecord| {
        let terms = it.grant.as_ref();
        terms.is_some_and(|it| it.kind == GrantKind::Delegation)
    };
    of_now.map(|(_, grant)| grant).filter(delegates)
}
