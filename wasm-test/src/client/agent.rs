//! An agent: SVID, exchange, proof, request.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use spiffe::WorkloadApiClient;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Answer, DpopKey};
use crate::Error;

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
// Well inside any SVID's life, and few enough to be kind to the agent's socket.
const SVID_KEPT: Duration = Duration::from_secs(30);
// Longer than any hold.
const PATIENCE: Duration = Duration::from_secs(90);

/// A client of one system with one DPoP key.
#[derive(Clone, Debug)]
pub struct Agent {
    issuer: String,
    origin: String,
    // Where the two are spoken to: one replica of several, it may be.
    issuer_at: String,
    origin_at: String,
    // What proofs for the token endpoint name.
    endpoint: String,
    workload_api: Arc<WorkloadApiClient>,
    svid: Arc<Mutex<Option<(Instant, String)>>>,
    key: DpopKey,
    http: reqwest::Client,
}

/// One request through the proxy with credentials made by the caller.
#[derive(Clone, Debug, Default)]
pub struct Call<'a> {
    /// The method.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// The token; none sends no `authorization`.
    pub token: Option<&'a str>,
    /// The proof; none sends no `dpop`.
    pub proof: Option<&'a str>,
    /// More headers.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: Vec<u8>,
}

impl Agent {
    /// An agent with a fresh key.
    ///
    /// # Errors
    /// When the Workload API's socket can't be reached.
    pub async fn connect(issuer: &str, origin: &str, workload_api: &Path) -> Result<Agent, Error> {
        let endpoint = format!("unix:{}", workload_api.display());
        let workload_api = WorkloadApiClient::connect_to(endpoint)
            .await
            .map_err(|problem| Error::WorkloadApi(problem.to_string()))?;
        Ok(Agent {
            issuer: issuer.to_owned(),
            origin: origin.to_owned(),
            issuer_at: issuer.to_owned(),
            endpoint: issuer.to_owned(),
            origin_at: origin.to_owned(),
            workload_api: Arc::new(workload_api),
            svid: Arc::default(),
            key: DpopKey::generate()?,
            http: http_client(),
        })
    }

    /// The same agent, speaking to one replica of the issuer and one proxy of the
    /// origin by their own addresses; what it signs is unchanged.
    #[must_use]
    pub fn by_way_of(mut self, issuer_at: &str, origin_at: &str) -> Agent {
        issuer_at.clone_into(&mut self.issuer_at);
        origin_at.clone_into(&mut self.origin_at);
        self
    }

    /// The same agent with another key.
    ///
    /// # Errors
    /// As [`DpopKey::generate`].
    pub fn with_fresh_key(&self) -> Result<Agent, Error> {
        Ok(Agent {
            key: DpopKey::generate()?,
            ..self.clone()
        })
    }

    /// The same agent, speaking by way of this client.
    #[must_use]
    pub fn with_client(mut self, http: reqwest::Client) -> Agent {
        self.http = http;
        self
    }

    /// The same agent with another token endpoint of the same issuer.
    #[must_use]
    pub fn with_token_endpoint(mut self, base: &str) -> Agent {
        base.clone_into(&mut self.issuer_at);
        base.clone_into(&mut self.endpoint);
        self
    }

    /// Its key.
    pub fn key(&self) -> &DpopKey {
        &self.key
    }

    /// A path's absolute URL at the guarded origin.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin)
    }

    /// The origin's `HOST:PORT`.
    pub fn authority(&self) -> &str {
        let (_, authority) = self.origin.split_once("://").unwrap_or_default();
        authority
    }

    /// A JWT-SVID for the issuer, cached for half a minute.
    ///
    /// # Errors
    /// When the Workload API gives none.
    pub async fn svid(&self) -> Result<String, Error> {
        let mut cached = self.svid.lock().await;
        if let Some((fetched, svid)) = cached.as_ref()
            && fetched.elapsed() < SVID_KEPT
        {
            return Ok(svid.clone());
        }
        let svid = self
            .workload_api
            .fetch_jwt_token([&self.issuer], None)
            .await
            .map_err(|problem| Error::WorkloadApi(problem.to_string()))?;
        *cached = Some((Instant::now(), svid.clone()));
        Ok(svid)
    }

    /// A fresh JWT-SVID for any audience.
    ///
    /// # Errors
    /// When the Workload API gives none.
    pub async fn svid_for(&self, audience: &str) -> Result<String, Error> {
        let svid = self.workload_api.fetch_jwt_token([audience], None).await;
        svid.map_err(|problem| Error::WorkloadApi(problem.to_string()))
    }

    /// The `authorization_details` for one request.
    pub fn details(&self, method: &str, path: &str) -> Value {
        json!([{
            "type": "http_request",
            "actions": [method],
            "locations": [self.url(path)],
        }])
    }

    /// One exchange, whatever comes of it.
    ///
    /// # Errors
    /// When there is no SVID or no answer.
    pub async fn exchange(&self, method: &str, path: &str) -> Result<Answer, Error> {
        let svid = self.svid().await?;
        let details = self.details(method, path).to_string();
        let proof = self.key.proof("POST", &self.token_endpoint(), None);
        let answer = self.post_token(&svid, &details, &proof).await?;
        let Some(nonce) = answer.header("dpop-nonce") else {
            return Ok(answer);
        };
        if answer.oauth_error() != "use_dpop_nonce" {
            return Ok(answer);
        }
        let claims = json!({ "nonce": nonce });
        let proof = self
            .key
            .proof_with("POST", &self.token_endpoint(), None, &claims);
        self.post_token(&svid, &details, &proof).await
    }

    /// A fresh proof for the token endpoint.
    pub fn token_proof(&self) -> String {
        self.key.proof("POST", &self.token_endpoint(), None)
    }

    /// Posts a token exchange of parts that the caller made.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post_token(
        &self,
        subject_token: &str,
        details: &str,
        proof: &str,
    ) -> Result<Answer, Error> {
        let form = [
            ("grant_type", GRANT),
            ("subject_token", subject_token),
            ("subject_token_type", JWT),
            ("authorization_details", details),
        ];
        let url = format!("{}/oauth2/token", self.issuer_at);
        let request = self.http.post(&url).header("dpop", proof).form(&form);
        let response = request.send().await.map_err(Error::http(&url))?;
        Answer::read(response).await
    }

    /// A token for one request.
    ///
    /// # Errors
    /// When the exchange is refused.
    pub async fn token(&self, method: &str, path: &str) -> Result<String, Error> {
        let what = format!("the exchange for {method} {path}");
        let answer = self.exchange(method, path).await?.expect(&what, 200)?;
        let json = answer.json();
        let token = json.get("access_token").and_then(Value::as_str);
        token
            .map(ToOwned::to_owned)
            .ok_or_else(|| Error::Unexpected(format!("{what}: no access_token in the answer")))
    }

    /// Sends a request with whatever credentials the caller made.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(&self, call: Call<'_>) -> Result<Answer, Error> {
        let url = format!("{}{}", self.origin_at, call.path);
        let method: reqwest::Method = call
            .method
            .parse()
            .map_err(|_| Error::Setup(format!("{:?} is no HTTP method", call.method)))?;
        let mut request = self.http.request(method, &url).body(call.body);
        if self.origin_at != self.origin {
            request = request.header("host", self.authority());
        }
        if let Some(token) = call.token {
            request = request.header("authorization", format!("DPoP {token}"));
        }
        if let Some(proof) = call.proof {
            request = request.header("dpop", proof);
        }
        for (name, value) in call.headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.map_err(Error::http(&url))?;
        Answer::read(response).await
    }

    /// Presents a token with a fresh, right proof; once more where a nonce is asked for.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn present(&self, method: &str, path: &str, token: &str) -> Result<Answer, Error> {
        let answer = self.present_with(method, path, token, &Value::Null).await?;
        match answer.header("dpop-nonce") {
            Some(nonce) if answer.status == 401 => {
                let claims = json!({ "nonce": nonce });
                self.present_with(method, path, token, &claims).await
            }
            _ => Ok(answer),
        }
    }

    /// Presents a token with a fresh proof that has these claims as well, once.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn present_with(
        &self,
        method: &str,
        path: &str,
        token: &str,
        claims: &Value,
    ) -> Result<Answer, Error> {
        let url = self.url(path);
        let proof = self.key.proof_with(method, &url, Some(token), claims);
        self.send(Call {
            method,
            path,
            token: Some(token),
            proof: Some(&proof),
            ..Call::default()
        })
        .await
    }

    /// Exchange and request: the whole of one action.
    ///
    /// # Errors
    /// When the exchange is refused or there is no answer.
    pub async fn call(&self, method: &str, path: &str) -> Result<Answer, Error> {
        let token = self.token(method, path).await?;
        self.present(method, path, &token).await
    }

    fn token_endpoint(&self) -> String {
        format!("{}/oauth2/token", self.endpoint)
    }
}

/// An HTTP client that follows nothing, so that tests see what was answered.
pub fn http_client() -> reqwest::Client {
    http_client_builder().build().unwrap_or_default()
}

/// What all of them have in common.
pub fn http_client_builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
}
