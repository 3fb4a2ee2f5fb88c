//! Networks that lose, reorder, block and break: an emulated link between two namespaces.

use std::time::{Duration, Instant};

use link::{BitRate, DirectionSpec, LinkSpec, Probability};

use crate::harness::copy::Outcome;
use crate::harness::disks::{MIB, random_file, same};
use crate::harness::network::Network;
use crate::harness::{Capability, Harness, capable};

fn plain(megabits: u64) -> LinkSpec {
    let rate = Some(BitRate::megabits(megabits).unwrap());
    LinkSpec::symmetric(DirectionSpec { rate, delay: Duration::from_millis(5), ..DirectionSpec::default() })
}

fn part(value: f64) -> Probability {
    Probability::new(value).unwrap()
}

#[test]
fn where_udp_is_blocked_tcp_carries() {
    if !capable("where_udp_is_blocked_tcp_carries", &[Capability::Netns]) {
        return;
    }
    let harness = Harness::new();
    let mut network = Network::up(&harness, plain(400));
    let host = network.host();
    let daemon = network.start(&host);
    let source = harness.path("source");
    random_file(&source, 16 * MIB, 1);
    network.change(|direction| direction.block_udp = true);
    let summary = Outcome::of(network.start_copy(&harness.copy(&source, host.url("disk"))).finish()).done();
    assert_eq!(summary.text("transport"), "tcp");
    same(&source, &host.volume("disk"));
    let only_quic = harness.copy(&source, host.url("other")).with(["--transport", "quic", "--patience", "0"]);
    Outcome::of(network.start_copy(&only_quic).finish()).fails(2, "timed-out");
    daemon.stop();
}

#[test]
fn where_udp_is_blocked_half_way_tcp_goes_on() {
    if !capable("where_udp_is_blocked_half_way_tcp_goes_on", &[Capability::Netns]) {
        return;
    }
    let harness = Harness::new();
    let mut network = Network::up(&harness, plain(200));
    let host = network.host();
    let daemon = network.start(&host);
    let source = harness.path("source");
    random_file(&source, 64 * MIB, 2);
    harness.allow_log("the tunnel was lost; dialling again");
    harness.allow_log("session ended");
    let running = network.start_copy(&harness.copy(&source, host.url("disk")));
    let seen = daemon.await_settled(16 * MIB);
    network.change(|direction| direction.block_udp = true);
    let blocked = Instant::now();
    daemon.await_settled(seen.settled + 24 * MIB);
    println!("UDP blocked: new bytes were settled over TCP after {:?}", blocked.elapsed());
    let summary = Outcome::of(running.finish()).done();
    assert_eq!(summary.text("transport"), "tcp");
    assert!(summary.count("resent_bytes") <= 64 * MIB);
    same(&source, &host.volume("disk"));
    daemon.stop();
}

#[test]
fn a_link_that_comes_back_is_used_again() {
    if !capable("a_link_that_comes_back_is_used_again", &[Capability::Netns]) {
        return;
    }
    /// Shorter than QUIC's patience of 30 s: the connection survives.
    const CUT: Duration = Duration::from_secs(10);
    let harness = Harness::new();
    let mut network = Network::up(&harness, plain(200));
    let host = network.host();
    let daemon = network.start(&host);
    let source = harness.path("source");
    random_file(&source, 48 * MIB, 3);
    let running = network.start_copy(&harness.copy(&source, host.url("disk")));
    let seen = daemon.await_settled(8 * MIB);
    network.change(|direction| direction.loss = Probability::ALWAYS);
    // The cut's length is what is tested.
    std::thread::sleep(CUT);
    network.change(|direction| direction.loss = Probability::NEVER);
    let back = Instant::now();
    // More than what was on its way when the link was cut.
    daemon.await_settled(seen.settled + 12 * MIB);
    println!("after a cut of {CUT:?}: new bytes were settled after {:?}", back.elapsed());
    let summary = Outcome::of(running.finish()).done();
    assert_eq!(summary.count("attempts"), 1);
    assert_eq!(summary.count("resent_bytes"), 0);
    same(&source, &host.volume("disk"));
    daemon.stop();
}

#[test]
fn small_packets_disorder_and_duplicates_only_slow() {
    if !capable("small_packets_disorder_and_duplicates_only_slow", &[Capability::Netns]) {
        return;
    }
    let harness = Harness::new();
    let mut spec = plain(400);
    spec.mtu = 1280;
    spec.seed = 4;
    println!("seed {}", spec.seed);
    for direction in [&mut spec.a_to_b, &mut spec.b_to_a] {
        direction.reorder = part(0.01);
        direction.reorder_delay = Duration::from_millis(5);
        direction.duplicate = part(0.01);
        direction.corrupt = part(0.001);
    }
    let network = Network::up(&harness, spec);
    let host = network.host();
    let daemon = network.start(&host);
    let source = harness.path("source");
    random_file(&source, 16 * MIB, 5);
    for profile in ["lan", "wan"] {
        for transport in ["quic", "tcp"] {
            let name = format!("{profile}-{transport}");
            let arguments = ["--profile", profile, "--transport", transport, "--connections", "2"];
            let copy = harness.copy(&source, host.url(&name)).with(arguments);
            Outcome::of(network.start_copy(&copy).finish()).done();
            same(&source, &host.volume(&name));
        }
    }
    let stats = network.link().stats().unwrap();
    assert!(stats.a_to_b.counters.delivered > 0);
    daemon.stop();
}
