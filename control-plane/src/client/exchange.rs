//! What is asked of the issuer, each time with a proof of its own.

use super::{Agent, ClientError, Granted, causes};
use crate::exchange::{GRANT_EXCHANGE, TYPE_DELEGATION, TYPE_JWT};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use std::time::Duration;

/// What an exchange is to bring.
#[derive(Clone, Debug)]
pub enum Asked {
    /// A capability: the `authorization_details` element.
    Action(Value),
    /// A broker session.
    Session,
    /// A delegation: the `authorization_details` element.
    Delegation(Value),
}

/// Whom an agent acts for, as it shows that.
#[derive(Clone)]
pub enum Behind {
    /// A user: the token, and the end of its type's URI (RFC 8693, section 3).
    User {
        /// The token.
        token: String,
        /// `access_token`, `id_token` or `jwt`.
        kind: String,
    },
    /// Another agent: the delegation that it gave.
    Delegator(String),
}

impl Behind {
    fn token(&self) -> (&str, String) {
        match self {
            Self::User { token, kind } => {
                (token, format!("urn:ietf:params:oauth:token-type:{kind}"))
            }
            Self::Delegator(token) => (token, TYPE_DELEGATION.to_owned()),
        }
    }
}

/// A token of several that were fetched at once, and how long it lives.
#[derive(Clone)]
pub struct Fetched {
    /// The token.
    pub token: String,
    /// How long it lives.
    pub lives: Duration,
}

impl Fetched {
    fn of(reply: &Value) -> Option<Self> {
        Some(Self {
            token: reply.get("access_token")?.as_str()?.to_owned(),
            lives: Duration::from_secs(reply.get("expires_in")?.as_u64()?),
        })
    }
}

impl Agent {
    /// An exchange by the agent's JWT-SVID, or by the token in its file (RFC 8693).
    ///
    /// # Errors
    /// No identity, no issuer, or its no.
    pub async fn exchange(&self, endpoint: &str, asked: &Asked) -> Result<Granted, ClientError> {
        let svid = self.proves.token(&self.issuer).await?;
        let mut form = vec![("grant_type", GRANT_EXCHANGE.to_owned())];
        match self.behind.as_ref().map(Behind::token) {
            None => form.extend([
                ("subject_token", svid),
                ("subject_token_type", TYPE_JWT.to_owned()),
            ]),
            Some((token, kind)) => form.extend([
                ("subject_token", token.to_owned()),
                ("subject_token_type", kind),
                ("actor_token", svid),
                ("actor_token_type", TYPE_JWT.to_owned()),
            ]),
        }
        form.push(match asked {
            Asked::Action(element) | Asked::Delegation(element) => {
                ("authorization_details", json!([element]).to_string())
            }
            Asked::Session => ("audience", self.issuer.clone()),
        });
        if let Asked::Delegation(_) = asked {
            form.push(("requested_token_type", TYPE_DELEGATION.to_owned()));
        }
        let reply = self.proven(endpoint, None, |it| it.form(&form)).await?;
        let token = reply.get("access_token").and_then(Value::as_str);
        match token.filter(|token| !token.is_empty()) {
            Some(token) => Ok(Granted {
                access_token: token.to_owned(),
                reply,
            }),
            None => Err(refused(&reply)),
        }
    }

    /// A broker session, at the endpoint where its tokens are asked for.
    ///
    /// # Errors
    /// As [`Agent::exchange`].
    pub async fn session(&self, endpoint: &str) -> Result<Fetched, ClientError> {
        let granted = self.exchange(endpoint, &Asked::Session).await?;
        Fetched::of(&granted.reply).ok_or_else(|| refused(&granted.reply))
    }

    /// A token for each of these actions, where there is one, by a session or, at an
    /// endpoint that is shown the X.509-SVID, by that alone.
    ///
    /// # Errors
    /// As [`Agent::exchange`], where none of them is looked at.
    pub async fn several(
        &self,
        token_endpoint: &str,
        session: Option<&str>,
        elements: &[Value],
    ) -> Result<Vec<Option<Fetched>>, ClientError> {
        let base = token_endpoint.strip_suffix("/oauth2/token");
        let endpoint = format!("{}/api/v1/capabilities", base.unwrap_or(&self.issuer));
        let body = json!({ "authorization_details": elements });
        let make = |request: RequestBuilder| match session {
            Some(session) => request
                .header("authorization", format!("DPoP {session}"))
                .json(&body),
            None => request.json(&body),
        };
        let reply = self.proven(&endpoint, session, make).await?;
        let each = reply.get("capabilities").and_then(Value::as_array);
        let each = each.ok_or_else(|| refused(&reply))?;
        Ok(each.iter().map(Fetched::of).collect())
    }

    /// Sends what `make` makes, with a proof; once more where a nonce is asked for: this
    /// clock is wrong, or that one (RFC 9449, section 8).
    async fn proven(
        &self,
        endpoint: &str,
        token: Option<&str>,
        make: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Value, ClientError> {
        let unreachable =
            |error: reqwest::Error| ClientError::Issuer(self.issuer.clone(), causes(&error));
        let client = self.client_for(endpoint).await?;
        let ask = |nonce| {
            let now_s = self.now_s();
            let proof = self.key.proof_with("POST", endpoint, token, now_s, nonce);
            make(client.post(endpoint).header("dpop", proof)).send()
        };
        let mut response = ask(None).await.map_err(unreachable)?;
        let offered = response.headers().get("dpop-nonce");
        let offered = offered
            .and_then(|nonce| nonce.to_str().ok())
            .map(str::to_owned);
        if matches!(response.status().as_u16(), 400 | 401) && offered.is_some() {
            response = ask(offered).await.map_err(unreachable)?;
        }
        let ok = response.status().is_success();
        let reply: Value = response.json().await.map_err(unreachable)?;
        if ok { Ok(reply) } else { Err(refused(&reply)) }
    }
}

fn refused(reply: &Value) -> ClientError {
    let text = |name: &str| {
        let text = reply.get(name).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let why = reply.get("why").and_then(Value::as_array);
    let why = why.into_iter().flatten();
    ClientError::Exchange {
        error: text("error"),
        reason: text("reason"),
        description: text("error_description"),
        request_id: text("request_id"),
        why: (why.filter_map(Value::as_str).map(str::to_owned)).collect(),
    }
}
