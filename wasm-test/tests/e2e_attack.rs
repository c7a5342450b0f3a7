//! Rows of `cargo xtask attack` for controls that no other end-to-end test would
//! miss: the quick ones of each kind, so that one that is not wired in fails here.
//!
//! Needs `WRIT_ENVOY`, `WRIT_FILTER_WASM` and `WRIT_BIN`; `cargo xtask test` sets them.

use wasm_test::attack::{Settings, run};

/// Tokens, keys, proofs, certificates, paths and headers, by the list's ids.
const ROWS: [&str; 38] = [
    "A01", "A02", "A10", "A16", "A26", "A29", "A40", "A41", "B02", "B06", "B12", "C02", "C03",
    "C09", "C10", "C18", "C23", "C24", "C29", "C31", "C35", "C42", "C45", "D", "E01", "E02", "E04",
    "E05", "E09", "E10", "F01", "F13", "F15", "F23", "F24", "F40", "F41", "F45",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quick_rows_of_each_kind() {
    let settings = Settings {
        only: ROWS.map(str::to_owned).to_vec(),
        json: None,
        tokens: 0,
        rounds: 0,
        minutes: 0,
        proxies: 0,
    };
    run(&settings).await.unwrap();
}
