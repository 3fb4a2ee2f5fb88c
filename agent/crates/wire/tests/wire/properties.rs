//! Properties over arbitrary values and arbitrary bytes. A failing case prints its seed and its smallest form.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use volume::{ByteLen, ChunkId, ChunkIndex, ExtentIndex, Generation, KeyId, MAX_VOLUME, Sequence, SessionId};
use wire::control::{MAX_DETAIL, MAX_KNOWN, MAX_MESSAGE, MAX_NAME, MAX_RECEIPT, MAX_RUNS};
use wire::{
    Ack, Call, ChannelHello, ChannelKind, ChunkEntry, Control, Direction, Durable, Encoding, ExtentHead,
    FRAME_HEADER, Fail, FailCode, FrameHeader, Grant, HashKeyBytes, Held, Known, LaneClass, LaneHello,
    Leaves, MAX_EXTENT_HEAD, MAX_PAYLOAD, Migrate, Mode, Need, NeedReason, Offer, Open, PRELUDE, PageQuery,
    PageSums, Prelude, RangeKind, RangeMark, Run, Seal, Sealed, Tag, VolumeFormat, negotiate,
};

use crate::Frame;

fn text(cap: usize) -> impl Strategy<Value = String> {
    // Up to four bytes a character.
    vec(any::<char>(), 0..=cap / 4).prop_map(|chars| chars.into_iter().collect())
}

/// Ascending, disjoint, non-empty runs from the gaps between them and their lengths.
fn runs() -> impl Strategy<Value = Vec<Run>> {
    let gaps = vec((0..1_u64 << 40, 1..1_u64 << 40), 0..MAX_RUNS.min(300));
    gaps.prop_map(|gaps| {
        let mut end = 0;
        let mut run = |(gap, count)| {
            let first = end + gap;
            end = first + count;
            Run { first, count }
        };
        gaps.into_iter().map(&mut run).collect()
    })
}

fn open() -> impl Strategy<Value = Control> {
    (
        any::<[u8; 16]>(),
        select(vec![Direction::Push, Direction::Pull]),
        select(vec![Mode::Create, Mode::ResyncTrusted, Mode::ResyncFull]),
        select(vec![VolumeFormat::Raw, VolumeFormat::Qcow2]),
        any::<bool>(),
        1..=u8::MAX,
        text(MAX_NAME),
        text(MAX_NAME),
    )
        .prop_map(|(session, direction, mode, format, readback, lanes, pool, name)| {
            let session = SessionId(session);
            Control::Open(Open { session, direction, mode, format, readback, lanes, pool, name })
        })
}

fn grant() -> impl Strategy<Value = Control> {
    (any::<(u64, [u8; 16], [u8; 32])>(), any::<(u64, u64, u64, u32)>(), any::<(bool, bool, bool, bool)>())
        .prop_map(|((generation, key_id, key), (page_seed, first, window_bytes, window_frames), flags)| {
            Control::Grant(Grant {
                generation: Generation(generation),
                key_id: KeyId(key_id),
                key: HashKeyBytes(key),
                page_seed,
                first_sequence: Sequence(first),
                window_bytes,
                window_frames,
                resumed: flags.0,
                leaves: flags.1,
                known: flags.2,
                zeroed: flags.3,
            })
        })
}

fn offer() -> impl Strategy<Value = Control> {
    (0..=MAX_VOLUME, any::<[u8; 16]>(), any::<u64>()).prop_map(|(size, key, generation)| {
        Control::Offer(Offer {
            size: ByteLen(size),
            remembered_key: KeyId(key),
            generation: Generation(generation),
        })
    })
}

fn leaves() -> impl Strategy<Value = Control> {
    let held = prop_oneof![
        (1..=u64::MAX / 2).prop_map(Held::Zero),
        (1..=u64::MAX / 2).prop_map(Held::Unknown),
        vec(any::<[u8; 16]>(), 1..=200).prop_map(Held::Prefixes),
    ];
    (0..=u64::MAX / 2, held)
        .prop_map(|(first, held)| Control::Leaves(Leaves { first: ChunkIndex(first), held }))
}

fn page_sums() -> impl Strategy<Value = Control> {
    (any::<u64>(), 1..=u16::MAX)
        .prop_flat_map(|(extent, mask)| {
            let sums = vec(any::<u64>(), 16 * mask.count_ones() as usize);
            (Just(extent), Just(mask), sums)
        })
        .prop_map(|(extent, mask, sums)| {
            Control::PageSums(PageSums { extent: ExtentIndex(extent), mask, sums })
        })
}

/// A floor and a sequence that is not below it.
fn ordered() -> impl Strategy<Value = (Sequence, Sequence)> {
    any::<(u64, u64)>().prop_map(|(a, b)| (Sequence(a.max(b)), Sequence(a.min(b))))
}

fn range() -> impl Strategy<Value = Control> {
    let span = (0..u64::MAX).prop_flat_map(|first| (Just(first), 1..=u64::MAX - first));
    (select(vec![RangeKind::Zero, RangeKind::Same]), ordered(), span).prop_map(
        |(kind, (sequence, floor), (first, count))| {
            Control::Range(RangeMark { kind, sequence, floor, first: ExtentIndex(first), count })
        },
    )
}

fn need() -> impl Strategy<Value = Control> {
    (any::<(u64, u64)>(), 1..=u16::MAX, select(vec![NeedReason::Unknown, NeedReason::Mismatch])).prop_map(
        |((sequence, extent), mask, reason)| {
            let (sequence, extent) = (Sequence(sequence), ExtentIndex(extent));
            Control::Need(Need { sequence, extent, mask, reason })
        },
    )
}

fn lane_hello() -> impl Strategy<Value = Control> {
    (any::<[u8; 16]>(), any::<u64>(), 1..=u8::MAX).prop_map(|(session, generation, lane)| {
        let (session, generation) = (SessionId(session), Generation(generation));
        Control::LaneHello(LaneHello { session, generation, lane, class: LaneClass::Data })
    })
}

fn channel_hello() -> impl Strategy<Value = Control> {
    let kind = select(vec![ChannelKind::Ram, ChannelKind::Disk]);
    (any::<[u8; 16]>(), any::<(u64, u16)>(), kind).prop_map(|(migration, (generation, channel), kind)| {
        let (migration, generation) = (SessionId(migration), Generation(generation));
        Control::ChannelHello(ChannelHello { migration, generation, channel, kind })
    })
}

fn control() -> impl Strategy<Value = Control> {
    let receipt = prop_oneof![vec(any::<u8>(), 0..300), vec(any::<u8>(), MAX_RECEIPT)];
    let message = prop_oneof![8 => vec(any::<u8>(), 0..300), 1 => vec(any::<u8>(), MAX_MESSAGE)];
    prop_oneof![
        open(),
        offer(),
        grant(),
        (runs(), any::<bool>()).prop_map(|(runs, last)| Control::Durable(Durable { runs, last })),
        leaves(),
        (vec(any::<u64>(), 0..MAX_KNOWN.min(300)), any::<bool>())
            .prop_map(|(tags, last)| Control::Known(Known { tags, last })),
        (any::<u64>(), 1..=u16::MAX)
            .prop_map(|(extent, mask)| Control::PageQuery(PageQuery { extent: ExtentIndex(extent), mask })),
        page_sums(),
        range(),
        runs().prop_map(|runs| Control::Ack(Ack { runs })),
        need(),
        (any::<[u8; 32]>(), 0..=MAX_VOLUME)
            .prop_map(|(root, size)| Control::Seal(Seal { root, size: ByteLen(size) })),
        (any::<u64>(), receipt)
            .prop_map(|(cpu_micros, receipt)| Control::Sealed(Sealed { cpu_micros, receipt })),
        (select(FailCode::ALL), text(MAX_DETAIL))
            .prop_map(|(code, detail)| Control::Fail(Fail { code, detail })),
        Just(Control::Drain),
        any::<u64>().prop_map(Control::Ping),
        any::<u64>().prop_map(Control::Pong),
        lane_hello(),
        any::<[u8; 16]>().prop_map(|migration| Control::Migrate(Migrate { migration: SessionId(migration) })),
        any::<[u8; 16]>().prop_map(|migration| Control::Call(Call { migration: SessionId(migration) })),
        message.prop_map(Control::Message),
        channel_hello(),
    ]
}

fn chunk() -> impl Strategy<Value = ChunkEntry> {
    let id = any::<[u8; 32]>().prop_map(ChunkId);
    prop_oneof![
        Just(ChunkEntry::Zero),
        id.clone().prop_map(ChunkEntry::Same),
        id.clone().prop_map(ChunkEntry::Reference),
        id.clone().prop_map(ChunkEntry::Data),
        (id, 1..=u16::MAX).prop_map(|(id, mask)| ChunkEntry::Pages(id, mask)),
    ]
}

fn extent_head() -> impl Strategy<Value = ExtentHead> {
    let max = u32::try_from(MAX_PAYLOAD).expect("the cap fits 32 bits");
    let lengths = prop_oneof![
        (0..=max).prop_map(|len| (Encoding::Raw, len, len)),
        (1..=max).prop_flat_map(|plain| (Just(plain), 0..plain)).prop_map(|(plain, wire)| (
            Encoding::Zstd,
            wire,
            plain
        )),
    ];
    (ordered(), any::<u64>(), lengths, vec(chunk(), 1..=16)).prop_map(
        |((sequence, floor), extent, (encoding, wire_len, plain_len), chunks)| {
            let extent = ExtentIndex(extent);
            ExtentHead { sequence, floor, extent, encoding, wire_len, plain_len, chunks }
        },
    )
}

proptest! {
    // No file with regressions: the folder is part of the source, and a seed is printed with every failure.
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_control_frame_comes_back(control in control()) {
        let frame = Frame::Control(control);
        prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }

    #[test]
    fn an_extent_head_comes_back(head in extent_head()) {
        let frame = Frame::Extent(head);
        let bytes = frame.encode();
        prop_assert!(bytes.len() <= FRAME_HEADER + MAX_EXTENT_HEAD);
        prop_assert_eq!(Frame::decode(&bytes), Ok(frame));
    }

    #[test]
    fn a_checked_head_adds_up(head in extent_head(), size in 0..=MAX_VOLUME) {
        let head = ExtentHead { extent: ExtentIndex(head.extent.0 % size.max(1)), ..head };
        if head.check(ByteLen(size)).is_ok() {
            let range = head.extent.range(ByteLen(size)).expect("inside the volume");
            prop_assert_eq!(head.chunks.len() as u64, range.len().div_ceil(volume::CHUNK));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..2000), size in any::<u64>()) {
        for tag in Tag::ALL {
            if let Ok(frame) = Frame::decode_body(*tag, &bytes) {
                if !frame.is_catch_all() {
                    prop_assert_eq!(&frame.encode()[FRAME_HEADER..], &bytes[..]);
                }
                if let Frame::Extent(head) = frame {
                    // Either answer is right; it must not overflow.
                    prop_assert!(head.check(ByteLen(size)).is_ok() || head.check(ByteLen(size)).is_err());
                }
            }
        }
    }

    #[test]
    fn arbitrary_headers_never_exceed_their_cap(bytes in any::<[u8; FRAME_HEADER]>()) {
        if let Ok(header) = FrameHeader::decode(&bytes) {
            prop_assert!(header.len <= header.tag.max_body());
            prop_assert_eq!(header.encode(), bytes);
        }
    }

    #[test]
    fn arbitrary_preludes_are_refused_or_canonical(bytes in any::<[u8; PRELUDE]>(), magic in any::<bool>()) {
        let mut bytes = bytes;
        if magic {
            bytes[..12].copy_from_slice(b"NOVAFRRY\x01\0\0\0");
            bytes[24..].fill(0);
        }
        if let Ok(prelude) = Prelude::decode(&bytes) {
            prop_assert_eq!(prelude.encode(), bytes);
        }
    }

    #[test]
    fn both_sides_negotiate_the_same(a in any::<(u16, u16, u64)>(), b in any::<(u16, u16, u64)>()) {
        let offer = |(x, y, features): (u16, u16, u64)| Prelude { min: x.min(y), max: x.max(y), features };
        let (a, b) = (offer(a), offer(b));
        match (negotiate(&a, &b), negotiate(&b, &a)) {
            (Ok(here), Ok(there)) => {
                prop_assert_eq!(here, there);
                prop_assert_eq!(here.min, here.max);
                prop_assert!((a.min..=a.max).contains(&here.max) && (b.min..=b.max).contains(&here.max));
                prop_assert_eq!(here.features & !(a.features & b.features), 0);
            }
            (Err(_), Err(_)) => prop_assert!(a.max < b.min || b.max < a.min || a.max.min(b.max) == 0),
            (here, there) => prop_assert!(false, "{here:?} but {there:?}"),
        }
    }
}
