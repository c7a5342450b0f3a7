//! Whether a rule that wants a person could ever be lifted by one.
//!
//! Lifting is nothing but the rule's own id in `context.approvals`: a rule that
//! looks for another id there, or does not look, would refuse for ever.

use cedar_policy::Policy;
use serde_json::{Value, json};

/// Whether the rule's conditions could depend on its own id being there. A
/// rule that names ids in a way that is not seen through here may pass.
pub(crate) fn can_be_lifted(policy: &Policy) -> bool {
    let Ok(parsed) = policy.to_json() else {
        return true;
    };
    let mut found = Found {
        approvals: json!({ ".": { "left": { "Var": "context" }, "attr": "approvals" } }),
        looks: false,
        ids: Vec::new(),
    };
    found.walk(parsed.get("conditions").unwrap_or(&Value::Null));
    let own: &str = policy.id().as_ref();
    found.looks && (found.ids.is_empty() || found.ids.iter().any(|id| id == own))
}

struct Found {
    /// `context.approvals`, as Cedar writes it in JSON.
    approvals: Value,
    /// Whether it stands anywhere in the conditions.
    looks: bool,
    /// The literals that it is compared with.
    ids: Vec<String>,
}

impl Found {
    fn walk(&mut self, value: &Value) {
        if *value == self.approvals {
            self.looks = true;
        }
        match value {
            Value::Object(members) => {
                for side in ["left", "right"] {
                    if members.get(side) == Some(&self.approvals) {
                        literals(value, &mut self.ids);
                    }
                }
                members.values().for_each(|member| self.walk(member));
            }
            Value::Array(items) => items.iter().for_each(|item| self.walk(item)),
            _ => {}
        }
    }
}

/// The string literals of an operation's two sides.
fn literals(operation: &Value, ids: &mut Vec<String>) {
    match operation {
        Value::Object(members) => {
            if let Some(Value::String(text)) = members.get("Value") {
                ids.push(text.clone());
            }
            members.values().for_each(|member| literals(member, ids));
        }
        Value::Array(items) => items.iter().for_each(|item| literals(item, ids)),
        _ => {}
    }
}
