//! What the store in files does besides: snapshots, heads kept elsewhere,
//! restores, listings that are damaged, and what waits too long.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail loudly"
)]

#[path = "../ledger/common.rs"]
#[allow(dead_code, reason = "shared with the suite of all stores")]
mod common;

mod heads;
mod listings;
mod restoring;
mod snapshots;
mod waiting;
