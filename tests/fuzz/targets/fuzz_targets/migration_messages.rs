#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| novaferry_fuzz::migration_messages(data));
