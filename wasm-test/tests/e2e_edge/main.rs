//! The guarded edge on a real Envoy: what gets through, how often, and what
//! does not, while parts crash, stall, and change under load.
//!
//! The verdict is the upstream's own record each time, never a status alone.
//! Needs `WRIT_ENVOY`, `WRIT_FILTER_WASM` and `WRIT_BIN`; `cargo xtask test` sets them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail loudly"
)]

#[expect(dead_code, reason = "each user has its own part")]
#[path = "../../../capability/tests/common/mod.rs"]
mod common;
#[expect(dead_code, reason = "each user has its own part")]
#[path = "../../../capability/tests/common/rows.rs"]
mod rows;

mod bodies;
mod certificates;
mod certified;
mod crash;
mod denials;
mod ended;
mod exempt;
mod hardware;
mod headers;
mod hold;
mod mesh;
mod messages;
mod nonces;
mod observe;
mod once;
mod origins;
mod paths;
mod raw;
mod read_bodies;
mod record;
mod refusals;
mod reload;
mod restore;
mod rig;
mod rollout;
mod rollout_config;
mod signed;
mod silence;
mod watching;
