//! One showing of a token.

use super::{Agent, ClientError, causes, nonces};
use bytes::Bytes;
use http::HeaderMap;
use std::time::Duration;

/// A request as it is shown with a token.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a> {
    /// The method.
    pub method: &'a str,
    /// The whole URL.
    pub url: &'a str,
    /// Its headers, credentials left out.
    pub headers: &'a HeaderMap,
    /// Its body.
    pub body: Option<&'a Bytes>,
    /// The whole exchange of request and answer takes at most this long; `None`
    /// is what the agent was made with.
    pub within: Option<Duration>,
}

impl Agent {
    /// Sends the request with the token and a fresh proof; once more where its route
    /// asks for a nonce, which has spent nothing. The answer's body has not been read.
    ///
    /// # Errors
    /// [`ClientError::NotSent`] when nothing can have left,
    /// [`ClientError::Unknown`] when it may have.
    pub(crate) async fn show(
        &self,
        token: &str,
        shown: Shown<'_>,
    ) -> Result<reqwest::Response, ClientError> {
        let known = self.nonces.of(shown.url);
        let response = self.show_with(token, shown, known).await?;
        let Some(nonce) = nonces::asked(response.status(), response.headers()) else {
            return Ok(response);
        };
        self.nonces.keep(shown.url, &nonce);
        match self.show_with(token, shown, Some(nonce)).await {
            // What was sent before has done nothing.
            Err(ClientError::NotSent(_)) => Ok(response),
            answer => answer,
        }
    }

    async fn show_with(
        &self,
        token: &str,
        shown: Shown<'_>,
        nonce: Option<String>,
    ) -> Result<reqwest::Response, ClientError> {
        let Shown { method, url, .. } = shown;
        let verb = reqwest::Method::from_bytes(method.as_bytes())
            .map_err(|_| ClientError::Usage(format!("`{method}` is not an HTTP method")))?;
        let client = self.client_for(url).await?;
        let mut request = client
            .request(verb, url)
            .headers(shown.headers.clone())
            .header("authorization", format!("DPoP {token}"))
            .header(
                "dpop",
                self.key
                    .proof_with(method, url, Some(token), self.now_s(), nonce),
            );
        if let Some(body) = shown.body {
            request = request.body(body.clone());
        }
        if let Some(within) = shown.within {
            request = request.timeout(within);
        }
        request.send().await.map_err(|error| {
            if error.is_connect() || error.is_builder() {
                ClientError::NotSent(causes(&error))
            } else {
                ClientError::Unknown(causes(&error))
            }
        })
    }
}
