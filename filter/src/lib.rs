//! The filter: a proxy-wasm shell around `capability`.
//!
//! It reads bytes from the host, runs the gates, asks the control plane, and
//! acts on the answer. It holds no secret and decides nothing by itself: a
//! request goes on only when `http::forward` is given a `Permit`, which
//! `capability::decide` alone can make. Every other way through this code ends
//! in a refusal or in a request that stays paused.
//!
//! `host` is the one file that calls the host.

mod arrival;
mod config;
mod core;
mod denials;
mod host;
mod http;
mod metrics;
mod open;
mod outcomes;
mod peers;
mod questions;
mod refusal;
mod root;
mod stream;
mod traps;
mod verify;

/// What the host calls first.
mod start {
    use crate::root::Root;
    use proxy_wasm::types::LogLevel;

    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Warn);
        proxy_wasm::set_root_context(|context_id| Box::new(Root::new(context_id)));
    }}
}
