//! The registry as pages: all agents, one of them, and changing where one stands.

use axum::Router;
use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{Form, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use ledger::model::{AgentChange, AgentState, Millis, Refused};
use serde::Deserialize;

use super::logins::Session;
use super::pages::{bad_form, message_with, not_signed_in, sign_in_first, wrong_csrf};
use super::registry::{self, Asked, Change, path_of};
use super::rights::is_text;
use super::site::{By, Site, csrf_matches};
use super::text::Shown;
use super::views::{AgentPage, AgentsPage, ChangePage, Shell, html};
use super::{DeskError, RightsChange};

pub(super) fn routes() -> Router<Site> {
    Router::new()
        .route("/agents", get(list))
        .route("/agents/{id}", get(one))
        .route("/agents/{id}/change", get(ask).post(change))
}

async fn list(
    State(site): State<Site>,
    headers: HeaderMap,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let Some((_, session)) = site.browser(&headers, By::Person) else {
        return sign_in_first(&site, &headers, "/agents");
    };
    let Ok(Query(asked)) = asked else {
        let text = "Each of `state`, `owner`, `text` and `page` may be there once.";
        return unreadable(&site, &session, text);
    };
    let list = match registry::list(&*site.desk, &asked) {
        Ok(list) => list,
        Err(text) => return unreadable(&site, &session, text),
    };
    let shell = Shell::new(&site, Some(&session), "agents", "Agents");
    html(StatusCode::OK, &AgentsPage { shell, list })
}

fn unreadable(site: &Site, session: &Session, text: &str) -> Response {
    let link = ("/agents".to_owned(), "All agents");
    let said = ("That address can't be read", text);
    message_with(site, Some(session), StatusCode::BAD_REQUEST, said, link)
}

fn no_such(site: &Site, session: &Session) -> Response {
    let text = "It is not in the registry, and it has not asked for anything.";
    let link = ("/agents".to_owned(), "All agents");
    let said = ("No such agent", text);
    message_with(site, Some(session), StatusCode::NOT_FOUND, said, link)
}

async fn one(State(site): State<Site>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let Some((_, session)) = site.browser(&headers, By::Person) else {
        return sign_in_first(&site, &headers, &path_of(&id));
    };
    let Some(agent) = registry::one(&*site.desk, &id) else {
        return no_such(&site, &session);
    };
    let shell = Shell::new(&site, Some(&session), "agents", "Agent");
    let changes = match site.desk.may_administer(&session.who) {
        true => agent.changes(),
        false => Vec::new(),
    };
    let page = AgentPage {
        shell,
        agent,
        changes,
    };
    html(StatusCode::OK, &page)
}

#[derive(Deserialize)]
struct To {
    to: AgentState,
}

/// What a change would do, for whoever may make it. Nothing is changed by looking.
async fn ask(
    State(site): State<Site>,
    Path(id): Path<String>,
    headers: HeaderMap,
    to: Result<Query<To>, QueryRejection>,
) -> Response {
    let Some((_, session)) = site.browser(&headers, By::Person) else {
        return sign_in_first(&site, &headers, &path_of(&id));
    };
    let Some(agent) = registry::one(&*site.desk, &id) else {
        return no_such(&site, &session);
    };
    if !site.desk.may_administer(&session.who) {
        return refused(&site, &session, &id, &DeskError::NotAdmin);
    }
    let to = to.ok().map(|Query(To { to })| to);
    let change = to.and_then(|to| agent.changes().into_iter().find(|it| it.to == to));
    let Some(change) = change else {
        return moved(&site, &session, &id);
    };
    let shell = Shell::new(&site, Some(&session), "agents", change.title);
    let owners = site.desk.owners().into_keys().map(|name| {
        let shown = Shown::text(&name);
        (name, shown)
    });
    let page = ChangePage {
        shell,
        csrf: session.csrf,
        agent,
        change,
        owners: owners.collect(),
    };
    html(StatusCode::OK, &page)
}

#[derive(Deserialize)]
struct Fields {
    csrf: String,
    /// Where it stood when the page was drawn.
    from: AgentState,
    /// When its record had last changed then: it may stand there again by another way.
    changed_ms: Millis,
    to: AgentState,
    #[serde(default)]
    why: String,
    /// Of one that is not in the registry yet.
    #[serde(default)]
    owner: String,
    #[serde(default)]
    purpose: String,
    #[serde(default)]
    environment: String,
    /// Said where there is no way back.
    #[serde(default)]
    sure: String,
}

async fn change(
    State(site): State<Site>,
    Path(id): Path<String>,
    headers: HeaderMap,
    form: Result<Form<Fields>, FormRejection>,
) -> Response {
    let Some((_, session)) = site.browser(&headers, By::Person) else {
        return not_signed_in(&site);
    };
    let Form(fields) = match form {
        Ok(form) => form,
        Err(rejection) => return bad_form(&site, Some(&session), &rejection),
    };
    if !csrf_matches(&session, &fields.csrf) {
        return wrong_csrf(&site, &session);
    }
    let Some(agent) = registry::one(&*site.desk, &id) else {
        return no_such(&site, &session);
    };
    let known = agent.changes();
    let wanted = known.iter().find(|it| it.to == fields.to);
    let is_as_shown = agent.state == fields.from && agent.changed_ms == fields.changed_ms;
    let Some(wanted) = wanted.filter(|_| is_as_shown) else {
        return moved(&site, &session, &id);
    };
    let back = format!("{}/change?to={}", path_of(&id), wanted.word);
    let change = match taken(wanted, agent.is_registered, fields) {
        Ok(change) => change,
        Err(text) => {
            let link = (back, "Back");
            let said = ("Something is missing", text);
            return message_with(&site, Some(&session), StatusCode::BAD_REQUEST, said, link);
        }
    };
    let agent = id.clone();
    let change = RightsChange::Agent { agent, change };
    match site.desk.change_rights(change, &session.who).await {
        Ok(_) => Redirect::to(&path_of(&id)).into_response(),
        Err(DeskError::NoSuchOwner(text)) => {
            let link = (back, "Back");
            let said = ("No such owner", text.as_str());
            message_with(&site, Some(&session), StatusCode::BAD_REQUEST, said, link)
        }
        Err(error) => refused(&site, &session, &id, &error),
    }
}

/// The form as a change, or what is wrong with it.
fn taken(wanted: &Change, is_registered: bool, form: Fields) -> Result<AgentChange, &'static str> {
    let texts = [&form.owner, &form.purpose, &form.environment, &form.why];
    if !texts.into_iter().all(|text| is_text(text)) {
        return Err("A text is longer than 256 letters, or has control characters.");
    }
    if wanted.is_final && form.sure != "yes" {
        return Err("There is no way back from this: tick the box that says so.");
    }
    let mut change = AgentChange {
        state: Some(wanted.to),
        why: form.why,
        ..AgentChange::default()
    };
    if !is_registered {
        if form.owner.trim().is_empty() {
            return Err("An agent has an owner: the person or team that answers for it.");
        }
        change.owner = Some(form.owner);
        change.purpose = Some(form.purpose).filter(|it| !it.is_empty());
        change.environment = Some(form.environment).filter(|it| !it.is_empty());
    }
    Ok(change)
}

fn moved(site: &Site, session: &Session, id: &str) -> Response {
    let text = "Nothing was changed: the agent does not stand where it stood on your page, or can't go there from where it is.";
    let link = (path_of(id), "Look at it as it is now");
    let said = ("What you were shown has changed", text);
    message_with(site, Some(session), StatusCode::CONFLICT, said, link)
}

fn refused(site: &Site, session: &Session, id: &str, error: &DeskError) -> Response {
    let (status, title, text) = match error {
        DeskError::NotAdmin => (
            StatusCode::FORBIDDEN,
            "You may not change this",
            "Nothing was changed. Only the people of server.admins change the registry.",
        ),
        DeskError::Rights(Refused::Transition(_)) => return moved(site, session, id),
        DeskError::Rights(Refused::Limit(_)) => (
            StatusCode::INSUFFICIENT_STORAGE,
            "The registry is full",
            "Nothing was changed: there are as many agents as there may be.",
        ),
        DeskError::Rights(Refused::TooLarge) => (
            StatusCode::BAD_REQUEST,
            "That is too long",
            "Nothing was changed: all of it together is too long for an entry of the log.",
        ),
        DeskError::Unknown => (
            StatusCode::SERVICE_UNAVAILABLE,
            "Look again",
            "It is not known whether this was recorded. Look at the agent before you do it again.",
        ),
        _ => (
            StatusCode::SERVICE_UNAVAILABLE,
            "Not just now",
            "Nothing was changed. The ledger does not take this at this moment: try again.",
        ),
    };
    let link = (path_of(id), "Look at it as it is now");
    let mut response = message_with(site, Some(session), status, (title, text), link);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let after = HeaderValue::from_static("2");
        response.headers_mut().insert(header::RETRY_AFTER, after);
    }
    response
}
