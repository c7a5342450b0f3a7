//! Reading policy texts: all problems at once, each with file and line.

use crate::{Demand, Policies, model::SCHEMA, wants_human};
use cedar_policy::{Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// One policy file's text.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file's name, as errors should show it.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Somebody who may decide, and the groups that `@approvers` may name instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approver {
    /// The name of the human.
    pub name: String,
    /// Groups that the human is in.
    pub groups: Vec<String>,
}

impl Approver {
    /// Whether one of `wanted` is this human's name or group.
    #[must_use]
    pub fn is_one_of(&self, wanted: &[String]) -> bool {
        wanted
            .iter()
            .any(|name| *name == self.name || self.groups.contains(name))
    }
}

/// What is wrong with a policy, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct LoadError {
    /// The file.
    pub file: String,
    /// The line, from 1; 0 when it is unknown.
    pub line: usize,
    /// What is wrong and, where known, what to do.
    pub message: String,
}

impl fmt::Display for LoadError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(out, "{}: {}", self.file, self.message)
        } else {
            write!(out, "{}:{}: {}", self.file, self.line, self.message)
        }
    }
}

/// The longest `@ttl`, in seconds: an approval lives 24 hours at most.
const TTL_MAX_S: u64 = 24 * 60 * 60;

fn line_at(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}

pub(crate) fn load(sources: &[Source], approvers: &[Approver]) -> Result<Policies, Vec<LoadError>> {
    let mut errors = Vec::new();
    let mut found: Vec<(Policy, String)> = Vec::new();
    for source in sources {
        read(source, &mut found, &mut errors);
    }
    let mut demands = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (policy, file) in &found {
        if !seen.insert(policy.id().clone()) {
            errors.push(LoadError {
                file: file.clone(),
                line: 0,
                message: format!(
                    "two rules have the id `{}`; give each its own @id",
                    policy.id()
                ),
            });
        }
        for (name, _) in policy.annotations() {
            let lifts = matches!(name, "approvers" | "quorum" | "ttl");
            if !lifts && !matches!(name, "id" | "reason") {
                errors.push(LoadError {
                    file: file.clone(),
                    line: 0,
                    message: format!("rule `{}`: @{name} means nothing here", policy.id()),
                });
            } else if lifts && !wants_human(policy) {
                let message = format!(
                    "rule `{}`: @{name} is for a `forbid` with @approvers; here it would be ignored",
                    policy.id()
                );
                errors.push(LoadError {
                    file: file.clone(),
                    line: 0,
                    message,
                });
            }
        }
        if wants_human(policy) {
            match demand(policy, approvers) {
                Ok(demand) => {
                    demands.insert(policy.id().clone(), demand);
                }
                Err(message) => errors.push(LoadError {
                    file: file.clone(),
                    line: 0,
                    message,
                }),
            }
        }
    }
    let (schema, _) = Schema::from_cedarschema_str(SCHEMA).map_err(|error| {
        vec![LoadError {
            file: "built-in schema".into(),
            line: 0,
            message: error.to_string(),
        }]
    })?;
    if !errors.is_empty() {
        return Err(errors);
    }
    let all = set(found.iter().map(|(policy, _)| policy.clone()))?;
    let without_holds = set(found
        .iter()
        .map(|(policy, _)| policy.clone())
        .filter(|policy| !wants_human(policy)))?;
    validate(&schema, &all, &found)?;
    let methods = schema
        .actions()
        .map(|action| action.id().unescaped().to_owned())
        .collect();
    Ok(Policies {
        all,
        without_holds,
        demands,
        methods,
        version: version(sources),
    })
}

/// Parses one file and names each policy by its `@id`, else by file and number.
fn read(source: &Source, found: &mut Vec<(Policy, String)>, errors: &mut Vec<LoadError>) {
    let parsed = match PolicySet::from_str(&source.text) {
        Ok(parsed) => parsed,
        Err(problems) => {
            for problem in problems.iter() {
                let offset = miette_offset(problem);
                errors.push(LoadError {
                    file: source.name.clone(),
                    line: offset.map_or(0, |offset| line_at(&source.text, offset)),
                    message: problem.to_string(),
                });
            }
            return;
        }
    };
    if parsed.templates().next().is_some() {
        errors.push(LoadError {
            file: source.name.clone(),
            line: 0,
            message: "policy templates have nothing that links them here; write static policies"
                .into(),
        });
    }
    for policy in parsed.policies() {
        let id = match policy.annotation("id") {
            Some(id) if !id.is_empty() && id.len() <= 128 => id.to_owned(),
            Some(_) => {
                errors.push(LoadError {
                    file: source.name.clone(),
                    line: 0,
                    message: "an @id has 1 to 128 characters".into(),
                });
                continue;
            }
            None => format!("{}#{}", source.name, policy.id()),
        };
        found.push((policy.new_id(PolicyId::new(id)), source.name.clone()));
    }
}

fn miette_offset(problem: &cedar_policy::ParseError) -> Option<usize> {
    use miette::Diagnostic;
    problem
        .labels()
        .and_then(|mut labels| labels.next())
        .map(|label| label.offset())
}

fn demand(policy: &Policy, approvers: &[Approver]) -> Result<Demand, String> {
    let id = policy.id();
    let wanted: Vec<String> = policy
        .annotation("approvers")
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    if wanted.is_empty() {
        return Err(format!(
            "rule `{id}`: @approvers names nobody, so the rule could never be lifted"
        ));
    }
    for name in &wanted {
        let known = approvers
            .iter()
            .any(|approver| approver.name == *name || approver.groups.contains(name));
        if !known {
            return Err(format!(
                "rule `{id}`: @approvers names `{name}`, who is no [[approver]] and no group of one"
            ));
        }
    }
    // A demand that can't be checked is refused, since ignoring it would widen the rule.
    if policy
        .annotation("quorum")
        .is_some_and(|quorum| quorum.trim() != "1")
    {
        return Err(format!("rule `{id}`: only @quorum(\"1\") can be enforced"));
    }
    let ttl_s = match policy.annotation("ttl") {
        None => None,
        Some(text) => Some(
            seconds(text)
                .ok_or_else(|| format!("rule `{id}`: @ttl(\"{text}\") is not like \"90s\", \"15m\" or \"24h\" (24h at most)"))?,
        ),
    };
    let reason = policy.annotation("reason").unwrap_or_default().to_owned();
    if reason.len() > 512 {
        return Err(format!("rule `{id}`: @reason is longer than 512 bytes"));
    }
    Ok(Demand {
        rule: id.to_string(),
        approvers: wanted,
        reason,
        ttl_s,
    })
}

fn seconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, unit) = [('s', 1), ('m', 60), ('h', 3600)]
        .into_iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (digits, unit)))?;
    digits
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)
        .filter(|total| (1..=TTL_MAX_S).contains(total))
}

fn set(policies: impl Iterator<Item = Policy>) -> Result<PolicySet, Vec<LoadError>> {
    PolicySet::from_policies(policies).map_err(|error| {
        vec![LoadError {
            file: "policies".into(),
            line: 0,
            message: error.to_string(),
        }]
    })
}

fn validate(
    schema: &Schema,
    all: &PolicySet,
    found: &[(Policy, String)],
) -> Result<(), Vec<LoadError>> {
    let result = Validator::new(schema.clone()).validate(all, ValidationMode::Strict);
    let errors: Vec<LoadError> = result
        .validation_errors()
        .map(|error| LoadError {
            file: found
                .iter()
                .find(|(policy, _)| policy.id() == error.policy_id())
                .map_or_else(|| "policies".to_owned(), |(_, file)| file.clone()),
            line: 0,
            message: error.to_string(),
        })
        .collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

fn version(sources: &[Source]) -> String {
    let mut digest = Sha256::new();
    for source in sources {
        digest.update(source.name.len().to_le_bytes());
        digest.update(&source.name);
        digest.update(source.text.len().to_le_bytes());
        digest.update(&source.text);
    }
    hex::encode(digest.finalize())
}
