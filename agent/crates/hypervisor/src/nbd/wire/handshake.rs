//! The greeting, the options and their replies (fixed newstyle negotiation).

use std::fmt;

use volume::Kind;

use super::{Cursor, MAX_MINIMUM_BLOCK, MAX_OPTION_REPLY, MAX_PAYLOAD, MAX_STRING, ProtocolError};

/// `NBDMAGIC`.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: newstyle; also opens every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Second word of the oldstyle greeting.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Opens every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Bytes of the server's greeting.
pub const GREETING_LENGTH: usize = 18;
/// Bytes of an option reply before its payload.
pub const REPLY_HEADER_LENGTH: usize = 20;
/// Bytes of the answer to `EXPORT_NAME`: size and flags.
pub const EXPORT_NAME_REPLY_LENGTH: usize = 10;
/// Zeros after that answer, unless both sides agreed to leave them out.
pub const EXPORT_NAME_PADDING: usize = 124;

/// Handshake flag of both sides: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag of both sides: no padding after `EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Option: choose an export and start, without any error reply (for servers without [`OPTION_GO`]).
pub const OPTION_EXPORT_NAME: u32 = 1;
/// Option: end the handshake.
pub const OPTION_ABORT: u32 = 2;
/// Option: choose an export and start.
pub const OPTION_GO: u32 = 7;
/// Option: structured replies.
pub const OPTION_STRUCTURED_REPLY: u32 = 8;
/// Option: choose the metadata contexts that block status reports.
pub const OPTION_SET_META_CONTEXT: u32 = 10;

/// Information type: size and flags.
pub const INFO_EXPORT: u16 = 0;
/// Information type: block sizes.
pub const INFO_BLOCK_SIZE: u16 = 3;

pub(super) const REPLY_ACK: u32 = 1;
pub(super) const REPLY_INFO: u32 = 3;
const REPLY_META_CONTEXT: u32 = 4;
pub(super) const REPLY_ERROR: u32 = 1 << 31;

/// The server's first words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Greeting {
    /// Whether the padding after `EXPORT_NAME` may be left out.
    pub no_zeroes: bool,
}

impl Greeting {
    /// Decodes the greeting.
    ///
    /// # Errors
    /// When it is not that of a fixed-newstyle NBD server.
    pub fn decode(bytes: &[u8; GREETING_LENGTH]) -> Result<Self, ProtocolError> {
        let mut cursor = Cursor::new("greeting", bytes);
        let magic = cursor.u64()?;
        if magic != MAGIC {
            return Err(ProtocolError::Magic { what: "greeting", found: magic });
        }
        match cursor.u64()? {
            OPTION_MAGIC => {}
            OLDSTYLE_MAGIC => return Err(ProtocolError::OldStyle),
            found => return Err(ProtocolError::Magic { what: "option magic", found }),
        }
        let flags = cursor.u16()?;
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(ProtocolError::NotFixedNewstyle);
        }
        Ok(Self { no_zeroes: flags & FLAG_NO_ZEROES != 0 })
    }

    /// The client's answer.
    #[must_use]
    pub fn answer(self) -> [u8; 4] {
        let flags = FLAG_FIXED_NEWSTYLE | if self.no_zeroes { FLAG_NO_ZEROES } else { 0 };
        u32::from(flags).to_be_bytes()
    }
}

/// A string's length as the wire carries it.
fn string_length(text: &str) -> u32 {
    debug_assert!(text.len() <= MAX_STRING, "callers check names first");
    u32::try_from(text.len()).unwrap_or(u32::MAX)
}

/// Encodes an option.
#[must_use]
pub fn encode_option(option: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + payload.len());
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// Encodes [`OPTION_GO`] for `export`, asking for the block sizes.
#[must_use]
pub fn encode_go(export: &str) -> Vec<u8> {
    let mut payload = Vec::with_capacity(8 + export.len());
    payload.extend_from_slice(&string_length(export).to_be_bytes());
    payload.extend_from_slice(export.as_bytes());
    payload.extend_from_slice(&1_u16.to_be_bytes());
    payload.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    encode_option(OPTION_GO, &payload)
}

/// Encodes [`OPTION_SET_META_CONTEXT`] for `export`.
#[must_use]
pub fn encode_set_meta_context(export: &str, contexts: &[&str]) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.extend_from_slice(&string_length(export).to_be_bytes());
    payload.extend_from_slice(export.as_bytes());
    payload.extend_from_slice(&u32::try_from(contexts.len()).unwrap_or(u32::MAX).to_be_bytes());
    for context in contexts {
        payload.extend_from_slice(&string_length(context).to_be_bytes());
        payload.extend_from_slice(context.as_bytes());
    }
    encode_option(OPTION_SET_META_CONTEXT, &payload)
}

/// The head of an option reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyHeader {
    /// The option answered.
    pub option: u32,
    /// The type of reply.
    pub reply: u32,
    /// Bytes of payload that follow; at most [`MAX_OPTION_REPLY`].
    pub length: u32,
}

impl ReplyHeader {
    /// Decodes the head.
    ///
    /// # Errors
    /// When the magic is wrong or the payload is longer than the cap.
    pub fn decode(bytes: &[u8; REPLY_HEADER_LENGTH]) -> Result<Self, ProtocolError> {
        let mut cursor = Cursor::new("option reply", bytes);
        let magic = cursor.u64()?;
        if magic != OPTION_REPLY_MAGIC {
            return Err(ProtocolError::Magic { what: "option reply magic", found: magic });
        }
        let header = Self { option: cursor.u32()?, reply: cursor.u32()?, length: cursor.u32()? };
        if header.length > MAX_OPTION_REPLY {
            return Err(ProtocolError::TooLong {
                what: "option reply",
                length: header.length.into(),
                limit: MAX_OPTION_REPLY.into(),
            });
        }
        Ok(header)
    }
}

/// A decoded option reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OptionReply {
    /// The option is done.
    Ack,
    /// Something about the export.
    Information(Information),
    /// A context was chosen.
    MetaContext(MetaContext),
    /// The option is refused.
    Refused(OptionRefusal),
}

/// What the server tells about the export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Information {
    /// Size and flags.
    Export {
        /// Length in bytes.
        size: u64,
        /// What the export can do.
        flags: TransmissionFlags,
    },
    /// Block sizes.
    BlockSizes(BlockSizes),
    /// A type that the client does not know and must ignore.
    Other(u16),
}

/// A metadata context that the server agreed to report on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetaContext {
    /// The number that stands for it in replies.
    pub id: u32,
    /// Its name, such as `base:allocation`.
    pub name: String,
}

impl OptionReply {
    /// Decodes the payload of a reply of type `reply`.
    ///
    /// # Errors
    /// When the type is unknown or the payload does not have its shape.
    pub fn decode(reply: u32, payload: &[u8]) -> Result<Self, ProtocolError> {
        match reply {
            REPLY_ACK => {
                Cursor::new("acknowledgement", payload).end()?;
                Ok(Self::Ack)
            }
            REPLY_INFO => Information::decode(payload).map(Self::Information),
            REPLY_META_CONTEXT => {
                let mut cursor = Cursor::new("metadata context", payload);
                let id = cursor.u32()?;
                let name = text("metadata context name", cursor.rest())?;
                Ok(Self::MetaContext(MetaContext { id, name }))
            }
            error if error & REPLY_ERROR != 0 => {
                Ok(Self::Refused(OptionRefusal { code: error & !REPLY_ERROR, message: lossy(payload) }))
            }
            found => Err(ProtocolError::UnexpectedReply { what: "option reply", found }),
        }
    }
}

impl Information {
    fn decode(payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut cursor = Cursor::new("export information", payload);
        let information = match cursor.u16()? {
            INFO_EXPORT => Self::Export { size: cursor.u64()?, flags: TransmissionFlags(cursor.u16()?) },
            INFO_BLOCK_SIZE => {
                Self::BlockSizes(BlockSizes::checked(cursor.u32()?, cursor.u32()?, cursor.u32()?)?)
            }
            other => {
                cursor.rest();
                Self::Other(other)
            }
        };
        cursor.end()?;
        Ok(information)
    }
}

/// Decodes the answer to [`OPTION_EXPORT_NAME`]: size and flags.
#[must_use]
pub fn decode_export_name_reply(bytes: &[u8; EXPORT_NAME_REPLY_LENGTH]) -> (u64, TransmissionFlags) {
    let [a, b, c, d, e, f, g, h, high, low] = *bytes;
    (u64::from_be_bytes([a, b, c, d, e, f, g, h]), TransmissionFlags(u16::from_be_bytes([high, low])))
}

/// A string of the protocol: UTF-8, at most [`MAX_STRING`] bytes.
pub(super) fn text(what: &'static str, bytes: &[u8]) -> Result<String, ProtocolError> {
    if bytes.len() > MAX_STRING {
        return Err(ProtocolError::TooLong { what, length: bytes.len() as u64, limit: MAX_STRING as u64 });
    }
    // `map_err` drops the position of the bad byte on purpose: it helps nobody.
    std::str::from_utf8(bytes).map(str::to_owned).or(Err(ProtocolError::NotText { what }))
}

/// A server's message for people: control characters are replaced, so that it cannot forge log lines.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(MAX_STRING)];
    String::from_utf8_lossy(shown).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What an export can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TransmissionFlags(pub u16);

/// Each method tells whether the flag of that name in the specification is set. Without `HAS_FLAGS` none counts.
#[expect(missing_docs, reason = "the names are the specification's")]
impl TransmissionFlags {
    /// What [`crate::nbd::server`] offers for every export.
    pub const SERVED: Self = Self(1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6);

    /// With READ_ONLY as told.
    #[must_use]
    pub fn with_read_only(self, set: bool) -> Self {
        Self(self.0 | u16::from(set) << 1)
    }
    /// With SEND_FAST_ZERO as told.
    #[must_use]
    pub fn with_fast_zero(self, set: bool) -> Self {
        Self(self.0 | u16::from(set) << 11)
    }
    fn has(self, bit: u16) -> bool {
        self.0 & 1 != 0 && self.0 & (1 << bit) != 0
    }
    #[must_use]
    pub fn read_only(self) -> bool {
        self.has(1)
    }
    #[must_use]
    pub fn flush(self) -> bool {
        self.has(2)
    }
    #[must_use]
    pub fn fua(self) -> bool {
        self.has(3)
    }
    #[must_use]
    pub fn trim(self) -> bool {
        self.has(5)
    }
    #[must_use]
    pub fn write_zeroes(self) -> bool {
        self.has(6)
    }
    #[must_use]
    pub fn can_multi_conn(self) -> bool {
        self.has(8)
    }
    #[must_use]
    pub fn fast_zero(self) -> bool {
        self.has(11)
    }
}

/// What offsets and lengths the server wants, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockSizes {
    /// Every offset and length is a multiple of this.
    pub minimum: u32,
    /// Requests below this are slow.
    pub preferred: u32,
    /// Largest payload of one request.
    pub maximum: u32,
}

impl BlockSizes {
    /// What a client assumes of a server that does not say. The specification's default minimum is 1 byte when the
    /// server did not insist on negotiating.
    pub const ASSUMED: Self = Self { minimum: 1, preferred: 4096, maximum: MAX_PAYLOAD };

    /// Checks what the server announced and lowers the maximum to [`MAX_PAYLOAD`].
    ///
    /// # Errors
    /// When the sizes contradict each other.
    pub fn checked(minimum: u32, preferred: u32, maximum: u32) -> Result<Self, ProtocolError> {
        let sound = minimum.is_power_of_two()
            && minimum <= MAX_MINIMUM_BLOCK
            && preferred.is_power_of_two()
            && preferred >= minimum
            && maximum >= minimum
            && (maximum == u32::MAX || maximum.is_multiple_of(minimum));
        if !sound {
            return Err(ProtocolError::BlockSizes { minimum, preferred, maximum });
        }
        Ok(Self { minimum, preferred, maximum: maximum.min(MAX_PAYLOAD) })
    }
}

/// Why a server refused an option.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OptionRefusal {
    /// The number after `NBD_REP_ERR_` (error bit removed).
    pub code: u32,
    /// The server's text; may be empty.
    pub message: String,
}

impl OptionRefusal {
    /// The option is not known to the server, or forbidden by its configuration: go on without it.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.code == 1
    }

    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.code {
            1 | 4 | 5 | 8 | 10 => Kind::Unsupported,
            2 => Kind::Permission,
            3 | 9 => Kind::Invalid,
            6 => Kind::NotFound,
            7 => Kind::InUse,
            _ => Kind::Protocol,
        }
    }
}

impl fmt::Display for OptionRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            1 => f.write_str("it does not know the option")?,
            2 => f.write_str("its policy forbids it")?,
            3 => f.write_str("it calls the request invalid")?,
            4 => f.write_str("its platform cannot do it")?,
            5 => f.write_str("it insists on TLS; serve the export on a unix socket, or tunnel it")?,
            6 => f.write_str("there is no such export; check the name")?,
            7 => f.write_str("it is shutting down")?,
            8 => f.write_str("it insists on block sizes")?,
            9 => f.write_str("the request is too big")?,
            10 => f.write_str("it insists on extended headers")?,
            other => write!(f, "error {other}")?,
        }
        if self.message.is_empty() { Ok(()) } else { write!(f, " ({})", self.message) }
    }
}
