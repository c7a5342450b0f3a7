//! Fuzz targets: for every parser, what must hold of it whatever bytes it is
//! given. A target that finds a fault panics.
//!
//! `cargo test` runs them over their corpus and over a fixed number of changed
//! inputs (`tests/smoke.rs`); `cargo xtask fuzz` and cargo-fuzz run them under
//! libFuzzer for as long as they are told.

pub mod mutate;
pub mod targets;

/// A target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets. Each has a folder of inputs in `corpus` and a program in
/// `fuzz_targets`.
pub const TARGETS: [Target; 16] = [
    ("json", targets::json),
    ("b64", targets::b64),
    ("url", targets::url),
    ("spiffe", targets::spiffe),
    ("jwk", targets::jwk),
    ("jws", targets::jws),
    ("action", targets::action),
    ("token", targets::token),
    ("proof", targets::proof),
    ("gates", targets::gates),
    ("wasm", targets::wasm),
    ("audit", targets::audit),
    ("decision", targets::decision),
    ("x509", targets::x509),
    ("body", targets::body),
    ("message", targets::message),
];
