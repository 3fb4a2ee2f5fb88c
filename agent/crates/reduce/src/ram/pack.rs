//! From decisions to bytes: which plain pages are worth compressing, and one zstd frame over them and the tables.

use super::delta::Deltas;
use super::layout::{Coding, HEADER, Header, MAX_BODY, Operation, put_operations};
use super::{MAX_PAGES, PAGE_BYTES, PageBytes};
use crate::codec::{Compressor, Outcome, PayHint};
use crate::controller::Choice;
use crate::error::ReduceError;

/// Shorter bodies stay raw: a frame's own bytes and the call cost more than they save.
const MIN_BODY: usize = 64;

/// What became of the pages of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PacketStats {
    /// Pages of zeros.
    pub zero: u32,
    /// Pages equal to their own last version.
    pub same: u32,
    /// Pages equal to another page.
    pub copied: u32,
    /// Pages sent as a difference to their last version.
    pub delta: u32,
    /// Pages sent whole.
    pub plain: u32,
    /// Bytes of all pages.
    pub plain_bytes: u64,
    /// Bytes of the packet.
    pub encoded_bytes: u64,
}

/// The decisions on one packet. Borrows the pages; no longer needs the [`super::Encoder`].
#[derive(Debug)]
pub struct Plan<'a> {
    /// Plain pages are all [`Operation::Packed`] until they are packed.
    pub(super) operations: Vec<Operation>,
    pub(super) deltas: Deltas,
    /// The plain pages.
    pub(super) pages: Vec<&'a PageBytes>,
    pub(super) stats: PacketStats,
}

/// What packing needs again and again: one a thread.
#[derive(Debug)]
pub struct Packer {
    compressor: Compressor,
    hint: PayHint,
    tables: Vec<u8>,
    frame: Vec<u8>,
}

impl Packer {
    /// A new packer.
    ///
    /// # Errors
    /// [`crate::Kind::Internal`] when there is no memory for a zstd context.
    pub fn new() -> Result<Self, ReduceError> {
        let compressor = Compressor::new()?;
        Ok(Self { compressor, hint: PayHint::default(), tables: Vec::new(), frame: vec![0; MAX_BODY] })
    }
}

impl<'a> Plan<'a> {
    pub(super) fn new(pages: usize) -> Self {
        let plain_bytes = (pages * PAGE_BYTES) as u64;
        Self {
            operations: Vec::with_capacity(pages),
            deltas: Deltas::default(),
            pages: Vec::with_capacity(pages),
            stats: PacketStats { plain_bytes, ..PacketStats::default() },
        }
    }

    /// Appends the packet to `out`: at most [`super::MAX_PACKET`] bytes, and at most 16 a page and the header more
    /// than the pages have.
    ///
    /// # Errors
    /// [`crate::Kind::WrongLength`] for a level outside [`crate::codec::LEVELS`], [`crate::Kind::Internal`] when zstd
    /// fails. `out` is unchanged then, and the plan has not reached the receiver.
    pub fn pack(
        mut self,
        packer: &mut Packer,
        choice: Choice,
        out: &mut Vec<u8>,
    ) -> Result<PacketStats, ReduceError> {
        let (packed, loose) = self.sort_pages();
        packer.tables.clear();
        put_operations(&self.operations, &mut packer.tables);
        packer.tables.extend_from_slice(&self.deltas.masks);
        packer.tables.extend_from_slice(&self.deltas.words);
        let body = packer.tables.len() + packed.len() * PAGE_BYTES;
        let frame = match choice {
            Choice::Level(level) => packer.compress(level, body, &packed)?,
            Choice::Raw => None,
        };
        let header = Header {
            coding: if frame.is_some() { Coding::Zstd } else { Coding::Raw },
            pages: small(self.operations.len()),
            loose: small(loose.len()),
            body: u32::try_from(body).unwrap_or(u32::MAX),
        };
        let start = out.len();
        let coded = frame.unwrap_or(body);
        out.reserve(HEADER + coded + loose.len() * PAGE_BYTES);
        out.extend_from_slice(&header.encode());
        if frame.is_some() {
            out.extend_from_slice(&packer.frame[..coded]);
        } else {
            out.extend_from_slice(&packer.tables);
            packed.iter().for_each(|page| out.extend_from_slice(*page));
        }
        loose.iter().for_each(|page| out.extend_from_slice(*page));
        self.stats.encoded_bytes = (out.len() - start) as u64;
        Ok(self.stats)
    }

    /// Tells plain pages that look random, and travel loose, from those that are worth compressing.
    fn sort_pages(&mut self) -> (Vec<&'a PageBytes>, Vec<&'a PageBytes>) {
        let mut packed = Vec::with_capacity(self.pages.len());
        let mut loose = Vec::new();
        let plain = self.operations.iter_mut().filter_map(|operation| match *operation {
            Operation::Packed { into } => Some((operation, into)),
            _ => None,
        });
        for (page, (operation, into)) in self.pages.iter().zip(plain) {
            if PayHint::page_looks_random(page) {
                *operation = Operation::Loose { into };
                loose.push(*page);
            } else {
                packed.push(*page);
            }
        }
        (packed, loose)
    }
}

impl Packer {
    /// Compresses tables and pages into the frame; its length, or `None` when the body is to be sent raw.
    fn compress(
        &mut self,
        level: i32,
        body: usize,
        packed: &[&PageBytes],
    ) -> Result<Option<usize>, ReduceError> {
        // Pages were sampled one by one; what is left to ask is whether such pages paid lately.
        if body < MIN_BODY || !packed.is_empty() && !self.hint.worth_trying(&[]) {
            return Ok(None);
        }
        let mut segments: Vec<&[u8]> = Vec::with_capacity(1 + packed.len());
        segments.push(&self.tables);
        segments.extend(packed.iter().map(|page| page.as_slice()));
        let outcome = self.compressor.compress(level, &segments, &mut self.frame)?;
        let frame = match outcome {
            Outcome::Compressed(len) => Some(len),
            Outcome::DoesNotPay => None,
        };
        if !packed.is_empty() {
            self.hint.record(frame.is_some());
        }
        Ok(frame)
    }
}

/// A number of pages of one packet.
fn small(pages: usize) -> u8 {
    const { assert!(MAX_PAGES <= u8::MAX as usize) };
    u8::try_from(pages).unwrap_or(u8::MAX)
}
