//! What travels on a RAM channel. All integers are little-endian.
//!
//! Source to destination, and the return path back: a head of 24 bytes, then the frame's head and its body.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | kind: 1 literal, 2 multifd packet, 3 mixed, 4 end of this direction, 5 acknowledgement, 6 resume |
//! | 1 | 1 | flags: 1 the frame's head is one zstd frame |
//! | 2 | 2 | pages in the body |
//! | 4 | 4 | length of the frame's head on the wire |
//! | 8 | 4 | its length decoded; at most [`MAX_HEAD`] |
//! | 12 | 4 | length of the body: a packet of `reduce::ram`, or literal bytes |
//! | 16 | 8 | number of the frame in this direction, from 1; of an acknowledgement and of resume, the last one that QEMU has taken |
//!
//! Each direction of a channel begins with resume: it says what came over the earlier ones, and the frames after that
//! follow. Frames are kept until they are acknowledged.
//!
//! The head of a multifd packet is QEMU's, its offsets as differences to the one before. The head of a mixed frame is
//! a list of lengths (u32), one more than pages, and as many literals: literal, page, literal, page, …, literal.

use std::io;

use reduce::ram::{MAX_PACKET, MAX_PAGES};

/// Length of the fixed head.
pub const FRAME: usize = 24;
/// Longest frame's head, decoded: literals between the pages of a mixed frame.
pub const MAX_HEAD: usize = 128 << 10;
/// Longest body of a literal.
pub const MAX_LITERAL: usize = 64 << 10;
/// Where the offsets begin in a multifd header (QEMU, `migration/multifd.h`, `MultiFDPacket_t`).
const OFFSETS: usize = 320;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Bytes as they are.
    Literal,
    /// One packet of a multifd channel.
    Multifd,
    /// Literals and pages in turn.
    Mixed,
    /// Nothing follows in this direction.
    End,
    /// QEMU has taken every frame of the other direction up to this number.
    Ack,
    /// The same, at the begin of a channel.
    Resume,
}

/// The fixed head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// What follows.
    pub kind: Kind,
    /// The frame's head is compressed.
    pub compressed: bool,
    /// Pages in the body.
    pub pages: u16,
    /// Length of the frame's head on the wire.
    pub head_wire: u32,
    /// Decoded.
    pub head_plain: u32,
    /// Length of the body.
    pub body: u32,
    /// Number of the frame.
    pub number: u64,
}

pub(crate) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a RAM frame is not well-formed: {what}"))
}

impl Head {
    /// A frame without a frame's head.
    #[must_use]
    pub fn plain(kind: Kind, body: usize, number: u64) -> Self {
        let body = u32::try_from(body).unwrap_or(u32::MAX);
        Self { kind, compressed: false, pages: 0, head_wire: 0, head_plain: 0, body, number }
    }

    /// The 24 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME] {
        let mut out = [0; FRAME];
        out[0] = match self.kind {
            Kind::Literal => 1,
            Kind::Multifd => 2,
            Kind::Mixed => 3,
            Kind::End => 4,
            Kind::Ack => 5,
            Kind::Resume => 6,
        };
        out[1] = u8::from(self.compressed);
        out[2..4].copy_from_slice(&self.pages.to_le_bytes());
        out[4..8].copy_from_slice(&self.head_wire.to_le_bytes());
        out[8..12].copy_from_slice(&self.head_plain.to_le_bytes());
        out[12..16].copy_from_slice(&self.body.to_le_bytes());
        out[16..].copy_from_slice(&self.number.to_le_bytes());
        out
    }

    /// Reads and checks a head: after this every length is within its cap.
    ///
    /// # Errors
    /// When any field has no meaning or is over its cap.
    pub fn decode(bytes: &[u8; FRAME]) -> io::Result<Self> {
        let kind = match bytes[0] {
            1 => Kind::Literal,
            2 => Kind::Multifd,
            3 => Kind::Mixed,
            4 => Kind::End,
            5 => Kind::Ack,
            6 => Kind::Resume,
            _ => return Err(invalid("kind")),
        };
        if bytes[1] > 1 {
            return Err(invalid("flags"));
        }
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[16..]);
        let head = Self {
            kind,
            compressed: bytes[1] == 1,
            pages: u16::from_le_bytes([bytes[2], bytes[3]]),
            head_wire: u32_at(4),
            head_plain: u32_at(8),
            body: u32_at(12),
            number: u64::from_le_bytes(number),
        };
        let (wire, plain) = (head.head_wire as usize, head.head_plain as usize);
        let (body, pages) = (head.body as usize, usize::from(head.pages));
        let head_fits = if head.compressed { wire < plain } else { wire == plain } && plain <= MAX_HEAD;
        let body_fits = match kind {
            Kind::Literal => plain == 0 && pages == 0 && body > 0 && body <= MAX_LITERAL,
            Kind::Multifd => plain == hypervisor::multifd::HEADER && packet(pages, body),
            Kind::Mixed => plain >= 4 * (pages + 1) && packet(pages, body),
            Kind::End | Kind::Ack | Kind::Resume => plain == 0 && pages == 0 && body == 0,
        };
        if head_fits && body_fits { Ok(head) } else { Err(invalid("length")) }
    }
}

fn packet(pages: usize, body: usize) -> bool {
    pages <= MAX_PAGES && body <= MAX_PACKET && (pages == 0) == (body == 0)
}

/// Replaces each offset of a multifd header by its difference to the one before: runs of pages become runs of equal
/// bytes, which compress to nothing.
pub fn fold_offsets(header: &mut [u8]) {
    let mut last = 0_u64;
    for offset in offsets(header) {
        let value = u64::from_be_bytes(*offset);
        *offset = value.wrapping_sub(last).to_be_bytes();
        last = value;
    }
}

/// Undoes [`fold_offsets`].
pub fn unfold_offsets(header: &mut [u8]) {
    let mut last = 0_u64;
    for offset in offsets(header) {
        last = last.wrapping_add(u64::from_be_bytes(*offset));
        *offset = last.to_be_bytes();
    }
}

fn offsets(header: &mut [u8]) -> impl Iterator<Item = &mut [u8; 8]> {
    let start = OFFSETS.min(header.len());
    header[start..].as_chunks_mut::<8>().0.iter_mut()
}

/// Takes the list of lengths off a mixed frame's head: the lengths, and the literals' bytes.
///
/// # Errors
/// When the lengths do not add up.
pub fn split_mixed(head: &[u8], pages: usize) -> io::Result<(Vec<usize>, &[u8])> {
    let (lengths, literals) = head.split_at_checked(4 * (pages + 1)).ok_or_else(|| invalid("lengths"))?;
    let lengths: Vec<usize> =
        lengths.as_chunks::<4>().0.iter().map(|len| u32::from_le_bytes(*len) as usize).collect();
    let total = lengths.iter().try_fold(0_usize, |sum, len| sum.checked_add(*len));
    if total == Some(literals.len()) { Ok((lengths, literals)) } else { Err(invalid("literals")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn folding_is_undone() {
        let mut header: Vec<u8> = (0..1344_u32).map(|n| (n * 7 % 251) as u8).collect();
        let before = header.clone();
        fold_offsets(&mut header);
        assert_ne!(header, before);
        assert_eq!(header[..320], before[..320]);
        unfold_offsets(&mut header);
        assert_eq!(header, before);
    }

    #[test]
    fn mixed_heads_are_checked() {
        let mut head = Vec::new();
        for len in [3_u32, 0, 2] {
            head.extend_from_slice(&len.to_le_bytes());
        }
        head.extend_from_slice(b"abcde");
        assert_eq!(split_mixed(&head, 2).unwrap(), (vec![3, 0, 2], &b"abcde"[..]));
        assert!(split_mixed(&head, 1).is_err());
        assert!(split_mixed(&head[..16], 2).is_err());
        assert!(split_mixed(&[255; 8], 1).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_heads_are_read_or_refused(bytes: [u8; FRAME]) {
            if let Ok(head) = Head::decode(&bytes) {
                prop_assert_eq!(head.encode(), bytes);
                prop_assert!(head.head_wire as usize <= MAX_HEAD && head.body as usize <= MAX_PACKET);
            }
        }
    }
}
