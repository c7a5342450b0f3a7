//! Third-party vectors and the rows of the gates, by `capability` as it is built
//! here and as it is built for wasm: each verdict has to be the same, word by word.
//!
//! WRIT_PROBE_WASM holds the module's path; `cargo xtask test` sets it. WRIT_VECTORS
//! names the directory of the vectors, which is `../shared/vectors` otherwise; a
//! test whose file is not there says so and passes.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "tests fail loudly"
)]

#[path = "../../../capability/tests/common/mod.rs"]
mod common;
#[path = "../../../capability/tests/common/rows.rs"]
mod rows;

mod gates;
mod json;
mod probe;
mod rfc;
mod spiffe;
mod wycheproof;
