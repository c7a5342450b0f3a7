//! Per-request decisions for proxies: look up, rule, spend, hold.

mod body;
mod covers;
mod engine;
mod facts;
mod hold;
mod open;
mod opinion;
mod own;
mod questions;
mod reports;
mod service;
mod signed;
mod verdicts;

pub use engine::{Engine, HELD_BODY_MAX, Ruling};
pub use facts::Facts;
pub use service::DecisionsService;
pub use signed::{DecisionKey, LIFETIME_S as DECISION_LIFETIME_S, TYPE as DECISION_TYPE};

/// The generated server half of `writ.decision.v1`.
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod wire {
    tonic::include_proto!("writ.decision.v1");
}
