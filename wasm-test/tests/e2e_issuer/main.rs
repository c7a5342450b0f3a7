//! The system seen from outside by those who use it: other people's OAuth and
//! SPIFFE clients, the token endpoint's callers, approvers at the pages, people
//! at a terminal, and an operator whose config is wrong.
//!
//! WRIT_BIN, WRIT_ENVOY and WRIT_FILTER_WASM say what runs; `cargo xtask test`
//! sets them. What needs no Envoy starts a control plane alone.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail loudly, and their names say what they are"
)]

mod admin_socket;
mod admins;
mod ahead;
mod authzen;
mod browser;
mod calling;
mod clients;
mod cutter;
mod deciding;
mod deferring;
mod deferring_held;
mod deferring_users;
mod delegated_rules;
mod evidence;
mod exchange_callers;
mod exchange_nonces;
mod exchange_params;
mod exchange_proofs;
mod exchange_tokens;
mod expiring;
mod federated;
mod floods;
mod foreign;
mod full_disk;
mod grants;
mod held;
mod id_jag;
mod identities;
mod interop;
mod judging;
mod keys;
mod leaks;
mod log_commands;
mod messages;
mod openapi;
mod over_tls;
mod owned;
mod page_contents;
mod pages;
mod plane;
mod platforms;
mod pretending;
mod programs;
mod rates;
mod refreshing;
mod refusing;
mod registry_pages;
mod revived;
mod rights;
mod sessions;
mod set_back;
mod sidecar;
mod sidecar_certified;
mod speaking;
mod standard;
mod starting;
mod stops_listed;
mod terminal_approvals;
mod tokens;
mod users;
mod users_stopped;
mod visitor;
