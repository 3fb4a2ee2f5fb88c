//! Moves that succeed.

use guest::serial::Chunk;
use guest::{BootSector, Serial, Settings, Timeline, Vm, available};

use super::{HANG, PROOF, VM, World, needs, outcome, proves_itself};
use crate::harness::vms::VmHost;
use crate::harness::{Capability, Harness, capable};

/// Moves the guest and has it prove itself.
fn moves(test: &str, options: &[&str]) {
    let Some(linux) = needs(test) else { return };
    let harness = Harness::of_guests();
    let mut world = World::start(&harness, &linux, |_| {});
    let there = world.destination.serial(VM);
    let moved = world.source.migrate(VM, &world.destination, options).finish().done();
    let report = proves_itself(&[world.guest.serial(), &there]);
    println!("{test}: downtime {:?}, longest gap {:?}", report.downtimes, report.longest_gap);
    let shown = &outcome(&moved)["migration"]["record"];
    println!("{}", shown["report"]);
    let grade = shown["report"]["grade"].as_str().unwrap();
    let parts = ["time", "pause", "bytes"].map(|part| format!("% of the predicted {part}"));
    assert!(parts.iter().all(|part| grade.contains(part)), "{grade}");
    assert!(world.guest.wait_for_end(HANG).is_ok(), "the source's QEMU ends");
    assert_eq!(world.source.state(), "finalised");
    world.destination.await_state(&["finalised"]);
    assert!(!world.source.layout(VM).config().exists(), "NovaCron could start the old copy");
    assert!(!world.guest.disk().exists(), "the old disk lies where NovaCron looks for it");
    assert!(world.destination.layout(VM).config().exists(), "NovaCron finds the VM here");
}

#[test]
fn a_linux_guest_with_a_disk_moves_and_proves_itself() {
    moves("a_linux_guest_with_a_disk_moves_and_proves_itself", &[]);
}

#[test]
fn a_single_stream_moves_it_over_tcp() {
    moves("a_single_stream_moves_it_over_tcp", &["--multifd", "0", "--transport", "tcp"]);
}

#[test]
fn disks_are_read_back_on_request() {
    moves("disks_are_read_back_on_request", &["--verify", "readback", "--max-downtime", "2s"]);
}

/// The boot sector dirties its memory as fast as it can and has no kernel: the smoke test.
fn boot_sector_moves(test: &str, options: &[&str]) {
    if !available(test) || !capable(test, &[Capability::Root]) {
        return;
    }
    let harness = Harness::of_guests();
    let source = VmHost::new(&harness, "host-a", None);
    let destination = VmHost::new(&harness, "host-b", None);
    let sector = BootSector::new(16 << 20, 24 << 20).unwrap();
    let guest = Vm::start(&source.vms(), Settings::boot_sector(VM, &sector)).unwrap();
    source.start();
    destination.start();
    guest.serial().wait_for_text("AB", HANG).unwrap();
    let there: Serial = destination.serial(VM);
    source.migrate(VM, &destination, options).finish().done();
    there.wait_for_text("BB", HANG).unwrap();
    assert!(!there.text().contains('A'), "it goes on and does not boot");
}

#[test]
fn smoke_multifd() {
    boot_sector_moves("smoke_multifd", &["--multifd", "2"]);
}

#[test]
fn smoke_single_stream() {
    boot_sector_moves("smoke_single_stream", &["--multifd", "0"]);
}

#[test]
fn one_guest_goes_back_and_forth_twenty_times() {
    let test = "one_guest_goes_back_and_forth_twenty_times";
    let Some(linux) = needs(test) else { return };
    let moves = crate::harness::number("NOVAFERRY_MOVES").unwrap_or(20);
    let harness = Harness::of_guests();
    let world = World::start(&harness, &linux, |_| {});
    let mut visits: Vec<Vec<Chunk>> = Vec::new();
    let mut here: Option<Serial> = None;
    for nth in 0..moves {
        let (from, to) = if nth % 2 == 0 {
            (&world.source, &world.destination)
        } else {
            (&world.destination, &world.source)
        };
        to.forget_serial(VM);
        let there = to.serial(VM);
        from.migrate(VM, to, &[]).finish().done();
        there.wait_for_heartbeats(3, HANG).unwrap();
        visits.push(here.as_ref().unwrap_or_else(|| world.guest.serial()).chunks());
        here = Some(there);
    }
    let last = here.unwrap();
    last.wait_for_heartbeats(PROOF, HANG).unwrap();
    visits.push(last.chunks());
    let visits: Vec<&[Chunk]> = visits.iter().map(Vec::as_slice).collect();
    let report = Timeline::of(&visits).check(2).unwrap();
    println!("{test}: {} heartbeats, downtimes {:?}", report.heartbeats, report.downtimes);
    assert_eq!(report.downtimes.len() as u64, moves);
}
