//! The data frame: one extent, chunk by chunk, with its payload behind it.

use bytes::{BufMut, Bytes, BytesMut};
use volume::{ByteLen, CHUNK, CHUNKS_PER_EXTENT, ChunkId, ExtentIndex, PAGE, Sequence};

use crate::codec::Reader;
use crate::error::DecodeError;
use crate::frame::{FRAME_HEADER, FrameHeader, MAX_PAYLOAD, Tag};

/// How the payload is encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    /// As it is.
    Raw,
    /// One zstd frame, window at most 1 MiB.
    Zstd,
}

/// What travels for one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChunkEntry {
    /// All zero; nothing in the payload.
    Zero,
    /// The target holds this content at this place already; nothing in the payload.
    Same(ChunkId),
    /// The receiver holds this content somewhere; nothing in the payload.
    Reference(ChunkId),
    /// The whole chunk is in the payload.
    Data(ChunkId),
    /// The pages of the mask (bit 0 is the first page) are in the payload, over what the target holds here.
    Pages(ChunkId, u16),
}

const KIND_ZERO: u8 = 1;
const KIND_SAME: u8 = 2;
const KIND_REFERENCE: u8 = 3;
const KIND_DATA: u8 = 4;
const KIND_PAGES: u8 = 5;

impl ChunkEntry {
    /// The content's identity when the extent is done.
    #[must_use]
    pub fn id(&self) -> ChunkId {
        match self {
            Self::Zero => ChunkId::ZERO,
            Self::Same(id) | Self::Reference(id) | Self::Data(id) | Self::Pages(id, _) => *id,
        }
    }

    /// Plain payload bytes of this entry for a chunk of `len` bytes.
    #[must_use]
    pub fn payload_len(&self, len: u64) -> u64 {
        match self {
            Self::Zero | Self::Same(_) | Self::Reference(_) => 0,
            Self::Data(_) => len,
            Self::Pages(_, mask) => (0..16)
                .filter(|page| mask & (1 << page) != 0)
                .map(|page| len.saturating_sub(page * PAGE).min(PAGE))
                .sum(),
        }
    }
}

/// Head of an extent frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExtentHead {
    /// Order of this write.
    pub sequence: Sequence,
    /// Every sequence below this one is settled or given up: the receiver drops what still arrives of them.
    pub floor: Sequence,
    /// Which extent.
    pub extent: ExtentIndex,
    /// How the payload is encoded.
    pub encoding: Encoding,
    /// Payload bytes that follow on the stream.
    pub wire_len: u32,
    /// Payload bytes once decoded.
    pub plain_len: u32,
    /// One entry for each chunk of the extent, in order: 1 to 16.
    pub chunks: Vec<ChunkEntry>,
}

impl ExtentHead {
    /// Header and head as they go on the stream, in front of `wire_len` bytes of payload.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut body = BytesMut::with_capacity(FRAME_HEADER + crate::MAX_EXTENT_HEAD);
        body.put_bytes(0, FRAME_HEADER);
        body.put_u64_le(self.sequence.0);
        body.put_u64_le(self.floor.0);
        body.put_u64_le(self.extent.0);
        body.put_u32_le(self.wire_len);
        body.put_u32_le(self.plain_len);
        body.put_u8(match self.encoding {
            Encoding::Raw => 0,
            Encoding::Zstd => 1,
        });
        body.put_u8(u8::try_from(self.chunks.len()).expect("at most 16 chunks"));
        body.put_bytes(0, 6);
        for chunk in &self.chunks {
            let (kind, mask, id) = match chunk {
                ChunkEntry::Zero => (KIND_ZERO, 0, None),
                ChunkEntry::Same(id) => (KIND_SAME, 0, Some(id)),
                ChunkEntry::Reference(id) => (KIND_REFERENCE, 0, Some(id)),
                ChunkEntry::Data(id) => (KIND_DATA, 0, Some(id)),
                ChunkEntry::Pages(id, mask) => (KIND_PAGES, *mask, Some(id)),
            };
            body.put_u8(kind);
            body.put_u8(0);
            body.put_u16_le(mask);
            if let Some(id) = id {
                body.put_slice(&id.0);
            }
        }
        let header = FrameHeader { tag: Tag::Extent, len: body.len() - FRAME_HEADER }.encode();
        body[..FRAME_HEADER].copy_from_slice(&header);
        body.freeze()
    }

    /// Reads a head (without its frame header). Checks everything that does not need the volume's size.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body, "extent head");
        let sequence = Sequence(reader.u64()?);
        let floor = Sequence(reader.u64()?);
        let extent = ExtentIndex(reader.u64()?);
        let wire_len = reader.u32()?;
        let plain_len = reader.u32()?;
        for (field, value) in [("payload", wire_len), ("plain payload", plain_len)] {
            if value as usize > MAX_PAYLOAD {
                return Err(DecodeError::TooLong { field, value: value.into(), cap: MAX_PAYLOAD as u64 });
            }
        }
        let encoding = match reader.u8()? {
            0 => Encoding::Raw,
            1 => Encoding::Zstd,
            value => return Err(DecodeError::Invalid { field: "encoding", value: value.into() }),
        };
        let count = usize::from(reader.u8()?);
        if count == 0 || count > CHUNKS_PER_EXTENT {
            return Err(DecodeError::Invalid { field: "chunk count", value: count as u64 });
        }
        reader.reserved(6)?;
        if floor > sequence {
            return Err(DecodeError::Invalid { field: "floor", value: floor.0 });
        }
        match encoding {
            Encoding::Raw if wire_len != plain_len => {
                return Err(DecodeError::Invalid { field: "raw payload length", value: wire_len.into() });
            }
            Encoding::Zstd if wire_len >= plain_len => {
                return Err(DecodeError::Invalid {
                    field: "compressed payload length",
                    value: wire_len.into(),
                });
            }
            _ => {}
        }
        let mut chunks = Vec::with_capacity(count);
        for _ in 0..count {
            let kind = reader.u8()?;
            reader.reserved(1)?;
            let mask = reader.u16()?;
            if (kind == KIND_PAGES) == (mask == 0) {
                return Err(DecodeError::Invalid { field: "page mask", value: mask.into() });
            }
            chunks.push(match kind {
                KIND_ZERO => ChunkEntry::Zero,
                KIND_SAME => ChunkEntry::Same(ChunkId(reader.array()?)),
                KIND_REFERENCE => ChunkEntry::Reference(ChunkId(reader.array()?)),
                KIND_DATA => ChunkEntry::Data(ChunkId(reader.array()?)),
                KIND_PAGES => ChunkEntry::Pages(ChunkId(reader.array()?), mask),
                value => return Err(DecodeError::Invalid { field: "chunk kind", value: value.into() }),
            });
        }
        reader.finish()?;
        Ok(Self { sequence, floor, extent, encoding, wire_len, plain_len, chunks })
    }

    /// Checks the head against the volume: the extent lies inside, has this many chunks, and the entries add up to
    /// the declared plain length. After this, no arithmetic on the head can go wrong.
    pub fn check(&self, size: ByteLen) -> Result<(), DecodeError> {
        let range =
            self.extent.range(size).ok_or(DecodeError::Invalid { field: "extent", value: self.extent.0 })?;
        if self.chunks.len() as u64 != range.len().div_ceil(CHUNK) {
            return Err(DecodeError::Invalid { field: "chunk count", value: self.chunks.len() as u64 });
        }
        let mut plain = 0;
        for (nth, chunk) in self.chunks.iter().enumerate() {
            let len = (range.len() - nth as u64 * CHUNK).min(CHUNK);
            if let ChunkEntry::Pages(_, mask) = chunk
                && u64::from(u16::BITS - mask.leading_zeros()) > len.div_ceil(PAGE)
            {
                return Err(DecodeError::Invalid { field: "page mask", value: (*mask).into() });
            }
            plain += chunk.payload_len(len);
        }
        if plain != u64::from(self.plain_len) {
            return Err(DecodeError::Invalid { field: "plain payload", value: self.plain_len.into() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
