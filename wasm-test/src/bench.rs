//! Measurements on running systems.

pub(crate) mod answers;
pub(crate) mod cpu;
mod crowd;
pub mod edge;
pub mod exchange;
mod footprint;
mod load;
mod report;
pub mod revocation;
mod rivals;
