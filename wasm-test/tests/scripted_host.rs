//! The built filter in a scripted host: a WebAssembly interpreter with every
//! proxy-wasm function that the module may import. The tests say what the host
//! and the control plane do, and what must come of it; they do not demand that
//! host calls come in an order that the filter may choose.
//!
//! WRIT_FILTER_WASM holds the module's path; `cargo xtask test` sets it.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail loudly, and their names say what they are"
)]

#[path = "scripted_host/bodies.rs"]
mod bodies;
#[expect(dead_code, reason = "each test file uses its own part")]
#[path = "../../capability/tests/common/certificate.rs"]
mod certificate;
#[path = "scripted_host/certificates.rs"]
mod certificates;
#[expect(dead_code, reason = "each test file uses its own part")]
#[path = "../../capability/tests/common/mod.rs"]
mod common;
#[path = "scripted_host/configuring.rs"]
mod configuring;
#[path = "scripted_host/cost.rs"]
mod cost;
#[path = "scripted_host/deciding.rs"]
mod deciding;
#[path = "scripted_host/faults.rs"]
mod faults;
#[path = "scripted_host/fixtures.rs"]
mod fixtures;
#[path = "scripted_host/hostile.rs"]
mod hostile;
#[path = "scripted_host/imports.rs"]
mod imports;
#[path = "scripted_host/nonces.rs"]
mod nonces;
#[path = "scripted_host/observing.rs"]
mod observing;
#[path = "scripted_host/open.rs"]
mod open;
#[path = "scripted_host/reporting.rs"]
mod reporting;
#[path = "scripted_host/rows.rs"]
mod rows;
#[path = "scripted_host/silence.rs"]
mod silence;
#[expect(dead_code, reason = "each test file uses its own part")]
#[path = "../../capability/tests/common/rows.rs"]
mod table;
#[path = "scripted_host/vm.rs"]
mod vm;
#[path = "scripted_host/world.rs"]
mod world;

/// The smallest surface a host can offer: proxy-wasm alone, no WASI.
#[test]
fn the_module_imports_proxy_wasm_functions_only() {
    let imports: Vec<(&str, &str)> = vm::module()
        .imports()
        .map(|import| (import.module(), import.name()))
        .collect();
    assert!(!imports.is_empty());
    for (module, name) in imports {
        assert_eq!(module, "env", "{name}");
        assert!(name.starts_with("proxy_"), "{name}");
    }
}

/// A host gives it no more memory than it says, whatever makes it grow.
#[test]
fn the_module_says_how_much_memory_it_may_have() {
    let mut exports = vm::module().exports();
    let memory = exports.find_map(|export| export.ty().memory().copied());
    let pages = memory.and_then(|memory| memory.maximum());
    assert_eq!(
        pages.map(|pages| pages * 64 * 1024),
        Some(256 * 1024 * 1024)
    );
}

/// O05: faults on demand are in no module that is shipped.
#[test]
fn the_module_has_no_traps() {
    let path = std::env::var_os("WRIT_FILTER_WASM").unwrap();
    let module = std::fs::read(path).unwrap();
    let mut windows = module.windows(8);
    assert!(!windows.any(|window| window == b"trap-now"));
}
