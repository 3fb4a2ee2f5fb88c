use volume::EXTENT;

use super::*;

const ID: ChunkId = ChunkId([7; 32]);

fn head(extent: u64, plain_len: u64, chunks: Vec<ChunkEntry>) -> ExtentHead {
    let plain_len = u32::try_from(plain_len).expect("a payload fits 32 bits");
    ExtentHead {
        sequence: Sequence(2),
        floor: Sequence(1),
        extent: ExtentIndex(extent),
        encoding: Encoding::Raw,
        wire_len: plain_len,
        plain_len,
        chunks,
    }
}

/// A valid body whose bytes a test changes.
fn body(change: impl FnOnce(&mut Vec<u8>)) -> Result<ExtentHead, DecodeError> {
    let mut bytes = head(0, CHUNK, vec![ChunkEntry::Data(ID)]).encode()[FRAME_HEADER..].to_vec();
    change(&mut bytes);
    ExtentHead::decode(&bytes)
}

fn set_lengths(bytes: &mut [u8], wire_len: u32, plain_len: u32, encoding: u8) {
    bytes[24..28].copy_from_slice(&wire_len.to_le_bytes());
    bytes[28..32].copy_from_slice(&plain_len.to_le_bytes());
    bytes[32] = encoding;
}

fn invalid(field: &'static str, value: u64) -> DecodeError {
    DecodeError::Invalid { field, value }
}

#[test]
fn a_whole_extent_fills_the_cap_exactly() {
    let full = head(0, EXTENT, vec![ChunkEntry::Data(ID); CHUNKS_PER_EXTENT]);
    assert_eq!(full.encode().len(), FRAME_HEADER + crate::MAX_EXTENT_HEAD);
}

#[test]
fn payload_lengths_are_capped_and_ordered() {
    let max = u32::try_from(MAX_PAYLOAD).unwrap();
    let too_long = |field, value: u32| DecodeError::TooLong { field, value: value.into(), cap: max.into() };
    // Wire length, plain length, encoding, and what is wrong with it.
    let table = [
        (0, 0, 0, None),
        (max, max, 0, None),
        (max, max - 1, 0, Some(invalid("raw payload length", max.into()))),
        (0, 1, 0, Some(invalid("raw payload length", 0))),
        (1, 2, 1, None),
        (max - 1, max, 1, None),
        (max, max, 1, Some(invalid("compressed payload length", max.into()))),
        (0, 0, 1, Some(invalid("compressed payload length", 0))),
        (5, 4, 1, Some(invalid("compressed payload length", 5))),
        (max + 1, max + 1, 0, Some(too_long("payload", max + 1))),
        (1, max + 1, 1, Some(too_long("plain payload", max + 1))),
        (u32::MAX, 1, 0, Some(too_long("payload", u32::MAX))),
        (1, u32::MAX, 1, Some(too_long("plain payload", u32::MAX))),
        (1, 1, 2, Some(invalid("encoding", 2))),
        (1, 1, 255, Some(invalid("encoding", 255))),
    ];
    for (wire_len, plain_len, encoding, expected) in table {
        let result = body(|bytes| set_lengths(bytes, wire_len, plain_len, encoding));
        assert_eq!(result.err(), expected, "{wire_len} on the wire, {plain_len} plain, encoding {encoding}");
    }
}

#[test]
fn chunk_counts_are_bounded() {
    for count in [0, 17, 255_u8] {
        let error = invalid("chunk count", count.into());
        assert_eq!(body(|bytes| bytes[33] = count), Err(error));
    }
    // A count above what is there, and one below.
    assert_eq!(body(|bytes| bytes[33] = 2), Err(DecodeError::Truncated("extent head")));
    assert_eq!(
        body(|bytes| {
            bytes[33] = 1;
            bytes.extend_from_slice(&[1, 0, 0, 0]);
        }),
        Err(DecodeError::Trailing(4))
    );
}

#[test]
fn the_floor_is_at_most_the_sequence() {
    let set = |floor: u64| body(move |bytes| bytes[8..16].copy_from_slice(&floor.to_le_bytes()));
    assert!(set(2).is_ok());
    assert_eq!(set(3), Err(invalid("floor", 3)));
    assert_eq!(set(u64::MAX), Err(invalid("floor", u64::MAX)));
}

#[test]
fn chunk_kinds_and_masks_belong_together() {
    for kind in 0..=u8::MAX {
        for mask in [0, 1, 0x8000, u16::MAX] {
            let result = body(|bytes| {
                bytes[40] = kind;
                bytes[42..44].copy_from_slice(&mask.to_le_bytes());
                if kind == KIND_ZERO {
                    bytes.truncate(44);
                }
            });
            let expected = match (kind, mask) {
                (KIND_ZERO, 0) => Ok(ChunkEntry::Zero),
                (KIND_SAME, 0) => Ok(ChunkEntry::Same(ID)),
                (KIND_REFERENCE, 0) => Ok(ChunkEntry::Reference(ID)),
                (KIND_DATA, 0) => Ok(ChunkEntry::Data(ID)),
                (KIND_PAGES, 1..) => Ok(ChunkEntry::Pages(ID, mask)),
                (KIND_PAGES, 0) | (_, 1..) => Err(invalid("page mask", mask.into())),
                _ => Err(invalid("chunk kind", kind.into())),
            };
            assert_eq!(result.map(|head| head.chunks[0]), expected, "kind {kind} mask {mask:#x}");
        }
    }
}

#[test]
fn entries_know_their_id_and_payload() {
    let table = [
        (ChunkEntry::Zero, ChunkId::ZERO, 0, 0),
        (ChunkEntry::Same(ID), ID, 0, 0),
        (ChunkEntry::Reference(ID), ID, 0, 0),
        (ChunkEntry::Data(ID), ID, CHUNK, 700),
        (ChunkEntry::Pages(ID, u16::MAX), ID, CHUNK, 700),
        (ChunkEntry::Pages(ID, 0x8001), ID, 2 * PAGE, 700),
        (ChunkEntry::Pages(ID, 0x8000), ID, PAGE, 0),
    ];
    for (entry, id, whole, short) in table {
        assert_eq!(entry.id(), id);
        assert_eq!(entry.payload_len(CHUNK), whole, "{entry:?} of a whole chunk");
        assert_eq!(entry.payload_len(700), short, "{entry:?} of a chunk of 700 bytes");
    }
    assert_eq!(ChunkEntry::Pages(ID, 3).payload_len(PAGE + 512), PAGE + 512);
}

#[test]
fn heads_are_checked_against_the_volume() {
    use ChunkEntry::{Data, Pages, Reference, Same, Zero};
    let count = |n: u64| Some(invalid("chunk count", n));
    let plain = |n: u64| Some(invalid("plain payload", n));
    let mask = |n: u64| Some(invalid("page mask", n));
    let outside = |n: u64| Some(invalid("extent", n));
    // A volume of one whole extent, and a tail of one chunk, one page and one sector.
    let tail = CHUNK + PAGE + 512;
    let size = EXTENT + tail;
    let table = [
        // Whole extents.
        (size, head(0, EXTENT, vec![Data(ID); 16]), None),
        (size, head(0, 0, vec![Zero; 16]), None),
        (size, head(0, 3 * PAGE, [vec![Pages(ID, 0x8011)], vec![Same(ID); 15]].concat()), None),
        (size, head(0, 0, vec![Zero; 15]), count(15)),
        (size, head(0, EXTENT - 1, vec![Data(ID); 16]), plain(EXTENT - 1)),
        (size, head(0, CHUNK, vec![Reference(ID); 16]), plain(CHUNK)),
        (size, head(0, 0, [vec![Data(ID)], vec![Zero; 15]].concat()), plain(0)),
        // The tail.
        (size, head(1, tail, vec![Data(ID), Data(ID)]), None),
        (size, head(1, PAGE + 512, vec![Zero, Data(ID)]), None),
        (size, head(1, PAGE + 512, vec![Zero, Pages(ID, 3)]), None),
        (size, head(1, 512, vec![Zero, Pages(ID, 2)]), None),
        (size, head(1, CHUNK, vec![Data(ID), Zero]), None),
        (size, head(1, 2 * CHUNK, vec![Data(ID), Data(ID)]), plain(2 * CHUNK)),
        (size, head(1, PAGE, vec![Zero, Pages(ID, 2)]), plain(PAGE)),
        (size, head(1, tail, vec![Data(ID)]), count(1)),
        (size, head(1, 0, vec![Zero; 3]), count(3)),
        (size, head(1, 0, vec![Zero; 16]), count(16)),
        // Pages past the end.
        (size, head(1, 0, vec![Zero, Pages(ID, 4)]), mask(4)),
        (size, head(1, 512, vec![Zero, Pages(ID, 0x8002)]), mask(0x8002)),
        (size, head(1, PAGE, vec![Pages(ID, 0x8000), Zero]), None),
        (1, head(0, 1, vec![Pages(ID, 1)]), None),
        (1, head(0, 1, vec![Pages(ID, 2)]), mask(2)),
        (PAGE, head(0, PAGE, vec![Pages(ID, 3)]), mask(3)),
        // Extents past the end.
        (size, head(2, 0, vec![Zero; 16]), outside(2)),
        (size, head(u64::MAX, 0, vec![Zero; 16]), outside(u64::MAX)),
        (size, head(u64::MAX / EXTENT, 0, vec![Zero; 16]), outside(u64::MAX / EXTENT)),
        (EXTENT, head(1, 0, vec![Zero; 16]), outside(1)),
        (0, head(0, 0, vec![Zero]), outside(0)),
    ];
    for (nth, (size, head, expected)) in table.into_iter().enumerate() {
        assert_eq!(head.check(ByteLen(size)).err(), expected, "case {nth}: {head:?} in {size} bytes");
    }
}

#[test]
fn sizes_at_the_top_of_the_range_do_not_overflow() {
    let last =
        ExtentHead { extent: ExtentIndex(u64::MAX / EXTENT), ..head(0, 0, vec![ChunkEntry::Zero; 16]) };
    assert_eq!(last.check(ByteLen(u64::MAX)), Ok(()));
}

#[test]
#[should_panic(expected = "over the cap")]
fn seventeen_chunks_are_a_bug() {
    let _ = head(0, 0, vec![ChunkEntry::Data(ID); 17]).encode();
}
