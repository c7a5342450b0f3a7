//! libFuzzer against the target `wasm`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::targets::wasm(input));
