//! Targets of crate `wire`. Inputs too short for a fixed-size field are ignored: there is nothing to decode yet.

use volume::ByteLen;
use wire::{
    Control, ExtentHead, FRAME_HEADER, FailCode, FrameHeader, MAX_PAYLOAD, PRELUDE, Prelude, Tag, negotiate,
};

/// The first 32 bytes of a connection.
pub fn prelude(data: &[u8]) {
    let Some(bytes) = data.first_chunk::<PRELUDE>() else { return };
    let Ok(theirs) = Prelude::decode(bytes) else { return };
    assert_eq!(theirs.encode(), *bytes, "a prelude is written back as it was read");
    let ours = Prelude::ours();
    if let Ok(answer) = negotiate(&ours, &theirs) {
        assert_eq!(answer.min, answer.max, "the answer is one version");
        assert!((ours.min..=ours.max).contains(&answer.max), "our own version");
        assert!((theirs.min..=theirs.max).contains(&answer.max), "the peer's version");
        assert_eq!(answer.features & !ours.features, 0, "no feature that we lack");
    }
}

/// The eight bytes in front of a frame.
pub fn frame_header(data: &[u8]) {
    let Some(bytes) = data.first_chunk::<FRAME_HEADER>() else { return };
    if let Ok(header) = FrameHeader::decode(bytes) {
        assert!(header.len <= header.tag.max_body(), "a reader may allocate the body");
        assert_eq!(header.encode(), *bytes, "a header is written back as it was read");
    }
}

/// A control frame. Only the tag is taken from its header, so that a changed length does not hide the body.
pub fn control(data: &[u8]) {
    let Some((header, body)) = data.split_first_chunk::<FRAME_HEADER>() else { return };
    let Ok(tag) = Tag::try_from(header[0]) else { return };
    let Ok(frame) = Control::decode(tag, body) else { return };
    assert_eq!(frame.tag(), tag, "a frame keeps its tag");
    let again = frame.encode();
    let (_, written) = again.split_at(FRAME_HEADER);
    // Failure codes that this version does not know all become one.
    let skipped =
        if matches!(&frame, Control::Fail(fail) if fail.code == FailCode::Internal) { 2 } else { 0 };
    assert_eq!(written[skipped..], body[skipped..], "a frame is written back as it was read");
    assert_eq!(Control::decode(tag, written), Ok(frame), "what was written is read back");
}

/// A volume size (8 bytes) and the head of an extent frame, without its header.
pub fn extent_head(data: &[u8]) {
    let Some((size, body)) = data.split_first_chunk::<8>() else { return };
    let size = ByteLen(u64::from_le_bytes(*size));
    let Ok(head) = ExtentHead::decode(body) else { return };
    assert!(head.wire_len as usize <= MAX_PAYLOAD, "a reader may allocate the payload");
    assert_eq!(head.encode()[FRAME_HEADER..], *body, "a head is written back as it was read");
    if head.check(size).is_ok() {
        let range = head.extent.range(size).expect("a checked extent lies inside the volume");
        let mut rest = range.len();
        let mut plain = 0;
        for chunk in &head.chunks {
            let len = rest.min(volume::CHUNK);
            rest -= len;
            plain += chunk.payload_len(len);
        }
        assert_eq!(rest, 0, "the chunks cover the extent");
        assert_eq!(plain, u64::from(head.plain_len), "the entries add up to the payload");
    }
}
