//! Writ's control plane: identity and one action in, a capability for that one
//! action out, and a decision for each request that shows one.
//!
//! The rooms: [`config`], [`exchange`], [`decide`], [`approval`] and [`web`]
//! here; `identity`, `policy`, `ledger` and `xds` are crates beside, so that the
//! compiler guards who may know what. [`serve`] puts them together; [`cli`] is
//! the command line.

pub mod approval;
pub mod canary;
pub mod cli;
pub mod client;
pub mod clients;
pub mod config;
pub mod decide;
pub mod edges;
pub mod exchange;
pub mod federated;
pub mod fleet;
mod fresh;
mod hidden;
pub mod keys;
pub mod metrics;
pub mod nonces;
pub mod openapi;
pub mod refusals;
pub mod rights;
mod seen;
pub mod serve;
pub mod sidecar;
pub mod state;
pub mod warnings;
pub mod web;
