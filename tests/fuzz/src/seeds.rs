//! Seeds made of the golden frames, so that every fixture of the protocol is a starting point of its fuzz target, and
//! of what our own encoders write.

use engine::migrate::disk::frame::{Operation, Request};
use engine::migrate::ram::frame::{Head, Kind};
use std::io;
use std::path::Path;

use engine::journal::{HeaderV1, encode_change, encode_dirty};
use engine::receipt::{Body, Receipt, ReceiptMode, Verified};
use session::Change;
use volume::{ByteLen, ChunkId, ExtentIndex, Generation, KeyId, SessionId};

/// An Ed25519 public key (RFC 8032, 7.1, test 1) under which nothing here was signed.
pub const STRANGER: [u8; 32] = [
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a, 0x0e,
    0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];

/// One corpus file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seed {
    /// Name of the target.
    pub target: &'static str,
    /// Name of the file.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// A volume size for which golden extent heads pass their check: the tail extent of `extent_raw` has five chunks.
const VOLUME_SIZE: u64 = 7 * volume::EXTENT + 5 * volume::CHUNK;

/// The seeds of all targets of crate `wire`.
///
/// # Errors
/// When a fixture cannot be read, or is not hexadecimal.
pub fn golden() -> io::Result<Vec<Seed>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../agent/crates/wire/golden");
    let prelude = read_hex(&folder.join("prelude.hex"))?;
    let mut seeds = vec![Seed { target: "prelude", name: "golden".to_owned(), bytes: prelude }];
    for entry in std::fs::read_dir(folder.join("v1"))? {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|name| name.to_str()).map(str::to_owned) else {
            return Err(io::Error::other(format!("{} is not named in UTF-8", path.display())));
        };
        let bytes = read_hex(&path)?;
        let (header, body) = bytes.split_at(wire::FRAME_HEADER);
        seeds.push(Seed { target: "frame_header", name: name.clone(), bytes: header.to_vec() });
        if header[0] == wire::Tag::Extent as u8 {
            let bytes = [&VOLUME_SIZE.to_le_bytes(), body].concat();
            seeds.push(Seed { target: "extent_head", name, bytes });
        } else {
            seeds.push(Seed { target: "control", name, bytes });
        }
    }
    Ok(seeds)
}

/// The seeds that our own encoders make. Certificates are not among them: each has its own keys.
///
/// # Panics
/// When there is no memory for a zstd context.
#[must_use]
pub fn made() -> Vec<Seed> {
    let seed =
        |target, name: &str, bytes: &[u8]| Seed { target, name: name.to_owned(), bytes: bytes.to_vec() };
    let mut seeds = Vec::new();
    let header = HeaderV1 { session: SessionId([1; 16]), size: ByteLen(VOLUME_SIZE), key_id: KeyId([2; 16]) };
    let mut journal = header.encode().to_vec();
    let mut chain = header.chain();
    for change in [
        Change::Extent { extent: ExtentIndex(0), ids: vec![ChunkId([3; 32]), ChunkId::ZERO] },
        Change::Zero { first: ExtentIndex(1), count: 6 },
        Change::Extent { extent: ExtentIndex(7), ids: vec![ChunkId([4; 32])] },
    ] {
        chain = encode_change(&change, chain, &mut journal);
    }
    encode_dirty(ExtentIndex(2), 3, chain, &mut journal);
    for target in ["journal_replay", "journal_fields"] {
        seeds.push(seed(target, "whole", &journal));
        seeds.push(seed(target, "torn", &journal[..journal.len() - 5]));
        seeds.push(seed(target, "header", &journal[..64]));
    }
    for (name, root) in [("sealed", Some(reduce::Root([5; 32]))), ("open", None)] {
        let header = reduce::leaf_table::HeaderV1 {
            size: ByteLen(VOLUME_SIZE),
            key_id: KeyId([2; 16]),
            generation: Generation(3),
            root,
        };
        seeds.push(seed("leaf_table", name, &[&header.encode()[..], &[6; 64]].concat()));
    }
    let body = Body {
        version: 1,
        volume: "fast/web-1".to_owned(),
        size: VOLUME_SIZE,
        root: "ab".repeat(32),
        key_id: "cd".repeat(16),
        generation: 3,
        session: "ef".repeat(16),
        mode: ReceiptMode::Create,
        verified: Verified::Sink,
        owner: "host-a".to_owned(),
        receiver: "host-b".to_owned(),
        time: 1_790_000_000,
    };
    let mut receipt = Receipt::issue(body, None);
    seeds.push(seed("receipt", "unsigned", &receipt.to_json()));
    receipt.signature = "1f".repeat(64);
    seeds.push(seed("receipt", "wrongly_signed", &receipt.to_json()));
    for (name, plain) in
        [("ours_small", vec![7; 200]), ("ours_medium", vec![8; 5000]), ("ours_large", vec![9; 100_000])]
    {
        let mut frame = vec![0; plain.len()];
        let mut compressor = reduce::Compressor::new().expect("there is memory for a context");
        let outcome =
            compressor.compress(3, &[&plain], &mut frame).expect("a level and a length within the limits");
        let reduce::Outcome::Compressed(len) = outcome else { unreachable!("one byte repeated pays") };
        let [a, b, c, ..] = plain.len().to_le_bytes();
        seeds.push(seed("decompress", name, &[&[a, b, c, 0, 16], &frame[..len]].concat()));
    }
    // The first byte is the size of the reads.
    seeds.push(seed("multifd", "round", &[&[255], &crate::migration::channel_seed()[..]].concat()));
    seeds.push(seed(
        "migration_stream",
        "plain",
        &[&[200], &crate::migration::stream_seed(false)[..]].concat(),
    ));
    seeds.push(seed(
        "migration_stream",
        "fields",
        &[&[3], &crate::migration::stream_seed(true)[..]].concat(),
    ));
    seeds.extend(ram_packets());
    for (name, kind, pages, head, body) in [
        ("literal", Kind::Literal, 0, 0, 9),
        ("multifd", Kind::Multifd, 1, 1344, 4100),
        ("mixed", Kind::Mixed, 1, 8, 4100),
        ("end", Kind::End, 0, 0, 0),
    ] {
        let frame =
            Head { kind, compressed: false, pages, head_wire: head, head_plain: head, body, number: 3 };
        seeds.push(seed("migration_frames", name, &[&frame.encode()[..], &[0; 8]].concat()));
    }
    for (name, operation, wire_len, len) in [
        ("write", Operation::Write { compressed: true }, 100, 65536),
        ("zero", Operation::Zero, 0, 65536),
        ("flush", Operation::Flush, 0, 0),
    ] {
        let request = Request { operation, flags: 1, wire_len, number: 7, offset: 0, len };
        seeds.push(seed("migration_frames", name, &request.encode()));
    }
    for (name, text) in [
        ("probe", r#"{"message":"probe","version":1,"nth":2,"answer":true,"padding":"xx"}"#),
        ("probed", r#"{"message":"probed","nth":2}"#),
        ("compare", r#"{"message":"compare","roots":[{"disk":"vd0","root":"00"}],"readback":false}"#),
        ("permit", r#"{"message":"permit","generation":3,"roots":[]}"#),
        ("not_run", r#"{"message":"not-run","reason":"no room"}"#),
        ("verdict", r#"{"message":"verdict","verdict":"ran-and-died"}"#),
    ] {
        seeds.push(seed("migration_messages", name, text.as_bytes()));
    }
    seeds
}

/// Three packets that meet every kind of page, raw and compressed: new pages, then the same with edits, then copies.
fn ram_packets() -> Vec<Seed> {
    let text: [u8; 4096] = std::array::from_fn(|n| b"ferry "[n % 6]);
    // An even spread of bytes, which counts as random.
    let noise: [u8; 4096] = std::array::from_fn(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()[3]);
    let mut edited = text;
    edited[100..108].copy_from_slice(b"novacron");
    let rounds: [&[(u64, [u8; 4096])]; 3] = [
        &[(0, text), (1, noise), (2, [0; 4096])],
        &[(0, edited), (1, noise), (3, text), (2, [7; 4096])],
        &[(0, text), (4, edited), (0, edited)],
    ];
    [("raw", reduce::Choice::Raw), ("compressed", reduce::Choice::Level(1))]
        .map(|(name, choice)| {
            let mut encoder = reduce::ram::Encoder::new(16);
            let mut packer = reduce::ram::Packer::new().expect("there is memory for a context");
            let mut bytes = Vec::new();
            for (pages, number) in rounds.iter().zip(0..) {
                let batch = pages.iter().map(|(offset, bytes)| reduce::ram::Page {
                    block: 0,
                    offset: *offset,
                    bytes,
                });
                let batch = reduce::ram::Batch::new(batch.collect()).expect("few pages");
                let mut packet = Vec::new();
                let plan = encoder.plan(0, number, batch).expect("rising numbers");
                plan.pack(&mut packer, choice, &mut packet).expect("an allowed level");
                let [a, b, ..] = packet.len().to_le_bytes();
                let [count, ..] = pages.len().to_le_bytes();
                bytes.extend_from_slice(&[count, a, b]);
                bytes.extend_from_slice(&packet);
            }
            Seed { target: "ram_packet", name: name.to_owned(), bytes }
        })
        .into()
}

/// Pairs of hexadecimal digits; `#` starts a comment that ends with the line.
fn read_hex(path: &Path) -> io::Result<Vec<u8>> {
    let text = std::fs::read_to_string(path)?;
    let digits: Option<Vec<u8>> = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().chars())
        .filter(|character| !character.is_whitespace())
        .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    match digits {
        Some(digits) if digits.len().is_multiple_of(2) => {
            Ok(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
        }
        _ => Err(io::Error::other(format!("{} holds no whole hexadecimal bytes", path.display()))),
    }
}
