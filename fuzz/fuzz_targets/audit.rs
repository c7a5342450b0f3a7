//! libFuzzer against the target `audit`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::targets::audit(input));
