//! Moves that fail, and what is true afterwards.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::copied::renamed;
use super::{HANG, VM, World, needs, outcome, proves_itself};
use crate::harness::disks::{MIB, Mount};
use crate::harness::{Capability, Harness, capable};

/// Slow enough to be caught in the middle: the guest has some 60 MB that do not compress away.
const SLOW: [&str; 4] = ["--limit", "4MB/s", "--reconnect", "3s"];

pub(super) fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

/// A world in which the guest is on its way, and its memory travels.
macro_rules! moving_world {
    ($test:literal, $harness:ident, $world:ident, $moving:ident) => {
        let Some(linux) = needs($test) else { return };
        let $harness = Harness::of_guests();
        #[allow(unused_mut, reason = "not every test changes it")]
        let mut $world = World::start(&$harness, &linux, |_| {});
        let $moving = $world.source.migrate(VM, &$world.destination, &SLOW);
        $world.source.await_state(&["pre-copy"]);
    };
}

#[test]
fn a_cancelled_move_leaves_the_guest_where_it_was_and_the_next_succeeds() {
    moving_world!("a_cancelled_move", harness, world, moving);
    let id = world.source.migration().unwrap()["migration"].as_str().unwrap().to_owned();
    // A second one of the same VM is refused meanwhile.
    let second = world.source.migrate(VM, &world.destination, &[]).finish();
    assert_eq!(second.status.code(), Some(1));
    world.source.run(&["migration", "cancel", &id]).done();
    let ended = moving.finish();
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(outcome(&ended)["migration"]["record"]["role"]["source"]["state"]["state"], "rolled-back");
    world.goes_on_at_the_source();
    world.nothing_is_left_at_the_destination();
    let there = world.destination.serial(VM);
    world.source.migrate(VM, &world.destination, &[]).finish().done();
    proves_itself(&[world.guest.serial(), &there]);
}

#[test]
fn the_source_agent_dies_and_the_guest_goes_on() {
    moving_world!("the_source_agent_dies", harness, world, moving);
    harness.allow_log("the connection to the");
    harness.allow_log("the channel");
    harness.allow_log("NBD");
    drop(world.source.kill_agent());
    // The command would wait a minute for the daemon to come back.
    drop(moving.kill());
    world.goes_on_at_the_source();
    world.nothing_is_left_at_the_destination();
    world.source.start_agent();
    world.source.await_state(&["rolled-back"]);
    // Nothing of ours is left in its QEMU: it can be moved again.
    let there = world.destination.serial(VM);
    world.source.migrate(VM, &world.destination, &[]).finish().done();
    proves_itself(&[world.guest.serial(), &there]);
}

#[test]
fn the_destination_agent_dies_and_the_guest_goes_on() {
    moving_world!("the_destination_agent_dies", harness, world, moving);
    harness.allow_log("the connection to the destination is lost");
    harness.allow_log("NBD");
    drop(world.destination.kill_agent());
    assert_eq!(moving.finish().status.code(), Some(1));
    assert_eq!(world.source.state(), "rolled-back");
    world.goes_on_at_the_source();
    // Its QEMU may outlive it, or end with its streams; what is there is thrown away when the agent is back.
    world.destination.start_agent();
    world.nothing_is_left_at_the_destination();
}

#[test]
fn vmd_dies_at_both_ends_and_nobody_minds() {
    moving_world!("vmd_dies", harness, world, moving);
    drop(world.source.kill_vmd());
    drop(world.destination.kill_vmd());
    world.source.start_vmd();
    world.destination.start_vmd();
    let there = world.destination.serial(VM);
    moving.finish().done();
    proves_itself(&[world.guest.serial(), &there]);
}

#[test]
fn qemu_dies_at_the_destination_and_the_guest_goes_on() {
    moving_world!("qemu_dies_at_the_destination", harness, world, moving);
    harness.allow_log("QEMU at the destination is gone");
    harness.allow_log("the connection to the destination is lost");
    harness.allow_log("NBD");
    harness.allow_log("the destination did not start the guest");
    kill(world.destination.guest_process(VM).unwrap(), Signal::KILL);
    assert_eq!(moving.finish().status.code(), Some(1));
    world.goes_on_at_the_source();
    world.nothing_is_left_at_the_destination();
}

#[test]
fn qemu_dies_at_the_source_and_the_disk_stays_its_truth() {
    moving_world!("qemu_dies_at_the_source", harness, world, moving);
    harness.allow_log("QEMU at the source is gone");
    harness.allow_log("NBD");
    world.guest.kill().unwrap();
    let ended = moving.finish();
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(world.source.state(), "stopped");
    world.nothing_is_left_at_the_destination();
    assert!(world.source.layout(VM).config().exists(), "NovaCron may start it again");
    assert!(world.guest.disk().exists());
}

#[test]
fn a_destination_that_falls_silent_is_given_up_and_does_no_harm_when_it_wakes() {
    moving_world!("a_destination_that_falls_silent", harness, world, moving);
    harness.allow_log("the connection to the destination is lost");
    harness.allow_log("NBD");
    harness.allow_log("a destination of a migration");
    world.destination.signal_agent(Signal::STOP);
    let ended = moving.finish();
    assert_eq!(ended.status.code(), Some(1));
    world.goes_on_at_the_source();
    world.destination.signal_agent(Signal::CONT);
    world.nothing_is_left_at_the_destination();
}

#[test]
fn a_guest_that_never_rests_is_left_alone() {
    let Some(linux) = needs("a_guest_that_never_rests_is_left_alone") else { return };
    let harness = Harness::of_guests();
    let mut world = World::start(&harness, &linux, |settings| {
        if let guest::Payload::Linux(_, options) = &mut settings.payload {
            (options.hot, options.rate) = (48, 0);
        }
    });
    let options = ["--limit", "10MB/s", "--timeout", "6s", "--ram-cache", "1MiB", "--compress", "off"];
    let ended = world.source.migrate(VM, &world.destination, &options).finish();
    assert_eq!(ended.status.code(), Some(1));
    let why = outcome(&ended)["migration"]["record"]["role"]["source"]["state"]["with"].to_string();
    assert!(why.contains("did not converge"), "{why}");
    world.goes_on_at_the_source();
    world.nothing_is_left_at_the_destination();
}

#[test]
fn a_destination_without_room_refuses_before_anything_is_made() {
    let Some(linux) = needs("a_destination_without_room") else { return };
    let harness = Harness::of_guests();
    let mut world = World::start(&harness, &linux, |_| {});
    harness.allow_log("a migration is refused");
    harness.allow_log("a step failed");
    let ended = world.source.migrate(VM, &world.destination, &["--pool", "nowhere"]).finish();
    assert_eq!(ended.status.code(), Some(1));
    let why = outcome(&ended)["migration"]["record"]["role"]["source"]["state"]["with"].to_string();
    assert!(why.contains("no pool nowhere"), "{why}");
    world.goes_on_at_the_source();
    assert_eq!(world.destination.guest_process(VM), None);
    assert_eq!(world.destination.disk_paths(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_destination_that_fills_up_on_the_way_gives_the_guest_back() {
    let test = "a_destination_that_fills_up_on_the_way";
    let Some(linux) = needs(test) else { return };
    if !capable(test, &[Capability::Loop]) {
        return;
    }
    let harness = Harness::of_guests();
    harness.allow_log("the destination's export refused a request of the mirror");
    harness.allow_log("failed an NBD request");
    let pool = Mount::ext4(&harness.path("host-b-daemon").join("pool"), 256 * MIB);
    let mut world = World::start(&harness, &linux, |_| {});
    let moving = world.source.migrate(VM, &world.destination, &SLOW);
    world.source.await_state(&["pre-copy"]);
    // The guest uses the first half of its disk, and the rest takes no room here either.
    let [disk] = &world.destination.disk_paths()[..] else { panic!("one disk") };
    let made = disk.metadata().unwrap();
    assert!(
        made.blocks() * 512 < made.len() * 5 / 8,
        "{} of {} bytes take room",
        made.blocks() * 512,
        made.len()
    );
    let mut ballast = File::create(pool.path().join("ballast")).unwrap();
    let full = loop {
        if let Err(error) = ballast.write_all(&[1; 64 << 10]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    let ended = moving.finish();
    assert_eq!(ended.status.code(), Some(1));
    let state = &outcome(&ended)["migration"]["record"]["role"]["source"]["state"];
    assert_eq!(state["state"], "rolled-back", "{state}");
    assert!(state.to_string().contains("no room left for disk vd0"), "{state}");
    world.goes_on_at_the_source();
    world.nothing_is_left_at_the_destination();
    // With room it moves.
    drop(ballast);
    std::fs::remove_file(pool.path().join("ballast")).unwrap();
    let there = world.destination.serial(VM);
    world.source.migrate(VM, &world.destination, &[]).finish().done();
    proves_itself(&[world.guest.serial(), &there]);
}

#[test]
fn a_dry_run_says_what_would_be_and_changes_nothing() {
    let Some(linux) = needs("a_dry_run") else { return };
    let harness = Harness::of_guests();
    let mut world = World::start(&harness, &linux, |_| {});
    let said = world.source.migrate(VM, &world.destination, &["--dry-run"]).finish().done();
    let report = &outcome(&said)["migration"]["record"]["report"];
    let predicted = &report["predicted"];
    assert_eq!(
        (&predicted["converges"], &predicted["link_measured"]),
        (&true.into(), &true.into()),
        "{report}"
    );
    for measured in ["link_rate", "round_trip_us", "total_ms", "downtime_ms", "wire_bytes"] {
        assert!(predicted[measured].as_u64().is_some_and(|value| value > 0), "{measured}: {report}");
    }
    assert!(predicted["method"].as_str().unwrap().starts_with("live, 2 channels"), "{report}");
    let basis = predicted["basis"].as_str().unwrap();
    assert!(basis.contains("KiB sent over it") && basis.contains("of RAM in use"), "{basis}");
    assert_eq!(report["grade"], serde_json::Value::Null, "nothing moved");
    // A limit is honoured, and counts when the link carries more.
    let options = ["--dry-run", "--limit", "2MB/s", "--transport", "tcp"];
    let said = world.source.migrate(VM, &world.destination, &options).finish().done();
    let limited = &outcome(&said)["migration"]["record"]["report"]["predicted"];
    assert!(
        limited["link_measured"] == true && limited["link_rate"].as_u64().unwrap() <= 2_000_000,
        "{limited}"
    );
    assert!(limited["total_ms"].as_u64() > predicted["total_ms"].as_u64(), "{limited} and {predicted}");
    world.goes_on_at_the_source();
    assert_eq!(world.destination.guest_process(VM), None);
    assert_eq!(world.destination.disk_paths(), Vec::<std::path::PathBuf>::new());
}

/// What a QEMU of long ago would say of itself.
const OLD_QEMU: &str = r#"#!/bin/sh
echo '{"QMP": {}}'
echo '{"return": {}}'
echo '{"return": {"qemu": {"major": 2, "minor": 5, "micro": 0}}}'
echo '{"return": [{"name": "pc-i440fx-2.5", "alias": "pc"}]}'
echo '{"return": [{"name": "486", "static": false}]}'
exec cat >/dev/null
"#;

#[test]
fn a_dry_run_says_that_the_destinations_qemu_is_too_old() {
    let Some(linux) = needs("a_dry_run_says_that_the_destinations_qemu_is_too_old") else { return };
    let harness = Harness::of_guests();
    let mut world = World::start(&harness, &linux, |_| {});
    let qemu = harness.path("old-qemu");
    std::fs::write(&qemu, OLD_QEMU).unwrap();
    std::fs::set_permissions(&qemu, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    drop(world.destination.kill_vmd());
    world.destination.start_vmd_with(Some(&qemu));
    let said = world.source.migrate(VM, &world.destination, &["--dry-run"]).finish();
    assert_eq!(said.status.code(), Some(1));
    let shown = outcome(&said);
    let findings = shown["migration"]["findings"].as_array().unwrap();
    for rule in ["qemu-older", "machine", "cpu-model"] {
        let found = findings.iter().find(|finding| finding["rule"] == rule);
        let found = found.unwrap_or_else(|| panic!("no finding {rule}: {findings:?}"));
        assert_eq!(found["blocking"], true, "{found}");
        assert!(
            ["evidence", "fix"].iter().all(|part| found[part].as_str().is_some_and(|text| !text.is_empty()))
        );
    }
    world.goes_on_at_the_source();
}

#[test]
fn a_held_move_is_finalised_by_the_operator() {
    let Some(linux) = needs("a_held_move") else { return };
    let harness = Harness::of_guests();
    let mut world = World::start(&harness, &linux, |_| {});
    let there = world.destination.serial(VM);
    world.source.migrate(VM, &world.destination, &["--hold"]).finish().done();
    proves_itself(&[world.guest.serial(), &there]);
    world.source.await_state(&["proven"]);
    assert!(world.guest.ended().unwrap().is_none(), "the old copy waits");
    // Restarts of all three change nothing about who runs it.
    drop(world.source.kill_agent());
    drop(world.destination.kill_agent());
    world.destination.start_agent();
    world.source.start_agent();
    world.source.await_state(&["proven"]);
    world.destination.await_state(&["running"]);
    let so_far = there.chunks().len();
    there.wait("that it goes on", HANG, |chunks| chunks.len() > so_far + 5).unwrap();
    let id = world.source.migration().unwrap()["migration"].as_str().unwrap().to_owned();
    world.source.run(&["migration", "finalise", &id]).done();
    world.source.await_state(&["finalised"]);
    world.destination.await_state(&["finalised"]);
    assert!(world.guest.wait_for_end(Duration::from_secs(60)).is_ok(), "the old copy ends");
    // What the destination signs now is the cut-over's content, which the old disk still has.
    let receipts = world.source.receipts(&id);
    assert_eq!(receipts.len(), 1);
    assert_eq!((&receipts[0]["mode"], receipts[0]["size"].as_u64()), (&"live".into(), Some(64 << 20)));
    world.destination.verify(&receipts[0], &renamed(&world.guest.disk()));
}
