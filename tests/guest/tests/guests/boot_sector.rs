//! The boot sector, and the folder that every machine gets.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use novaferry_guest::disk::Format;
use novaferry_guest::{BootSector, Control, Kind, Machine, Settings, Vm, available};
use serde_json::{Value, json};

use crate::HANG;
use crate::qmp::Qmp;

pub(crate) fn sector() -> BootSector {
    BootSector::new(1 << 20, 33 << 20).unwrap()
}

/// Stops the guest and reads the first byte of each of its pages.
pub(crate) fn counters(vm: &Vm) -> Vec<u8> {
    let mut qmp = Qmp::connect(vm);
    qmp.execute("stop", json!({}));
    let file = vm.layout().folder().join("memory");
    let range = sector().range();
    let arguments = json!({ "val": range.start, "size": range.end - range.start, "filename": file });
    qmp.execute("pmemsave", arguments);
    fs::read(file).unwrap().chunks(4096).map(|page| page[0]).collect()
}

#[test]
fn the_boot_sector_dirties_its_pages() {
    if !available("the_boot_sector_dirties_its_pages") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for machine in [Machine::Pc, Machine::Q35] {
        let id = format!("{machine:?}");
        let settings = Settings { machine, ..Settings::boot_sector(&id, &sector()) };
        let vm = Vm::start(folder.path(), settings).unwrap();
        vm.wait_for_boot(HANG).unwrap();
        vm.serial().wait_for_text("ABB", HANG).unwrap();
        let counters = counters(&vm);
        assert_eq!(counters.len(), 32 << 8);
        BootSector::check(&counters).unwrap();
        let mut torn = counters;
        torn[100] = torn[100].wrapping_add(3);
        assert!(BootSector::check(&torn).is_err());
    }
}

#[test]
fn a_machine_looks_as_novacron_makes_it() {
    if !available("a_machine_looks_as_novacron_makes_it") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::boot_sector("vm-1", &sector());
    settings.disk.format = Format::Qcow2;
    settings.control = Control::Monitor;
    let vm = Vm::start(folder.path(), settings).unwrap();
    vm.wait_for_boot(HANG).unwrap();
    let own = folder.path().join("vm-1");
    assert_eq!(fs::read_to_string(own.join("qemu.pid")).unwrap().trim(), vm.pid().to_string());
    let config: Value = serde_json::from_slice(&fs::read(own.join("config.json")).unwrap()).unwrap();
    assert_eq!((config["id"].as_str(), config["type"].as_str()), (Some("vm-1"), Some("kvm")));
    assert_eq!(config["memory_mb"], vm.settings().memory);
    assert!(own.join("disk.qcow2").is_file());
    assert!(!own.join("qmp.sock").exists());
    let mut monitor = UnixStream::connect(own.join("monitor.sock")).unwrap();
    monitor.set_read_timeout(Some(HANG)).unwrap();
    monitor.write_all(b"info status\n").unwrap();
    let mut said = String::new();
    while !said.contains("VM status: running") {
        let mut buffer = [0; 512];
        let read = monitor.read(&mut buffer).unwrap();
        assert!(read > 0, "the monitor left after {said:?}");
        said.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
}

#[test]
fn what_cannot_start_says_why() {
    if !available("what_cannot_start_says_why") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let wrong = Settings { more: vec!["-no-such-option".into()], ..Settings::boot_sector("one", &sector()) };
    let error = Vm::start(folder.path(), wrong).unwrap_err();
    assert_eq!(error.kind(), Kind::Start);
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert!(why.contains("no-such-option"), "{error}: {why}");
}
