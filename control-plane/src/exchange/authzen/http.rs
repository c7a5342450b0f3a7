//! AuthZEN over HTTP.

use super::super::described::{Evaluated, EvaluationForm, Refused, Slower, TaskAnswer};
use super::super::http::{asked_in, no_store, refused, session};
use super::super::presented::Shows;
use super::super::{Exchange, cache};
use super::{EVALUATION, REQUESTS};
use crate::state::random_id;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use identity::mtls::Peer;
use serde_json::json;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// So long may metadata be gone by; seconds.
const METADATA_CACHED_S: u64 = 60;
/// An `X-Request-ID` that is longer is not sent back; bytes.
const REQUEST_ID_MAX: usize = 128;

pub(in super::super) fn routes() -> OpenApiRouter<Arc<Exchange>> {
    mtls_routes()
        .routes(routes!(task))
        .routes(routes!(metadata))
}

/// Those that ask who the caller is.
pub(in super::super) fn mtls_routes() -> OpenApiRouter<Arc<Exchange>> {
    OpenApiRouter::new()
        .routes(routes!(evaluation))
        .routes(routes!(requests))
}

/// Whether the agent may do this now (AuthZEN Authorization API 1.0, section 6). Nothing is
/// promised, and nothing written.
#[utoipa::path(post, path = "/access/v1/evaluation", tag = "authzen",
    params(
        ("DPoP" = String, Header, description = "A proof of this request (RFC 9449)"),
        ("authorization" = Option<String>, Header, description = "`DPoP` and a session; a certificate stands in for it")),
    request_body = EvaluationForm,
    responses((status = 200, description = "The decision", body = Evaluated), Refused, Slower))]
async fn evaluation(State(exchange): State<Arc<Exchange>>, request: Request) -> Response {
    answered(&exchange, request, Asks::Whether).await
}

/// Asks a person about what an evaluation said can be asked for (AuthZEN Access Request and
/// Approval Profile, draft 1). Equal requests are one task, so that the same again is safe.
#[utoipa::path(post, path = "/access/v1/requests", tag = "authzen",
    params(
        ("DPoP" = String, Header, description = "A proof of this request (RFC 9449)"),
        ("authorization" = Option<String>, Header, description = "`DPoP` and a session; a certificate stands in for it")),
    request_body = EvaluationForm,
    responses((status = 202, description = "The task", body = TaskAnswer), Refused, Slower))]
async fn requests(State(exchange): State<Arc<Exchange>>, request: Request) -> Response {
    answered(&exchange, request, Asks::APerson).await
}

/// Where an access request stands.
#[utoipa::path(get, path = "/access/v1/requests/{id}", tag = "authzen",
    params(("id" = String, Path, description = "The task's id")),
    responses(
        (status = 200, description = "The task", body = TaskAnswer),
        (status = 404, description = "There is none such", body = serde_json::Value)))]
async fn task(State(exchange): State<Arc<Exchange>>, Path(id): Path<String>) -> Response {
    let Some(body) = exchange.access_task(&id) else {
        let body =
            json!({ "error": "not_found", "error_description": "there is no such access request" });
        return no_store((StatusCode::NOT_FOUND, axum::Json(body)).into_response());
    };
    let is_pending = body.pointer("/task/status") == Some(&"pending".into());
    let mut response = no_store(axum::Json(body).into_response());
    if is_pending {
        let wait = exchange.core.config.approval.poll_s;
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, wait.into());
    }
    response
}

/// What clients find the rest by (AuthZEN, section 9).
#[utoipa::path(get, path = "/.well-known/authzen-configuration", tag = "authzen",
    responses((status = 200, description = "The metadata", body = serde_json::Value)))]
async fn metadata(State(exchange): State<Arc<Exchange>>, headers: HeaderMap) -> Response {
    let issuer = &exchange.core.config.server.issuer;
    let body = json!({
        "policy_decision_point": issuer,
        "access_evaluation_endpoint": format!("{issuer}{EVALUATION}"),
        "access_request_endpoint": format!("{issuer}{REQUESTS}"),
    });
    cache::json(&body, METADATA_CACHED_S, &headers)
}

/// The caller's name for its request, which the answer has too (AuthZEN, section 10.1.3).
fn echoed(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut all = headers.get_all("x-request-id").iter();
    let one = all.next().filter(|it| it.len() <= REQUEST_ID_MAX)?;
    (all.next().is_none() && one.to_str().is_ok()).then(|| one.clone())
}

/// What is asked.
#[derive(Clone, Copy)]
enum Asks {
    Whether,
    APerson,
}

async fn answered(exchange: &Exchange, request: Request, asks: Asks) -> Response {
    let id = random_id::<9>("req_");
    let echo = echoed(request.headers());
    let result = async {
        let peer = request.extensions().get::<Peer>().cloned();
        let session = session(request.headers())?;
        let (proof, body) = asked_in(request, exchange).await?;
        let shows = Shows {
            session: session.as_deref(),
            proof: &proof,
            peer: peer.as_ref(),
            id: &id,
        };
        Ok(match asks {
            Asks::Whether => (StatusCode::OK, exchange.evaluation(&body, shows).await?),
            Asks::APerson => (
                StatusCode::ACCEPTED,
                exchange.access_request(&body, shows).await?,
            ),
        })
    };
    let mut response = match result.await {
        Ok((status, body)) => (status, axum::Json(body)).into_response(),
        Err(error) => refused(exchange, &error, &id),
    };
    if let Some(echo) = echo {
        response.headers_mut().insert("x-request-id", echo);
    }
    no_store(response)
}
