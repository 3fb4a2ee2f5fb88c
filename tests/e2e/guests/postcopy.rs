//! Post-copy: the guest runs at the destination, its memory follows, and something happens meanwhile.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::trouble::kill;
use super::{HANG, VM, World, needs, outcome, proves_itself};
use crate::harness::process::Process;
use crate::harness::relay::Relay;
use crate::harness::vms::VmHost;
use crate::harness::{Harness, until};

/// `/dev/userfaultfd` for the users of VMs, as the udev rule that comes with the agent opens it; closed again at the end.
pub(super) struct OpenUserfaultfd;

impl OpenUserfaultfd {
    const DEVICE: &str = "/dev/userfaultfd";

    pub(super) fn open() -> Self {
        Self::set(64_055, 0o660);
        Self
    }

    fn set(group: u32, mode: u32) {
        use std::os::unix::fs::{PermissionsExt, chown};
        chown(Self::DEVICE, None, Some(group)).unwrap();
        std::fs::set_permissions(Self::DEVICE, std::fs::Permissions::from_mode(mode)).unwrap();
    }
}

impl Drop for OpenUserfaultfd {
    fn drop(&mut self) {
        Self::set(0, 0o600);
    }
}

/// Hosts with a guest that never rests, so that much of its memory is left for post-copy.
fn busy_world<'a>(harness: &'a Harness, linux: &guest::Linux) -> World<'a> {
    World::start(harness, linux, |settings| {
        if let guest::Payload::Linux(_, options) = &mut settings.payload {
            (options.constant, options.duplicate, options.hot, options.rate) = (8, 8, 64, 0);
        }
    })
}

/// Slow enough for the memory to take its time after the guest runs there.
const SLOW: [&str; 5] = ["--postcopy", "--limit", "6MB/s", "--transport", "tcp"];

fn moves_through(world: &World<'_>, relay: &Relay) -> Process {
    world.source.migrate_to(VM, &relay.url(), &SLOW)
}

/// Where the post-copy of the newest migration here stands, by its status.
fn postcopy(host: &VmHost<'_>) -> Value {
    host.shown().map_or(Value::Null, |shown| shown["live"]["postcopy"].clone())
}

#[track_caller]
fn await_postcopy(host: &VmHost<'_>, wanted: &str) {
    until(&format!("{wanted} in the status"), || (postcopy(host) == wanted).then_some(()));
}

#[test]
fn post_copy_moves_a_guest_that_never_rests() {
    let test = "post_copy_moves_a_guest_that_never_rests";
    let Some(linux) = needs(test) else { return };
    let _open = OpenUserfaultfd::open();
    let harness = Harness::of_guests();
    let world = World::start(&harness, &linux, |settings| {
        if let guest::Payload::Linux(_, options) = &mut settings.payload {
            (options.hot, options.rate) = (48, 0);
        }
    });
    let there = world.destination.serial(VM);
    let options = ["--postcopy", "--limit", "60MB/s"];
    world.source.migrate(VM, &world.destination, &options).finish().done();
    let report = proves_itself(&[world.guest.serial(), &there]);
    println!("{test}: downtime {:?}, longest gap {:?}", report.downtimes, report.longest_gap);
}

/// A guest that runs at the destination in post-copy, through a relay.
macro_rules! following_world {
    ($test:literal, $harness:ident, $world:ident, $relay:ident, $moving:ident, $there:ident) => {
        let Some(linux) = needs($test) else { return };
        let _open = OpenUserfaultfd::open();
        let $harness = Harness::of_guests();
        $harness.allow_log("the connection to the destination is lost");
        #[allow(unused_mut, reason = "not every test changes it")]
        let mut $world = busy_world(&$harness, &linux);
        let $relay = Relay::to($world.destination.address());
        let $there = $world.destination.serial(VM);
        let $moving = moves_through(&$world, &$relay);
        await_postcopy(&$world.source, "postcopy-active");
    };
}

#[test]
fn a_link_that_drops_in_post_copy_twice_is_taken_up_twice() {
    following_world!("a_link_that_drops_in_post_copy", harness, world, relay, moving, there);
    for _ in 0..2 {
        relay.cut();
        await_postcopy(&world.source, "postcopy-paused");
        await_postcopy(&world.destination, "postcopy-paused");
        assert_eq!(
            (world.source.state().as_str(), world.destination.state().as_str()),
            ("running", "running")
        );
        relay.mend();
        await_postcopy(&world.source, "postcopy-active");
    }
    moving.finish().done();
    let report = proves_itself(&[world.guest.serial(), &there]);
    println!("downtime {:?}, longest gap {:?}", report.downtimes, report.longest_gap);
    assert!(world.guest.wait_for_end(HANG).is_ok(), "the source's QEMU ends");
    assert_eq!(world.source.state(), "finalised");
    world.destination.await_state(&["finalised"]);
}

#[test]
fn the_source_agent_dies_in_post_copy_and_goes_on_when_it_is_back() {
    following_world!("the_source_agent_dies_in_post_copy", harness, world, relay, moving, there);
    drop(world.source.kill_agent());
    drop(moving.kill());
    await_postcopy(&world.destination, "postcopy-paused");
    world.source.start_agent();
    // Whether the copy here is to be kept is not written down: it is.
    world.source.await_state(&["proven"]);
    proves_itself(&[world.guest.serial(), &there]);
    assert!(world.guest.ended().unwrap().is_none(), "the old copy waits");
    let id = world.source.migration().unwrap()["migration"].as_str().unwrap().to_owned();
    world.source.run(&["migration", "finalise", &id]).done();
    world.destination.await_state(&["finalised"]);
}

#[test]
fn the_destination_agent_dies_in_post_copy_and_goes_on_when_it_is_back() {
    following_world!("the_destination_agent_dies_in_post_copy", harness, world, relay, moving, there);
    drop(world.destination.kill_agent());
    await_postcopy(&world.source, "postcopy-paused");
    world.destination.start_agent();
    moving.finish().done();
    proves_itself(&[world.guest.serial(), &there]);
}

/// Lets QEMU read all of the guest's memory in its main loop, which stands still at the first page that is not there.
fn stand_still(host: &VmHost<'_>) {
    let mut monitor = UnixStream::connect(host.layout(VM).folder().join("run/qmp.sock")).unwrap();
    let read = json!({ "id": 1, "execute": "pmemsave", "arguments": { "val": 0, "size": 500 << 20, "filename": "/dev/null" } });
    monitor.write_all(format!("{{\"execute\":\"qmp_capabilities\"}}{read}").as_bytes()).unwrap();
    monitor.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut said = Vec::new();
    let silence = monitor.read_to_end(&mut said).unwrap_err();
    let said = String::from_utf8(said).unwrap();
    assert_eq!(silence.kind(), ErrorKind::WouldBlock, "{said}");
    // It may have stood still before.
    assert!(said.matches("\"return\"").count() < 2, "it answers: {said}");
}

#[test]
fn the_destination_agent_dies_in_post_copy_while_qemu_stands_still() {
    following_world!(
        "the_destination_agent_dies_while_qemu_stands_still",
        harness,
        world,
        relay,
        moving,
        there
    );
    drop(world.destination.kill_agent());
    await_postcopy(&world.source, "postcopy-paused");
    stand_still(&world.destination);
    world.destination.start_agent();
    moving.finish().done();
    proves_itself(&[world.guest.serial(), &there]);
}

#[test]
fn a_source_that_dies_in_post_copy_loses_the_guest_and_both_say_so() {
    following_world!("a_source_that_dies_in_post_copy", harness, world, relay, moving, there);
    harness.allow_log("QEMU at the source is gone");
    harness.allow_log("a guest is lost in post-copy");
    kill(world.source.guest_process(VM).unwrap(), Signal::KILL);
    let ended = moving.finish();
    assert_eq!(ended.status.code(), Some(1));
    let state = &outcome(&ended)["migration"]["record"]["role"]["source"]["state"];
    assert_eq!(state["state"], "lost", "{state}");
    world.destination.await_state(&["lost"]);
    assert!(!there.text().contains("panic"), "it waits, and does not fall over");
    assert_eq!(world.source.guest_process(VM), None, "it does not run here again");
    assert!(world.destination.disk_paths().len() == 1, "its disk there is what is left");
}

#[test]
fn a_destination_that_dies_in_post_copy_leaves_the_choice_to_the_operator() {
    following_world!("a_destination_that_dies_in_post_copy", harness, world, relay, moving, there);
    harness.allow_log("QEMU at the destination is gone");
    kill(world.destination.guest_process(VM).unwrap(), Signal::KILL);
    world.source.await_state(&["destination-lost"]);
    assert_eq!(moving.finish().status.code(), Some(1));
    // Its memory is still here, as it was when it left.
    let id = world.source.migration().unwrap()["migration"].as_str().unwrap().to_owned();
    world.source.run(&["migration", "resolve", &id, "--keep", "source", "--other-side-is-off"]).done();
    world.source.await_state(&["rolled-back"]);
    world.goes_on_at_the_source();
    assert!(!there.text().contains("panic"), "it was well there");
}
