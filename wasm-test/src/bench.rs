//! Measurements on running systems.

pub mod answers;
mod cpu;
pub mod edge;
mod load;
mod report;
mod rivals;
