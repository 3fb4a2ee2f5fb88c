#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| novaferry_fuzz::nbd_requests(data));
