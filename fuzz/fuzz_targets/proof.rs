//! libFuzzer against the target `proof`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::targets::proof(input));
