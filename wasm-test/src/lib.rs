//! The whole system on a real Envoy: what `cargo xtask up`, `demo` and
//! `bench` run, and what the end-to-end tests stand on.
//!
//! [`system::System`] starts a control plane, an Envoy and a demo upstream and
//! stops them again; [`client`] is an agent and an approver that share no code
//! with the control plane, so that a bug there is not also a bug here.

pub mod attack;
pub mod bench;
pub mod certificates;
pub mod child;
pub mod client;
pub mod cut;
pub mod demo;
pub mod error;
pub mod ports;
pub mod postgres;
pub mod raw;
pub mod shim;
pub mod stage;
pub mod system;
pub mod tools;
pub mod up;
pub mod upstream;
pub mod verifying;

pub use error::Error;
