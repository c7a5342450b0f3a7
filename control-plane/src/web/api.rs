//! The JSON interface for people at a command line.
//!
//! A session is opened with a one-time secret and sent back as
//! `Authorization: Session ID`, a header that no page elsewhere can make a
//! browser send, and bodies must be `application/json`, which no form can
//! send: there is nothing here for a forged request to use. A browser's cookie
//! may read and nothing else.

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Json, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};

use super::bodies::content_json;
use super::inbox::sorted;
use super::logins::{Kind, LINK_MS, LoginError, Session};
use super::models::{to_json, word};
use super::pages::link_for;
use super::site::{By, Site};
use super::text::time_for_programs;
use super::{Desk, DeskError};

pub(super) fn routes() -> Router<Site> {
    Router::new()
        .route("/api/v1/session", get(session).post(open).delete(close))
        .route("/api/v1/login-links", post(new_link))
        .route("/api/v1/approvals", get(list))
        .route("/api/v1/approvals/{id}", get(one))
        .route("/api/v1/approvals/{id}/approve", post(approve))
        .route("/api/v1/approvals/{id}/deny", post(deny))
        .merge(super::rights::routes())
        .route("/api/v1/ledger", get(ledger))
        .route("/api/v1/ledger/confirm", post(confirm))
}

/// Whether a path is of the JSON interface, signed in or not.
pub(super) fn is_api(path: &str) -> bool {
    path == "/api" || path.starts_with("/api/")
}

/// A problem+json answer (RFC 9457); `word` is stable, `detail` says what to do.
pub(super) fn problem(status: StatusCode, word: &str, detail: &str) -> Response {
    let body = json!({
        "type": format!("urn:writ:problem:{word}"),
        "title": status.canonical_reason().unwrap_or_default(),
        "status": status.as_u16(),
        "reason": word,
        "detail": detail,
    });
    (
        status,
        [(header::CONTENT_TYPE, "application/problem+json")],
        body.to_string(),
    )
        .into_response()
}

/// The answer to anybody who is not signed in.
pub(super) fn unauthenticated() -> Response {
    let mut response = problem(
        StatusCode::UNAUTHORIZED,
        "not_signed_in",
        "this needs a human's session: use `writ login` first",
    );
    response.headers_mut().insert(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Session"),
    );
    response
}

pub(super) fn reader(site: &Site, headers: &HeaderMap) -> Option<Session> {
    site.command_line(headers)
        .or_else(|| site.browser(headers, By::Page))
        .map(|(_, session)| session)
}

pub(super) fn bad_body(rejection: &JsonRejection) -> Response {
    problem(
        rejection.status(),
        "bad_body",
        "the body is not the JSON that this path takes",
    )
}

fn session_json(session: &Session) -> Value {
    json!({"who": session.who, "expires_at": time_for_programs(session.ends_ms)})
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    secret: String,
}

async fn open(State(site): State<Site>, body: Result<Json<Secret>, JsonRejection>) -> Response {
    let Json(Secret { secret }) = match body {
        Ok(body) => body,
        Err(rejection) => return bad_body(&rejection),
    };
    match site
        .logins
        .open(&secret, Kind::CommandLine, site.desk.now_ms())
    {
        Ok((id, session)) => {
            site.desk
                .logged_in(&session.who, Kind::CommandLine.how())
                .await;
            let mut body = session_json(&session);
            if let Some(body) = body.as_object_mut() {
                body.insert("session".to_owned(), id.into());
            }
            (StatusCode::CREATED, Json(body)).into_response()
        }
        Err(error @ LoginError::Wrong) => {
            problem(StatusCode::UNAUTHORIZED, "wrong_secret", &error.to_string())
        }
        Err(error @ LoginError::TooMany) => {
            let mut response = problem(
                StatusCode::TOO_MANY_REQUESTS,
                "limit_exceeded",
                &error.to_string(),
            );
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
            response
        }
    }
}

async fn session(State(site): State<Site>, headers: HeaderMap) -> Response {
    match reader(&site, &headers) {
        Some(session) => Json(session_json(&session)).into_response(),
        None => unauthenticated(),
    }
}

async fn close(State(site): State<Site>, headers: HeaderMap) -> Response {
    let Some((id, _)) = site.command_line(&headers) else {
        return unauthenticated();
    };
    site.logins.close(&id);
    StatusCode::NO_CONTENT.into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

async fn new_link(
    State(site): State<Site>,
    headers: HeaderMap,
    body: Result<Json<Nothing>, JsonRejection>,
) -> Response {
    let Some((_, session)) = site.command_line(&headers) else {
        return unauthenticated();
    };
    if let Err(rejection) = body {
        return bad_body(&rejection);
    }
    let ends = time_for_programs(site.desk.now_ms().saturating_add(LINK_MS));
    let body = json!({"url": link_for(&site, &session), "expires_at": ends});
    (StatusCode::CREATED, Json(body)).into_response()
}

async fn list(State(site): State<Site>, headers: HeaderMap) -> Response {
    if reader(&site, &headers).is_none() {
        return unauthenticated();
    }
    let now = site.desk.now_ms();
    let approvals: Vec<Value> = sorted(site.desk.list())
        .iter()
        .map(|approval| to_json(approval, now))
        .collect();
    Json(json!({"approvals": approvals})).into_response()
}

async fn one(State(site): State<Site>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    if reader(&site, &headers).is_none() {
        return unauthenticated();
    }
    match site.desk.get(&id) {
        Some(approval) => {
            let mut shown = to_json(&approval, site.desk.now_ms());
            let content = site.desk.body(&id).map(|bytes| content_json(&bytes));
            if let (Some(content), Some(body)) = (content, shown.get_mut("body"))
                && let Some(body) = body.as_object_mut()
            {
                body.insert("content".to_owned(), content);
            }
            Json(shown).into_response()
        }
        None => problem(
            StatusCode::NOT_FOUND,
            "not_found",
            "there is no such approval",
        ),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    digest: String,
}

type DecisionBody = Result<Json<Decision>, JsonRejection>;

async fn approve(
    State(site): State<Site>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: DecisionBody,
) -> Response {
    decide(&site, &id, &headers, body, true).await
}

async fn deny(
    State(site): State<Site>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: DecisionBody,
) -> Response {
    decide(&site, &id, &headers, body, false).await
}

async fn decide(
    site: &Site,
    id: &str,
    headers: &HeaderMap,
    body: DecisionBody,
    approve: bool,
) -> Response {
    let Some((_, session)) = site.command_line(headers) else {
        return unauthenticated();
    };
    let Json(Decision { digest }) = match body {
        Ok(body) => body,
        Err(rejection) => return bad_body(&rejection),
    };
    match site.decide(id, &digest, approve, &session).await {
        Ok(approval) => Json(to_json(&approval, site.desk.now_ms())).into_response(),
        Err(error) => refused(error),
    }
}

/// What `GET /api/v1/ledger` and the status say of a restore that waits.
pub(super) fn suspension(desk: &dyn Desk) -> Value {
    match desk.suspended() {
        Some(waiting) => json!({
            "restored": waiting.index,
            "at": time_for_programs(waiting.time_ms),
            "entries": waiting.entries,
            "head": format!("{}:{}", waiting.entries, hex::encode(waiting.head)),
        }),
        None => Value::Null,
    }
}

async fn ledger(State(site): State<Site>, headers: HeaderMap) -> Response {
    if reader(&site, &headers).is_none() {
        return unauthenticated();
    }
    Json(json!({"suspended": suspension(&*site.desk)})).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Confirmation {
    restored: u64,
}

async fn confirm(
    State(site): State<Site>,
    headers: HeaderMap,
    body: Result<Json<Confirmation>, JsonRejection>,
) -> Response {
    let Some((_, session)) = site.command_line(&headers) else {
        return unauthenticated();
    };
    let Json(Confirmation { restored }) = match body {
        Ok(body) => body,
        Err(rejection) => return bad_body(&rejection),
    };
    match site.desk.confirm(restored, &session.who).await {
        Ok(()) => Json(json!({"suspended": suspension(&*site.desk)})).into_response(),
        Err(error) => refused(error),
    }
}

pub(super) fn refused(error: DeskError) -> Response {
    let detail = error.to_string();
    match error {
        DeskError::NotFound => problem(StatusCode::NOT_FOUND, "not_found", &detail),
        DeskError::Stale => problem(StatusCode::CONFLICT, "stale", &detail),
        DeskError::BodyGone => problem(StatusCode::CONFLICT, "body_gone", &detail),
        DeskError::NotPending(state) => problem(
            StatusCode::CONFLICT,
            "not_pending",
            &format!("{detail}: it is {}", word(state)),
        ),
        DeskError::NotAllowed => problem(StatusCode::FORBIDDEN, "not_an_approver", &detail),
        DeskError::NotAdmin => problem(StatusCode::FORBIDDEN, "not_an_admin", &detail),
        DeskError::Rights(why) => {
            let (status, word) = super::rights::told(&why);
            problem(status, word, &detail)
        }
        DeskError::NotSuspended => problem(StatusCode::CONFLICT, "not_suspended", &detail),
        DeskError::Unknown => problem(StatusCode::SERVICE_UNAVAILABLE, "unknown", &detail),
        DeskError::Unavailable => {
            let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable", &detail);
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
            response
        }
    }
}
