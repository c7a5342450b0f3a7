//! TLS as an agent speaks it: it shows its X.509-SVID to whoever asks for a
//! certificate, and trusts its trust domain's authorities beside the system's.

use super::{Agent, ClientError, Proves, causes};
use identity::fetch_x509_svid;
use reqwest::{Certificate, Client, Identity};
use serde_json::Value;
use std::time::Duration;

/// The issuer's word on itself is at most this long; bytes.
const METADATA_MAX: usize = 64 * 1024;

/// A token endpoint.
pub(crate) struct Endpoint {
    /// Its URL.
    pub(crate) url: String,
    /// It is the one that is shown the X.509-SVID.
    pub(crate) shows_certificate: bool,
}

impl Agent {
    /// The client for this URL: for `https` the one that shows the X.509-SVID, where
    /// there is one. It is made once, so that the certificate of the exchange is that of
    /// the request.
    pub(super) async fn client_for(&self, url: &str) -> Result<&Client, ClientError> {
        let workload_api = match &self.proves {
            Proves::WorkloadApi(socket) if url.starts_with("https://") => socket,
            _ => return Ok(&self.http),
        };
        self.secure
            .get_or_try_init(|| async {
                let svid = fetch_x509_svid(workload_api).await?;
                let unusable = |error: reqwest::Error| {
                    ClientError::Usage(format!("the X.509-SVID can't be used: {}", causes(&error)))
                };
                let identity = Identity::from_pem(svid.pem.as_bytes()).map_err(unusable)?;
                let authorities = svid.authorities.iter();
                let authorities: Result<Vec<_>, _> =
                    authorities.map(|der| Certificate::from_der(der)).collect();
                super::builder(self.timeout)
                    .identity(identity)
                    .tls_certs_merge(authorities.map_err(unusable)?)
                    .build()
                    .map_err(unusable)
            })
            .await
    }

    /// Where tokens for requests to this URL are asked for.
    ///
    /// # Errors
    /// No issuer.
    pub(crate) async fn endpoint_for(&self, url: &str) -> Result<Endpoint, ClientError> {
        let plain = format!("{}/oauth2/token", self.issuer);
        let url = self.token_endpoint(url).await?;
        Ok(Endpoint {
            shows_certificate: url != plain,
            url,
        })
    }

    /// The token endpoint for a request to this URL: where the guarded origin is
    /// TLS, the issuer's alias for client certificates, if it has one (RFC 8705,
    /// section 5), so that the token is bound to the certificate.
    pub(super) async fn token_endpoint(&self, url: &str) -> Result<String, ClientError> {
        let plain = format!("{}/oauth2/token", self.issuer);
        let shows = matches!(self.proves, Proves::WorkloadApi(_));
        if !(shows && url.starts_with("https://")) {
            return Ok(plain);
        }
        let metadata = format!("{}/.well-known/oauth-authorization-server", self.issuer);
        let unreachable =
            |error: reqwest::Error| ClientError::Issuer(self.issuer.clone(), causes(&error));
        let client = self.client_for(&metadata).await?;
        let response = client
            .get(&metadata)
            .timeout(Duration::from_secs(10))
            .send()
            .await
            .map_err(unreachable)?;
        let body = response.bytes().await.map_err(unreachable)?;
        let metadata: Value = if body.len() > METADATA_MAX {
            Value::Null
        } else {
            serde_json::from_slice(&body).unwrap_or_default()
        };
        let alias = metadata.pointer("/mtls_endpoint_aliases/token_endpoint");
        Ok(match alias.and_then(Value::as_str) {
            Some(alias) if alias.starts_with("https://") => alias.to_owned(),
            _ => plain,
        })
    }
}
