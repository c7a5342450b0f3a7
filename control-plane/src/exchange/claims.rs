//! What a token says of who may use it, and under which key: users' tokens, ID-JAGs, and
//! agents' own evidence. Read from verified claims, and from nothing else.

use super::ExchangeError;
use crate::config::Users;
use capability::reason::Reason;
use capability::spiffe;
use serde_json::{Map, Value};

/// All that a token says.
pub(super) type Claims = Map<String, Value>;

/// Whom a token was issued to (OpenID Connect Core 1.0, section 2; RFC 9068, section 2.2).
const PARTIES: [&str; 2] = ["azp", "client_id"];

/// What was proven of a key: the thumbprint of the proof's, and the certificate's digest.
pub(super) type ProvenKeys<'a> = (&'a str, Option<&'a str>);

fn no<T>(reason: Reason, what: impl Into<String>) -> Result<T, ExchangeError> {
    Err(ExchangeError::Evidence(reason, what.into()))
}

/// What a token is bound to is what was proven (RFC 7800, section 3.1).
pub(super) fn bound(claims: &Claims, (jkt, x5t): ProvenKeys<'_>) -> Result<(), ExchangeError> {
    let Some(cnf) = claims.get("cnf") else {
        return Ok(());
    };
    let proven = |(name, value): (&String, &Value)| match name.as_str() {
        // Where there is no proof nothing is bound to it.
        "jkt" => !jkt.is_empty() && value.as_str() == Some(jkt),
        "x5t#S256" => x5t.is_some() && value.as_str() == x5t,
        _ => false,
    };
    let all = cnf.as_object().filter(|it| !it.is_empty());
    if !all.is_some_and(|all| all.iter().all(proven)) {
        return no(
            Reason::ProofKeyMismatch,
            "it is bound to a key (`cnf`), and the DPoP proof or the client certificate is not that key's",
        );
    }
    Ok(())
}

/// Whether an `act` or a `may_act` is this agent, whom `named` knows by its names.
fn is_it(claims: &Claims, actor: &Value, named: &dyn Fn(&str) -> bool) -> bool {
    let Some(actor) = actor.as_object() else {
        return false;
    };
    // Each of them has to be this agent, and there is at least one.
    let says = actor.contains_key("sub") || actor.contains_key("client_id");
    says && actor.iter().all(|(name, value)| match name.as_str() {
        "sub" | "client_id" => value.as_str().is_some_and(named),
        "iss" => value.is_string() && Some(value) == claims.get("iss"),
        // Who acted before is told, and decides nothing.
        "act" => true,
        _ => false,
    })
}

fn lets_act(claims: &Claims, named: &dyn Fn(&str) -> bool) -> Result<(), ExchangeError> {
    match claims.get("may_act") {
        Some(actor) if !is_it(claims, actor, named) => {
            no(Reason::AgentInactive, "its `may_act` is not this agent")
        }
        _ => Ok(()),
    }
}

/// What a user's token says of who may act on it (RFC 8693, sections 4.1 and 4.4).
pub(super) fn may_act(claims: &Claims, named: &dyn Fn(&str) -> bool) -> Result<(), ExchangeError> {
    lets_act(claims, named)?;
    match claims.get("act") {
        Some(actor) if !is_it(claims, actor, named) => no(
            Reason::AgentInactive,
            "another than this agent acts for its user already (`act`)",
        ),
        _ => Ok(()),
    }
}

/// What an agent's own evidence is held to: its key, and that nobody else acts by it.
pub(super) fn own(
    claims: &Claims,
    named: &dyn Fn(&str) -> bool,
    keys: ProvenKeys<'_>,
) -> Result<(), ExchangeError> {
    if claims.contains_key("act") {
        return no(
            Reason::AgentInactive,
            "somebody else acts by it (`act`), and who an agent is its own evidence says",
        );
    }
    lets_act(claims, named)?;
    bound(claims, keys)
}

/// Whom a user's token was issued to is no other agent, and where it was made for a client
/// that one.
pub(super) fn issued_to(
    claims: &Claims,
    audience: &str,
    users: &Users,
    agent: &str,
) -> Result<(), ExchangeError> {
    for name in PARTIES {
        let Some(party) = claims.get(name) else {
            continue;
        };
        let Some(party) = party.as_str() else {
            return no(Reason::TokenMalformed, format!("its `{name}` is no text"));
        };
        if audience != users.audience && party != audience {
            let what = format!("its `{name}` is another client");
            return no(Reason::TokenAudience, what);
        }
        if is_agents(party, users, agent) {
            continue;
        }
        let mut known = users.clients.iter();
        if known.any(|it| it.client_id == party) || spiffe::is_workload(party) {
            let what = format!("it was issued to another agent (`{name}`)");
            return no(Reason::TokenAudience, what);
        }
    }
    Ok(())
}

fn is_agents(name: &str, users: &Users, agent: &str) -> bool {
    name == agent || users.is_client(name, agent)
}

/// The claim by which a user's token is one agent's alone, so that another could not show
/// it; none: any agent could that gets hold of it.
pub(super) fn alone(
    claims: &Claims,
    audience: &str,
    users: &Users,
    agent: &str,
) -> Option<&'static str> {
    if audience != users.audience {
        return Some("aud");
    }
    let mut names = ["may_act", "act", "cnf"].into_iter();
    let named = names.find(|name| claims.contains_key(*name));
    named.or_else(|| {
        PARTIES.into_iter().find(|name| {
            let party = claims.get(*name).and_then(Value::as_str);
            party.is_some_and(|party| is_agents(party, users, agent))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UserClient;
    use serde_json::json;

    const A: &str = "spiffe://writ.example/a";
    const B: &str = "spiffe://writ.example/b";
    const US: &str = "https://writ.example/users";

    fn users() -> Users {
        let client = |client_id: &str, agent: &str| UserClient {
            client_id: client_id.to_owned(),
            agent: agent.to_owned(),
            line: 0,
        };
        Users {
            audience: US.to_owned(),
            clients: vec![client("app-a", A), client("app-b", B)],
            id_jag: true,
            scopes: None,
            line: 0,
        }
    }

    fn claims(claims: &Value) -> Claims {
        claims.as_object().unwrap().clone()
    }

    fn reason(result: Result<(), ExchangeError>) -> Option<Reason> {
        result.err().map(|error| error.reason())
    }

    #[test]
    fn what_a_token_is_bound_to_is_proven() {
        let (mismatch, keys) = (Some(Reason::ProofKeyMismatch), ("key", Some("cert")));
        for (cnf, keys, wanted) in [
            (json!({ "jkt": "key" }), keys, None),
            (json!({ "x5t#S256": "cert" }), keys, None),
            (json!({ "jkt": "key", "x5t#S256": "cert" }), keys, None),
            (json!({ "jkt": "other" }), keys, mismatch),
            (json!({ "jkt": "key", "x5t#S256": "other" }), keys, mismatch),
            (json!({ "x5t#S256": "cert" }), ("key", None), mismatch),
            (json!({ "x5t#S256": null }), ("key", None), mismatch),
            // Where no proof is asked for.
            (json!({ "jkt": "" }), ("", None), mismatch),
            (json!({ "jkt": "key", "kid": "x" }), keys, mismatch),
            (json!({ "jwk": {} }), keys, mismatch),
            (json!({ "jkt": ["key"] }), keys, mismatch),
            (json!({}), keys, mismatch),
            (json!("key"), keys, mismatch),
            (json!(null), keys, mismatch),
        ] {
            let token = claims(&json!({ "cnf": cnf }));
            assert_eq!(reason(bound(&token, keys)), wanted, "{token:?} {keys:?}");
        }
        assert_eq!(reason(bound(&Claims::new(), ("", None))), None);
    }

    #[test]
    fn an_agents_own_evidence_is_nobody_elses() {
        let named = |name: &str| name == A || name == "app-a";
        let (other, key) = (Some(Reason::AgentInactive), Some(Reason::ProofKeyMismatch));
        for (token, wanted) in [
            (json!({}), None),
            (json!({ "may_act": { "sub": A } }), None),
            (
                json!({ "may_act": { "sub": A, "iss": "i" }, "iss": "i" }),
                None,
            ),
            (json!({ "may_act": { "client_id": "app-a" } }), None),
            (json!({ "cnf": { "jkt": "key" } }), None),
            (json!({ "may_act": { "sub": B } }), other),
            (
                json!({ "may_act": { "sub": A, "client_id": "app-b" } }),
                other,
            ),
            (json!({ "may_act": { "sub": A, "iss": "i" } }), other),
            (json!({ "may_act": { "sub": A, "iss": null } }), other),
            (json!({ "may_act": {} }), other),
            (json!({ "may_act": null }), other),
            (json!({ "may_act": A }), other),
            // Also where it names the agent: then the token is another's.
            (json!({ "act": { "sub": A } }), other),
            (json!({ "act": null }), other),
            (json!({ "cnf": { "jkt": "other" } }), key),
            (json!({ "cnf": {} }), key),
        ] {
            let found = own(&claims(&token), &named, ("key", None));
            assert_eq!(reason(found), wanted, "{token}");
        }
    }

    #[test]
    fn a_users_token_is_for_no_agent_but_the_one_that_it_was_issued_to() {
        let (another, malformed) = (Some(Reason::TokenAudience), Some(Reason::TokenMalformed));
        for (token, audience, wanted) in [
            (json!({}), US, None),
            (json!({ "azp": "some-app" }), US, None),
            (json!({ "client_id": "some-app" }), US, None),
            (json!({ "azp": "app-a", "client_id": A }), US, None),
            (json!({ "azp": US }), US, None),
            (json!({ "azp": "app-b" }), US, another),
            (json!({ "client_id": "app-b" }), US, another),
            (json!({ "azp": "app-a", "client_id": "app-b" }), US, another),
            (json!({ "client_id": B }), US, another),
            (json!({ "azp": B }), US, another),
            (json!({ "azp": "app-a" }), "app-a", None),
            (json!({ "azp": "app-b" }), "app-a", another),
            (json!({ "client_id": "some-app" }), "app-a", another),
            (json!({ "azp": 5 }), US, malformed),
            (json!({ "azp": ["app-a"] }), "app-a", malformed),
            (json!({ "client_id": null }), US, malformed),
        ] {
            let found = issued_to(&claims(&token), audience, &users(), A);
            assert_eq!(reason(found), wanted, "{token} {audience}");
        }
    }

    #[test]
    fn what_another_agent_could_not_show_is_one_agents_alone() {
        for (token, audience, wanted) in [
            (json!({}), US, None),
            (
                json!({ "azp": "some-app", "client_id": "some-app" }),
                US,
                None,
            ),
            (json!({}), "app-a", Some("aud")),
            (json!({ "may_act": { "sub": A } }), US, Some("may_act")),
            (json!({ "act": { "sub": A } }), US, Some("act")),
            (json!({ "cnf": { "jkt": "key" } }), US, Some("cnf")),
            (json!({ "azp": "app-a" }), US, Some("azp")),
            (json!({ "client_id": "app-a" }), US, Some("client_id")),
            (json!({ "client_id": A }), US, Some("client_id")),
        ] {
            let found = alone(&claims(&token), audience, &users(), A);
            assert_eq!(found, wanted, "{token} {audience}");
        }
    }
}
