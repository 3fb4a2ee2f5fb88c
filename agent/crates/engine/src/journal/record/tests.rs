use proptest::prelude::*;

use super::*;

fn header() -> HeaderV1 {
    HeaderV1 { session: SessionId([7; 16]), size: ByteLen(100 << 20), key_id: KeyId([9; 16]) }
}

fn entry() -> impl Strategy<Value = Entry> {
    let ids = proptest::collection::vec(any::<[u8; 32]>().prop_map(ChunkId), 1..=16);
    prop_oneof![
        (0_u64..100, ids)
            .prop_map(|(extent, ids)| Entry::Settled(Change::Extent { extent: ExtentIndex(extent), ids })),
        (0_u64..90, 1_u64..10)
            .prop_map(|(first, count)| Entry::Settled(Change::Zero { first: ExtentIndex(first), count })),
        (0_u64..90, 1_u64..10).prop_map(|(first, count)| Entry::Dirty { first: ExtentIndex(first), count }),
    ]
}

fn written(changes: &[Entry]) -> (Vec<u8>, Vec<u64>) {
    let mut out = header().encode().to_vec();
    let mut chain = word(&out[56..]);
    let mut ends = vec![out.len() as u64];
    for change in changes {
        chain = match change {
            Entry::Settled(change) => encode_change(change, chain, &mut out),
            Entry::Dirty { first, count } => encode_dirty(*first, *count, chain, &mut out),
        };
        ends.push(out.len() as u64);
    }
    (out, ends)
}

fn read(bytes: &[u8]) -> (Option<Replay>, Vec<Entry>) {
    let mut changes = Vec::new();
    let replay = replay(bytes, |change| changes.push(change)).unwrap();
    (replay, changes)
}

proptest! {
    #[test]
    fn what_was_written_is_replayed(changes in proptest::collection::vec(entry(), 0..20)) {
        let (bytes, ends) = written(&changes);
        let (replay, back) = read(&bytes);
        prop_assert_eq!(back, changes);
        let replay = replay.unwrap();
        prop_assert_eq!(replay.header, header());
        prop_assert_eq!(replay.end.len, *ends.last().unwrap());
        prop_assert!(!replay.end.torn);
    }

    #[test]
    fn a_torn_tail_keeps_every_whole_record(changes in proptest::collection::vec(entry(), 1..10), cut in any::<prop::sample::Index>()) {
        let (bytes, ends) = written(&changes);
        let cut = HEADER_LEN + cut.index(bytes.len() - HEADER_LEN);
        let whole = ends.iter().filter(|end| **end <= cut as u64).count() - 1;
        let (replay, back) = read(&bytes[..cut]);
        prop_assert_eq!(&back[..], &changes[..whole]);
        prop_assert_eq!(replay.unwrap().end.len, ends[whole]);
    }

    #[test]
    fn a_flipped_bit_ends_the_replay_before_it(changes in proptest::collection::vec(entry(), 1..6), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let (mut bytes, ends) = written(&changes);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let (replay, back) = read(&bytes);
        if at < HEADER_LEN {
            prop_assert!(replay.is_none());
        } else {
            let whole = ends.iter().filter(|end| **end <= at as u64).count() - 1;
            prop_assert_eq!(&back[..], &changes[..whole]);
            prop_assert!(replay.unwrap().end.torn);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        read(&bytes);
        let mut with_header = header().encode().to_vec();
        with_header.extend_from_slice(&bytes);
        read(&with_header);
    }
}

#[test]
fn records_of_an_older_journal_in_the_same_place_are_not_believed() {
    let zero = |first| Entry::Settled(Change::Zero { first: ExtentIndex(first), count: 1 });
    let (old, ends) = written(&[zero(1), zero(2), zero(3)]);
    let (new, new_ends) = written(&[zero(4)]);
    let mut mixed = new.clone();
    mixed.extend_from_slice(&old[usize::try_from(ends[1]).unwrap()..]);
    let (replay, back) = read(&mixed);
    assert_eq!(back, [zero(4)]);
    assert_eq!(replay.unwrap().end.len, new_ends[1]);
}

#[test]
fn the_header_is_frozen() {
    let mut expected = b"NFJOURNL\x01\0\0\0\0\0\0\0".to_vec();
    expected.extend([7; 16]);
    expected.extend((100_u64 << 20).to_le_bytes());
    expected.extend([9; 16]);
    let checksum = xxh3_64(&expected);
    expected.extend(checksum.to_le_bytes());
    assert_eq!(header().encode()[..], expected);
}
