//! Does the link do what it was told, in numbers?

use std::thread;
use std::time::{Duration, Instant};

use novaferry_link::{BitRate, DirectionSpec, LinkSpec, Queue};

use crate::support::{BURST, link, numbered, percent, receive_numbered, replay, symmetric, udp_pair};

/// Bytes of an IPv4 and a UDP header.
const HEADERS: usize = 28;

#[test]
fn exactly_the_predicted_packets_are_lost() {
    const PACKETS: u32 = 20_000;
    const LENGTH: usize = 64;
    let probability: f64 = 0.05;
    let spec = symmetric(DirectionSpec { loss: percent(5.0), ..DirectionSpec::default() }, 20_261_122);
    let Some(link) = link("exactly_the_predicted_packets_are_lost", &spec) else { return };
    let [sender, receiver] = udp_pair(&link);
    let expected = replay(&spec, PACKETS);
    let numbers: Vec<u32> = (0..PACKETS).collect();
    let mut lost = 0;
    for burst in numbers.chunks(BURST) {
        burst.iter().for_each(|number| assert_eq!(sender.send(&numbered(*number, LENGTH)).unwrap(), LENGTH));
        for number in burst {
            if expected[*number as usize] == 0 {
                lost += 1;
            } else {
                assert_eq!(receive_numbered(&receiver, LENGTH).unwrap(), *number);
            }
        }
    }
    let stats = link.stats().unwrap();
    assert_eq!(stats.a_to_b.counters.offered, u64::from(PACKETS), "somebody else uses the link");
    assert_eq!(stats.a_to_b.counters.lost, lost);
    assert_eq!((stats.a_to_b.overrun, stats.a_to_b.refused), (0, 0));
    let mean = f64::from(PACKETS) * probability;
    let deviation = (mean * (1.0 - probability)).sqrt();
    println!("loss: {lost} of {PACKETS}, expected {mean} +- {deviation:.0}");
    assert!((lost as f64 - mean).abs() < 5.0 * deviation);
}

#[test]
fn duplicates_and_reordering_are_seen() {
    const PACKETS: u32 = 2_000;
    const LENGTH: usize = 64;
    let direction = DirectionSpec {
        duplicate: percent(10.0),
        reorder: percent(10.0),
        reorder_delay: Duration::from_millis(5),
        ..DirectionSpec::default()
    };
    let spec = symmetric(direction, 99);
    let Some(link) = link("duplicates_and_reordering_are_seen", &spec) else { return };
    let [sender, receiver] = udp_pair(&link);
    let expected = replay(&spec, PACKETS);
    let numbers: Vec<u32> = (0..PACKETS).collect();
    let mut overtaken = 0;
    for burst in numbers.chunks(BURST) {
        burst.iter().for_each(|number| assert_eq!(sender.send(&numbered(*number, LENGTH)).unwrap(), LENGTH));
        let copies: usize = burst.iter().map(|number| expected[*number as usize]).sum();
        let mut got: Vec<u32> = (0..copies).map(|_| receive_numbered(&receiver, LENGTH).unwrap()).collect();
        overtaken += got.windows(2).filter(|pair| pair[1] < pair[0]).count();
        got.sort_unstable();
        let wanted: Vec<u32> =
            burst.iter().flat_map(|number| vec![*number; expected[*number as usize]]).collect();
        assert_eq!(got, wanted);
    }
    let counters = link.stats().unwrap().a_to_b.counters;
    println!("{} duplicated, {} held back, {overtaken} seen late", counters.duplicated, counters.reordered);
    assert_eq!(counters.duplicated, expected.iter().map(|copies| *copies as u64 - 1).sum::<u64>());
    assert!(counters.reordered > 0 && overtaken > 0);
}

#[test]
fn no_packet_is_faster_than_the_delay() {
    const PACKETS: u32 = 100;
    let delay = Duration::from_millis(10);
    let spec = symmetric(DirectionSpec { delay, ..DirectionSpec::default() }, 0);
    let Some(link) = link("no_packet_is_faster_than_the_delay", &spec) else { return };
    let [near, far] = udp_pair(&link);
    let mut trips: Vec<Duration> = thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..PACKETS {
                far.send(&numbered(receive_numbered(&far, 8).unwrap(), 8)).unwrap();
            }
        });
        (0..PACKETS)
            .map(|number| {
                let sent = Instant::now();
                near.send(&numbered(number, 8)).unwrap();
                assert_eq!(receive_numbered(&near, 8).unwrap(), number);
                sent.elapsed()
            })
            .collect()
    });
    trips.sort_unstable();
    let at = |percent: usize| trips[(trips.len() - 1) * percent / 100];
    println!("round trip at 2 x {delay:?}: least {:?}, median {:?}, p99 {:?}", trips[0], at(50), at(99));
    let stats = link.stats().unwrap();
    for (way, stats) in [("A to B", stats.a_to_b), ("B to A", stats.b_to_a)] {
        println!(
            "{way}: handed over {} us late on average, {} us at most",
            stats.late_mean_us, stats.late_worst_us
        );
    }
    assert!(trips[0] >= 2 * delay);
}

/// From before the first packet until the last has come, at most `rate x time` can have passed. The packets are few
/// enough for the socket's buffer, however late the receiver looks.
#[test]
fn the_rate_is_not_exceeded() {
    const PACKETS: u32 = 64;
    const LENGTH: usize = 1000;
    let rate = BitRate::megabits(2).unwrap();
    let direction =
        DirectionSpec { rate: Some(rate), queue: Queue::Bytes(10_000_000), ..DirectionSpec::default() };
    let spec = symmetric(direction, 0);
    let Some(link) = link("the_rate_is_not_exceeded", &spec) else { return };
    let [sender, receiver] = udp_pair(&link);
    let start = Instant::now();
    (0..PACKETS).for_each(|number| {
        sender.send(&numbered(number, LENGTH)).unwrap();
    });
    for number in 0..PACKETS {
        assert_eq!(receive_numbered(&receiver, LENGTH).unwrap(), number);
    }
    let took = start.elapsed();
    let bits = f64::from(PACKETS) * (LENGTH + HEADERS) as f64 * 8.0;
    let least = Duration::from_secs_f64(bits / rate.get() as f64);
    println!(
        "rate {rate}: took {took:?}, the wire needs {least:?}: {:.2} %",
        100.0 * least.as_secs_f64() / took.as_secs_f64()
    );
    assert!(took >= least);
}

#[test]
fn what_does_not_fit_the_queue_is_dropped() {
    const PACKETS: u32 = 64;
    const LENGTH: usize = 972;
    // A packet needs 8 s: none leaves the queue during the test.
    let direction = DirectionSpec {
        rate: Some(BitRate::new(1000).unwrap()),
        queue: Queue::Bytes(10_500),
        ..DirectionSpec::default()
    };
    let spec = LinkSpec { a_to_b: direction, ..LinkSpec::default() };
    let Some(link) = link("what_does_not_fit_the_queue_is_dropped", &spec) else { return };
    let [sender, receiver] = udp_pair(&link);
    (0..PACKETS).for_each(|number| {
        sender.send(&numbered(number, LENGTH)).unwrap();
    });
    // What is in the queue leaves at once when the rate is lifted.
    link.set(&LinkSpec::default()).unwrap();
    sender.send(&numbered(PACKETS, LENGTH)).unwrap();
    let mut got = Vec::new();
    while got.last() != Some(&PACKETS) {
        got.push(receive_numbered(&receiver, LENGTH).unwrap());
    }
    let counters = link.stats().unwrap().a_to_b.counters;
    assert_eq!(counters.dropped_queue + got.len() as u64, u64::from(PACKETS) + 1);
    println!("{} waited, {} dropped", got.len() - 1, counters.dropped_queue);
}
