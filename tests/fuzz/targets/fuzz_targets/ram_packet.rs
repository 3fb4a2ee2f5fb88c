#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| novaferry_fuzz::ram_packet(data));
