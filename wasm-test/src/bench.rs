//! Measurements on running systems.

mod bare;
mod cpu;
pub mod edge;
mod load;
