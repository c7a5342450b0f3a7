//! The inbox, one approval, the decision, and the status that agents poll.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::rejection::FormRejection;
use axum::extract::{Form, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Redirect, Response};
use axum::routing::{get, post};
use axum::{Router, http::HeaderName};
use futures::stream;
use ledger::model::{Approval, ApprovalState};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::DeskError;
use super::api::problem;
use super::logins::Session;
use super::models::{Detail, Inbox, standing, version, word};
use super::pages::{bad_form, message, message_with, not_signed_in, sign_in_first, wrong_csrf};
use super::site::{By, Site, csrf_matches};
use super::text::time_for_programs;
use super::views::{ApprovalPage, InboxList, InboxPage, Shell, html};

/// The least time between two events of one stream, however busy the ledger is.
const EVENT_GAP: Duration = Duration::from_millis(250);
/// How often a stream looks whether its session still is, and what expired.
const EVENT_TICK: Duration = Duration::from_secs(10);
/// What an agent is told to wait between two looks, in seconds.
const POLL_AFTER: HeaderValue = HeaderValue::from_static("2");

pub(super) fn routes() -> Router<Site> {
    Router::new()
        .route("/approvals", get(inbox))
        .route("/approvals/list", get(list))
        .route("/approvals/events", get(events))
        .route("/approvals/{id}", get(one))
        .route("/approvals/{id}/status", get(status))
        .route("/approvals/{id}/approve", post(approve))
        .route("/approvals/{id}/deny", post(deny))
}

fn current(site: &Site) -> Inbox {
    Inbox::new(&site.desk.list(), site.desk.now_ms())
}

async fn inbox(State(site): State<Site>, headers: HeaderMap) -> Response {
    let Some((_, session)) = site.browser(&headers, By::Person) else {
        return sign_in_first(&site, &headers, "/approvals");
    };
    let shell = Shell::new(&site, Some(&session), "approvals", "Approvals");
    html(
        StatusCode::OK,
        &InboxPage {
            shell,
            inbox: current(&site),
        },
    )
}

/// The inbox's list alone, which its script puts in place of the old one.
async fn list(State(site): State<Site>, headers: HeaderMap) -> Response {
    if site.browser(&headers, By::Page).is_none() {
        return not_signed_in(&site);
    }
    html(
        StatusCode::OK,
        &InboxList {
            inbox: current(&site),
        },
    )
}

async fn one(State(site): State<Site>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let Some((_, session)) = site.browser(&headers, By::Person) else {
        let path = if super::pages::is_id(&id) {
            format!("/approvals/{id}")
        } else {
            "/approvals".to_owned()
        };
        return sign_in_first(&site, &headers, &path);
    };
    let Some(approval) = site.desk.get(&id) else {
        return no_such(&site, &session);
    };
    let title = match standing(&approval, site.desk.now_ms()) {
        ApprovalState::Pending => "May this happen?",
        ApprovalState::Approved => "This may happen, once",
        ApprovalState::Denied => "This was denied",
        ApprovalState::Expired => "This ran out of time",
        ApprovalState::Consumed => "This was approved and used",
        ApprovalState::Cancelled => "This was taken back, with the rights of who asked",
    };
    let shell = Shell::new(&site, Some(&session), "approvals", title);
    let body = site.desk.body(&approval.id);
    let detail = Detail::new(&approval, body.as_deref(), site.desk.now_ms());
    html(
        StatusCode::OK,
        &ApprovalPage {
            shell,
            csrf: session.csrf,
            detail,
        },
    )
}

fn no_such(site: &Site, session: &Session) -> Response {
    let text = "It never was, or it ended so long ago that only the audit log has it.";
    message(
        site,
        Some(session),
        StatusCode::NOT_FOUND,
        "No such approval",
        text,
    )
}

/// Where an approval stands, for whoever knows its id (128 random bits). It
/// says nothing of the action, and the id grants nothing.
async fn status(State(site): State<Site>, Path(id): Path<String>) -> Response {
    let Some(approval) = site.desk.get(&id) else {
        return problem(
            StatusCode::NOT_FOUND,
            "not_found",
            "there is no such approval",
        );
    };
    let state = standing(&approval, site.desk.now_ms());
    let body = json!({"id": approval.id, "status": word(state), "expires_at": time_for_programs(approval.expires_ms)});
    let mut response = Json(body).into_response();
    if state == ApprovalState::Pending {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, POLL_AFTER);
    }
    response
}

#[derive(Deserialize)]
struct Decision {
    csrf: String,
    digest: String,
}

type DecisionForm = Result<Form<Decision>, FormRejection>;

async fn approve(
    State(site): State<Site>,
    Path(id): Path<String>,
    headers: HeaderMap,
    form: DecisionForm,
) -> Response {
    decide(&site, &id, &headers, form, true).await
}

async fn deny(
    State(site): State<Site>,
    Path(id): Path<String>,
    headers: HeaderMap,
    form: DecisionForm,
) -> Response {
    decide(&site, &id, &headers, form, false).await
}

async fn decide(
    site: &Site,
    id: &str,
    headers: &HeaderMap,
    form: DecisionForm,
    approve: bool,
) -> Response {
    let Some((_, session)) = site.browser(headers, By::Person) else {
        return not_signed_in(site);
    };
    let Form(fields) = match form {
        Ok(form) => form,
        Err(rejection) => return bad_form(site, Some(&session), &rejection),
    };
    if !csrf_matches(&session, &fields.csrf) {
        return wrong_csrf(site, &session);
    }
    match site.decide(id, &fields.digest, approve, &session).await {
        Ok(approval) => Redirect::to(&format!("/approvals/{}", approval.id)).into_response(),
        Err(error) => refused(site, &session, id, error),
    }
}

fn refused(site: &Site, session: &Session, id: &str, error: DeskError) -> Response {
    let say = |status, title, text: &str| {
        let link = (format!("/approvals/{id}"), "Look at it as it is now");
        message_with(site, Some(session), status, (title, text), link)
    };
    match error {
        DeskError::NotFound => no_such(site, session),
        DeskError::Stale => say(
            StatusCode::CONFLICT,
            "What you were shown has changed",
            "Nothing was decided: the action on your page is not the one that waits. Read it again first.",
        ),
        DeskError::BodyGone => say(
            StatusCode::CONFLICT,
            "Its body can't be shown any more",
            "Nothing was decided: nobody can say yes to what nobody can see. It is here again when the agent repeats its request.",
        ),
        DeskError::NotPending(state) => {
            let text = format!(
                "Nothing was decided by you. Where it stands now: {}.",
                word(state)
            );
            say(StatusCode::CONFLICT, "This is not waiting any more", &text)
        }
        // All but the first answer what is asked elsewhere.
        DeskError::NotAllowed
        | DeskError::NotAdmin
        | DeskError::Key(..)
        | DeskError::NoSuchOwner(_)
        | DeskError::Rights(_)
        | DeskError::NotSuspended => say(
            StatusCode::FORBIDDEN,
            "You may not decide this",
            "Nothing was decided. The rule that asks for a human names other approvers.",
        ),
        DeskError::Unknown => say(
            StatusCode::SERVICE_UNAVAILABLE,
            "Look again",
            "It is not known whether this was recorded. Open it again before you decide again: it shows what holds.",
        ),
        DeskError::Unavailable => {
            let text = "Nothing was decided. The ledger does not take decisions at this moment: try again.";
            let mut response = say(StatusCode::SERVICE_UNAVAILABLE, "Not just now", text);
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, POLL_AFTER);
            response
        }
    }
}

/// One open inbox.
struct Feed {
    site: Site,
    session_id: HeaderMap,
    changes: watch::Receiver<u64>,
    sent: String,
    over: bool,
    _place: OwnedSemaphorePermit,
}

impl Feed {
    /// The next event: `change` with the list's version, or `ended`, after
    /// which there is none.
    async fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        loop {
            if self.site.browser(&self.session_id, By::Page).is_none() {
                self.over = true;
                return Some(Event::default().event("ended").data("the session is over"));
            }
            let version = version(&self.site.desk.list(), self.site.desk.now_ms());
            if version != self.sent {
                self.sent.clone_from(&version);
                return Some(Event::default().event("change").data(version));
            }
            tokio::select! {
                () = self.site.settings.stop.cancelled() => return None,
                () = tokio::time::sleep(EVENT_TICK) => {}
                changed = self.changes.changed() => changed.ok()?,
            }
            tokio::select! {
                () = self.site.settings.stop.cancelled() => return None,
                () = tokio::time::sleep(EVENT_GAP) => {}
            }
        }
    }
}

async fn events(State(site): State<Site>, headers: HeaderMap) -> Response {
    // Not a redirect: an event source would follow it and get a page.
    if site.browser(&headers, By::Page).is_none() {
        return problem(
            StatusCode::UNAUTHORIZED,
            "not_signed_in",
            "sign in at /login first",
        );
    }
    let Ok(place) = site.streams.clone().try_acquire_owned() else {
        let mut response = problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "limit_exceeded",
            "too many inboxes are open; try again later",
        );
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("30"));
        return response;
    };
    let mut session_id = HeaderMap::new();
    for cookie in headers.get_all(header::COOKIE) {
        session_id.append(header::COOKIE, cookie.clone());
    }
    let changes = site.desk.changes();
    let feed = Feed {
        site,
        session_id,
        changes,
        sent: String::new(),
        over: false,
        _place: place,
    };
    let stream = stream::unfold(feed, |mut feed| async move {
        feed.next()
            .await
            .map(|event| (Ok::<_, Infallible>(event), feed))
    });
    let mut response = Sse::new(stream)
        .keep_alive(KeepAlive::new().interval(EVENT_TICK))
        .into_response();
    // A proxy in between that buffers would make it anything but live.
    response.headers_mut().insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The approvals that wait, as JSON lists have them: those first that end first.
pub(super) fn sorted(mut approvals: Vec<Approval>) -> Vec<Approval> {
    approvals.sort_by_key(|approval| {
        (
            approval.state != ApprovalState::Pending,
            approval.expires_ms,
        )
    });
    approvals
}
