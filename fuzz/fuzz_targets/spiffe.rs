//! libFuzzer against the target `spiffe`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::targets::spiffe(input));
