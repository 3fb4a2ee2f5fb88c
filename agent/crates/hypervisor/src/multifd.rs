//! Cuts a multifd channel of a QEMU migration into its packets, byte for byte.
//!
//! A channel is a hello of 64 bytes, then packets: a header of 1344 bytes and the pages that it counts. Source:
//! QEMU's `migration/multifd.h` (`MultiFDInit_t`, `MultiFDPacket_t`), the same in 7.2 and 10.0. Only what is fully
//! understood becomes a packet: compression none, no flag but SYNC, counts, sizes and offsets that agree. The first
//! thing that is not turns the channel into literal bytes for good, so that [`rebuild`] of the tokens is what came in
//! whatever that was, and a version of QEMU that is not known costs bandwidth and never a guest.
//!
//! ```text
//! Hello ──► Header ──► Pages ──► Header ──► …
//!   └─────────┴── not understood ──► Literal (for good)
//! ```
//!
//! No more is held back than what a packet needs to be whole, and what cannot be a packet is not held back at all.
//! Nothing here reads, waits or compresses: the caller reads into [`Tokeniser::input`], which asks for just the bytes
//! that the current part lacks, so that pages lie where the kernel put them and are never copied.

mod packet;
#[cfg(test)]
mod tests;

use bytes::buf::Limit;
use bytes::{BufMut, Bytes, BytesMut};

pub(crate) use packet::MAGIC;
pub use packet::{Hello, Packet};

/// Length of the hello in bytes (`sizeof(MultiFDInit_t)`).
pub const HELLO: usize = 64;

/// Length of a packet's header in bytes: 320 and an offset of 8 bytes for each of [`MAX_PAGES`].
pub const HEADER: usize = 1344;

/// Most pages of a packet: `MULTIFD_PACKET_SIZE` (512 KiB) over the page size.
pub const MAX_PAGES: usize = 128;

/// Bytes of a page: the target page of x86, the only one for which offsets leave 12 bits to flags.
pub const PAGE: usize = 4096;

/// Bytes read at once from a channel that is passed through. A pipe's worth: larger reads gain nothing.
const LITERAL_READ: usize = 64 << 10;

/// A part of a channel. The bytes of all tokens in order are the channel's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Token {
    /// The hello, once, at the beginning.
    Hello(Hello),
    /// A packet.
    Packet(Packet),
    /// Bytes that are passed on as they are. Once there is one, everything after it is.
    Literal(Bytes),
}

/// Why a channel is passed through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// It does not begin with a hello of version 1.
    #[error("no multifd channel of version 1")]
    Hello,
    /// What should be a header has another magic or version.
    #[error("no multifd packet of version 1")]
    Header,
    /// Compression, device state, or a flag of the future.
    #[error("packet flags {0:#x} are not known")]
    Flags(u32),
    /// Counts above the limits, or sizes that contradict them.
    #[error("{normal} pages, {zero} zero pages and {size} bytes do not agree")]
    Counts {
        /// Pages with content.
        normal: u32,
        /// Zero pages.
        zero: u32,
        /// Bytes that follow the header.
        size: u32,
    },
    /// A name of a RAM block that is empty or not ended.
    #[error("no name of a RAM block")]
    Block,
    /// An offset that is not at a page.
    #[error("offset {0:#x} is not that of a page")]
    Offset(u64),
}

/// What is expected next.
#[derive(Debug)]
enum State {
    Hello,
    Header,
    /// The pages of this header, so many bytes.
    Pages(Bytes, usize),
    Literal(Reason),
}

/// Cuts what arrives into [`Token`]s. Drain [`next_token`](Self::next_token) after each read.
///
/// Holds at most one packet (513 KiB) beyond what the caller pushed at once.
#[derive(Debug)]
pub struct Tokeniser {
    input: BytesMut,
    state: State,
}

impl Default for Tokeniser {
    fn default() -> Self {
        Self::new()
    }
}

impl Tokeniser {
    /// At the beginning of a channel.
    #[must_use]
    pub fn new() -> Self {
        Self { input: BytesMut::new(), state: State::Hello }
    }

    /// Room for the next read, never empty: as much as the current part lacks.
    ///
    /// Reading into it instead of [`push`](Self::push) spares the copy of the pages.
    pub fn input(&mut self) -> Limit<&mut BytesMut> {
        let part = match self.state {
            State::Hello => HELLO,
            State::Header => HEADER,
            State::Pages(_, length) => length,
            State::Literal(_) => 0,
        };
        let room = match part.saturating_sub(self.input.len()) {
            0 => LITERAL_READ,
            lacking => lacking,
        };
        self.input.reserve(room);
        (&mut self.input).limit(room)
    }

    /// Takes the next bytes, of any number, with a copy.
    pub fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// The next token, or `None` when more bytes are needed for one.
    pub fn next_token(&mut self) -> Option<Token> {
        loop {
            let step = match &self.state {
                State::Hello => self.hello(),
                State::Header => self.header(),
                State::Pages(header, length) if self.input.len() >= *length => {
                    let (header, length) = (header.clone(), *length);
                    let pages = self.take(length);
                    self.state = State::Header;
                    return Some(Token::Packet(Packet::new(header, pages)));
                }
                State::Pages(..) => return None,
                State::Literal(_) => return self.rest(),
            };
            match step {
                Ok(Progress::Token(token)) => return Some(token),
                Ok(Progress::Again) => {}
                Ok(Progress::More) => return None,
                Err(reason) => self.state = State::Literal(reason),
            }
        }
    }

    /// The channel has ended: what is left of it, as a literal.
    pub fn finish(mut self) -> Option<Token> {
        if let State::Pages(header, _) = &self.state {
            let mut rest = BytesMut::with_capacity(header.len() + self.input.len());
            rest.put_slice(header);
            rest.put_slice(&self.input);
            self.input = rest;
        }
        self.rest()
    }

    /// Why this channel is passed through, if it is.
    #[must_use]
    pub fn literal_because(&self) -> Option<Reason> {
        match self.state {
            State::Literal(reason) => Some(reason),
            State::Hello | State::Header | State::Pages(..) => None,
        }
    }

    fn hello(&mut self) -> Result<Progress, Reason> {
        if !packet::may_begin(&self.input) {
            return Err(Reason::Hello);
        }
        if self.input.len() < HELLO {
            return Ok(Progress::More);
        }
        let hello = Hello::new(self.take(HELLO));
        self.state = State::Header;
        Ok(Progress::Token(Token::Hello(hello)))
    }

    fn header(&mut self) -> Result<Progress, Reason> {
        // Headers of other kinds are shorter: they must not wait for 1344 bytes.
        packet::check_beginning(&self.input)?;
        if self.input.len() < HEADER {
            return Ok(Progress::More);
        }
        let length = packet::check(&self.input[..HEADER])?;
        let header = self.take(HEADER);
        self.state = State::Pages(header, length);
        Ok(Progress::Again)
    }

    /// The first `length` bytes of the input.
    fn take(&mut self, length: usize) -> Bytes {
        // A fresh buffer instead of the empty tail of this one, so that the next is as large as it must be and no
        // token keeps the memory of another.
        let taken = if self.input.len() == length {
            std::mem::take(&mut self.input)
        } else {
            self.input.split_to(length)
        };
        taken.freeze()
    }

    fn rest(&mut self) -> Option<Token> {
        (!self.input.is_empty()).then(|| Token::Literal(self.input.split().freeze()))
    }
}

/// What a step came to.
enum Progress {
    Token(Token),
    Again,
    More,
}

/// Writes the bytes that `token` was made of.
pub fn rebuild(token: &Token, out: &mut impl BufMut) {
    match token {
        Token::Hello(hello) => out.put_slice(hello.bytes()),
        Token::Packet(packet) => {
            out.put_slice(packet.header());
            out.put_slice(packet.pages());
        }
        Token::Literal(bytes) => out.put_slice(bytes),
    }
}
