//! libFuzzer against the target `jwk`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::targets::jwk(input));
