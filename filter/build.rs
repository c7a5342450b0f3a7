//! The module says how much memory it may have: a host gives no more, whatever
//! somebody finds to make it grow.

/// The most linear memory of one VM, in bytes: a power of two pages.
const MEMORY_MAX: u32 = 256 * 1024 * 1024;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    if target == "wasm32" {
        println!("cargo:rustc-link-arg-cdylib=--max-memory={MEMORY_MAX}");
    }
}
