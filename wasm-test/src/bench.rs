//! Measurements on running systems.

pub(crate) mod answers;
pub(crate) mod cpu;
pub mod edge;
pub mod exchange;
mod footprint;
mod load;
mod report;
mod rivals;
