//! The JSON interface for people at a command line.
//!
//! A session is opened with a one-time secret and sent back as
//! `Authorization: Session ID`, a header that no page elsewhere can make a
//! browser send, and bodies must be `application/json`, which no form can
//! send: there is nothing here for a forged request to use. A browser's cookie
//! may read and nothing else.

use axum::body::Bytes;
use axum::extract::{FromRequest, Json, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answers::{
    ApprovalAnswer, ApprovalsAnswer, Confirmation, Decision, LedgerAnswer, LinkAnswer, Nothing,
    Problem, RestoreAnswer, Secret, SessionAnswer,
};
use super::bodies::content_json;
use super::logins::{Kind, LINK_MS, LoginError, Session};
use super::models::{all_json, to_json, word};
use super::pages::link_for;
use super::refusals::{CrossSite, NotAllowed, NotAsked, NotFound, NotNow, NotSignedIn, PROBLEM};
use super::site::{By, Site};
use super::text::time_for_programs;
use super::{Desk, DeskError};

pub(super) fn routes() -> OpenApiRouter<Site> {
    OpenApiRouter::new()
        .routes(routes!(document))
        .routes(routes!(session, open, close))
        .routes(routes!(new_link))
        .routes(routes!(list))
        .routes(routes!(one))
        .routes(routes!(approve))
        .routes(routes!(deny))
        .merge(super::rights::routes())
        .merge(super::keys::routes())
        .routes(routes!(ledger))
        .routes(routes!(confirm))
}

/// This document: OpenAPI 3.1, generated from the code.
#[utoipa::path(get, path = "/api/openapi.json", tag = "about",
    responses((status = 200, description = "The document", body = serde_json::Value)))]
async fn document(State(site): State<Site>) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, site.document.clone()).into_response()
}

/// Whether a path is of the JSON interface, signed in or not.
pub(super) fn is_api(path: &str) -> bool {
    path == "/api" || path.starts_with("/api/")
}

/// A problem+json answer (RFC 9457); `word` is stable, `detail` says what to do.
pub(super) fn problem(status: StatusCode, word: &str, detail: &str) -> Response {
    let body = Problem {
        kind: format!("urn:writ:problem:{word}"),
        title: status.canonical_reason().unwrap_or_default().to_owned(),
        status: status.as_u16(),
        reason: word.to_owned(),
        detail: detail.to_owned(),
    };
    let mut response = (status, Json(body)).into_response();
    let kind = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
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

/// A body that is one JSON object of this form, each member once. A list of its values,
/// which would make one as well, is none; else it is the answer that says so.
pub(super) struct Object<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Object<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let bad = |status| {
            let detail = "the body is not the JSON that this path takes";
            problem(status, "bad_body", detail)
        };
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()?.split(';').next());
        let is_json = kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        if !is_json {
            return Err(bad(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|rejection| bad(rejection.status()))?;
        let whole = capability::json::parse(&bytes, &capability::Limits::CEILING);
        let whole = whole.map_err(|_| bad(StatusCode::BAD_REQUEST))?;
        let unlike = bad(StatusCode::UNPROCESSABLE_ENTITY);
        if !whole.is_object() {
            return Err(unlike);
        }
        serde_json::from_value(whole).map(Self).map_err(|_| unlike)
    }
}

/// The body, or the answer to what is none.
pub(super) type Asked<T> = Result<Object<T>, Response>;

fn session_json(session: &Session, id: Option<String>) -> SessionAnswer {
    SessionAnswer {
        session: id,
        who: session.who.clone(),
        expires_at: time_for_programs(session.ends_ms),
    }
}

/// Opens a session with a one-time secret.
#[utoipa::path(post, path = "/api/v1/session", tag = "session", request_body = Secret,
    responses(
        (status = 201, description = "It is open", body = SessionAnswer),
        (status = 401, description = "`wrong_secret`", body = Problem, content_type = PROBLEM),
        (status = 429, description = "`limit_exceeded`: too many wrong ones", body = Problem, content_type = PROBLEM),
        NotAsked))]
pub(super) async fn open(State(site): State<Site>, body: Asked<Secret>) -> Response {
    let Object(Secret { secret }) = match body {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    match site
        .logins
        .open(&secret, Kind::CommandLine, site.desk.now_ms())
    {
        Ok((id, session)) => {
            site.desk
                .logged_in(&session.who, Kind::CommandLine.how())
                .await;
            (StatusCode::CREATED, Json(session_json(&session, Some(id)))).into_response()
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

/// Whose session it is.
#[utoipa::path(get, path = "/api/v1/session", tag = "session", security(("session" = [])),
    responses((status = 200, description = "It is open", body = SessionAnswer), NotSignedIn))]
async fn session(State(site): State<Site>, headers: HeaderMap) -> Response {
    match reader(&site, &headers) {
        Some(session) => Json(session_json(&session, None)).into_response(),
        None => unauthenticated(),
    }
}

/// Ends the session.
#[utoipa::path(delete, path = "/api/v1/session", tag = "session", security(("session" = [])),
    responses((status = 204, description = "It is over"), NotSignedIn, CrossSite))]
async fn close(State(site): State<Site>, headers: HeaderMap) -> Response {
    let Some((id, _)) = site.command_line(&headers) else {
        return unauthenticated();
    };
    site.logins.close(&id);
    StatusCode::NO_CONTENT.into_response()
}

/// A link with which a browser signs in as the same person, once.
#[utoipa::path(post, path = "/api/v1/login-links", tag = "session", security(("session" = [])), request_body = Nothing,
    responses((status = 201, description = "The link", body = LinkAnswer), NotSignedIn, NotAsked))]
async fn new_link(State(site): State<Site>, headers: HeaderMap, body: Asked<Nothing>) -> Response {
    let Some((id, _)) = site.command_line(&headers) else {
        return unauthenticated();
    };
    if let Err(refusal) = body {
        return refusal;
    }
    let ends = time_for_programs(site.desk.now_ms().saturating_add(LINK_MS));
    let body = LinkAnswer {
        url: link_for(&site, &id),
        expires_at: ends,
    };
    (StatusCode::CREATED, Json(body)).into_response()
}

/// Every approval that is remembered.
#[utoipa::path(get, path = "/api/v1/approvals", tag = "approvals", security(("session" = [])),
    responses((status = 200, description = "All of them", body = ApprovalsAnswer), NotSignedIn))]
async fn list(State(site): State<Site>, headers: HeaderMap) -> Response {
    if reader(&site, &headers).is_none() {
        return unauthenticated();
    }
    Json(all_json(&*site.desk)).into_response()
}

/// One approval, with its body where that is here.
#[utoipa::path(get, path = "/api/v1/approvals/{id}", tag = "approvals", security(("session" = [])),
    params(("id" = String, Path, description = "`apr_…`")),
    responses(
        (status = 200, description = "The approval", body = ApprovalAnswer),
        NotSignedIn, NotFound))]
async fn one(State(site): State<Site>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    if reader(&site, &headers).is_none() {
        return unauthenticated();
    }
    match site.desk.get(&id) {
        Some(approval) => {
            let mut shown = to_json(&approval, site.desk.now_ms());
            if let Some(body) = &mut shown.body {
                body.content = site.desk.body(&id).map(|bytes| content_json(&bytes));
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

/// Says yes to exactly what the digest is of. Saying the same again changes nothing.
#[utoipa::path(post, path = "/api/v1/approvals/{id}/approve", tag = "approvals", security(("session" = [])),
    params(("id" = String, Path, description = "`apr_…`")), request_body = Decision,
    responses(
        (status = 200, description = "The approval as it is now", body = ApprovalAnswer),
        (status = 409, description = "`stale`, `not_pending`, `body_gone`", body = Problem, content_type = PROBLEM),
        NotSignedIn, NotAllowed, NotFound, NotAsked, NotNow))]
async fn approve(
    State(site): State<Site>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Asked<Decision>,
) -> Response {
    decide(&site, &id, &headers, body, true).await
}

/// Says no to it. Saying the same again changes nothing.
#[utoipa::path(post, path = "/api/v1/approvals/{id}/deny", tag = "approvals", security(("session" = [])),
    params(("id" = String, Path, description = "`apr_…`")), request_body = Decision,
    responses(
        (status = 200, description = "The approval as it is now", body = ApprovalAnswer),
        (status = 409, description = "`stale`, `not_pending`, `body_gone`", body = Problem, content_type = PROBLEM),
        NotSignedIn, NotAllowed, NotFound, NotAsked, NotNow))]
async fn deny(
    State(site): State<Site>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Asked<Decision>,
) -> Response {
    decide(&site, &id, &headers, body, false).await
}

async fn decide(
    site: &Site,
    id: &str,
    headers: &HeaderMap,
    body: Asked<Decision>,
    approve: bool,
) -> Response {
    let Some((_, session)) = site.command_line(headers) else {
        return unauthenticated();
    };
    let Object(Decision { digest }) = match body {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    match site.decide(id, &digest, approve, &session).await {
        Ok(approval) => Json(to_json(&approval, site.desk.now_ms())).into_response(),
        Err(error) => refused(error),
    }
}

/// What `GET /api/v1/ledger` and the status say of a restore that waits.
pub(super) fn suspension(desk: &dyn Desk) -> Option<RestoreAnswer> {
    desk.suspended().map(|waiting| RestoreAnswer {
        restored: waiting.index,
        at: time_for_programs(waiting.time_ms),
        entries: waiting.entries,
        head: format!("{}:{}", waiting.entries, hex::encode(waiting.head)),
    })
}

fn ledger_json(site: &Site) -> LedgerAnswer {
    LedgerAnswer {
        suspended: suspension(&*site.desk),
    }
}

/// Whether agents wait for a person since a restore.
#[utoipa::path(get, path = "/api/v1/ledger", tag = "ledger", security(("session" = [])),
    responses((status = 200, description = "Whether they do", body = LedgerAnswer), NotSignedIn))]
async fn ledger(State(site): State<Site>, headers: HeaderMap) -> Response {
    if reader(&site, &headers).is_none() {
        return unauthenticated();
    }
    Json(ledger_json(&site)).into_response()
}

/// Lets agents act again after the restore that was looked at.
#[utoipa::path(post, path = "/api/v1/ledger/confirm", tag = "ledger", security(("session" = [])), request_body = Confirmation,
    responses(
        (status = 200, description = "They may", body = LedgerAnswer),
        (status = 409, description = "`not_suspended`", body = Problem, content_type = PROBLEM),
        NotSignedIn, NotAllowed, NotAsked, NotNow))]
async fn confirm(
    State(site): State<Site>,
    headers: HeaderMap,
    body: Asked<Confirmation>,
) -> Response {
    let Some((_, session)) = site.command_line(&headers) else {
        return unauthenticated();
    };
    let Object(Confirmation { restored }) = match body {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    match site.desk.confirm(restored, &session.who).await {
        Ok(()) => Json(ledger_json(&site)).into_response(),
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
        DeskError::Key(why, _) => {
            let (status, word) = why.told();
            problem(status, word, &detail)
        }
        DeskError::NoSuchOwner(_) => problem(StatusCode::BAD_REQUEST, "owner_unknown", &detail),
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
