//! Finding or installing what the machine lacks.

pub mod apt;
pub mod envoy;
pub mod postgres;
pub mod softhsm;
pub mod wasm;
mod wheel;
