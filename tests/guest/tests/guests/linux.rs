//! The Linux guest.

use std::fs::File;
use std::os::unix::fs::FileExt;

use novaferry_guest::disk::{Format, Left, check};
use novaferry_guest::init::{CORRUPT, POWER_OFF};
use novaferry_guest::serial::Chunk;
use novaferry_guest::timeline::{Broken, DiskAtStart};
use novaferry_guest::{Linux, Machine, Options, Settings, Timeline, Vm};
use serde_json::json;

use crate::HANG;
use crate::qmp::Qmp;

#[test]
fn linux_keeps_memory_and_disk_and_knows_its_disk_again() {
    let Some(linux) = Linux::available("linux_keeps_memory_and_disk_and_knows_its_disk_again") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    // Each write is flushed before the next. Of those that are not, a QEMU that is killed keeps any: what went to a new
    // cluster of a qcow2 image is found through a table that QEMU keeps in memory until the flush.
    let options = Options { heartbeat: 50, disk_writes: 1, ..Options::default() };
    let mut settings = Settings::linux("one", &linux, options);
    settings.disk.format = Format::Qcow2;
    let mut last = 0;
    for (machine, processors) in [(Machine::Pc, 1), (Machine::Q35, 2)] {
        let settings = Settings { machine, processors, ..settings.clone() };
        let mut vm = Vm::start(folder.path(), settings).unwrap();
        vm.serial().wait_for_heartbeats(15, HANG).unwrap();
        let timeline = Timeline::join(&[vm.serial()]);
        let report = timeline.check(15).unwrap();
        assert!(report.downtimes.is_empty());
        assert_eq!(timeline.options().unwrap().heartbeat, 50);
        assert!(!vm.serial().text().contains("MODULE"), "every driver is in: {}", vm.serial().text());
        let expected = if last == 0 { DiskAtStart::Fresh } else { DiskAtStart::Intact(last) };
        assert_eq!(timeline.disk_at_start(), Some(expected), "on {machine:?}");
        let said = timeline.beats().last().unwrap().heartbeat.disk;
        assert!(said > last, "the guest writes on");

        // Killed at any moment, the disk holds exactly what some number of writes makes.
        vm.kill().unwrap();
        let Left::Writes(left) = check(&vm.disk(), Format::Qcow2).unwrap() else { panic!("it has a header") };
        // The last one that it told of may not have been flushed.
        assert!(left + 1 >= said, "{left} writes are left of {said}");
        last = left;
    }
}

#[test]
fn linux_finds_a_disk_that_was_tampered_with() {
    let Some(linux) = Linux::available("linux_finds_a_disk_that_was_tampered_with") else { return };
    let folder = tempfile::tempdir().unwrap();
    let options = Options { constant: 1, duplicate: 1, hot: 0, ..Options::default() };
    let mut settings = Settings::linux("one", &linux, options);
    // Few slots, so that each is read again soon.
    settings.disk.size = 64 << 10;
    let mut vm = Vm::start(folder.path(), settings.clone()).unwrap();
    vm.serial().wait_for_heartbeats(15, HANG).unwrap();
    Timeline::join(&[vm.serial()]).check(15).unwrap();
    let image = File::options().write(true).open(vm.disk()).unwrap();
    image.write_all_at(&vec![0; 60 << 10], 4 << 10).unwrap();
    vm.serial().wait_for_text(&format!("{CORRUPT} disk slot "), HANG).unwrap();
    // The line may not be whole yet.
    let complains = |chunks: &[Chunk]| matches!(Timeline::of(&[chunks]).check(1), Err(Broken::Corrupt(_)));
    vm.serial().wait("a whole complaint", HANG, complains).unwrap();
    vm.serial().wait_for_text("BAD", HANG).unwrap();
    vm.kill().unwrap();

    // The slots that were not written again since are wrong for whoever reads all of them: one is made so.
    let disk = {
        use novaferry_guest::init::slots::{Block, Disk};
        let mut block = Block::ZERO;
        File::open(vm.disk()).unwrap().read_exact_at(&mut block.0, 0).unwrap();
        Disk::from_header(&block).unwrap()
    };
    let slot = disk.slot_of(1);
    image.write_all_at(&disk.block(1).0, slot * 4096).unwrap();
    assert!(check(&vm.disk(), Format::Raw).is_err());
    let vm = Vm::start(folder.path(), settings).unwrap();
    vm.serial().wait_for_text(&format!("{CORRUPT} disk slot "), HANG).unwrap();
    assert_eq!(Timeline::join(&[vm.serial()]).disk_at_start(), None);
}

#[test]
fn linux_powers_off_when_asked_to() {
    let Some(linux) = Linux::available("linux_powers_off_when_asked_to") else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut vm = Vm::start(folder.path(), Settings::linux("one", &linux, Options::default())).unwrap();
    vm.wait_for_boot(HANG).unwrap();
    Qmp::connect(&vm).execute("system_powerdown", json!({}));
    assert!(vm.wait_for_end(HANG).unwrap().success());
    vm.serial().wait_for_text(POWER_OFF, HANG).unwrap();
    assert!(matches!(check(&vm.disk(), Format::Raw).unwrap(), Left::Writes(_)));
}
