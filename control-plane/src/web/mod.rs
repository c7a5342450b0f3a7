//! The approvers' pages, the JSON interface beside them, and the admin socket.
//!
//! [`pages`] is what browsers and signed-in command lines talk to, [`admin`]
//! what comes in over the Unix socket with peer credentials. Both see the
//! ledger through a [`Desk`] only. Every route says in its own handler who may
//! use it; what holds for all of them (headers, cross-site posts, sizes) is in
//! `fence`. Only a human's session approves.

mod admin;
mod agents;
mod answers;
mod api;
mod assets;
mod bodies;
mod fence;
mod inbox;
mod keys;
mod logins;
mod models;
mod pages;
mod refusals;
mod registry;
mod rights;
mod site;
mod stops;
mod text;
pub(crate) use text::time_for_programs;
mod views;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use ledger::model::{
    AgentChange, Approval, ApprovalState, Hash, Millis, Refused, Rights, Suspension, Target,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use admin::{AdminSettings, PeerUid, admin};
pub use keys::{KeyChange, KeyRefusal, KeyView, KeysChanged};
pub use logins::{
    IDLE_MS, Kind, LINK_MS, LINKS_MAX, LINKS_PER_PERSON, LoginError, Logins, OPERATOR, SESSION_MS,
    SESSIONS_MAX, SESSIONS_PER_PERSON, Session, WRONG_PER_MINUTE,
};
pub use site::{BODY_MAX, STREAMS_MAX};

/// What the pages need of the rest of the control plane.
pub trait Desk: Send + Sync + 'static {
    /// All approvals that are remembered, in any order.
    fn list(&self) -> Vec<Approval>;
    /// One approval.
    fn get(&self, id: &str) -> Option<Approval>;
    /// The bytes of the body that an approval covers, while they are here.
    fn body(&self, id: &str) -> Option<Arc<[u8]>>;
    /// Commits a human's decision about exactly the action of `digest`; `by`
    /// is the session's name. Answers once the decision is durable.
    fn decide(
        &self,
        id: &str,
        digest: Hash,
        approve: bool,
        by: &str,
    ) -> BoxFuture<'_, Result<Approval, DeskError>>;
    /// What agents wait for an admin to confirm, after a restore.
    fn suspended(&self) -> Option<Suspension>;
    /// Whether no space is left for the journal, so that only what takes rights
    /// away is taken.
    fn journal_full(&self) -> bool;
    /// Lets agents act again, after a restore whose entry has this index; `by` is
    /// the session's name. Answers once that is durable.
    fn confirm(&self, restored: u64, by: &str) -> BoxFuture<'_, Result<(), DeskError>>;
    /// The registry of agents, and what is stopped.
    fn rights(&self) -> Arc<Rights>;
    /// Agents that showed valid evidence without being registered, and since when.
    fn discovered(&self) -> Vec<(String, Millis)>;
    /// When an agent last authenticated, as far as is known here.
    fn last_seen(&self, agent: &str) -> Option<Millis>;
    /// The owners that an agent may be given.
    fn owners(&self) -> Owners;
    /// Whether this person may change either.
    fn may_administer(&self, who: &str) -> bool;
    /// Whether a sign-in link may be made for this person.
    fn may_sign_in(&self, who: &str) -> bool;
    /// Changes either; `by` is the session's name. Answers once that is durable, with what
    /// was stopped or lifted, where it was that: of a refresh token its family.
    fn change_rights(
        &self,
        change: RightsChange,
        by: &str,
    ) -> BoxFuture<'_, Result<Option<Target>, DeskError>>;
    /// The keys that sign tokens, as this process goes by them.
    fn keys(&self) -> Vec<KeyView>;
    /// Changes them; `by` is the session's name. Answers once that is durable, and holds
    /// here.
    fn change_keys(
        &self,
        change: KeyChange,
        by: &str,
    ) -> BoxFuture<'_, Result<KeysChanged, DeskError>>;
    /// Changes whenever any approval may have changed.
    fn changes(&self) -> watch::Receiver<u64>;
    /// Says, for the log, that somebody signed in; `how` is [`Kind::how`].
    fn logged_in(&self, who: &str, how: &'static str) -> BoxFuture<'_, ()>;
    /// Says, for the log, that a process of this uid made a sign-in link for somebody.
    fn link_made(&self, who: &str, uid: u32) -> BoxFuture<'_, ()>;
    /// Ledger time, ms since the epoch.
    fn now_ms(&self) -> Millis;
    /// What whoever looks has to be told.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
    /// The newest audit entries, newest first, `limit` at most.
    fn activity(&self, limit: usize) -> Vec<Activity>;
    /// The proxies that are or were connected.
    fn proxies(&self) -> Vec<ProxyView>;
}

/// Owners by name, each with where to find it.
pub type Owners = BTreeMap<String, Option<String>>;

/// What an admin changes of rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RightsChange {
    /// The registry.
    Agent {
        /// The agent's SPIFFE ID.
        agent: String,
        /// What changes.
        change: AgentChange,
    },
    /// Rights are taken away.
    Stop {
        /// Whose.
        target: Target,
        /// Why.
        why: String,
    },
    /// They may be given again.
    Lift {
        /// Whose.
        target: Target,
    },
}

/// Why a decision was not taken. Nothing was committed, [`DeskError::Unknown`] apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeskError {
    /// No such approval.
    #[error("no such approval")]
    NotFound,
    /// The approval's digest is not the one that was shown.
    #[error("the action is not the one that was shown")]
    Stale,
    /// It was decided, or ended, before.
    #[error("the approval is not pending any more")]
    NotPending(ApprovalState),
    /// Its body is not here to be looked at, so nobody can say yes.
    #[error("its body can't be shown here any more: it is when the agent repeats the request")]
    BodyGone,
    /// This person may not decide it.
    #[error("this person is not one of its approvers")]
    NotAllowed,
    /// This person is no admin.
    #[error("only the people of server.admins do that")]
    NotAdmin,
    /// An agent was to have an owner that does not exist; the text says which do.
    #[error("{0}")]
    NoSuchOwner(String),
    /// The keys that sign tokens were not changed; the text says why.
    #[error("{1}")]
    Key(KeyRefusal, String),
    /// A change of rights was refused.
    #[error("{0}")]
    Rights(Refused),
    /// Nothing waits to be confirmed, or something else does.
    #[error("nothing waits to be confirmed, or not what was shown")]
    NotSuspended,
    /// The ledger takes nothing now.
    #[error("the ledger does not take this now; try again")]
    Unavailable,
    /// The ledger was asked, and its answer got lost.
    #[error("it is not known whether this was recorded; look again before you decide again")]
    Unknown,
}

/// One audit entry, as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity {
    /// Its index in the log.
    pub index: u64,
    /// Its ledger time.
    pub time_ms: Millis,
    /// Its kind.
    pub kind: String,
    /// One line about it. May hold what agents sent: it is shown as data.
    pub summary: String,
}

/// One proxy, as shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyView {
    /// Its SPIFFE ID.
    pub id: String,
    /// The node id that it gives itself.
    pub node: String,
    /// Whether its stream is open.
    pub connected: bool,
    /// What it runs: resources and versions it accepted.
    pub detail: String,
    /// What it refused (NACK), in its words.
    pub problem: Option<String>,
}

/// Settings of [`pages`].
#[derive(Clone, Debug)]
pub struct WebSettings {
    /// Whether browsers come over https: cookies are `Secure` and `__Host-`.
    pub secure_cookies: bool,
    /// Whether one uid plays every part; shown on each page.
    pub dev_single_uid: bool,
    /// The base URL that browsers use; posts from any other origin are refused.
    pub issuer: String,
    /// SHA-256 of the filter module that proxies get, lower-case hex.
    pub module_sha256: watch::Receiver<Option<String>>,
    /// Ends the event streams, which would hold up a graceful stop.
    pub stop: CancellationToken,
}

/// The pages and their JSON interface.
///
/// The router has a fallback of its own (the 404 page), so whatever it is
/// merged with must have none. `/healthz`, `/oauth2/…` and `/.well-known/…`
/// are not here.
pub fn pages(desk: Arc<dyn Desk>, logins: Logins, settings: WebSettings) -> axum::Router {
    let site = site::Site::new(desk, logins, settings);
    let (api, _) = api::routes().split_for_parts();
    let router = pages::routes()
        .merge(inbox::routes())
        .merge(agents::routes())
        .merge(api);
    fence::around(router, site)
}

/// What the JSON interface is, for its document.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    api::routes().split_for_parts().1
}
