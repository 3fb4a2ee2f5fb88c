//! The codec: bytes to values and back, no I/O and no state.
//!
//! [`handshake`] holds the greeting and the options as a client sees them, [`transmission`] the requests and replies;
//! [`options`] and [`requests`] are the server's side of the same. All integers are
//! big-endian. A decoder takes exactly the bytes it names (the caller reads fixed-size headers, then a payload
//! whose length a decoder has checked against a cap), so no input makes it panic or allocate more than the cap.

pub mod handshake;
pub mod options;
pub mod requests;
pub mod transmission;

pub use self::handshake::{
    BlockSizes, Greeting, Information, MetaContext, OptionRefusal, OptionReply, ReplyHeader,
    TransmissionFlags,
};
pub use self::requests::Zeroing;
pub use self::transmission::{Chunk, ChunkHeader, Command, CommandFlags, ErrorCode, Header, Request};

/// Largest payload of one READ or WRITE that this client sends or accepts, in bytes: QEMU's and nbdkit's limit,
/// and what the specification tells servers to support at least.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Largest payload of an option reply, in bytes. The longest legal one carries a name and a description of
/// [`MAX_STRING`] each.
pub const MAX_OPTION_REPLY: u32 = 16 << 10;
/// Replies to one option: QEMU sends three to GO; a meta context each for SET_META_CONTEXT.
pub const MAX_OPTION_REPLIES: u32 = 64;
/// Longest string in the protocol, in bytes ("Strings: NBD clients and servers SHOULD be prepared to handle 4096").
pub const MAX_STRING: usize = 4096;
/// Extents accepted in one block-status reply: twice what QEMU sends (1 MiB of 8-byte descriptors).
pub const MAX_EXTENTS: u32 = 256 << 10;
/// Largest payload of a structured error, in bytes: a text of [`MAX_STRING`], offset, length and number.
pub const MAX_ERROR_PAYLOAD: u32 = (4 << 10) + 8 + 2 + 4;
/// Smallest and largest minimum block size that a server may ask for (the specification's upper bound).
pub const MAX_MINIMUM_BLOCK: u32 = 64 << 10;

/// Something that the protocol forbids, or that exceeds a cap.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A fixed number is not what it must be.
    #[error("wrong {what}: {found:#x}; is this NBD?")]
    Magic {
        /// Which number.
        what: &'static str,
        /// What came instead.
        found: u64,
    },
    /// The server speaks the handshake that was removed from the protocol in 2018.
    #[error("the server only speaks the oldstyle handshake; use a server that speaks fixed newstyle")]
    OldStyle,
    /// The server lacks the fixed newstyle handshake.
    #[error("the server lacks the fixed newstyle handshake; use a newer server")]
    NotFixedNewstyle,
    /// Flags of a client that a server must not accept.
    #[error("client flags {found:#x}: fixed newstyle is missing, or one is not known")]
    ClientFlags {
        /// The flags.
        found: u32,
    },
    /// More options than one handshake may have.
    #[error("more than {limit} options in one handshake")]
    TooManyOptions {
        /// The cap.
        limit: usize,
    },
    /// EXPORT_NAME asked for an export that is not here; there is no way to say so but to close the connection.
    #[error("the export \"{name}\" was asked for, which is not here")]
    UnknownExport {
        /// The name.
        name: String,
    },
    /// An option reply belongs to another option.
    #[error("a reply to option {found} while option {expected} was asked")]
    WrongOption {
        /// The option asked.
        expected: u32,
        /// The option answered.
        found: u32,
    },
    /// A reply type that does not belong here.
    #[error("unexpected {what} of type {found}")]
    UnexpectedReply {
        /// What kind of reply.
        what: &'static str,
        /// Its type.
        found: u32,
    },
    /// A length above the cap.
    #[error("{what} of {length} bytes, at most {limit} are accepted")]
    TooLong {
        /// What.
        what: &'static str,
        /// Length announced.
        length: u64,
        /// The cap.
        limit: u64,
    },
    /// A length that does not fit what it measures.
    #[error("{what} of {length} bytes does not have a valid length")]
    BadLength {
        /// What.
        what: &'static str,
        /// Length found.
        length: u64,
    },
    /// More replies than one option may have.
    #[error("more than {limit} replies to one option")]
    TooManyReplies {
        /// The cap.
        limit: u32,
    },
    /// A string that is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotText {
        /// What.
        what: &'static str,
    },
    /// The handshake ended without what it must carry.
    #[error("the server accepted the export without describing it")]
    NoExportInformation,
    /// Block sizes that contradict each other or the specification.
    #[error("block sizes {minimum}/{preferred}/{maximum} make no sense")]
    BlockSizes {
        /// Announced minimum.
        minimum: u32,
        /// Announced preferred size.
        preferred: u32,
        /// Announced maximum.
        maximum: u32,
    },
    /// A reply to a request that is not outstanding.
    #[error("a reply to request {cookie:#x}, which is not outstanding")]
    UnknownCookie {
        /// The cookie in the reply.
        cookie: u64,
    },
    /// A reply whose kind does not fit the request.
    #[error("a {reply} in answer to {command}")]
    WrongReply {
        /// The kind of reply.
        reply: &'static str,
        /// The request it answers.
        command: Command,
    },
    /// Data for bytes that were not asked for, or twice for the same.
    #[error("data for bytes {offset}+{length}, which were not asked for or had come already")]
    BadPlacement {
        /// Offset in the export.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// A read that ended successfully without all its data.
    #[error("a read ended with {missing} of its bytes missing")]
    Incomplete {
        /// Bytes that never came.
        missing: u64,
    },
    /// A read reply in too many unordered pieces.
    #[error("a read reply in more than {limit} unordered pieces")]
    TooFragmented {
        /// The cap.
        limit: usize,
    },
    /// Block status that is empty, of an unknown context, or repeated.
    #[error("a block status reply that {why}")]
    BadStatus {
        /// What is wrong with it.
        why: &'static str,
    },
}

/// A cursor over bytes that fails instead of panicking.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    what: &'static str,
    whole: usize,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, whole: bytes.len(), rest: bytes }
    }

    fn bad(&self) -> ProtocolError {
        ProtocolError::BadLength { what: self.what, length: self.whole as u64 }
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], ProtocolError> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or_else(|| self.bad())?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.bad())?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, ProtocolError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Fails when bytes are left over.
    pub(crate) fn end(&self) -> Result<(), ProtocolError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.bad()) }
    }
}

/// Feeds arbitrary bytes to every decoder, as a server's stream would: the body of a fuzz target and of the
/// property test. Returns how many values were decoded, so that the work cannot be optimised away.
#[must_use]
pub fn decode_anything(bytes: &[u8]) -> usize {
    let mut decoded = 0;
    let mut cursor = Cursor::new("input", bytes);
    if let Ok(head) = cursor.array::<{ handshake::GREETING_LENGTH }>() {
        decoded += usize::from(Greeting::decode(&head).is_ok());
    }
    while let Ok(head) = cursor.array::<{ handshake::REPLY_HEADER_LENGTH }>() {
        let Ok(header) = ReplyHeader::decode(&head) else { break };
        let Ok(payload) = cursor.take(header.length as usize) else { break };
        decoded += usize::from(OptionReply::decode(header.reply, payload).is_ok());
    }
    let mut cursor = Cursor::new("input", bytes);
    while let Ok(magic) = cursor.array::<4>() {
        match transmission::Kind::decode(magic) {
            Ok(transmission::Kind::Simple) => {
                let Ok(rest) = cursor.array::<{ transmission::SIMPLE_REST }>() else { break };
                decoded += usize::from(Header::decode_simple(&rest).cookie() != 0);
            }
            Ok(transmission::Kind::Structured) => {
                let Ok(rest) = cursor.array::<{ transmission::STRUCTURED_REST }>() else { break };
                let Ok(header) = ChunkHeader::decode(&rest) else { break };
                let Ok(payload) = cursor.take(header.length as usize) else { break };
                decoded += usize::from(Chunk::decode(&header, payload).is_ok());
            }
            Err(_) => break,
        }
    }
    decoded
}

/// Feeds arbitrary bytes to every decoder of a server, as a client's stream would: the body of a fuzz target and of
/// the property test. Returns how many values were decoded.
///
/// # Panics
/// When a decoded request is not written back as the same bytes, or is called sound although it leaves the export.
#[must_use]
pub fn decode_requests(bytes: &[u8]) -> usize {
    let sizes = BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 20 };
    let rules = requests::Rules { size: 1 << 30, sizes, read_only: false, fast_zero: true };
    let mut decoded = 0;
    let mut cursor = Cursor::new("input", bytes);
    if let Ok(flags) = cursor.array() {
        decoded += usize::from(options::ClientFlags::decode(flags).is_ok());
    }
    while let Ok(head) = cursor.array::<{ options::OPTION_HEADER_LENGTH }>() {
        let Ok(header) = options::OptionHeader::decode(&head) else { break };
        let Ok(payload) = cursor.take(header.length as usize) else { break };
        decoded += usize::from(options::OptionRequest::decode(header.option, payload).is_ok());
    }
    let mut cursor = Cursor::new("input", bytes);
    while let Ok(head) = cursor.array::<{ transmission::REQUEST_LENGTH }>() {
        let Ok(incoming) = requests::Incoming::decode(&head) else { break };
        decoded += 1;
        if let Some(command) = incoming.command {
            let requests::Incoming { flags, cookie, offset, length, .. } = incoming;
            assert_eq!(Request { command, flags, cookie, offset, length }.encode(), head, "read back");
        }
        use requests::Job;
        if let Ok(Job::Read(range) | Job::Write { range, .. } | Job::Zero { range, .. }) =
            incoming.check(&rules)
        {
            assert!(range.start < range.end && range.end <= rules.size, "{range} is inside");
        }
        let Ok(payload) = incoming.payload(rules.sizes.maximum) else { break };
        if cursor.take(payload as usize).is_err() {
            break;
        }
    }
    decoded
}

#[cfg(test)]
mod tests;
