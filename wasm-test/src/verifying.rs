//! What an upstream does with `x-writ-decision`, in one file that may be copied: a
//! request that came round the proxy has none, one that was changed on the way has
//! another request's, and one that is sent again has one that was seen.
//!
//! `examples/verifying_upstream.rs` is a server around it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use base64ct::{Base64UrlUnpadded, Encoding as _};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpListener;

/// The header.
pub const HEADER: &str = "x-writ-decision";
/// The `typ` that a decision has, and nothing else that the control plane signs.
const TYPE: &str = "writ-decision+jwt";
/// Clocks may be so far apart; seconds.
const SKEW_S: u64 = 5;
/// Decisions that are remembered at one time; when they are more, none is believed.
const SEEN_MAX: usize = 100_000;

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// No decision, or more than one: it did not come through the proxy.
    #[error("no decision")]
    Missing,
    /// It is no decision of this control plane's.
    #[error("not a decision")]
    Forged,
    /// It is another upstream's, or too old.
    #[error("another upstream's decision, or an old one")]
    Elsewhere,
    /// It is about another request than this one.
    #[error("another request's decision")]
    OtherRequest,
    /// It was shown before.
    #[error("a decision that was seen")]
    Replayed,
}

#[derive(Deserialize)]
struct Header {
    typ: String,
    alg: String,
    kid: String,
}

/// What a decision says.
#[derive(Clone, Debug, Deserialize)]
pub struct Decision {
    iss: String,
    aud: String,
    iat: u64,
    exp: u64,
    jti: String,
    /// The agent's SPIFFE ID.
    pub client_id: String,
    /// The `jti` of the token that was spent for it.
    pub token_id: String,
    method: String,
    authority: String,
    path: String,
}

/// What an upstream knows, and has seen.
pub struct Verifier {
    issuer: String,
    audience: String,
    keys: Vec<(String, VerifyingKey)>,
    /// By `jti`, until when it could be shown.
    seen: Mutex<BTreeMap<String, u64>>,
}

impl Verifier {
    /// For one issuer and one upstream, with the keys of
    /// `ISSUER/.well-known/writ-decision-jwks.json`.
    pub fn new(issuer: &str, audience: &str, jwks: &Value) -> Self {
        let keys = jwks["keys"].as_array().map(Vec::as_slice);
        Self {
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
            keys: keys.unwrap_or_default().iter().filter_map(key).collect(),
            seen: Mutex::default(),
        }
    }

    /// Judges a request; what it gives back is proven.
    ///
    /// # Errors
    /// Why the request must not be served.
    pub fn check(&self, request: &Parts, now_s: u64) -> Result<Decision, Unproven> {
        let mut all = request.headers.get_all(HEADER).iter();
        let (Some(text), None) = (all.next(), all.next()) else {
            return Err(Unproven::Missing);
        };
        let text = text.to_str().map_err(|_| Unproven::Forged)?;
        let decision = self.read(text).ok_or(Unproven::Forged)?;
        let now = now_s.saturating_sub(SKEW_S)..=now_s.saturating_add(SKEW_S);
        let timely = decision.iat <= *now.end() && decision.exp > *now.start();
        if decision.iss != self.issuer || decision.aud != self.audience || !timely {
            return Err(Unproven::Elsewhere);
        }
        let host = request.headers.get("host").and_then(|it| it.to_str().ok());
        let path = request.uri.path_and_query().map(|it| it.as_str());
        if decision.method != request.method.as_str()
            || path != Some(decision.path.as_str())
            || host != Some(decision.authority.as_str())
        {
            return Err(Unproven::OtherRequest);
        }
        self.first_time(&decision, *now.start())?;
        Ok(decision)
    }

    fn read(&self, text: &str) -> Option<Decision> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Header = part(header)?;
        // The kind comes first: a token or a proof is no decision, whoever signed it.
        if header.typ != TYPE || header.alg != "ES256" {
            return None;
        }
        let (_, key) = self.keys.iter().find(|(kid, _)| *kid == header.kid)?;
        let signature = Base64UrlUnpadded::decode_vec(signature).ok()?;
        let signature = Signature::from_slice(&signature).ok()?;
        key.verify(signed.as_bytes(), &signature).ok()?;
        part(claims)
    }

    fn first_time(&self, decision: &Decision, oldest_s: u64) -> Result<(), Unproven> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, until_s| *until_s > oldest_s);
        let full = seen.len() >= SEEN_MAX;
        if full || seen.insert(decision.jti.clone(), decision.exp).is_some() {
            return Err(Unproven::Replayed);
        }
        Ok(())
    }
}

/// Serves those who can show a decision for exactly what they ask, once: 200 with the
/// agent's name, and 403 with the reason for everybody else. Without end.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, verifier: Arc<Verifier>) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let verifier = Arc::clone(&verifier);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&verifier)));
            // A connection that breaks off is the client's business.
            let _ended = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    verifier: Arc<Verifier>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, _body) = request.into_parts();
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // With a clock from before 1970 no decision is timely.
    let now_s = now.map_or(0, |since| since.as_secs());
    let (status, text) = match verifier.check(&parts, now_s) {
        Ok(decision) => (StatusCode::OK, format!("served {}\n", decision.client_id)),
        Err(unproven) => (StatusCode::FORBIDDEN, format!("{unproven}\n")),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    Ok(response)
}

fn part<T: for<'de> Deserialize<'de>>(text: &str) -> Option<T> {
    serde_json::from_slice(&Base64UrlUnpadded::decode_vec(text).ok()?).ok()
}

fn key(jwk: &Value) -> Option<(String, VerifyingKey)> {
    if jwk["kty"] != "EC" || jwk["crv"] != "P-256" {
        return None;
    }
    let coordinate = |name: &str| Base64UrlUnpadded::decode_vec(jwk[name].as_str()?).ok();
    let point = [vec![4], coordinate("x")?, coordinate("y")?].concat();
    let key = VerifyingKey::from_sec1_bytes(&point).ok()?;
    Some((jwk["kid"].as_str()?.to_owned(), key))
}
