use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

use super::Serial;
use crate::error::Kind;

/// Ends a test that hangs.
const HANG: Duration = Duration::from_secs(20);

#[test]
fn a_file_is_followed_from_before_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vms/one/serial.log");
    let serial = Serial::follow(&path).unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = File::create(&path).unwrap();
    file.write_all(b"HB 1 up=1ms pass=0 disk=0 gap=1").unwrap();
    serial.wait_for_text("gap=1", HANG).unwrap();
    file.write_all(b"00ms ok\nHB 2 ").unwrap();
    serial.wait_for_heartbeats(1, HANG).unwrap();
    assert!(serial.chunks().len() >= 2);
    assert!(serial.text().ends_with("HB 2 "));
}

#[test]
fn a_file_that_starts_anew_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial.log");
    let serial = Serial::follow(&path).unwrap();
    for (text, seen) in [("first boot\n", "first boot\n"), ("second\n", "first boot\nsecond\n")] {
        fs::write(&path, text).unwrap();
        serial.wait_for_text(seen, HANG).unwrap();
    }
    fs::remove_file(&path).unwrap();
    fs::write(&path, "third boot, longer\n").unwrap();
    serial.wait_for_text("second\nthird boot, longer\n", HANG).unwrap();
}

#[test]
fn what_does_not_come_is_a_timeout_that_shows_what_came() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial.log");
    fs::write(&path, "panic: no init\n").unwrap();
    let serial = Serial::follow(&path).unwrap();
    serial.wait_for_text("panic", HANG).unwrap();
    let error = serial.wait_for_heartbeats(1, Duration::from_millis(10)).unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(error.to_string().contains("1 heartbeats") && error.to_string().ends_with("\n  panic: no init"));
}
