//! Measurements on running systems.

pub(crate) mod answers;
pub(crate) mod cpu;
pub mod edge;
mod load;
mod report;
mod rivals;
