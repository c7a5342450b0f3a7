//! The request model that policies see.

use crate::{Fact, FactKind, Message, Protocol, Question};
use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
    Schema,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::str::FromStr;
use std::sync::LazyLock;

/// The schema that every policy is validated against, in Cedar's own syntax.
pub const SCHEMA: &str = r#"
namespace Writ {
  // The caller. Its id is the SPIFFE ID.
  entity Agent = { "trust_domain": String, "path": String };
  // What is acted on. Its id is the normalised absolute URL.
  entity Resource = { "origin": String, "path": String, "query": String };
  type Request = {
    "phase": String,            // "exchange" or "request"
    "time_s": Long,             // seconds since the Unix epoch
    "method": String,
    "path": String,
    "query": String,
    "user"?: { "issuer": String, "subject": String },
    "delegators": Set<String>,  // the agents that it acts for, by their SPIFFE IDs
    "approvals": Set<String>,   // ids of rules that a human has lifted
    "mcp"?: Mcp,                // of an mcp_request, beside the action "POST"
    "a2a"?: A2a,                // of an a2a_request, beside the action "POST"
    "body"?: Body               // at requests on routes that read bodies
  };
  type Mcp = {
    "method": String,           // such as "tools/call"
    "name"?: String,            // the tool, the prompt, or the resource's URI
    "arguments_digest"?: String // where the capability is for these arguments alone
  };
  type A2a = {
    "method": String,           // such as "SendMessage"
    "skill"?: String            // where the capability is for one skill
  };
  // Beside these come the facts that `body_facts` names, each by its pointer.
  type Body = {
    "sha256": String,           // of its bytes as they were sent, base64url
    "bytes": Long               // how many they are
  };
  action "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS" appliesTo {
    principal: [Agent],
    resource: [Resource],
    context: Request
  };
}
"#;

/// The schema with these facts of bodies in it. A fact is there or not, as the
/// route of a request says.
#[must_use]
pub fn schema(facts: &BTreeMap<String, FactKind>) -> String {
    const BODY: &str = "  type Body = {\n";
    let mut body = BODY.to_owned();
    for (pointer, kind) in facts {
        let kind = match kind {
            FactKind::Text => "String",
            FactKind::Integer => "Long",
            FactKind::Flag => "Bool",
        };
        // A pointer has no quotes and no backslashes: see `capability::body`.
        body.push_str(&format!("    \"{pointer}\"?: {kind},\n"));
    }
    SCHEMA.replacen(BODY, &body, 1)
}

/// A type of the schema's, parsed once: each question has three of them.
type Kind = LazyLock<Result<EntityTypeName, String>>;

static AGENT: Kind = LazyLock::new(|| kind("Writ::Agent"));
static ACTION: Kind = LazyLock::new(|| kind("Writ::Action"));
static RESOURCE: Kind = LazyLock::new(|| kind("Writ::Resource"));

fn kind(name: &str) -> Result<EntityTypeName, String> {
    EntityTypeName::from_str(name).map_err(|error| error.to_string())
}

/// Entity ids come from agents: they are built by typed constructors, never by
/// pasting into Cedar text.
fn uid(kind: &Kind, id: &str) -> Result<EntityUid, Vec<String>> {
    let kind = LazyLock::force(kind).clone().map_err(|error| vec![error])?;
    Ok(EntityUid::from_type_name_and_id(kind, EntityId::new(id)))
}

fn text(value: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(value.to_owned())
}

/// A message, under the name that its protocol has in the context.
fn told(message: &Message<'_>) -> Result<(String, RestrictedExpression), Vec<String>> {
    let (own, name) = match message.protocol {
        Protocol::Mcp => ("mcp", "name"),
        Protocol::A2a => ("a2a", "skill"),
    };
    let mut members = vec![("method".to_owned(), text(message.method))];
    let more = [
        (name, message.name),
        ("arguments_digest", message.arguments_digest),
    ];
    for (name, value) in more {
        members.extend(value.map(|value| (name.to_owned(), text(value))));
    }
    let record = RestrictedExpression::new_record(members);
    let record = record.map_err(|error| vec![error.to_string()])?;
    Ok((own.to_owned(), record))
}

/// What policies are asked about. With a schema the parts are checked against
/// it, which costs more than deciding does: they are made here and nowhere else,
/// and the tests check every shape of them.
pub(crate) fn request(
    schema: Option<&Schema>,
    phase: &str,
    question: &Question<'_>,
    approved: &BTreeSet<String>,
) -> Result<(Request, Entities), Vec<String>> {
    fn say(error: impl ToString) -> Vec<String> {
        vec![error.to_string()]
    }
    let principal = uid(&AGENT, question.agent)?;
    let action = uid(&ACTION, question.method)?;
    let resource = uid(&RESOURCE, question.location)?;

    let spiffe = question
        .agent
        .strip_prefix("spiffe://")
        .unwrap_or(question.agent);
    let (trust_domain, path) = match spiffe.split_once('/') {
        Some((domain, _)) => (domain, spiffe.strip_prefix(domain).unwrap_or_default()),
        None => (spiffe, ""),
    };
    let agent = Entity::new(
        principal.clone(),
        HashMap::from([
            ("trust_domain".to_owned(), text(trust_domain)),
            ("path".to_owned(), text(path)),
        ]),
        HashSet::new(),
    )
    .map_err(say)?;
    let target = Entity::new(
        resource.clone(),
        HashMap::from([
            ("origin".to_owned(), text(question.origin)),
            ("path".to_owned(), text(question.path)),
            ("query".to_owned(), text(question.query)),
        ]),
        HashSet::new(),
    )
    .map_err(say)?;

    let time_s = i64::try_from(question.time_s).map_err(say)?;
    let own = |id: &&String| id.as_str() == question.agent;
    let delegators = question.chain.iter().filter(|id| !own(id));
    let mut context = vec![
        ("phase".to_owned(), text(phase)),
        ("time_s".to_owned(), RestrictedExpression::new_long(time_s)),
        ("method".to_owned(), text(question.method)),
        ("path".to_owned(), text(question.path)),
        ("query".to_owned(), text(question.query)),
        (
            "delegators".to_owned(),
            RestrictedExpression::new_set(delegators.map(|id| text(id))),
        ),
        (
            "approvals".to_owned(),
            RestrictedExpression::new_set(approved.iter().map(|id| text(id))),
        ),
    ];
    if let Some((issuer, subject)) = question.user {
        let user = RestrictedExpression::new_record([
            ("issuer".to_owned(), text(issuer)),
            ("subject".to_owned(), text(subject)),
        ])
        .map_err(say)?;
        context.push(("user".to_owned(), user));
    }
    if let Some(message) = &question.message {
        context.push(told(message)?);
    }
    if let Some(body) = &question.body {
        let bytes = i64::try_from(body.bytes).map_err(say)?;
        let mut members = vec![
            ("sha256".to_owned(), text(body.sha256)),
            ("bytes".to_owned(), RestrictedExpression::new_long(bytes)),
        ];
        for (pointer, fact) in body.facts {
            let value = match fact {
                Fact::Text(value) => text(value),
                Fact::Integer(value) => RestrictedExpression::new_long(*value),
                Fact::Flag(value) => RestrictedExpression::new_bool(*value),
            };
            members.push((pointer.clone(), value));
        }
        let body = RestrictedExpression::new_record(members).map_err(say)?;
        context.push(("body".to_owned(), body));
    }
    let context = Context::from_pairs(context).map_err(say)?;
    let request = Request::new(principal, action, resource, context, schema).map_err(say)?;
    let entities = Entities::from_entities([agent, target], schema).map_err(say)?;
    Ok((request, entities))
}
