//! The exchange's parameters: `application/x-www-form-urlencoded`, each at most
//! once (RFC 6749, section 3.2).

use super::{
    ExchangeError, GRANT_CLIENT, GRANT_EXCHANGE, TYPE_ACCESS_TOKEN, TYPE_ID_TOKEN, TYPE_JWT,
};
use identity::mtls::Peer;
use std::collections::BTreeMap;

/// The largest body that is read, in bytes.
pub const BODY_MAX: usize = 32 * 1024;

/// A JWT-SVID as client assertion (draft-ietf-oauth-spiffe-client-auth, section 3.1).
const ASSERTION_SVID: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";
/// `private_key_jwt` (RFC 7523, section 2.2).
const ASSERTION_JWT: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What the caller shows: a subject token, a client assertion, or its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// RFC 8693.
    Exchange,
    /// RFC 6749, section 4.4, with RFC 8705.
    Certificate,
    /// RFC 6749, section 4.4, with a JWT-SVID as client assertion.
    Svid,
    /// The same with an assertion by a client's own key.
    Assertion,
}

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

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// What can be judged without knowing the caller but by the certificate.
    pub(super) fn check_grant(&self, peer: Option<&Peer>) -> Result<Grant, ExchangeError> {
        let grant = match (self.get("grant_type"), peer) {
            (None, _) => return Err(ExchangeError::Request("grant_type is missing".into())),
            (Some(GRANT_EXCHANGE), _) => Grant::Exchange,
            (Some(GRANT_CLIENT), peer) => self.client_grant(peer)?,
            (Some(_), _) => return Err(ExchangeError::Grant),
        };
        if self.get("scope").is_some() {
            return Err(ExchangeError::Scope);
        }
        let asserted = matches!(grant, Grant::Svid | Grant::Assertion);
        for (unserved, served) in [
            ("actor_token", false),
            ("actor_token_type", false),
            ("client_assertion", asserted),
            ("client_assertion_type", asserted),
            ("client_secret", false),
        ] {
            if served {
                continue;
            }
            if self.get(unserved).is_some() {
                return Err(ExchangeError::Request(format!(
                    "`{unserved}` is not used here"
                )));
            }
        }
        if grant != Grant::Exchange {
            for other in [
                "subject_token",
                "subject_token_type",
                "requested_token_type",
            ] {
                if self.get(other).is_some() {
                    return Err(ExchangeError::Request(format!(
                        "`{other}` goes with {GRANT_EXCHANGE}"
                    )));
                }
            }
            return Ok(grant);
        }
        match self.get("subject_token_type") {
            Some(TYPE_JWT | TYPE_ID_TOKEN) => {}
            None => {
                return Err(ExchangeError::Request(
                    "subject_token_type is missing".into(),
                ));
            }
            Some(_) => {
                return Err(ExchangeError::Request(format!(
                    "subject_token_type must be {TYPE_JWT}"
                )));
            }
        }
        if self
            .get("requested_token_type")
            .is_some_and(|kind| kind != TYPE_ACCESS_TOKEN)
        {
            return Err(ExchangeError::Request(format!(
                "requested_token_type must be {TYPE_ACCESS_TOKEN}"
            )));
        }
        Ok(grant)
    }

    /// How a client authenticates that has no subject token.
    fn client_grant(&self, peer: Option<&Peer>) -> Result<Grant, ExchangeError> {
        match (self.get("client_assertion_type"), peer) {
            (Some(ASSERTION_SVID), _) => Ok(Grant::Svid),
            (Some(ASSERTION_JWT), _) => Ok(Grant::Assertion),
            (Some(_), _) => Err(ExchangeError::Request(format!(
                "client_assertion_type must be {ASSERTION_SVID} or {ASSERTION_JWT}"
            ))),
            (None, _) if self.get("client_assertion").is_some() => Err(ExchangeError::Request(
                "client_assertion_type is missing".into(),
            )),
            (None, Some(peer)) if peer.certificate.is_some() => {
                // RFC 8705, section 2: with a certificate a client says who it is.
                let other = self.client_id().is_some_and(|id| id != peer.id.as_str());
                if other {
                    return Err(ExchangeError::Certificate);
                }
                Ok(Grant::Certificate)
            }
            (None, _) => Err(ExchangeError::Grant),
        }
    }

    /// Who the client says that it is.
    pub(super) fn client_id(&self) -> Option<&str> {
        self.get("client_id")
    }

    pub(super) fn client_assertion(&self) -> Result<&str, ExchangeError> {
        self.get("client_assertion")
            .ok_or_else(|| ExchangeError::Request("client_assertion is missing".into()))
    }

    /// A JWT-SVID is a JWT, and no ID token.
    pub(super) fn check_svid(&self) -> Result<(), ExchangeError> {
        match self.get("subject_token_type") {
            Some(TYPE_JWT) => Ok(()),
            _ => Err(ExchangeError::Request(format!(
                "the subject_token is by no issuer that is known here, so it has to be a JWT-SVID, and subject_token_type {TYPE_JWT}"
            ))),
        }
    }

    pub(super) fn subject_token(&self) -> Result<&str, ExchangeError> {
        self.get("subject_token")
            .ok_or_else(|| ExchangeError::Request("subject_token is missing".into()))
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

    /// `resource` and `audience`, where given, are the protected resource or a
    /// URL under it (RFC 8707).
    pub(super) fn check_target(&self, resource: &str) -> Result<(), ExchangeError> {
        for name in ["resource", "audience"] {
            let Some(target) = self.get(name) else {
                continue;
            };
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
