//! Fetching an issuer's keys: discovery (OpenID Connect Discovery 1.0, section 4), a URL,
//! or a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Certificate, Client, redirect};
use serde_json::Value;

use super::IssuerSettings;
use super::keys::Keys;

/// Bytes of a document.
const DOCUMENT_MAX: usize = 256 * 1024;
/// How long one takes at most.
const WITHIN: Duration = Duration::from_secs(5);

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysFrom {
    /// Where its discovery document says.
    Discovery,
    /// At this URL.
    Url(String),
    /// In this file.
    File(PathBuf),
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The authorities that were given.
    #[error("its authorities are no PEM certificates: {0}")]
    Authorities(String),
    /// A file can't be read.
    #[error("can't read `{0}`: {1}")]
    File(PathBuf, std::io::Error),
    /// Nothing came, or not in time.
    #[error("`{url}`: {what}")]
    Http {
        /// What was asked for.
        url: String,
        /// What came instead.
        what: String,
    },
    /// It took too long.
    #[error("they did not come in time")]
    Late,
    /// What came is not what was wanted.
    #[error("`{place}`: {what}")]
    Document {
        /// Where it is from.
        place: String,
        /// What is wrong with it.
        what: String,
    },
}

/// Bytes of a URL.
const URL_MAX: usize = 2_048;

/// Whether keys may come from there: over TLS, or from this machine.
#[must_use]
pub fn may_have_keys(url: &str) -> bool {
    // What is shown in a log is plain, and what follows `@` is not the host that it seems.
    let plain = url.len() <= URL_MAX && url.bytes().all(|byte| byte.is_ascii_graphic());
    let Some(parsed) = reqwest::Url::parse(url).ok().filter(|_| plain) else {
        return false;
    };
    let named = parsed.host_str().is_some_and(|host| !host.is_empty());
    let nobody = parsed.username().is_empty() && parsed.password().is_none();
    named && nobody && (parsed.scheme() == "https" || is_here(&parsed))
}

/// Whether it is in clear, on this machine.
fn is_here(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<std::net::IpAddr>();
    url.scheme() == "http" && address.is_ok_and(|address| address.is_loopback())
}

/// Whether both are of one origin (RFC 6454, section 4).
fn is_at(url: &str, origin: &str) -> bool {
    let origin_of = |url: &str| reqwest::Url::parse(url).ok().map(|it| it.origin());
    match (origin_of(url), origin_of(origin)) {
        (Some(one), Some(other)) => one.is_tuple() && one == other,
        _ => false,
    }
}

/// Fetches documents.
pub(crate) struct Fetcher {
    away: Client,
    /// For this machine: what is in clear goes through nobody's proxy.
    here: Client,
}

impl Fetcher {
    /// `authorities_pem`: the only authorities of servers elsewhere; none: the system's.
    pub(crate) fn new(authorities_pem: Option<&[u8]>) -> Result<Self, FetchError> {
        let wrong = |error: reqwest::Error| FetchError::Authorities(error.to_string());
        let mut away = builder();
        if let Some(pem) = authorities_pem {
            let authorities = Certificate::from_pem_bundle(pem).map_err(wrong)?;
            if authorities.is_empty() {
                return Err(FetchError::Authorities("there is none in it".to_owned()));
            }
            away = away.tls_certs_only(authorities);
        }
        Ok(Self {
            away: away.build().map_err(wrong)?,
            here: builder().no_proxy().build().map_err(wrong)?,
        })
    }

    pub(super) async fn keys(&self, settings: &IssuerSettings) -> Result<Keys, FetchError> {
        let (place, bytes) = match &settings.keys {
            KeysFrom::File(path) => (path.display().to_string(), file(path).await?),
            KeysFrom::Url(url) => (
                url.clone(),
                self.document(url, settings.token_file()).await?,
            ),
            KeysFrom::Discovery => {
                let url = self.discovered(settings).await?;
                // Who runs another host is not whom the token is for.
                let token_file = settings.token_file();
                let token_file = token_file.filter(|_| is_at(&url, &settings.issuer));
                let bytes = self.document(&url, token_file).await?;
                (url, bytes)
            }
        };
        Keys::parse(&bytes).map_err(|what| FetchError::Document { place, what })
    }

    /// Where the discovery document says that keys are.
    async fn discovered(&self, settings: &IssuerSettings) -> Result<String, FetchError> {
        let base = settings.issuer.trim_end_matches('/');
        let place = format!("{base}/.well-known/openid-configuration");
        let bytes = self.document(&place, settings.token_file()).await?;
        let wrong = |what: &str| FetchError::Document {
            place: place.clone(),
            what: what.to_owned(),
        };
        let found = capability::json::parse_object(&bytes, &super::document_limits())
            .map_err(|_| wrong("it is not one JSON object"))?;
        let text = |name: &str| found.get(name).and_then(Value::as_str);
        // Section 4.3: else anybody's document would do.
        if text("issuer") != Some(settings.issuer.as_str()) {
            return Err(wrong("its `issuer` is another one"));
        }
        let url = text("jwks_uri").ok_or_else(|| wrong("it has no `jwks_uri`"))?;
        // One elsewhere must not make us ask what is on this machine.
        let here = |url: &str| reqwest::Url::parse(url).is_ok_and(|url| is_here(&url));
        if !may_have_keys(url) || (here(url) && !here(&settings.issuer)) {
            return Err(wrong("its `jwks_uri` is neither https nor on this machine"));
        }
        Ok(url.to_owned())
    }

    /// What is at a URL; `token_file` has the bearer token that is shown there.
    pub(crate) async fn document(
        &self,
        url: &str,
        token_file: Option<&Path>,
    ) -> Result<Vec<u8>, FetchError> {
        let wrong = |what: String| FetchError::Http {
            url: url.to_owned(),
            what,
        };
        let said = |error: reqwest::Error| wrong(causes(&error.without_url()));
        let parsed = reqwest::Url::parse(url);
        let here = parsed.is_ok_and(|url| is_here(&url));
        let client = if here { &self.here } else { &self.away };
        let mut request = client.get(url).header("accept", "application/json");
        if let Some(path) = token_file {
            // Read each time: such tokens change.
            let token = file(path).await?;
            let token = String::from_utf8_lossy(&token);
            request = request.bearer_auth(token.trim());
        }
        let mut response = request.send().await.map_err(said)?;
        if response.status() != 200 {
            return Err(wrong(format!("the answer is {}", response.status())));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(said)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > DOCUMENT_MAX {
                return Err(wrong(format!("it is longer than {DOCUMENT_MAX} bytes")));
            }
        }
        Ok(bytes)
    }
}

fn builder() -> reqwest::ClientBuilder {
    Client::builder()
        .timeout(WITHIN)
        // Where else it may lead nobody has looked at.
        .redirect(redirect::Policy::none())
        .user_agent(concat!("writ/", env!("CARGO_PKG_VERSION")))
}

/// An error and what is behind it: that of a connection says nothing of why.
fn causes(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_said = inner.to_string();
        if !said.contains(&inner_said) {
            said.push_str(": ");
            said.push_str(&inner_said);
        }
        source = inner.source();
    }
    said
}

/// What is in a file.
pub(crate) async fn file(path: &Path) -> Result<Vec<u8>, FetchError> {
    use tokio::io::AsyncReadExt as _;
    let wrong = |error| FetchError::File(path.to_owned(), error);
    let most = u64::try_from(DOCUMENT_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await.map_err(wrong)?;
    let mut file = file.take(most.saturating_add(1));
    file.read_to_end(&mut bytes).await.map_err(wrong)?;
    if bytes.len() > DOCUMENT_MAX {
        return Err(wrong(std::io::Error::other("it is too long")));
    }
    Ok(bytes)
}
