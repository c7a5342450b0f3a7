//! The token endpoint and its neighbours over HTTP.

use super::form::{BODY_MAX, Params};
use super::{Exchange, ExchangeError, TYPE_ACCESS_TOKEN, cache, metadata};
use crate::config::Issuer;
use crate::keys::CACHED_S;
use crate::state::random_id;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use identity::mtls::Peer;
use serde_json::json;
use std::sync::Arc;

/// So long may metadata be gone by, and the key of decisions, which change at a start
/// at most; seconds.
const METADATA_CACHED_S: u64 = 60;

/// The routes of the authorization server. No management route is among them.
pub fn routes(exchange: Arc<Exchange>) -> Router {
    Router::new()
        .route("/oauth2/token", post(token))
        .route("/oauth2/authorize", get(authorize))
        .route(
            "/.well-known/oauth-authorization-server",
            get(server_metadata),
        )
        .route("/.well-known/jwks.json", get(jwks))
        // A place of its own: whoever takes tokens by jwks.json must not take these.
        .route("/.well-known/writ-decision-jwks.json", get(decision_jwks))
        .with_state(exchange)
}

/// The routes for connections that have a [`Peer`], as an extension of each
/// request: the token endpoint, and what leads to it.
pub fn mtls_routes(exchange: Arc<Exchange>) -> Router {
    Router::new()
        .route("/oauth2/token", post(token))
        .route(
            "/.well-known/oauth-authorization-server",
            get(server_metadata),
        )
        .with_state(exchange)
}

async fn token(State(exchange): State<Arc<Exchange>>, request: Request) -> Response {
    let id = random_id::<9>("req_");
    let result = async {
        // The connection's, where it has one.
        let peer = request.extensions().get::<Peer>().cloned();
        let (params, proof) = read(request).await?;
        exchange.exchange(&params, &proof, &id, peer.as_ref()).await
    };
    let result = result.await;
    let refused = result.as_ref().err().map(ExchangeError::reason);
    exchange.core.metrics.exchanged(refused);
    let response = match result {
        Ok(issued) => {
            let mut body = json!({
                "access_token": issued.access_token,
                "token_type": "DPoP",
                "expires_in": issued.expires_in,
                "authorization_details": [issued.element],
            });
            if let (true, Some(members)) = (issued.exchanged, body.as_object_mut()) {
                members.insert("issued_token_type".to_owned(), TYPE_ACCESS_TOKEN.into());
            }
            (StatusCode::OK, axum::Json(body)).into_response()
        }
        Err(error) => {
            if error.unauthenticated() {
                exchange.count(&error);
            }
            let mut response = refusal(&error, &id);
            if error == ExchangeError::Nonce {
                offer_nonce(&exchange, &mut response);
            }
            response
        }
    };
    no_store(response)
}

/// Content type, one proof, no query, a bounded body.
async fn read(request: Request<Body>) -> Result<(Params, String), ExchangeError> {
    let wrong = |what: &str| ExchangeError::Request(what.into());
    if request.uri().query().is_some() {
        return Err(wrong("parameters go into the body, not into the URL"));
    }
    let headers = request.headers();
    let form = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(|value| {
            value
                .split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_ascii_lowercase()
        });
    if form.as_deref() != Some("application/x-www-form-urlencoded") {
        return Err(wrong("the body must be application/x-www-form-urlencoded"));
    }
    let proof = proof(headers)?;
    let body = Limited::new(request.into_body(), BODY_MAX)
        .collect()
        .await
        .map_err(|error| {
            if error.is::<LengthLimitError>() {
                ExchangeError::TooLarge
            } else {
                wrong("the body was cut off")
            }
        })?;
    let body = body.to_bytes();
    Ok((Params::parse(&body)?, proof))
}

fn proof(headers: &HeaderMap) -> Result<String, ExchangeError> {
    let mut proofs = headers.get_all("dpop").iter();
    let missing = ExchangeError::Proof(capability::reason::Reason::MissingCredentials);
    let malformed = ExchangeError::Proof(capability::reason::Reason::ProofMalformed);
    let first = proofs.next().ok_or(missing)?;
    if proofs.next().is_some() {
        return Err(malformed);
    }
    first.to_str().map(str::to_owned).map_err(|_| malformed)
}

fn refusal(error: &ExchangeError, request_id: &str) -> Response {
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = json!({
        "error": error.code(),
        "error_description": ascii(&error.description()),
        "reason": error.reason().as_str(),
        "request_id": request_id,
    });
    let mut response = (status, axum::Json(body)).into_response();
    if error.code() == "temporarily_unavailable" {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// RFC 6749, section 5.2: printable ASCII without `"` and `\`.
fn ascii(text: &str) -> String {
    text.chars()
        .map(|c| {
            if (' '..='~').contains(&c) && c != '"' && c != '\\' {
                c
            } else {
                '?'
            }
        })
        .take(512)
        .collect()
}

/// RFC 9449, section 8; scripts of other origins may not read it otherwise.
fn offer_nonce(exchange: &Exchange, response: &mut Response) {
    if let Ok(nonce) = HeaderValue::try_from(exchange.nonce()) {
        let headers = response.headers_mut();
        headers.insert("dpop-nonce", nonce);
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("DPoP-Nonce"),
        );
    }
}

fn no_store(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
        .headers_mut()
        .insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

/// Clients demand the endpoint in metadata; no response type is served.
async fn authorize() -> Response {
    let body = json!({
        "error": "unsupported_response_type",
        "error_description": "there is no authorization endpoint flow here; exchange a workload identity at the token endpoint",
    });
    no_store((StatusCode::BAD_REQUEST, axum::Json(body)).into_response())
}

async fn server_metadata(State(exchange): State<Arc<Exchange>>, headers: HeaderMap) -> Response {
    let config = &exchange.core.config;
    let clients = !config.clients.is_empty();
    let takes = |issuer: &Issuer| issuer.users.as_ref().is_some_and(|it| it.id_jag);
    let id_jag = config.identity.issuers.iter().any(takes);
    let body = metadata::server(&config.server, &config.edge, clients, id_jag);
    cache::json(&body, METADATA_CACHED_S, &headers)
}

async fn jwks(State(exchange): State<Arc<Exchange>>, headers: HeaderMap) -> Response {
    let core = &exchange.core;
    let body = json!({ "keys": core.keys.known(core.now() / 1000) });
    cache::json(&body, CACHED_S, &headers)
}

async fn decision_jwks(State(exchange): State<Arc<Exchange>>, headers: HeaderMap) -> Response {
    let body = json!({ "keys": [exchange.core.decision_key.public_jwk()] });
    cache::json(&body, METADATA_CACHED_S, &headers)
}
