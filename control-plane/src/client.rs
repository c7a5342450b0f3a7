//! An agent's side: identity, exchange, proof, request. What `writ call` and
//! `writ token` run, and an example of how little an agent needs.

mod exchange;
mod key;
mod nonces;
mod proves;
mod secure;
mod show;

pub use exchange::{Asked, Behind, Fetched};
pub use key::DpopKey;
pub(crate) use nonces::asked as asked_nonce;
pub use proves::Proves;
pub(crate) use show::Shown;

use crate::keys::KeyError;
use base64ct::{Base64UrlUnpadded, Encoding};
use capability::headers;
use nonces::Nonces;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;

/// A body that is shown is at most this long; bytes.
const BODY_MAX: usize = 64 * 1024 * 1024;

/// How long a lost answer's outcome may take to be known, look by look.
pub(crate) const OUTCOME_WAITS: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// Why an action did not happen, or why it is not known whether it did.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The key file.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The Workload API.
    #[error("no identity from the Workload API: {0}")]
    Identity(#[from] identity::SourceError),
    /// The file that has the agent's token.
    #[error("no identity from `{path}`: {why}")]
    TokenFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A URL or method that can't be called.
    #[error("{0}")]
    Usage(String),
    /// The issuer did not answer.
    #[error("the issuer {0} can't be reached: {1}; is `writ serve` running there?")]
    Issuer(String, String),
    /// The exchange was refused.
    #[error("refused at the exchange: {reason} ({error}): {description}")]
    Exchange {
        /// The OAuth error code.
        error: String,
        /// The reason, one of the closed list.
        reason: String,
        /// What to do.
        description: String,
        /// What the endpoint calls this exchange; its journal entry has it.
        request_id: String,
        /// What rules let the agent know of why.
        why: Vec<String>,
    },
    /// The request could not be sent, so nothing happened.
    #[error("the proxy can't be reached: {0}; nothing was sent")]
    NotSent(String),
    /// The request was sent and the answer was lost.
    #[error(
        "the answer was lost ({0}) and what became of the request is not known; look before you try again"
    )]
    Unknown(String),
}

/// Where things are.
pub struct Agent {
    /// The issuer's URL.
    pub issuer: String,
    /// What shows the issuer which agent it is.
    pub proves: Proves,
    /// The key.
    pub key: Arc<DpopKey>,
    /// Now, in ms.
    pub clock: crate::state::Clock,
    /// Whom it acts for, when it does.
    pub behind: Option<Behind>,
    timeout: Duration,
    http: reqwest::Client,
    /// The one that shows the agent's certificate.
    secure: OnceCell<reqwest::Client>,
    /// What proofs are asked to have.
    nonces: Nonces,
}

/// What one exchange gave.
pub struct Granted {
    /// The capability token.
    pub access_token: String,
    /// The whole reply.
    pub reply: Value,
}

/// One answer from the proxy or the upstream behind it.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The content type.
    pub content_type: String,
    /// The body.
    pub body: Vec<u8>,
    /// The refusal, when the proxy refused: its problem document.
    pub refusal: Option<Value>,
}

/// Whether this content type is a problem document's (RFC 9457).
pub(crate) fn is_problem(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/problem+json")
}

impl Answer {
    /// The refusal's reason, one of the closed list.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.refusal.as_ref()?.get("reason")?.as_str()
    }

    /// Whether it is a problem document (RFC 9457), whoever's.
    fn is_problem(&self) -> bool {
        is_problem(&self.content_type)
    }

    /// What became of a spent token's first use, as far as the proxy says.
    fn first_use(&self) -> Option<&str> {
        self.refusal
            .as_ref()?
            .get("first_use")?
            .get("result")?
            .as_str()
    }
}

impl Agent {
    /// An agent on this machine.
    ///
    /// # Errors
    /// When the key or the HTTP client can't be set up.
    pub fn new(
        issuer: &str,
        proves: Proves,
        key: &Path,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        Self::with_key(issuer, proves, timeout, || {
            Ok(Arc::new(DpopKey::open(key)?))
        })
    }

    /// As [`Agent::new`], with a key that need not be in a file. It is asked for
    /// once the rest is good.
    ///
    /// # Errors
    /// As [`Agent::new`].
    pub fn with_key(
        issuer: &str,
        proves: Proves,
        timeout: Duration,
        key: impl FnOnce() -> Result<Arc<DpopKey>, ClientError>,
    ) -> Result<Self, ClientError> {
        if !may_carry_secrets(issuer) {
            return Err(ClientError::Usage(format!(
                "{issuer} is not https: identities would cross the network in the clear"
            )));
        }
        let http = builder(timeout).build().map_err(|error| {
            ClientError::Usage(format!("the HTTP client can't be set up: {error}"))
        })?;
        Ok(Self {
            issuer: issuer.trim_end_matches('/').to_owned(),
            proves,
            key: key()?,
            clock: crate::state::system_clock(),
            behind: None,
            timeout,
            http,
            secure: OnceCell::new(),
            nonces: Nonces::default(),
        })
    }

    fn now_s(&self) -> u64 {
        (self.clock)() / 1000
    }

    /// Gets a token for this one action.
    ///
    /// # Errors
    /// No identity, no issuer, or its no.
    pub async fn token(&self, method: &str, url: &str) -> Result<Granted, ClientError> {
        self.token_for(method, url, None).await
    }

    /// As [`Agent::token`]; where the issuer takes that, the token allows this
    /// body alone.
    ///
    /// # Errors
    /// As [`Agent::token`].
    pub async fn token_for(
        &self,
        method: &str,
        url: &str,
        body: Option<&[u8]>,
    ) -> Result<Granted, ClientError> {
        let digest = match body {
            Some(body) if self.takes_digest(url).await? => {
                Some(Base64UrlUnpadded::encode_string(&Sha256::digest(body)))
            }
            _ => None,
        };
        let mut element =
            serde_json::json!({ "type": "http_request", "actions": [method], "locations": [url] });
        if let (Some(digest), Some(members)) = (digest, element.as_object_mut()) {
            members.insert("content_digest".into(), digest.into());
        }
        self.token_of(element).await
    }

    /// Gets a token for the action that this `authorization_details` element says.
    ///
    /// # Errors
    /// As [`Agent::token`].
    pub async fn token_of(&self, element: Value) -> Result<Granted, ClientError> {
        let url = location(&element).unwrap_or_default();
        let endpoint = self.token_endpoint(url).await?;
        self.exchange(&endpoint, &Asked::Action(element)).await
    }

    /// Whether bodies are read where this URL is, by the issuer's metadata, which
    /// has the longest prefix first.
    async fn takes_digest(&self, url: &str) -> Result<bool, ClientError> {
        let unreachable =
            |error: reqwest::Error| ClientError::Issuer(self.issuer.clone(), causes(&error));
        let metadata = format!("{}/.well-known/oauth-authorization-server", self.issuer);
        let metadata = self.http.get(metadata).send().await.map_err(unreachable)?;
        let metadata: Value = metadata.json().await.map_err(unreachable)?;
        let path = url.split(['?', '#']).next().unwrap_or(url);
        let is_here = |entry: &&Value| {
            let location = entry.get("location").and_then(Value::as_str);
            let prefix = location.unwrap_or_default();
            path.strip_prefix(prefix).is_some_and(|rest| {
                prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/')
            })
        };
        let locations = metadata.get("writ_content_digest_locations");
        let here = locations
            .and_then(Value::as_array)
            .and_then(|all| all.iter().find(is_here));
        Ok(here.and_then(|it| it.get("content_digest")) == Some(&Value::Bool(true)))
    }

    /// Spends the token on the request that it is for. If the answer is lost,
    /// the same token is shown again: it can't act twice, and the proxy says
    /// what became of the first use.
    ///
    /// # Errors
    /// [`ClientError::NotSent`] or [`ClientError::Unknown`].
    pub async fn spend(
        &self,
        token: &str,
        method: &str,
        url: &str,
        body: Option<&[u8]>,
        content_type: &str,
    ) -> Result<Answer, ClientError> {
        let lost = match self.send(token, method, url, body, content_type).await {
            Err(ClientError::Unknown(lost)) => lost,
            answer => return answer,
        };
        let mut waits = OUTCOME_WAITS.iter();
        loop {
            // Only an answer of the upstream's, or what the proxy knows of the
            // first use, says what became of it; any other refusal is about
            // this showing alone, such as that the token has ended since.
            let answer = match self.send(token, method, url, body, content_type).await {
                Ok(answer) if answer.reason() == Some("token_spent") => answer,
                // A filter of before does not say that a refusal is the edge's.
                Ok(answer) if answer.reason().is_none() && !answer.is_problem() => answer,
                _ => return Err(ClientError::Unknown(lost)),
            };
            // The outcome is reported when the first use ends, which may be now.
            match waits
                .next()
                .filter(|_| answer.first_use() == Some("unknown"))
            {
                Some(wait) => tokio::time::sleep(*wait).await,
                None => return Ok(answer),
            }
        }
    }

    async fn send(
        &self,
        token: &str,
        method: &str,
        url: &str,
        body: Option<&[u8]>,
        content_type: &str,
    ) -> Result<Answer, ClientError> {
        let mut headers = http::HeaderMap::new();
        let body = body.map(bytes::Bytes::copy_from_slice);
        if body.is_some() {
            let value = http::HeaderValue::from_str(content_type)
                .map_err(|_| ClientError::Usage(format!("`{content_type}` is no content type")))?;
            headers.insert(http::header::CONTENT_TYPE, value);
        }
        let shown = Shown {
            method,
            url,
            headers: &headers,
            body: body.as_ref(),
            within: None,
        };
        let response = self.show(token, shown).await?;
        let status = response.status().as_u16();
        let content_type = response
            .headers()
            .get("content-type")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let is_the_edges = response.headers().contains_key(headers::REASON);
        let mut body = Vec::new();
        let mut response = response;
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| ClientError::Unknown(causes(&error)))?
        {
            if body.len().saturating_add(chunk.len()) > BODY_MAX {
                return Err(ClientError::Unknown(
                    "the answer is larger than 64 MiB".into(),
                ));
            }
            body.extend_from_slice(&chunk);
        }
        // The upstream may send problem documents of its own.
        let refusal = is_the_edges
            .then(|| serde_json::from_slice::<Value>(&body).ok())
            .flatten()
            .filter(|problem| problem.get("reason").is_some_and(Value::is_string));
        Ok(Answer {
            status,
            content_type,
            body,
            refusal,
        })
    }

    /// Waits until a human has decided, or `wait` is over. The state, or `None`
    /// when nobody has.
    ///
    /// # Errors
    /// When the status can't be asked.
    pub async fn approval(
        &self,
        status_url: &str,
        wait: Duration,
    ) -> Result<Option<String>, ClientError> {
        // Only the issuer is asked, whatever the refusal says.
        if !status_url
            .strip_prefix(self.issuer.as_str())
            .is_some_and(|rest| rest.starts_with('/'))
        {
            return Err(ClientError::Usage(format!(
                "the status URL `{status_url}` is not the issuer's"
            )));
        }
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let failed =
                |error: reqwest::Error| ClientError::Issuer(self.issuer.clone(), causes(&error));
            let client = self.client_for(status_url).await?;
            let status: Value = client
                .get(status_url)
                .send()
                .await
                .map_err(failed)?
                .json()
                .await
                .map_err(failed)?;
            match status.get("status").and_then(Value::as_str) {
                Some("pending") => {}
                // A state that is not known is not an approval; the caller tells it.
                Some(other) => return Ok(Some(other.to_owned())),
                None => {
                    return Err(ClientError::Issuer(
                        self.issuer.clone(),
                        "it knows no such approval".into(),
                    ));
                }
            }
            let now = tokio::time::Instant::now();
            if now >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_secs(1).min(deadline - now)).await;
        }
    }
}

/// Where an `authorization_details` element's action is.
pub(crate) fn location(element: &Value) -> Option<&str> {
    element.pointer("/locations/0").and_then(Value::as_str)
}

/// What every client of an agent's has in common.
fn builder(timeout: Duration) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        // A capability is for one URL: a redirect would be another action.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(timeout)
}

/// https, or http on this machine.
#[must_use]
pub fn may_carry_secrets(url: &str) -> bool {
    match reqwest::Url::parse(url) {
        Ok(url) if url.scheme() == "https" => true,
        Ok(url) => {
            let host = url
                .host_str()
                .unwrap_or_default()
                .trim_matches(['[', ']'])
                .to_owned();
            host == "localhost"
                || host
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        }
        Err(_) => false,
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
