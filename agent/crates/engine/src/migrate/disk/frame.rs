//! What travels on a disk's channel. All integers are little-endian.
//!
//! Request, source to destination: 32 bytes, then `wire length` bytes of payload for a write.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | operation: 1 write, 2 zeroes, 3 flush, 4 end |
//! | 1 | 1 | encoding of the payload: 0 as it is, 1 zstd |
//! | 2 | 2 | flags: 1 durable before it is answered (FUA), 2 may be deallocated |
//! | 4 | 4 | wire length |
//! | 8 | 8 | number, given back in the answer |
//! | 16 | 8 | offset |
//! | 24 | 8 | length of the range; at most [`MAX_WRITE`] for a write |
//!
//! Answer, destination to source: 16 bytes: number (8), errno (4; 0 is success), zero (4).

use std::io;

/// Longest write: the largest block that our NBD server takes.
pub const MAX_WRITE: u64 = 1 << 20;
/// Length of a request's head.
pub const REQUEST: usize = 32;
/// Length of an answer.
pub const ANSWER: usize = 16;

/// Durable before it is answered.
pub const FLAG_FUA: u16 = 1;
/// The range may be deallocated.
pub const FLAG_MAY_TRIM: u16 = 2;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Write the payload.
    Write {
        /// The payload is one zstd frame.
        compressed: bool,
    },
    /// Make the range zero.
    Zero,
    /// Make what was answered durable.
    Flush,
    /// The mirror is over.
    End,
}

/// A request's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// What.
    pub operation: Operation,
    /// [`FLAG_FUA`], [`FLAG_MAY_TRIM`].
    pub flags: u16,
    /// Bytes of payload that follow.
    pub wire_len: u32,
    /// Chosen by the source.
    pub number: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a disk request is not well-formed: {what}"))
}

impl Request {
    /// The 32 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST] {
        let (operation, encoding) = match self.operation {
            Operation::Write { compressed } => (1, u8::from(compressed)),
            Operation::Zero => (2, 0),
            Operation::Flush => (3, 0),
            Operation::End => (4, 0),
        };
        let mut out = [0; REQUEST];
        out[0] = operation;
        out[1] = encoding;
        out[2..4].copy_from_slice(&self.flags.to_le_bytes());
        out[4..8].copy_from_slice(&self.wire_len.to_le_bytes());
        out[8..16].copy_from_slice(&self.number.to_le_bytes());
        out[16..24].copy_from_slice(&self.offset.to_le_bytes());
        out[24..32].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    /// Reads and checks a head against a disk of `size` bytes.
    ///
    /// # Errors
    /// When any field has no meaning, or the range is outside the disk.
    pub fn decode(bytes: &[u8; REQUEST], size: u64) -> io::Result<Self> {
        let u64_at = |at: usize| {
            let mut field = [0; 8];
            field.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(field)
        };
        let operation = match (bytes[0], bytes[1]) {
            (1, 0) => Operation::Write { compressed: false },
            (1, 1) => Operation::Write { compressed: true },
            (2, 0) => Operation::Zero,
            (3, 0) => Operation::Flush,
            (4, 0) => Operation::End,
            _ => return Err(invalid("operation or encoding")),
        };
        let request = Self {
            operation,
            flags: u16::from_le_bytes([bytes[2], bytes[3]]),
            wire_len: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            number: u64_at(8),
            offset: u64_at(16),
            len: u64_at(24),
        };
        if request.flags & !(FLAG_FUA | FLAG_MAY_TRIM) != 0 {
            return Err(invalid("flags"));
        }
        if request.offset.checked_add(request.len).is_none_or(|end| end > size) {
            return Err(invalid("range"));
        }
        let wire_len = u64::from(request.wire_len);
        let fits = match request.operation {
            Operation::Write { compressed } => {
                let payload = if compressed { wire_len < request.len } else { wire_len == request.len };
                payload && request.len > 0 && request.len <= MAX_WRITE
            }
            Operation::Zero => wire_len == 0 && request.len > 0,
            Operation::Flush | Operation::End => wire_len == 0 && request.len == 0 && request.offset == 0,
        };
        if fits { Ok(request) } else { Err(invalid("length")) }
    }
}

/// An answer: which request, and its errno (0 for success).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The request's number.
    pub number: u64,
    /// errno(3), 0 for success.
    pub errno: u32,
}

impl Answer {
    /// The 16 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ANSWER] {
        let mut out = [0; ANSWER];
        out[..8].copy_from_slice(&self.number.to_le_bytes());
        out[8..12].copy_from_slice(&self.errno.to_le_bytes());
        out
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// When the reserved bytes are not zero.
    pub fn decode(bytes: &[u8; ANSWER]) -> io::Result<Self> {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[..8]);
        if bytes[12..] != [0; 4] {
            return Err(invalid("answer"));
        }
        Ok(Self {
            number: u64::from_le_bytes(number),
            errno: u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn heads_read_back_and_nonsense_is_refused() {
        let good = Request {
            operation: Operation::Write { compressed: true },
            flags: FLAG_FUA,
            wire_len: 100,
            number: 7,
            offset: 4096,
            len: 65536,
        };
        assert_eq!(Request::decode(&good.encode(), 1 << 20).unwrap(), good);
        for bad in [
            Request { len: MAX_WRITE + 1, ..good },
            Request { wire_len: 65536, ..good },
            Request { operation: Operation::Write { compressed: false }, ..good },
            Request { offset: u64::MAX, ..good },
            Request { offset: 1 << 20, ..good },
            Request { flags: 4, ..good },
            Request { operation: Operation::Flush, ..good },
            Request { operation: Operation::Zero, ..good },
        ] {
            assert!(Request::decode(&bad.encode(), 1 << 20).is_err(), "{bad:?}");
        }
        let answer = Answer { number: u64::MAX, errno: 28 };
        assert_eq!(Answer::decode(&answer.encode()).unwrap(), answer);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_or_refused(bytes: [u8; REQUEST], size: u64) {
            if let Ok(request) = Request::decode(&bytes, size) {
                prop_assert_eq!(request.encode(), bytes);
                prop_assert!(u64::from(request.wire_len) <= MAX_WRITE);
            }
        }
    }
}
