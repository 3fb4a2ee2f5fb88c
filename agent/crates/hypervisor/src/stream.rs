//! Cuts QEMU's main migration channel into pages of RAM and literal bytes, byte for byte.
//!
//! For post-copy and for migrations without multifd, where all RAM is in this one stream; the main channel beside
//! multifd may be run through it too, and comes out literal but for what [`multifd`](crate::multifd) leaves to it.
//!
//! The sections of the stream have no lengths, so it can only be walked while every one of them is known: the
//! configuration, commands, and `ram` version 4. Source: QEMU's `migration/savevm.c`, `migration/ram.c` and
//! `migration/vmstate.c`, 10.0. The first section, flag or value that is not known turns the connection into literal
//! bytes for good; looking for the next familiar byte would be a guess. With pre-copy that is where the device state
//! begins, after the last page. So what [`rebuild`] makes of the tokens is what came in, whatever that was, and an
//! unknown version of QEMU costs bandwidth and never a guest.
//!
//! Whatever is known to be literal is handed out at once: held back are at most the page that is arriving, and the
//! few bytes of a record's or section's head.

mod cursor;
#[cfg(test)]
mod tests;
mod walker;

use std::fmt;

use bytes::buf::Limit;
use bytes::{BufMut, Bytes, BytesMut};

use crate::multifd::MAGIC;
pub use walker::MAX_BLOCKS;
use walker::{Step, Stop, Walker};

/// Bytes of a page: the target page of x86. A stream that says otherwise is passed through.
pub const PAGE: usize = 4096;

/// How the main channel begins: `QEMU_VM_FILE_MAGIC` and `QEMU_VM_FILE_VERSION`.
const MAIN: [u8; 8] = *b"QEVM\0\0\0\x03";

/// Bytes read at once: 64 pages, so that the page that a read cuts in two, and is copied for it, is one of many.
const READ: usize = 256 << 10;

/// Spare room from which on a read is worth its call.
const WORTH_READING: usize = 32 << 10;

/// What a connection from a migrating QEMU is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The main channel.
    Main,
    /// A multifd channel.
    Multifd,
    /// Neither: TLS, post-copy's second channel, a main channel that resumes, or no QEMU.
    Unknown,
}

/// What a connection is by its first bytes, or `None` while more are needed; 4 are enough.
#[must_use]
pub fn detect(first: &[u8]) -> Option<Kind> {
    let may_be = |magic: &[u8; 4]| first.iter().zip(magic).all(|(byte, expected)| byte == expected);
    let [q, e, v, m, ..] = MAIN;
    let (main, multifd) = (may_be(&[q, e, v, m]), may_be(&MAGIC));
    match (main, multifd) {
        (false, false) => Some(Kind::Unknown),
        _ if first.len() < 4 => None,
        (true, _) => Some(Kind::Main),
        (false, true) => Some(Kind::Multifd),
    }
}

/// A RAM block of the machine. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Block {
    index: u16,
    name: Bytes,
}

impl Block {
    /// Its place in the stream's list of blocks, from 0: below [`MAX_BLOCKS`].
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Its name (`pc.ram`), 1 to 255 bytes.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.index, self.name.escape_ascii())
    }
}

/// The content of a page. The record's head, with block and offset, is in the literal before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The block that it belongs to.
    pub block: Block,
    /// Its byte offset in the block: a multiple of [`PAGE`].
    pub offset: u64,
    /// Its [`PAGE`] bytes. They lie in a buffer of 256 KiB that they keep from being freed.
    pub data: Bytes,
}

/// A part of the stream. The bytes of all tokens in order are the stream's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Token {
    /// Bytes that are passed on as they are: heads of records and sections, zero pages (9 bytes each), XBZRLE deltas,
    /// device state. Never empty.
    Literal(Bytes),
    /// A page.
    Page(Page),
}

/// Why the rest of a stream is passed through.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// It does not begin like a migration of version 3.
    #[error("no QEMU migration stream of version 3")]
    Magic,
    /// The end of the sections. What follows describes the device state.
    #[error("the sections have ended")]
    End,
    /// A section of something else than RAM, whose length only QEMU knows: the device state, or block bitmaps.
    #[error("the section of \"{}\" has a content of unknown length", .0.escape_ascii())]
    Content(Bytes),
    /// A section of an unknown type, or where it should not be.
    #[error("no section of type {0:#x} is expected here")]
    Section(u8),
    /// A part of the configuration that is unknown or says that RAM has another form.
    #[error("the configuration is not known")]
    Configuration,
    /// A command that is unknown or changes what follows it.
    #[error("command {0} is not known")]
    Command(u16),
    /// A record with unknown flags.
    #[error("RAM record {0:#x} is not known")]
    Record(u64),
    /// The list of RAM blocks is malformed.
    #[error("the list of RAM blocks is not understood")]
    Blocks,
    /// A record of a block that is not in the list, or of none.
    #[error("a RAM record names no block of the list")]
    UnknownBlock,
    /// A page outside its block.
    #[error("offset {0:#x} lies outside the RAM block")]
    Offset(u64),
}

impl Reason {
    /// Whether this is how every stream goes on after its last page, and not a surprise.
    #[must_use]
    pub fn is_expected(&self) -> bool {
        matches!(self, Self::End | Self::Content(_))
    }
}

/// Cuts what arrives into [`Token`]s. Drain [`next_token`](Self::next_token) after each read.
///
/// Holds at most a page or a head (17 KiB) beyond what the caller pushed at once.
#[derive(Debug)]
pub struct Tokeniser {
    input: BytesMut,
    /// Bytes at the front of the input that are known to be literal.
    literal: usize,
    walker: Walker,
    passed_through: Option<Reason>,
}

impl Default for Tokeniser {
    fn default() -> Self {
        Self::new()
    }
}

impl Tokeniser {
    /// At the beginning of a migration.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Walker::new())
    }

    /// For the connection on which an interrupted post-copy migration resumes: it goes on where this one ended,
    /// with sections of the same RAM, and has no beginning of its own.
    #[must_use]
    pub fn resumed(&self) -> Self {
        Self { passed_through: self.passed_through.clone(), ..Self::with(self.walker.resumed()) }
    }

    fn with(walker: Walker) -> Self {
        Self { input: BytesMut::new(), literal: 0, walker, passed_through: None }
    }

    /// Room for the next read, never empty. Reading into it spares the copy of [`push`](Self::push).
    pub fn input(&mut self) -> Limit<&mut BytesMut> {
        if self.input.capacity() - self.input.len() < WORTH_READING {
            self.input.reserve(READ);
        }
        let room = (self.input.capacity() - self.input.len()).min(READ);
        (&mut self.input).limit(room)
    }

    /// Takes the next bytes, of any number, with a copy.
    pub fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// The next token, or `None` when more bytes are needed for one.
    pub fn next_token(&mut self) -> Option<Token> {
        while self.passed_through.is_none() {
            if self.literal > 0 && self.walker.at_page() {
                return self.take_literal();
            }
            match self.walker.step(&self.input[self.literal..]) {
                Ok(Step::Literal(length)) => self.literal += length,
                Ok(Step::Page { block, offset }) => {
                    let data = self.input.split_to(PAGE).freeze();
                    return Some(Token::Page(Page { block, offset, data }));
                }
                Err(Stop::More) => return self.take_literal(),
                Err(Stop::Unknown(reason)) => self.passed_through = Some(reason),
            }
        }
        // What was known comes by itself, before what is not.
        if self.literal == 0 {
            self.literal = self.input.len();
        }
        self.take_literal()
    }

    /// The stream has ended: what is left of it, as a literal.
    pub fn finish(mut self) -> Option<Token> {
        self.literal = self.input.len();
        self.take_literal()
    }

    /// Why the rest of this stream is passed through, if it is.
    #[must_use]
    pub fn literal_because(&self) -> Option<&Reason> {
        self.passed_through.as_ref()
    }

    fn take_literal(&mut self) -> Option<Token> {
        let length = std::mem::take(&mut self.literal);
        (length > 0).then(|| Token::Literal(self.input.split_to(length).freeze()))
    }
}

/// Writes the bytes that `token` was made of.
pub fn rebuild(token: &Token, out: &mut impl BufMut) {
    match token {
        Token::Literal(bytes) => out.put_slice(bytes),
        Token::Page(page) => out.put_slice(&page.data),
    }
}
