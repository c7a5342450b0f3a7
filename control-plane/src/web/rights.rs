//! The registry of agents and the stops, over JSON: `/api/v1/agents` and `/api/v1/stops`.

use axum::extract::{Json, Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64ct::{Base64UrlUnpadded, Encoding as _};
use ledger::model::{AgentChange, AgentRecord, AgentState, Refused, Stop, Target, User};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answers::{AgentAnswer, AgentsAnswer, Named, Problem, Said, StopAnswer, StopsAnswer};
use super::api::{Asked, Object, problem, reader, refused, unauthenticated};
use super::logins::Session;
use super::models::named as user_json;
use super::refusals::{NotAllowed, NotAsked, NotFound, NotNow, NotSignedIn, OtherQuery, PROBLEM};
use super::site::Site;
use super::stops::listed;
use super::text::time_for_programs;
use super::{Desk, Owners, RightsChange};

/// A session that stops everything, or revokes a key, is at most this old, in ms.
const STEP_UP_MS: u64 = 5 * 60 * 1000;
/// Letters of a name or a reason.
const TEXT_MAX: usize = 256;
/// The last second of the year 9999, in seconds since the epoch: when what is registered ends.
const EXPIRES_MAX_S: u64 = 253_402_300_799;
/// Bytes of what is stopped: the longest SPIFFE ID has as many.
const NAME_MAX: usize = 2048;

pub(super) fn routes() -> OpenApiRouter<Site> {
    OpenApiRouter::new()
        .routes(routes!(agents, put_agent))
        .routes(routes!(agent))
        .routes(routes!(stops, stop))
        .routes(routes!(lift))
}

fn agent_json(desk: &dyn Desk, owners: &Owners, record: &AgentRecord) -> AgentAnswer {
    AgentAnswer {
        agent: record.agent.clone(),
        owner: Some(record.owner.clone()),
        owner_exists: Some(owners.contains_key(&record.owner)),
        purpose: Some(record.purpose.clone()),
        environment: Some(record.environment.clone()),
        state: record.state.as_str(),
        why: Some(record.why.clone()),
        created_at: time_for_programs(record.created_ms),
        changed_at: Some(time_for_programs(record.changed_ms)),
        changed_by: Some(record.changed_by.clone()),
        expires_at: record.expires_ms.map(time_for_programs),
        last_seen_at: desk.last_seen(&record.agent).map(time_for_programs),
    }
}

/// One that only asked.
fn stranger_json(desk: &dyn Desk, agent: &str, at_ms: u64) -> AgentAnswer {
    AgentAnswer {
        agent: agent.to_owned(),
        owner: None,
        owner_exists: None,
        purpose: None,
        environment: None,
        state: AgentState::Discovered.as_str(),
        why: None,
        created_at: time_for_programs(at_ms),
        changed_at: None,
        changed_by: None,
        expires_at: None,
        last_seen_at: desk.last_seen(agent).map(time_for_programs),
    }
}

/// The registry, and whoever asked without being in it.
pub(super) fn agents_json(desk: &dyn Desk) -> AgentsAnswer {
    let (rights, owners) = (desk.rights(), desk.owners());
    let known = rights.agents.values();
    let known = known.map(|record| agent_json(desk, &owners, record));
    let asked = desk.discovered();
    let asked = asked
        .iter()
        .map(|(agent, at)| stranger_json(desk, agent, *at));
    AgentsAnswer {
        agents: known.chain(asked).collect(),
    }
}

/// One of either.
pub(super) fn one_json(desk: &dyn Desk, id: &str) -> Option<AgentAnswer> {
    if let Some(record) = desk.rights().agent(id) {
        return Some(agent_json(desk, &desk.owners(), record));
    }
    let asked = desk.discovered();
    let found = asked.iter().find(|(agent, _)| agent == id);
    found.map(|(agent, at)| stranger_json(desk, agent, *at))
}

/// The answer where there is no such agent.
pub(super) fn no_agent() -> Response {
    let detail = "there is no such agent";
    problem(StatusCode::NOT_FOUND, "not_found", detail)
}

fn target_json(target: &Target) -> Named {
    let mut named = Named::default();
    match target {
        Target::Everything => named.everything = true,
        Target::Agent(agent) => named.agent = Some(agent.clone()),
        Target::Owner(owner) => named.owner = Some(owner.clone()),
        Target::User(user) => named.user = Some(user_json(user)),
        Target::Delegation { user, agent } => {
            named.user = Some(user_json(user));
            named.agent = Some(agent.clone());
        }
        Target::Key(jkt) => named.key = Some(jkt.clone()),
        Target::Token(hash) => named.token = Some(hex::encode(hash)),
    }
    named
}

/// A stop, as it is told.
pub(super) fn stop_json(stop: &Stop) -> StopAnswer {
    let said = |said: &Option<(String, u64)>| {
        said.as_ref().map(|(by, at)| Said {
            by: by.clone(),
            at: time_for_programs(*at),
        })
    };
    StopAnswer {
        target: target_json(&stop.target),
        kind: stop.target.kind(),
        at: time_for_programs(stop.at_ms),
        by: stop.by.clone(),
        why: stop.why.clone(),
        stands: stop.lifted.is_none(),
        lift_asked: said(&stop.lift_asked),
        lifted: said(&stop.lifted),
    }
}

/// The registry of agents, and who asked without being in it.
#[utoipa::path(get, path = "/api/v1/agents", tag = "agents", security(("session" = [])),
    responses((status = 200, description = "All of them", body = AgentsAnswer), NotSignedIn))]
async fn agents(State(site): State<Site>, headers: HeaderMap) -> Response {
    if reader(&site, &headers).is_none() {
        return unauthenticated();
    }
    Json(agents_json(&*site.desk)).into_response()
}

/// One agent of the registry, or one that asked without being in it.
#[utoipa::path(get, path = "/api/v1/agents/{id}", tag = "agents", security(("session" = [])),
    params(("id" = String, Path, description = "Its SPIFFE ID, percent-encoded")),
    responses((status = 200, description = "The agent", body = AgentAnswer), NotSignedIn, NotFound))]
async fn agent(State(site): State<Site>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    if reader(&site, &headers).is_none() {
        return unauthenticated();
    }
    match one_json(&*site.desk, &id) {
        Some(agent) => Json(agent).into_response(),
        None => no_agent(),
    }
}

/// What is stopped, and what was.
#[utoipa::path(get, path = "/api/v1/stops", tag = "agents", security(("session" = [])),
    params(
        ("kind" = Option<String>, Query, description = "Only these, with commas between them",
            pattern = "^(agent|owner|user|delegation|key|token|everything)(,(agent|owner|user|delegation|key|token|everything))*$"),
        ("limit" = Option<u32>, Query, description = "So many at most, 1000 where it is left out", minimum = 1, maximum = 1000)),
    responses((status = 200, description = "Those that are asked for", body = StopsAnswer), NotSignedIn, OtherQuery))]
async fn stops(
    State(site): State<Site>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    if reader(&site, &headers).is_none() {
        return unauthenticated();
    }
    listed(&site.desk.rights(), query.as_deref())
}

/// An agent and what changes of it: what is left out, or null, stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Change {
    /// A SPIFFE ID.
    agent: String,
    /// The person or team that answers for it, which has to exist; a new agent needs one.
    owner: Option<String>,
    purpose: Option<String>,
    environment: Option<String>,
    /// When its registration ends, in seconds since the epoch; 0: never.
    #[schema(maximum = 253_402_300_799_u64)]
    expires: Option<u64>,
    /// `active`, `suspended` or `decommissioned`.
    #[schema(value_type = Option<String>)]
    state: Option<AgentState>,
    #[serde(default)]
    why: String,
}

/// Whether a text may be a name or a reason.
pub(super) fn is_text(text: &str) -> bool {
    text.chars().count() <= TEXT_MAX && !text.chars().any(char::is_control)
}

fn too_long<'t>(texts: impl IntoIterator<Item = &'t String>) -> Option<Response> {
    let mut texts = texts.into_iter();
    texts.any(|text| !is_text(text)).then(|| {
        let detail = format!("a text is longer than {TEXT_MAX} letters, or has control characters");
        problem(StatusCode::BAD_REQUEST, "bad_text", &detail)
    })
}

/// Registers an agent, or changes what the registry knows of one.
#[utoipa::path(put, path = "/api/v1/agents", tag = "agents", security(("session" = [])), request_body = Change,
    responses(
        (status = 200, description = "The agent as it is now", body = AgentAnswer),
        (status = 204, description = "It is recorded, and not shown here yet"),
        (status = 404, description = "`not_found`: it is new, and has no owner", body = Problem, content_type = PROBLEM),
        (status = 409, description = "`bad_transition`", body = Problem, content_type = PROBLEM),
        (status = 507, description = "`limit_exceeded`", body = Problem, content_type = PROBLEM),
        NotSignedIn, NotAllowed, NotAsked, NotNow))]
async fn put_agent(State(site): State<Site>, headers: HeaderMap, body: Asked<Change>) -> Response {
    let Some((_, session)) = site.command_line(&headers) else {
        return unauthenticated();
    };
    let Object(change) = match body {
        Ok(body) => body,
        Err(refusal) => return refusal,
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
    if change.expires.is_some_and(|it| it > EXPIRES_MAX_S) {
        let detail = "`expires` is seconds since the epoch, up to the year 9999";
        return problem(StatusCode::BAD_REQUEST, "bad_expiry", detail);
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
        Ok(_) => match site.desk.rights().agent(&agent) {
            Some(record) => {
                let desk = &*site.desk;
                Json(agent_json(desk, &desk.owners(), record)).into_response()
            }
            None => StatusCode::NO_CONTENT.into_response(),
        },
        Err(error) => refused(error),
    }
}

impl Named {
    /// The one thing that is meant.
    fn target(self) -> Option<Target> {
        let user = self.user.map(|it| User {
            issuer: it.issuer,
            subject: it.subject,
        });
        let texts = [&self.agent, &self.owner, &self.key, &self.token];
        let texts = texts.into_iter().flatten();
        let texts = texts.chain(user.iter().flat_map(|it| [&it.issuer, &it.subject]));
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
            user,
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

/// What is to be stopped, and why.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Stopping {
    target: Named,
    #[serde(default)]
    why: String,
}

fn no_target() -> Response {
    let detail = "`target` names one thing: {\"everything\": true}, {\"agent\": ID}, {\"owner\": NAME}, {\"user\": {\"issuer\", \"subject\"}}, that with an \"agent\", {\"key\": THUMBPRINT} or {\"token\": SHA-256 in hex}, each of 2048 bytes at most";
    problem(StatusCode::BAD_REQUEST, "bad_target", detail)
}

/// A stop of what nothing is called would be believed, and stop nothing. What is stopped
/// already can be lifted by whatever name it has.
fn matches_nothing(desk: &dyn Desk, target: &Target) -> Option<Response> {
    let (named, what) = match target {
        Target::Agent(agent) | Target::Delegation { agent, .. } => {
            let what = "`target.agent` is no workload's SPIFFE ID as one is written (spiffe://trust-domain/path, the trust domain in lower case)";
            (!capability::spiffe::is_workload(agent)).then_some((agent, what))
        }
        Target::Owner(owner) => {
            let owns = || desk.rights().agents.values().any(|it| it.owner == *owner);
            let known = desk.owners().contains_key(owner) || owns();
            let what = "`target.owner` is nobody whom the config knows, or who has an agent";
            (!known).then_some((owner, what))
        }
        Target::Key(key) => {
            let what = "`target.key` is no thumbprint (RFC 7638, SHA-256, base64url: 43 letters)";
            (!is_thumbprint(key)).then_some((key, what))
        }
        Target::Everything | Target::User(_) | Target::Token(_) => None,
    }?;
    let shown: String = named.chars().filter(char::is_ascii_graphic).collect();
    let detail = format!("{what}, so that this stops nothing: {shown}");
    Some(problem(StatusCode::BAD_REQUEST, "bad_target", &detail))
}

fn is_thumbprint(text: &str) -> bool {
    let mut bytes = [0; 32];
    Base64UrlUnpadded::decode(text, &mut bytes).is_ok_and(|it| it.len() == 32)
}

/// Whether the session is new enough for what can't be undone by one person.
pub(super) fn stepped_up(site: &Site, session: &Session) -> bool {
    site.desk.now_ms() < session.began_ms.saturating_add(STEP_UP_MS)
}

/// Takes rights away, at once.
#[utoipa::path(post, path = "/api/v1/stops", tag = "agents", security(("session" = [])), request_body = Stopping,
    responses(
        (status = 200, description = "The stop", body = StopAnswer),
        (status = 204, description = "It is recorded, and not shown here yet"),
        (status = 507, description = "`limit_exceeded`", body = Problem, content_type = PROBLEM),
        NotSignedIn, NotAllowed, NotAsked, NotNow))]
pub(super) async fn stop(
    State(site): State<Site>,
    headers: HeaderMap,
    body: Asked<Stopping>,
) -> Response {
    let Some((_, session)) = site.command_line(&headers) else {
        return unauthenticated();
    };
    let Object(Stopping { target, why }) = match body {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    if let Some(refusal) = too_long([&why]) {
        return refusal;
    }
    let Some(target) = target.target() else {
        return no_target();
    };
    if let Some(refusal) = matches_nothing(&*site.desk, &target) {
        return refusal;
    }
    if target == Target::Everything && !stepped_up(&site, &session) {
        let detail = "stopping everything needs a session of the last five minutes: sign in with a link of `writ login-link`, and repeat it";
        return problem(StatusCode::FORBIDDEN, "step_up_needed", detail);
    }
    let change = RightsChange::Stop { target, why };
    changed(&site, &session, change).await
}

/// What is not to be stopped any more.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Lifting {
    target: Named,
}

/// Ends a stop; that of everything takes two people.
#[utoipa::path(post, path = "/api/v1/stops/lift", tag = "agents", security(("session" = [])), request_body = Lifting,
    responses(
        (status = 200, description = "The stop, which stands until `lifted` says otherwise", body = StopAnswer),
        (status = 204, description = "It is recorded, and not shown here yet"),
        NotSignedIn, NotAllowed, NotFound, NotAsked, NotNow))]
async fn lift(State(site): State<Site>, headers: HeaderMap, body: Asked<Lifting>) -> Response {
    let Some((_, session)) = site.command_line(&headers) else {
        return unauthenticated();
    };
    let Object(Lifting { target }) = match body {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    let Some(target) = target.target() else {
        return no_target();
    };
    changed(&site, &session, RightsChange::Lift { target }).await
}

async fn changed(site: &Site, session: &Session, change: RightsChange) -> Response {
    match site.desk.change_rights(change, &session.who).await {
        Ok(changed) => {
            let rights = site.desk.rights();
            match changed.and_then(|target| rights.stops.get(&target)) {
                Some(stop) => Json(stop_json(stop)).into_response(),
                None => StatusCode::NO_CONTENT.into_response(),
            }
        }
        Err(error) => refused(error),
    }
}

/// What a person is told of a change that was not made.
pub(super) fn told(error: &Refused) -> (StatusCode, &'static str) {
    match error {
        Refused::NoOwner => (StatusCode::BAD_REQUEST, "owner_missing"),
        Refused::NotStopped => (StatusCode::NOT_FOUND, "not_found"),
        Refused::Transition(_) => (StatusCode::CONFLICT, "bad_transition"),
        Refused::Limit(_) => (StatusCode::INSUFFICIENT_STORAGE, "limit_exceeded"),
        // What is named has its own limits; all of it together is too long for a line.
        Refused::TooLarge => (StatusCode::BAD_REQUEST, "bad_text"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    }
}
