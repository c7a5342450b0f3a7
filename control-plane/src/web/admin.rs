//! The admin socket: who a caller is comes from the kernel, by uid.
//!
//! It tells and never decides: any process of a uid could be an agent, so a
//! uid is no human. The uids that a workload can have get nothing at all. Root and
//! the control plane's own user, who could read every secret here anyhow, may have
//! a person let in. Only taking rights away has a door here as well, for a person with a
//! session: nobody who fills the other one can keep that shut.

use std::sync::Arc;

use axum::Router;
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{DefaultBodyLimit, Json, Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use ledger::model::ApprovalState;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::answers::LinkAnswer;
use super::api::{Asked, Object, problem, suspension};
use super::fence::harden;
use super::keys::keys_json;
use super::logins::LINK_MS;
use super::models::{all_json, standing};
use super::rights::{agents_json, no_agent, one_json};
use super::site::{BODY_MAX, Site};
use super::stops::listed;
use super::text::time_for_programs;
use super::{Desk, Logins, WebSettings};

/// The process at the other end of the socket, as the kernel named it when it
/// connected (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerUid {
    /// Its effective user id.
    pub uid: u32,
    /// Its process id, for the log; 0 when unknown.
    pub pid: i32,
}

/// Settings of [`admin`].
#[derive(Clone, Debug)]
pub struct AdminSettings {
    /// Every uid that a workload entry can select.
    pub refused_uids: Vec<u32>,
    /// One uid plays every part: those are let in, and decide as little as others.
    pub dev_single_uid: bool,
    /// The control plane's own uid.
    pub own_uid: u32,
    /// Where the pages are.
    pub issuer: String,
    /// SHA-256 of the filter module that proxies get, lower-case hex.
    pub module_sha256: watch::Receiver<Option<String>>,
}

#[derive(Clone)]
struct Office {
    desk: Arc<dyn Desk>,
    logins: Logins,
    settings: Arc<AdminSettings>,
}

/// The admin socket's routes: those that tell, sign-in links for root and the control
/// plane's own user, and with a person's session stops; whatever else would decide answers
/// 403.
///
/// Every request must carry [`ConnectInfo`] of a [`PeerUid`]; one without is
/// refused.
pub fn admin(desk: Arc<dyn Desk>, logins: Logins, settings: AdminSettings) -> Router {
    let site = Site::new(
        desk.clone(),
        logins.clone(),
        WebSettings {
            secure_cookies: true,
            dev_single_uid: settings.dev_single_uid,
            issuer: settings.issuer.clone(),
            module_sha256: settings.module_sha256.clone(),
            stop: CancellationToken::new(),
        },
    );
    let office = Office {
        desk,
        logins,
        settings: Arc::new(settings),
    };
    let by_session = Router::new()
        .route("/api/v1/session", post(super::api::open))
        .route("/api/v1/stops", post(super::rights::stop))
        .with_state(site);
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/approvals", get(list))
        .route("/api/v1/agents", get(agents).put(needs_a_human))
        .route("/api/v1/agents/{id}", get(agent))
        .route("/api/v1/stops", get(stops))
        .route("/api/v1/stops/lift", post(needs_a_human))
        .route("/api/v1/keys", get(keys))
        .route("/api/v1/keys/rotate", post(needs_a_human))
        .route("/api/v1/keys/revoke", post(needs_a_human))
        .route("/api/v1/approvals/{id}/approve", post(needs_a_human))
        .route("/api/v1/approvals/{id}/deny", post(needs_a_human))
        .route("/api/v1/login-links", post(new_link))
        .route("/api/v1/ledger/confirm", post(needs_a_human))
        .with_state(office.clone())
        .merge(by_session)
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn_with_state(office, gate))
}

async fn gate(State(office): State<Office>, request: Request, next: Next) -> Response {
    let peer = request
        .extensions()
        .get::<ConnectInfo<PeerUid>>()
        .map(|info| info.0);
    let settings = &office.settings;
    let mut response = match peer {
        None => problem(
            StatusCode::FORBIDDEN,
            "peer_unknown",
            "the caller's uid is not known",
        ),
        Some(peer) if settings.refused_uids.contains(&peer.uid) && !settings.dev_single_uid => {
            tracing::warn!(
                uid = peer.uid,
                pid = peer.pid,
                "a workload's uid was refused on the admin socket"
            );
            problem(
                StatusCode::FORBIDDEN,
                "workload_uid",
                "a workload entry selects this uid: use a uid of your own for administration",
            )
        }
        Some(_) => next.run(request).await,
    };
    harden(&mut response);
    response
}

async fn agents(State(office): State<Office>) -> Response {
    Json(agents_json(&*office.desk)).into_response()
}

async fn agent(State(office): State<Office>, Path(id): Path<String>) -> Response {
    match one_json(&*office.desk, &id) {
        Some(agent) => Json(agent).into_response(),
        None => no_agent(),
    }
}

async fn stops(State(office): State<Office>, RawQuery(query): RawQuery) -> Response {
    listed(&office.desk.rights(), query.as_deref())
}

async fn keys(State(office): State<Office>) -> Response {
    Json(keys_json(&*office.desk)).into_response()
}

async fn needs_a_human() -> Response {
    let detail = "a uid is no human: run `writ login` with a one-time link and use that session at the issuer's address";
    problem(StatusCode::FORBIDDEN, "needs_a_human", detail)
}

/// Whom a link is to sign in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkFor {
    #[serde(rename = "as")]
    who: String,
}

/// A one-time link for an administrator or an approver, by name. Where one uid plays
/// every part an agent has that uid too, so that nobody gets one.
async fn new_link(
    State(office): State<Office>,
    ConnectInfo(peer): ConnectInfo<PeerUid>,
    body: Asked<LinkFor>,
) -> Response {
    let settings = &office.settings;
    let is_trusted = peer.uid == 0 || peer.uid == settings.own_uid;
    if !is_trusted || settings.dev_single_uid {
        let detail = "a link for somebody is made by root or the control plane's own user, and by nobody under dev_single_uid; one for yourself, without --as, by the session of `writ login`";
        return problem(StatusCode::FORBIDDEN, "needs_a_human", detail);
    }
    let Object(LinkFor { who }) = match body {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    if !office.desk.may_sign_in(&who) {
        let detail = "the config has no such person: neither server.admins nor an [[approver]] has this name";
        return problem(StatusCode::NOT_FOUND, "not_found", detail);
    }
    tracing::info!(
        who,
        uid = peer.uid,
        pid = peer.pid,
        "a sign-in link was made"
    );
    office.desk.link_made(&who, peer.uid).await;
    let now = office.desk.now_ms();
    let secret = office.logins.mint_for(&who, now);
    let answer = LinkAnswer {
        url: format!("{}/login#{secret}", settings.issuer.trim_end_matches('/')),
        expires_at: time_for_programs(now.saturating_add(LINK_MS)),
    };
    (StatusCode::CREATED, Json(answer)).into_response()
}

async fn not_found() -> Response {
    problem(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is nothing at this path",
    )
}

async fn wrong_method() -> Response {
    problem(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take this method",
    )
}

async fn status(State(office): State<Office>) -> Response {
    let now = office.desk.now_ms();
    let approvals = office.desk.list();
    let count = |state| {
        approvals
            .iter()
            .filter(|approval| standing(approval, now) == state)
            .count()
    };
    let proxies: Vec<Value> = office
        .desk
        .proxies()
        .into_iter()
        .map(|p| json!({"id": p.id, "node": p.node, "connected": p.connected, "detail": p.detail, "problem": p.problem}))
        .collect();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "time": time_for_programs(now),
        "dev_single_uid": office.settings.dev_single_uid,
        "module_sha256": *office.settings.module_sha256.borrow(),
        "approvals": {"pending": count(ApprovalState::Pending), "approved": count(ApprovalState::Approved)},
        "suspended": suspension(&*office.desk),
        "journal_full": office.desk.journal_full(),
        "warnings": office.desk.warnings(),
        "proxies": proxies,
    }))
    .into_response()
}

async fn list(State(office): State<Office>) -> Response {
    Json(all_json(&*office.desk)).into_response()
}
