//! A host that nobody can dial, as behind NAT: it dials, whichever way VMs go.

use std::net::SocketAddr;

use guest::{Linux, Options, Settings, Timeline, Vm};
use link::{DirectionSpec, Link, LinkSpec, Side};
use serde_json::Value;

use super::{Coordinator, HANG, VM, join};
use crate::harness::vms::VmHost;
use crate::harness::{Capability, Harness, capable};

/// The whole test runs at one end of a link; the hidden host is at the other.
fn spec(carries: bool) -> LinkSpec {
    let direction = DirectionSpec { block_udp: !carries, ..DirectionSpec::default() };
    LinkSpec::symmetric(direction)
}

fn moved(coordinator: &Coordinator, id: &str) {
    let watched = coordinator.ask(&["migration", "watch", id]);
    let last = watched.last().unwrap();
    assert_eq!((&last["state"], &last["proof"]["both"]), (&"completed".into(), &true.into()), "{last}");
}

fn begin(coordinator: &Coordinator, words: &[&str]) -> String {
    let begun = coordinator.ask(&[&["migrate", VM], words, &["--detach"]].concat());
    begun[0]["steps"][0]["migration"].as_str().unwrap().to_owned()
}

fn address(host: &VmHost<'_>) -> String {
    let shown: Value = host.shown().unwrap();
    shown["record"]["role"]["source"]["address"].as_str().unwrap().to_owned()
}

#[test]
fn a_guest_moves_to_a_host_that_nobody_can_dial_and_back() {
    let test = "a_guest_moves_to_a_host_that_nobody_can_dial_and_back";
    let Some(linux) = Linux::available(test) else { return };
    if !capable(test, &[Capability::Root, Capability::Netns]) {
        return;
    }
    let link = Link::up(&spec(true)).unwrap();
    link.enter(Side::A, || there_and_back(&linux, &link)).unwrap();
}

fn there_and_back(linux: &Linux, link: &Link) {
    let harness = Harness::of_guests();
    harness.allow_log("the connection to the destination is lost");
    let here = Side::A.address();
    let coordinator =
        Coordinator::start(&harness.path("coordinator"), &SocketAddr::from((here, 7444)).to_string());
    let at = SocketAddr::from((here, 7440));
    let open = VmHost::joining_at(&harness, "host-a", Some(linux), &coordinator.agents, at);
    let hidden = VmHost::joining_hidden(&harness, "host-b", Some(linux), &coordinator.agents);
    join(&harness, &coordinator, [("host-a", "berlin"), ("host-b", "paris")]);
    let options = Options { constant: 64, duplicate: 16, hot: 8, rate: 8, disk: 64, ..Options::default() };
    let guest = Vm::start(&open.vms(), Settings::linux(VM, linux, options)).unwrap();
    open.start();
    hidden.start_at(link, Side::B);
    guest.serial().wait_for_heartbeats(5, HANG).unwrap();
    coordinator.until(&["host", "list"], |hosts| hosts.iter().all(|host| host["connected"].is_string()));
    let runs_at = |host: &str| {
        coordinator.until(&["vm", "list"], |vms| {
            let mut runs = vms.iter().filter(|vm| vm["id"] == VM && vm["state"] == "running");
            runs.next().is_some_and(|vm| vm["host"] == host && vm["access"] == "live")
                && runs.next().is_none()
        })
    };
    runs_at("host-a");

    // A rehearsal goes the same way.
    let rehearsed = coordinator.ask(&["migrate", VM, "--to", "host-b", "--dry-run"]);
    assert_eq!(rehearsed.last().unwrap()["state"], "rehearsed", "{rehearsed:?}");

    let id = begin(&coordinator, &["--to", "host-b", "--limit", "4000000"]);
    open.await_state(&["mirroring", "pre-copy"]);
    assert_eq!(address(&open), "(dials here)");
    // The connection is lost for a while: who made it makes it again.
    link.set(&spec(false)).unwrap();
    open.await_log("the connection to the destination is lost");
    link.set(&spec(true)).unwrap();
    open.await_log("the connection to the destination is back");
    moved(&coordinator, &id);
    let there = hidden.serial(VM);
    there.wait_for_heartbeats(15, HANG).unwrap_or_else(|error| panic!("{error}: {}", there.text()));
    Timeline::join(&[guest.serial(), &there]).check(2).unwrap();

    // Home again it dials as every source does.
    runs_at("host-b");
    let id = begin(&coordinator, &["--to", "host-a"]);
    moved(&coordinator, &id);
    assert_eq!(address(&hidden), at.to_string());
}
