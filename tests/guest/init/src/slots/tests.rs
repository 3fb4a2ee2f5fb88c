use proptest::prelude::*;

use super::{Block, Disk, Found, MAX_SLOTS, Table, Verifier, Wrong};

/// The blocks of a disk after `writes` writes, header first.
fn image(disk: Disk, writes: u64) -> Vec<Block> {
    let mut blocks = vec![Block::ZERO; usize::try_from(disk.slots()).unwrap() + 1];
    blocks[0] = disk.header();
    for sequence in 1..=writes {
        blocks[usize::try_from(disk.slot_of(sequence)).unwrap()] = disk.block(sequence);
    }
    blocks
}

fn verify(disk: Disk, blocks: &[Block]) -> Result<u64, Vec<Wrong>> {
    let mut verifier = Verifier::new(disk);
    blocks[1..].iter().for_each(|block| verifier.add(block));
    verifier.finish().map(|table| table.last())
}

proptest! {
    #[test]
    fn every_number_of_writes_makes_a_disk(id: u64, slots in 1..64_u64, writes in 0..200_u64) {
        let disk = Disk::new(id, slots).unwrap();
        let blocks = image(disk, writes);
        prop_assert_eq!(Disk::from_header(&blocks[0]), Some(disk));
        prop_assert_eq!(verify(disk, &blocks), Ok(writes));
    }

    #[test]
    fn a_lost_write_is_found(id: u64, slots in 2..64_u64, writes in 2..200_u64, lost in 1..200_u64) {
        let disk = Disk::new(id, slots).unwrap();
        // A write that is the last of its slot and not the last of all.
        let lost = lost % (writes - 1) + 1;
        let slot = disk.slot_of(lost);
        prop_assume!((lost + 1..=writes).all(|later| disk.slot_of(later) != slot));
        let mut blocks = image(disk, writes);
        let at = usize::try_from(slot).unwrap();
        blocks[at] = image(disk, lost - 1)[at].clone();
        let wrong = verify(disk, &blocks).unwrap_err();
        prop_assert_eq!(wrong.len(), 1);
        prop_assert_eq!((wrong[0].slot, wrong[0].expected), (slot, lost));
    }

    #[test]
    fn one_wrong_bit_is_found(id: u64, at in 0..4096_usize, bit in 0..8_u32) {
        let disk = Disk::new(id, 1).unwrap();
        let mut blocks = image(disk, 5);
        blocks[1].0[at] ^= 1_u8 << bit;
        // In magic or id it makes the slot another's, and then no write is left to tell it from a fresh disk.
        let expected = if at < 16 { Found::Nothing } else { Found::Garbage };
        prop_assert_eq!(disk.read(1, &blocks[1]), expected);
        blocks[0].0[at] ^= 1_u8 << bit;
        prop_assert_eq!(Disk::from_header(&blocks[0]), None);
    }
}

#[test]
fn a_header_is_of_one_number_of_slots() {
    for slots in [1, 2, 64, MAX_SLOTS] {
        let header = Disk::new(0, slots).unwrap().header();
        assert_eq!(Disk::from_header(&header).map(|disk| disk.slots()), Some(slots));
        for bit in 0..64 {
            let mut wrong = header.clone();
            wrong.0[16 + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Disk::from_header(&wrong), None, "{slots} slots, bit {bit}");
        }
    }
}

#[test]
fn another_guests_writes_are_nothing_and_misplaced_ones_garbage() {
    let (own, other) = (Disk::new(1, 8).unwrap(), Disk::new(2, 8).unwrap());
    assert_eq!(own.read(other.slot_of(3), &other.block(3)), Found::Nothing);
    assert_eq!(own.read(own.slot_of(3), &own.block(3)), Found::Write(3));
    assert_eq!(own.read(own.slot_of(3) % 8 + 1, &own.block(3)), Found::Garbage);
    assert_eq!(own.read(own.slot_of(0), &own.block(0)), Found::Garbage);
}

#[test]
fn the_table_follows_the_writes() {
    let disk = Disk::new(9, 4).unwrap();
    let mut table = Table::after(disk, 0);
    for sequence in 1..=50 {
        let (slot, held) = table.next();
        assert_eq!(slot, disk.slot_of(sequence));
        assert_eq!(held, (1..sequence).rev().find(|earlier| disk.slot_of(*earlier) == slot));
        table.write();
    }
    assert_eq!(table.last(), 50);
}

#[test]
fn slots_that_were_not_read_hold_nothing() {
    let disk = Disk::new(9, 4).unwrap();
    assert_eq!(Verifier::new(disk).finish().unwrap().last(), 0);
    let blocks = image(disk, 50);
    assert_eq!(verify(disk, &blocks[..4]).unwrap_err().len(), 1);
}

#[test]
fn a_disk_has_a_slot_and_not_too_many() {
    assert_eq!(Disk::new(1, 0), None);
    assert!(Disk::new(1, MAX_SLOTS).is_some());
    assert_eq!(Disk::new(1, MAX_SLOTS + 1), None);
}
