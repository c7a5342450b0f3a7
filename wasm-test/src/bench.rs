//! Measurements on running systems.

mod answers;
mod cpu;
pub mod edge;
mod load;
mod report;
mod rivals;
