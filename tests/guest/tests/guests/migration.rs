//! From QEMU to QEMU without anything of ours between: what the watchers must see.

use std::time::Duration;

use novaferry_guest::{BootSector, Linux, Options, Settings, Timeline, Vm, available};

use crate::HANG;
use crate::boot_sector::{counters, sector};
use crate::qmp::migrate;

#[test]
fn a_move_of_linux_and_its_pause_are_seen() {
    let Some(linux) = Linux::available("a_move_of_linux_and_its_pause_are_seen") else { return };
    let folder = tempfile::tempdir().unwrap();
    let hold = Duration::from_millis(800);
    let settings = Settings::linux("source", &linux, Options::default());
    let source = Vm::start(folder.path(), settings).unwrap();
    // Both use one image, one after the other: QEMU hands its lock over.
    let mut settings = Settings { id: "destination".to_owned(), ..source.settings().destination() };
    settings.disk.path = Some(source.disk());
    let destination = Vm::start(folder.path(), settings).unwrap();
    source.serial().wait_for_heartbeats(5, HANG).unwrap();
    migrate(&source, &destination, &folder.path().join("migrate.sock"), hold);
    destination.serial().wait_for_heartbeats(15, HANG).unwrap();

    let report = Timeline::join(&[source.serial(), destination.serial()]).check(5).unwrap();
    assert!(report.in_file[1] >= 15);
    // The guest stood still for as long as it was held, whatever else the machine was busy with; a beat that was late
    // before the stop may take some of that away.
    assert_eq!(report.downtimes.len(), 1);
    assert!(report.downtimes[0] >= hold / 2, "{report:?}");
    assert!(report.longest_gap >= report.downtimes[0]);
    println!("held {hold:?}, downtime {:?}, longest gap {:?}", report.downtimes[0], report.longest_gap);
}

#[test]
fn a_move_of_the_boot_sector_loses_no_page() {
    if !available("a_move_of_the_boot_sector_loses_no_page") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = Vm::start(folder.path(), Settings::boot_sector("source", &sector())).unwrap();
    let settings = Settings { id: "destination".to_owned(), ..source.settings().destination() };
    let destination = Vm::start(folder.path(), settings).unwrap();
    source.serial().wait_for_text("AB", HANG).unwrap();
    migrate(&source, &destination, &folder.path().join("migrate.sock"), Duration::ZERO);
    destination.serial().wait_for_text("BB", HANG).unwrap();
    assert!(!destination.serial().text().contains('A'), "it goes on and does not boot");
    BootSector::check(&counters(&destination)).unwrap();
}
