//! Reading policy texts: all problems at once, each with file and line.

use crate::{Demand, FactKind, Policies, facts, lift, model, wants_human};
use cedar_policy::{Effect, Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
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
/// A `@reason` has at most so many bytes.
const REASON_MAX: usize = 512;

fn line_at(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}

/// A rule, and where it stands.
struct Rule {
    policy: Policy,
    file: String,
    line: usize,
}

impl Rule {
    fn error(&self, message: String) -> LoadError {
        LoadError {
            file: self.file.clone(),
            line: self.line,
            message,
        }
    }
}

pub(crate) fn load(
    sources: &[Source],
    approvers: &[Approver],
    facts: &BTreeMap<String, FactKind>,
) -> Result<Policies, Vec<LoadError>> {
    let mut errors = Vec::new();
    let mut rules = Vec::new();
    for source in sources {
        read(source, &mut rules, &mut errors);
    }
    let mut demands = BTreeMap::new();
    let mut told = BTreeMap::new();
    let mut seen = BTreeSet::new();
    // Of two rules with one id only the first can be looked at any further.
    let mut single = Vec::new();
    for rule in &rules {
        let id = rule.policy.id();
        if seen.insert(id.clone()) {
            single.push(rule);
        } else {
            errors.push(rule.error(format!(
                "two rules have the id `{id}`; give each its own @id"
            )));
        }
        annotations(rule, &mut errors);
        match tells(&rule.policy) {
            Ok(reason) => told.extend(reason.map(|reason| (id.clone(), reason))),
            Err(message) => errors.push(rule.error(message)),
        }
        for name in facts::unknown(&rule.policy, facts) {
            errors.push(rule.error(format!(
                "rule `{id}`: no route's body_facts names `{name}`, so context.body never has it"
            )));
        }
        if wants_human(&rule.policy) {
            if !lift::can_be_lifted(&rule.policy) {
                errors.push(rule.error(format!(
                    "rule `{id}`: no approval could lift it; write `unless {{ context.approvals.contains(\"{id}\") }}`, with the rule's own id"
                )));
            }
            match demand(&rule.policy, approvers) {
                Ok(demand) => {
                    demands.insert(id.clone(), demand);
                }
                Err(message) => errors.push(rule.error(message)),
            }
        }
    }
    let (schema, _) = Schema::from_cedarschema_str(&model::schema(facts))
        .map_err(|error| vec![elsewhere("built-in schema", &error)])?;
    let policies = || single.iter().map(|rule| rule.policy.clone());
    let all = set(policies())?;
    let without_holds = set(policies().filter(|policy| !wants_human(policy)))?;
    validate(&schema, &all, &single, sources, &mut errors);
    if !errors.is_empty() {
        let place = |error: &LoadError| {
            let file = sources.iter().position(|source| source.name == error.file);
            (file, error.line)
        };
        errors.sort_by_key(place);
        return Err(errors);
    }
    let methods = schema
        .actions()
        .map(|action| action.id().unescaped().to_owned())
        .collect();
    Ok(Policies {
        all,
        without_holds,
        demands,
        told,
        methods,
        version: version(sources),
    })
}

fn elsewhere(place: &str, error: &dyn fmt::Display) -> LoadError {
    LoadError {
        file: place.to_owned(),
        line: 0,
        message: error.to_string(),
    }
}

/// Annotations that mean nothing where they stand.
fn annotations(rule: &Rule, errors: &mut Vec<LoadError>) {
    let policy = &rule.policy;
    let id = policy.id();
    for (name, _) in policy.annotations() {
        let lifts = matches!(name, "approvers" | "quorum" | "ttl");
        if !lifts && !matches!(name, "id" | "reason" | "tell") {
            errors.push(rule.error(format!("rule `{id}`: @{name} means nothing here")));
        } else if lifts && !wants_human(policy) {
            errors.push(rule.error(if name == "approvers" {
                format!("rule `{id}`: @approvers on a `permit` would be ignored; write it on the `forbid` that a person may lift")
            } else {
                format!("rule `{id}`: @{name} without @approvers would be ignored; it belongs to a `forbid` that a person may lift")
            }));
        }
    }
}

/// What the agent may be told of a rule that refuses it.
fn tells(policy: &Policy) -> Result<Option<String>, String> {
    let id = policy.id();
    let reason = policy.annotation("reason").unwrap_or_default();
    if reason.len() > REASON_MAX {
        return Err(format!(
            "rule `{id}`: @reason is longer than {REASON_MAX} bytes"
        ));
    }
    let Some(whom) = policy.annotation("tell") else {
        return Ok(None);
    };
    if whom != "agent" {
        return Err(format!(
            "rule `{id}`: @tell says `agent`, which lets the agent have its @reason, and nothing else"
        ));
    }
    if policy.effect() != Effect::Forbid || reason.is_empty() {
        return Err(format!(
            "rule `{id}`: @tell would be ignored; it belongs to a `forbid` with a @reason"
        ));
    }
    Ok(Some(reason.to_owned()))
}

/// Parses one file and names each policy by its `@id`, else by file and number.
fn read(source: &Source, rules: &mut Vec<Rule>, errors: &mut Vec<LoadError>) {
    let parsed = match PolicySet::from_str(&source.text) {
        Ok(parsed) => parsed,
        Err(problems) => {
            for problem in problems.iter() {
                let offset = offset_of(problem);
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
    let mut taken = BTreeSet::new();
    for policy in parsed.policies() {
        // The rule's own text, as it stands in the file.
        let text = policy.to_string();
        let offset = source
            .text
            .match_indices(&text)
            .map(|(at, _)| at)
            .find(|at| taken.insert(*at));
        let line = offset.map_or(0, |at| line_at(&source.text, at));
        let id = match policy.annotation("id") {
            Some(id) if !id.is_empty() && id.len() <= 128 => id.to_owned(),
            Some(_) => {
                errors.push(LoadError {
                    file: source.name.clone(),
                    line,
                    message: "an @id has 1 to 128 characters".into(),
                });
                continue;
            }
            None => format!("{}#{}", source.name, policy.id()),
        };
        rules.push(Rule {
            policy: policy.new_id(PolicyId::new(id)),
            file: source.name.clone(),
            line,
        });
    }
    // The parser hands them out in no order of the file's.
    rules.sort_by_key(|rule| (rule.file != source.name, rule.line));
}

/// Where a problem is, in bytes from the file's beginning.
fn offset_of(problem: &dyn miette::Diagnostic) -> Option<usize> {
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
    PolicySet::from_policies(policies).map_err(|error| vec![elsewhere("policies", &error)])
}

fn validate(
    schema: &Schema,
    all: &PolicySet,
    rules: &[&Rule],
    sources: &[Source],
    errors: &mut Vec<LoadError>,
) {
    let result = Validator::new(schema.clone()).validate(all, ValidationMode::Strict);
    for error in result.validation_errors() {
        let Some(rule) = rules
            .iter()
            .find(|rule| rule.policy.id() == error.policy_id())
        else {
            errors.push(elsewhere("policies", error));
            continue;
        };
        let within = offset_of(error).and_then(|offset| {
            let source = sources.iter().find(|source| source.name == rule.file)?;
            Some(line_at(&source.text, offset))
        });
        errors.push(LoadError {
            file: rule.file.clone(),
            line: within.unwrap_or(rule.line),
            message: error.to_string(),
        });
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
