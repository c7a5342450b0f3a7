//! The keys that sign tokens, over JSON: `/api/v1/keys`. Nothing here has a private half.

use axum::extract::{Json, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answers::{Nothing, Problem};
use super::api::{Asked, Object, problem, reader, refused, unauthenticated};
use super::refusals::{NotAllowed, NotAsked, NotFound, NotNow, NotSignedIn, PROBLEM};
use super::rights::{is_text, stepped_up};
use super::site::Site;
use super::{Desk, DeskError};

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct KeyView {
    /// Its thumbprint (RFC 7638), which tokens name it by.
    pub kid: String,
    /// `next`, `active`, `retired`, `over` or `revoked`.
    pub standing: &'static str,
    /// From when on it signs, in seconds since the epoch; 0: from the beginning.
    pub from_s: u64,
    /// When it was revoked, in seconds since the epoch.
    pub revoked_s: Option<u64>,
    /// Who has its private half: `file` or `pkcs11`.
    pub held: &'static str,
}

/// What an administrator does with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyChange {
    /// Another is made, and signs once it is known.
    Rotate,
    /// One counts for nothing any more.
    Revoke {
        /// Which.
        kid: String,
        /// Why.
        why: String,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct KeysChanged {
    /// The key that was made, or revoked.
    pub key: KeyView,
    /// The key that signs in the place of a revoked one that did.
    pub replaced_by: Option<KeyView>,
    /// Why none could be made in its place, so that nothing is signed.
    pub problem: Option<String>,
}

/// Why keys were not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRefusal {
    /// There is no such key.
    Unknown,
    /// It is revoked already.
    Revoked,
    /// There are as many as there may be.
    Full,
    /// Who holds them can't be asked now.
    Away,
}

impl KeyRefusal {
    pub(super) fn told(self) -> (StatusCode, &'static str) {
        match self {
            Self::Unknown => (StatusCode::NOT_FOUND, "not_found"),
            Self::Revoked => (StatusCode::CONFLICT, "revoked_already"),
            Self::Full => (StatusCode::INSUFFICIENT_STORAGE, "limit_exceeded"),
            Self::Away => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        }
    }
}

/// All of them.
#[derive(Serialize, ToSchema)]
pub(super) struct KeysAnswer {
    keys: Vec<KeyView>,
}

/// The list, as the process has it.
pub(super) fn keys_json(desk: &dyn Desk) -> KeysAnswer {
    KeysAnswer { keys: desk.keys() }
}

pub(super) fn routes() -> OpenApiRouter<Site> {
    OpenApiRouter::new()
        .routes(routes!(keys))
        .routes(routes!(rotate))
        .routes(routes!(revoke))
}

/// The keys that sign tokens, that will and that did.
#[utoipa::path(get, path = "/api/v1/keys", tag = "keys", security(("session" = [])),
    responses((status = 200, description = "All of them", body = KeysAnswer), NotSignedIn))]
async fn keys(State(site): State<Site>, headers: HeaderMap) -> Response {
    if reader(&site, &headers).is_none() {
        return unauthenticated();
    }
    Json(keys_json(&*site.desk)).into_response()
}

/// Makes another key, which signs in a few seconds.
#[utoipa::path(post, path = "/api/v1/keys/rotate", tag = "keys", security(("session" = [])), request_body = Nothing,
    responses(
        (status = 200, description = "The new one", body = KeysChanged),
        (status = 507, description = "`limit_exceeded`", body = Problem, content_type = PROBLEM),
        NotSignedIn, NotAllowed, NotAsked, NotNow))]
async fn rotate(State(site): State<Site>, headers: HeaderMap, body: Asked<Nothing>) -> Response {
    let Some((_, session)) = site.command_line(&headers) else {
        return unauthenticated();
    };
    if let Err(refusal) = body {
        return refusal;
    }
    changed(&site, KeyChange::Rotate, &session.who).await
}

/// Which key, and why.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Revoking {
    kid: String,
    #[serde(default)]
    why: String,
}

/// Revokes a key for good: no token of it is good any more.
#[utoipa::path(post, path = "/api/v1/keys/revoke", tag = "keys", security(("session" = [])), request_body = Revoking,
    responses(
        (status = 200, description = "It is revoked", body = KeysChanged),
        (status = 409, description = "`revoked_already`", body = Problem, content_type = PROBLEM),
        NotSignedIn, NotAllowed, NotFound, NotAsked, NotNow))]
async fn revoke(State(site): State<Site>, headers: HeaderMap, body: Asked<Revoking>) -> Response {
    let Some((_, session)) = site.command_line(&headers) else {
        return unauthenticated();
    };
    let Object(Revoking { kid, why }) = match body {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    if !is_text(&why) || !is_text(&kid) {
        let detail = "a text is longer than 256 letters, or has control characters";
        return problem(StatusCode::BAD_REQUEST, "bad_text", detail);
    }
    if !site.desk.may_administer(&session.who) {
        return refused(DeskError::NotAdmin);
    }
    // Every token that it signed is void at once, as when everything is stopped.
    if !stepped_up(&site, &session) {
        let detail = "revoking a key needs a session of the last five minutes: sign in with a link of `writ login-link`, and repeat it";
        return problem(StatusCode::FORBIDDEN, "step_up_needed", detail);
    }
    changed(&site, KeyChange::Revoke { kid, why }, &session.who).await
}

async fn changed(site: &Site, change: KeyChange, who: &str) -> Response {
    match site.desk.change_keys(change, who).await {
        Ok(done) => Json(done).into_response(),
        Err(error) => refused(error),
    }
}
