//! The fixed frame header and the caps that are checked on it before anything is allocated.

use crate::error::DecodeError;

/// Length of a frame header in bytes.
pub const FRAME_HEADER: usize = 8;
/// Largest body of a control frame. 64 KiB holds 4,094 leaf prefixes, about 256 MiB of volume, in one frame.
pub const MAX_CONTROL_BODY: usize = 64 << 10;
/// Largest extent head: 40 fixed bytes and 16 chunk entries of 36.
pub const MAX_EXTENT_HEAD: usize = 40 + 16 * 36;
/// Largest payload behind an extent head: one extent; compression that would grow it is not used.
pub const MAX_PAYLOAD: usize = 1 << 20;

macro_rules! tags {
    ($($(#[$doc:meta])* $name:ident = $value:literal),* $(,)?) => {
        /// What a frame is. 0 is invalid for ever.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum Tag { $($(#[$doc])* $name = $value),* }
        impl Tag {
            /// Every tag of this version.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
        impl TryFrom<u8> for Tag {
            type Error = DecodeError;
            fn try_from(value: u8) -> Result<Self, DecodeError> {
                match value { $($value => Ok(Self::$name),)* other => Err(DecodeError::UnknownTag(other)) }
            }
        }
    };
}
tags! {
    /// Dialler: which volume, which way.
    Open = 1,
    /// Sender: what it will send.
    Offer = 2,
    /// Receiver: go ahead, under these terms.
    Grant = 3,
    /// Receiver: extents that are durable from an earlier attempt.
    Durable = 4,
    /// Receiver: what the target holds, as chunk-id prefixes.
    Leaves = 5,
    /// Receiver: tags of chunks that it can serve to itself.
    Known = 6,
    /// Sender: which pages do these chunks of yours have?
    PageQuery = 7,
    /// Receiver: the answer.
    PageSums = 8,
    /// Sender, on a data stream: one extent.
    Extent = 9,
    /// Sender: a run of extents that are zero, or that the target holds already.
    Range = 10,
    /// Receiver: these sequences are durable.
    Ack = 11,
    /// Receiver: send these chunks in full.
    Need = 12,
    /// Sender: all is sent; this is the root.
    Seal = 13,
    /// Receiver: the root is the same; here is the receipt.
    Sealed = 14,
    /// Either: it is over, and why.
    Fail = 15,
    /// Either: going away on purpose; the session can be resumed.
    Drain = 16,
    /// Either: are you there?
    Ping = 17,
    /// Either: yes.
    Pong = 18,
    /// Dialler, first on every further connection: which session it belongs to.
    LaneHello = 19,
    /// Dialler: a running VM is to move.
    Migrate = 20,
    /// Either, on the control stream of a migration: bytes of the layer above.
    Message = 21,
    /// Dialler, first on every channel of a migration: which one it is.
    ChannelHello = 22,
    /// Dialler: the destination of a migration waits for the other side to begin it with [`Tag::Migrate`].
    Call = 23,
}

impl Tag {
    /// Longest body of a frame of this tag in bytes.
    #[must_use]
    pub fn max_body(self) -> usize {
        if self == Self::Extent { MAX_EXTENT_HEAD } else { MAX_CONTROL_BODY }
    }
}

/// The eight bytes in front of every frame: tag, three reserved bytes, body length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// What follows.
    pub tag: Tag,
    /// Length of the body in bytes, at most the tag's cap. An extent's payload is not counted.
    pub len: usize,
}

impl FrameHeader {
    /// Reads and checks a header.
    pub fn decode(bytes: &[u8; FRAME_HEADER]) -> Result<Self, DecodeError> {
        let [tag, r1, r2, r3, l0, l1, l2, l3] = *bytes;
        let tag = Tag::try_from(tag)?;
        if (r1, r2, r3) != (0, 0, 0) {
            return Err(DecodeError::Reserved("frame header"));
        }
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let cap = tag.max_body();
        if len > cap {
            return Err(DecodeError::TooLong { field: "frame body", value: len as u64, cap: cap as u64 });
        }
        Ok(Self { tag, len })
    }

    /// The eight bytes.
    ///
    /// # Panics
    /// When the body is longer than the tag's cap: an encoder made a frame that no peer would take.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER] {
        assert!(self.len <= self.tag.max_body(), "frame body of {} bytes is over the cap", self.len);
        let len = u32::try_from(self.len).expect("the cap fits 32 bits").to_le_bytes();
        [self.tag as u8, 0, 0, 0, len[0], len[1], len[2], len[3]]
    }
}

#[cfg(test)]
mod tests;
