//! The registry of agents and the stops, over JSON: `/api/v1/agents` and `/api/v1/stops`.

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Json, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use ledger::model::{AgentChange, AgentRecord, AgentState, Refused, Rights, Stop, Target, User};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{bad_body, problem, reader, refused, unauthenticated};
use super::logins::Session;
use super::site::Site;
use super::text::time_for_programs;
use super::{Desk, RightsChange};

/// A session that stops everything is at most this old, in ms.
const STEP_UP_MS: u64 = 5 * 60 * 1000;
/// Letters of a name or a reason.
const TEXT_MAX: usize = 256;
/// Bytes of what is stopped: the longest SPIFFE ID has as many.
const NAME_MAX: usize = 2048;

pub(super) fn routes() -> Router<Site> {
    Router::new()
        .route("/api/v1/agents", get(agents).put(put_agent))
        .route("/api/v1/stops", get(stops).post(stop))
        .route("/api/v1/stops/lift", post(lift))
}

fn agent_json(record: &AgentRecord) -> Value {
    json!({
        "agent": record.agent,
        "owner": record.owner,
        "purpose": record.purpose,
        "environment": record.environment,
        "state": record.state.as_str(),
        "why": record.why,
        "created_at": time_for_programs(record.created_ms),
        "changed_at": time_for_programs(record.changed_ms),
        "changed_by": record.changed_by,
        "expires_at": record.expires_ms.map(time_for_programs),
    })
}

/// The registry, and whoever asked without being in it.
pub(super) fn agents_json(desk: &dyn Desk) -> Value {
    let rights = desk.rights();
    let known = rights.agents.values().map(|record| agent_json(record));
    let asked = desk.discovered();
    let asked = asked.iter().map(|(agent, at)| {
        json!({
            "agent": agent,
            "owner": Value::Null,
            "state": AgentState::Discovered.as_str(),
            "created_at": time_for_programs(*at),
        })
    });
    json!({ "agents": known.chain(asked).collect::<Vec<_>>() })
}

fn target_json(target: &Target) -> Value {
    match target {
        Target::Everything => json!({"everything": true}),
        Target::Agent(agent) => json!({"agent": agent}),
        Target::Owner(owner) => json!({"owner": owner}),
        Target::User(user) => json!({"user": {"issuer": user.issuer, "subject": user.subject}}),
        Target::Delegation { user, agent } => json!({
            "user": {"issuer": user.issuer, "subject": user.subject},
            "agent": agent,
        }),
        Target::Key(jkt) => json!({"key": jkt}),
        Target::Token(hash) => json!({"token": hex::encode(hash)}),
    }
}

fn stop_json(stop: &Stop) -> Value {
    let said = |said: &Option<(String, u64)>| match said {
        Some((by, at)) => json!({"by": by, "at": time_for_programs(*at)}),
        None => Value::Null,
    };
    json!({
        "target": target_json(&stop.target),
        "kind": stop.target.kind(),
        "at": time_for_programs(stop.at_ms),
        "by": stop.by,
        "why": stop.why,
        "stands": stop.lifted.is_none(),
        "lift_asked": said(&stop.lift_asked),
        "lifted": said(&stop.lifted),
    })
}

/// What is stopped, and what was.
pub(super) fn stops_json(rights: &Rights) -> Value {
    let all = rights.stops.values().map(|stop| stop_json(stop));
    json!({ "stops": all.collect::<Vec<_>>() })
}

async fn agents(State(site): State<Site>, headers: HeaderMap) -> Response {
    if reader(&site, &headers).is_none() {
        return unauthenticated();
    }
    Json(agents_json(&*site.desk)).into_response()
}

async fn stops(State(site): State<Site>, headers: HeaderMap) -> Response {
    if reader(&site, &headers).is_none() {
        return unauthenticated();
    }
    Json(stops_json(&site.desk.rights())).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    agent: String,
    owner: Option<String>,
    purpose: Option<String>,
    environment: Option<String>,
    /// Seconds since the epoch; `null` is as if it was left out, 0: never.
    expires: Option<u64>,
    state: Option<AgentState>,
    #[serde(default)]
    why: String,
}

fn too_long<'t>(texts: impl IntoIterator<Item = &'t String>) -> Option<Response> {
    let mut texts = texts.into_iter();
    let bad = |text: &String| text.chars().count() > TEXT_MAX || text.chars().any(char::is_control);
    texts.any(bad).then(|| {
        let detail = format!("a text is longer than {TEXT_MAX} letters, or has control characters");
        problem(StatusCode::BAD_REQUEST, "bad_text", &detail)
    })
}

async fn put_agent(
    State(site): State<Site>,
    headers: HeaderMap,
    body: Result<Json<Change>, JsonRejection>,
) -> Response {
    let Some((_, session)) = site.command_line(&headers) else {
        return unauthenticated();
    };
    let Json(change) = match body {
        Ok(body) => body,
        Err(rejection) => return bad_body(&rejection),
    };
    let texts = [&change.owner, &change.purpose, &change.environment];
    let texts = texts.into_iter().flatten().chain([&change.why]);
    if let Some(refusal) = too_long(texts) {
        return refusal;
    }
    if identity::SpiffeId::parse(&change.agent).is_err() {
        let detail = "`agent` is no SPIFFE ID (spiffe://TRUST_DOMAIN/PATH)";
        return problem(StatusCode::BAD_REQUEST, "bad_agent", detail);
    }
    if change
        .owner
        .as_deref()
        .is_some_and(|owner| owner.trim().is_empty())
    {
        let detail = "an agent has an owner: the person or team that answers for it";
        return problem(StatusCode::BAD_REQUEST, "owner_missing", detail);
    }
    let agent = change.agent.clone();
    let expires = |seconds: u64| Some(seconds.saturating_mul(1000)).filter(|ms| *ms > 0);
    let change = RightsChange::Agent {
        agent: change.agent,
        change: AgentChange {
            owner: change.owner,
            purpose: change.purpose,
            environment: change.environment,
            expires_ms: change.expires.map(expires),
            state: change.state,
            why: change.why,
        },
    };
    match site.desk.change_rights(change, &session.who).await {
        Ok(()) => match site.desk.rights().agent(&agent) {
            Some(record) => Json(agent_json(record)).into_response(),
            None => StatusCode::NO_CONTENT.into_response(),
        },
        Err(error) => refused(error),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    #[serde(default)]
    everything: bool,
    agent: Option<String>,
    owner: Option<String>,
    user: Option<User>,
    key: Option<String>,
    token: Option<String>,
}

impl Named {
    /// The one thing that is meant.
    fn target(self) -> Option<Target> {
        let user = self.user.as_ref();
        let texts = [&self.agent, &self.owner, &self.key, &self.token];
        let texts = texts.into_iter().flatten();
        let texts = texts.chain(user.into_iter().flat_map(|it| [&it.issuer, &it.subject]));
        let bad =
            |it: &String| it.is_empty() || it.len() > NAME_MAX || it.chars().any(char::is_control);
        if texts.into_iter().any(bad) {
            return None;
        }
        let hash = |text: &str| <[u8; 32]>::try_from(hex::decode(text).ok()?).ok();
        match (
            self.everything,
            self.agent,
            self.owner,
            self.user,
            self.key,
            self.token,
        ) {
            (true, None, None, None, None, None) => Some(Target::Everything),
            (false, Some(agent), None, None, None, None) => Some(Target::Agent(agent)),
            (false, None, Some(owner), None, None, None) => Some(Target::Owner(owner)),
            (false, None, None, Some(user), None, None) => Some(Target::User(user)),
            (false, Some(agent), None, Some(user), None, None) => {
                Some(Target::Delegation { user, agent })
            }
            (false, None, None, None, Some(key), None) => Some(Target::Key(key)),
            (false, None, None, None, None, Some(token)) => hash(&token).map(Target::Token),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stopping {
    target: Named,
    #[serde(default)]
    why: String,
}

fn no_target() -> Response {
    let detail = "`target` names one thing: {\"everything\": true}, {\"agent\": ID}, {\"owner\": NAME}, {\"user\": {\"issuer\", \"subject\"}}, that with an \"agent\", {\"key\": THUMBPRINT} or {\"token\": SHA-256 in hex}, each of 2048 bytes at most";
    problem(StatusCode::BAD_REQUEST, "bad_target", detail)
}

/// Whether the session is new enough for what can't be undone by one person.
fn stepped_up(site: &Site, session: &Session) -> bool {
    site.desk.now_ms() < session.began_ms.saturating_add(STEP_UP_MS)
}

async fn stop(
    State(site): State<Site>,
    headers: HeaderMap,
    body: Result<Json<Stopping>, JsonRejection>,
) -> Response {
    let Some((_, session)) = site.command_line(&headers) else {
        return unauthenticated();
    };
    let Json(Stopping { target, why }) = match body {
        Ok(body) => body,
        Err(rejection) => return bad_body(&rejection),
    };
    if let Some(refusal) = too_long([&why]) {
        return refusal;
    }
    let Some(target) = target.target() else {
        return no_target();
    };
    if target == Target::Everything && !stepped_up(&site, &session) {
        let detail = "stopping everything needs a session of the last five minutes: sign in again with `writ login`, and repeat it";
        return problem(StatusCode::FORBIDDEN, "step_up_needed", detail);
    }
    let change = RightsChange::Stop {
        target: target.clone(),
        why,
    };
    changed(&site, &session, change, &target).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lifting {
    target: Named,
}

async fn lift(
    State(site): State<Site>,
    headers: HeaderMap,
    body: Result<Json<Lifting>, JsonRejection>,
) -> Response {
    let Some((_, session)) = site.command_line(&headers) else {
        return unauthenticated();
    };
    let Json(Lifting { target }) = match body {
        Ok(body) => body,
        Err(rejection) => return bad_body(&rejection),
    };
    let Some(target) = target.target() else {
        return no_target();
    };
    let change = RightsChange::Lift {
        target: target.clone(),
    };
    changed(&site, &session, change, &target).await
}

async fn changed(
    site: &Site,
    session: &Session,
    change: RightsChange,
    target: &Target,
) -> Response {
    match site.desk.change_rights(change, &session.who).await {
        Ok(()) => match site.desk.rights().stops.get(target) {
            Some(stop) => Json(stop_json(stop)).into_response(),
            None => StatusCode::NO_CONTENT.into_response(),
        },
        Err(error) => refused(error),
    }
}

/// What a person is told of a change that was not made.
pub(super) fn told(error: &Refused) -> (StatusCode, &'static str) {
    match error {
        Refused::Unregistered => (StatusCode::NOT_FOUND, "not_found"),
        Refused::Transition(_) => (StatusCode::CONFLICT, "bad_transition"),
        Refused::Limit(_) => (StatusCode::INSUFFICIENT_STORAGE, "limit_exceeded"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    }
}
