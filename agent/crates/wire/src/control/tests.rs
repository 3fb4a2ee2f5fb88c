use volume::MAX_VOLUME;

use super::*;
use crate::error::DecodeError;
use crate::frame::{FRAME_HEADER, Tag};

fn body(control: &Control) -> Vec<u8> {
    control.encode()[FRAME_HEADER..].to_vec()
}

/// Encodes, lets the test change the body, and decodes.
fn changed(control: &Control, change: impl FnOnce(&mut Vec<u8>)) -> Result<Control, DecodeError> {
    let mut bytes = body(control);
    change(&mut bytes);
    Control::decode(control.tag(), &bytes)
}

fn invalid<T>(field: &'static str, value: u64) -> Result<T, DecodeError> {
    Err(DecodeError::Invalid { field, value })
}

fn too_long<T>(field: &'static str, value: u64, cap: usize) -> Result<T, DecodeError> {
    Err(DecodeError::TooLong { field, value, cap: cap as u64 })
}

fn open(pool: &str, name: &str) -> Control {
    Control::Open(Open {
        session: SessionId([1; 16]),
        direction: Direction::Push,
        mode: Mode::Create,
        format: VolumeFormat::Raw,
        readback: false,
        lanes: 1,
        pool: pool.to_owned(),
        name: name.to_owned(),
    })
}

/// `count` runs of one item with a gap of one between them.
fn runs(count: usize) -> Vec<Run> {
    (0..count as u64).map(|nth| Run { first: 2 * nth, count: 1 }).collect()
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn enumerations_refuse_every_other_value() {
    // Frame, offset of the byte in the body, name of the field, and the values that mean something.
    let range = Control::Range(RangeMark {
        kind: RangeKind::Zero,
        sequence: Sequence(1),
        floor: Sequence(0),
        first: ExtentIndex(0),
        count: 1,
    });
    let need = Control::Need(Need {
        sequence: Sequence(1),
        extent: ExtentIndex(0),
        mask: 1,
        reason: NeedReason::Unknown,
    });
    let hello = Control::LaneHello(LaneHello {
        session: SessionId([1; 16]),
        generation: Generation(1),
        lane: 1,
        class: LaneClass::Data,
    });
    let channel = channel_hello(1, ChannelKind::Ram);
    let table = [
        (open("p", "n"), 16, "direction", 1..=2_u8),
        (open("p", "n"), 17, "mode", 1..=3),
        (open("p", "n"), 18, "format", 1..=2),
        (open("p", "n"), 19, "readback", 0..=1),
        (open("p", "n"), 20, "lanes", 1..=255),
        (Control::Durable(Durable { runs: Vec::new(), last: true }), 0, "last", 0..=1),
        (Control::Leaves(Leaves { first: ChunkIndex(0), held: Held::Zero(1) }), 16, "kind of leaves", 1..=2),
        (Control::Known(Known { tags: Vec::new(), last: true }), 0, "last", 0..=1),
        (range, 32, "range kind", 1..=2),
        (need, 18, "reason", 1..=2),
        (hello.clone(), 24, "lane", 1..=255),
        (hello, 25, "lane class", 1..=1),
        (channel, 26, "channel kind", 1..=2),
        (grant(), 84, "resumed", 0..=1),
        (grant(), 85, "leaves", 0..=1),
        (grant(), 86, "known", 0..=1),
        (grant(), 87, "zeroed", 0..=1),
    ];
    for (control, at, field, valid) in table {
        for value in 0..=u8::MAX {
            let result = changed(&control, |bytes| bytes[at] = value);
            if valid.contains(&value) {
                assert_eq!(body(&result.unwrap())[at], value, "{field} {value}");
            } else if (field, value) != ("kind of leaves", 3) {
                assert_eq!(result, invalid(field, value.into()));
            }
        }
    }
}

fn channel_hello(channel: u16, kind: ChannelKind) -> Control {
    Control::ChannelHello(ChannelHello {
        migration: SessionId([1; 16]),
        generation: Generation(1),
        channel,
        kind,
    })
}

#[test]
fn channels_have_any_number() {
    for channel in [0, 1, 256, u16::MAX] {
        let hello = channel_hello(channel, ChannelKind::Disk);
        assert_eq!(Control::decode(Tag::ChannelHello, &body(&hello)), Ok(hello));
    }
}

#[test]
fn messages_hold_to_their_cap() {
    for len in [0, 1, MAX_MESSAGE] {
        let message = Control::Message(vec![0xa5; len]);
        assert_eq!(body(&message).len(), len);
        assert_eq!(Control::decode(Tag::Message, &body(&message)), Ok(message));
    }
    let result = changed(&Control::Message(vec![1; MAX_MESSAGE]), |bytes| bytes.push(1));
    assert_eq!(result, too_long("frame body", MAX_MESSAGE as u64 + 1, MAX_CONTROL_BODY));
}

#[test]
#[should_panic(expected = "message of 65537 exceeds the cap of 65536")]
fn a_message_over_its_cap_is_a_bug() {
    let _ = Control::Message(vec![0; MAX_MESSAGE + 1]).encode();
}

fn grant() -> Control {
    Control::Grant(Grant {
        generation: Generation(1),
        key_id: KeyId([2; 16]),
        key: HashKeyBytes([3; 32]),
        page_seed: 4,
        first_sequence: Sequence(5),
        window_bytes: 6,
        window_frames: 7,
        resumed: false,
        leaves: false,
        known: false,
        zeroed: false,
    })
}

#[test]
fn names_hold_to_their_cap() {
    let longest = "n".repeat(MAX_NAME);
    let control = open(&longest, &longest);
    assert_eq!(Control::decode(Tag::Open, &body(&control)), Ok(control));
    for (declared, at, field) in
        [(129, 24, "pool name"), (u16::MAX, 24, "pool name"), (129, 29, "volume name")]
    {
        let result = changed(&open("ppp", "n"), |bytes| {
            bytes[at..at + 2].copy_from_slice(&declared.to_le_bytes());
        });
        assert_eq!(result, too_long(field, declared.into(), MAX_NAME));
    }
}

#[test]
fn names_are_utf_8() {
    assert_eq!(changed(&open("pp", "n"), |bytes| bytes[27] = 0xff), invalid("pool name", 1));
    assert_eq!(changed(&open("pp", "n"), |bytes| bytes[30] = 0xc3), invalid("volume name", 0));
}

#[test]
fn lists_hold_to_their_caps() {
    for control in [
        Control::Durable(Durable { runs: runs(MAX_RUNS), last: true }),
        Control::Ack(Ack { runs: runs(MAX_RUNS) }),
        Control::Leaves(Leaves { first: ChunkIndex(0), held: Held::Prefixes(vec![[9; 16]; MAX_LEAVES]) }),
        Control::Known(Known { tags: vec![9; MAX_KNOWN], last: false }),
    ] {
        let bytes = body(&control);
        assert!(bytes.len() <= MAX_CONTROL_BODY);
        assert_eq!(Control::decode(control.tag(), &bytes), Ok(control));
    }
    let result = changed(&Control::Ack(Ack { runs: runs(MAX_RUNS) }), |bytes| {
        bytes.extend([u64::MAX - 1, 1].map(u64::to_le_bytes).concat());
    });
    assert_eq!(result, too_long("run count", MAX_RUNS as u64 + 1, MAX_RUNS));
    let result = changed(&Control::Known(Known { tags: vec![9; MAX_KNOWN], last: false }), |bytes| {
        bytes.extend([0; 8]);
    });
    assert_eq!(result, too_long("tag count", MAX_KNOWN as u64 + 1, MAX_KNOWN));
}

#[test]
fn no_body_exceeds_the_frame_cap() {
    let long = vec![0; MAX_CONTROL_BODY + 1];
    for tag in Tag::ALL {
        assert_eq!(Control::decode(*tag, &long), too_long("frame body", long.len() as u64, MAX_CONTROL_BODY));
    }
}

#[test]
fn receipts_and_details_hold_to_their_caps() {
    let sealed = Control::Sealed(Sealed { cpu_micros: 0, receipt: vec![5; MAX_RECEIPT] });
    assert_eq!(Control::decode(Tag::Sealed, &body(&sealed)), Ok(sealed.clone()));
    let result = changed(&sealed, |bytes| bytes.push(5));
    assert_eq!(result, too_long("receipt", MAX_RECEIPT as u64 + 1, MAX_RECEIPT));

    let fail = Control::Fail(Fail { code: FailCode::Quota, detail: "d".repeat(MAX_DETAIL) });
    assert_eq!(Control::decode(Tag::Fail, &body(&fail)), Ok(fail.clone()));
    let result = changed(&fail, |bytes| {
        bytes[2..4].copy_from_slice(&513_u16.to_le_bytes());
        bytes.push(b'd');
    });
    assert_eq!(result, too_long("failure detail", 513, MAX_DETAIL));
    assert_eq!(changed(&fail, |bytes| bytes[9] = 0xff), invalid("failure detail", 5));
}

#[test]
fn long_details_are_cut_at_a_character() {
    // 511 bytes and a character of two: the cut falls inside it.
    let detail = format!("{}\u{e9}{}", "d".repeat(MAX_DETAIL - 1), "d".repeat(10));
    let fail = Control::Fail(Fail { code: FailCode::Internal, detail });
    let Ok(Control::Fail(read)) = Control::decode(Tag::Fail, &body(&fail)) else { panic!("a failure") };
    assert_eq!(read.detail, "d".repeat(MAX_DETAIL - 1));
}

#[test]
fn failure_codes_round_trip_and_unknown_ones_are_internal() {
    for code in FailCode::ALL {
        let fail = Control::Fail(Fail { code: *code, detail: String::new() });
        assert_eq!(Control::decode(Tag::Fail, &body(&fail)), Ok(fail));
    }
    let newer = Control::Fail(Fail { code: FailCode::Protocol, detail: "moon phase".to_owned() });
    for number in [0, 23, 1000, u16::MAX] {
        let read = changed(&newer, |bytes| bytes[..2].copy_from_slice(&number.to_le_bytes())).unwrap();
        let expected = Fail { code: FailCode::Internal, detail: "moon phase".to_owned() };
        assert_eq!(read, Control::Fail(expected));
    }
}

#[test]
fn volume_sizes_are_capped() {
    let offer = |size| {
        let offer = Offer { size: ByteLen(size), remembered_key: KeyId([0; 16]), generation: Generation(0) };
        Control::Offer(offer)
    };
    let seal = |size| Control::Seal(Seal { root: [0; 32], size: ByteLen(size) });
    for (make, at) in [(&offer as &dyn Fn(u64) -> Control, 0), (&seal, 32)] {
        for size in [0, MAX_VOLUME] {
            assert_eq!(Control::decode(make(size).tag(), &body(&make(size))), Ok(make(size)));
        }
        for size in [MAX_VOLUME + 1, u64::MAX] {
            let error = DecodeError::TooLong { field: "volume size", value: size, cap: MAX_VOLUME };
            assert_eq!(changed(&make(0), |bytes| put(bytes, at, size)), Err(error));
        }
    }
}

#[test]
fn runs_ascend_without_overlap() {
    // Runs as (first, count), and what is wrong with them.
    type Pairs = &'static [(u64, u64)];
    let table: [(Pairs, Option<u64>); 11] = [
        (&[], None),
        (&[(0, 1)], None),
        (&[(0, 1), (1, 1)], None),
        (&[(5, 3), (8, 1), (100, u64::MAX - 100)], None),
        (&[(0, u64::MAX)], None),
        (&[(3, 0)], Some(3)),
        (&[(0, 2), (1, 1)], Some(1)),
        (&[(5, 1), (4, 1)], Some(4)),
        (&[(5, 1), (5, 1)], Some(5)),
        (&[(1, u64::MAX)], Some(u64::MAX)),
        (&[(u64::MAX, 1)], Some(1)),
    ];
    for (pairs, wrong) in table {
        let runs: Vec<Run> =
            pairs.iter().map(|(first, count)| Run { first: *first, count: *count }).collect();
        for control in
            [Control::Ack(Ack { runs: runs.clone() }), Control::Durable(Durable { runs, last: false })]
        {
            let expected = wrong.map_or_else(|| Ok(control.clone()), |value| invalid("run", value));
            assert_eq!(Control::decode(control.tag(), &body(&control)), expected, "{pairs:?}");
        }
    }
}

#[test]
fn ranges_are_not_empty_and_do_not_wrap() {
    let range = |first, count| {
        Control::Range(RangeMark {
            kind: RangeKind::Same,
            sequence: Sequence(9),
            floor: Sequence(9),
            first: ExtentIndex(first),
            count,
        })
    };
    for (first, count, valid) in [
        (0, 1, true),
        (0, u64::MAX, true),
        (u64::MAX - 1, 1, true),
        (0, 0, false),
        (u64::MAX, 0, false),
        (u64::MAX, 1, false),
        (1, u64::MAX, false),
    ] {
        let control = range(first, count);
        let expected = if valid { Ok(control.clone()) } else { invalid("extent count", count) };
        assert_eq!(Control::decode(Tag::Range, &body(&control)), expected, "{count} from {first}");
    }
    assert_eq!(changed(&range(0, 1), |bytes| put(bytes, 8, 10)), invalid("floor", 10));
}

#[test]
fn leaves_count_what_they_hold() {
    let leaves = |first, held| Control::Leaves(Leaves { first: ChunkIndex(first), held });
    for held in [Held::Zero(2), Held::Unknown(2), Held::Prefixes(vec![[1; 16]; 2])] {
        let fits = leaves(u64::MAX - 2, held.clone());
        assert_eq!(Control::decode(Tag::Leaves, &body(&fits)), Ok(fits.clone()));
        assert_eq!(changed(&fits, |bytes| put(bytes, 0, u64::MAX - 1)), invalid("chunk count", 2));
        for count in [0, u64::MAX] {
            assert_eq!(changed(&fits, |bytes| put(bytes, 8, count)), invalid("chunk count", count));
        }
    }
    let prefixes = leaves(0, Held::Prefixes(vec![[1; 16]; 2]));
    for count in [1, 3, 1 << 60, u64::MAX - 1] {
        assert_eq!(changed(&prefixes, |bytes| put(bytes, 8, count)), invalid("chunk count", count));
    }
    assert_eq!(changed(&prefixes, |bytes| bytes[16] = 0), invalid("kind of leaves", 0));
    assert_eq!(changed(&prefixes, |bytes| bytes[16] = 4), invalid("kind of leaves", 4));
    assert_eq!(changed(&prefixes, |bytes| bytes[16] = 1), Err(DecodeError::Trailing(32)));
    let zero = leaves(0, Held::Zero(1));
    assert_eq!(changed(&zero, |bytes| bytes[16] = 3), invalid("chunk count", 1));
}

#[test]
fn masks_are_not_empty() {
    let query = Control::PageQuery(PageQuery { extent: ExtentIndex(0), mask: 1 });
    assert_eq!(changed(&query, |bytes| bytes[8] = 0), invalid("chunk mask", 0));
    let need = Need { sequence: Sequence(0), extent: ExtentIndex(0), mask: 1, reason: NeedReason::Mismatch };
    assert_eq!(changed(&Control::Need(need), |bytes| bytes[16] = 0), invalid("chunk mask", 0));
    let sums = Control::PageSums(PageSums { extent: ExtentIndex(0), mask: 1, sums: vec![0; 16] });
    assert_eq!(changed(&sums, |bytes| bytes[8] = 0), invalid("page sums", 128));
    let none = |bytes: &mut Vec<u8>| {
        bytes[8] = 0;
        bytes.truncate(16);
    };
    assert_eq!(changed(&sums, none), invalid("page sums", 0));
}

#[test]
fn page_sums_fit_their_mask() {
    let all = Control::PageSums(PageSums { extent: ExtentIndex(0), mask: u16::MAX, sums: vec![3; 256] });
    assert_eq!(Control::decode(Tag::PageSums, &body(&all)), Ok(all.clone()));
    assert_eq!(changed(&all, |bytes| bytes[8] = 0xfe), invalid("page sums", 2048));
    assert_eq!(changed(&all, |bytes| bytes.truncate(16 + 2040)), invalid("page sums", 2040));
    assert_eq!(changed(&all, |bytes| bytes.extend([0; 8])), invalid("page sums", 2056));
}

#[test]
fn keys_are_never_printed() {
    let text = format!("{:?}", grant());
    assert!(text.contains("HashKeyBytes(..)") && !text.contains("0303") && !text.contains("3, 3"), "{text}");
}

#[test]
#[should_panic(expected = "pool name of 129 exceeds the cap of 128")]
fn a_name_over_its_cap_is_a_bug() {
    let _ = open(&"p".repeat(MAX_NAME + 1), "n").encode();
}

#[test]
#[should_panic(expected = "run count of 4096 exceeds the cap of 4095")]
fn a_run_too_many_is_a_bug() {
    let _ = Control::Ack(Ack { runs: runs(MAX_RUNS + 1) }).encode();
}

#[test]
#[should_panic(expected = "prefix count of 4095 exceeds the cap of 4094")]
fn a_prefix_too_many_is_a_bug() {
    let prefixes = vec![[0; 16]; MAX_LEAVES + 1];
    let _ = Control::Leaves(Leaves { first: ChunkIndex(0), held: Held::Prefixes(prefixes) }).encode();
}

#[test]
#[should_panic(expected = "tag count of 8191 exceeds the cap of 8190")]
fn a_tag_too_many_is_a_bug() {
    let _ = Control::Known(Known { tags: vec![0; MAX_KNOWN + 1], last: true }).encode();
}

#[test]
#[should_panic(expected = "receipt of 32769 exceeds the cap of 32768")]
fn a_receipt_over_its_cap_is_a_bug() {
    let _ = Control::Sealed(Sealed { cpu_micros: 0, receipt: vec![0; MAX_RECEIPT + 1] }).encode();
}

#[test]
#[should_panic(expected = "do not fit their mask")]
fn page_sums_without_their_mask_are_a_bug() {
    let _ = Control::PageSums(PageSums { extent: ExtentIndex(0), mask: 3, sums: vec![0; 16] }).encode();
}
