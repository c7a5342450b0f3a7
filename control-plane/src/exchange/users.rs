//! Whom an agent acts for: a user's token (RFC 8693), or an ID-JAG
//! (draft-ietf-oauth-identity-assertion-authz-grant).
//!
//! A user is issuer and subject, here and everywhere. A user's token counts when it was
//! made for us, or for the agent that shows it: what was made for somebody else was not
//! given to this agent.

use super::ExchangeError;
use super::claims::{self, Claims};
use super::issuers::{Issuers, Known};
use super::terms::Terms;
use crate::config::Users;
use crate::state::Core;
use capability::action::Action;
use capability::reason::Reason;
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
    /// The claim by which it is this agent's alone, where one is.
    pub(super) alone: Option<&'static str>,
    /// What it is for, where it says.
    terms: Terms,
}

impl ForUser {
    /// Whether it is for less than policy allows: what comes of it has to be looked at
    /// each time.
    pub(super) fn is_narrowed(&self) -> bool {
        self.terms.is_narrowed()
    }

    /// Whether the user's word covers this action.
    pub(super) fn check(&self, action: &Action) -> Result<(), ExchangeError> {
        self.terms.check(action)
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
        let (said, audience) = (verified.claims(), verified.audience());
        claims::issued_to(said, audience, users, acting.agent)?;
        may_act(said, users, acting)?;
        let terms = Terms::of(said, users.scopes.as_deref())?;
        let alone = claims::alone(said, audience, users, acting.agent);
        for_user(&verified, acting, None, (alone, terms))
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
        let scopes = users.scopes.as_deref().unwrap_or_default();
        let terms = Terms::of(verified.claims(), Some(scopes))?;
        may_act(verified.claims(), users, acting)?;
        // JSON keeps the two apart, whatever is in them.
        let named = serde_json::json!(["id-jag", verified.issuer(), jti]).to_string();
        let once = EvidenceOf {
            id: Sha256::digest(named).into(),
            expires_ms: verified.expires_ms(),
        };
        for_user(&verified, acting, Some(once), (Some("client_id"), terms))
    }
}

fn with_users(known: &Known) -> Option<(&Known, &Users)> {
    Some((known, known.config.users.as_ref()?))
}

/// Whether what a token says of who may act on it is this agent, by one of its names.
fn may_act(said: &Claims, users: &Users, acting: &Acting<'_>) -> Result<(), ExchangeError> {
    let agent = acting.agent;
    claims::may_act(said, &|name| name == agent || users.is_client(name, agent))
}

fn for_user(
    verified: &ForeignEvidence,
    acting: &Acting<'_>,
    once: Option<EvidenceOf>,
    (alone, terms): (Option<&'static str>, Terms),
) -> Result<ForUser, ExchangeError> {
    claims::bound(verified.claims(), (acting.jkt, acting.x5t))?;
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
        alone,
        terms,
    })
}
