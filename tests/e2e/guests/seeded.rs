//! Moves whose disks are kept in step until the guest may leave.

use std::time::{Duration, SystemTime};

use guest::disk::{self, Format, Left};
use guest::timeline::DiskAtStart;
use guest::{Payload, Timeline};

use super::copied::renamed;
use super::{HANG, PROOF, VM, World, needs, outcome, proves_itself};
use crate::harness::process::Process;
use crate::harness::{Harness, until};

/// Begins a move that waits, and gives its id when the disks are in step.
fn seeded(world: &World<'_>, options: &[&str]) -> (Process, String) {
    let mut all = vec!["--seed"];
    all.extend_from_slice(options);
    let moving = world.source.migrate(VM, &world.destination, &all);
    until("a move that waits with its disks in step", || {
        let live = world.source.shown()?["live"].clone();
        (live["waits"] == "asked").then_some(())
    });
    assert_eq!(world.source.state(), "mirroring");
    let id = world.source.migration().unwrap()["migration"].as_str().unwrap().to_owned();
    (moving, id)
}

#[test]
fn a_guest_leaves_when_it_is_told_to_and_not_before() {
    let test = "a_guest_leaves_when_it_is_told_to_and_not_before";
    let Some(linux) = needs(test) else { return };
    let harness = Harness::of_guests();
    let mut world = World::start(&harness, &linux, |_| {});
    let there = world.destination.serial(VM);
    let (moving, id) = seeded(&world, &[]);
    // It runs on here, and writes.
    world.goes_on_at_the_source();
    // Told a time, then an earlier one.
    world.source.run(&["migration", "cutover", &id, "--after", "1000h"]).done();
    until("another time", || world.source.live()["waits"]["at"].as_u64());
    let told = SystemTime::now();
    world.source.run(&["migration", "cutover", &id, "--after", "5s"]).done();
    let moved = moving.finish().done();
    assert!(told.elapsed().unwrap() >= Duration::from_secs(5), "it left too early");
    let report = proves_itself(&[world.guest.serial(), &there]);
    println!("{test}: downtime {:?}, longest gap {:?}", report.downtimes, report.longest_gap);
    let record = &outcome(&moved)["migration"]["record"];
    println!("{}", record["report"]);
    assert!(record["report"]["waited_ms"].as_u64().unwrap() > 0);
    assert!(world.guest.wait_for_end(HANG).is_ok(), "the source's QEMU ends");
    world.destination.await_state(&["finalised"]);
    let late = world.source.run(&["migration", "cutover", &id]);
    assert!(late.code() != Some(0) && late.text().contains("is over"), "{}", late.text());
}

#[test]
fn a_warm_guest_boots_from_what_it_wrote_while_it_waited() {
    let test = "a_warm_guest_boots_from_what_it_wrote_while_it_waited";
    let Some(linux) = needs(test) else { return };
    let harness = Harness::of_guests();
    let mut world = World::start(&harness, &linux, |settings| {
        if let Payload::Linux(_, options) = &mut settings.payload {
            (options.disk, options.rate) = (48, 1);
        }
    });
    let there = world.destination.serial(VM);
    let (moving, id) = seeded(&world, &["--mode", "warm"]);
    world.goes_on_at_the_source();
    world.source.run(&["migration", "cutover", &id]).done();
    moving.finish().done();
    there.wait_for_heartbeats(PROOF, HANG).unwrap_or_else(|error| panic!("{error}: {}", there.text()));
    let booted = Timeline::join(&[&there]);
    booted.check(PROOF as u64).unwrap();
    assert!(world.guest.wait_for_end(HANG).is_ok(), "the source's QEMU ends");
    let Left::Writes(written) = disk::check(&renamed(&world.guest.disk()), Format::Raw).unwrap() else {
        panic!("it wrote nothing")
    };
    assert_eq!(booted.disk_at_start(), Some(DiskAtStart::Intact(written)));
}

#[test]
fn one_that_waits_can_be_cancelled() {
    let test = "one_that_waits_can_be_cancelled";
    let Some(linux) = needs(test) else { return };
    let harness = Harness::of_guests();
    let mut world = World::start(&harness, &linux, |_| {});
    let (moving, id) = seeded(&world, &[]);
    world.source.run(&["migration", "cancel", &id]).done();
    drop(moving.finish());
    world.source.await_state(&["rolled-back"]);
    world.goes_on_at_the_source();
    world.nothing_is_left_at_the_destination();
}
