use super::*;

fn header(tag: u8, len: u32) -> [u8; FRAME_HEADER] {
    let len = len.to_le_bytes();
    [tag, 0, 0, 0, len[0], len[1], len[2], len[3]]
}

#[test]
fn every_tag_is_read_and_no_other() {
    for value in 0..=u8::MAX {
        let expected = Tag::ALL.iter().copied().find(|tag| *tag as u8 == value);
        let result = FrameHeader::decode(&header(value, 0));
        assert_eq!(
            result,
            expected.map(|tag| FrameHeader { tag, len: 0 }).ok_or(DecodeError::UnknownTag(value))
        );
    }
    assert_eq!(Tag::try_from(0), Err(DecodeError::UnknownTag(0)), "tag 0 is invalid for ever");
}

#[test]
fn each_cap_holds_to_the_byte() {
    for tag in Tag::ALL.iter().copied() {
        let cap = if tag == Tag::Extent { 616 } else { 65_536 };
        assert_eq!(tag.max_body(), cap as usize);
        let most = header(tag as u8, cap);
        assert_eq!(FrameHeader::decode(&most), Ok(FrameHeader { tag, len: cap as usize }));
        assert_eq!(FrameHeader { tag, len: cap as usize }.encode(), most);
        for len in [cap + 1, u32::MAX] {
            let error = DecodeError::TooLong { field: "frame body", value: len.into(), cap: cap.into() };
            assert_eq!(FrameHeader::decode(&header(tag as u8, len)), Err(error));
        }
    }
}

#[test]
fn each_reserved_bit_is_refused() {
    for byte in 1..4 {
        for bit in 0..8 {
            let mut bytes = header(Tag::Ping as u8, 8);
            bytes[byte] = 1 << bit;
            assert_eq!(FrameHeader::decode(&bytes), Err(DecodeError::Reserved("frame header")));
        }
    }
}

#[test]
#[should_panic(expected = "over the cap")]
fn a_control_header_over_the_cap_is_a_bug() {
    let _ = FrameHeader { tag: Tag::Ack, len: MAX_CONTROL_BODY + 1 }.encode();
}

#[test]
#[should_panic(expected = "over the cap")]
fn an_extent_header_over_the_cap_is_a_bug() {
    let _ = FrameHeader { tag: Tag::Extent, len: MAX_EXTENT_HEAD + 1 }.encode();
}
