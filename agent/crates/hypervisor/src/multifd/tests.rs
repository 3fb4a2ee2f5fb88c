use proptest::prelude::*;

use super::*;
use crate::recorded::{MULTIFD_CHANNEL, decode, reads, stated};

/// The fields of a packet that the tests vary.
#[derive(Clone, Debug)]
struct Made {
    flags: u32,
    number: u64,
    block: &'static [u8],
    normal: Vec<u64>,
    zero: Vec<u64>,
    /// Instead of the bytes of the normal pages.
    size: Option<u32>,
}

impl Made {
    fn of(normal: &[u64], zero: &[u64]) -> Self {
        Self {
            flags: 0,
            number: 7,
            block: b"pc.ram",
            normal: normal.to_vec(),
            zero: zero.to_vec(),
            size: None,
        }
    }

    fn sync() -> Self {
        Self { flags: 1, block: b"", ..Self::of(&[], &[]) }
    }

    fn bytes(&self) -> Vec<u8> {
        let normal = u32::try_from(self.normal.len()).unwrap();
        let zero = u32::try_from(self.zero.len()).unwrap();
        let mut bytes = vec![0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1];
        for value in
            [self.flags, if self.flags == 1 { 0 } else { 128 }, normal, self.size.unwrap_or(normal * 4096)]
        {
            bytes.extend(value.to_be_bytes());
        }
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(zero.to_be_bytes());
        bytes.resize(64, 0);
        bytes.extend(self.block);
        bytes.resize(320, 0);
        bytes.extend(self.normal.iter().chain(&self.zero).flat_map(|offset| offset.to_be_bytes()));
        // What an earlier packet left there.
        bytes.resize(HEADER, 0xee);
        for offset in &self.normal {
            bytes.extend((0..PAGE).map(|at| (at as u64 ^ offset >> 12).to_le_bytes()[0]));
        }
        bytes
    }
}

fn hello() -> Vec<u8> {
    let mut bytes = vec![0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1];
    bytes.extend(0x0123_4567_89ab_cdef_u128.to_be_bytes());
    bytes.push(3);
    bytes.resize(HELLO, 0);
    bytes
}

/// All tokens of a channel that arrives in such reads, and why it became literal.
fn tokens(bytes: &[u8], sizes: &[usize]) -> (Vec<Token>, Option<Reason>) {
    let mut tokeniser = Tokeniser::new();
    let mut tokens = Vec::new();
    for read in reads(bytes, sizes) {
        tokeniser.push(read);
        while let Some(token) = tokeniser.next_token() {
            tokens.push(token);
        }
    }
    let reason = tokeniser.literal_because();
    tokens.extend(tokeniser.finish());
    (tokens, reason)
}

fn rebuilt(tokens: &[Token]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for token in tokens {
        rebuild(token, &mut bytes);
    }
    bytes
}

#[test]
fn the_fields_of_hello_and_packet() {
    let made = Made::of(&[0x1000, 0x5000], &[0x2000, 0x3000, 0x4000]);
    let bytes = [hello(), made.bytes(), Made { number: 8, ..Made::sync() }.bytes()].concat();
    let (tokens, reason) = tokens(&bytes, &[]);
    assert_eq!(reason, None);
    assert_eq!(rebuilt(&tokens), bytes);
    let [Token::Hello(hello), Token::Packet(packet), Token::Packet(sync)] = &tokens[..] else {
        panic!("{tokens:?}");
    };
    assert_eq!((hello.channel(), u128::from_be_bytes(hello.uuid())), (3, 0x0123_4567_89ab_cdef));
    assert_eq!((packet.packet_number(), packet.is_sync(), packet.block()), (7, false, &b"pc.ram"[..]));
    assert_eq!(packet.normal_offsets().collect::<Vec<_>>(), [0x1000, 0x5000]);
    assert_eq!(packet.zero_offsets().collect::<Vec<_>>(), [0x2000, 0x3000, 0x4000]);
    assert_eq!((packet.header().len(), packet.pages().len()), (HEADER, 2 * PAGE));
    assert_eq!((sync.packet_number(), sync.is_sync(), sync.block()), (8, true, &b""[..]));
    assert_eq!((sync.normal_offsets().len(), sync.zero_offsets().len()), (0, 0));
}

#[test]
fn the_most_pages_of_a_packet() {
    let offsets: Vec<u64> = (0..128).map(|page| page * 4096).collect();
    for (normal, zero) in [offsets.split_at(128), offsets.split_at(0), offsets.split_at(64)] {
        let bytes = [hello(), Made::of(normal, zero).bytes()].concat();
        let (tokens, reason) = tokens(&bytes, &[1000]);
        assert_eq!((tokens.len(), reason), (2, None));
        assert_eq!(rebuilt(&tokens), bytes);
    }
}

#[test]
fn what_is_not_known_is_literal_for_good() {
    let page = || Made::of(&[0x1000], &[]);
    let changed = |at: usize, to: u8| {
        let mut bytes = page().bytes();
        bytes[at] = to;
        bytes
    };
    let many: Vec<u64> = (0..129).map(|page| page * 4096).collect();
    let mut too_many = Made::of(&[], &many[..128]).bytes();
    too_many[35] = 129;
    let cases = [
        ("magic", changed(0, 0), Reason::Header),
        ("version", changed(7, 2), Reason::Header),
        ("zlib", changed(11, 1 << 1), Reason::Flags(2)),
        ("device state", changed(11, 64), Reason::Flags(64)),
        ("future flag", changed(8, 0x80), Reason::Flags(0x8000_0000)),
        ("allocated", changed(14, 1), Reason::Counts { normal: 1, zero: 0, size: 4096 }),
        ("normal pages", changed(19, 2), Reason::Counts { normal: 2, zero: 0, size: 4096 }),
        ("too many", too_many, Reason::Counts { normal: 0, zero: 129, size: 0 }),
        ("sum overflows", changed(32, 0xff), Reason::Counts { normal: 1, zero: 0xff00_0000, size: 4096 }),
        (
            "size",
            Made { size: Some(4095), ..page() }.bytes(),
            Reason::Counts { normal: 1, zero: 0, size: 4095 },
        ),
        (
            "payload without pages",
            Made { size: Some(128 * 4096 + 1), ..Made::sync() }.bytes(),
            Reason::Counts { normal: 0, zero: 0, size: 128 * 4096 + 1 },
        ),
        ("no name", changed(64, 0), Reason::Block),
        ("endless name", Made { block: &[b'a'; 256], ..page() }.bytes(), Reason::Block),
        ("offset", Made::of(&[0x1001], &[]).bytes(), Reason::Offset(0x1001)),
        ("zero offset", Made::of(&[0x1000], &[0x800]).bytes(), Reason::Offset(0x800)),
    ];
    for (name, packet, expected) in cases {
        // What follows is fine, but nobody can tell.
        let bytes = [hello(), page().bytes(), packet, page().bytes()].concat();
        let (tokens, reason) = tokens(&bytes, &[2000]);
        assert_eq!(reason, Some(expected), "{name}");
        assert_eq!(rebuilt(&tokens), bytes, "{name}");
        assert!(matches!(tokens[..2], [Token::Hello(_), Token::Packet(_)]), "{name}");
        assert!(tokens[2..].iter().all(|token| matches!(token, Token::Literal(_))), "{name}");
        assert!(!expected.to_string().is_empty());
    }
}

#[test]
fn a_channel_of_something_else_is_literal() {
    let (tokens, reason) = tokens(b"QEVM and more", &[3]);
    assert_eq!(reason, Some(Reason::Hello));
    assert_eq!(tokens[0], Token::Literal(Bytes::from_static(b"QEV")), "not even the hello is waited for");
    assert_eq!(rebuilt(&tokens), b"QEVM and more");
}

#[test]
fn a_sync_may_repeat_the_size_before_it() {
    // As QEMU 7.2 does.
    let sync = Made { size: Some(128 * 4096), ..Made::sync() };
    let bytes = [hello(), sync.bytes(), Made::of(&[0], &[]).bytes()].concat();
    let (tokens, reason) = tokens(&bytes, &[]);
    assert_eq!((tokens.len(), reason), (3, None));
    assert_eq!(rebuilt(&tokens), bytes);
}

#[test]
fn a_shorter_packet_of_another_kind_is_not_held_back() {
    let mut tokeniser = Tokeniser::new();
    tokeniser.push(&hello());
    assert!(matches!(tokeniser.next_token(), Some(Token::Hello(_))));
    let packet = [&[0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1][..], &64_u32.to_be_bytes()].concat();
    tokeniser.push(&packet);
    assert_eq!(tokeniser.next_token(), Some(Token::Literal(Bytes::from(packet))));
    assert_eq!(tokeniser.next_token(), None);
}

#[test]
fn reads_into_the_room_are_not_copied() {
    let bytes = [hello(), Made::of(&[0x1000, 0x2000], &[]).bytes(), Made::sync().bytes()].concat();
    let mut rest = &bytes[..];
    let mut tokeniser = Tokeniser::new();
    let mut sizes = Vec::new();
    let mut pages_at = std::ptr::null();
    let mut tokens = Vec::new();
    while !rest.is_empty() {
        let mut room = tokeniser.input();
        let size = room.remaining_mut();
        if size == 2 * PAGE {
            pages_at = room.chunk_mut().as_mut_ptr().cast_const();
        }
        sizes.push(size);
        let (read, later) = rest.split_at(size);
        room.put_slice(read);
        rest = later;
        while let Some(token) = tokeniser.next_token() {
            tokens.push(token);
        }
    }
    assert_eq!(sizes, [HELLO, HEADER, 2 * PAGE, HEADER]);
    let Token::Packet(packet) = &tokens[1] else { panic!("{tokens:?}") };
    assert_eq!(packet.pages().as_ptr(), pages_at);
    assert_eq!(rebuilt(&tokens), bytes);
    assert_eq!(tokeniser.finish(), None);
}

#[test]
fn there_is_always_room() {
    let mut tokeniser = Tokeniser::new();
    tokeniser.push(&[hello(), vec![0; 10]].concat());
    assert!(tokeniser.input().remaining_mut() > 0, "although the hello was not taken");
    while tokeniser.next_token().is_some() {}
    assert!(tokeniser.literal_because().is_some());
    assert!(tokeniser.input().remaining_mut() > 0);
}

#[test]
fn the_end_of_a_channel_may_come_anywhere() {
    let bytes = [hello(), Made::of(&[0x1000], &[0x2000]).bytes()].concat();
    for length in (0..bytes.len()).step_by(61).chain([HELLO, HELLO + HEADER]) {
        let (tokens, reason) = tokens(&bytes[..length], &[500]);
        assert_eq!(reason, None, "what is there is known");
        assert_eq!(rebuilt(&tokens), bytes[..length], "{length}");
    }
}

#[test]
fn a_recorded_channel_is_recognised() {
    let bytes = decode(MULTIFD_CHANNEL);
    for sizes in [&[][..], &[1], &[4096], &[1344, 64, 100_000]] {
        let (tokens, reason) = tokens(&bytes, sizes);
        assert_eq!(reason, None);
        assert_eq!(rebuilt(&tokens), bytes);
        let Token::Hello(hello) = &tokens[0] else { panic!("{:?}", tokens[0]) };
        assert_eq!(hello.channel(), 0);
        let (mut pages, mut zero_pages, mut syncs) = (0, 0, 0);
        for token in &tokens[1..] {
            let Token::Packet(packet) = token else { panic!("{token:?}") };
            pages += packet.normal_offsets().len();
            zero_pages += packet.zero_offsets().len();
            syncs += usize::from(packet.is_sync());
        }
        let expected = ["pages", "zero pages", "syncs"].map(|what| stated(MULTIFD_CHANNEL, what));
        assert_eq!([pages, zero_pages, syncs], expected);
    }
}

fn made() -> impl Strategy<Value = Made> {
    let offsets = |most| proptest::collection::vec((0_u64..1 << 24).prop_map(|page| page << 12), 0..most);
    (offsets(12), offsets(100), any::<u64>(), prop_oneof![4 => Just(0), 1 => Just(1)])
        .prop_map(|(normal, zero, number, flags)| Made { flags, number, ..Made::of(&normal, &zero) })
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(prop_oneof![1_usize..100, 1_usize..10_000], 0..6)
}

proptest! {
    #[test]
    fn any_bytes_come_out_as_they_went_in(
        start in prop_oneof![Just(vec![]), Just(hello()), Just([hello(), Made::sync().bytes()].concat())],
        bytes in proptest::collection::vec(any::<u8>(), 0..3000),
        sizes in sizes(),
    ) {
        let bytes = [start, bytes].concat();
        let (tokens, _) = tokens(&bytes, &sizes);
        prop_assert_eq!(rebuilt(&tokens), bytes);
    }

    #[test]
    fn packets_are_recognised_in_any_reads(
        packets in proptest::collection::vec(made(), 0..6),
        sizes in sizes(),
    ) {
        let bytes = [hello(), packets.iter().flat_map(Made::bytes).collect()].concat();
        let (tokens, reason) = tokens(&bytes, &sizes);
        prop_assert_eq!(reason, None);
        prop_assert_eq!(rebuilt(&tokens), bytes);
        prop_assert_eq!(tokens.len(), 1 + packets.len());
        for (token, made) in tokens[1..].iter().zip(&packets) {
            let Token::Packet(packet) = token else { panic!("{token:?}") };
            prop_assert_eq!(&packet.normal_offsets().collect::<Vec<_>>(), &made.normal);
            prop_assert_eq!(&packet.zero_offsets().collect::<Vec<_>>(), &made.zero);
            prop_assert_eq!((packet.packet_number(), packet.is_sync()), (made.number, made.flags == 1));
        }
    }

    #[test]
    fn damage_and_cuts_lose_nothing(
        packets in proptest::collection::vec(made(), 1..4),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        sizes in sizes(),
    ) {
        let mut bytes = [hello(), packets.iter().flat_map(Made::bytes).collect()].concat();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let (tokens, _) = tokens(&bytes, &sizes);
        prop_assert_eq!(rebuilt(&tokens), bytes);
    }
}
