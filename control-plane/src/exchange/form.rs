//! The exchange's parameters: `application/x-www-form-urlencoded`, each at most
//! once (RFC 6749, section 3.2).

use super::deferral::GRANT_DEFERRED;
use super::{
    ExchangeError, GRANT_BEARER, GRANT_CLIENT, GRANT_EXCHANGE, GRANT_REFRESH, TYPE_ACCESS_TOKEN,
    TYPE_DELEGATION, TYPE_ID_TOKEN, TYPE_JWT,
};
use capability::reason::Reason;
use identity::mtls::Peer;
use std::collections::BTreeMap;

/// The largest body that is read, in bytes.
pub const BODY_MAX: usize = 32 * 1024;

/// A JWT-SVID as client assertion (draft-ietf-oauth-spiffe-client-auth, section 3.1).
const ASSERTION_SVID: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";
/// `private_key_jwt` (RFC 7523, section 2.2).
const ASSERTION_JWT: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What is asked for, by what is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// RFC 8693: a subject token, which may have an actor token beside it.
    Exchange,
    /// RFC 6749, section 4.4: how the client authenticates says it all.
    Client,
    /// RFC 7523, section 2.1: an ID-JAG.
    Bearer,
    /// RFC 6749, section 6.
    Refresh,
    /// A code for what has waited for a person.
    Deferred,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A token for one action.
    Capability,
    /// A token for the issuer alone: a broker session.
    Session,
    /// A token for another agent.
    Delegation,
}

/// How the client authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// Not at all: what it shows besides has to say who it is.
    None,
    /// By its certificate (RFC 8705).
    Certificate,
    /// By a JWT-SVID as client assertion.
    Svid,
    /// By an assertion of its own key.
    Assertion,
}

/// A request's form, without what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) grant: Grant,
    pub(super) client: Client,
    pub(super) wanted: Wanted,
}

/// The parameters that go with some grants alone.
const OF_EXCHANGE: &[&str] = &[
    "subject_token",
    "subject_token_type",
    "actor_token",
    "actor_token_type",
    "requested_token_type",
];

/// Parameters, each of which came once.
#[derive(Debug)]
pub struct Params(BTreeMap<String, String>);

impl Params {
    /// Parses a form body.
    ///
    /// # Errors
    /// Non-UTF-8, and a parameter that comes twice.
    pub fn parse(body: &[u8]) -> Result<Self, ExchangeError> {
        std::str::from_utf8(body)
            .map_err(|_| ExchangeError::Request("the body is not UTF-8".into()))?;
        let mut params = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(body) {
            if value.contains('\u{fffd}') {
                return Err(ExchangeError::Request("a parameter is not UTF-8".into()));
            }
            // RFC 6749, section 3.2: one without a value counts as left out.
            if value.is_empty() {
                continue;
            }
            if params
                .insert(name.to_string(), value.into_owned())
                .is_some()
            {
                // RFC 8707 lets `resource` repeat; one token here is for one.
                return Err(match name.as_ref() {
                    "resource" | "audience" => {
                        ExchangeError::Target("one token is for one resource".into())
                    }
                    _ => ExchangeError::Request(format!(
                        "the parameter `{}` comes twice",
                        clean(&name)
                    )),
                });
            }
        }
        Ok(Self(params))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// What can be judged without knowing the caller but by the certificate.
    pub(super) fn asked(&self, peer: Option<&Peer>, issuer: &str) -> Result<Asked, ExchangeError> {
        let request = |what: String| Err(ExchangeError::Request(what));
        let grant = match self.get("grant_type") {
            None => return request("grant_type is missing".into()),
            Some(GRANT_EXCHANGE) => Grant::Exchange,
            Some(GRANT_CLIENT) => Grant::Client,
            Some(GRANT_BEARER) => Grant::Bearer,
            Some(GRANT_REFRESH) => Grant::Refresh,
            Some(GRANT_DEFERRED) => Grant::Deferred,
            Some(_) => return Err(ExchangeError::Grant),
        };
        let client = self.client(grant, peer)?;
        if self.get("scope").is_some() {
            return Err(ExchangeError::Scope);
        }
        self.refuse_secret()?;
        if grant == Grant::Exchange {
            self.check_exchange()?;
        } else if grant == Grant::Deferred {
            self.check_poll(client)?;
        } else if let Some(other) = OF_EXCHANGE.iter().find(|it| self.get(it).is_some()) {
            return request(format!("`{other}` goes with {GRANT_EXCHANGE}"));
        }
        for (name, of, with) in [
            ("assertion", Grant::Bearer, GRANT_BEARER),
            ("refresh_token", Grant::Refresh, GRANT_REFRESH),
            ("deferral_code", Grant::Deferred, GRANT_DEFERRED),
        ] {
            match (grant == of, self.get(name)) {
                (true, None) => return request(format!("{name} is missing")),
                (false, Some(_)) => return request(format!("`{name}` goes with {with}")),
                _ => {}
            }
        }
        let wanted = self.wanted(issuer);
        if grant == Grant::Refresh && wanted != Wanted::Capability {
            return request("a refresh token is for capabilities alone".into());
        }
        Ok(Asked {
            grant,
            client,
            wanted,
        })
    }

    fn wanted(&self, issuer: &str) -> Wanted {
        let for_us = ["audience", "resource"]
            .iter()
            .any(|name| self.get(name) == Some(issuer));
        if self.get("requested_token_type") == Some(TYPE_DELEGATION) {
            Wanted::Delegation
        } else if for_us && self.get("authorization_details").is_none() {
            Wanted::Session
        } else {
            Wanted::Capability
        }
    }

    /// The types of RFC 8693's parameters.
    fn check_exchange(&self) -> Result<(), ExchangeError> {
        let request = |what: String| Err(ExchangeError::Request(what));
        match self.get("subject_token_type") {
            Some(TYPE_JWT | TYPE_ID_TOKEN | TYPE_ACCESS_TOKEN | TYPE_DELEGATION) => {}
            None => return request("subject_token_type is missing".into()),
            Some(_) => return request(format!("subject_token_type must be {TYPE_JWT}")),
        }
        if self
            .get("requested_token_type")
            .is_some_and(|kind| ![TYPE_ACCESS_TOKEN, TYPE_DELEGATION].contains(&kind))
        {
            return request(format!(
                "requested_token_type must be {TYPE_ACCESS_TOKEN} or {TYPE_DELEGATION}"
            ));
        }
        match (self.get("actor_token"), self.get("actor_token_type")) {
            (None, None) | (Some(_), Some(TYPE_JWT | TYPE_ID_TOKEN)) => {}
            (None, Some(_)) => return request("actor_token is missing".into()),
            (Some(_), None) => return request("actor_token_type is missing".into()),
            (Some(_), Some(_)) => {
                return request(format!("actor_token_type must be {TYPE_JWT}"));
            }
        }
        if self.get("actor_token").is_some() && self.asserts() {
            let what = "one of actor_token and client_assertion says who acts, not both";
            return request(what.into());
        }
        Ok(())
    }

    /// How a client authenticates.
    pub(super) fn client(
        &self,
        grant: Grant,
        peer: Option<&Peer>,
    ) -> Result<Client, ExchangeError> {
        let request = |what: String| Err(ExchangeError::Request(what));
        match (
            self.get("client_assertion_type"),
            self.get("client_assertion"),
        ) {
            (Some(ASSERTION_SVID), Some(_)) => return Ok(Client::Svid),
            (Some(ASSERTION_JWT), Some(_)) => return Ok(Client::Assertion),
            (Some(ASSERTION_SVID | ASSERTION_JWT), None) => {
                return request("client_assertion is missing".into());
            }
            (Some(_), _) => {
                return request(format!(
                    "client_assertion_type must be {ASSERTION_SVID} or {ASSERTION_JWT}"
                ));
            }
            (None, Some(_)) => return request("client_assertion_type is missing".into()),
            (None, None) => {}
        }
        let certificate = peer.filter(|peer| peer.certificate.is_some());
        match (grant, certificate) {
            (Grant::Exchange | Grant::Deferred, None) => Ok(Client::None),
            (Grant::Refresh, None) => Err(ExchangeError::Client(
                Reason::MissingCredentials,
                "there is none, nor a client certificate: who shows a refresh token authenticates as ever".into(),
            )),
            (Grant::Exchange, Some(_)) => Ok(Client::Certificate),
            (_, Some(peer)) => {
                // RFC 8705, section 2: with a certificate a client says who it is.
                let other = self.client_id().is_some_and(|id| id != peer.id.as_str());
                if other {
                    return Err(ExchangeError::Certificate);
                }
                Ok(Client::Certificate)
            }
            (_, None) => Err(ExchangeError::Grant),
        }
    }

    /// The token that is asked about (RFC 7662, section 2.1; RFC 7009, section 2.1).
    pub(super) fn token(&self) -> Result<&str, ExchangeError> {
        self.needed("token")
    }

    /// Nobody has a secret here.
    pub(super) fn refuse_secret(&self) -> Result<(), ExchangeError> {
        match self.get("client_secret") {
            Some(_) => Err(ExchangeError::Request(
                "`client_secret` is not used here".into(),
            )),
            None => Ok(()),
        }
    }

    /// Who the client says that it is.
    pub(super) fn client_id(&self) -> Option<&str> {
        self.get("client_id")
    }

    pub(super) fn needed(&self, name: &str) -> Result<&str, ExchangeError> {
        let missing = || ExchangeError::Request(format!("{name} is missing"));
        self.get(name).ok_or_else(missing)
    }

    pub(super) fn client_assertion(&self) -> Result<&str, ExchangeError> {
        self.needed("client_assertion")
    }

    /// Whether there is a client assertion.
    pub(super) fn asserts(&self) -> bool {
        self.get("client_assertion").is_some()
    }

    pub(super) fn refresh_token(&self) -> Result<&str, ExchangeError> {
        self.needed("refresh_token")
    }

    /// The ID-JAG of a [`Grant::Bearer`].
    pub(super) fn assertion(&self) -> Result<&str, ExchangeError> {
        self.needed("assertion")
    }

    pub(super) fn subject_token(&self) -> Result<&str, ExchangeError> {
        self.needed("subject_token")
    }

    pub(super) fn actor_token(&self) -> Option<&str> {
        self.get("actor_token")
    }

    /// A JWT-SVID is a JWT, and no ID token. `role` is `subject` or `actor`.
    pub(super) fn check_svid(&self, role: &str) -> Result<(), ExchangeError> {
        match self.get(&format!("{role}_token_type")) {
            Some(TYPE_JWT) => Ok(()),
            _ => Err(ExchangeError::Request(format!(
                "the {role}_token is by no issuer that is known here, so it has to be a JWT-SVID, and {role}_token_type {TYPE_JWT}"
            ))),
        }
    }

    /// Whether the subject token, which is `what`, came as one of the types that it has
    /// (RFC 8693, section 2.1).
    pub(super) fn check_shown(&self, what: &str, types: &[&str]) -> Result<(), ExchangeError> {
        match self.get("subject_token_type") {
            Some(kind) if types.contains(&kind) => Ok(()),
            _ => Err(ExchangeError::Request(format!(
                "the subject_token is {what}, so that subject_token_type must be {}",
                types.join(" or ")
            ))),
        }
    }

    /// Whether the subject token came as an ID token, which an access token is not.
    pub(super) fn is_id_token(&self) -> bool {
        self.get("subject_token_type") == Some(TYPE_ID_TOKEN)
    }

    /// The one `authorization_details` element (RFC 9396).
    pub(super) fn one_element(
        &self,
        limits: &capability::Limits,
    ) -> Result<serde_json::Value, ExchangeError> {
        let text = self.get("authorization_details").ok_or_else(|| {
            ExchangeError::Details("authorization_details is missing: say the one action".into())
        })?;
        let value = capability::json::parse(text.as_bytes(), limits).map_err(|_| {
            ExchangeError::Details(
                "authorization_details is not JSON, or has a member twice".into(),
            )
        })?;
        match value {
            serde_json::Value::Array(items) => {
                let mut items = items.into_iter();
                match (items.next(), items.next()) {
                    (Some(element), None) => Ok(element),
                    _ => Err(ExchangeError::Details(
                        "authorization_details has exactly one element: one action".into(),
                    )),
                }
            }
            _ => Err(ExchangeError::Details(
                "authorization_details is an array (RFC 9396)".into(),
            )),
        }
    }

    /// What is asked for is for, by each name that it may be said by (RFC 8707; RFC 8693,
    /// section 2.1).
    fn targets(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = ["resource", "audience"].into_iter();
        all.filter_map(|name| Some((name, self.get(name)?)))
    }

    /// A session is for the issuer, by either name.
    pub(super) fn check_session_target(&self, issuer: &str) -> Result<(), ExchangeError> {
        match self.targets().find(|(_, target)| *target != issuer) {
            None => Ok(()),
            Some((name, _)) => Err(ExchangeError::Target(format!(
                "`{name}` is another than {issuer}, which alone a session is for"
            ))),
        }
    }

    /// A delegation is shown to the issuer, for what is at a protected resource.
    pub(super) fn check_delegation_target(
        &self,
        issuer: &str,
        resource: &str,
    ) -> Result<(), ExchangeError> {
        self.check_targets(resource, Some(issuer))
    }

    /// `resource` and `audience`, where given, are the protected resource or a
    /// URL under it (RFC 8707).
    pub(super) fn check_target(&self, resource: &str) -> Result<(), ExchangeError> {
        self.check_targets(resource, None)
    }

    fn check_targets(&self, resource: &str, also: Option<&str>) -> Result<(), ExchangeError> {
        for (name, target) in self.targets() {
            if also == Some(target) {
                continue;
            }
            let base = resource.trim_end_matches('/');
            let under = target == resource
                || target
                    .strip_prefix(base)
                    .is_some_and(|rest| rest.starts_with('/'));
            if !under || target.contains('#') {
                return Err(ExchangeError::Target(format!(
                    "`{name}` must be {resource} or a URL under it, without fragment"
                )));
            }
        }
        Ok(())
    }
}

/// A name as a message may show it.
fn clean(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
        .take(64)
        .collect()
}
