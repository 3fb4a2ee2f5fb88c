//! Packets by hand, and what no peer of ours would send.

use proptest::prelude::*;

use super::*;
use crate::error::{Kind, Op};

/// A packet with a raw body.
fn packet(pages: u8, loose: &[PageBytes], body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let mut packet = vec![1, 1, pages, u8::try_from(loose.len()).unwrap()];
    packet.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    packet.extend_from_slice(&body);
    packet.extend_from_slice(loose.as_flattened());
    packet
}

fn kind_of(packet: &[u8], pages: usize) -> Kind {
    let error = Pair::new(4).decode(packet, pages).expect_err("it must be refused");
    assert!(error.to_string().contains("check the peer"), "{error}");
    error.kind()
}

#[test]
fn every_kind_is_laid_out_as_specified() {
    let (a, b, c, d) = ([0xaa; PAGE_BYTES], [0xbb; PAGE_BYTES], [0xcc; PAGE_BYTES], [0xdd; PAGE_BYTES]);
    // Block 1 and 63; words 0 and 7 of block 1, word 2 of block 63.
    let mask = [0x02, 0, 0, 0, 0, 0, 0, 0x80, 0x81, 0x04];
    let words = [[1; 8], [2; 8], [3; 8]].concat();
    let all = packet(
        9,
        &[c, d],
        &[
            // packed stored, packed, loose, loose stored, zero, copy, delta kept, delta, copy
            &[4, 1, 3, 1, 5, 1, 6, 1, 1, 1, 2, 1, 8, 1, 7, 1, 2, 1],
            // Slots 2, 300, 2, 2, 300, 2 from what is expected: +2, +297, -299, -1, +297, -299
            &[0x04, 0xd2, 0x04, 0xd5, 0x04, 0x01, 0xd2, 0x04, 0xd5, 0x04],
            &mask,
            &mask,
            &words,
            &words,
            &a,
            &b,
        ],
    );
    let mut pair = Pair::new(301);
    let decoded = pair.decode(&all, 9).unwrap();
    // By reference: rustc 1.95 compiles two calls of a closure with the same array by value wrongly (MIR pass GVN).
    let changed = |old: &PageBytes| {
        let mut page = *old;
        for (start, value) in [(64, 1), (64 + 56, 2), (63 * 64 + 16, 3)] {
            page[start..start + 8].iter_mut().for_each(|byte| *byte ^= value);
        }
        page
    };
    let expected = [a, b, c, d, [0; PAGE_BYTES], a, changed(&a), changed(&d), changed(&a)];
    for (n, (got, want)) in decoded.as_chunks().0.iter().zip(&expected).enumerate() {
        assert!(got == want, "page {n}");
    }
    assert_eq!(decoded.len(), expected.as_flattened().len());
    // Slot 300 was read only.
    let copy = packet(1, &[], &[&[2, 1, 0xd8, 0x04]]);
    assert!(pair.decode(&copy, 1).unwrap() == d);
    let unpacked = format!("{:?} {:?}", pair.unpacker.unpack(&copy, 1).unwrap(), pair.decoder);
    assert!(unpacked.contains("1 pages"), "{unpacked}");
}

#[test]
fn our_own_encoder_writes_these_bytes() {
    let mut pair = Pair::new(4);
    let (a, z) = ([0xaa; PAGE_BYTES], [0; PAGE_BYTES]);
    let pages = vec![page(0, &a), page(4096, &z), page(8192, &a), page(0, &a)];
    let (bytes, _) = pair.encode(0, 1, pages, Choice::Raw);
    assert_eq!(bytes, packet(4, &[], &[&[4, 1, 1, 1, 2, 2], &[0, 1, 1], &a]));
    let mut b = a;
    b[8] = 0xab;
    let (bytes, _) = pair.encode(0, 2, vec![page(0, &b), page(4096, &b)], Choice::Raw);
    let delta = [1, 0, 0, 0, 0, 0, 0, 0, 0b10, 1, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(bytes, packet(2, &[], &[&[8, 1, 2, 1], &[0, 1], &delta]));
}

#[test]
fn headers_are_checked() {
    let good = packet(1, &[], &[&[1, 1]]);
    assert!(Pair::new(0).decode(&good, 1).unwrap() == [0; PAGE_BYTES]);
    for cut in 0..good.len() {
        assert_eq!(kind_of(&good[..cut], 1), Kind::WrongLength, "{cut} bytes");
    }
    let change = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    assert_eq!(kind_of(&change(0, 0), 1), Kind::UnknownVersion);
    assert_eq!(kind_of(&change(0, 2), 1), Kind::UnknownVersion);
    assert_eq!(kind_of(&change(1, 0), 1), Kind::Corrupt);
    assert_eq!(kind_of(&change(1, 3), 1), Kind::Corrupt);
    assert_eq!(kind_of(&change(2, 0), 0), Kind::WrongLength);
    assert_eq!(kind_of(&change(2, 129), 129), Kind::WrongLength);
    assert_eq!(kind_of(&good, 2), Kind::WrongLength, "other pages than expected");
    assert_eq!(kind_of(&change(3, 2), 1), Kind::WrongLength, "more loose than pages");
    assert_eq!(kind_of(&change(3, 1), 1), Kind::WrongLength, "the loose page is missing");
    assert_eq!(kind_of(&change(4, 3), 1), Kind::WrongLength);
    assert_eq!(kind_of(&change(7, 0xff), 1), Kind::WrongLength, "a huge body");
    assert_eq!(kind_of(&[good.clone(), vec![0; MAX_PACKET]].concat(), 1), Kind::WrongLength);
    assert_eq!(kind_of(&[good, vec![0]].concat(), 1), Kind::WrongLength);
}

#[test]
fn bodies_are_checked() {
    let plain = [5; PAGE_BYTES];
    let refused: [(Kind, u8, &[&[u8]]); 17] = [
        (Kind::Corrupt, 1, &[]),
        (Kind::Corrupt, 1, &[&[1]]),
        (Kind::WrongLength, 1, &[&[1, 0]]),
        (Kind::WrongLength, 1, &[&[1, 2]]),
        (Kind::Corrupt, 2, &[&[1, 1]]),
        (Kind::Corrupt, 1, &[&[0, 1]]),
        (Kind::Corrupt, 1, &[&[9, 1]]),
        (Kind::WrongLength, 1, &[&[1, 1, 0]]),
        (Kind::Corrupt, 1, &[&[2, 1]]),
        (Kind::Corrupt, 1, &[&[2, 1, 0x80]]),
        (Kind::Corrupt, 1, &[&[2, 1, 0x80, 0x80, 0x80, 0x80, 0x80, 0]]),
        (Kind::Corrupt, 1, &[&[2, 1, 1]]),
        (Kind::Corrupt, 1, &[&[2, 1, 0xff, 0xff, 0xff, 0xff, 0x7f]]),
        (Kind::WrongLength, 1, &[&[3, 1], &plain[1..]]),
        (Kind::WrongLength, 1, &[&[5, 1]]),
        (Kind::Corrupt, 1, &[&[8, 1, 0], &[1, 0, 0, 0, 0, 0, 0, 0]]),
        (Kind::Corrupt, 1, &[&[8, 1, 0], &[1, 0, 0, 0, 0, 0, 0, 0, 1], &[0; 7]]),
    ];
    for (kind, pages, body) in refused {
        assert_eq!(kind_of(&packet(pages, &[], body), usize::from(pages)), kind, "{body:02x?}");
    }
    assert_eq!(kind_of(&packet(1, &[plain], &[&[1, 1]]), 1), Kind::WrongLength, "a loose page too many");
}

#[test]
fn empty_and_missing_slots_are_refused_and_a_reset_empties_all() {
    let mut pair = Pair::new(4);
    let read = |slot: u8| packet(2, &[], &[&[1, 1, 2, 1], &[slot * 2]]);
    let delta = packet(1, &[], &[&[8, 1, 0], &[0; 8]]);
    for bytes in [read(0), read(3), read(4), read(60)] {
        let error = pair.decode(&bytes, 2).unwrap_err();
        assert_eq!((error.kind(), error.op()), (Kind::Refused, Op::DecodePages));
    }
    assert_eq!(pair.decode(&delta, 1).unwrap_err().kind(), Kind::Refused);
    let write = |slot: u8| packet(1, &[], &[&[4, 1, slot * 2], &[6; PAGE_BYTES]]);
    assert_eq!(pair.decode(&write(4), 1).unwrap_err().kind(), Kind::Refused);
    pair.decode(&write(3), 1).unwrap();
    pair.decode(&read(3), 2).unwrap();
    pair.decoder.reset();
    assert_eq!(pair.decode(&read(3), 2).unwrap_err().kind(), Kind::Refused);
}

/// A packet of each kind of content, and slots that it can refer to.
fn valid() -> (Pair, Vec<u8>) {
    let mut dice = Dice::new(5);
    let mut memory: Vec<PageBytes> =
        (0..8).map(|n| if n < 4 { text_page(&mut dice) } else { random_page(&mut dice) }).collect();
    let mut pair = Pair::new(16);
    pair.transfer(0, 1, sequence(&memory[..6]), FAST);
    memory[0][9] ^= 1;
    memory[2] = text_page(&mut dice);
    memory[3] = [0; PAGE_BYTES];
    let (packet, stats) = pair.encode(0, 2, sequence(&memory), FAST);
    assert!(stats.zero == 1 && stats.same == 3 && stats.delta == 1 && stats.plain == 3, "{stats:?}");
    (pair, packet)
}

proptest! {
    #[test]
    fn changed_packets_give_an_error_or_as_many_pages(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<Option<prop::sample::Index>>()
    ) {
        let (mut pair, mut packet) = valid();
        // Mostly in the tables: the loose pages at the end are 8 KiB of the packet.
        let tables = packet.len() - 2 * PAGE_BYTES;
        for (at, value) in changes {
            let at = at.index(tables);
            packet[at] ^= value;
        }
        if let Some(cut) = cut {
            packet.truncate(cut.index(packet.len()));
        }
        if let Ok(pages) = pair.decode(&packet, 8) {
            prop_assert_eq!(pages.len(), 8 * PAGE_BYTES);
        }
    }

    #[test]
    fn arbitrary_bodies_give_an_error_or_as_many_pages(pages in 1_u8..=128, body in proptest::collection::vec(0_u8..12, 0..600)) {
        let packet = packet(pages, &[], &[&body]);
        if let Ok(decoded) = Pair::new(4).decode(&packet, usize::from(pages)) {
            prop_assert_eq!(decoded.len(), usize::from(pages) * PAGE_BYTES);
        }
    }
}
