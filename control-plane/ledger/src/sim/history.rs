//! What durable lines say happened, judged by rules of its own.
//!
//! Nothing here is the ledger's: it reads lines as an auditor would and knows
//! what may follow what.

use std::collections::{BTreeMap, HashMap, HashSet};

use audit::{Line, group::Group};
use serde_json::Value;

use crate::sim::{grants, rights::Judge};
use crate::{
    model::{Hash, Limits},
    sim::{Broken, Invariant},
};

/// As `embedded::state` has it: how long an ended token is remembered.
const LINGER_MS: u64 = 5_000;

/// What a line is about, to compare with the command that was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Brief {
    pub(crate) kind: String,
    pub(crate) token: Option<String>,
    pub(crate) attempt: Option<String>,
    pub(crate) approval: Option<String>,
    pub(crate) time_ms: u64,
}

#[derive(Clone)]
struct Token {
    agent: String,
    expires_ms: u64,
    epoch: u64,
    held_by: Option<String>,
    refresh: bool,
}

#[derive(Clone)]
struct Approval {
    agent: String,
    digest: String,
    rules: Value,
    state: &'static str,
    expires_ms: u64,
    /// When a person said no.
    denied_ms: Option<u64>,
}

/// Everything that was durable, in order, and what follows from it.
#[derive(Clone, Default)]
pub(crate) struct History {
    pub(crate) leaves: Vec<Hash>,
    pub(crate) briefs: Vec<Brief>,
    pub(crate) log: Option<[u8; 16]>,
    pub(crate) groups: u64,
    pub(crate) time_ms: u64,
    /// When the entry was decided: where several replicas decide, the log's time may
    /// be ahead of it.
    decided_ms: u64,
    /// Epochs may be left out: what was lost may have had them.
    leaps: bool,
    /// The epoch began and nothing has happened in it but what it ends.
    begins: bool,
    pub(crate) epoch: u64,
    /// A `torn` line that its epoch has still to follow, and how many there were.
    torn: Option<Value>,
    pub(crate) torn_lines: u64,
    tokens: HashMap<String, Token>,
    spent: HashSet<String>,
    attempts: HashMap<String, (String, Option<u64>)>,
    allowed: HashSet<String>,
    keys: HashMap<String, HashSet<String>>,
    approvals: BTreeMap<String, Approval>,
    discovered: HashSet<String>,
    /// What agents had when they got another owner: replicas know it a little later.
    brought: HashMap<String, usize>,
    rights: Judge,
    grants: grants::Judge,
}

fn text<'a>(body: &'a Value, at: &str) -> &'a str {
    body.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

fn number(body: &Value, at: &str) -> u64 {
    body.pointer(at).and_then(Value::as_u64).unwrap_or_default()
}

fn broken<T>(invariant: Invariant, what: impl Into<String>) -> Result<T, Broken> {
    Err(Broken(invariant, what.into()))
}

fn must(holds: bool, invariant: Invariant, what: impl Fn() -> String) -> Result<(), Broken> {
    if holds {
        Ok(())
    } else {
        broken(invariant, what())
    }
}

impl History {
    /// Of a log that several replicas write.
    pub(crate) fn of_replicas() -> Self {
        Self {
            leaps: true,
            ..Self::default()
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.leaves.len() as u64
    }

    pub(crate) fn head(&self) -> Hash {
        self.leaves.last().copied().unwrap_or_default()
    }

    /// Adds a durable group.
    pub(crate) fn group(
        &mut self,
        segment: u64,
        group: &Group<'_>,
        limits: &Limits,
    ) -> Result<(), Broken> {
        let header = &group.header;
        let in_place = header.segment == segment
            && header.group == self.groups
            && header.first == self.len()
            && header.durable == header.first
            && *self.log.get_or_insert(header.log) == header.log;
        must(in_place, Invariant::Chain, || {
            format!(
                "group {} of segment {segment} is not in its place: {header:?}",
                self.groups
            )
        })?;
        for entry in &group.entries {
            let line = &entry.line;
            let follows = line.index == self.len() && line.prev == self.head();
            must(
                follows && entry.attachments_match(),
                Invariant::Chain,
                || format!("entry {} does not continue the chain: {line:?}", self.len()),
            )?;
            must(line.time_ms >= self.time_ms, Invariant::Chain, || {
                format!("time goes back at entry {}", line.index)
            })?;
            self.entry(&entry.line, entry.leaf, entry.line.time_ms, limits)?;
        }
        self.groups += 1;
        Ok(())
    }

    /// Adds an entry that continues the chain, and was decided then.
    pub(crate) fn entry(
        &mut self,
        line: &Line,
        leaf: Hash,
        decided_ms: u64,
        limits: &Limits,
    ) -> Result<(), Broken> {
        let (body, kind) = (&line.body, line.kind.as_str());
        self.time_ms = line.time_ms;
        self.decided_ms = decided_ms;
        let begins = matches!(kind, "epoch" | "torn");
        let leaps = begins && self.leaps && line.epoch > self.epoch;
        self.begins = kind == "epoch" || (self.begins && kind == "approvals_expired");
        must(
            leaps || line.epoch == self.epoch + u64::from(begins),
            Invariant::Epoch,
            || {
                format!(
                    "a {kind} line of epoch {} in epoch {}",
                    line.epoch, self.epoch
                )
            },
        )?;
        must(
            self.torn.is_none() || kind == "epoch",
            Invariant::Gap,
            || "no epoch follows a torn line".into(),
        )?;
        if kind == "agent" && self.leaps {
            let (agent, owner) = (text(body, "/agent"), text(body, "/owner"));
            if self.rights.owner(agent) != Some(owner) {
                let has = self.outstanding(agent).count();
                *self.brought.entry(owner.to_owned()).or_default() += has;
            }
        }
        self.rights.entry(kind, body, decided_ms)?;
        self.grants.entry(kind, body, decided_ms)?;
        match kind {
            "torn" => {
                self.torn = Some(body.clone());
                self.torn_lines += 1;
            }
            "epoch" => self.begin(line.epoch),
            "restored" => {
                let all = self.approvals.values_mut();
                for open in all.filter(|a| matches!(a.state, "pending" | "approved")) {
                    open.state = "expired";
                }
            }
            "issue" => {
                let refresh = body["next"].is_object() || self.refreshes(body);
                if refresh && let Some(under) = body["under"].as_str() {
                    must(!self.spent.contains(under), Invariant::Spend, || {
                        format!("{under} is used again")
                    })?;
                    self.spent(under, text(body, "/token/jti"));
                }
                self.issue(body, "/token", limits)?;
                if body["next"].is_object() {
                    self.issue(body, "/next", limits)?;
                }
            }
            "allow" | "deny" => self.spend(kind, body)?,
            "hold" => self.hold(body, limits)?,
            "ask" => self.ask(body, text(body, "/agent"), limits)?,
            "lapse" => self.lapse(text(body, "/token/hash"), Some(text(body, "/attempt")))?,
            "lapses_overdue" => {
                for hash in body
                    .pointer("/tokens")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    self.lapse(hash.as_str().unwrap_or_default(), None)?;
                }
            }
            "approval" => self.decide(body)?,
            "approvals_expired" => {
                for id in body
                    .pointer("/ids")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    self.expire(id.as_str().unwrap_or_default())?;
                }
            }
            "outcome" => {
                let attempt = text(body, "/attempt");
                must(self.allowed.remove(attempt), Invariant::Token, || {
                    format!("an outcome of {attempt}, which awaits none")
                })?;
            }
            "approvals_cancelled" => {
                let ids = body.pointer("/ids").and_then(Value::as_array);
                for id in ids.into_iter().flatten() {
                    self.cancel(id.as_str().unwrap_or_default());
                }
            }
            "discover" => {
                let new = self.discovered.insert(text(body, "/agent").to_owned());
                must(
                    new && self.discovered.len() <= limits.discovered,
                    Invariant::Limit,
                    || "an agent is discovered twice, or one too many".into(),
                )?;
            }
            _ => {}
        }
        let some = |at: &str| Some(text(body, at).to_owned()).filter(|text| !text.is_empty());
        self.briefs.push(Brief {
            kind: kind.to_owned(),
            token: some("/token/hash").or_else(|| some("/token/token_hash")),
            attempt: some("/attempt"),
            approval: some("/approval/id")
                .or_else(|| some("/approval"))
                .or_else(|| some("/id")),
            time_ms: line.time_ms,
        });
        self.leaves.push(leaf);
        Ok(())
    }

    fn begin(&mut self, epoch: u64) {
        self.torn = None;
        self.epoch = epoch;
        self.attempts.clear();
        self.allowed.clear();
        self.keys.clear();
    }

    fn cancel(&mut self, id: &str) {
        if let Some(approval) = self.approvals.get_mut(id) {
            approval.state = "cancelled";
        }
    }

    /// Whether what it was got with brings one thing, and is spent by that.
    fn refreshes(&self, body: &Value) -> bool {
        let under = self.tokens.get(text(body, "/under"));
        under.is_some_and(|it| it.refresh)
    }

    fn issue(&mut self, body: &Value, at: &str, limits: &Limits) -> Result<(), Broken> {
        let of = |name: &str| format!("{at}/{name}");
        let (hash, agent) = (text(body, &of("token_hash")), text(body, &of("agent")));
        must(!self.tokens.contains_key(hash), Invariant::Token, || {
            format!("{hash} is issued twice")
        })?;
        let expires_ms = number(body, &of("expires_ms"));
        must(expires_ms > self.decided_ms, Invariant::Token, || {
            format!("{hash} is issued after its end")
        })?;
        let token = Token {
            agent: agent.to_owned(),
            expires_ms,
            epoch: self.epoch,
            held_by: None,
            refresh: matches!(text(body, &of("grant/kind")), "refresh" | "deferral"),
        };
        self.tokens.insert(hash.to_owned(), token);
        let outstanding = self.outstanding(agent).count();
        // A refresh token that follows another takes that one's place.
        let grant = at == "/token" && body["token"]["grant"].is_object();
        let most = match grant {
            true => limits.outstanding_with_grants(),
            false => limits.outstanding_per_agent,
        };
        must(outstanding <= most, Invariant::Limit, || {
            format!("{agent} has {outstanding} outstanding")
        })?;
        if let Some(owner) = self.rights.owner(agent) {
            let of_owner = self.rights.agents_of(owner);
            let all = of_owner.map(|agent| self.outstanding(agent).count());
            let all: usize = all.sum();
            let brought = self.brought.get(owner).copied().unwrap_or_default();
            let most = limits.outstanding_per_owner.saturating_add(brought);
            must(all <= most, Invariant::Limit, || {
                format!("{owner} has {all} outstanding")
            })?;
        }
        let keys = self
            .keys
            .entry(text(body, "/evidence/id").to_owned())
            .or_default();
        keys.insert(text(body, &of("jkt")).to_owned());
        let (keys, pieces) = (keys.len(), self.keys.len());
        must(
            keys <= limits.keys_per_evidence && pieces <= limits.evidence_total,
            Invariant::Limit,
            || format!("{keys} keys of a piece of evidence, {pieces} pieces"),
        )
    }

    /// Whether a token can still be used, or is held by whom.
    pub(crate) fn stands(&self, hash: &str) -> Option<Option<&str>> {
        let token = self.tokens.get(hash)?;
        let lives = token.epoch == self.epoch && !self.spent.contains(hash);
        lives.then_some(token.held_by.as_deref())
    }

    /// Tokens that can still be used, whenever they end.
    pub(crate) fn all_outstanding(&self) -> impl Iterator<Item = (&str, u64)> {
        let all = self.tokens.iter();
        all.filter(|(hash, _)| self.stands(hash).is_some())
            .map(|(hash, token)| (hash.as_str(), token.expires_ms))
    }

    /// Approvals and where they stand.
    pub(crate) fn approvals(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let all = self.approvals.iter();
        all.map(|(id, approval)| (id.as_str(), approval.state))
    }

    fn outstanding<'a>(&'a self, agent: &'a str) -> impl Iterator<Item = &'a Token> {
        self.tokens.iter().filter_map(move |(hash, token)| {
            let lives = token.held_by.is_some() || token.expires_ms + LINGER_MS > self.time_ms;
            let counts = token.agent == agent && token.epoch == self.epoch;
            (counts && lives && !self.spent.contains(hash)).then_some(token)
        })
    }

    /// The token as one that this attempt may use now.
    fn usable(&mut self, body: &Value) -> Result<(String, String), Broken> {
        let (hash, attempt) = (text(body, "/token/hash"), text(body, "/attempt"));
        must(!self.spent.contains(hash), Invariant::Spend, || {
            format!("{hash} is used again, by {attempt}")
        })?;
        let token = self.tokens.get(hash);
        let Some(token) = token.filter(|token| token.epoch == self.epoch) else {
            return broken(
                Invariant::Spend,
                format!("{hash} is not outstanding in this epoch"),
            );
        };
        if let Some(holder) = &token.held_by {
            must(holder == attempt, Invariant::Token, || {
                format!("{hash} is held by {holder} and used by {attempt}")
            })?;
            return Ok((hash.to_owned(), attempt.to_owned()));
        }
        must(token.expires_ms > self.decided_ms, Invariant::Token, || {
            format!("{hash} is used after its end")
        })?;
        let known = self.attempts.get(attempt);
        let known = known
            .is_some_and(|(_, until)| until.is_none_or(|until| until + LINGER_MS > self.time_ms));
        must(!known, Invariant::Token, || {
            format!("{attempt} is used again")
        })?;
        Ok((hash.to_owned(), attempt.to_owned()))
    }

    fn spent(&mut self, hash: &str, attempt: &str) {
        let end = self.tokens.get(hash).map_or(0, |token| token.expires_ms);
        self.spent.insert(hash.to_owned());
        let until = Some(end.max(self.time_ms));
        self.attempts
            .insert(attempt.to_owned(), (hash.to_owned(), until));
    }

    fn spend(&mut self, kind: &str, body: &Value) -> Result<(), Broken> {
        let (hash, attempt) = self.usable(body)?;
        self.spent(&hash, &attempt);
        if kind == "deny" {
            return Ok(());
        }
        self.allowed.insert(attempt);
        let Some(id) = body.pointer("/approval/id").and_then(Value::as_str) else {
            return Ok(());
        };
        let now = self.decided_ms;
        match self.approvals.get_mut(id) {
            Some(approval)
                if approval.state == "approved"
                    && approval.expires_ms > now
                    && approval.digest == text(body, "/approval/digest") =>
            {
                approval.state = "consumed";
                Ok(())
            }
            Some(approval) => broken(
                Invariant::Approval,
                format!(
                    "{id} is used: {}, to {}, at {now}",
                    approval.state, approval.expires_ms
                ),
            ),
            None => broken(
                Invariant::Approval,
                format!("{id} is used and was never asked for"),
            ),
        }
    }

    fn hold(&mut self, body: &Value, limits: &Limits) -> Result<(), Broken> {
        let (hash, attempt) = self.usable(body)?;
        let Some(token) = self.tokens.get_mut(&hash) else {
            return broken(Invariant::Token, "no such token");
        };
        must(token.held_by.is_none(), Invariant::Token, || {
            format!("{hash} is held twice")
        })?;
        token.held_by = Some(attempt.clone());
        let agent = token.agent.clone();
        self.attempts.insert(attempt, (hash, None));
        let held = self
            .outstanding(&agent)
            .filter(|token| token.held_by.is_some())
            .count();
        must(held <= limits.held_per_agent, Invariant::Limit, || {
            format!("{agent} holds {held}")
        })?;
        self.ask(body, &agent, limits)
    }

    /// An approval is opened, or an equal one that is pending is joined.
    fn ask(&mut self, body: &Value, agent: &str, limits: &Limits) -> Result<(), Broken> {
        let now = self.decided_ms;
        let id = text(body, "/approval").to_owned();
        let Some(opened) = body.pointer("/opened") else {
            let joined = self.approvals.get(&id);
            let open = joined.is_some_and(|a| a.state == "pending" && a.expires_ms > now);
            return must(open, Invariant::Approval, || {
                format!("{id} is joined and not pending")
            });
        };
        let approval = Approval {
            agent: text(opened, "/agent").to_owned(),
            digest: text(opened, "/digest").to_owned(),
            rules: opened.pointer("/rules").cloned().unwrap_or_default(),
            state: "pending",
            expires_ms: number(opened, "/expires_ms"),
            denied_ms: None,
        };
        let denied = self.approvals.values().any(|a| {
            let since = a.denied_ms.is_some_and(|at| now < at + limits.denied_ms);
            since && a.digest == approval.digest && a.rules == approval.rules
        });
        must(!denied, Invariant::Approval, || {
            format!("{id} asks again what a person has just said no to")
        })?;
        let pending = text(opened, "/state") == "pending" && number(opened, "/created_ms") == now;
        let new = self.approvals.insert(id.clone(), approval).is_none();
        must(new && pending, Invariant::Approval, || {
            format!("{id} is opened wrongly")
        })?;
        let is_open = |a: &&Approval| matches!(a.state, "pending" | "approved");
        let open = self.approvals.values().filter(is_open).count();
        let own = self
            .approvals
            .values()
            .filter(is_open)
            .filter(|a| a.agent == agent)
            .count();
        must(
            open <= limits.approvals_open && own <= limits.approvals_open_per_agent,
            Invariant::Limit,
            || format!("{open} approvals are open, {own} of {agent}"),
        )
    }

    fn lapse(&mut self, hash: &str, attempt: Option<&str>) -> Result<(), Broken> {
        let holder = self
            .tokens
            .get(hash)
            .filter(|t| t.epoch == self.epoch)
            .and_then(|t| t.held_by.clone());
        let right =
            holder.is_some() && attempt.is_none_or(|attempt| holder.as_deref() == Some(attempt));
        must(
            right && !self.spent.contains(hash),
            Invariant::Token,
            || format!("{hash} lapses and is held by {holder:?}, not {attempt:?}"),
        )?;
        self.spent(hash, &holder.unwrap_or_default());
        Ok(())
    }

    fn decide(&mut self, body: &Value) -> Result<(), Broken> {
        let (id, now) = (text(body, "/id"), self.decided_ms);
        let state = if text(body, "/decision") == "approved" {
            "approved"
        } else {
            "denied"
        };
        match self.approvals.get_mut(id) {
            Some(a)
                if a.state == "pending"
                    && a.expires_ms > now
                    && a.digest == text(body, "/digest") =>
            {
                a.state = state;
                a.expires_ms = number(body, "/expires_ms");
                a.denied_ms = (state == "denied").then_some(now);
                Ok(())
            }
            _ => broken(
                Invariant::Approval,
                format!("{id} is decided and cannot be"),
            ),
        }
    }

    fn expire(&mut self, id: &str) -> Result<(), Broken> {
        let now = self.decided_ms;
        match self.approvals.get_mut(id) {
            Some(a)
                if matches!(a.state, "pending" | "approved")
                    && (a.expires_ms <= now || self.begins) =>
            {
                a.state = "expired";
                Ok(())
            }
            _ => broken(Invariant::Approval, format!("{id} expires and cannot")),
        }
    }
}
