//! Whom an agent acts for: a user's token (RFC 8693), or an ID-JAG
//! (draft-ietf-oauth-identity-assertion-authz-grant).
//!
//! A user is issuer and subject, here and everywhere. A user's token counts when it was
//! made for us, or for the agent that shows it: what was made for somebody else was not
//! given to this agent.

use super::ExchangeError;
use super::issuers::{Issuers, Known};
use crate::config::Users;
use crate::state::Core;
use capability::action::Action;
use capability::reason::Reason;
use capability::url::Target;
use identity::oidc::{ForeignEvidence, Types, Wanted, claimed_audience};
use ledger::model::{EvidenceOf, User};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// `typ` of an ID-JAG.
const ID_JAG: &str = "oauth-id-jag+jwt";
/// `typ` of access tokens (RFC 9068), which users' may be.
const ACCESS_TOKEN: &[&str] = &["at+jwt", "application/at+jwt"];
/// Bytes of a user's `sub` (OpenID Connect Core 1.0, section 2).
const SUBJECT_MAX: usize = 255;
/// Bytes of an ID-JAG's `jti`.
const JTI_MAX: usize = 256;

/// Who wants to act.
pub(super) struct Acting<'a> {
    /// The agent's SPIFFE ID.
    pub(super) agent: &'a str,
    /// The clients that it is here.
    pub(super) names: Vec<&'a str>,
    /// Thumbprint of its key.
    pub(super) jkt: &'a str,
    /// Its certificate.
    pub(super) x5t: Option<&'a str>,
}

/// A user whom an agent may act for.
pub(super) struct ForUser {
    /// The user.
    pub(super) user: User,
    /// What says so, of which the keys that it is shown under are counted.
    pub(super) evidence: EvidenceOf,
    /// What the log has of it.
    pub(super) told: Value,
    /// An ID-JAG counts once.
    pub(super) once: Option<EvidenceOf>,
    /// What it is for, where it says.
    terms: Terms,
}

/// What an ID-JAG narrows.
#[derive(Default)]
struct Terms {
    resources: Option<Vec<String>>,
    elements: Option<Vec<Action>>,
}

impl ForUser {
    /// Whether it is for less than policy allows: what comes of it has to be looked at
    /// each time.
    pub(super) fn is_narrowed(&self) -> bool {
        self.terms.resources.is_some() || self.terms.elements.is_some()
    }

    /// Whether the user's word covers this action.
    pub(super) fn check(&self, action: &Action) -> Result<(), ExchangeError> {
        let under = |resource: &String| {
            let resource = Target::location(resource);
            resource.is_ok_and(|it| action.target().is_within(&it))
        };
        let Terms {
            resources,
            elements,
        } = &self.terms;
        if resources.as_ref().is_some_and(|all| !all.iter().any(under)) {
            let what = "`locations` is not under the `resource` of the assertion";
            return Err(ExchangeError::Target(what.into()));
        }
        if elements.as_ref().is_some_and(|all| !all.contains(action)) {
            let what = "it is none of the actions in the `authorization_details` of the assertion";
            return Err(ExchangeError::Details(what.into()));
        }
        Ok(())
    }
}

fn no<T>(reason: Reason, what: &str) -> Result<T, ExchangeError> {
    Err(ExchangeError::Evidence(reason, what.to_owned()))
}

impl Issuers {
    /// Whether a token can only be a user's, going by what it says of itself.
    pub(super) fn is_a_users(&self, token: &str) -> bool {
        let Some((known, users)) = self.named_in(token).and_then(with_users) else {
            return false;
        };
        let audience = claimed_audience(token).unwrap_or_default();
        let named =
            users.audience == audience || users.clients.iter().any(|it| it.client_id == audience);
        known.config.agents.is_empty() || named
    }

    /// The user whose token this is, where this agent may act for them. `id_token`: it came
    /// as one, which an access token is not.
    pub(super) async fn user(
        &self,
        token: &str,
        id_token: bool,
        acting: &Acting<'_>,
        now_ms: u64,
    ) -> Result<ForUser, ExchangeError> {
        let Some((known, users)) = self.named_in(token).and_then(with_users) else {
            return no(
                Reason::TokenIssuer,
                "its `iss` is no issuer whose users agents act for",
            );
        };
        let clients = users.clients.iter().map(|it| it.client_id.as_str());
        let wanted = Wanted {
            audiences: std::iter::once(users.audience.as_str())
                .chain(clients)
                .collect(),
            types: Types::Plain(if id_token { &[] } else { ACCESS_TOKEN }),
            lifetime_max_ms: known.config.lifetime_max_s.saturating_mul(1000),
        };
        let verified = known.issuer.verify_as(token, &wanted, now_ms).await?;
        let for_us = verified.audience() == users.audience;
        if !for_us && !users.is_client(verified.audience(), acting.agent) {
            return no(Reason::TokenAudience, "it was made for another agent");
        }
        // OpenID Connect Core 1.0, section 2: who asked for it.
        let party = verified.claim("azp").and_then(Value::as_str);
        if !for_us && party.is_some_and(|azp| azp != verified.audience()) {
            return no(Reason::TokenAudience, "its `azp` is another client");
        }
        may_act(&verified, users, acting)?;
        for_user(&verified, acting, None, Terms::default())
    }

    /// The user whom an ID-JAG lets this agent act for.
    pub(super) async fn granted(
        &self,
        token: &str,
        core: &Core,
        acting: &Acting<'_>,
        now_ms: u64,
    ) -> Result<ForUser, ExchangeError> {
        let found = self.named_in(token).and_then(with_users);
        let Some((known, users)) = found.filter(|(_, users)| users.id_jag) else {
            return no(
                Reason::TokenIssuer,
                "its `iss` is no issuer whose ID-JAGs are taken",
            );
        };
        let wanted = Wanted {
            audiences: vec![&core.config.server.issuer],
            types: Types::Only(ID_JAG),
            lifetime_max_ms: known.config.lifetime_max_s.saturating_mul(1000),
        };
        let verified = known.issuer.verify_as(token, &wanted, now_ms).await?;
        let client = verified.text("client_id").unwrap_or_default();
        let is_it = client == acting.agent
            || acting.names.contains(&client)
            || users.is_client(client, acting.agent);
        if !is_it {
            return no(Reason::TokenAudience, "its `client_id` is another client");
        }
        let jti = verified.text("jti").unwrap_or_default();
        if jti.is_empty() || jti.len() > JTI_MAX {
            return no(
                Reason::TokenMalformed,
                "it has no `jti` of at most 256 bytes",
            );
        }
        if verified.issued_ms() < core.once_from_ms() {
            return no(
                Reason::TokenSpent,
                "it was made before the server's start, or seconds after it, and may have been used: get a new one",
            );
        }
        let terms = terms(&verified, users)?;
        may_act(&verified, users, acting)?;
        // JSON keeps the two apart, whatever is in them.
        let named = serde_json::json!(["id-jag", verified.issuer(), jti]).to_string();
        let once = EvidenceOf {
            id: Sha256::digest(named).into(),
            expires_ms: verified.expires_ms(),
        };
        for_user(&verified, acting, Some(once), terms)
    }
}

fn with_users(known: &Known) -> Option<(&Known, &Users)> {
    Some((known, known.config.users.as_ref()?))
}

/// What the token says of who may act on it (RFC 8693, sections 4.1 and 4.4).
fn may_act(
    verified: &ForeignEvidence,
    users: &Users,
    acting: &Acting<'_>,
) -> Result<(), ExchangeError> {
    let client = |name: &str| name == acting.agent || users.is_client(name, acting.agent);
    let is_it = |actor: &Value| {
        let Some(actor) = actor.as_object() else {
            return false;
        };
        // Each of them has to be this agent, and there is at least one.
        let named = actor.contains_key("sub") || actor.contains_key("client_id");
        named
            && actor.iter().all(|(name, value)| match name.as_str() {
                "sub" | "client_id" => value.as_str().is_some_and(client),
                "iss" => value.as_str() == Some(verified.issuer()),
                // Who acted before is told, and decides nothing.
                "act" => true,
                _ => false,
            })
    };
    if verified.claim("may_act").is_some_and(|it| !is_it(it)) {
        return no(Reason::AgentInactive, "its `may_act` is not this agent");
    }
    if verified.claim("act").is_some_and(|it| !is_it(it)) {
        return no(
            Reason::AgentInactive,
            "another than this agent acts for its user already (`act`)",
        );
    }
    Ok(())
}

/// What a token is bound to is what was proven (RFC 7800, section 3.1).
fn bound(verified: &ForeignEvidence, acting: &Acting<'_>) -> Result<(), ExchangeError> {
    let Some(cnf) = verified.claim("cnf") else {
        return Ok(());
    };
    let proven = |(name, value): (&String, &Value)| match name.as_str() {
        "jkt" => value.as_str() == Some(acting.jkt),
        "x5t#S256" => acting.x5t.is_some() && value.as_str() == acting.x5t,
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

fn terms(verified: &ForeignEvidence, users: &Users) -> Result<Terms, ExchangeError> {
    let wrong = |what| no(Reason::TokenMalformed, what);
    match verified.claim("scope") {
        None => {}
        Some(Value::String(scope)) => {
            let mut words = scope.split(' ').filter(|it| !it.is_empty());
            // What it narrows nobody here would hold the agent to.
            if words.any(|it| !users.scopes.iter().any(|taken| taken == it)) {
                return no(
                    Reason::ActionMismatch,
                    "its `scope` narrows it in a way that is not known here; the operator says which scopes do not (identity.issuer.users.scopes)",
                );
            }
        }
        Some(_) => return wrong("its `scope` is no string"),
    }
    let resources = match verified.claim("resource") {
        None => None,
        Some(Value::String(one)) => Some(vec![one.clone()]),
        Some(Value::Array(all)) => {
            let all = all.iter().map(|it| it.as_str().map(str::to_owned));
            let Some(all) = all.collect() else {
                return wrong("its `resource` is no URL, and no list of URLs");
            };
            Some(all)
        }
        Some(_) => return wrong("its `resource` is no URL, and no list of URLs"),
    };
    let elements = match verified.claim("authorization_details") {
        None => None,
        Some(Value::Array(all)) => {
            let all = all.iter().map(Action::from_details);
            let Ok(all) = all.collect() else {
                return wrong("its `authorization_details` are not actions that are known here");
            };
            Some(all)
        }
        Some(_) => return wrong("its `authorization_details` is no list"),
    };
    Ok(Terms {
        resources,
        elements,
    })
}

fn for_user(
    verified: &ForeignEvidence,
    acting: &Acting<'_>,
    once: Option<EvidenceOf>,
    terms: Terms,
) -> Result<ForUser, ExchangeError> {
    bound(verified, acting)?;
    let subject = verified.text("sub").unwrap_or_default();
    let plain = subject.bytes().all(|byte| byte.is_ascii_graphic());
    if subject.is_empty() || subject.len() > SUBJECT_MAX || !plain {
        return no(
            Reason::TokenMalformed,
            "its `sub` is not 1 to 255 printable ASCII letters",
        );
    }
    Ok(ForUser {
        user: User {
            issuer: verified.issuer().to_owned(),
            subject: subject.to_owned(),
        },
        evidence: EvidenceOf {
            id: verified.evidence_id(),
            expires_ms: verified.expires_ms(),
        },
        told: serde_json::json!({
            "issuer": verified.issuer(),
            "subject": subject,
            "audience": verified.audience(),
        }),
        once,
        terms,
    })
}
