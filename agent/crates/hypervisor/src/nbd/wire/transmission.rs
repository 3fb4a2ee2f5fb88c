//! Requests, simple replies and structured replies.

use std::fmt;

use volume::Kind as VolumeKind;

use super::handshake::lossy;
use super::{Cursor, MAX_ERROR_PAYLOAD, MAX_EXTENTS, MAX_PAYLOAD, ProtocolError};

/// Opens a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Opens a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Opens a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Bytes of a request before its payload.
pub const REQUEST_LENGTH: usize = 28;
/// Bytes of a simple reply after its magic.
pub const SIMPLE_REST: usize = 12;
/// Bytes of a structured chunk's head after its magic.
pub const STRUCTURED_REST: usize = 16;

/// Flag of a structured chunk: no other chunk of this reply follows.
pub(super) const CHUNK_DONE: u16 = 1;

/// `base:allocation`: the range is not allocated.
pub const STATE_HOLE: u32 = 1;
/// `base:allocation`: the range reads as zeros.
pub const STATE_ZERO: u32 = 2;
/// `qemu:dirty-bitmap:…`: the range was written since the bitmap was started.
pub const STATE_DIRTY: u32 = 1;

/// A request's command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[expect(missing_docs, reason = "the names are the specification's")]
#[repr(u16)]
pub enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
    BlockStatus = 7,
}

impl Command {
    /// The command of this number, if there is one.
    pub(super) fn decode(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => return None,
        })
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "READ",
            Self::Write => "WRITE",
            Self::Disconnect => "DISCONNECT",
            Self::Flush => "FLUSH",
            Self::Trim => "TRIM",
            Self::WriteZeroes => "WRITE_ZEROES",
            Self::BlockStatus => "BLOCK_STATUS",
        })
    }
}

/// Flags of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CommandFlags(u16);

impl CommandFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Answer only when the data is durable.
    pub const FUA: Self = Self(1);
    /// WRITE_ZEROES: keep the space allocated.
    pub const NO_HOLE: Self = Self(1 << 1);
    /// WRITE_ZEROES: fail with ENOTSUP instead of being as slow as a write.
    pub const FAST_ZERO: Self = Self(1 << 4);

    /// The flags as they came; any bit may be set.
    pub(super) const fn decode(bits: u16) -> Self {
        Self(bits)
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every flag of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A request without its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// How.
    pub flags: CommandFlags,
    /// Chosen by the client; the reply carries it.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl Request {
    /// Encodes the head; the payload of a WRITE follows it.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_LENGTH] {
        let mut out = [0; REQUEST_LENGTH];
        out[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.0.to_be_bytes());
        out[6..8].copy_from_slice(&(self.command as u16).to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..28].copy_from_slice(&self.length.to_be_bytes());
        out
    }
}

/// Which kind of reply follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// [`SIMPLE_REST`] bytes follow, then data if it answers a successful READ.
    Simple,
    /// [`STRUCTURED_REST`] bytes follow, then the chunk's payload.
    Structured,
}

impl Kind {
    /// Decodes the magic.
    ///
    /// # Errors
    /// When it opens neither kind.
    pub fn decode(magic: [u8; 4]) -> Result<Self, ProtocolError> {
        match u32::from_be_bytes(magic) {
            SIMPLE_REPLY_MAGIC => Ok(Self::Simple),
            STRUCTURED_REPLY_MAGIC => Ok(Self::Structured),
            found => Err(ProtocolError::Magic { what: "reply magic", found: found.into() }),
        }
    }
}

/// The head of a simple reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    error: u32,
    cookie: u64,
}

impl Header {
    /// Decodes what follows the magic.
    #[must_use]
    pub fn decode_simple(rest: &[u8; SIMPLE_REST]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *rest;
        Self { error: u32::from_be_bytes([a, b, c, d]), cookie: u64::from_be_bytes([e, f, g, h, i, j, k, l]) }
    }

    /// The request that it answers.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The server's error, if the request failed.
    #[must_use]
    pub fn error(&self) -> Option<ErrorCode> {
        (self.error != 0).then_some(ErrorCode(self.error))
    }
}

/// The type of a structured chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChunkType {
    /// Ends a reply and says nothing.
    None,
    /// Data.
    Data,
    /// Zeros.
    Hole,
    /// Extents of one context.
    Status,
    /// The request failed.
    Error,
    /// The request failed at a known place.
    ErrorOffset,
    /// An error of a type that the client does not know.
    OtherError,
}

/// The head of a structured chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkHeader {
    /// No chunk of this reply follows.
    pub done: bool,
    /// What it carries.
    pub kind: ChunkType,
    /// The request that it answers.
    pub cookie: u64,
    /// Bytes of payload; checked against the cap of its type.
    pub length: u32,
}

impl ChunkHeader {
    /// Decodes what follows the magic.
    ///
    /// # Errors
    /// When the type is unknown (and no error) or the payload cannot be that long.
    pub fn decode(rest: &[u8; STRUCTURED_REST]) -> Result<Self, ProtocolError> {
        let mut cursor = Cursor::new("reply chunk", rest);
        let flags = cursor.u16()?;
        let number = cursor.u16()?;
        let cookie = cursor.u64()?;
        let length = cursor.u32()?;
        let (kind, least, most) = match number {
            0 => (ChunkType::None, 0, 0),
            1 => (ChunkType::Data, 9, 8 + MAX_PAYLOAD),
            2 => (ChunkType::Hole, 12, 12),
            5 => (ChunkType::Status, 12, 4 + 8 * MAX_EXTENTS),
            32769 => (ChunkType::Error, 6, MAX_ERROR_PAYLOAD),
            32770 => (ChunkType::ErrorOffset, 14, MAX_ERROR_PAYLOAD),
            32768.. => (ChunkType::OtherError, 0, MAX_ERROR_PAYLOAD),
            _ => return Err(ProtocolError::UnexpectedReply { what: "reply chunk", found: number.into() }),
        };
        if length > most {
            let (length, limit) = (length.into(), most.into());
            return Err(ProtocolError::TooLong { what: "reply chunk", length, limit });
        }
        if length < least {
            return Err(ProtocolError::BadLength { what: "reply chunk", length: length.into() });
        }
        Ok(Self { done: flags & CHUNK_DONE != 0, kind, cookie, length })
    }
}

/// A decoded chunk. The client reads the payload of [`ChunkType::Data`] straight into the caller's buffer and
/// decodes the others with this.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Chunk<'a> {
    /// Nothing.
    None,
    /// Bytes of the export.
    Data {
        /// Where in the export.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
    },
    /// Zeros.
    Hole {
        /// Where in the export.
        offset: u64,
        /// How many.
        length: u32,
    },
    /// Extents from the request's offset on.
    Status {
        /// The context.
        context: u32,
        /// The extents.
        extents: Vec<Descriptor>,
    },
    /// The request failed.
    Error {
        /// The error number.
        code: ErrorCode,
        /// The server's text.
        message: String,
        /// Where in the export, if the server said.
        offset: Option<u64>,
    },
}

/// One extent of a block-status reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Bytes; never 0.
    pub length: u32,
    /// What the context says about them.
    pub flags: u32,
}

impl<'a> Chunk<'a> {
    /// Decodes a payload.
    ///
    /// # Errors
    /// When it does not have its type's shape.
    pub fn decode(header: &ChunkHeader, payload: &'a [u8]) -> Result<Self, ProtocolError> {
        let mut cursor = Cursor::new("reply chunk", payload);
        let chunk = match header.kind {
            ChunkType::None => Self::None,
            ChunkType::Data => Self::Data { offset: cursor.u64()?, data: cursor.rest() },
            ChunkType::Hole => Self::Hole { offset: cursor.u64()?, length: cursor.u32()? },
            ChunkType::Status => {
                let context = cursor.u32()?;
                let (pairs, odd) = cursor.rest().as_chunks::<8>();
                if !odd.is_empty() {
                    return Err(ProtocolError::BadStatus { why: "has half an extent" });
                }
                let extents: Vec<Descriptor> = pairs
                    .iter()
                    .map(|&[a, b, c, d, e, f, g, h]| Descriptor {
                        length: u32::from_be_bytes([a, b, c, d]),
                        flags: u32::from_be_bytes([e, f, g, h]),
                    })
                    .collect();
                if extents.is_empty() || extents.iter().any(|extent| extent.length == 0) {
                    return Err(ProtocolError::BadStatus { why: "has an empty extent" });
                }
                Self::Status { context, extents }
            }
            ChunkType::Error | ChunkType::ErrorOffset => {
                let code = ErrorCode(cursor.u32()?);
                let length = cursor.u16()?;
                let message = lossy(cursor.take(length.into())?);
                let offset = if header.kind == ChunkType::ErrorOffset { Some(cursor.u64()?) } else { None };
                Self::Error { code, message, offset }
            }
            ChunkType::OtherError => {
                cursor.rest();
                Self::Error { code: ErrorCode::EINVAL, message: String::new(), offset: None }
            }
        };
        cursor.end()?;
        Ok(chunk)
    }
}

/// An error number of the protocol: the same on every platform.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// Operation not permitted.
    pub const EPERM: Self = Self(1);
    /// Input/output error.
    pub const EIO: Self = Self(5);
    /// Invalid argument; also stands for numbers that a client does not know.
    pub const EINVAL: Self = Self(22);
    /// No space left.
    pub const ENOSPC: Self = Self(28);
    /// Not supported.
    pub const ENOTSUP: Self = Self(95);

    /// What kind of failure this is.
    #[must_use]
    pub fn kind(self) -> VolumeKind {
        match self.0 {
            1 => VolumeKind::Permission,
            22 => VolumeKind::Invalid,
            28 => VolumeKind::NoSpace,
            75 | 95 => VolumeKind::Unsupported,
            108 => VolumeKind::Protocol,
            _ => VolumeKind::Io,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("operation not permitted"),
            5 => f.write_str("I/O error"),
            12 => f.write_str("out of memory"),
            22 => f.write_str("invalid argument"),
            28 => f.write_str("no space left"),
            75 => f.write_str("value too large"),
            95 => f.write_str("not supported"),
            108 => f.write_str("the server is shutting down"),
            other => write!(f, "error {other}"),
        }
    }
}
