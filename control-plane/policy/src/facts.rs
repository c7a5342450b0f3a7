//! Facts of bodies that a rule asks for and no route names.
//!
//! To the validator `has` with a name that the schema does not have is plain
//! false: a `forbid` that misspells a pointer would never forbid anything.

use crate::FactKind;
use cedar_policy::Policy;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What every body has.
const ALWAYS: [&str; 2] = ["sha256", "bytes"];

/// The names that the rule looks for in `context.body` and that nothing has.
pub(crate) fn unknown(policy: &Policy, facts: &BTreeMap<String, FactKind>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    if let Ok(parsed) = policy.to_json() {
        let body = json!({ ".": { "left": { "Var": "context" }, "attr": "body" } });
        walk(&parsed, &body, &mut names);
    }
    names.retain(|name| !ALWAYS.contains(&name.as_str()) && !facts.contains_key(name));
    names
}

fn walk(value: &Value, body: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            if members.get("left") == Some(body)
                && let Some(Value::String(name)) = members.get("attr")
            {
                names.insert(name.clone());
            }
            members
                .values()
                .for_each(|member| walk(member, body, names));
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, body, names)),
        _ => {}
    }
}
