//! libFuzzer against the target `jws`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::targets::jws(input));
