//! The server's side of the handshake: the client's flags and options in, the greeting and replies out.

use super::handshake::{
    EXPORT_NAME_PADDING, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_LENGTH, INFO_BLOCK_SIZE, INFO_EXPORT,
    MAGIC, OPTION_ABORT, OPTION_EXPORT_NAME, OPTION_GO, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    OPTION_STRUCTURED_REPLY, REPLY_ACK, REPLY_ERROR, REPLY_HEADER_LENGTH, REPLY_INFO, text,
};
use super::{BlockSizes, Cursor, MAX_STRING, ProtocolError, TransmissionFlags};

/// Bytes of the client's answer to the greeting.
pub const CLIENT_FLAGS_LENGTH: usize = 4;
/// Bytes of an option before its payload.
pub const OPTION_HEADER_LENGTH: usize = 16;
/// Largest payload of an option that a client may send, in bytes: a name of [`MAX_STRING`] and room for 2,000
/// information requests, of which four exist.
pub const MAX_OPTION: u32 = 8 << 10;
/// Options that one client may send. QEMU, libnbd and the kernel's client send fewer than ten.
pub const MAX_OPTIONS: usize = 64;

/// Option: list the exports.
pub const OPTION_LIST: u32 = 3;
/// Option: describe an export without starting.
pub const OPTION_INFO: u32 = 6;

const REPLY_SERVER: u32 = 2;

/// The server's first words: fixed newstyle, no padding.
#[must_use]
pub fn greeting() -> [u8; GREETING_LENGTH] {
    let mut out = [0; GREETING_LENGTH];
    out[0..8].copy_from_slice(&MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..18].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    out
}

/// The client's answer to the greeting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientFlags {
    /// Leave out the padding after `EXPORT_NAME`.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// Decodes the answer.
    ///
    /// # Errors
    /// When the client lacks fixed newstyle, or sets a flag that the server did not offer.
    pub fn decode(bytes: [u8; CLIENT_FLAGS_LENGTH]) -> Result<Self, ProtocolError> {
        let flags = u32::from_be_bytes(bytes);
        let (fixed, no_zeroes) = (u32::from(FLAG_FIXED_NEWSTYLE), u32::from(FLAG_NO_ZEROES));
        if flags & fixed == 0 || flags & !(fixed | no_zeroes) != 0 {
            return Err(ProtocolError::ClientFlags { found: flags });
        }
        Ok(Self { no_zeroes: flags & no_zeroes != 0 })
    }
}

/// The head of an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionHeader {
    /// Its number.
    pub option: u32,
    /// Bytes of payload that follow; at most [`MAX_OPTION`].
    pub length: u32,
}

impl OptionHeader {
    /// Decodes the head.
    ///
    /// # Errors
    /// When the magic is wrong or the payload is longer than the cap.
    pub fn decode(bytes: &[u8; OPTION_HEADER_LENGTH]) -> Result<Self, ProtocolError> {
        let mut cursor = Cursor::new("option", bytes);
        let magic = cursor.u64()?;
        if magic != OPTION_MAGIC {
            return Err(ProtocolError::Magic { what: "option magic", found: magic });
        }
        let header = Self { option: cursor.u32()?, length: cursor.u32()? };
        if header.length > MAX_OPTION {
            let (length, limit) = (header.length.into(), MAX_OPTION.into());
            return Err(ProtocolError::TooLong { what: "option", length, limit });
        }
        Ok(header)
    }
}

/// What a client asks for during the handshake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OptionRequest {
    /// Start with this export; a refusal is a closed connection.
    ExportName(String),
    /// End the handshake.
    Abort,
    /// Name the exports.
    List,
    /// Describe an export.
    Info(Query),
    /// Describe an export and start.
    Go(Query),
    /// Use structured replies.
    StructuredReply,
    /// An option that this server does not have.
    Unknown,
}

/// The payload of INFO and GO.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Query {
    /// The export.
    pub name: String,
    /// Whether the client promises to keep to the block sizes.
    pub block_sizes: bool,
}

impl OptionRequest {
    /// Decodes the payload of `option`.
    ///
    /// # Errors
    /// When it does not have the option's shape: the answer is [`Refusal::Invalid`].
    pub fn decode(option: u32, payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut cursor = Cursor::new("option", payload);
        let request = match option {
            OPTION_EXPORT_NAME => Self::ExportName(text("export name", cursor.rest())?),
            // ABORT may carry anything: the client leaves in any case.
            OPTION_ABORT => {
                cursor.rest();
                Self::Abort
            }
            OPTION_LIST => Self::List,
            OPTION_INFO => Self::Info(Query::decode(&mut cursor)?),
            OPTION_GO => Self::Go(Query::decode(&mut cursor)?),
            OPTION_STRUCTURED_REPLY => Self::StructuredReply,
            _ => {
                cursor.rest();
                Self::Unknown
            }
        };
        cursor.end()?;
        Ok(request)
    }
}

impl Query {
    fn decode(cursor: &mut Cursor<'_>) -> Result<Self, ProtocolError> {
        let length = cursor.u32()?;
        // More than `usize` is more than the payload has, too.
        let name = text("export name", cursor.take(usize::try_from(length).unwrap_or(usize::MAX))?)?;
        let mut block_sizes = false;
        for _ in 0..cursor.u16()? {
            block_sizes |= cursor.u16()? == INFO_BLOCK_SIZE;
        }
        Ok(Self { name, block_sizes })
    }
}

/// Why an option is refused: the numbers after `NBD_REP_ERR_`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Refusal {
    /// The option is not known.
    Unsupported = 1,
    /// The payload is malformed, or the option makes no sense now.
    Invalid = 3,
    /// There is no such export.
    UnknownExport = 6,
    /// The client must ask for the block sizes, because a minimum above one byte applies.
    BlockSizeRequired = 8,
}

fn encode_reply(option: u32, reply: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(REPLY_HEADER_LENGTH + payload.len());
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&reply.to_be_bytes());
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// Encodes the reply that ends an option with success.
#[must_use]
pub fn encode_ack(option: u32) -> Vec<u8> {
    encode_reply(option, REPLY_ACK, &[])
}

/// Encodes the reply that ends an option with a refusal.
#[must_use]
pub fn encode_refusal(option: u32, refusal: Refusal, message: &str) -> Vec<u8> {
    encode_reply(option, REPLY_ERROR | refusal as u32, message.as_bytes())
}

/// Encodes the answer to LIST for one export: its name and the end.
#[must_use]
pub fn encode_list(name: &str) -> Vec<u8> {
    debug_assert!(name.len() <= MAX_STRING, "exports are checked first");
    let mut payload = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    payload.extend_from_slice(name.as_bytes());
    let mut out = encode_reply(OPTION_LIST, REPLY_SERVER, &payload);
    out.extend(encode_ack(OPTION_LIST));
    out
}

/// Encodes the answer to INFO or GO: size and flags, block sizes, the end.
#[must_use]
pub fn encode_description(option: u32, size: u64, flags: TransmissionFlags, sizes: BlockSizes) -> Vec<u8> {
    let mut export = INFO_EXPORT.to_be_bytes().to_vec();
    export.extend_from_slice(&size.to_be_bytes());
    export.extend_from_slice(&flags.0.to_be_bytes());
    let mut blocks = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for number in [sizes.minimum, sizes.preferred, sizes.maximum] {
        blocks.extend_from_slice(&number.to_be_bytes());
    }
    let mut out = encode_reply(option, REPLY_INFO, &export);
    out.extend(encode_reply(option, REPLY_INFO, &blocks));
    out.extend(encode_ack(option));
    out
}

/// Encodes the answer to EXPORT_NAME: size and flags, then padding for clients that want it.
#[must_use]
pub fn encode_export_name_reply(size: u64, flags: TransmissionFlags, client: ClientFlags) -> Vec<u8> {
    let mut out = size.to_be_bytes().to_vec();
    out.extend_from_slice(&flags.0.to_be_bytes());
    if !client.no_zeroes {
        out.resize(out.len() + EXPORT_NAME_PADDING, 0);
    }
    out
}
