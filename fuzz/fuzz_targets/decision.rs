//! libFuzzer against the target `decision`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::targets::decision(input));
