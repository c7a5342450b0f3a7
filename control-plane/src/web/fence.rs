//! What holds for every answer and every request of the pages.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;

use super::api::{is_api, problem};
use super::pages::message;
use super::site::{BODY_MAX, By, Site};

const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

const ALWAYS: &[(&str, &str)] = &[
    ("content-security-policy", CSP),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

pub(super) fn around(router: Router<Site>, site: Site) -> Router {
    router
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn_with_state(site.clone(), fence))
        .with_state(site)
}

/// Sets the headers that every answer of `router` carries.
pub(super) fn harden(response: &mut Response) {
    let headers = response.headers_mut();
    for (name, value) in ALWAYS {
        headers.insert(*name, HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}

async fn fence(State(site): State<Site>, request: Request, next: Next) -> Response {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = if safe || site.is_from_here(request.headers()) {
        next.run(request).await
    } else if is_api(request.uri().path()) {
        problem(
            StatusCode::FORBIDDEN,
            "cross_site",
            "this request came from another site",
        )
    } else {
        let text = format!(
            "Nothing was done. Open the pages at {} and try there.",
            site.settings.issuer
        );
        message(
            &site,
            None,
            StatusCode::FORBIDDEN,
            "This came from another site",
            &text,
        )
    };
    harden(&mut response);
    response
}

async fn not_found(State(site): State<Site>, request: Request) -> Response {
    if is_api(request.uri().path()) {
        if site
            .command_line(request.headers())
            .or_else(|| site.browser(request.headers(), By::Page))
            .is_none()
        {
            return super::api::unauthenticated();
        }
        return problem(
            StatusCode::NOT_FOUND,
            "not_found",
            "there is nothing at this path",
        );
    }
    let session = site
        .browser(request.headers(), By::Page)
        .map(|(_, session)| session);
    message(
        &site,
        session.as_ref(),
        StatusCode::NOT_FOUND,
        "Nothing here",
        "There is no page at this address.",
    )
}

async fn wrong_method(State(site): State<Site>, request: Request) -> Response {
    if is_api(request.uri().path()) {
        return problem(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this path does not take this method",
        );
    }
    let text = "This address does not take this kind of request. Nothing was done.";
    message(
        &site,
        None,
        StatusCode::METHOD_NOT_ALLOWED,
        "Not like this",
        text,
    )
}
