use proptest::prelude::*;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn link(schedule: Vec<Window>) -> Link {
    let mut link = Link::new("l".parse().unwrap(), ["a".parse().unwrap(), "b".parse().unwrap()]);
    link.schedule = schedule;
    link
}

fn probe(rtt_us: u64, loss_ppm: u32, rate: Option<u64>) -> Option<Measured> {
    Some(Measured { at: Timestamp::UNIX_EPOCH, rtt_us, jitter_us: 0, loss_ppm, rate })
}

/// The states that a row of probes leads through.
fn states(probes: &[Option<Measured>]) -> Vec<State> {
    let mut state = State::Unknown;
    let after = |nth: usize| {
        state = state.next(&probes[..=nth]);
        state
    };
    (0..probes.len()).map(after).collect()
}

#[test]
fn nights_are_windows() {
    let night = link(schedule("Mon-Fri 20:00-06:00").unwrap());
    assert_eq!(night.check(), Ok(()));
    // 2026-11-23 is a Monday.
    assert!(!night.is_open(at("2026-11-23T19:59:59Z")));
    assert!(night.is_open(at("2026-11-23T20:00:00Z")));
    assert!(night.is_open(at("2026-11-28T05:59:59Z")), "Friday's night ends on Saturday");
    assert!(!night.is_open(at("2026-11-28T06:00:00Z")));
    assert_eq!(night.opens(at("2026-11-28T06:00:30Z")), Some(at("2026-11-30T20:00:00Z")));
    assert_eq!(night.closes(at("2026-11-23T23:10:30Z")), Some(at("2026-11-24T06:00:00Z")));
    let sunday = link(schedule("sun 22:00-02:00").unwrap());
    assert_eq!(sunday.schedule, [Window { from: 0, to: 120 }, Window { from: 9960, to: 10_080 }]);
    assert_eq!(sunday.closes(at("2026-11-22T23:00:00Z")), Some(at("2026-11-23T02:00:00Z")));
    let always = link(schedule("Mon-Sun 00:00-24:00").unwrap());
    assert_eq!((always.schedule.len(), always.closes(at("2026-11-22T23:00:00Z"))), (7, None));
    assert_eq!(link(Vec::new()).closes(at("2026-11-22T23:00:00Z")), None);
    assert_eq!(schedule("Fri-Mon 01:00-02:00").unwrap().len(), 4);
    for bad in
        ["", "Mon", "Mon 20-22", "Mon 24:00-02:00", "Mon 1:00-2:00", "Mo 01:00-02:00", "Mon 01:60-02:00"]
    {
        assert_eq!(schedule(bad), Err(InvalidSchedule), "{bad}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut bad = link(vec![Window { from: 5, to: 5 }]);
    assert_eq!(bad.check(), Err(InvalidLink::Window(Window { from: 5, to: 5 })));
    bad.schedule = vec![Window { from: 0, to: 1 }; MOST_WINDOWS + 1];
    assert_eq!(bad.check(), Err(InvalidLink::Windows));
    bad.schedule = Vec::new();
    bad.cap = Some(0);
    assert_eq!(bad.check(), Err(InvalidLink::Zero("cap")));
    bad.cap = None;
    bad.price.per_gb_micros = 1;
    assert_eq!(bad.check(), Err(InvalidLink::NoCurrency));
    bad.price.currency = "usd".to_owned();
    assert_eq!(bad.check(), Err(InvalidLink::Currency));
    bad.price.currency = "USD".to_owned();
    assert_eq!(bad.check(), Ok(()));
}

#[test]
fn states_change_after_three_in_a_row() {
    use State::{Degraded, Down, Unknown, Up};
    let good = || probe(10_000, 0, None);
    let far = || probe(30_000, 0, None);
    assert_eq!(states(&[None, None, None, good(), good(), good()]), [Unknown, Unknown, Down, Down, Down, Up]);
    let mut row = vec![good(); 9];
    row.extend([None, None, good(), None, None, None]);
    assert_eq!(states(&row)[9..], [Up, Up, Up, Up, Up, Down]);
    let mut row = vec![good(); 9];
    row.extend([far(), far(), good(), far(), far(), far(), good(), good(), good()]);
    assert_eq!(states(&row)[9..], [Up, Up, Up, Up, Up, Degraded, Degraded, Degraded, Up]);
    let mut row = vec![good(); 9];
    row.extend(vec![probe(10_000, 20_000, None); 3]);
    assert_eq!(states(&row)[9..], [Up, Up, Degraded], "loss");
    // A rate is tried seldom.
    let mut row = vec![probe(10_000, 0, Some(1000)); 5];
    for _ in 0..3 {
        row.extend([probe(10_000, 0, Some(400)), good(), good()]);
    }
    assert_eq!(states(&row)[5..], [Up, Up, Up, Up, Up, Up, Degraded, Degraded, Degraded]);
}

proptest! {
    #[test]
    fn a_link_opens_and_closes_when_it_says(
        windows in prop::collection::vec((0..10_080_u16, 1..3000_u16), 1..6),
        second in 0..3_000_000_000_i64,
    ) {
        let windows = windows.into_iter().map(|(from, len)| Window { from, to: (from + len).min(10_080) });
        let link = link(windows.collect());
        prop_assert_eq!(link.check(), Ok(()));
        let now = Timestamp::from_second(second).unwrap();
        let opens = link.opens(now).unwrap();
        prop_assert!(opens >= now && link.is_open(opens));
        let step = jiff::Span::new().minutes(7);
        let all = |from: Timestamp, to: Timestamp, open: bool| {
            std::iter::successors(Some(from), |at| at.checked_add(step).ok())
                .take_while(|at| *at < to)
                .all(|at| link.is_open(at) == open)
        };
        prop_assert!(all(now, opens, false));
        match link.closes(opens) {
            Some(closes) => prop_assert!(closes > opens && !link.is_open(closes) && all(opens, closes, true)),
            None => prop_assert!(all(now, now.checked_add(jiff::Span::new().hours(7 * 24)).unwrap(), true)),
        }
    }

    #[test]
    fn a_single_probe_never_changes_a_state_that_is_known(
        row in prop::collection::vec(prop::option::of((1..1_000_000_u64, 0..1_000_000_u32, prop::option::of(1..1_000_000_u64))), 4..60),
    ) {
        let row: Vec<_> = row.into_iter().map(|p| p.and_then(|(rtt, loss, rate)| probe(rtt, loss, rate))).collect();
        let states = states(&row);
        for (nth, pair) in states.windows(2).enumerate() {
            let last = &row[nth.saturating_sub(1)..=nth + 1];
            prop_assert!(pair[1] != State::Unknown || pair[0] == State::Unknown);
            if pair[0] != pair[1] && pair[0] != State::Unknown {
                let through = last.iter().all(Option::is_some);
                let silent = last.iter().all(Option::is_none);
                prop_assert_eq!(pair[1] == State::Down, silent);
                prop_assert!(through || silent, "{:?}", pair);
            }
        }
    }
}
