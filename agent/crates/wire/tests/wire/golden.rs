//! Golden bytes: what a released version sends must stay what it is.

use std::collections::BTreeSet;

use wire::{FailCode, PRELUDE, Prelude, Tag};

use crate::{Frame, fixtures, parse_hex};

#[test]
fn the_prelude_is_frozen() {
    let bytes = parse_hex(include_str!("../../golden/prelude.hex"));
    let bytes: [u8; PRELUDE] = bytes.try_into().expect("a prelude has 32 bytes");
    let prelude = Prelude { min: 1, max: 2, features: 1 | 1 << 63 };
    assert_eq!(prelude.encode(), bytes);
    assert_eq!(Prelude::decode(&bytes), Ok(prelude));
}

#[test]
fn every_fixture_encodes_and_decodes() {
    for fixture in fixtures::all() {
        let bytes = parse_hex(fixture.hex);
        assert_eq!(fixture.frame.encode(), bytes, "{}: encoding", fixture.name);
        assert_eq!(Frame::decode(&bytes), Ok(fixture.frame), "{}: decoding", fixture.name);
    }
}

#[test]
fn every_tag_has_a_fixture() {
    let covered: Vec<Tag> = fixtures::all().iter().map(|fixture| fixture.frame.tag()).collect();
    for tag in Tag::ALL {
        assert!(covered.contains(tag), "{tag:?} has no file under golden/v1");
    }
}

#[test]
fn every_file_has_its_value() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/v1");
    let files: BTreeSet<String> = std::fs::read_dir(folder)
        .expect("golden/v1 can be listed")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("an ASCII name"))
        .collect();
    let listed = fixtures::all().iter().map(|fixture| format!("{}.hex", fixture.name)).collect();
    assert_eq!(files, listed);
}

#[test]
fn tag_and_failure_numbers_are_fixed() {
    let tags: Vec<u8> = Tag::ALL.iter().map(|tag| *tag as u8).collect();
    assert_eq!(tags, (1..=23).collect::<Vec<u8>>());
    let codes: Vec<u16> = FailCode::ALL.iter().map(|code| code.number()).collect();
    assert_eq!(codes, (1..=22).collect::<Vec<u16>>());
    assert_eq!((FailCode::Protocol.number(), FailCode::Internal.number()), (1, 22));
}
