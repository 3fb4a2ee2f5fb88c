//! Damaged golden frames: each is refused, or is another frame in its canonical form. Nothing panics.

use wire::{Control, DecodeError, FRAME_HEADER, FailCode, PRELUDE, Prelude, Tag};

use crate::{Frame, fixtures, parse_hex};

/// The frame says again exactly what was read, but for the one catch-all.
fn assert_canonical(frame: &Frame, bytes: &[u8], what: &str) {
    let mut expected = bytes.to_vec();
    if frame.is_catch_all() {
        expected[FRAME_HEADER..FRAME_HEADER + 2].copy_from_slice(&FailCode::Internal.number().to_le_bytes());
    }
    assert_eq!(frame.encode(), expected, "{what}: {frame:?} is not canonical");
}

/// Frames whose last field is a list or bytes up to the body's end: a shorter body may be a shorter list.
fn ends_in_a_list(tag: Tag) -> bool {
    matches!(tag, Tag::Durable | Tag::Known | Tag::Ack | Tag::Sealed | Tag::Message)
}

#[test]
fn a_truncated_stream_is_never_a_frame() {
    for fixture in fixtures::all() {
        let bytes = parse_hex(fixture.hex);
        for cut in 0..bytes.len() {
            let result = Frame::decode(&bytes[..cut]);
            assert!(matches!(result, Err(DecodeError::Truncated(_))), "{} cut at {cut}", fixture.name);
        }
    }
}

#[test]
fn a_truncated_body_is_refused_or_a_shorter_list() {
    for fixture in fixtures::all() {
        let bytes = parse_hex(fixture.hex);
        let tag = fixture.frame.tag();
        for cut in FRAME_HEADER..bytes.len() {
            let body = &bytes[FRAME_HEADER..cut];
            let what = format!("{} with a body of {} bytes", fixture.name, body.len());
            match Frame::decode_body(tag, body) {
                Ok(frame) => {
                    assert!(ends_in_a_list(tag), "{what} was taken");
                    assert_eq!(frame.encode()[FRAME_HEADER..], *body, "{what}");
                }
                Err(error) => assert!(
                    matches!(error, DecodeError::Truncated(_) | DecodeError::Invalid { .. }),
                    "{what}: {error:?}"
                ),
            }
        }
    }
}

#[test]
fn trailing_bytes_are_refused() {
    for fixture in fixtures::all() {
        let mut bytes = parse_hex(fixture.hex);
        bytes.push(0);
        assert_eq!(Frame::decode(&bytes), Err(DecodeError::Trailing(1)), "{}", fixture.name);
        // The same byte with a header that counts it.
        let tag = fixture.frame.tag();
        match Frame::decode_body(tag, &bytes[FRAME_HEADER..]) {
            Ok(frame) => {
                assert!(matches!(tag, Tag::Sealed | Tag::Message), "{} took a byte too many", fixture.name);
                assert_eq!(frame.encode()[FRAME_HEADER..], bytes[FRAME_HEADER..]);
            }
            Err(error) => assert!(
                matches!(
                    error,
                    DecodeError::Trailing(1) | DecodeError::Truncated(_) | DecodeError::Invalid { .. }
                ),
                "{}: {error:?}",
                fixture.name
            ),
        }
    }
}

#[test]
fn every_flipped_bit_is_refused_or_another_canonical_frame() {
    for fixture in fixtures::all() {
        let bytes = parse_hex(fixture.hex);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(frame) = Frame::decode(&flipped) {
                assert_ne!(frame, fixture.frame, "{} bit {bit} has no meaning", fixture.name);
                assert_canonical(&frame, &flipped, &format!("{} bit {bit}", fixture.name));
            }
        }
    }
}

#[test]
fn every_flipped_bit_of_the_prelude_is_refused_or_another_prelude() {
    let golden = parse_hex(include_str!("../../golden/prelude.hex"));
    for bit in 0..PRELUDE * 8 {
        let mut bytes: [u8; PRELUDE] = golden.clone().try_into().expect("a prelude has 32 bytes");
        bytes[bit / 8] ^= 1 << (bit % 8);
        match Prelude::decode(&bytes) {
            Ok(prelude) => {
                assert!((12..24).contains(&(bit / 8)), "bit {bit} of the frozen part was not noticed");
                assert_eq!(prelude.encode(), bytes);
            }
            Err(error) => match bit / 8 {
                0..8 => assert_eq!(error, DecodeError::BadMagic),
                8 => assert_eq!(error, DecodeError::PreludeVersion(bytes[8])),
                9..12 | 24..32 => assert_eq!(error, DecodeError::Reserved("prelude")),
                _ => assert!(matches!(error, DecodeError::Invalid { .. }), "bit {bit}: {error:?}"),
            },
        }
    }
}

/// Where reserved bytes lie in each fixture's body, first and one past the last. The others have none.
const RESERVED: &[(&str, usize, usize)] = &[
    ("open_push", 21, 24),
    ("durable", 1, 8),
    ("leaves_zero", 17, 24),
    ("leaves_prefixes", 17, 24),
    ("known", 1, 8),
    ("page_query", 10, 16),
    ("page_sums", 10, 16),
    ("extent_raw", 34, 40),
    // The second byte of each entry: a zero entry is 4 bytes long, the others 36.
    ("extent_raw", 41, 42),
    ("extent_raw", 45, 46),
    ("extent_raw", 81, 82),
    ("extent_raw", 117, 118),
    ("extent_raw", 153, 154),
    ("range_zero", 33, 40),
    ("need_unknown", 19, 24),
    ("lane_hello", 26, 32),
    ("migrate", 16, 32),
    ("channel_hello_ram", 27, 32),
    ("channel_hello_disk", 27, 32),
];

#[test]
fn every_reserved_bit_is_checked() {
    let all = fixtures::all();
    for (name, start, end) in RESERVED {
        let fixture = all.iter().find(|fixture| fixture.name == *name).expect("a fixture of this name");
        for byte in *start..*end {
            for bit in 0..8 {
                let mut bytes = parse_hex(fixture.hex);
                bytes[FRAME_HEADER + byte] ^= 1 << bit;
                let error = Frame::decode(&bytes).expect_err("a reserved bit is set");
                assert!(matches!(error, DecodeError::Reserved(_)), "{name} byte {byte} bit {bit}: {error:?}");
            }
        }
    }
    for fixture in all {
        for byte in 1..4 {
            let mut bytes = parse_hex(fixture.hex);
            bytes[byte] = 1;
            assert_eq!(Frame::decode(&bytes), Err(DecodeError::Reserved("frame header")), "{}", fixture.name);
        }
    }
}

#[test]
fn a_body_read_as_any_other_tag_is_refused_or_canonical() {
    for fixture in fixtures::all() {
        let bytes = parse_hex(fixture.hex);
        for tag in Tag::ALL {
            if let Ok(frame) = Frame::decode_body(*tag, &bytes[FRAME_HEADER..]) {
                assert_canonical(&frame, &bytes_as(*tag, &bytes), fixture.name);
            }
        }
    }
}

fn bytes_as(tag: Tag, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[0] = tag as u8;
    bytes
}

#[test]
fn an_extent_is_no_control_frame() {
    assert_eq!(Control::decode(Tag::Extent, &[]), Err(DecodeError::UnknownTag(Tag::Extent as u8)));
}
