//! libFuzzer against the target `gates`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::targets::gates(input));
