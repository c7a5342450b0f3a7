//! libFuzzer against the target `x509`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::targets::x509(input));
