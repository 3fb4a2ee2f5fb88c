//! The permit is on its way, and something dies: until the destination or an operator says what became of it, the guest
//! runs nowhere by itself. The last part of the memory is made to take seconds, so that each fault meets it in the middle.

use rustix::process::Signal;

use super::trouble::kill;
use super::{VM, World, needs, proves_itself};
use crate::harness::vms::ask_qemu;
use crate::harness::{Harness, until};

/// The guest may be paused for so long that much is left for the pause, over a link on which that takes a while.
const LONG_PAUSE: [&str; 6] = ["--limit", "4MB/s", "--max-downtime", "60s", "--multifd", "1"];

/// A world in which the guest is paused at the source and its permit has left.
macro_rules! permitted_world {
    ($test:literal, $harness:ident, $world:ident, $moving:ident) => {
        let Some(linux) = needs($test) else { return };
        let $harness = Harness::of_guests();
        for expected in ["the connection to the destination is lost", "NBD", "did not start the guest"] {
            $harness.allow_log(expected);
        }
        #[allow(unused_mut, reason = "not every test changes it")]
        let mut $world = World::start(&$harness, &linux, |_| {});
        let $moving = $world.source.migrate(VM, &$world.destination, &LONG_PAUSE);
        $world.source.await_state(&["permitting"]);
        $world.destination.await_state(&["permitted"]);
    };
}

#[test]
fn the_destination_agent_dies_with_the_permit_and_the_guest_comes_back() {
    permitted_world!("the_destination_agent_dies_with_the_permit", harness, world, moving);
    drop(world.destination.kill_agent());
    world.source.await_state(&["in-doubt"]);
    // Nothing starts by itself.
    let silent = world.guest.serial().chunks().len();
    assert_eq!(world.source.state(), "in-doubt");
    world.destination.start_agent();
    world.source.await_state(&["rolled-back"]);
    drop(moving.finish());
    assert!(world.guest.serial().chunks().len() >= silent);
    world.goes_on_at_the_source();
    world.nothing_is_left_at_the_destination();
}

#[test]
fn the_source_agent_dies_after_the_permit_and_asks_when_it_is_back() {
    permitted_world!("the_source_agent_dies_after_the_permit", harness, world, moving);
    drop(world.source.kill_agent());
    // The command would wait a minute for the daemon to come back.
    drop(moving.kill());
    // The memory's stream ended with the agent: the destination cannot have all of it.
    world.destination.await_state(&["discarded"]);
    // Nor does QEMU here let the guest run by itself, which does not know whether the destination does.
    let qmp = world.source.layout(VM).qmp();
    until("that QEMU's migration has failed", || {
        (ask_qemu(&qmp, "query-migrate")["status"] == "failed").then_some(())
    });
    assert_eq!(ask_qemu(&qmp, "query-status")["status"], "paused");
    world.source.start_agent();
    world.source.await_state(&["rolled-back"]);
    world.goes_on_at_the_source();
    world.nothing_is_left_at_the_destination();
}

#[test]
fn qemu_dies_at_the_destination_with_the_permit_and_the_guest_comes_back() {
    permitted_world!("qemu_dies_at_the_destination_with_the_permit", harness, world, moving);
    harness.allow_log("QEMU at the destination is gone");
    kill(world.destination.guest_process(VM).unwrap(), Signal::KILL);
    drop(moving.finish());
    world.source.await_state(&["rolled-back"]);
    world.goes_on_at_the_source();
    world.nothing_is_left_at_the_destination();
}

#[test]
fn an_operator_ends_doubt_when_the_destination_is_lost_for_good() {
    permitted_world!("an_operator_ends_doubt", harness, world, moving);
    drop(world.destination.kill_agent());
    // It may have ended by itself when its stream did.
    if let Some(pid) = world.destination.guest_process(VM) {
        kill(pid, Signal::KILL);
    }
    world.source.await_state(&["in-doubt"]);
    let id = world.source.migration().unwrap()["migration"].as_str().unwrap().to_owned();
    // Without the assertion nothing is done.
    let refused = world.source.run(&["migration", "resolve", &id, "--keep", "source"]);
    assert_ne!(refused.status.code(), Some(0));
    assert_eq!(world.source.state(), "in-doubt");
    let resolve = ["migration", "resolve", &id, "--keep", "source", "--other-side-is-off"];
    world.source.run(&resolve).done();
    world.source.await_state(&["rolled-back"]);
    drop(moving.finish());
    world.goes_on_at_the_source();
    // The destination wakes up later: it never ran the guest, and throws away what it has.
    world.destination.start_agent();
    world.nothing_is_left_at_the_destination();
    let there = world.destination.serial(VM);
    world.source.migrate(VM, &world.destination, &[]).finish().done();
    proves_itself(&[world.guest.serial(), &there]);
}
