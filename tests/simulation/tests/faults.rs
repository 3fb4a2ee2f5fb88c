//! Faults while a small copy runs, at every call of each disk: never an acknowledgement of bad data, and always a way on.
//! Lies of a disk, which no order of flushes can survive: a read-back finds every one that did harm.

use disk::sim::{Call, CrashModel, Fault, Rule, SimDisk, When};
use novaferry_simulation::attempt::{Begin, RIGHT_ORDER, Report, Terms, run};
use novaferry_simulation::content::{Volume, ids_of, key};
use novaferry_simulation::crash::{State, Workload, survive};
use volume::conformance::Dice;
use volume::{ByteLen, CHUNK, EXTENT, Op};

/// Seeds of each fault: other orders of the same copy.
const SEEDS: u64 = 3;

/// Three extents: new data, a changed page, and zeros over old data.
fn workload() -> Workload {
    let size = ByteLen(2 * EXTENT + CHUNK + 100);
    let mut new = [0; 34];
    let mut old = [0; 34];
    (new[0], new[5], new[16], new[32]) = (1, 2, 19, 4);
    (old[0], old[16], old[20], old[33]) = (7, 3, 5, 6);
    let old = Volume::new(size, &old);
    Workload { source: Volume::new(size, &new), under: old, begin: Begin::Unread }
}

fn attempt(workload: &Workload, data: &SimDisk, journal: &SimDisk, dice: &mut Dice) -> Report {
    let header = engine::journal::HeaderV1 {
        session: volume::SessionId([9; 16]),
        size: workload.source.size(),
        key_id: key().id(),
    };
    let terms = Terms {
        source: &workload.source,
        data,
        journal,
        journal_end: (engine::journal::HEADER_LEN as u64, header.chain()),
        known: std::collections::BTreeMap::new(),
        begin: workload.begin.clone(),
        remembered: None,
        order: RIGHT_ORDER,
        takes_back: true,
    };
    run(terms, dice)
}

/// Calls of one kind that a copy without faults makes on the data disk and on the journal's.
fn calls(workload: &Workload, call: Call, seed: u64) -> [u64; 2] {
    let counts = |on_journal: bool| {
        let mut dice = Dice::new(seed);
        let (data, journal) = workload.disks(&mut dice);
        let disk = if on_journal { &journal } else { &data };
        // Short transfers change nothing but the number of steps: each call that they strike is one of its kind.
        disk.inject(Rule::new(call, When::Always, Fault::Short));
        attempt(workload, &data, &journal, &mut dice).outcome.expect("nothing is wrong");
        disk.faults_fired()
    };
    [counts(false), counts(true)]
}

/// Runs the copy once for every call that a fault can strike. `check` gets both disks and what the attempt came to.
#[expect(clippy::print_stdout, reason = "shown only when a test fails: which fault it was")]
fn at_every_call(
    call: Call,
    fault: Fault,
    mut check: impl FnMut(&Workload, &SimDisk, &SimDisk, &Report, &mut Dice),
) -> u64 {
    let workload = workload();
    let mut runs = 0;
    for seed in 0..SEEDS {
        for (on_journal, count) in calls(&workload, call, seed).into_iter().enumerate() {
            for index in 0..count {
                println!("{fault:?} at {call:?} {index} of disk {on_journal}, seed {seed}");
                let mut dice = Dice::new(seed);
                let (data, journal) = workload.disks(&mut dice);
                let disk = if on_journal == 1 { &journal } else { &data };
                disk.inject(Rule::new(call, When::Nth(index), fault));
                let report = attempt(&workload, &data, &journal, &mut dice);
                assert_eq!(disk.faults_fired(), 1, "the fault struck");
                check(&workload, &data, &journal, &report, &mut dice);
                runs += 1;
            }
        }
    }
    assert!(runs > 0, "no call of this kind was made");
    runs
}

/// What was acknowledged is there after a crash now, and the copy can be completed from there.
fn survives(workload: &Workload, data: &SimDisk, journal: &SimDisk, report: &Report, dice: &mut Dice) {
    let acknowledged = &report.moments.last().expect("there is a first moment").acknowledged;
    for reorder in [false, true] {
        let model = CrashModel { sector: 512, reorder };
        let state = State { data: data.crash(model, dice), journal: journal.crash(model, dice) };
        survive(workload, &state, acknowledged, dice, 0, true).expect("it goes on after the fault");
    }
}

#[test]
fn errors_end_the_attempt_and_it_goes_on_from_there() {
    for (call, fault) in [
        (Call::Read, Fault::Io),
        (Call::Write, Fault::Io),
        (Call::Write, Fault::NoSpace),
        (Call::Write, Fault::Torn { sector: 512 }),
        (Call::Write, Fault::Torn { sector: 4096 }),
        (Call::Zero, Fault::Io),
        (Call::Zero, Fault::NoSpace),
        (Call::Flush, Fault::Io),
        (Call::Flush, Fault::NoSpace),
    ] {
        let runs = at_every_call(call, fault, |workload, data, journal, report, dice| {
            assert!(report.outcome.is_err(), "an error is not swallowed");
            survives(workload, data, journal, report, dice);
        });
        println!("{runs} runs");
    }
}

#[test]
fn a_failed_flush_poisons_the_disk() {
    at_every_call(Call::Flush, Fault::Io, |_, data, journal, _, _| {
        let poisoned = [data, journal].into_iter().filter(|disk| {
            let error = novaferry_simulation::run(volume::Sink::flush(*disk), || ()).err();
            error.is_some_and(|error| error.op() == Op::Flush && error.kind() == volume::Kind::Poisoned)
        });
        assert_eq!(poisoned.count(), 1, "what failed to flush is never flushed again");
    });
}

#[test]
fn short_transfers_and_stalls_change_nothing() {
    for call in [Call::Read, Call::Write, Call::Zero, Call::Flush] {
        for fault in [Fault::Short, Fault::Stall] {
            at_every_call(call, fault, |workload, data, journal, report, dice| {
                report.outcome.as_ref().expect("it is no failure");
                assert!(data.durable() == workload.source.bytes(), "sealed with other content");
                survives(workload, data, journal, report, dice);
            });
        }
    }
}

/// Ids of what a read-back finds equal those of the source.
fn reads_back(workload: &Workload, disk: &SimDisk) -> bool {
    let size = workload.source.size();
    let len = usize::try_from(size.0).expect("it fits memory");
    let found = novaferry_simulation::attempt::read(disk, 0, len).expect("it can be read");
    let wanted: Vec<_> = (0..size.extents()).flat_map(|extent| workload.source.ids(extent)).collect();
    ids_of(size, &found) == wanted
}

#[test]
fn a_read_back_finds_every_lie_that_did_harm() {
    for (call, fault) in [
        (Call::Write, Fault::Lost),
        (Call::Write, Fault::Volatile),
        (Call::Write, Fault::Misdirected { block: 4096 }),
        (Call::Write, Fault::Misdirected { block: CHUNK }),
        (Call::Zero, Fault::Lost),
        (Call::Read, Fault::BitFlip),
    ] {
        let mut harmed = 0;
        let runs = at_every_call(call, fault, |workload, data, _, report, _| {
            // Read again after the power was off: until then a volatile write is there.
            let after = SimDisk::holding(data.durable(), 0);
            let right = data.durable() == workload.source.bytes();
            assert_eq!(reads_back(workload, &after), right, "the read-back tells the truth");
            if report.outcome.is_ok() && !right {
                harmed += 1;
            }
            if fault == Fault::BitFlip {
                // A wrong bit on the way in makes a chunk differ; it is sent, or refused: never believed.
                assert!(report.outcome.is_err() || right, "a flipped bit was believed");
            }
        });
        println!("{fault:?}: {harmed} of {runs} lies did harm, all were found");
        assert!(harmed > 0 || fault == Fault::BitFlip, "the lie never did harm: this proves nothing");
    }
    let workload = workload();
    let disk = SimDisk::holding(workload.source.bytes(), 1).with_faults([Rule::new(
        Call::Read,
        When::Nth(0),
        Fault::BitFlip,
    )]);
    assert!(!reads_back(&workload, &disk), "a flipped bit in the read-back itself is found");
    assert!(reads_back(&workload, &disk));
}

#[test]
fn a_flush_that_does_nothing_is_found_after_the_power_was_off() {
    let mut lost = 0;
    at_every_call(Call::Flush, Fault::Lost, |workload, data, _, report, _| {
        report.outcome.as_ref().expect("nobody was told");
        let after = SimDisk::holding(data.durable(), 0);
        let right = data.durable() == workload.source.bytes();
        assert_eq!(reads_back(workload, &after), right, "the read-back tells the truth");
        lost += u64::from(!right);
    });
    println!("{lost} flushes that did nothing lost data");
    assert!(lost > 0, "this proves nothing");
}
