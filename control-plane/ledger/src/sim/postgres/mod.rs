//! The ledger on PostgreSQL under deterministic simulation: replicas of it, as they
//! are, over a database in memory that has PostgreSQL's locks and loses connections,
//! answers, servers and commits as one seed decides.
//!
//! `WRIT_SIM_SEED` and `WRIT_SIM_BUG` do what they do for the embedded ledger;
//! `WRIT_SIM_REPLICAS` is how many seeds to run. See `docs/decisions/0008-simulation.md`.

mod conn;
mod core;
mod judge;
mod places;
mod run;
mod statements;
mod tables;
mod tests;
mod world;
mod writing;

pub(crate) use self::{
    conn::{Client, Conn, Ear},
    run::{fill, now, sleep, spawn, timeout},
};
