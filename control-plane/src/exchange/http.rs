//! The token endpoint and its neighbours over HTTP.

use super::described::{
    BatchAnswer, BatchForm, Keys, Refusal, Refused, Slower, TokenAnswer, TokenForm,
};
use super::form::{BODY_MAX, Params};
use super::presented::Shows;
use super::{Exchange, ExchangeError, GRANT_BEARER, GRANT_REFRESH, Issued, cache, metadata};
use crate::config::Issuer;
use crate::keys::CACHED_S;
use crate::state::random_id;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use capability::reason::Reason;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use identity::mtls::Peer;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// So long may metadata be gone by, and the key of decisions, which change at a start
/// at most; seconds.
const METADATA_CACHED_S: u64 = 60;

/// The routes of the authorization server. No management route is among them.
pub fn routes(exchange: Arc<Exchange>) -> Router {
    let (router, _) = described().split_for_parts();
    router.with_state(exchange)
}

/// What they are, for their document.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    described().split_for_parts().1
}

fn described() -> OpenApiRouter<Arc<Exchange>> {
    OpenApiRouter::new()
        .routes(routes!(token))
        .merge(super::tokens::routes())
        .routes(routes!(capabilities))
        .merge(super::authzen::routes())
        .routes(routes!(authorize))
        .routes(routes!(server_metadata))
        .routes(routes!(jwks))
        // A place of its own: whoever takes tokens by jwks.json must not take these.
        .routes(routes!(decision_jwks))
}

/// The routes for connections that have a [`Peer`], as an extension of each
/// request: the token endpoint, what leads to it, and what its tokens are known by.
pub fn mtls_routes(exchange: Arc<Exchange>) -> Router {
    let these = OpenApiRouter::new()
        .routes(routes!(token))
        .merge(super::tokens::routes())
        .routes(routes!(capabilities))
        .merge(super::authzen::mtls_routes())
        .routes(routes!(server_metadata));
    let (router, _) = these.split_for_parts();
    router.with_state(exchange)
}

/// One token for one action, for evidence of who asks (RFC 8693; RFC 6749, sections 4.4 and
/// 6; RFC 7523, section 2.1).
#[utoipa::path(post, path = "/oauth2/token", tag = "oauth",
    params(("DPoP" = String, Header, description = "A proof of this request (RFC 9449)")),
    request_body(content = TokenForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, description = "The token", body = TokenAnswer), Refused, Slower))]
async fn token(State(exchange): State<Arc<Exchange>>, request: Request) -> Response {
    let id = random_id::<9>("req_");
    let result = async {
        // The connection's, where it has one.
        let peer = request.extensions().get::<Peer>().cloned();
        let (params, proof) = read(request).await?;
        exchange.exchange(&params, &proof, &id, peer.as_ref()).await
    };
    let result = result.await;
    let reason = result.as_ref().err().map(ExchangeError::reason);
    exchange.core.metrics.exchanged(reason);
    let response = match result {
        Ok(issued) => (StatusCode::OK, axum::Json(answer(issued))).into_response(),
        Err(error) => refused(&exchange, &error, &id),
    };
    no_store(response)
}

/// What is handed out, as the answer has it.
fn answer(issued: Issued) -> Value {
    let mut body = json!({
        "access_token": issued.access_token,
        "token_type": issued.token_type,
        "expires_in": issued.expires_in,
    });
    if let Some(members) = body.as_object_mut() {
        let element = issued.element.map(|element| json!([element]));
        let more = [
            ("authorization_details", element),
            ("issued_token_type", issued.issued_type.map(Value::from)),
            ("refresh_token", issued.refresh_token.map(Value::from)),
        ];
        for (name, value) in more {
            members.extend(value.map(|value| (name.to_owned(), value)));
        }
    }
    body
}

/// Several at once: `{"authorization_details": […]}`, by a session or a certificate.
#[utoipa::path(post, path = "/api/v1/capabilities", tag = "oauth",
    params(
        ("DPoP" = String, Header, description = "A proof of this request (RFC 9449)"),
        ("authorization" = Option<String>, Header, description = "`DPoP` and a session; a certificate stands in for it")),
    request_body = BatchForm,
    responses((status = 200, description = "A token, or a refusal, for each", body = BatchAnswer), Refused, Slower))]
async fn capabilities(State(exchange): State<Arc<Exchange>>, request: Request) -> Response {
    let id = random_id::<9>("req_");
    let result = async {
        let peer = request.extensions().get::<Peer>().cloned();
        let (session, (proof, body)) = (
            session(request.headers())?,
            asked_in(request, &exchange).await?,
        );
        let shows = Shows {
            session: session.as_deref(),
            proof: &proof,
            peer: peer.as_ref(),
            id: &id,
        };
        exchange.batch(elements(&body)?, shows).await
    };
    let response = match result.await {
        Ok(each) => {
            let each = each.into_iter().map(|one| {
                let refused = one.as_ref().err().map(ExchangeError::reason);
                exchange.core.metrics.exchanged(refused);
                match one {
                    Ok(issued) => answer(issued),
                    Err(error) => told(&error, &id),
                }
            });
            let body = json!({ "capabilities": each.collect::<Vec<_>>() });
            (StatusCode::OK, axum::Json(body)).into_response()
        }
        Err(error) => {
            exchange.core.metrics.exchanged(Some(error.reason()));
            refused(&exchange, &error, &id)
        }
    };
    no_store(response)
}

/// The session of `authorization`, where there is one (RFC 9449, section 7.1).
pub(super) fn session(headers: &HeaderMap) -> Result<Option<String>, ExchangeError> {
    let wrong = || ExchangeError::Request("authorization is `DPoP` and one session".into());
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let Some(first) = all.next() else {
        return Ok(None);
    };
    let text = first.to_str().map_err(|_| wrong())?;
    let token = text
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("DPoP"));
    match (token, all.next()) {
        (Some((_, token)), None) => Ok(Some(token.to_owned())),
        _ => Err(wrong()),
    }
}

/// The proof, and the body's one JSON object.
pub(super) async fn asked_in(
    request: Request<Body>,
    exchange: &Exchange,
) -> Result<(String, Map<String, Value>), ExchangeError> {
    let proof = proof(request.headers())?;
    let body = object(request, &exchange.core.config.limits.read).await?;
    Ok((proof, body))
}

async fn object(
    request: Request<Body>,
    limits: &capability::Limits,
) -> Result<Map<String, Value>, ExchangeError> {
    is_of(&request, "application/json")?;
    let body = bounded(request.into_body()).await?;
    capability::json::parse_object(&body, limits).map_err(|_| {
        let what = "the body is not one JSON object, or has a member twice";
        ExchangeError::Request(what.into())
    })
}

fn elements(body: &Map<String, Value>) -> Result<&[Value], ExchangeError> {
    match (body.len(), body.get("authorization_details")) {
        (1, Some(Value::Array(elements))) => Ok(elements),
        _ => Err(ExchangeError::Request(
            "the body has one member, the list authorization_details".into(),
        )),
    }
}

pub(super) fn refused(exchange: &Exchange, error: &ExchangeError, id: &str) -> Response {
    if error.unauthenticated() {
        exchange.count(error);
    }
    let mut response = refusal(error, id);
    if *error == ExchangeError::Nonce {
        offer_nonce(exchange, &mut response);
    }
    response
}

/// Content type, one proof, no query, a bounded body.
async fn read(request: Request<Body>) -> Result<(Params, String), ExchangeError> {
    is_form(&request)?;
    let proof = proof(request.headers())?;
    Ok((form(request).await?, proof))
}

/// A form's content type, and no query.
pub(super) fn is_form(request: &Request<Body>) -> Result<(), ExchangeError> {
    is_of(request, "application/x-www-form-urlencoded")
}

/// A body of this content type, and no query.
fn is_of(request: &Request<Body>, wanted: &str) -> Result<(), ExchangeError> {
    if request.uri().query().is_some() {
        let what = "parameters go into the body, not into the URL";
        return Err(ExchangeError::Request(what.into()));
    }
    if media_type(request.headers()).as_deref() != Some(wanted) {
        return Err(ExchangeError::Request(format!("the body must be {wanted}")));
    }
    Ok(())
}

/// A form's parameters, from a bounded body.
pub(super) async fn form(request: Request<Body>) -> Result<Params, ExchangeError> {
    let body = bounded(request.into_body()).await?;
    Params::parse(&body)
}

/// The one that is said; who says two may be read as either (RFC 9110, section 5.3).
fn media_type(headers: &HeaderMap) -> Option<String> {
    let mut all = headers.get_all(header::CONTENT_TYPE).iter();
    let value = all.next()?.to_str().ok()?;
    if all.next().is_some() {
        return None;
    }
    let first = value.split(';').next().unwrap_or_default();
    Some(first.trim().to_ascii_lowercase())
}

async fn bounded(body: Body) -> Result<Bytes, ExchangeError> {
    let body = Limited::new(body, BODY_MAX).collect().await;
    let body = body.map_err(|error| {
        if error.is::<LengthLimitError>() {
            ExchangeError::TooLarge
        } else {
            ExchangeError::Request("the body was cut off".into())
        }
    })?;
    Ok(body.to_bytes())
}

fn proof(headers: &HeaderMap) -> Result<String, ExchangeError> {
    let mut proofs = headers.get_all("dpop").iter();
    let missing = ExchangeError::Proof(Reason::MissingCredentials);
    let malformed = ExchangeError::Proof(Reason::ProofMalformed);
    let first = proofs.next().ok_or(missing)?;
    if proofs.next().is_some() {
        return Err(malformed);
    }
    first.to_str().map(str::to_owned).map_err(|_| malformed)
}

fn refusal(error: &ExchangeError, request_id: &str) -> Response {
    refusal_with(error.status(), told(error, request_id))
}

/// A refusal with this status and body.
pub(super) fn refusal_with(status: u16, body: Value) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let error = body.get("error").and_then(Value::as_str);
    let later = error == Some("temporarily_unavailable");
    let mut response = (status, axum::Json(body)).into_response();
    if later {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn told(error: &ExchangeError, request_id: &str) -> Value {
    let description = error.description();
    let mut body = words(error.code(), &description, error.reason(), request_id);
    if let (Some(refused), Some(members)) = (error.element(), body.as_object_mut()) {
        members.insert("element_index".into(), refused.index.into());
        members.insert("element".into(), refused.element.clone());
        tell(members, &refused.why);
    }
    if let (ExchangeError::Pending(waiting), Some(members)) = (error, body.as_object_mut()) {
        members.insert("deferral_code".into(), waiting.code.as_str().into());
        members.insert("expires_in".into(), waiting.expires_in.into());
        members.insert("interval".into(), waiting.interval.into());
        members.insert("approval_id".into(), waiting.approval.as_str().into());
        tell(members, &waiting.why);
    }
    body
}

/// What policy lets the agent know.
fn tell(members: &mut serde_json::Map<String, Value>, why: &[String]) {
    if !why.is_empty() {
        members.insert("why".into(), json!(why));
    }
}

/// A refusal's body.
pub(super) fn words(error: &str, description: &str, reason: Reason, request_id: &str) -> Value {
    json!({
        "error": error,
        "error_description": ascii(description),
        "reason": reason.as_str(),
        "request_id": request_id,
    })
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

pub(super) fn no_store(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
        .headers_mut()
        .insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

/// Clients demand the endpoint in metadata; no response type is served.
#[utoipa::path(get, path = "/oauth2/authorize", tag = "oauth",
    responses((status = 400, description = "Always", body = Refusal)))]
async fn authorize() -> Response {
    let body = json!({
        "error": "unsupported_response_type",
        "error_description": "there is no authorization endpoint flow here; exchange a workload identity at the token endpoint",
    });
    no_store((StatusCode::BAD_REQUEST, axum::Json(body)).into_response())
}

/// What clients find the rest by (RFC 8414).
#[utoipa::path(get, path = "/.well-known/oauth-authorization-server", tag = "oauth",
    responses((status = 200, description = "The metadata", body = serde_json::Value)))]
async fn server_metadata(State(exchange): State<Arc<Exchange>>, headers: HeaderMap) -> Response {
    let config = &exchange.core.config;
    let clients = !config.clients.is_empty();
    let takes = |issuer: &Issuer| issuer.users.as_ref().is_some_and(|it| it.id_jag);
    let more: Vec<&str> = [
        (GRANT_BEARER, config.identity.issuers.iter().any(takes)),
        (
            GRANT_REFRESH,
            config.clients.iter().any(|it| it.refresh_s > 0),
        ),
    ]
    .into_iter()
    .filter_map(|(grant, served)| served.then_some(grant))
    .collect();
    let body = metadata::server(&config.server, &config.edge, clients, &more);
    cache::json(&body, METADATA_CACHED_S, &headers)
}

/// The keys that tokens are signed with (RFC 7517).
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "oauth",
    responses((status = 200, description = "The keys", body = Keys)))]
async fn jwks(State(exchange): State<Arc<Exchange>>, headers: HeaderMap) -> Response {
    let core = &exchange.core;
    let body = json!({ "keys": core.keys.known(core.now() / 1000) });
    cache::json(&body, CACHED_S, &headers)
}

/// The key that upstreams check decisions by.
#[utoipa::path(get, path = "/.well-known/writ-decision-jwks.json", tag = "oauth",
    responses((status = 200, description = "The key", body = Keys)))]
async fn decision_jwks(State(exchange): State<Arc<Exchange>>, headers: HeaderMap) -> Response {
    let body = json!({ "keys": [exchange.core.decision_key.public_jwk()] });
    cache::json(&body, METADATA_CACHED_S, &headers)
}
