//! The ledger from outside: what it commits, refuses, recovers and shows.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod commands;
mod common;
mod concurrency;
mod denied;
mod fairness;
mod grants;
mod owners;
mod postgres;
mod recovery;
mod rig;
mod rights;
