//! Whether anybody gets anything that is stopped, judged from the entries alone.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use crate::sim::{Broken, Invariant};

#[derive(Clone)]
struct Token {
    agents: Vec<String>,
    user: Value,
    jkt: String,
    at: u64,
    lineage: Vec<String>,
}

#[derive(Clone, Debug)]
struct Agent {
    state: String,
    owner: String,
    /// Up to when what it was given is void.
    void: u64,
    ends: Option<u64>,
}

impl Agent {
    fn acts(&self, at: u64) -> bool {
        self.state == "active" && self.ends.is_none_or(|ends| at < ends)
    }
}

#[derive(Clone, Default)]
pub(crate) struct Judge {
    /// When the last entry was decided.
    decided: u64,
    /// By target: up to when what was given is void, and whether it stands.
    stops: BTreeMap<String, (u64, bool)>,
    asked: Option<(String, u64)>,
    agents: BTreeMap<String, Agent>,
    tokens: HashMap<String, Token>,
    /// Whose, for whom, and of when.
    approvals: HashMap<String, (String, Value, u64)>,
    once: HashSet<String>,
    /// Which exchange used a proof.
    proofs: HashMap<String, String>,
}

fn text<'a>(body: &'a Value, at: &str) -> &'a str {
    body.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

fn number(body: &Value, at: &str) -> u64 {
    body.pointer(at).and_then(Value::as_u64).unwrap_or_default()
}

/// The stops that cover what an agent does for a user, if it does it for one. Members are
/// in the order of lines.
fn for_user(agent: &str, user: &Value) -> Vec<String> {
    if user.is_null() {
        return Vec::new();
    }
    let of_agent = serde_json::json!({ "delegation": { "agent": agent, "user": user } });
    let of_all = serde_json::json!({ "user": user });
    vec![of_agent.to_string(), of_all.to_string()]
}

impl Judge {
    /// Whose an agent is.
    pub(crate) fn owner(&self, agent: &str) -> Option<&str> {
        self.agents.get(agent).map(|it| it.owner.as_str())
    }

    /// The agents of an owner.
    pub(crate) fn agents_of<'j>(&'j self, owner: &'j str) -> impl Iterator<Item = &'j str> {
        let all = self.agents.iter().filter(move |(_, it)| it.owner == owner);
        all.map(|(agent, _)| agent.as_str())
    }

    /// Takes in an entry, in the log's order, that was decided then.
    pub(crate) fn entry(&mut self, kind: &str, body: &Value, decided: u64) -> Result<(), Broken> {
        self.decided = decided;
        match kind {
            "epoch" => {
                self.once.clear();
                self.proofs.clear();
                Ok(())
            }
            "stop" => {
                let target = body["target"].to_string();
                self.stops.insert(target, (number(body, "/at_ms"), true));
                self.asked = self.asked.take().filter(|_| body["target"] != "everything");
                Ok(())
            }
            "lift" => self.lift(body),
            "agent" => {
                self.registered(body);
                Ok(())
            }
            "issue" => {
                let hash = text(body, "/token/token_hash").to_owned();
                for token in [&body["token"], &body["next"]] {
                    self.issued(token);
                }
                for piece in body["once"].as_array().into_iter().flatten() {
                    self.once(piece)?;
                }
                self.proof(&body["proof"])?;
                // A grant that is stopped brings nothing either, nor what came of it.
                self.token(kind, text(body, "/under"))?;
                let known = self.tokens.get(&hash);
                for before in known.into_iter().flat_map(|it| &it.lineage) {
                    self.token(kind, before)?;
                }
                self.token(kind, &hash)
            }
            "present" => {
                self.agent(kind, text(body, "/agent"), &[], u64::MAX)?;
                self.once(&body["once"])
            }
            "ask" => {
                if let Some(opened) = body.get("opened") {
                    self.opened(opened);
                    return self.approval(text(opened, "/id"));
                }
                Ok(())
            }
            "allow" | "hold" => {
                self.token(kind, text(body, "/token/hash"))?;
                if let Some(opened) = body.get("opened") {
                    self.opened(opened);
                }
                match kind {
                    "allow" => self.approval(text(body, "/approval/id")),
                    _ => Ok(()),
                }
            }
            "approval" if text(body, "/decision") == "approved" => self.approval(text(body, "/id")),
            _ => Ok(()),
        }
    }

    /// What an agent has when it ceases to act is void, however it does, and also when it
    /// acts again.
    fn registered(&mut self, body: &Value) {
        let mut now = Agent {
            state: text(body, "/state").to_owned(),
            owner: text(body, "/owner").to_owned(),
            void: number(body, "/void_ms"),
            ends: body["expires_ms"].as_u64(),
        };
        let agent = text(body, "/agent");
        if let Some(was) = self.agents.get(agent) {
            let (before, after) = (was.acts(self.decided), now.acts(self.decided));
            let left = was.state == "active" && now.state != "active";
            let again = was.state != "discovered" && !before && after;
            now.void = now.void.max(was.void);
            if left || again {
                // What was given in the same millisecond may have come after it.
                now.void = now.void.max(self.decided.saturating_sub(1));
            }
        }
        self.agents.insert(agent.to_owned(), now);
    }

    fn opened(&mut self, opened: &Value) {
        let approval = (
            text(opened, "/agent").to_owned(),
            opened["user"].clone(),
            number(opened, "/created_ms"),
        );
        let id = text(opened, "/id").to_owned();
        self.approvals.insert(id, approval);
    }

    fn once(&mut self, piece: &Value) -> Result<(), Broken> {
        let id = text(piece, "/id").to_owned();
        if self.once.insert(id.clone()) {
            return Ok(());
        }
        Err(Broken(Invariant::Once, format!("{id} is taken twice")))
    }

    /// A proof is one exchange's, for as long as it would be taken.
    fn proof(&mut self, proof: &Value) -> Result<(), Broken> {
        if proof.is_null() {
            return Ok(());
        }
        let (id, by) = (text(proof, "/id"), text(proof, "/by"));
        let first = self.proofs.entry(id.to_owned());
        let first = first.or_insert_with(|| by.to_owned());
        if first == by {
            return Ok(());
        }
        let what = format!("proof {id} is used by {first} and by {by}");
        Err(Broken(Invariant::Once, what))
    }

    fn issued(&mut self, token: &Value) {
        if !token.is_object() {
            return;
        }
        let texts = |at: &str| {
            let all = token.pointer(at).and_then(Value::as_array);
            let all = all.into_iter().flatten().filter_map(Value::as_str);
            all.map(str::to_owned).collect::<Vec<_>>()
        };
        let mut agents = texts("/chain");
        agents.push(text(token, "/agent").to_owned());
        let known = Token {
            agents,
            user: token["user"].clone(),
            jkt: text(token, "/jkt").to_owned(),
            at: number(token, "/issued_ms"),
            lineage: texts("/lineage"),
        };
        self.tokens
            .insert(text(token, "/token_hash").to_owned(), known);
    }

    fn lift(&mut self, body: &Value) -> Result<(), Broken> {
        let target = body["target"].to_string();
        if body["lifted"].is_null() {
            let asked = (
                text(body, "/lift_asked/0").to_owned(),
                number(body, "/lift_asked/1"),
            );
            self.asked = Some(asked);
            return Ok(());
        }
        let by = text(body, "/lifted/0");
        if body["target"] == "everything" {
            let first = self.asked.take();
            if first.as_ref().is_none_or(|(first, _)| first == by) {
                let what = format!("{by} lifts everything after {first:?}");
                return Err(Broken(Invariant::Stopped, what));
            }
        }
        self.stops.insert(target, (number(body, "/at_ms"), false));
        Ok(())
    }

    fn token(&self, kind: &str, hash: &str) -> Result<(), Broken> {
        let Some(token) = self.tokens.get(hash) else {
            return Ok(());
        };
        let of = |hash: &str| serde_json::json!({ "token": hash }).to_string();
        let mut targets = vec![
            serde_json::json!({ "key": token.jkt }).to_string(),
            of(hash),
        ];
        targets.extend(token.lineage.iter().map(|hash| of(hash)));
        let what = format!("{kind} of {hash}");
        let mut agents = token.agents.iter();
        agents.try_for_each(|agent| {
            let covers = [&targets[..], &for_user(agent, &token.user)].concat();
            self.agent(&what, agent, &covers, token.at)
        })
    }

    fn approval(&self, id: &str) -> Result<(), Broken> {
        match self.approvals.get(id) {
            Some((agent, user, at)) => self.agent(id, agent, &for_user(agent, user), *at),
            None => Ok(()),
        }
    }

    fn agent(&self, what: &str, agent: &str, more: &[String], at: u64) -> Result<(), Broken> {
        let known = self.agents.get(agent);
        let mut targets = more.to_vec();
        targets.push("\"everything\"".into());
        targets.push(serde_json::json!({ "agent": agent }).to_string());
        targets.extend(known.map(|it| serde_json::json!({ "owner": it.owner }).to_string()));
        let stops = || targets.iter().filter_map(|target| self.stops.get(target));
        let stopped = stops().any(|(until, stands)| *stands || at <= *until);
        let inactive = known.is_some_and(|it| !it.acts(self.decided) || at <= it.void);
        if stopped || inactive {
            let now = self.decided;
            let what = format!("{what} at {now}, given at {at}: {targets:?} {known:?}");
            return Err(Broken(Invariant::Stopped, what));
        }
        Ok(())
    }
}
