//! The wire format as its peers see it: golden bytes, damaged frames, and properties over arbitrary values.

// The name that every other crate knows it by.
extern crate novaferry_wire as wire;

use wire::{Control, DecodeError, ExtentHead, FRAME_HEADER, FrameHeader, Tag};

mod fixtures;
mod golden;
mod mutation;
mod properties;

/// A frame of either kind of stream, without payload.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Frame {
    Control(Control),
    Extent(ExtentHead),
}

impl Frame {
    fn tag(&self) -> Tag {
        match self {
            Self::Control(control) => control.tag(),
            Self::Extent(_) => Tag::Extent,
        }
    }

    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Control(control) => control.encode().to_vec(),
            Self::Extent(head) => head.encode().to_vec(),
        }
    }

    fn decode_body(tag: Tag, body: &[u8]) -> Result<Self, DecodeError> {
        match tag {
            Tag::Extent => ExtentHead::decode(body).map(Self::Extent),
            tag => Control::decode(tag, body).map(Self::Control),
        }
    }

    /// Reads exactly one frame, the way a stream reader does.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (header, body) =
            bytes.split_first_chunk::<FRAME_HEADER>().ok_or(DecodeError::Truncated("frame header"))?;
        let FrameHeader { tag, len } = FrameHeader::decode(header)?;
        if body.len() < len {
            return Err(DecodeError::Truncated("frame body"));
        }
        if body.len() > len {
            return Err(DecodeError::Trailing(body.len() - len));
        }
        Self::decode_body(tag, body)
    }

    /// Whether decoding may lose information by design: an unknown failure code becomes `Internal`.
    fn is_catch_all(&self) -> bool {
        matches!(self, Self::Control(Control::Fail(fail)) if fail.code == wire::FailCode::Internal)
    }
}

/// Bytes of a fixture: pairs of hexadecimal digits; `#` starts a comment that ends with the line.
fn parse_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().bytes())
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let nibble =
        |digit: u8| u8::try_from(char::from(digit).to_digit(16).expect("hexadecimal digit")).unwrap();
    assert!(digits.len().is_multiple_of(2), "a fixture holds whole bytes");
    digits.chunks_exact(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])).collect()
}
