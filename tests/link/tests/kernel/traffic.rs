//! Do TCP and UDP pass as over a real link, and does a change take effect?

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use novaferry_link::{BitRate, DirectionSpec, Link, LinkSpec, Probability, Side};
use rustix::io::Errno;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};

use crate::support::{link, numbered, percent, receive_numbered, symmetric, tcp_pair, udp_pair};

/// Sends `length` bytes from A to B and back and compares them.
fn tcp_echo(link: &Link, address: IpAddr, length: usize) {
    let sent: Vec<u8> = (0..length).map(|at| (at * 31 % 257).to_le_bytes()[0]).collect();
    let [near, far] = tcp_pair(link, address);
    thread::scope(|scope| {
        scope.spawn(|| echo(&far));
        scope.spawn(|| {
            (&near).write_all(&sent).unwrap();
            near.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        (&near).read_to_end(&mut received).unwrap();
        assert!(received == sent, "{} bytes came back of {length}, or others", received.len());
    });
}

fn echo(stream: &TcpStream) {
    io::copy(&mut &*stream, &mut &*stream).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
}

#[test]
fn tcp_is_intact_over_a_bad_link() {
    let direction = DirectionSpec {
        rate: Some(BitRate::megabits(200).unwrap()),
        delay: Duration::from_millis(2),
        jitter: Duration::from_micros(500),
        loss: percent(1.0),
        duplicate: percent(1.0),
        reorder: percent(1.0),
        reorder_delay: Duration::from_millis(1),
        corrupt: percent(0.5),
        ..DirectionSpec::default()
    };
    let Some(link) = link("tcp_is_intact_over_a_bad_link", &symmetric(direction, 4)) else { return };
    tcp_echo(&link, Side::B.address().into(), 1 << 20);
    tcp_echo(&link, Side::B.address_v6().into(), 1 << 20);
    let counters = link.stats().unwrap().a_to_b.counters;
    println!("{counters:?}");
    assert!(counters.lost > 0 && counters.corrupted > 0 && counters.duplicated > 0);
}

#[test]
fn corrupted_packets_never_reach_a_socket() {
    const PACKETS: u32 = 500;
    let corrupting = symmetric(DirectionSpec { corrupt: Probability::ALWAYS, ..DirectionSpec::default() }, 8);
    let Some(link) = link("corrupted_packets_never_reach_a_socket", &corrupting) else { return };
    let [sender, receiver] = udp_pair(&link);
    // An ICMP error about a packet whose port was changed shows up at the sender, and is as good as a loss.
    let mut refused = 0;
    for number in 0..PACKETS {
        while let Err(error) = sender.send(&numbered(number, 64)) {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            refused += 1;
        }
    }
    link.set(&LinkSpec::default()).unwrap();
    while let Err(error) = sender.send(&numbered(PACKETS, 64)) {
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        refused += 1;
    }
    assert_eq!(
        receive_numbered(&receiver, 64).unwrap(),
        PACKETS,
        "the first to arrive is the first clean one"
    );
    println!("{refused} ICMP errors");
}

#[test]
fn packets_above_the_mtu_are_cut_or_vanish() {
    let spec = LinkSpec { mtu: 1400, ..LinkSpec::default() };
    let Some(link) = link("packets_above_the_mtu_are_cut_or_vanish", &spec) else { return };
    let [sender, receiver] = udp_pair(&link);
    // The kernel cuts a datagram into packets that fit, and every piece passes.
    for length in [1372, 1373, 4000, 60_000] {
        sender.send(&numbered(0, length)).unwrap();
        receive_numbered(&receiver, length).unwrap();
    }
    // A tunnel in between takes less than the hosts know: a full packet vanishes, a smaller one passes.
    let before = link.stats().unwrap().a_to_b.counters;
    assert_eq!(before.dropped_mtu, 0);
    link.set(&LinkSpec { mtu: 1200, ..spec }).unwrap();
    sender.send(&numbered(1, 1201 - 28)).unwrap();
    sender.send(&numbered(2, 1200 - 28)).unwrap();
    assert_eq!(receive_numbered(&receiver, 1200 - 28).unwrap(), 2);
    let after = link.stats().unwrap().a_to_b.counters;
    assert_eq!((after.offered - before.offered, after.dropped_mtu), (2, 1));
}

#[test]
fn a_packet_above_the_mtu_that_must_not_be_cut_is_refused() {
    let spec = LinkSpec { mtu: 1300, ..LinkSpec::default() };
    let Some(link) = link("a_packet_above_the_mtu_that_must_not_be_cut_is_refused", &spec) else { return };
    let [sender, receiver] = udp_pair(&link);
    set_ip_mtu_discover(&sender, Ipv4PathMtuDiscovery::DO).unwrap();
    let error = sender.send(&numbered(1, 1301 - 28)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::MSGSIZE.raw_os_error()));
    sender.send(&numbered(2, 1300 - 28)).unwrap();
    assert_eq!(receive_numbered(&receiver, 1300 - 28).unwrap(), 2);
    // TCP adapts its segments.
    tcp_echo(&link, Side::B.address().into(), 1 << 18);
    tcp_echo(&link, Side::B.address_v6().into(), 1 << 18);
    assert_eq!(link.stats().unwrap().a_to_b.counters.dropped_mtu, 0);
}

#[test]
fn udp_can_be_blocked_half_way_while_tcp_passes() {
    let open = LinkSpec::default();
    let blocked = symmetric(DirectionSpec { block_udp: true, ..DirectionSpec::default() }, 0);
    let Some(link) = link("udp_can_be_blocked_half_way_while_tcp_passes", &open) else { return };
    let [sender, receiver] = udp_pair(&link);
    sender.send(&numbered(0, 8)).unwrap();
    assert_eq!(receive_numbered(&receiver, 8).unwrap(), 0);
    link.set(&blocked).unwrap();
    for number in 1..=5 {
        sender.send(&numbered(number, 8)).unwrap();
    }
    tcp_echo(&link, Side::B.address().into(), 1 << 16);
    assert_eq!(link.stats().unwrap().a_to_b.counters.dropped_udp, 5);
    link.set(&open).unwrap();
    sender.send(&numbered(6, 8)).unwrap();
    assert_eq!(receive_numbered(&receiver, 8).unwrap(), 6, "what was blocked is gone");
}

#[test]
fn one_way_partition_lets_the_other_way_pass() {
    let blackhole = DirectionSpec { loss: Probability::ALWAYS, ..DirectionSpec::default() };
    let spec = LinkSpec { a_to_b: blackhole, ..LinkSpec::default() };
    let Some(link) = link("one_way_partition_lets_the_other_way_pass", &spec) else { return };
    let [a, b] = udp_pair(&link);
    a.send(&numbered(1, 8)).unwrap();
    b.send(&numbered(2, 8)).unwrap();
    assert_eq!(receive_numbered(&a, 8).unwrap(), 2);
    link.set(&LinkSpec::default()).unwrap();
    a.send(&numbered(3, 8)).unwrap();
    assert_eq!(receive_numbered(&b, 8).unwrap(), 3, "the lost one stays lost");
    let stats = link.stats().unwrap();
    assert_eq!((stats.a_to_b.counters.lost, stats.b_to_a.counters.lost), (1, 0));
}
