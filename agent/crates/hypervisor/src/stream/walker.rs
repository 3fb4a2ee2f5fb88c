//! Where in the main channel we are: which bytes are heads, which are pages, and from where on nobody can tell.
//!
//! ```text
//! Beginning ─► Section ◄──────────────────────────┬─────────── Body (so many literal bytes)
//!                 │ configuration ─► Body ─► Configuration (its subsections)
//!                 │ command ─► Body
//!                 └ ram START, PART, END ─► Records ─► Page ─► Records … EOS ─► Section
//!                                             └ MEM_SIZE ─► Blocks ◄─► BlockEnd ─► Records
//! ```

use bytes::Bytes;

use super::cursor::Cursor;
use super::{Block, MAIN, PAGE, Reason};

/// Most RAM blocks of a machine. QEMU has a handful and one for each device with memory; the list costs memory.
pub const MAX_BLOCKS: usize = 1024;

/// Longest name of a machine type in the configuration. The known ones are below 40 bytes.
const MAX_MACHINE: u32 = 256;

/// Most capabilities in the configuration. QEMU 10.0 lists at most two, of 24 that there are.
const MAX_CAPABILITIES: u32 = 64;

/// Bits of a page offset, and of the flags below it.
const PAGE_BITS: u32 = 12;
const FLAG_BITS: u64 = PAGE as u64 - 1;

/// Types of section (`QEMU_VM_…`, `migration/savevm.h`).
mod section {
    pub(super) const EOF: u8 = 0;
    pub(super) const START: u8 = 1;
    pub(super) const PART: u8 = 2;
    pub(super) const END: u8 = 3;
    pub(super) const FULL: u8 = 4;
    pub(super) const SUBSECTION: u8 = 5;
    pub(super) const CONFIGURATION: u8 = 7;
    pub(super) const COMMAND: u8 = 8;
    pub(super) const FOOTER: u8 = 0x7e;
}

/// Commands (`enum qemu_vm_cmd`, `migration/savevm.c`): all up to the last one are a length and so many bytes.
mod command {
    pub(super) const PACKAGED: u16 = 7;
    /// What follows it is another protocol.
    pub(super) const ENABLE_COLO: u16 = 8;
    pub(super) const SWITCHOVER_START: u16 = 11;
}

/// Flags of RAM records (`RAM_SAVE_FLAG_…`, `migration/ram.c`).
mod record {
    pub(super) const ZERO: u64 = 0x02;
    pub(super) const MEM_SIZE: u64 = 0x04;
    pub(super) const PAGE: u64 = 0x08;
    pub(super) const EOS: u64 = 0x10;
    /// The same block as in the record before.
    pub(super) const CONTINUE: u64 = 0x20;
    pub(super) const XBZRLE: u64 = 0x40;
    pub(super) const MULTIFD_FLUSH: u64 = 0x200;
}

/// Version of the `ram` section, the same since 2010.
const RAM_VERSION: u32 = 4;

/// `ENCODING_FLAG_XBZRLE`.
const XBZRLE_ENCODING: u8 = 1;

/// Why a step could not be made.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// More bytes are needed.
    More,
    /// From here on the stream is literal.
    Unknown(Reason),
}

impl From<Reason> for Stop {
    fn from(reason: Reason) -> Self {
        Self::Unknown(reason)
    }
}

/// What lies at the front.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// So many literal bytes.
    Literal(usize),
    /// The [`PAGE`] bytes of a page.
    Page { block: Block, offset: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Beginning,
    Section,
    /// After the configuration's own fields, or one of its subsections.
    Configuration,
    Records,
    /// In the list of blocks; so many bytes of RAM are still to be listed.
    Blocks(u64),
    /// After a block of the list, where at most so many more fields may belong to it.
    BlockEnd(u64, u8),
    /// The content of a page of the current block.
    Page(u64),
    /// So many literal bytes, then the rest of what they are in.
    Body(u64, After),
}

/// What a body is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum After {
    Section,
    Configuration,
    Records,
}

impl From<After> for State {
    fn from(after: After) -> Self {
        match after {
            After::Section => Self::Section,
            After::Configuration => Self::Configuration,
            After::Records => Self::Records,
        }
    }
}

/// Walks the stream. Keeps nothing of it but the list of blocks.
#[derive(Debug)]
pub(super) struct Walker {
    state: State,
    /// Id of the `ram` section, from its start.
    ram: Option<u32>,
    /// The blocks and their lengths in bytes.
    blocks: Vec<(Block, u64)>,
    /// Index of the block of the last record; it lasts beyond the section.
    current: Option<usize>,
}

impl Walker {
    pub(super) fn new() -> Self {
        Self { state: State::Beginning, ram: None, blocks: Vec::new(), current: None }
    }

    /// For the next connection of the same migration. Its first record names its block
    /// (`ram_state_resume_prepare`).
    pub(super) fn resumed(&self) -> Self {
        Self { state: State::Section, ram: self.ram, blocks: self.blocks.clone(), current: None }
    }

    /// Whether a page is next.
    pub(super) fn at_page(&self) -> bool {
        matches!(self.state, State::Page(_))
    }

    /// What lies at the front of `bytes`, which begin where the last step ended.
    pub(super) fn step(&mut self, bytes: &[u8]) -> Result<Step, Stop> {
        let mut cursor = Cursor::new(bytes);
        let next = match self.state {
            State::Beginning => beginning(bytes, &mut cursor)?,
            State::Section => self.section(&mut cursor)?,
            State::Configuration => configuration(&mut cursor)?,
            State::Records => self.record(&mut cursor)?,
            State::Blocks(left) => self.block(left, &mut cursor)?,
            State::BlockEnd(left, fields) => block_end(left, fields, &mut cursor)?,
            State::Page(offset) => {
                cursor.take(PAGE)?;
                let (block, _) = self.current_block()?;
                let page = Step::Page { block: block.clone(), offset };
                self.state = State::Records;
                return Ok(page);
            }
            State::Body(left, after) => {
                let here = left.min(bytes.len() as u64);
                if here == 0 && left > 0 {
                    return Err(Stop::More);
                }
                // Not more than the length of `bytes`.
                let here = usize::try_from(here).unwrap_or(bytes.len());
                cursor.take(here)?;
                match left - here as u64 {
                    0 => after.into(),
                    left => State::Body(left, after),
                }
            }
        };
        self.state = next;
        Ok(Step::Literal(cursor.read()))
    }

    fn section(&mut self, cursor: &mut Cursor<'_>) -> Result<State, Stop> {
        let kind = cursor.byte()?;
        match kind {
            section::EOF => Err(Reason::End.into()),
            section::START | section::FULL => {
                let id = cursor.be32()?;
                let name = cursor.name()?;
                let _instance = cursor.be32()?;
                let version = cursor.be32()?;
                if kind == section::FULL || name != b"ram" {
                    return Err(Reason::Content(Bytes::copy_from_slice(name)).into());
                }
                if version != RAM_VERSION || self.ram.is_some() {
                    return Err(Reason::Section(kind).into());
                }
                self.ram = Some(id);
                Ok(State::Records)
            }
            section::PART | section::END | section::FOOTER => {
                if self.ram != Some(cursor.be32()?) {
                    return Err(Reason::Section(kind).into());
                }
                Ok(if kind == section::FOOTER { State::Section } else { State::Records })
            }
            section::CONFIGURATION if self.ram.is_none() => {
                let length = cursor.be32()?;
                if length > MAX_MACHINE {
                    return Err(Reason::Configuration.into());
                }
                Ok(State::Body(length.into(), After::Configuration))
            }
            section::COMMAND => command(cursor),
            _ => Err(Reason::Section(kind).into()),
        }
    }

    fn record(&mut self, cursor: &mut Cursor<'_>) -> Result<State, Stop> {
        let word = cursor.be64()?;
        let (offset, flags) = (word & !FLAG_BITS, word & FLAG_BITS);
        match flags & !record::CONTINUE {
            record::ZERO => {
                self.of_block(offset, flags, cursor)?;
                cursor.byte()?;
                Ok(State::Records)
            }
            record::PAGE => {
                self.of_block(offset, flags, cursor)?;
                Ok(State::Page(offset))
            }
            record::XBZRLE => {
                self.of_block(offset, flags, cursor)?;
                let encoding = cursor.byte()?;
                let length = cursor.be16()?;
                if encoding != XBZRLE_ENCODING || usize::from(length) > PAGE {
                    return Err(Reason::Record(word).into());
                }
                Ok(State::Body(length.into(), After::Records))
            }
            record::MEM_SIZE if flags == record::MEM_SIZE && self.blocks.is_empty() => {
                Ok(State::Blocks(offset))
            }
            record::MULTIFD_FLUSH if word == record::MULTIFD_FLUSH => Ok(State::Records),
            record::EOS if word == record::EOS => Ok(State::Section),
            _ => Err(Reason::Record(word).into()),
        }
    }

    /// Reads the block of a record, unless it is the one before, and checks that the page lies in it.
    ///
    /// Changes nothing that a second try with more bytes would not set again.
    fn of_block(&mut self, offset: u64, flags: u64, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        if flags & record::CONTINUE == 0 {
            let name = cursor.name()?;
            self.current = self.blocks.iter().position(|(block, _)| block.name() == name);
        }
        let (_, length) = self.current_block()?;
        if offset >= *length {
            return Err(Reason::Offset(offset).into());
        }
        Ok(())
    }

    fn current_block(&self) -> Result<&(Block, u64), Reason> {
        self.current.and_then(|current| self.blocks.get(current)).ok_or(Reason::UnknownBlock)
    }

    /// An entry of the list of blocks.
    fn block(&mut self, left: u64, cursor: &mut Cursor<'_>) -> Result<State, Stop> {
        if left == 0 {
            return Ok(State::Records);
        }
        let name = cursor.name()?;
        let length = cursor.be64()?;
        let left = left.checked_sub(length).ok_or(Reason::Blocks)?;
        let known = self.blocks.iter().any(|(block, _)| block.name() == name);
        if name.is_empty() || known || self.blocks.len() == MAX_BLOCKS {
            return Err(Reason::Blocks.into());
        }
        let index = u16::try_from(self.blocks.len()).map_err(|_above| Reason::Blocks)?;
        self.blocks.push((Block { index, name: Bytes::copy_from_slice(name) }, length));
        Ok(State::BlockEnd(left, 2))
    }
}

/// The first 8 bytes, as far as they have arrived.
fn beginning(bytes: &[u8], cursor: &mut Cursor<'_>) -> Result<State, Stop> {
    if bytes.iter().zip(MAIN).any(|(byte, expected)| *byte != expected) {
        return Err(Reason::Magic.into());
    }
    cursor.take(MAIN.len())?;
    Ok(State::Section)
}

/// A subsection of the configuration, or its end.
fn configuration(cursor: &mut Cursor<'_>) -> Result<State, Stop> {
    let mut ahead = *cursor;
    if ahead.byte()? != section::SUBSECTION {
        return Ok(State::Section);
    }
    *cursor = ahead;
    let name = cursor.name()?;
    let _version = cursor.be32()?;
    match name {
        b"configuration/capabilities" => {
            let count = cursor.be32()?;
            if count > MAX_CAPABILITIES {
                return Err(Reason::Configuration.into());
            }
            for _ in 0..count {
                // Of those that are listed this one puts pages elsewhere.
                if cursor.name()? == b"mapped-ram" {
                    return Err(Reason::Configuration.into());
                }
            }
        }
        b"configuration/target-page-bits" => {
            if cursor.be32()? != PAGE_BITS {
                return Err(Reason::Configuration.into());
            }
        }
        b"configuration/uuid" => {
            cursor.take(16)?;
        }
        _ => return Err(Reason::Configuration.into()),
    }
    Ok(State::Configuration)
}

fn command(cursor: &mut Cursor<'_>) -> Result<State, Stop> {
    let (command, length) = (cursor.be16()?, cursor.be16()?);
    match command {
        command::PACKAGED if length == 4 => {
            // A stream of its own, of device state.
            let packaged = cursor.be32()?;
            Ok(State::Body(packaged.into(), After::Section))
        }
        0 | command::PACKAGED | command::ENABLE_COLO => Err(Reason::Command(command).into()),
        1..=command::SWITCHOVER_START => Ok(State::Body(length.into(), After::Section)),
        _ => Err(Reason::Command(command).into()),
    }
}

/// What may follow a block's length, depending on capabilities that the stream does not name: its page size (post-copy
/// with blocks of different page sizes), then its address (`x-ignore-shared`).
///
/// Both are multiples of 4096 far below 2^56. A name never begins with 0, and a record always has flags, so the next
/// bytes tell; `ram_save_setup` writes an EOS after the list, so there always are some.
fn block_end(left: u64, fields: u8, cursor: &mut Cursor<'_>) -> Result<State, Stop> {
    let (mut first, mut ahead) = (*cursor, *cursor);
    let another = first.byte()? == 0 && ahead.be64()? & FLAG_BITS == 0;
    match (another, fields, left) {
        (true, 1.., _) => {
            *cursor = ahead;
            Ok(State::BlockEnd(left, fields - 1))
        }
        (_, _, 0) => Ok(State::Records),
        (_, _, left) => Ok(State::Blocks(left)),
    }
}
