//! `writ sidecar`: an HTTP proxy on this machine for an agent that knows nothing
//! of Writ. It does identity, exchange, proof, and the waiting.
//!
//! Whoever may use it acts as the agent, so it asks the kernel who is there
//! ([`peer`]), takes only what was meant for it and passes on nothing that speaks
//! for the agent ([`rules`]), and sends nothing twice ([`forward`]).

pub mod ahead;
pub mod forward;
pub mod peer;
pub mod problem;
pub mod retry;
pub mod rules;
mod serve;

use bytes::Bytes;
use forward::Issuer;
use http::Response;
use http_body_util::combinators::BoxBody;
use rules::Target;
pub use serve::Sidecar;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// An answer to the agent.
pub type Reply = Response<BoxBody<Bytes, std::io::Error>>;

/// What a sidecar is told.
pub struct Settings {
    /// Where it listens: loopback.
    pub listen: Option<SocketAddr>,
    /// A Unix socket on which it listens.
    pub listen_unix: Option<PathBuf>,
    /// Where requests go; at most one has no name.
    pub targets: Vec<Target>,
    /// Identity and tokens.
    pub issuer: Issuer,
    /// Who may use it.
    pub uids: Vec<u32>,
    /// Hosts that it is called by, beside its own.
    pub hosts: Vec<String>,
    /// How long a held request waits for a person.
    pub wait: Duration,
}

/// Why a sidecar does not start.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// It would listen to other machines.
    #[error("{0} is not on this machine alone: listen on 127.0.0.1 or [::1]")]
    NotLoopback(SocketAddr),
    /// Two targets of one name, or none.
    #[error("{0}")]
    Targets(String),
    /// No listener.
    #[error("can't listen on {0}: {1}")]
    Listen(String, std::io::Error),
}

fn check_targets(targets: &[Target]) -> Result<(), SidecarError> {
    let mut names = BTreeSet::new();
    match targets.iter().find(|target| !names.insert(&target.name)) {
        None if targets.is_empty() => Err(SidecarError::Targets("there is no target".into())),
        None => Ok(()),
        Some(Target { name: None, .. }) => Err(SidecarError::Targets(
            "only one target can be without a name".into(),
        )),
        Some(Target {
            name: Some(name), ..
        }) => Err(SidecarError::Targets(format!(
            "two targets are called `{name}`"
        ))),
    }
}
