//! Whether what is got with grants may be, judged from the entries alone.

use std::collections::HashMap;

use serde_json::Value;

use crate::sim::{Broken, Invariant};

#[derive(Clone)]
struct Grant {
    agent: String,
    user: Value,
    chain: Vec<Value>,
    jkt: String,
    kind: String,
    holder: String,
    action: Value,
    uses: Option<u64>,
    depth: u64,
    expires_ms: u64,
    lineage: Vec<Value>,
    spent: bool,
}

/// The grants of an epoch.
#[derive(Clone, Default)]
pub(crate) struct Judge {
    grants: HashMap<String, Grant>,
}

fn text<'a>(body: &'a Value, at: &str) -> &'a str {
    body.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

fn number(body: &Value, at: &str) -> u64 {
    body.pointer(at).and_then(Value::as_u64).unwrap_or_default()
}

fn list(body: &Value, at: &str) -> Vec<Value> {
    let found = body.pointer(at).and_then(Value::as_array);
    found.cloned().unwrap_or_default()
}

fn must(holds: bool, what: impl Fn() -> String) -> Result<(), Broken> {
    if holds {
        Ok(())
    } else {
        Err(Broken(Invariant::Grant, what()))
    }
}

impl Judge {
    /// Takes in an entry, in the log's order, that was decided then.
    pub(crate) fn entry(&mut self, kind: &str, body: &Value, decided: u64) -> Result<(), Broken> {
        match kind {
            "epoch" => {
                self.grants.clear();
                Ok(())
            }
            "issue" => self.issue(body, decided),
            "allow" | "deny" | "hold" => {
                let hash = text(body, "/token/hash");
                must(!self.grants.contains_key(hash), || {
                    format!("the grant {hash} is a token: {kind}")
                })
            }
            _ => Ok(()),
        }
    }

    fn issue(&mut self, body: &Value, decided: u64) -> Result<(), Broken> {
        let token = &body["token"];
        match body["under"].as_str() {
            Some(under) => self.used(under, (token, &body["next"]), decided)?,
            None => must(list(token, "/lineage").is_empty(), || {
                format!("{token} has grants that nobody showed")
            })?,
        }
        self.made(token);
        self.made(&body["next"]);
        Ok(())
    }

    fn used(
        &mut self,
        under: &str,
        (token, next): (&Value, &Value),
        decided: u64,
    ) -> Result<(), Broken> {
        let Some(grant) = self.grants.get(under).cloned() else {
            return must(false, || format!("{token} is got with no grant"));
        };
        let what = |fault: &str| format!("{token}, got with {under}: {fault}");
        must(!grant.spent, || what("it is spent"))?;
        must(grant.expires_ms > decided, || what("it is over"))?;
        let ends = number(token, "/expires_ms");
        must(ends <= grant.expires_ms, || what("it ends before"))?;
        let agent = text(token, "/agent");
        let chain = list(token, "/chain");
        let is_its = if grant.kind == "delegation" {
            let mut all = vec![Value::from(agent)];
            if grant.chain.is_empty() {
                all.push(grant.agent.as_str().into());
            }
            all.extend(grant.chain.iter().cloned());
            agent == grant.holder && chain == all
        } else {
            let same = agent == grant.agent && chain == grant.chain;
            same && text(token, "/jkt") == grant.jkt
        };
        must(is_its, || what("it is another's"))?;
        let users = [token, next].into_iter().filter(|it| it.is_object());
        let same = users.map(|it| &it["user"]).all(|user| *user == grant.user);
        must(same, || what("it is for another user"))?;
        let same = grant.kind != "deferral" || grant.action == token["action"];
        must(same, || what("it is for another action"))?;
        let mut lineage = grant.lineage.clone();
        if grant.kind != "deferral" && (grant.kind != "refresh" || lineage.is_empty()) {
            lineage.push(under.into());
        }
        must(list(token, "/lineage") == lineage, || {
            what("it is not said")
        })?;
        let passed_on = token["grant"].is_object();
        let is_deferral = text(token, "/grant/kind") == "deferral";
        if passed_on && grant.kind == "delegation" && !is_deferral {
            let depth = number(token, "/grant/depth");
            must(depth < grant.depth, || what("it is passed on too often"))?;
        }
        if let Some(spent) = self.grants.get_mut(under) {
            spent.spent = matches!(&*grant.kind, "refresh" | "deferral");
        }
        for hash in lineage.iter().filter(|_| !passed_on) {
            let known = self.grants.get_mut(hash.as_str().unwrap_or_default());
            let counts = known.filter(|it| it.kind == "delegation");
            if let Some(uses) = counts.and_then(|it| it.uses.as_mut()) {
                must(*uses > 0, || what("its uses are up"))?;
                *uses -= 1;
            }
        }
        Ok(())
    }

    fn made(&mut self, token: &Value) {
        let terms = &token["grant"];
        if !terms.is_object() {
            return;
        }
        let grant = Grant {
            agent: text(token, "/agent").to_owned(),
            user: token["user"].clone(),
            chain: list(token, "/chain"),
            jkt: text(token, "/jkt").to_owned(),
            kind: text(terms, "/kind").to_owned(),
            holder: text(terms, "/holder").to_owned(),
            action: token["action"].clone(),
            uses: terms["uses"].as_u64(),
            depth: number(terms, "/depth"),
            expires_ms: number(token, "/expires_ms"),
            lineage: list(token, "/lineage"),
            spent: false,
        };
        self.grants
            .insert(text(token, "/token_hash").to_owned(), grant);
    }
}
