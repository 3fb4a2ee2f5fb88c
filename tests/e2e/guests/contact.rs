//! A connection that is lost while the guest runs at its source, and comes back.

use rustix::process::Signal;

use super::{VM, World, needs, outcome, proves_itself};
use crate::harness::relay::Relay;
use crate::harness::{Harness, until};

/// The destination's agent stands still until the source believes the connection to be lost.
fn a_lost_connection_comes_back(test: &str, state: &str, times: u64, more: &[&str]) {
    let Some(linux) = needs(test) else { return };
    let harness = Harness::of_guests();
    let world = World::start(&harness, &linux, |_| {});
    harness.allow_log("the connection to the destination is lost");
    let there = world.destination.serial(VM);
    let mut options = vec!["--limit", "4MB/s", "--reconnect", "5m"];
    options.extend_from_slice(more);
    let moving = world.source.migrate(VM, &world.destination, &options);
    for _ in 0..times {
        world.source.await_state(&[state]);
        // QEMU's NBD server gives a client that stands still during its handshake up.
        let some = || world.source.live()["disk_done"].as_u64().unwrap() > 4 << 20;
        until("that some of the disk has travelled", || some().then_some(()));
        world.destination.signal_agent(Signal::STOP);
        let lost = || world.source.live()["lost_ms"].as_u64().unwrap() > 0;
        until("that the connection counts as lost", || lost().then_some(()));
        world.destination.signal_agent(Signal::CONT);
        until("that the connection is back", || (!lost()).then_some(()));
    }
    let ended = moving.finish().done();
    assert_eq!(outcome(&ended)["migration"]["record"]["report"]["reconnects"], times);
    proves_itself(&[world.guest.serial(), &there]);
}

#[test]
fn the_memory_goes_on_after_a_lost_connection() {
    a_lost_connection_comes_back("the_memory_goes_on", "pre-copy", 2, &[]);
}

#[test]
fn a_single_stream_over_tcp_goes_on_after_a_lost_connection() {
    let options = ["--multifd", "0", "--transport", "tcp"];
    a_lost_connection_comes_back("a_single_stream_over_tcp_goes_on", "pre-copy", 2, &options);
}

#[test]
fn the_mirror_goes_on_after_a_lost_connection() {
    a_lost_connection_comes_back("the_mirror_goes_on", "mirroring", 1, &[]);
}

#[test]
fn a_move_goes_on_over_another_address_when_the_first_is_cut() {
    let Some(linux) = needs("a_move_goes_on_over_another_address") else { return };
    let harness = Harness::of_guests();
    let world = World::start(&harness, &linux, |_| {});
    harness.allow_log("the connection to the destination is lost");
    let there = world.destination.serial(VM);
    let (relay, other) = (Relay::to(world.destination.address()), world.destination.url());
    let options = ["--limit", "4MB/s", "--reconnect", "5m", "--transport", "tcp", "--alternate", &other];
    let moving = world.source.migrate_to(VM, &relay.url(), &options);
    world.source.await_state(&["pre-copy"]);
    relay.cut();
    let ended = moving.finish().done();
    let record = outcome(&ended)["migration"]["record"].clone();
    assert_eq!(record["report"]["reconnects"], 1);
    assert_eq!(record["role"]["source"]["alternates"][0], world.destination.address().to_string());
    proves_itself(&[world.guest.serial(), &there]);
}
