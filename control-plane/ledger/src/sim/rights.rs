//! Whether anybody gets anything that is stopped, judged from the entries alone.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use crate::sim::{Broken, Invariant};

#[derive(Clone, Default)]
pub(crate) struct Judge {
    /// By target: up to when what was given is void, and whether it stands.
    stops: BTreeMap<String, (u64, bool)>,
    asked: Option<(String, u64)>,
    agents: BTreeMap<String, (String, String, u64)>,
    tokens: HashMap<String, (String, String, u64)>,
    approvals: HashMap<String, (String, u64)>,
    once: HashSet<String>,
}

fn text<'a>(body: &'a Value, at: &str) -> &'a str {
    body.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

fn number(body: &Value, at: &str) -> u64 {
    body.pointer(at).and_then(Value::as_u64).unwrap_or_default()
}

impl Judge {
    /// Takes in an entry, in the log's order.
    pub(crate) fn entry(&mut self, kind: &str, body: &Value) -> Result<(), Broken> {
        match kind {
            "epoch" => {
                self.once.clear();
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
                let known = (
                    text(body, "/state").to_owned(),
                    text(body, "/owner").to_owned(),
                    number(body, "/void_ms"),
                );
                self.agents.insert(text(body, "/agent").to_owned(), known);
                Ok(())
            }
            "issue" => {
                let hash = text(body, "/token/token_hash").to_owned();
                let token = (
                    text(body, "/token/agent").to_owned(),
                    text(body, "/token/jkt").to_owned(),
                    number(body, "/token/issued_ms"),
                );
                self.tokens.insert(hash.clone(), token);
                for piece in body["once"].as_array().into_iter().flatten() {
                    let id = text(piece, "/id").to_owned();
                    if !self.once.insert(id.clone()) {
                        return Err(Broken(Invariant::Once, format!("{id} is taken twice")));
                    }
                }
                self.token(kind, &hash)
            }
            "allow" | "hold" => {
                self.token(kind, text(body, "/token/hash"))?;
                if let Some(opened) = body.get("opened") {
                    let approval = (
                        text(opened, "/agent").to_owned(),
                        number(opened, "/created_ms"),
                    );
                    self.approvals
                        .insert(text(opened, "/id").to_owned(), approval);
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
        let Some((agent, jkt, at)) = self.tokens.get(hash) else {
            return Ok(());
        };
        let targets = [
            serde_json::json!({ "key": jkt }).to_string(),
            serde_json::json!({ "token": hash }).to_string(),
        ];
        self.agent(&format!("{kind} of {hash}"), agent, &targets, *at)
    }

    fn approval(&self, id: &str) -> Result<(), Broken> {
        match self.approvals.get(id) {
            Some((agent, at)) => self.agent(id, agent, &[], *at),
            None => Ok(()),
        }
    }

    fn agent(&self, what: &str, agent: &str, more: &[String], at: u64) -> Result<(), Broken> {
        let known = self.agents.get(agent);
        let mut targets = more.to_vec();
        targets.push("\"everything\"".into());
        targets.push(serde_json::json!({ "agent": agent }).to_string());
        targets.extend(known.map(|it| serde_json::json!({ "owner": it.1 }).to_string()));
        let stops = || targets.iter().filter_map(|target| self.stops.get(target));
        let stopped = stops().any(|(until, stands)| *stands || at <= *until);
        let inactive = known.is_some_and(|it| it.0 != "active" || at <= it.2);
        if stopped || inactive {
            let what = format!("{what}, given at {at}: {targets:?} {known:?}");
            return Err(Broken(Invariant::Stopped, what));
        }
        Ok(())
    }
}
