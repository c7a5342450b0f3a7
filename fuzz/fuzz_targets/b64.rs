//! libFuzzer against the target `b64`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::targets::b64(input));
