//! What the store in files does besides: snapshots, heads kept elsewhere,
//! restores, listings that are damaged, and what waits too long.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail loudly")]

#[path = "../ledger/common.rs"]
#[expect(dead_code, reason = "shared with the suite of all stores")]
mod common;

mod heads;
mod listings;
mod restoring;
mod snapshots;
mod waiting;
