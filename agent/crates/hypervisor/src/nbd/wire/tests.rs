use proptest::prelude::*;

use super::handshake::{
    OPTION_ABORT, OPTION_GO, decode_export_name_reply, encode_go, encode_option, encode_set_meta_context,
};
use super::options::{
    ClientFlags, MAX_OPTION, OPTION_INFO, OPTION_LIST, OptionHeader, OptionRequest, Query, Refusal,
};
use super::requests::{Incoming, Job, Rules, encode_data_head, encode_error, encode_simple};
use super::transmission::{ChunkType, Descriptor, Kind};
use super::*;
use volume::{ByteRange, ZeroMode};

/// Bytes of a hexadecimal text; spaces only group.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

fn array<const N: usize>(text: &str) -> [u8; N] {
    hex(text).try_into().unwrap()
}

#[test]
fn greeting_golden_bytes() {
    let both = array("4e42444d41474943 49484156454f5054 0003");
    assert_eq!(Greeting::decode(&both), Ok(Greeting { no_zeroes: true }));
    assert_eq!(Greeting { no_zeroes: true }.answer().to_vec(), hex("00000003"));
    let fixed = array("4e42444d41474943 49484156454f5054 0001");
    assert_eq!(Greeting::decode(&fixed), Ok(Greeting { no_zeroes: false }));
    assert_eq!(Greeting { no_zeroes: false }.answer().to_vec(), hex("00000001"));

    let newstyle = array("4e42444d41474943 49484156454f5054 0002");
    assert_eq!(Greeting::decode(&newstyle), Err(ProtocolError::NotFixedNewstyle));
    let oldstyle = array("4e42444d41474943 0000420281861253 0000");
    assert_eq!(Greeting::decode(&oldstyle), Err(ProtocolError::OldStyle));
    let ssh = *b"SSH-2.0-OpenSSH_9.";
    assert!(matches!(Greeting::decode(&ssh), Err(ProtocolError::Magic { what: "greeting", .. })));
}

#[test]
fn option_golden_bytes() {
    assert_eq!(encode_option(OPTION_ABORT, &[]), hex("49484156454f5054 00000002 00000000"));
    assert_eq!(
        encode_go("disk"),
        hex("49484156454f5054 00000007 0000000c 00000004 6469736b 0001 0003"),
        "GO with one information request: block size"
    );
    assert_eq!(
        encode_set_meta_context("d", &["base:allocation"]),
        hex(
            "49484156454f5054 0000000a 0000001c 00000001 64 00000001 0000000f 626173653a616c6c6f636174696f6e"
        )
    );
}

#[test]
fn option_reply_golden_bytes() {
    let header = ReplyHeader::decode(&array("0003e889045565a9 00000007 00000003 0000000c")).unwrap();
    assert_eq!(header, ReplyHeader { option: OPTION_GO, reply: 3, length: 12 });
    let export = OptionReply::decode(3, &hex("0000 0000000000100000 01ed")).unwrap();
    let OptionReply::Information(Information::Export { size, flags }) = export else { panic!("{export:?}") };
    assert_eq!(size, 1 << 20);
    assert!(flags.flush() && flags.fua() && flags.trim() && flags.write_zeroes() && flags.can_multi_conn());
    assert!(!flags.read_only() && !flags.fast_zero());
    assert_eq!(
        OptionReply::decode(3, &hex("0003 00000200 00001000 02000000")),
        Ok(OptionReply::Information(Information::BlockSizes(BlockSizes {
            minimum: 512,
            preferred: 4096,
            maximum: 32 << 20
        })))
    );
    assert_eq!(
        OptionReply::decode(4, &hex("00000001 626173653a616c6c6f636174696f6e")),
        Ok(OptionReply::MetaContext(MetaContext { id: 1, name: "base:allocation".into() }))
    );
    assert_eq!(OptionReply::decode(1, &[]), Ok(OptionReply::Ack));
    let refused = OptionReply::decode(0x8000_0006, b"no\nexport").unwrap();
    let OptionReply::Refused(refusal) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal, OptionRefusal { code: 6, message: "no export".into() });
    assert_eq!(refusal.kind(), volume::Kind::NotFound);
    let (size, flags) = decode_export_name_reply(&array("0000000000000200 0003"));
    assert!(size == 512 && flags.read_only());
}

#[test]
fn flags_do_not_count_without_has_flags() {
    assert!(TransmissionFlags(0b11).read_only());
    assert!(!TransmissionFlags(0b10).read_only());
}

#[test]
fn option_replies_are_refused_when_malformed() {
    let too_long = array("0003e889045565a9 00000007 00000003 00004001");
    assert!(matches!(ReplyHeader::decode(&too_long), Err(ProtocolError::TooLong { length: 0x4001, .. })));
    let magic = array("0003e889045565aa 00000007 00000003 00000000");
    assert!(matches!(ReplyHeader::decode(&magic), Err(ProtocolError::Magic { .. })));
    for (reply, payload) in [
        (1, "00"),
        (2, ""),
        (3, "00"),
        (3, "0000 00000000"),
        (3, "0000 0000000000100000 01ed 00"),
        (3, "0003 00000200 00001000 02000000 00"),
        (4, "000000"),
        (4, "00000001 ff"),
    ] {
        assert!(OptionReply::decode(reply, &hex(payload)).is_err(), "{reply}: {payload}");
    }
}

#[test]
fn block_sizes_are_checked_and_lowered() {
    let lowered = BlockSizes::checked(1, 4096, u32::MAX).unwrap();
    assert_eq!(lowered.maximum, MAX_PAYLOAD);
    for (minimum, preferred, maximum) in [
        (0, 4096, 4096),
        (3, 4096, 4096),
        (512, 256, 4096),
        (512, 4096, 256),
        (512, 4096, 4097),
        (131_072, 131_072, 131_072),
    ] {
        assert!(BlockSizes::checked(minimum, preferred, maximum).is_err(), "{minimum}/{preferred}/{maximum}");
    }
}

#[test]
fn request_golden_bytes() {
    let request = Request {
        command: Command::WriteZeroes,
        flags: CommandFlags::FUA.and(CommandFlags::NO_HOLE),
        cookie: 0x0102_0304_0506_0708,
        offset: 0x1_0000_0000,
        length: 0x2_0000,
    };
    assert_eq!(
        request.encode().to_vec(),
        hex("25609513 0003 0006 0102030405060708 0000000100000000 00020000")
    );
}

#[test]
fn reply_golden_bytes() {
    assert_eq!(Kind::decode(array("67446698")), Ok(Kind::Simple));
    assert_eq!(Kind::decode(array("668e33ef")), Ok(Kind::Structured));
    assert!(Kind::decode(array("6e8a278c")).is_err(), "extended replies were not negotiated");
    let simple = Header::decode_simple(&array("0000001c 0000000000000007"));
    assert_eq!((simple.cookie(), simple.error()), (7, Some(ErrorCode::ENOSPC)));
    assert_eq!(Header::decode_simple(&array("00000000 0000000000000007")).error(), None);

    let data = ChunkHeader::decode(&array("0001 0001 0000000000000007 0000000a")).unwrap();
    assert_eq!(data, ChunkHeader { done: true, kind: ChunkType::Data, cookie: 7, length: 10 });
    assert_eq!(
        Chunk::decode(&data, &hex("0000000000001000 abcd")),
        Ok(Chunk::Data { offset: 4096, data: &[0xab, 0xcd] })
    );
    let hole = ChunkHeader::decode(&array("0000 0002 0000000000000007 0000000c")).unwrap();
    assert!(!hole.done);
    assert_eq!(
        Chunk::decode(&hole, &hex("0000000000001000 00010000")),
        Ok(Chunk::Hole { offset: 4096, length: 65536 })
    );
    let status = ChunkHeader::decode(&array("0001 0005 0000000000000007 00000014")).unwrap();
    assert_eq!(
        Chunk::decode(&status, &hex("00000001 00010000 00000003 00020000 00000000")),
        Ok(Chunk::Status {
            context: 1,
            extents: vec![Descriptor { length: 65536, flags: 3 }, Descriptor { length: 131_072, flags: 0 }]
        })
    );
    let error = ChunkHeader::decode(&array("0001 8002 0000000000000007 00000011")).unwrap();
    assert_eq!(
        Chunk::decode(&error, &hex("00000005 0003 626164 0000000000002000")),
        Ok(Chunk::Error { code: ErrorCode::EIO, message: "bad".into(), offset: Some(8192) })
    );
}

#[test]
fn chunks_above_their_cap_or_below_their_shape_are_refused() {
    for (kind, length) in [
        (0, 1),
        (1, 8),
        (1, 8 + MAX_PAYLOAD + 1),
        (2, 11),
        (2, 13),
        (5, 4),
        (5, 4 + 8 * MAX_EXTENTS + 1),
        (32769, 5),
        (32769, MAX_ERROR_PAYLOAD + 1),
        (32770, 13),
        (40000, MAX_ERROR_PAYLOAD + 1),
        (3, 0),
        (6, 20),
    ] {
        let bytes = array(&format!("0001 {kind:04x} 0000000000000007 {length:08x}"));
        assert!(ChunkHeader::decode(&bytes).is_err(), "type {kind}, {length} bytes");
    }
    let status = ChunkHeader { done: true, kind: ChunkType::Status, cookie: 1, length: 12 };
    for payload in ["00000001 00000000 00000000", "00000001 00000001 000000", "00000001"] {
        assert!(Chunk::decode(&status, &hex(payload)).is_err(), "{payload}");
    }
    let error = ChunkHeader { done: true, kind: ChunkType::Error, cookie: 1, length: 6 };
    for payload in ["00000005 0001", "00000005 0001 61 62", "00000005"] {
        assert!(Chunk::decode(&error, &hex(payload)).is_err(), "{payload}");
    }
}

#[test]
fn server_handshake_golden_bytes() {
    assert_eq!(options::greeting().to_vec(), hex("4e42444d41474943 49484156454f5054 0003"));
    assert_eq!(ClientFlags::decode([0, 0, 0, 3]), Ok(ClientFlags { no_zeroes: true }));
    for flags in [[0, 0, 0, 0], [0, 0, 0, 2], [0, 0, 0, 7], [0x80, 0, 0, 3]] {
        assert!(matches!(ClientFlags::decode(flags), Err(ProtocolError::ClientFlags { .. })), "{flags:?}");
    }
    let header = OptionHeader::decode(&array("49484156454f5054 00000007 0000000c"));
    assert_eq!(header, Ok(OptionHeader { option: OPTION_GO, length: 12 }));
    assert!(OptionHeader::decode(&array("49484156454f5055 00000007 0000000c")).is_err());
    let long = format!("49484156454f5054 00000007 {:08x}", MAX_OPTION + 1);
    assert!(matches!(OptionHeader::decode(&array(&long)), Err(ProtocolError::TooLong { .. })));

    let query = |block_sizes| Query { name: "disk".to_owned(), block_sizes };
    let go = OptionRequest::decode(OPTION_GO, &hex("00000004 6469736b 0001 0003"));
    assert_eq!(go, Ok(OptionRequest::Go(query(true))), "what encode_go makes");
    let info = OptionRequest::decode(OPTION_INFO, &hex("00000004 6469736b 0002 0001 0002"));
    assert_eq!(info, Ok(OptionRequest::Info(query(false))));
    let name = OptionRequest::decode(1, b"disk");
    assert_eq!(name, Ok(OptionRequest::ExportName("disk".to_owned())));
    assert_eq!(OptionRequest::decode(OPTION_ABORT, b"bye"), Ok(OptionRequest::Abort));
    assert_eq!(OptionRequest::decode(5, b"?"), Ok(OptionRequest::Unknown), "no TLS");
    for (option, payload) in [
        (OPTION_LIST, "00"),
        (8, "00"),
        (OPTION_GO, ""),
        (OPTION_GO, "00000005 6469736b 0000"),
        (OPTION_GO, "ffffffff 6469736b 0000"),
        (OPTION_GO, "00000004 6469736b 0002 0003"),
        (OPTION_GO, "00000004 6469736b 0000 00"),
        (OPTION_INFO, "00000001 ff 0000"),
        (1, "ff"),
    ] {
        assert!(OptionRequest::decode(option, &hex(payload)).is_err(), "{option}: {payload}");
    }

    let description = options::encode_description(
        OPTION_GO,
        1 << 20,
        TransmissionFlags::SERVED.with_read_only(true).with_fast_zero(true),
        BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 20 },
    );
    let expected = "0003e889045565a9 00000007 00000003 0000000c 0000 0000000000100000 086f
        0003e889045565a9 00000007 00000003 0000000e 0003 00000200 00001000 00100000
        0003e889045565a9 00000007 00000001 00000000";
    assert_eq!(description, hex(expected));
    let list = "0003e889045565a9 00000003 00000002 00000005 00000001 64
        0003e889045565a9 00000003 00000001 00000000";
    assert_eq!(options::encode_list("d"), hex(list));
    let refusal = options::encode_refusal(5, Refusal::Unsupported, "no");
    assert_eq!(refusal, hex("0003e889045565a9 00000005 80000001 00000002 6e6f"));
    let reply = |no_zeroes| {
        options::encode_export_name_reply(512, TransmissionFlags::SERVED, ClientFlags { no_zeroes })
    };
    assert_eq!(reply(true), hex("0000000000000200 006d"));
    assert_eq!((reply(false).len(), &reply(false)[..10]), (134, &reply(true)[..]));
}

#[test]
fn requests_are_checked_against_the_export() {
    let sizes = BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 20 };
    let rules = Rules { size: 8 << 20, sizes, read_only: false, fast_zero: false };
    let request = |command: u16, flags: u16, offset: u64, length: u32| {
        let head = format!("25609513 {flags:04x} {command:04x} 0000000000000007 {offset:016x} {length:08x}");
        Incoming::decode(&array(&head)).unwrap()
    };
    let range = |start, end| ByteRange { start, end };
    let zero = |start, end, mode, fua, fast| {
        Ok(Job::Zero { range: range(start, end), how: Zeroing { mode, fua, fast } })
    };
    let (keep, free) = (ZeroMode::Allocate, ZeroMode::Deallocate);
    let (invalid, full) = (Err(ErrorCode::EINVAL), Err(ErrorCode::ENOSPC));
    for (command, flags, offset, length, expected) in [
        (0, 1, 512, 1 << 20, Ok(Job::Read(range(512, 512 + (1 << 20))))),
        (0, 0, 512, (1 << 20) + 512, invalid),
        (0, 0, 8 << 20, 512, invalid),
        (0, 0, u64::MAX - 511, 512, invalid),
        (0, 4, 0, 512, invalid),
        (1, 0, 512, 512, Ok(Job::Write { range: range(512, 1024), fua: false })),
        (1, 1, 0, 512, Ok(Job::Write { range: range(0, 512), fua: true })),
        (1, 0, 8 << 20, 512, full),
        (1, 0, 1, 512, invalid),
        (1, 0, 512, 511, invalid),
        (1, 0, 512, 0, invalid),
        (1, 2, 512, 512, invalid),
        (2, 0xffff, 1, 1, Ok(Job::Disconnect)),
        (3, 0, 0, 0, Ok(Job::Flush)),
        (3, 0, 0, 512, invalid),
        (4, 1, 0, 512, zero(0, 512, free, true, false)),
        (4, 0, 8 << 20, 512, invalid),
        (6, 0, 0, 8 << 20, zero(0, 8 << 20, free, false, false)),
        (6, 3, 0, 512, zero(0, 512, keep, true, false)),
        (6, 16, 0, 512, invalid),
        (6, 0, 512, 8 << 20, full),
        (7, 0, 0, 512, invalid),
        (5, 0, 0, 512, invalid),
        (99, 0, 0, 512, invalid),
    ] {
        let incoming = request(command, flags, offset, length);
        assert_eq!(incoming.check(&rules), expected, "{incoming:?}");
    }
    let fast = Rules { fast_zero: true, ..rules };
    assert_eq!(request(6, 16, 0, 512).check(&fast), zero(0, 512, free, false, true));
    let fixed = Rules { read_only: true, ..rules };
    for command in [1, 4, 6] {
        assert_eq!(request(command, 0, 0, 512).check(&fixed), Err(ErrorCode::EPERM));
    }
    assert!(request(0, 0, 0, 512).check(&fixed).is_ok() && request(3, 0, 0, 0).check(&fixed).is_ok());

    assert_eq!(request(1, 0, 0, 1 << 20).payload(1 << 20), Ok(1 << 20));
    assert!(matches!(request(1, 0, 0, u32::MAX).payload(1 << 20), Err(ProtocolError::TooLong { .. })));
    assert_eq!(request(6, 0, 0, u32::MAX).payload(1 << 20), Ok(0));
    assert!(Incoming::decode(&[0; 28]).is_err());
}

#[test]
fn server_reply_golden_bytes() {
    assert_eq!(encode_simple(7, None).to_vec(), hex("67446698 00000000 0000000000000007"));
    let full = encode_simple(7, Some(ErrorCode::ENOSPC)).to_vec();
    assert_eq!(full, hex("67446698 0000001c 0000000000000007"));
    let data = hex("668e33ef 0001 0001 0000000000000007 00000208 0000000000001000");
    assert_eq!(encode_data_head(7, 4096, 512), data);
    let error = encode_error(7, ErrorCode::EIO, "bad");
    assert_eq!(error, hex("668e33ef 0001 8001 0000000000000007 00000009 00000005 0003 626164"));
    let long = encode_error(7, ErrorCode::EIO, &"é".repeat(MAX_STRING));
    assert_eq!(long.len(), 26 + MAX_STRING, "cut between characters");
    let kinds = [volume::Kind::NoSpace, volume::Kind::Permission, volume::Kind::OutOfRange];
    let codes = [ErrorCode::ENOSPC, ErrorCode::EPERM, ErrorCode::EINVAL];
    assert_eq!(kinds.map(ErrorCode::of), codes);
    assert_eq!(ErrorCode::of(volume::Kind::Poisoned), ErrorCode::EIO);
}

#[test]
fn the_fuzz_entry_of_requests_reaches_both_phases() {
    assert_eq!(decode_requests(&hex("00000003 49484156454f5054 00000003 00000000")), 2);
    let write = "25609513 0000 0001 0000000000000007 0000000000001000 00000002 abcd";
    let flush = "25609513 0000 0003 0000000000000008 0000000000000000 00000000";
    assert_eq!(decode_requests(&hex(&format!("{write} {flush}"))), 2);
}

#[test]
fn the_fuzz_entry_reaches_both_phases() {
    assert_eq!(decode_anything(&hex("4e42444d41474943 49484156454f5054 0003")), 1);
    let ack = "0003e889045565a9 00000007 00000001 00000000";
    assert_eq!(decode_anything(&hex(&format!("4e42444d41474943 49484156454f5054 0003 {ack}"))), 2);
    assert_eq!(
        decode_anything(&hex(
            "67446698 00000000 0000000000000007 668e33ef 0001 0000 0000000000000007 00000000"
        )),
        2
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode_anything(&bytes);
        let _ = decode_requests(&bytes);
    }

    #[test]
    fn arbitrary_requests_never_panic(
        option in 0_u32..12, command in 0_u16..9, bytes in prop::collection::vec(any::<u8>(), 20..60),
    ) {
        let _ = OptionRequest::decode(option, &bytes).is_ok();
        let mut head = hex("25609513 0000");
        head.extend(command.to_be_bytes());
        head.extend(&bytes);
        let _ = decode_requests(&head);
    }

    /// As above, but past the magics.
    #[test]
    fn arbitrary_payloads_never_panic(
        kind in prop_oneof![0_u16..8, 32768_u16..32772], reply in prop_oneof![0_u32..6, Just(0x8000_0001_u32)],
        bytes in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let _ = OptionReply::decode(reply, &bytes).is_ok();
        let mut head = vec![0, 1];
        head.extend(kind.to_be_bytes());
        head.extend(7_u64.to_be_bytes());
        head.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        if let Ok(header) = ChunkHeader::decode(&head.try_into().unwrap()) {
            let _ = Chunk::decode(&header, &bytes).is_ok();
        }
    }
}

#[test]
fn every_error_of_a_server_says_something_of_its_own() {
    let refusals = (1..=11).map(|code| OptionRefusal { code, message: String::new() });
    let mut said: Vec<String> = refusals.map(|refusal| format!("{:?} {refusal}", refusal.kind())).collect();
    let codes = [1, 5, 12, 22, 28, 75, 95, 108, 7777];
    said.extend(codes.map(|code| format!("{:?} {}", ErrorCode(code).kind(), ErrorCode(code))));
    let different: std::collections::BTreeSet<&String> = said.iter().collect();
    assert_eq!(different.len(), said.len(), "{said:?}");
    let explained = OptionRefusal { code: 6, message: "no disk".to_owned() };
    assert!(explained.to_string().ends_with("(no disk)"), "{explained}");
    let commands = [
        Command::Read,
        Command::Write,
        Command::Disconnect,
        Command::Flush,
        Command::Trim,
        Command::WriteZeroes,
        Command::BlockStatus,
    ];
    let names: std::collections::BTreeSet<String> = commands.iter().map(Command::to_string).collect();
    assert_eq!(names.len(), commands.len());
}
