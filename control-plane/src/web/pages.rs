//! Signing in and out, the overview, the log's newest entries, the proxies.

use axum::Router;
use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{Form, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use serde::Deserialize;

use super::logins::{Kind, LoginError, Session};
use super::site::{By, Site, csrf_matches};
use super::text::{Shown, time_for_people};
use super::views::{
    AuditPage, Entry, LinkPage, LoginPage, MessagePage, OverviewPage, ProxiesPage, Proxy, Shell,
    html,
};
use super::{Activity, assets};

/// Log entries on the overview, and on the log's own page.
const ENTRIES_OVERVIEW: usize = 8;
const ENTRIES_LOG: usize = 200;

pub(super) fn routes() -> Router<Site> {
    Router::new()
        .route("/", get(overview))
        .route("/login", get(login_form).post(login))
        .route("/logout", post(logout))
        .route("/login-links", post(new_link))
        .route("/audit", get(audit))
        .route("/proxies", get(proxies))
        .route("/assets/{name}", get(assets::serve))
}

/// A page that says one thing.
pub(super) fn message(
    site: &Site,
    session: Option<&Session>,
    status: StatusCode,
    title: &str,
    text: &str,
) -> Response {
    let link = match session {
        Some(_) => ("/approvals".to_owned(), "To the approvals"),
        None => ("/login".to_owned(), "To the sign-in"),
    };
    message_with(site, session, status, (title, text), link)
}

/// As [`message`], with a link to where it goes on.
pub(super) fn message_with(
    site: &Site,
    session: Option<&Session>,
    status: StatusCode,
    (title, text): (&str, &str),
    link: (String, &'static str),
) -> Response {
    let shell = Shell::new(site, session, "", title);
    html(
        status,
        &MessagePage {
            shell,
            text: text.to_owned(),
            link: Some(link),
        },
    )
}

/// The answer to a page's GET without a session.
///
/// The cookie is `SameSite=Strict`: a browser that follows a link from a
/// message elsewhere does not send it, though the person is signed in. Such a
/// request gets a page that asks again from here, once.
pub(super) fn sign_in_first(site: &Site, headers: &HeaderMap, path: &str) -> Response {
    let elsewhere = headers
        .get("sec-fetch-site")
        .is_some_and(|site| site == "cross-site" || site == "same-site");
    if elsewhere && !headers.contains_key(header::COOKIE) {
        let mut shell = Shell::new(site, None, "", "One moment");
        shell.go_on_to = Some(path.to_owned());
        let link = Some((path.to_owned(), "Go on"));
        return html(
            StatusCode::OK,
            &MessagePage {
                shell,
                text: "Opening the page from here.".to_owned(),
                link,
            },
        );
    }
    match path.strip_prefix("/approvals/").filter(|id| is_id(id)) {
        Some(id) => Redirect::to(&format!("/login?next={id}")).into_response(),
        None => Redirect::to("/login").into_response(),
    }
}

/// The answer to a form's POST without a session.
pub(super) fn not_signed_in(site: &Site) -> Response {
    let text = "Nothing was done. Sign in and try again.";
    message(
        site,
        None,
        StatusCode::UNAUTHORIZED,
        "You are not signed in",
        text,
    )
}

/// The answer to a form whose token is not this session's.
pub(super) fn wrong_csrf(site: &Site, session: &Session) -> Response {
    let text = "Nothing was done. The form was not made for this session: load the page again.";
    message(
        site,
        Some(session),
        StatusCode::FORBIDDEN,
        "That form is not valid here",
        text,
    )
}

/// The answer to a body that is no such form.
pub(super) fn bad_form(
    site: &Site,
    session: Option<&Session>,
    rejection: &FormRejection,
) -> Response {
    let text = "Nothing was done. The form was not one of these pages' own, or too large.";
    message(
        site,
        session,
        rejection.status(),
        "That form can't be read",
        text,
    )
}

/// Whether text can be an approval's id, and nothing that means anything in a URL.
pub(super) fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[derive(Deserialize)]
struct Next {
    #[serde(default)]
    next: String,
}

async fn login_form(
    State(site): State<Site>,
    headers: HeaderMap,
    next: Result<Query<Next>, QueryRejection>,
) -> Response {
    let session = site.browser(&headers, By::Page).map(|(_, session)| session);
    let next = next
        .ok()
        .map(|Query(Next { next })| next)
        .filter(|id| is_id(id))
        .unwrap_or_default();
    login_page(&site, session.as_ref(), StatusCode::OK, None, next)
}

fn login_page(
    site: &Site,
    session: Option<&Session>,
    status: StatusCode,
    error: Option<String>,
    next: String,
) -> Response {
    html(
        status,
        &LoginPage {
            shell: Shell::new(site, session, "login", "Sign in"),
            error,
            next,
        },
    )
}

#[derive(Deserialize)]
struct LoginFields {
    secret: String,
    #[serde(default)]
    next: String,
}

async fn login(
    State(site): State<Site>,
    headers: HeaderMap,
    form: Result<Form<LoginFields>, FormRejection>,
) -> Response {
    let Form(fields) = match form {
        Ok(form) => form,
        Err(rejection) => return bad_form(&site, None, &rejection),
    };
    // People paste the whole link as well as the part behind its #.
    let typed = fields.secret.trim();
    let secret = typed.rsplit_once('#').map_or(typed, |(_, secret)| secret);
    let next = Some(fields.next).filter(|id| is_id(id));
    match site.logins.open(secret, Kind::Browser, site.desk.now_ms()) {
        Ok((id, session)) => {
            if let Some((old, _)) = site.browser(&headers, By::Page) {
                site.logins.close(&old);
            }
            site.desk.logged_in(&session.who, Kind::Browser.how()).await;
            let to = next.map_or_else(|| "/".to_owned(), |id| format!("/approvals/{id}"));
            with_cookie(Redirect::to(&to).into_response(), site.set_cookie(&id))
        }
        Err(error) => {
            let status = match error {
                LoginError::Wrong => StatusCode::UNAUTHORIZED,
                LoginError::TooMany => StatusCode::TOO_MANY_REQUESTS,
            };
            let mut response = login_page(
                &site,
                None,
                status,
                Some(error.to_string()),
                next.unwrap_or_default(),
            );
            if status == StatusCode::TOO_MANY_REQUESTS {
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
            }
            response
        }
    }
}

fn with_cookie(mut response: Response, cookie: Option<HeaderValue>) -> Response {
    if let Some(cookie) = cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

#[derive(Deserialize)]
struct CsrfField {
    csrf: String,
}

async fn logout(
    State(site): State<Site>,
    headers: HeaderMap,
    form: Result<Form<CsrfField>, FormRejection>,
) -> Response {
    let Some((id, session)) = site.browser(&headers, By::Person) else {
        return Redirect::to("/login").into_response();
    };
    match form {
        Ok(Form(fields)) if csrf_matches(&session, &fields.csrf) => {
            site.logins.close(&id);
            with_cookie(Redirect::to("/login").into_response(), site.set_cookie(""))
        }
        Ok(_) => wrong_csrf(&site, &session),
        Err(rejection) => bad_form(&site, Some(&session), &rejection),
    }
}

async fn new_link(
    State(site): State<Site>,
    headers: HeaderMap,
    form: Result<Form<CsrfField>, FormRejection>,
) -> Response {
    let Some((id, session)) = site.browser(&headers, By::Person) else {
        return not_signed_in(&site);
    };
    match form {
        Ok(Form(fields)) if csrf_matches(&session, &fields.csrf) => {
            let shell = Shell::new(&site, Some(&session), "", "A sign-in link");
            html(
                StatusCode::OK,
                &LinkPage {
                    shell,
                    link: link_for(&site, &id),
                },
            )
        }
        Ok(_) => wrong_csrf(&site, &session),
        Err(rejection) => bad_form(&site, Some(&session), &rejection),
    }
}

/// A new one-time link for the same person, which opens nothing that outlives the session.
pub(super) fn link_for(site: &Site, id: &str) -> String {
    let secret = site.logins.mint_in(id, site.desk.now_ms());
    format!(
        "{}/login#{secret}",
        site.settings.issuer.trim_end_matches('/')
    )
}

fn entries(activity: Vec<Activity>) -> Vec<Entry> {
    let entry = |a: Activity| Entry {
        index: a.index,
        time: time_for_people(a.time_ms),
        kind: Shown::text(&a.kind),
        summary: Shown::text(&a.summary),
    };
    activity.into_iter().map(entry).collect()
}

async fn overview(State(site): State<Site>, headers: HeaderMap) -> Response {
    let Some((_, session)) = site.browser(&headers, By::Person) else {
        return sign_in_first(&site, &headers, "/");
    };
    let proxies = site.desk.proxies();
    html(
        StatusCode::OK,
        &OverviewPage {
            shell: Shell::new(&site, Some(&session), "overview", "Overview"),
            issuer: site.settings.issuer.clone(),
            module: site.settings.module_sha256.borrow().clone(),
            connected: proxies.iter().filter(|proxy| proxy.connected).count(),
            problems: proxies
                .iter()
                .filter(|proxy| proxy.problem.is_some())
                .count(),
            entries: entries(site.desk.activity(ENTRIES_OVERVIEW)),
        },
    )
}

async fn audit(State(site): State<Site>, headers: HeaderMap) -> Response {
    let Some((_, session)) = site.browser(&headers, By::Person) else {
        return sign_in_first(&site, &headers, "/audit");
    };
    let shell = Shell::new(&site, Some(&session), "audit", "Audit log");
    html(
        StatusCode::OK,
        &AuditPage {
            shell,
            entries: entries(site.desk.activity(ENTRIES_LOG)),
        },
    )
}

async fn proxies(State(site): State<Site>, headers: HeaderMap) -> Response {
    let Some((_, session)) = site.browser(&headers, By::Person) else {
        return sign_in_first(&site, &headers, "/proxies");
    };
    let proxies = site.desk.proxies().into_iter().map(|proxy| Proxy {
        id: Shown::text(&proxy.id),
        node: Shown::text(&proxy.node),
        connected: proxy.connected,
        detail: Shown::text(&proxy.detail),
        problem: proxy.problem.as_deref().map(Shown::text),
    });
    html(
        StatusCode::OK,
        &ProxiesPage {
            shell: Shell::new(&site, Some(&session), "proxies", "Proxies"),
            module: site.settings.module_sha256.borrow().clone(),
            proxies: proxies.collect(),
        },
    )
}
