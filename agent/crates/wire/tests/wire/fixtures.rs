//! Every fixture of version 1 with the value that it stands for.

use volume::{ByteLen, ChunkId, ChunkIndex, ExtentIndex, Generation, KeyId, Sequence, SessionId};
use wire::{
    Ack, Call, ChannelHello, ChannelKind, ChunkEntry, Control, Direction, Durable, Encoding, ExtentHead,
    Fail, FailCode, Grant, HashKeyBytes, Held, Known, LaneClass, LaneHello, Leaves, Migrate, Mode, Need,
    NeedReason, Offer, Open, PageQuery, PageSums, RangeKind, RangeMark, Run, Seal, Sealed, VolumeFormat,
};

use crate::Frame;

/// One file under `golden/v1`.
pub(crate) struct Fixture {
    pub(crate) name: &'static str,
    pub(crate) hex: &'static str,
    pub(crate) frame: Frame,
}

/// `start`, `start + 1`, … modulo 256.
fn counting<const N: usize>(start: u8) -> [u8; N] {
    std::array::from_fn(|i| start.wrapping_add(u8::try_from(i).expect("short arrays")))
}

fn session() -> SessionId {
    SessionId(counting(0x10))
}

fn open(direction: Direction, mode: Mode, format: VolumeFormat) -> Open {
    let (pool, name) = (String::new(), String::new());
    Open { session: session(), direction, mode, format, readback: false, lanes: 1, pool, name }
}

fn runs(pairs: &[(u64, u64)]) -> Vec<Run> {
    pairs.iter().map(|(first, count)| Run { first: *first, count: *count }).collect()
}

macro_rules! fixture {
    ($name:literal, $frame:expr) => {
        Fixture { name: $name, hex: include_str!(concat!("../../golden/v1/", $name, ".hex")), frame: $frame }
    };
}

macro_rules! control {
    ($name:literal, $control:expr) => {
        fixture!($name, Frame::Control($control))
    };
}

pub(crate) fn all() -> Vec<Fixture> {
    let mut all = terms();
    all.extend(streaming());
    all.extend(extents());
    all.extend(endings());
    all.extend(migrations());
    all
}

fn terms() -> Vec<Fixture> {
    vec![
        control!(
            "open_push",
            Control::Open(Open {
                readback: true,
                lanes: 4,
                pool: "fast".to_owned(),
                name: "disk-1".to_owned(),
                ..open(Direction::Push, Mode::Create, VolumeFormat::Raw)
            })
        ),
        control!(
            "open_pull",
            Control::Open(Open {
                pool: "cold".to_owned(),
                name: "a".to_owned(),
                ..open(Direction::Pull, Mode::ResyncTrusted, VolumeFormat::Qcow2)
            })
        ),
        control!(
            "open_full",
            Control::Open(Open {
                lanes: 255,
                pool: "p".to_owned(),
                name: "vm.0_root".to_owned(),
                ..open(Direction::Push, Mode::ResyncFull, VolumeFormat::Raw)
            })
        ),
        control!(
            "offer",
            Control::Offer(Offer {
                size: ByteLen((1 << 40) + 512),
                remembered_key: KeyId(counting(0x40)),
                generation: Generation(6),
            })
        ),
        control!(
            "grant",
            Control::Grant(Grant {
                generation: Generation(7),
                key_id: KeyId(counting(0x40)),
                key: HashKeyBytes(counting(0x80)),
                page_seed: 0x0123_4567_89ab_cdef,
                first_sequence: Sequence(1),
                window_bytes: 64 << 20,
                window_frames: 4096,
                resumed: false,
                leaves: false,
                known: false,
                zeroed: true,
            })
        ),
        control!(
            "grant_resumed",
            Control::Grant(Grant {
                generation: Generation(8),
                key_id: KeyId(counting(0x40)),
                key: HashKeyBytes(counting(0x80)),
                page_seed: 1,
                first_sequence: Sequence(4097),
                window_bytes: 1 << 20,
                window_frames: 16,
                resumed: true,
                leaves: true,
                known: true,
                zeroed: false,
            })
        ),
        control!("durable", Control::Durable(Durable { runs: runs(&[(0, 10), (11, 1)]), last: false })),
        control!("durable_last", Control::Durable(Durable { runs: Vec::new(), last: true })),
        control!(
            "leaves_zero",
            Control::Leaves(Leaves { first: ChunkIndex(4095), held: Held::Zero(1 << 34) })
        ),
        control!(
            "leaves_unknown",
            Control::Leaves(Leaves { first: ChunkIndex(0), held: Held::Unknown(256) })
        ),
        control!(
            "leaves_prefixes",
            Control::Leaves(Leaves {
                first: ChunkIndex(4095),
                held: Held::Prefixes(vec![counting(0xa0), [0; 16], counting(0xb0)]),
            })
        ),
        control!("known", Control::Known(Known { tags: vec![0x1122_3344_5566_7788, u64::MAX], last: false })),
        control!(
            "lane_hello",
            Control::LaneHello(LaneHello {
                session: session(),
                generation: Generation(7),
                lane: 3,
                class: LaneClass::Data,
            })
        ),
    ]
}

fn streaming() -> Vec<Fixture> {
    let sums = (1..=16).map(|nth| if nth <= 12 { 0x0101_0101_0101_0101 * nth } else { 0 }).collect();
    vec![
        control!("page_query", Control::PageQuery(PageQuery { extent: ExtentIndex(258), mask: 0x8003 })),
        control!("page_sums", Control::PageSums(PageSums { extent: ExtentIndex(258), mask: 8, sums })),
        control!(
            "range_zero",
            Control::Range(RangeMark {
                kind: RangeKind::Zero,
                sequence: Sequence(301),
                floor: Sequence(290),
                first: ExtentIndex(100),
                count: 1024,
            })
        ),
        control!(
            "range_same",
            Control::Range(RangeMark {
                kind: RangeKind::Same,
                sequence: Sequence(302),
                floor: Sequence(302),
                first: ExtentIndex(5),
                count: 1,
            })
        ),
        control!("ack", Control::Ack(Ack { runs: runs(&[(290, 10), (301, 1)]) })),
        control!(
            "need_unknown",
            Control::Need(Need {
                sequence: Sequence(300),
                extent: ExtentIndex(7),
                mask: 0x204,
                reason: NeedReason::Unknown,
            })
        ),
        control!(
            "need_mismatch",
            Control::Need(Need {
                sequence: Sequence(1),
                extent: ExtentIndex(0),
                mask: 1,
                reason: NeedReason::Mismatch,
            })
        ),
    ]
}

fn extents() -> Vec<Fixture> {
    let id = |start| ChunkId(counting(start));
    vec![
        fixture!(
            "extent_raw",
            Frame::Extent(ExtentHead {
                sequence: Sequence(300),
                floor: Sequence(290),
                extent: ExtentIndex(7),
                encoding: Encoding::Raw,
                wire_len: 65_536 + 8_192,
                plain_len: 65_536 + 8_192,
                chunks: vec![
                    ChunkEntry::Zero,
                    ChunkEntry::Same(id(0x20)),
                    ChunkEntry::Reference(id(0x30)),
                    ChunkEntry::Data(id(0x40)),
                    ChunkEntry::Pages(id(0x50), 0x8001),
                ],
            })
        ),
        fixture!(
            "extent_zstd",
            Frame::Extent(ExtentHead {
                sequence: Sequence(1 << 40),
                floor: Sequence(1 << 40),
                extent: ExtentIndex((1 << 30) - 1),
                encoding: Encoding::Zstd,
                wire_len: 1000,
                plain_len: 1 << 20,
                chunks: (0..16).map(|nth| ChunkEntry::Data(id(7 * nth))).collect(),
            })
        ),
        fixture!(
            "extent_empty",
            Frame::Extent(ExtentHead {
                sequence: Sequence(1),
                floor: Sequence(0),
                extent: ExtentIndex(0),
                encoding: Encoding::Raw,
                wire_len: 0,
                plain_len: 0,
                chunks: vec![ChunkEntry::Zero],
            })
        ),
    ]
}

fn endings() -> Vec<Fixture> {
    vec![
        control!("seal", Control::Seal(Seal { root: counting(0xc0), size: ByteLen((1 << 40) + 512) })),
        control!(
            "sealed",
            Control::Sealed(Sealed { cpu_micros: 1_500_000, receipt: counting::<20>(0xe0).to_vec() })
        ),
        control!(
            "fail",
            Control::Fail(Fail { code: FailCode::NoSpace, detail: "pool fast is full".to_owned() })
        ),
        control!("drain", Control::Drain),
        control!("ping", Control::Ping(0xfeed_face_cafe_beef)),
        control!("pong", Control::Pong(0xfeed_face_cafe_beef)),
    ]
}

fn migrations() -> Vec<Fixture> {
    let hello = |channel, kind| {
        let hello = ChannelHello { migration: session(), generation: Generation(9), channel, kind };
        Control::ChannelHello(hello)
    };
    vec![
        control!("migrate", Control::Migrate(Migrate { migration: session() })),
        control!("call", Control::Call(Call { migration: session() })),
        control!("message", Control::Message(counting::<12>(0x70).to_vec())),
        control!("message_empty", Control::Message(Vec::new())),
        control!("channel_hello_ram", hello(258, ChannelKind::Ram)),
        control!("channel_hello_disk", hello(0, ChannelKind::Disk)),
    ]
}
