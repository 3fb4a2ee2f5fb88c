//! A guest that runs at the destination is taken back: ended there for good, and gone on with at the source from the
//! instant of the cut-over.

use guest::disk::{Format, Left, check};
use guest::{Serial, Timeline};
use rustix::process::Signal;

use super::trouble::kill;
use super::{HANG, PROOF, VM, World, needs, proves_itself};
use crate::harness::{Harness, until};

/// A guest that runs at the destination, and whose copy at the source is kept.
macro_rules! held_world {
    ($test:literal, $options:expr, $harness:ident, $world:ident, $there:ident, $id:ident) => {
        let Some(linux) = needs($test) else { return };
        let $harness = Harness::of_guests();
        let mut $world = World::start(&$harness, &linux, |_| {});
        let $there = $world.destination.serial(VM);
        let mut options = vec!["--hold"];
        options.extend_from_slice($options);
        $world.source.migrate(VM, &$world.destination, &options).finish().done();
        $there.wait_for_heartbeats(PROOF, HANG).unwrap();
        $world.source.await_state(&["proven"]);
        let $id = $world.source.migration().unwrap()["migration"].as_str().unwrap().to_owned();
    };
}

fn take_back(id: &str) -> [&str; 4] {
    ["migration", "rollback", id, "--discard-destination"]
}

/// The newest heartbeat of a place.
fn newest(serial: &Serial) -> u64 {
    Timeline::join(&[serial]).beats().map(|beat| beat.heartbeat.number).max().unwrap()
}

impl World<'_> {
    /// The guest goes on where it was stopped for the cut-over, whatever it did elsewhere since, and can be moved again.
    #[track_caller]
    fn went_back(&mut self, stopped_at: u64) {
        self.source.await_state(&["rolled-back"]);
        self.goes_on_at_the_source();
        let beats: Vec<u64> =
            Timeline::join(&[self.guest.serial()]).beats().map(|beat| beat.heartbeat.number).collect();
        assert!(beats.contains(&(stopped_at + 1)), "it went on from elsewhere than {stopped_at}: {beats:?}");
    }

    #[track_caller]
    fn moves_again(&self) {
        self.destination.forget_serial(VM);
        let there = self.destination.serial(VM);
        self.source.migrate(VM, &self.destination, &[]).finish().done();
        proves_itself(&[self.guest.serial(), &there]);
        self.destination.await_state(&["finalised"]);
    }
}

#[test]
fn a_guest_is_taken_back_and_moves_again() {
    held_world!("a_guest_is_taken_back_and_moves_again", &[], harness, world, there, id);
    let stopped_at = newest(world.guest.serial());
    assert!(newest(&there) > stopped_at);
    // Without the word for it, nothing is done, and it is said how to go back.
    let refused = world.source.run(&["migration", "rollback", &id]);
    assert_eq!(refused.status.code(), Some(1));
    let said = refused.stdout.join("\n");
    let back = format!("run on host-b: novaferry-agent migrate {VM} --to novaferry://host-a:");
    assert!(said.contains(&back) && said.contains("--discard-destination"), "{said}");
    let refused = world.source.run(&["migration", "resolve", &id, "--keep", "source", "--other-side-is-off"]);
    assert_eq!(refused.status.code(), Some(1), "the destination is there, and can be asked");
    assert_eq!(world.source.state(), "proven");
    world.source.run(&take_back(&id)).done();
    world.went_back(stopped_at);
    world.nothing_is_left_there(&["revoked"]);
    assert!(world.guest.disk().exists(), "the disk has its name again");
    let refused = world.source.run(&take_back(&id));
    assert_eq!(refused.status.code(), Some(1), "it is over");
    world.moves_again();
}

#[test]
fn a_destination_agent_that_is_away_is_asked_when_it_is_back() {
    held_world!("a_destination_agent_that_is_away", &[], harness, world, there, id);
    harness.allow_log("the connection to the destination is lost");
    let stopped_at = newest(world.guest.serial());
    drop(world.destination.kill_agent());
    world.source.run(&take_back(&id)).done();
    world.source.await_state(&["taking-back"]);
    // It runs there and nowhere else, whatever happens to the source's agent.
    drop(world.source.kill_agent());
    world.source.start_agent();
    world.source.await_state(&["taking-back"]);
    let so_far = there.chunks().len();
    there.wait("that it goes on", HANG, |chunks| chunks.len() > so_far + 5).unwrap();
    assert_eq!(newest(world.guest.serial()), stopped_at);
    world.destination.start_agent();
    world.went_back(stopped_at);
    world.nothing_is_left_there(&["revoked"]);
    world.moves_again();
}

#[test]
fn a_guest_that_cannot_be_ended_there_is_not_gone_on_with_here() {
    held_world!("a_guest_that_cannot_be_ended_there", &[], harness, world, there, id);
    for expected in ["what was received cannot be thrown away", "the connection to the destination is lost"] {
        harness.allow_log(expected);
    }
    let stopped_at = newest(world.guest.serial());
    drop(world.destination.kill_vmd());
    world.source.run(&take_back(&id)).done();
    world.destination.await_state(&["revoking"]);
    // Both agents die with the word on its way.
    drop(world.destination.kill_agent());
    drop(world.source.kill_agent());
    assert_eq!(newest(world.guest.serial()), stopped_at);
    world.source.start_agent();
    world.source.await_state(&["taking-back"]);
    world.destination.start_vmd();
    world.destination.start_agent();
    world.went_back(stopped_at);
    world.nothing_is_left_there(&["revoked"]);
    drop(there);
}

#[test]
fn an_operator_takes_a_guest_back_whose_new_host_is_lost() {
    held_world!("an_operator_takes_a_guest_back", &[], harness, world, there, id);
    harness.allow_log("the connection to the destination is lost");
    harness.allow_log("QEMU at the destination is gone");
    let stopped_at = newest(world.guest.serial());
    drop(world.destination.kill_agent());
    kill(world.destination.guest_process(VM).unwrap(), Signal::KILL);
    world.source.run(&take_back(&id)).done();
    world.source.await_state(&["taking-back"]);
    let resolve = ["migration", "resolve", &id, "--keep", "source", "--other-side-is-off"];
    world.source.run(&resolve).done();
    world.went_back(stopped_at);
    // Its old copy starts by itself no more.
    world.destination.start_agent();
    world.destination.await_state(&["died"]);
    drop(there);
    world.moves_again();
}

#[test]
fn a_guest_that_booted_there_is_taken_back() {
    held_world!("a_guest_that_booted_there", &["--mode", "warm"], harness, world, there, id);
    let stopped_at = newest(world.guest.serial());
    world.source.run(&take_back(&id)).done();
    world.went_back(stopped_at);
    world.nothing_is_left_there(&["revoked"]);
    drop(there);
    world.moves_again();
}

#[test]
fn a_guest_that_died_there_is_taken_back() {
    held_world!("a_guest_that_died_there", &[], harness, world, there, id);
    harness.allow_log("QEMU at the destination is gone");
    let stopped_at = newest(world.guest.serial());
    kill(world.destination.guest_process(VM).unwrap(), Signal::KILL);
    world.destination.await_state(&["died"]);
    world.source.run(&take_back(&id)).done();
    world.went_back(stopped_at);
    world.nothing_is_left_there(&["revoked"]);
    drop(there);
}

#[test]
fn a_guest_that_died_there_comes_back_with_its_newest_disk() {
    let Some(linux) = needs("a_guest_that_died_there_comes_back") else { return };
    let harness = Harness::of_guests();
    harness.allow_log("QEMU at the destination is gone");
    let world = World::start(&harness, &linux, |_| {});
    let there = world.destination.serial(VM);
    world.source.migrate(VM, &world.destination, &[]).finish().done();
    proves_itself(&[world.guest.serial(), &there]);
    world.destination.await_state(&["finalised"]);
    kill(world.destination.guest_process(VM).unwrap(), Signal::KILL);
    until("it is gone", || world.destination.guest_process(VM).is_none().then_some(()));
    let said = Timeline::join(&[world.guest.serial(), &there]).beats().map(|beat| beat.heartbeat.disk).max();
    world.destination.migrate(VM, &world.source, &["--mode", "cold"]).finish().done();
    world.source.await_state(&["finalised"]);
    let [disk] = &world.source.disk_paths()[..] else { panic!("{:?}", world.source.disk_paths()) };
    let Left::Writes(left) = check(disk, Format::Raw).unwrap() else { panic!("no guest has used it") };
    assert!(left >= said.unwrap(), "{left} of the {said:?} writes came back");
    assert!(world.source.layout(VM).config().exists(), "NovaCron can start it");
    assert!(!world.destination.layout(VM).config().exists(), "NovaCron there could start it");
}
