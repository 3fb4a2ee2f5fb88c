//! What may refer to what, before and after acknowledgements; eviction; bounds of the sender.

use super::*;
use crate::error::Kind;

/// Sends one page, returns how.
fn send(pair: &mut Pair, channel: u8, number: u64, offset: u64, bytes: &PageBytes) -> PacketStats {
    pair.encode(channel, number, vec![page(offset, bytes)], FAST).1
}

#[test]
fn a_slot_is_read_by_its_own_channel_at_once_and_by_others_after_the_acknowledgement() {
    let bytes = random_page(&mut Dice::new(1));
    let mut pair = Pair::new(8);
    assert_eq!(send(&mut pair, 0, 1, 0, &bytes).plain, 1);
    assert_eq!(send(&mut pair, 0, 2, 0, &bytes).same, 1);
    assert_eq!(send(&mut pair, 0, 3, 4096, &bytes).copied, 1);
    assert_eq!(send(&mut pair, 1, 1, 0, &bytes).plain, 1, "not settled");
    pair.encoder.acknowledge(0, 1).unwrap();
    assert_eq!(send(&mut pair, 1, 2, 0, &bytes).same, 1, "the packet that wrote it is settled");
    assert_eq!(send(&mut pair, 2, 1, 8192, &bytes).copied, 1);
}

#[test]
fn a_slot_that_another_channel_may_still_read_is_not_overwritten() {
    let mut bytes = random_page(&mut Dice::new(1));
    let mut pair = Pair::new(8);
    send(&mut pair, 0, 1, 0, &bytes);
    pair.encoder.acknowledge(0, 1).unwrap();
    // Channel 1 refers to the first version; the delta of channel 0 must leave it alone.
    let (late, stats) = pair.encode(1, 1, vec![page(4096, &bytes)], FAST);
    assert_eq!(stats.copied, 1);
    let first = bytes;
    bytes[7] ^= 1;
    assert_eq!(send(&mut pair, 0, 2, 0, &bytes).delta, 1);
    assert_eq!(send(&mut pair, 0, 3, 0, &bytes).delta, 1, "the slot still holds the first version");
    pair.encoder.acknowledge(0, 3).unwrap();
    pair.encoder.acknowledge(1, 1).unwrap();
    assert_eq!(send(&mut pair, 0, 4, 0, &bytes).delta, 1, "now it is stored");
    assert_eq!(send(&mut pair, 0, 5, 0, &bytes).same, 1);
    // In the order that broke it if the rule were missing: all of channel 0, then channel 1.
    let mut pair = Pair::new(8);
    pair.transfer(0, 1, vec![page(0, &first)], FAST);
    let (again, _) = pair.encode(1, 1, vec![page(4096, &first)], FAST);
    assert_eq!(again, late);
    pair.transfer(0, 2, vec![page(0, &bytes)], FAST);
    assert!(pair.decode(&late, 1).unwrap() == first);
}

#[test]
fn a_slot_that_several_channels_used_waits_for_all_of_them() {
    let mut bytes = random_page(&mut Dice::new(1));
    let mut pair = Pair::new(1);
    send(&mut pair, 0, 1, 0, &bytes);
    pair.encoder.acknowledge(0, 1).unwrap();
    send(&mut pair, 1, 1, 0, &bytes);
    send(&mut pair, 2, 1, 0, &bytes);
    bytes[1] ^= 1;
    let mut stored = |pair: &mut Pair, number| {
        bytes[0] = bytes[0].wrapping_add(1);
        send(pair, 2, number, 0, &bytes);
        let stats = send(pair, 2, number + 1, 0, &bytes);
        stats.same == 1
    };
    assert!(!stored(&mut pair, 2));
    pair.encoder.acknowledge(1, 1).unwrap();
    assert!(!stored(&mut pair, 4), "channel 2 itself used it after it was shared");
    pair.encoder.acknowledge(2, 5).unwrap();
    assert!(stored(&mut pair, 6));
}

#[test]
fn pages_that_come_again_outlive_those_that_come_once() {
    let mut dice = Dice::new(1);
    let hot: Vec<PageBytes> = (0..8).map(|_| random_page(&mut dice)).collect();
    let mut pair = Pair::new(32);
    let mut number = 0;
    let mut again = 0;
    for round in 0..20_u64 {
        number += 1;
        let stats = pair.transfer(0, number, sequence(&hot), FAST);
        again += u64::from(stats.same);
        let cold: Vec<PageBytes> = (0..16).map(|_| random_page(&mut dice)).collect();
        let first = 1 << 20;
        let pages =
            (0..16).map(|n| page(first + (round * 16 + n) * 4096, &cold[usize::try_from(n).unwrap()]));
        number += 1;
        let pages: Vec<Page<'_>> = pages.collect();
        assert_eq!(pair.transfer(0, number, pages, FAST).plain, 16);
    }
    assert_eq!(again, 19 * 8, "the hot pages were never given up");
}

#[test]
fn memory_stays_within_the_slots() {
    const SLOTS: u32 = 64;
    let mut dice = Dice::new(1);
    let mut pair = Pair::new(SLOTS);
    for number in 1..=100 {
        let memory: Vec<PageBytes> = (0..MAX_PAGES).map(|_| random_page(&mut dice)).collect();
        let pages = memory.iter().map(|bytes| page(dice.below(1 << 30) * 4096, bytes)).collect();
        pair.transfer(0, number, pages, FAST);
    }
    let pages = SLOTS as usize * PAGE_BYTES;
    assert!((pages..pages + pages / 8).contains(&pair.encoder.memory()), "{:?}", pair.encoder);
    assert!(format!("{:?} {:?}", pair.encoder, pair.decoder).contains("64 of 64 slots"));
}

#[test]
fn packets_beyond_the_table_of_unacknowledged_ones_use_no_slot() {
    let bytes = random_page(&mut Dice::new(1));
    let mut pair = Pair::new(4);
    for number in 0..16_384 {
        let stats = send(&mut pair, 0, number, 0, &bytes);
        assert_eq!(stats.plain, u32::from(number == 0));
    }
    assert_eq!(send(&mut pair, 0, 20_000, 0, &bytes).plain, 1);
    pair.encoder.acknowledge(0, 5).unwrap();
    assert_eq!(send(&mut pair, 0, 20_001, 0, &bytes).same, 1);
}

#[test]
fn packets_without_slots_need_no_acknowledgement() {
    let mut pair = Pair::new(0);
    let before = pair.encoder.memory();
    for number in 0..1000 {
        send(&mut pair, 0, number, 0, &[u8::try_from(number % 2).unwrap(); PAGE_BYTES]);
    }
    assert!(pair.encoder.memory() < before + 1024);
}

#[test]
fn numbers_rise_and_acknowledgements_are_of_what_was_sent() {
    let bytes = [1; PAGE_BYTES];
    let mut pair = Pair::new(4);
    send(&mut pair, 3, 7, 0, &bytes);
    let batch = Batch::new(vec![page(0, &bytes)]).unwrap();
    assert_eq!(pair.encoder.plan(3, 7, batch).unwrap_err().kind(), Kind::Refused);
    for (channel, number) in [(3, 8), (2, 0), (200, 1)] {
        let error = pair.encoder.acknowledge(channel, number).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused, "{error}");
    }
    pair.encoder.acknowledge(3, 7).unwrap();
    pair.encoder.acknowledge(3, 2).unwrap();
}

#[test]
fn a_batch_has_1_to_128_pages_and_a_level_is_checked() {
    let bytes = [1; PAGE_BYTES];
    assert_eq!(Batch::new(Vec::new()).unwrap_err().kind(), Kind::WrongLength);
    assert_eq!(Batch::new(vec![page(0, &bytes); 129]).unwrap_err().kind(), Kind::WrongLength);
    let mut pair = Pair::new(4);
    let plan = pair.encoder.plan(0, 1, Batch::new(vec![page(0, &bytes)]).unwrap()).unwrap();
    let mut out = Vec::new();
    assert_eq!(
        plan.pack(&mut pair.packer, Choice::Level(99), &mut out).unwrap_err().kind(),
        Kind::WrongLength
    );
    assert!(out.is_empty());
}
