//! Per-request decisions for proxies: look up, rule, spend, hold.

mod engine;
mod questions;
mod reports;
mod service;

pub use engine::{Engine, Facts, Ruling};
pub use service::DecisionsService;

/// The generated server half of `writ.decision.v1`.
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod wire {
    tonic::include_proto!("writ.decision.v1");
}
