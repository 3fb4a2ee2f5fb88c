//! The bytes of a packet's header and of the tables in its body, as the parent module specifies them.

use super::{MAX_PAGES, PAGE_BYTES, delta};
use crate::error::{Kind, Op, ReduceError};

/// Bytes of the header.
pub(super) const HEADER: usize = 8;
/// Longest body: every page with a run, a slot and a delta of all its words.
pub(super) const MAX_BODY: usize = MAX_PAGES * (2 + MAX_SLOT + delta::MAX_MASKS + PAGE_BYTES);
/// Longest slot: 33 bits in groups of 7.
const MAX_SLOT: usize = 5;
/// The version that this module writes and reads.
const VERSION: u8 = 1;

/// How the body is coded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Coding {
    Raw,
    Zstd,
}

/// The header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) coding: Coding,
    /// 1 to [`MAX_PAGES`].
    pub(super) pages: u8,
    /// At most as many as pages.
    pub(super) loose: u8,
    /// At most [`MAX_BODY`].
    pub(super) body: u32,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER] {
        let coding = match self.coding {
            Coding::Raw => 1,
            Coding::Zstd => 2,
        };
        let [a, b, c, d] = self.body.to_le_bytes();
        [VERSION, coding, self.pages, self.loose, a, b, c, d]
    }

    /// Reads a header and checks each field by itself.
    pub(super) fn decode(bytes: [u8; HEADER]) -> Result<Self, ReduceError> {
        let [version, coding, pages, loose, a, b, c, d] = bytes;
        if version != VERSION {
            let what = format!("the packet has version {version}, known is {VERSION}");
            return Err(ReduceError::new(Kind::UnknownVersion, Op::DecodePages, what));
        }
        let coding = match coding {
            1 => Coding::Raw,
            2 => Coding::Zstd,
            _ => return Err(corrupt(format!("{coding} is no coding"))),
        };
        if pages == 0 || usize::from(pages) > MAX_PAGES || loose > pages {
            return Err(wrong(format!("{pages} pages, {loose} of them loose; 1 to {MAX_PAGES} are allowed")));
        }
        let body = u32::from_le_bytes([a, b, c, d]);
        if body as usize > MAX_BODY {
            return Err(wrong(format!("a body of {body} bytes; at most {MAX_BODY} are allowed")));
        }
        Ok(Self { coding, pages, loose, body })
    }
}

/// What a page of a packet is. The slots that plain pages name are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation {
    Zero,
    Copy { slot: u32 },
    Packed { into: Option<u32> },
    Loose { into: Option<u32> },
    Delta { slot: u32, keep: bool },
}

impl Operation {
    fn kind(self) -> u8 {
        match self {
            Self::Zero => 1,
            Self::Copy { .. } => 2,
            Self::Packed { into: None } => 3,
            Self::Packed { into: Some(_) } => 4,
            Self::Loose { into: None } => 5,
            Self::Loose { into: Some(_) } => 6,
            Self::Delta { keep: false, .. } => 7,
            Self::Delta { keep: true, .. } => 8,
        }
    }

    fn slot(self) -> Option<u32> {
        match self {
            Self::Zero => None,
            Self::Packed { into } | Self::Loose { into } => into,
            Self::Copy { slot } | Self::Delta { slot, .. } => Some(slot),
        }
    }

    /// Takes the slot from `slots` when the kind names one.
    fn decode(kind: u8, slots: &mut SlotReader, bytes: &mut &[u8]) -> Result<Self, ReduceError> {
        Ok(match kind {
            1 => Self::Zero,
            2 => Self::Copy { slot: slots.next(bytes)? },
            3 => Self::Packed { into: None },
            4 => Self::Packed { into: Some(slots.next(bytes)?) },
            5 => Self::Loose { into: None },
            6 => Self::Loose { into: Some(slots.next(bytes)?) },
            7 => Self::Delta { slot: slots.next(bytes)?, keep: false },
            8 => Self::Delta { slot: slots.next(bytes)?, keep: true },
            _ => return Err(corrupt(format!("{kind} is no kind of page"))),
        })
    }
}

/// Appends the runs and the slots of at most [`MAX_PAGES`] operations.
pub(super) fn put_operations(operations: &[Operation], out: &mut Vec<u8>) {
    for run in operations.chunk_by(|a, b| a.kind() == b.kind()) {
        let count = u8::try_from(run.len()).unwrap_or(u8::MAX);
        out.extend_from_slice(&[run[0].kind(), count]);
    }
    let mut expected = 0_i64;
    for slot in operations.iter().filter_map(|operation| operation.slot()) {
        let step = i64::from(slot) - expected;
        // Zigzag: small steps in both directions become small numbers.
        let mut rest = (step << 1 ^ step >> 63).cast_unsigned();
        while rest >= 0x80 {
            out.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        out.push((rest & 0x7f) as u8);
        expected = i64::from(slot) + 1;
    }
}

/// Cuts the runs and slots of exactly `pages` pages off `bytes`.
pub(super) fn take_operations(pages: usize, bytes: &mut &[u8]) -> Result<Vec<Operation>, ReduceError> {
    let mut runs = [(0_u8, 0_u8); MAX_PAGES];
    let mut counted = 0;
    let mut used = 0;
    while counted < pages {
        let Some((&[kind, count], rest)) = bytes.split_first_chunk() else {
            return Err(corrupt("the runs are cut off".to_owned()));
        };
        *bytes = rest;
        counted += usize::from(count);
        // At most one run a page, since none is empty.
        if count == 0 || counted > pages {
            return Err(wrong(format!(
                "the runs count {counted} pages, the last run {count}; there are {pages}"
            )));
        }
        runs[used] = (kind, count);
        used += 1;
    }
    let mut slots = SlotReader { expected: 0 };
    let mut operations = Vec::with_capacity(pages);
    for (kind, count) in &runs[..used] {
        for _ in 0..*count {
            operations.push(Operation::decode(*kind, &mut slots, bytes)?);
        }
    }
    Ok(operations)
}

struct SlotReader {
    expected: i64,
}

impl SlotReader {
    fn next(&mut self, bytes: &mut &[u8]) -> Result<u32, ReduceError> {
        let mut number = 0_u64;
        for (group, byte) in bytes.iter().take(MAX_SLOT).enumerate() {
            number |= u64::from(byte & 0x7f) << (7 * group);
            if byte & 0x80 == 0 {
                *bytes = &bytes[group + 1..];
                let step = (number >> 1).cast_signed() ^ -(number & 1).cast_signed();
                let slot = u32::try_from(self.expected + step)
                    .map_err(|source| corrupt("a slot is out of range".to_owned()).caused_by(source))?;
                self.expected = i64::from(slot) + 1;
                return Ok(slot);
            }
        }
        Err(corrupt("a slot is cut off or too long".to_owned()))
    }
}

pub(super) fn corrupt(what: String) -> ReduceError {
    ReduceError::new(Kind::Corrupt, Op::DecodePages, what)
}

pub(super) fn wrong(what: String) -> ReduceError {
    ReduceError::new(Kind::WrongLength, Op::DecodePages, what)
}
