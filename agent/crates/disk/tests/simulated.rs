//! The simulated disk: what each fault does, and which states a crash may leave.

#[path = "harness/shared.rs"]
mod harness;

use std::collections::HashSet;
use std::task::{Context, Waker};

use harness::block_on;
use novaferry_disk::sim::{Call, CrashModel, Fate, Fault, Rule, SimDisk, When};
use volume::conformance::{Dice, read_all};
use volume::{Buffer, ByteLen, ByteOffset, ByteRange, Kind, Sink, Source, VolumeError, ZeroMode};

fn filled(len: usize, byte: u8) -> Buffer {
    let mut buffer = Buffer::heap(len);
    buffer.fill(byte);
    buffer
}

fn write(disk: &SimDisk, at: u64, len: usize, byte: u8) -> Result<(), VolumeError> {
    block_on(async {
        let (result, buffer) = disk.write_at(ByteOffset(at), filled(len, byte)).await;
        assert_eq!(buffer.len(), len);
        result
    })
}

fn flush(disk: &SimDisk) -> Result<(), VolumeError> {
    block_on(disk.flush())
}

fn disk(rules: impl IntoIterator<Item = Rule>) -> SimDisk {
    SimDisk::new(ByteLen(64 << 10), 1).with_faults(rules)
}

#[test]
fn errors_strike_when_told() {
    let disk = disk([
        Rule::new(Call::Write, When::Nth(1), Fault::Io),
        Rule::new(Call::Write, When::Nth(1), Fault::NoSpace),
        Rule::new(Call::Read, When::Call(4), Fault::Io),
    ]);
    write(&disk, 0, 512, 1).unwrap();
    assert_eq!(write(&disk, 0, 512, 2).unwrap_err().kind(), Kind::Io);
    assert_eq!(write(&disk, 0, 512, 3).unwrap_err().kind(), Kind::NoSpace);
    write(&disk, 512, 512, 4).unwrap();
    let (result, _) = block_on(disk.read_at(ByteOffset(0), Buffer::heap(512)));
    assert_eq!(result.unwrap_err().kind(), Kind::Io);
    assert_eq!((disk.calls(), disk.faults_fired()), (5, 3));
    let bytes = block_on(read_all(&disk));
    assert!(bytes[..512].iter().all(|b| *b == 1) && bytes[512..1024].iter().all(|b| *b == 4));
}

#[test]
fn a_failed_flush_poisons() {
    let disk = disk([Rule::new(Call::Flush, When::Nth(1), Fault::Io)]);
    write(&disk, 0, 512, 1).unwrap();
    flush(&disk).unwrap();
    write(&disk, 512, 512, 2).unwrap();
    assert_eq!(flush(&disk).unwrap_err().kind(), Kind::Io);
    assert_eq!(flush(&disk).unwrap_err().kind(), Kind::Poisoned);
    assert_eq!(write(&disk, 0, 1, 1).unwrap_err().kind(), Kind::Poisoned);
    block_on(async {
        let range = ByteRange { start: 0, end: 1 };
        assert_eq!(disk.zero(range, ZeroMode::Allocate).await.unwrap_err().kind(), Kind::Poisoned);
        assert_eq!(disk.read_at(ByteOffset(0), Buffer::heap(1)).await.0.unwrap_err().kind(), Kind::Poisoned);
        assert_eq!(disk.next_data(ByteOffset(0)).await.unwrap_err().kind(), Kind::Poisoned);
        assert_eq!(disk.fingerprint().await.unwrap_err().kind(), Kind::Poisoned);
    });
    assert!(disk.durable()[..512].iter().all(|b| *b == 1), "what was flushed before stays");
}

#[test]
fn stalls_wait_for_release_and_abandoned_writes_may_still_land() {
    let disk = disk([Rule::new(Call::Write, When::Always, Fault::Stall)]);
    let mut context = Context::from_waker(Waker::noop());
    let mut kept = disk.write_at(ByteOffset(0), filled(512, 1));
    let mut dropped = disk.write_at(ByteOffset(512), filled(512, 2));
    assert!(kept.as_mut().poll(&mut context).is_pending());
    assert!(dropped.as_mut().poll(&mut context).is_pending());
    assert_eq!(disk.stalled(), 2);
    drop(dropped);
    assert_eq!((disk.stalled(), disk.release()), (1, 1));
    assert!(kept.as_mut().poll(&mut context).is_ready());
    let view = disk.view();
    assert!(view[..512].iter().all(|b| *b == 1) && view[512..].iter().all(|b| *b == 0));
    flush(&disk).unwrap();
    assert_eq!(disk.unflushed(), 1, "the abandoned write is still out there");
    let landed = disk.crash_with(512, |_| Fate::Complete);
    assert!(landed.durable()[512..1024].iter().all(|b| *b == 2));
}

#[test]
fn a_torn_write_fails_and_leaves_some_sectors() {
    let disk = disk([Rule::new(Call::Write, When::Always, Fault::Torn { sector: 512 })]);
    assert_eq!(write(&disk, 0, 32 << 10, 1).unwrap_err().kind(), Kind::Io);
    let sectors: Vec<bool> = disk.view()[..32 << 10]
        .chunks(512)
        .map(|sector| {
            assert!(sector.iter().all(|b| *b == sector[0]), "a sector is whole");
            sector[0] == 1
        })
        .collect();
    assert!(sectors.contains(&true) && sectors.contains(&false));
}

#[test]
fn lies_are_told() {
    assert!(
        [Fault::Lost, Fault::Volatile, Fault::Misdirected { block: 512 }, Fault::BitFlip]
            .iter()
            .all(|f| f.is_lie())
    );
    assert!(![Fault::Io, Fault::Short, Fault::Stall, Fault::Torn { sector: 512 }].iter().any(|f| f.is_lie()));

    let lost = disk([Rule::new(Call::Write, When::Nth(0), Fault::Lost)]);
    write(&lost, 0, 512, 1).unwrap();
    flush(&lost).unwrap();
    assert!(lost.view().iter().all(|b| *b == 0));

    let volatile = disk([Rule::new(Call::Write, When::Nth(0), Fault::Volatile)]);
    write(&volatile, 0, 512, 1).unwrap();
    flush(&volatile).unwrap();
    assert!(volatile.view()[..512].iter().all(|b| *b == 1));
    let after = volatile.crash(CrashModel::default(), &mut Dice::new(1));
    assert!(after.view().iter().all(|b| *b == 0), "lost although the flush succeeded");

    let flushless = disk([Rule::new(Call::Flush, When::Always, Fault::Lost)]);
    write(&flushless, 0, 512, 1).unwrap();
    flush(&flushless).unwrap();
    assert!(flushless.crash_with(512, |_| Fate::Absent).view().iter().all(|b| *b == 0));

    let misdirected = disk([Rule::new(Call::Write, When::Nth(0), Fault::Misdirected { block: 4096 })]);
    write(&misdirected, 4096, 4096, 1).unwrap();
    let view = misdirected.view();
    assert!(view[4096..8192].iter().all(|b| *b == 0));
    assert_eq!(view.iter().filter(|b| **b == 1).count(), 4096, "it landed whole elsewhere");

    let flipped = disk([Rule::new(Call::Read, When::Nth(0), Fault::BitFlip)]);
    let (result, buffer) = block_on(flipped.read_at(ByteOffset(0), Buffer::heap(4096)));
    result.unwrap();
    assert_eq!(buffer.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
    let (_, again) = block_on(flipped.read_at(ByteOffset(0), Buffer::heap(4096)));
    assert!(again.iter().all(|b| *b == 0), "the medium is right");
}

#[test]
fn chances_follow_the_seed() {
    let run = |seed| {
        let rule = Rule::new(Call::Write, When::PerMillion(300_000), Fault::Io);
        let disk = SimDisk::new(ByteLen(4096), seed).with_faults([rule]);
        (0..64).map(|_| write(&disk, 0, 1, 1).is_err()).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    assert!(run(1).contains(&true) && run(1).contains(&false));
}

#[test]
fn a_crash_keeps_what_was_flushed_and_tears_the_rest_by_sector() {
    let disk = disk([]);
    write(&disk, 0, 4096, 1).unwrap();
    flush(&disk).unwrap();
    write(&disk, 0, 1024, 2).unwrap();
    write(&disk, 8192, 1024, 3).unwrap();
    assert_eq!(disk.unflushed(), 2);
    let mut seen = HashSet::new();
    let mut dice = Dice::new(7);
    for _ in 0..2000 {
        let after = disk.crash(CrashModel::default(), &mut dice).view();
        assert!(after[1024..4096].iter().all(|b| *b == 1), "flushed bytes are there");
        let sectors: Vec<u8> = after.chunks(512).map(|sector| sector[0]).collect();
        assert!(after.chunks(512).all(|sector| sector.iter().all(|b| *b == sector[0])));
        assert!(sectors[..2].iter().all(|b| [1, 2].contains(b)));
        assert!(sectors[16..18].iter().all(|b| [0, 3].contains(b)));
        seen.insert(sectors);
    }
    assert_eq!(seen.len(), 16, "two writes of two sectors each leave 16 states");
}

#[test]
fn overlapping_writes_reorder_only_when_asked() {
    let disk = disk([]);
    write(&disk, 0, 512, 1).unwrap();
    write(&disk, 0, 512, 2).unwrap();
    assert_eq!(disk.crash_with(512, |_| Fate::Complete).view()[0], 2);
    for reorder in [false, true] {
        let (mut dice, mut first_wins) = (Dice::new(3), 0);
        for _ in 0..500 {
            let model = CrashModel { sector: 512, reorder };
            first_wins += u32::from(disk.crash(model, &mut dice).view()[0] == 1);
        }
        // Without reordering the first one stays only where the second is absent or its sector torn away.
        assert!(if reorder { first_wins > 190 } else { first_wins < 190 }, "{reorder}: {first_wins}");
    }
}

#[test]
fn history_yields_every_state_of_every_moment() {
    let mut base = vec![0; 4096];
    base[4095] = 9;
    let disk = SimDisk::holding(base, 1).recording();
    write(&disk, 0, 512, 1).unwrap();
    write(&disk, 512, 512, 2).unwrap();
    flush(&disk).unwrap();
    block_on(disk.zero(ByteRange { start: 0, end: 512 }, ZeroMode::Deallocate)).unwrap();
    let history = disk.history().unwrap();
    assert_eq!(history.moments(), 5);
    assert_eq!((0..5).map(|m| history.flushes(m)).collect::<Vec<_>>(), [0, 0, 0, 1, 1]);
    let firsts = |moment| -> Vec<(u8, u8)> {
        let states = history.crash_states(moment, 16).unwrap();
        states.iter().map(|state| (state.view()[0], state.view()[512])).collect()
    };
    assert_eq!(firsts(0), [(0, 0)]);
    assert_eq!(firsts(2), [(0, 0), (1, 0), (0, 2), (1, 2)]);
    assert_eq!(firsts(3), [(1, 2)]);
    assert_eq!(firsts(4), [(1, 2), (0, 2)]);
    assert!(history.crash_states(2, 3).is_none());
    let mut dice = Dice::new(1);
    for moment in 0..history.moments() {
        let state = history.crash_at(moment, CrashModel { sector: 4096, reorder: true }, &mut dice);
        assert!(moment < 3 || state.view()[512] == 2);
        assert_eq!(state.view()[4095], 9, "what was there before stays");
    }
}
