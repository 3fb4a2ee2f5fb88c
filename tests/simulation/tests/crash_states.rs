//! Crash states of two simulated disks. `NOVAFERRY_SEED=N` replays one seed of the random part, `NOVAFERRY_STATES=N`
//! says how many states it checks.

use novaferry_simulation::attempt::{Begin, CommitStep, RIGHT_ORDER};
use novaferry_simulation::content::Volume;
use novaferry_simulation::crash::{Workload, checked, record, recover, survive, unchecked};
use volume::conformance::Dice;
use volume::{ByteLen, CHUNK, EXTENT};

/// Random states of the normal run, beside more than 10,000 exhaustive ones.
const STATES: u64 = 10_000;
/// Crashes in a row.
const CRASHES: u32 = 3;
/// Most whole extents of a random volume.
const MOST: u64 = 2;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Every state of one seed's workload: at each moment a few random ones. Says how many.
fn check(seed: u64, each: u64) -> Result<u64, String> {
    let mut dice = Dice::new(seed);
    let workload = Workload::random(&mut dice, MOST);
    let recording = record(&workload, RIGHT_ORDER, &mut dice);
    recording.report.outcome.clone()?;
    let mut states = 0;
    for moment in &recording.report.moments {
        for _ in 0..each {
            let state = recording.crash(moment, &mut dice);
            states += survive(&workload, &state, &moment.acknowledged, &mut dice, CRASHES, true)
                .map_err(|why| format!("{why}; {moment:?} of {workload:?}"))?;
        }
    }
    Ok(states)
}

#[test]
fn every_random_state_is_survived() {
    if let Some(seed) = number("NOVAFERRY_SEED") {
        let states = check(seed, 4).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        println!("seed {seed}: {states} states");
        return;
    }
    let wanted = number("NOVAFERRY_STATES").unwrap_or(STATES);
    let threads = 2;
    let checked: u64 = std::thread::scope(|scope| {
        let part = |first: u64| {
            move || {
                let (mut states, mut seed) = (0, first);
                while states < wanted.div_ceil(threads) {
                    println!("NOVAFERRY_SEED={seed}");
                    states += check(seed, 4).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
                    seed += threads;
                }
                states
            }
        };
        let running: Vec<_> = (0..threads).map(|first| scope.spawn(part(first))).collect();
        running.into_iter().map(|thread| thread.join().expect("no state fails")).sum()
    });
    println!("{checked} random states");
    assert!(checked >= wanted);
}

/// Volumes of at most three extents, each of which is new, changed, unchanged or zero, over each kind of target.
fn small_workloads() -> Vec<Workload> {
    let mut all = Vec::new();
    for extents in 1..=3_u64 {
        let size = ByteLen((extents - 1) * EXTENT + CHUNK);
        for choice in 0..4_u64.pow(u32::try_from(extents).unwrap()) {
            let (mut new, mut old) = (vec![0; 48], vec![0; 48]);
            for extent in 0..usize::try_from(extents).unwrap() {
                let [before, after] =
                    [[1, 2], [3, 19], [4, 4], [5, 0]][usize::try_from(choice >> (2 * extent) & 3).unwrap()];
                old[16 * extent] = before;
                new[16 * extent] = after;
            }
            new.truncate(usize::try_from(size.chunks()).unwrap());
            old.truncate(new.len());
            let (source, old) = (Volume::new(size, &new), Volume::new(size, &old));
            let empty = Volume::new(size, &[]);
            for (under, begin) in [
                (empty, Begin::Zeroed),
                (old.clone(), Begin::Unknown),
                (old.clone(), Begin::Trusted(old.clone())),
                (old, Begin::Unread),
            ] {
                all.push(Workload { source: source.clone(), under, begin });
            }
        }
    }
    all
}

#[test]
fn every_state_of_three_operations_is_survived() {
    let (mut states, mut beyond) = (0, 0);
    for (nth, workload) in small_workloads().iter().enumerate() {
        let mut dice = Dice::new(nth as u64);
        let recording = record(workload, RIGHT_ORDER, &mut dice);
        recording.report.outcome.clone().unwrap();
        for moment in &recording.report.moments {
            // More than six changes are pending only where a lane died and things were sent twice.
            let Some((data, journal)) = recording.all(moment, 64) else {
                beyond += 1;
                continue;
            };
            for data in &data {
                for journal in &journal {
                    recover(&workload.source, (data, journal), &moment.acknowledged, checked)
                        .unwrap_or_else(|why| panic!("workload {nth} {workload:?}: {why}"));
                    states += 1;
                }
            }
        }
    }
    println!("{states} exhaustive states; {beyond} moments left to the random ones");
    assert!(states >= 4000, "only {states}");
}

/// States that were checked until a wrong order of a commit was found, or `None`.
fn found(
    order: &'static [CommitStep],
    replay: novaferry_simulation::crash::Replay,
    most: u64,
) -> Option<u64> {
    let mut states = 0;
    for seed in 0.. {
        let mut dice = Dice::new(seed);
        let workload = Workload::random(&mut dice, MOST);
        let recording = record(&workload, order, &mut dice);
        for moment in &recording.report.moments {
            for _ in 0..4 {
                let state = recording.crash(moment, &mut dice);
                states += 1;
                if recover(&workload.source, (&state.data, &state.journal), &moment.acknowledged, replay)
                    .is_err()
                {
                    return Some(states);
                }
                if states >= most {
                    return None;
                }
            }
        }
    }
    None
}

#[test]
fn every_wrong_order_and_a_believed_torn_record_are_found() {
    use CommitStep::{Acknowledge, AppendJournal, FlushData, FlushJournal};
    let faults: [(&str, &'static [CommitStep]); 5] = [
        ("acknowledges before the data is flushed", &[Acknowledge, FlushData, AppendJournal, FlushJournal]),
        (
            "acknowledges before the journal is flushed",
            &[FlushData, AppendJournal, Acknowledge, FlushJournal],
        ),
        ("flushes the journal before the data", &[AppendJournal, FlushJournal, FlushData, Acknowledge]),
        ("never flushes the data", &[AppendJournal, FlushJournal, Acknowledge]),
        (
            "appends to the journal before the data is flushed",
            &[AppendJournal, FlushData, FlushJournal, Acknowledge],
        ),
    ];
    for (what, order) in faults {
        let states = found(order, checked, STATES).unwrap_or_else(|| panic!("not found: {what}"));
        println!("found after {states} states: {what}");
    }
    let states = found(RIGHT_ORDER, unchecked, STATES).expect("believing torn records is found");
    println!("found after {states} states: believes torn records");
    assert_eq!(found(RIGHT_ORDER, checked, 1000), None, "what is right is not called wrong");
}

#[test]
fn a_journal_that_does_not_take_back_is_found() {
    let mut states = 0;
    for seed in 0..100_000 {
        let mut dice = Dice::new(seed);
        let workload = Workload::random(&mut dice, MOST);
        let recording = record(&workload, RIGHT_ORDER, &mut dice);
        for moment in &recording.report.moments {
            let state = recording.crash(moment, &mut dice);
            match survive(&workload, &state, &moment.acknowledged, &mut dice, CRASHES, false) {
                Ok(more) => states += more,
                Err(why) => {
                    println!("found after {states} states: {why}");
                    return;
                }
            }
        }
        assert!(states < STATES, "not found in {states} states");
    }
}
