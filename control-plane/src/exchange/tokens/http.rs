//! `/oauth2/introspect` and `/oauth2/revoke`.

use super::super::Exchange;
use super::super::described::{AboutForm, KnownAnswer, Nobody, Refused};
use super::super::form::Params;
use super::super::http::{form, is_form, no_store, refusal_with, words};
use super::error::TokensError;
use crate::state::random_id;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use identity::mtls::Peer;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Seconds after which whoever revokes too much may come again.
const BUSY_S: &str = "60";

/// Both, for clients that show an assertion, or a certificate where the connection has one.
pub fn routes() -> OpenApiRouter<Arc<Exchange>> {
    OpenApiRouter::new()
        .routes(routes!(introspect))
        .routes(routes!(revoke))
}

/// What is known of a token (RFC 7662).
#[utoipa::path(post, path = "/oauth2/introspect", tag = "oauth",
    request_body(content = AboutForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, description = "What is known", body = KnownAnswer), Refused, Nobody))]
async fn introspect(State(exchange): State<Arc<Exchange>>, request: Request) -> Response {
    let asked = async {
        let (params, peer) = read(request).await?;
        exchange.introspect(&params, peer.as_ref()).await
    };
    match asked.await {
        Ok(body) => no_store((StatusCode::OK, axum::Json(body)).into_response()),
        Err(error) => refused(&exchange, &error),
    }
}

/// The end of a token of the caller's own (RFC 7009).
#[utoipa::path(post, path = "/oauth2/revoke", tag = "oauth",
    request_body(content = AboutForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, description = "It is good for nothing"), Refused, Nobody))]
async fn revoke(State(exchange): State<Arc<Exchange>>, request: Request) -> Response {
    let asked = async {
        let (params, peer) = read(request).await?;
        exchange.revoke(&params, peer.as_ref()).await
    };
    match asked.await {
        Ok(()) => no_store(StatusCode::OK.into_response()),
        Err(error) => refused(&exchange, &error),
    }
}

async fn read(request: Request) -> Result<(Params, Option<Peer>), TokensError> {
    let peer = request.extensions().get::<Peer>().cloned();
    is_form(&request)?;
    Ok((form(request).await?, peer))
}

/// The answer that says no, as the token endpoint's does.
fn refused(exchange: &Exchange, error: &TokensError) -> Response {
    let reason = error.reason();
    if ["invalid_client", "invalid_request", "access_denied"].contains(&error.code()) {
        exchange.core.refusals.count(reason);
    }
    let id = random_id::<9>("req_");
    let body = words(error.code(), &error.description(), reason, &id);
    let mut response = refusal_with(error.status(), body);
    let status = response.status();
    let headers = response.headers_mut();
    if *error == TokensError::Busy {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(BUSY_S));
    }
    if status == StatusCode::UNAUTHORIZED {
        // A challenge has to be there (RFC 9110, section 15.5.2), and what is taken has
        // no scheme: it is in the body.
        let challenge = HeaderValue::from_static("ClientAssertion realm=\"writ\"");
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    no_store(response)
}
