//! Refusals that routes have in common, for the OpenAPI document.

#![expect(
    dead_code,
    reason = "they are described, and made as `problem` makes them"
)]

use utoipa::IntoResponses;

use super::answers::Problem;

/// The content type of a problem document.
pub(super) const PROBLEM: &str = "application/problem+json";

#[derive(IntoResponses)]
pub(super) enum NotSignedIn {
    /// `not_signed_in`
    #[response(status = 401, content_type = "application/problem+json")]
    NotSignedIn(#[to_schema] Problem),
}

#[derive(IntoResponses)]
pub(super) enum CrossSite {
    /// `cross_site`: a browser sent it from elsewhere.
    #[response(status = 403, content_type = "application/problem+json")]
    CrossSite(#[to_schema] Problem),
}

#[derive(IntoResponses)]
pub(super) enum NotAllowed {
    /// `not_an_approver`, `not_an_admin`, `step_up_needed`, `cross_site`
    #[response(status = 403, content_type = "application/problem+json")]
    NotAllowed(#[to_schema] Problem),
}

#[derive(IntoResponses)]
pub(super) enum NotFound {
    /// `not_found`
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(#[to_schema] Problem),
}

#[derive(IntoResponses)]
pub(super) enum NotAsked {
    /// `bad_body`: no JSON. Where the body has a text or a name, `bad_text`, `bad_target`,
    /// `bad_agent`, `bad_expiry`, `owner_missing`, `owner_unknown`.
    #[response(status = 400, content_type = "application/problem+json")]
    Malformed(#[to_schema] Problem),
    /// `bad_body`: over 16 KiB.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(#[to_schema] Problem),
    /// `bad_body`: the content type is not `application/json`.
    #[response(status = 415, content_type = "application/problem+json")]
    NotJson(#[to_schema] Problem),
    /// `bad_body`: other JSON than this path takes.
    #[response(status = 422, content_type = "application/problem+json")]
    OtherJson(#[to_schema] Problem),
}

#[derive(IntoResponses)]
pub(super) enum OtherQuery {
    /// `bad_query`: the query says something else than this path takes.
    #[response(status = 400, content_type = "application/problem+json")]
    OtherQuery(#[to_schema] Problem),
}

#[derive(IntoResponses)]
pub(super) enum NotNow {
    /// `unavailable`, and `unknown`: whether it was recorded.
    #[response(status = 503, content_type = "application/problem+json")]
    NotNow(#[to_schema] Problem),
}
