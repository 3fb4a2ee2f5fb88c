use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Broken, DiskAtStart, Timeline};
use crate::init::{Heartbeat, Options, READY};
use crate::serial::Chunk;

fn ready() -> String {
    format!("{READY} {}\r\n", Options { heartbeat: 100, ..Options::default() })
}

fn beat(number: u64) -> String {
    let heartbeat =
        Heartbeat { number, up: 3000 + number * 100, pass: 1, disk: number * 8, gap: 100, intact: true };
    format!("{heartbeat}\r\n")
}

fn chunk(start: Instant, milliseconds: u64, text: impl Into<Vec<u8>>) -> Chunk {
    Chunk { at: start + Duration::from_millis(milliseconds), bytes: text.into() }
}

/// A guest that is ready at 0 and beats at 100, 200, … on one host, and after a pause of 50 ms on the next.
fn two_hosts(start: Instant) -> [Vec<Chunk>; 2] {
    let first = [chunk(start, 0, ready())].into_iter();
    let first = first.chain((1..=5).map(|number| chunk(start, number * 100, beat(number))));
    let second = (6..=9).map(|number| chunk(start, number * 100 + 50, beat(number)));
    [first.collect(), second.collect()]
}

#[test]
fn a_pause_is_what_is_longer_than_the_interval() {
    let [first, second] = two_hosts(Instant::now());
    let report = Timeline::of(&[&first, &second]).check(4).unwrap();
    assert_eq!((report.heartbeats, &report.in_file[..]), (9, &[5, 4][..]));
    assert_eq!(report.downtimes, [Duration::from_millis(50)]);
    assert_eq!(report.longest_gap, Duration::from_millis(150));
    assert_eq!(report.interval, Duration::from_millis(100));
    let wanted = Timeline::of(&[&first, &second]).check(5);
    assert_eq!(wanted, Err(Broken::Silent { file: 1, heartbeats: 4 }));
}

#[test]
fn a_guest_whose_clock_is_wrong_is_measured_all_the_same() {
    let start = Instant::now();
    let first: Vec<Chunk> = [chunk(start, 0, ready())]
        .into_iter()
        .chain((1..=5).map(|number| chunk(start, number * 110, beat(number))))
        .collect();
    let second = [chunk(start, 740, beat(6))];
    let report = Timeline::of(&[&first, &second]).check(1).unwrap();
    assert_eq!(report.interval, Duration::from_millis(110));
    assert_eq!(report.downtimes, [Duration::from_millis(80)]);
    // Nothing to measure it by.
    let report = Timeline::of(&[&first[..2], &[chunk(start, 300, beat(2))]]).check(1).unwrap();
    assert_eq!(
        (report.interval, report.downtimes),
        (Duration::from_millis(100), vec![Duration::from_millis(90)])
    );
}

#[test]
fn what_is_wrong_is_found() {
    let start = Instant::now();
    let [first, second] = two_hosts(start);
    let check = |first: &[Chunk], second: &[Chunk]| Timeline::of(&[first, second]).check(1).unwrap_err();

    assert_eq!(check(&first[..5], &second), Broken::Missing { previous: 4, found: 6 });
    assert_eq!(check(&first, &[]), Broken::Silent { file: 1, heartbeats: 0 });
    assert_eq!(check(&first[1..], &second), Broken::NotReady);
    let twice = [&first[5..], &second].concat();
    assert_eq!(check(&first, &twice), Broken::Missing { previous: 5, found: 5 });
    let bad = chunk(start, 1000, beat(10).replace("ok", "BAD"));
    assert_eq!(check(&first, &[&second[..], &[bad]].concat()), Broken::Bad(10));
    let corrupt = chunk(start, 1000, "CORRUPT disk slot 3\r\n");
    assert_eq!(
        check(&first, &[&second[..], &[corrupt]].concat()),
        Broken::Corrupt("CORRUPT disk slot 3".to_owned())
    );
}

#[test]
fn a_line_in_the_making_is_none() {
    let start = Instant::now();
    let timeline = Timeline::of(&[&[chunk(start, 0, ready()), chunk(start, 1, beat(1).trim_end())]]);
    assert_eq!(timeline.beats().count(), 0);
}

#[test]
fn the_disk_at_the_last_start_counts() {
    let start = Instant::now();
    let at_start = |text: &str| Timeline::of(&[&[chunk(start, 0, text)]]).disk_at_start();
    assert_eq!(at_start("DISK fresh\r\n"), Some(DiskAtStart::Fresh));
    assert_eq!(at_start("DISK fresh\r\nDISK intact seq=17\r\n"), Some(DiskAtStart::Intact(17)));
    assert_eq!(at_start("DISK intact seq=\r\n"), None);
    assert_eq!(at_start("TG ready\r\n"), None);
}

proptest! {
    /// However the bytes are cut into chunks, and wherever the guest changes hosts, nothing is missing.
    #[test]
    fn cuts_do_not_matter(cuts in prop::collection::vec(1..40_usize, 0..40), switch in 1..9_usize) {
        let start = Instant::now();
        let text: String = [ready()].into_iter().chain((1..=9).map(beat)).collect();
        let mut rest = text.as_bytes();
        let mut chunks = Vec::new();
        for (cut, at) in cuts.into_iter().zip(0..) {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            chunks.push(chunk(start, at, piece));
            rest = after;
        }
        chunks.push(chunk(start, 100, rest));
        let (first, second) = chunks.split_at(switch.min(chunks.len()));
        let timeline = Timeline::of(&[first, second]);
        prop_assert_eq!(timeline.lines().len(), 10);
        prop_assert!(timeline.beats().map(|beat| beat.heartbeat.number).eq(1..=9));
    }
}
