use std::time::{Duration, Instant};

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

use super::Channel;
use crate::spec::{DirectionSpec, Queue};
use crate::units::{BitRate, Probability};

const MTU: u16 = 1500;
const MS: Duration = Duration::from_millis(1);

fn percent(value: f64) -> Probability {
    Probability::new(value / 100.0).unwrap()
}

fn mbit(megabits: u64) -> Option<BitRate> {
    Some(BitRate::megabits(megabits).unwrap())
}

/// Runs the clock until nothing is under way; what arrived, when.
fn drain(channel: &mut Channel) -> Vec<(Instant, Vec<u8>)> {
    let mut arrived = Vec::new();
    while let Some(due) = channel.poll_timeout() {
        assert!(channel.poll_deliver(due - Duration::from_nanos(1)).is_none(), "delivered early");
        while let Some(packet) = channel.poll_deliver(due) {
            arrived.push((due, packet.to_vec()));
        }
    }
    arrived
}

fn numbered(number: u32, length: usize) -> Vec<u8> {
    let mut packet = vec![0; length.max(4)];
    packet[..4].copy_from_slice(&number.to_be_bytes());
    packet
}

fn number(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[..4].try_into().unwrap())
}

#[test]
fn a_perfect_wire_delivers_at_once() {
    let mut channel = Channel::new(DirectionSpec::default(), MTU, 0);
    let now = Instant::now();
    channel.handle_packet(now, b"abc");
    assert_eq!(channel.poll_deliver(now), Some(&b"abc"[..]));
    assert_eq!(channel.poll_deliver(now), None);
    assert_eq!(channel.poll_timeout(), None);
}

#[test]
fn delay_is_exact() {
    let spec = DirectionSpec { delay: 25 * MS, ..DirectionSpec::default() };
    let mut channel = Channel::new(spec, MTU, 0);
    let start = Instant::now();
    channel.handle_packet(start, b"x");
    assert_eq!(channel.poll_timeout(), Some(start + 25 * MS));
    assert_eq!(channel.poll_deliver(start + 25 * MS - Duration::from_nanos(1)), None);
    assert_eq!(channel.poll_deliver(start + 25 * MS), Some(&b"x"[..]));
}

/// 3,000 packets of 1,000 bytes at 3 Mbit/s need 8 s: no rounding may add up, although one needs 2,666,666.6 ns.
#[test]
fn the_rate_is_exact_over_many_packets() {
    let spec = DirectionSpec {
        rate: mbit(3),
        queue: Queue::Time(Duration::from_secs(60)),
        ..DirectionSpec::default()
    };
    let mut channel = Channel::new(spec, MTU, 0);
    let start = Instant::now();
    for index in 0..3000 {
        channel.handle_packet(start, &numbered(index, 1000));
    }
    let arrived = drain(&mut channel);
    assert_eq!(arrived.len(), 3000);
    assert_eq!(arrived.last().unwrap().0, start + Duration::from_secs(8));
}

#[test]
fn the_queue_drops_at_the_tail() {
    for queue in [Queue::Bytes(10_000), Queue::Time(80 * MS)] {
        let spec = DirectionSpec { rate: mbit(1), queue, ..DirectionSpec::default() };
        let mut channel = Channel::new(spec, MTU, 0);
        let start = Instant::now();
        for index in 0..20 {
            channel.handle_packet(start, &numbered(index, 1000));
        }
        assert_eq!(channel.counters().dropped_queue, 10, "{queue:?}");
        // One packet has left after 8 ms: there is room for exactly one.
        channel.handle_packet(start + 8 * MS, &numbered(20, 1000));
        channel.handle_packet(start + 8 * MS, &numbered(21, 1000));
        assert_eq!(channel.counters().dropped_queue, 11, "{queue:?}");
        let got: Vec<u32> = drain(&mut channel).iter().map(|(_, packet)| number(packet)).collect();
        assert_eq!(got, (0..10).chain([20]).collect::<Vec<_>>());
    }
}

#[test]
fn an_idle_link_takes_a_packet_larger_than_its_queue() {
    let spec = DirectionSpec { rate: mbit(1), queue: Queue::Bytes(100), ..DirectionSpec::default() };
    let mut channel = Channel::new(spec, MTU, 0);
    channel.handle_packet(Instant::now(), &[0; 1000]);
    assert_eq!(channel.counters().dropped_queue, 0);
    assert_eq!(drain(&mut channel).len(), 1);
}

/// The bounds are five standard deviations; the seed is fixed, so the test gives the same count every time.
#[test]
fn probabilities_hold_over_many_packets() {
    const PACKETS: u32 = 100_000;
    let probability = 0.05;
    let spec = DirectionSpec {
        loss: percent(5.0),
        duplicate: percent(5.0),
        reorder: percent(5.0),
        reorder_delay: MS,
        corrupt: percent(5.0),
        ..DirectionSpec::default()
    };
    let mut channel = Channel::new(spec, MTU, 42);
    let start = Instant::now();
    for index in 0..PACKETS {
        channel.handle_packet(start, &numbered(index, 40));
    }
    let counters = channel.counters();
    let near = |what: &str, count: u64, of: f64| {
        let bound = 5.0 * (of * probability * (1.0 - probability)).sqrt();
        let difference = (count as f64 - of * probability).abs();
        assert!(difference < bound, "{what}: {count} of {of}");
    };
    near("lost", counters.lost, f64::from(PACKETS));
    let kept = f64::from(PACKETS) - counters.lost as f64;
    near("duplicated", counters.duplicated, kept);
    near("reordered", counters.reordered, kept);
    near("corrupted", counters.corrupted, kept);
}

#[test]
fn a_fate_depends_on_the_seed_and_the_number_only() {
    let survivors = |seed: u64, gap: Duration| -> Vec<u32> {
        let spec = DirectionSpec { loss: percent(10.0), delay: MS, ..DirectionSpec::default() };
        let mut channel = Channel::new(spec, MTU, seed);
        let start = Instant::now();
        (0..1000).for_each(|index| channel.handle_packet(start + gap * index, &numbered(index, 100)));
        drain(&mut channel).iter().map(|(_, packet)| number(packet)).collect()
    };
    assert_eq!(survivors(7, Duration::ZERO), survivors(7, 3 * MS));
    assert_ne!(survivors(7, Duration::ZERO), survivors(8, Duration::ZERO));
}

#[test]
fn jitter_stays_within_its_bounds_and_keeps_order_on_demand() {
    for keep_order in [false, true] {
        let spec = DirectionSpec { delay: 20 * MS, jitter: 5 * MS, keep_order, ..DirectionSpec::default() };
        let mut channel = Channel::new(spec, MTU, 3);
        let start = Instant::now();
        (0..500).for_each(|index| channel.handle_packet(start + MS * index, &numbered(index, 100)));
        let arrived = drain(&mut channel);
        let numbers: Vec<u32> = arrived.iter().map(|(_, packet)| number(packet)).collect();
        assert_eq!(numbers.is_sorted(), keep_order);
        for (due, packet) in &arrived {
            let took = *due - (start + MS * number(packet));
            assert!((15 * MS..=25 * MS).contains(&took), "{took:?}");
        }
    }
}

#[test]
fn jitter_beyond_the_delay_stops_at_zero() {
    let spec = DirectionSpec { delay: MS, jitter: 10 * MS, ..DirectionSpec::default() };
    let mut channel = Channel::new(spec, MTU, 3);
    let start = Instant::now();
    (0..100).for_each(|index| channel.handle_packet(start, &numbered(index, 100)));
    assert!(drain(&mut channel).iter().all(|(due, _)| (start..=start + 11 * MS).contains(due)));
}

#[test]
fn later_packets_overtake_reordered_ones() {
    let spec = DirectionSpec {
        delay: MS,
        reorder: percent(10.0),
        reorder_delay: 5 * MS,
        ..DirectionSpec::default()
    };
    let mut channel = Channel::new(spec, MTU, 11);
    let start = Instant::now();
    (0..1000).for_each(|index| channel.handle_packet(start + MS * index, &numbered(index, 100)));
    let numbers: Vec<u32> = drain(&mut channel).iter().map(|(_, packet)| number(packet)).collect();
    let highest = numbers.iter().scan(0, |highest, number| {
        let late = number < highest;
        *highest = (*highest).max(*number);
        Some(late)
    });
    let late = highest.filter(|late| *late).count() as u64;
    // The last packets have nothing behind them that could overtake.
    assert!(late > 0 && late.abs_diff(channel.counters().reordered) <= 5, "{late}");
}

#[test]
fn copies_are_whole_and_do_not_use_the_rate() {
    let spec = DirectionSpec { rate: mbit(8), duplicate: Probability::ALWAYS, ..DirectionSpec::default() };
    let mut channel = Channel::new(spec, MTU, 0);
    let start = Instant::now();
    (0..10).for_each(|index| channel.handle_packet(start, &numbered(index, 1000)));
    let arrived = drain(&mut channel);
    assert_eq!(arrived.len(), 20);
    assert!(arrived.chunks(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(arrived.last().unwrap().0, start + 10 * MS);
}

#[test]
fn corruption_flips_one_bit() {
    let spec = DirectionSpec { corrupt: Probability::ALWAYS, ..DirectionSpec::default() };
    let mut channel = Channel::new(spec, MTU, 5);
    let now = Instant::now();
    (0..100).for_each(|_| channel.handle_packet(now, &[0; 64]));
    for (_, packet) in drain(&mut channel) {
        assert_eq!(packet.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    }
    channel.handle_packet(now, &[]);
    assert_eq!(channel.counters().corrupted, 100, "an empty packet has no bit to flip");
}

#[test]
fn large_packets_and_blocked_udp_are_dropped() {
    let mut channel = Channel::new(DirectionSpec { block_udp: true, ..DirectionSpec::default() }, 100, 0);
    let now = Instant::now();
    let mut udp = [0; 28];
    (udp[0], udp[9]) = (0x45, 17);
    let mut tcp = udp;
    tcp[9] = 6;
    channel.handle_packet(now, &[0; 101]);
    channel.handle_packet(now, &udp);
    channel.handle_packet(now, &tcp);
    let counters = channel.counters();
    assert_eq!((counters.dropped_mtu, counters.dropped_udp), (1, 1));
    assert_eq!(drain(&mut channel), [(now, tcp.to_vec())]);
}

/// Ten packets of 1,000 bytes at 1 Mbit/s need 8 ms each. After 12 ms the rate goes up eightfold: one has left, the
/// others follow at 1 ms each.
#[test]
fn a_rate_step_retimes_the_queue() {
    let spec = DirectionSpec {
        rate: mbit(1),
        delay: 5 * MS,
        queue: Queue::Bytes(1 << 20),
        ..DirectionSpec::default()
    };
    let mut channel = Channel::new(spec.clone(), MTU, 0);
    let start = Instant::now();
    (0..10).for_each(|index| channel.handle_packet(start, &numbered(index, 1000)));
    channel.handle_spec(start + 12 * MS, DirectionSpec { rate: mbit(8), ..spec }, MTU);
    let arrived = drain(&mut channel);
    let numbers: Vec<u32> = arrived.iter().map(|(_, packet)| number(packet)).collect();
    assert_eq!(numbers, (0..10).collect::<Vec<_>>());
    assert_eq!(arrived[0].0, start + 13 * MS);
    assert_eq!(arrived[1].0, start + 18 * MS);
    assert_eq!(arrived[9].0, start + 26 * MS);
}

#[test]
fn a_blackhole_lets_arrive_what_is_under_way() {
    let spec = DirectionSpec { delay: 5 * MS, ..DirectionSpec::default() };
    let mut channel = Channel::new(spec.clone(), MTU, 0);
    let start = Instant::now();
    channel.handle_packet(start, b"before");
    channel.handle_spec(start + MS, DirectionSpec { loss: Probability::ALWAYS, ..spec }, MTU);
    channel.handle_packet(start + 2 * MS, b"after");
    assert_eq!(drain(&mut channel), [(start + 5 * MS, b"before".to_vec())]);
    assert_eq!(channel.counters().lost, 1);
}

fn spec() -> impl Strategy<Value = DirectionSpec> {
    let probability =
        || prop_oneof![Just(0.0), Just(1.0), 0.0..1.0].prop_map(|p| Probability::new(p).unwrap());
    let time = || (0_u64..50_000).prop_map(Duration::from_micros);
    let rate = prop_oneof![
        Just(None),
        (1_u64..10_000_000_000).prop_map(|bits| Some(BitRate::new(bits.max(10_000)).unwrap()))
    ];
    let queue = prop_oneof![time().prop_map(Queue::Time), (0_u64..1_000_000).prop_map(Queue::Bytes)];
    let chances = (probability(), probability(), probability(), probability());
    ((rate, queue), (time(), time(), time()), chances, any::<bool>(), any::<bool>()).prop_map(
        |((rate, queue), (delay, jitter, reorder_delay), chances, keep_order, block_udp)| {
            let (loss, reorder, duplicate, corrupt) = chances;
            DirectionSpec {
                rate,
                delay,
                jitter,
                keep_order,
                loss,
                reorder,
                reorder_delay,
                duplicate,
                corrupt,
                queue,
                block_udp,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever the link does: every packet is accounted for, nothing arrives early or out of time order, the rate is
    /// never exceeded, and a second run gives the same.
    #[test]
    fn every_packet_is_accounted_for(
        first in spec(),
        second in spec(),
        seed in any::<u64>(),
        packets in proptest::collection::vec((0_u64..5_000, 0_usize..1600), 1..200),
    ) {
        let start = Instant::now();
        let run = || {
            let mut channel = Channel::new(first.clone(), MTU, seed);
            let mut now = start;
            let mut arrived = Vec::new();
            for (index, (gap, length)) in packets.iter().enumerate() {
                now += Duration::from_micros(*gap);
                if index == packets.len() / 2 {
                    channel.handle_spec(now, second.clone(), MTU);
                }
                channel.handle_packet(now, &vec![0x45; *length]);
                while let Some(packet) = channel.poll_deliver(now) {
                    arrived.push(packet.to_vec());
                }
                let counters = channel.counters();
                assert_eq!(
                    counters.offered + counters.duplicated,
                    counters.delivered + counters.lost + counters.dropped_queue + counters.dropped_mtu
                        + counters.dropped_udp + counters.dropped_memory + channel.under_way() as u64
                );
            }
            let tail = drain(&mut channel);
            assert!(tail.is_sorted_by_key(|(due, _)| *due));
            arrived.extend(tail.into_iter().map(|(_, packet)| packet));
            let counters = channel.counters();
            assert_eq!(counters.delivered, arrived.len() as u64);
            (arrived, counters)
        };
        assert_eq!(run(), run());
    }

    /// In every interval from the first departure on, at most `rate x time` plus one packet arrives.
    #[test]
    fn the_rate_is_never_exceeded(
        megabits in 1_u64..1000,
        packets in proptest::collection::vec((0_u64..500, 1_usize..1500), 2..300),
    ) {
        let spec = DirectionSpec { rate: mbit(megabits), delay: MS, queue: Queue::Time(20 * MS), ..DirectionSpec::default() };
        let mut channel = Channel::new(spec, MTU, 0);
        let mut now = Instant::now();
        for (gap, length) in &packets {
            now += Duration::from_micros(*gap);
            channel.handle_packet(now, &vec![0; *length]);
        }
        let arrived = drain(&mut channel);
        let mut bits_after_first = 0;
        for (due, packet) in &arrived[1..] {
            bits_after_first += packet.len() as u128 * 8;
            // One nanosecond: a departure is rounded down, its remainder carried on.
            let allowed = ((*due - arrived[0].0).as_nanos() + 1) * u128::from(megabits) / 1000;
            assert!(bits_after_first <= allowed + 1, "{bits_after_first} > {allowed}");
        }
    }
}
