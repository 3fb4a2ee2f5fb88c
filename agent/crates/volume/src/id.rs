//! Identities: who and what a byte belongs to. All are fixed-size values; none is ever a path.

use std::fmt;

/// Keyed BLAKE3 of one chunk's plain bytes: the identity of content inside one owner's trust domain.
///
/// An all-zero chunk is named by [`ChunkId::ZERO`] without being hashed, so that a leaf table with holes reads as
/// "zero here" and zeros need no key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// The name of every chunk whose bytes are all zero, whatever its length.
    pub const ZERO: Self = Self([0; 32]);

    /// The first 16 bytes: enough to compare one chunk with the one at the same place, never to dedup by.
    #[must_use]
    pub fn prefix(&self) -> [u8; 16] {
        let mut prefix = [0; 16];
        prefix.copy_from_slice(&self.0[..16]);
        prefix
    }

    /// The first 8 bytes as a number: a filter tag whose wrong answer may cost bandwidth, never correctness.
    #[must_use]
    pub fn tag(&self) -> u64 {
        let mut tag = [0; 8];
        tag.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(tag)
    }
}

/// Names a hash key without revealing it: the first 16 bytes of the key's own BLAKE3 (context-separated).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 16]);

/// One transfer between two agents; chosen at random by the side that dials, and kept across resumes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

/// Fencing number of a volume, persisted by the receiver. A process that holds an older one is refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Generation(pub u64);

/// Order of writes within one volume and generation: of two writes to one place, the higher wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Sequence(pub u64);

fn hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
}

fn parse<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

macro_rules! hex_id {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { hex(f, &self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { hex(f, &self.0) }
        }
        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> { parse(text).map(Self).ok_or(InvalidId) }
        }
    )*};
}
hex_id!(ChunkId, KeyId, SessionId);

/// A text that is not the hexadecimal form of the id that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not an id: expected lower-case hexadecimal digits of the right length")]
pub struct InvalidId;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse() {
        let id = SessionId(*b"\x00\x01\xfe\xff0123456789ab");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("zz".parse::<SessionId>(), Err(InvalidId));
        assert_eq!("00".repeat(17).parse::<SessionId>(), Err(InvalidId));
    }
}
