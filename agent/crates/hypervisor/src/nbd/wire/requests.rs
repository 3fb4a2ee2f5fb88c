//! The server's side of transmission: requests in, replies out.

use volume::{ByteRange, Kind as VolumeKind, ZeroMode};

use super::transmission::{
    CHUNK_DONE, REQUEST_LENGTH, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};
use super::{BlockSizes, Command, CommandFlags, Cursor, ErrorCode, MAX_STRING, ProtocolError};

/// Bytes of a simple reply before its data.
pub const SIMPLE_LENGTH: usize = 16;
/// Bytes of a structured data chunk before its data: the chunk's head and the offset.
pub const DATA_LENGTH: usize = 28;

/// What a server checks requests against.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Length of the export in bytes.
    pub size: u64,
    /// Block sizes that were announced.
    pub sizes: BlockSizes,
    /// Nothing may be changed.
    pub read_only: bool,
    /// FAST_ZERO was offered.
    pub fast_zero: bool,
}

/// The head of a request as a server sees it: the command may be one that it does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Incoming {
    /// What to do, if it is known.
    pub command: Option<Command>,
    /// How.
    pub flags: CommandFlags,
    /// To be repeated in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// A request that was found to be sound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Job {
    /// Read these bytes.
    Read(ByteRange),
    /// Write these bytes, which came with the request.
    Write {
        /// Where to.
        range: ByteRange,
        /// Answer only when they are durable.
        fua: bool,
    },
    /// Make these bytes read as zeros.
    Zero {
        /// Which.
        range: ByteRange,
        /// How.
        how: Zeroing,
    },
    /// Make durable what was answered.
    Flush,
    /// The client leaves.
    Disconnect,
}

/// How to zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Zeroing {
    /// Whether the space may be given back.
    pub mode: ZeroMode,
    /// Answer only when the zeros are durable.
    pub fua: bool,
    /// Fail with [`VolumeKind::Unsupported`] rather than be as slow as writing.
    pub fast: bool,
}

impl Incoming {
    /// Decodes the head.
    ///
    /// # Errors
    /// When the magic is wrong: nothing that follows can be trusted.
    pub fn decode(bytes: &[u8; REQUEST_LENGTH]) -> Result<Self, ProtocolError> {
        let mut cursor = Cursor::new("request", bytes);
        let magic = cursor.u32()?;
        if magic != REQUEST_MAGIC {
            return Err(ProtocolError::Magic { what: "request magic", found: magic.into() });
        }
        Ok(Self {
            flags: CommandFlags::decode(cursor.u16()?),
            command: Command::decode(cursor.u16()?),
            cookie: cursor.u64()?,
            offset: cursor.u64()?,
            length: cursor.u32()?,
        })
    }

    /// Bytes of payload that follow the head.
    ///
    /// # Errors
    /// When they exceed `maximum`, the largest payload that was announced: reading on would cost what it sends.
    pub fn payload(&self, maximum: u32) -> Result<u32, ProtocolError> {
        match self.command {
            Some(Command::Write) if self.length > maximum => Err(ProtocolError::TooLong {
                what: "request to write",
                length: self.length.into(),
                limit: maximum.into(),
            }),
            Some(Command::Write) => Ok(self.length),
            _ => Ok(0),
        }
    }

    /// Checks the request. TRIM becomes zeroing that may give the space back: after it the bytes read as zeros.
    ///
    /// # Errors
    /// The number to answer with. The connection goes on.
    pub fn check(&self, rules: &Rules) -> Result<Job, ErrorCode> {
        let command = self.command.ok_or(ErrorCode::EINVAL)?;
        // The specification allows FUA on every command once it is offered; it changes nothing for most.
        let allowed = match command {
            Command::WriteZeroes if rules.fast_zero => {
                CommandFlags::FUA.and(CommandFlags::NO_HOLE).and(CommandFlags::FAST_ZERO)
            }
            Command::WriteZeroes => CommandFlags::FUA.and(CommandFlags::NO_HOLE),
            _ => CommandFlags::FUA,
        };
        if command == Command::Disconnect {
            return Ok(Job::Disconnect);
        }
        if !allowed.contains(self.flags) {
            return Err(ErrorCode::EINVAL);
        }
        let fua = self.flags.contains(CommandFlags::FUA);
        match command {
            Command::Disconnect => Ok(Job::Disconnect),
            Command::Flush if self.offset == 0 && self.length == 0 => Ok(Job::Flush),
            Command::Flush | Command::BlockStatus => Err(ErrorCode::EINVAL),
            Command::Read if self.length > rules.sizes.maximum => Err(ErrorCode::EINVAL),
            Command::Read => self.range(rules, ErrorCode::EINVAL).map(Job::Read),
            Command::Write | Command::Trim | Command::WriteZeroes if rules.read_only => Err(ErrorCode::EPERM),
            Command::Write => Ok(Job::Write { range: self.range(rules, ErrorCode::ENOSPC)?, fua }),
            Command::Trim => {
                let how = Zeroing { mode: ZeroMode::Deallocate, fua, fast: false };
                Ok(Job::Zero { range: self.range(rules, ErrorCode::EINVAL)?, how })
            }
            Command::WriteZeroes => {
                let keep = self.flags.contains(CommandFlags::NO_HOLE);
                let mode = if keep { ZeroMode::Allocate } else { ZeroMode::Deallocate };
                let how = Zeroing { mode, fua, fast: self.flags.contains(CommandFlags::FAST_ZERO) };
                Ok(Job::Zero { range: self.range(rules, ErrorCode::ENOSPC)?, how })
            }
        }
    }

    /// The range, if it is not empty, aligned, and inside the export; `outside` is the answer if it is not inside.
    fn range(&self, rules: &Rules, outside: ErrorCode) -> Result<ByteRange, ErrorCode> {
        let block = u64::from(rules.sizes.minimum);
        let length = u64::from(self.length);
        if length == 0 || !self.offset.is_multiple_of(block) || !length.is_multiple_of(block) {
            return Err(ErrorCode::EINVAL);
        }
        match self.offset.checked_add(length) {
            Some(end) if end <= rules.size => Ok(ByteRange { start: self.offset, end }),
            _ => Err(outside),
        }
    }
}

impl ErrorCode {
    /// The number that tells a client about a failure of this kind.
    #[must_use]
    pub fn of(kind: VolumeKind) -> Self {
        match kind {
            VolumeKind::NoSpace | VolumeKind::Quota | VolumeKind::TooSmall => Self::ENOSPC,
            VolumeKind::Permission => Self::EPERM,
            VolumeKind::Invalid | VolumeKind::OutOfRange => Self::EINVAL,
            VolumeKind::Unsupported => Self::ENOTSUP,
            _ => Self::EIO,
        }
    }
}

/// Encodes a simple reply: success, or the error.
#[must_use]
pub fn encode_simple(cookie: u64, error: Option<ErrorCode>) -> [u8; SIMPLE_LENGTH] {
    let mut out = [0; SIMPLE_LENGTH];
    out[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&error.map_or(0, |code| code.0).to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out
}

fn chunk_head(out: &mut Vec<u8>, kind: u16, cookie: u64, length: u32) {
    out.extend_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&CHUNK_DONE.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

/// Encodes the head of a structured reply to READ that is one chunk; `length` bytes of data at `offset` follow it.
#[must_use]
pub fn encode_data_head(cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(DATA_LENGTH);
    chunk_head(&mut out, 1, cookie, length.saturating_add(8));
    out.extend_from_slice(&offset.to_be_bytes());
    out
}

/// Encodes a structured error with a text for people, cut to [`MAX_STRING`].
#[must_use]
pub fn encode_error(cookie: u64, code: ErrorCode, message: &str) -> Vec<u8> {
    let shown = &message[..message.floor_char_boundary(MAX_STRING)];
    let length = u16::try_from(shown.len()).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(26 + shown.len());
    chunk_head(&mut out, 32769, cookie, 6 + u32::from(length));
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(shown.as_bytes());
    out
}
