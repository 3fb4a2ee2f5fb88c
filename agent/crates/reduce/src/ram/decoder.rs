//! The receiving half: every byte here may come from a hostile peer.
//!
//! What bounds the work: a packet holds at most 128 pages and as much body as those can need, and both are checked in
//! the header before anything is read; pages are written to a buffer that grows by exactly so many pages.

use std::fmt;

use super::layout::{Coding, HEADER, Header, MAX_BODY, Operation, corrupt, take_operations, wrong};
use super::{MAX_PACKET, MAX_SLOTS, PAGE_BYTES, PageBytes, ZERO_PAGE, delta};
use crate::codec::Decompressor;
use crate::error::{Kind, Op, ReduceError};

/// What unpacking needs again and again: one a thread. Holds about 2 MiB.
#[derive(Debug)]
pub struct Unpacker {
    decompressor: Decompressor,
    body: Vec<u8>,
}

/// A packet whose tables were checked. Borrows the packet and the [`Unpacker`]; no [`Decoder`] was needed yet.
pub struct Unpacked<'a> {
    operations: Vec<Operation>,
    masks: &'a [u8],
    words: &'a [u8],
    packed: &'a [PageBytes],
    loose: &'a [PageBytes],
}

impl fmt::Debug for Unpacked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unpacked({} pages)", self.operations.len())
    }
}

impl Unpacker {
    /// A new unpacker.
    ///
    /// # Errors
    /// [`Kind::Internal`] when there is no memory for a zstd context.
    pub fn new() -> Result<Self, ReduceError> {
        Ok(Self { decompressor: Decompressor::new()?, body: vec![0; MAX_BODY] })
    }

    /// Decompresses a packet of exactly `expected_pages` pages and checks its tables.
    ///
    /// # Errors
    /// [`Kind::UnknownVersion`] for another version, [`Kind::WrongLength`] and [`Kind::Corrupt`] for what does not fit
    /// together, and those of [`Decompressor::decompress`].
    pub fn unpack<'a>(
        &'a mut self,
        packet: &'a [u8],
        expected_pages: usize,
    ) -> Result<Unpacked<'a>, ReduceError> {
        let Some((header, rest)) = packet.split_first_chunk::<HEADER>() else {
            return Err(wrong(format!("a packet of {} bytes has no header", packet.len())));
        };
        let header = Header::decode(*header)?;
        let pages = usize::from(header.pages);
        if pages != expected_pages || packet.len() > MAX_PACKET {
            let len = packet.len();
            return Err(wrong(format!("{pages} pages in {len} bytes, {expected_pages} pages are expected")));
        }
        let loose = usize::from(header.loose) * PAGE_BYTES;
        let Some((coded, loose)) = rest.len().checked_sub(loose).and_then(|at| rest.split_at_checked(at))
        else {
            return Err(wrong(format!("{} bytes for {} loose pages", rest.len(), header.loose)));
        };
        let len = header.body as usize;
        let body = match header.coding {
            Coding::Raw if coded.len() != len => {
                return Err(wrong(format!("a body of {} bytes, {len} are declared", coded.len())));
            }
            Coding::Raw => coded,
            Coding::Zstd => {
                self.decompressor.decompress(coded, &mut [&mut self.body[..len]])?;
                &self.body[..len]
            }
        };
        Unpacked::parse(pages, body, loose)
    }
}

impl<'a> Unpacked<'a> {
    fn parse(pages: usize, body: &'a [u8], loose: &'a [u8]) -> Result<Self, ReduceError> {
        let mut rest = body;
        let operations = take_operations(pages, &mut rest)?;
        let count = |wanted: fn(&Operation) -> bool| operations.iter().filter(|item| wanted(item)).count();
        let all_masks = rest;
        let mut words = 0;
        for _ in 0..count(|item| matches!(item, Operation::Delta { .. })) {
            let (_, len) =
                delta::split_masks(&mut rest).ok_or_else(|| corrupt("masks are cut off".to_owned()))?;
            words += len;
        }
        let masks = &all_masks[..all_masks.len() - rest.len()];
        let (words, rest) =
            rest.split_at_checked(words).ok_or_else(|| corrupt("words are cut off".to_owned()))?;
        let (packed, over) = rest.as_chunks::<PAGE_BYTES>();
        let packed_count = count(|item| matches!(item, Operation::Packed { .. }));
        let (loose, loose_count) =
            (loose.as_chunks().0, count(|item| matches!(item, Operation::Loose { .. })));
        if !over.is_empty() || packed.len() != packed_count || loose.len() != loose_count {
            return Err(wrong(format!(
                "{} bytes and {} loose pages for {packed_count} and {loose_count} pages",
                rest.len(),
                loose.len()
            )));
        }
        Ok(Self { operations, masks, words, packed, loose })
    }

    /// Pages of the packet.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.operations.len()
    }
}

/// The receiver's half for all channels of an epoch: the bytes of the slots.
///
/// The memory of a slot is provided by the operating system when it is first written.
pub struct Decoder {
    slots: Vec<PageBytes>,
    filled: Vec<bool>,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Decoder({} slots)", self.slots.len())
    }
}

impl Decoder {
    /// A decoder with `slots` empty slots of 4 KiB. More than [`MAX_SLOTS`] count as that many.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        let count = slots.min(MAX_SLOTS) as usize;
        Self { slots: vec![[0; PAGE_BYTES]; count], filled: vec![false; count] }
    }

    /// Appends the pages of a packet to `out`, in order. The packets of a channel come in the order of that channel.
    ///
    /// # Errors
    /// [`Kind::Refused`] when a page refers to a slot that was never written or does not exist. `out` is as before
    /// then, the slots are not: the migration cannot continue without a reset.
    pub fn apply(&mut self, packet: &Unpacked<'_>, out: &mut Vec<u8>) -> Result<(), ReduceError> {
        let start = out.len();
        out.reserve(packet.pages() * PAGE_BYTES);
        self.append(packet, out).inspect_err(|_| out.truncate(start))
    }

    /// Starts an epoch: all slots are empty.
    pub fn reset(&mut self) {
        self.filled.fill(false);
    }

    fn append(&mut self, packet: &Unpacked<'_>, out: &mut Vec<u8>) -> Result<(), ReduceError> {
        let (mut masks, mut words) = (packet.masks, packet.words);
        let (mut packed, mut loose) = (packet.packed.iter(), packet.loose.iter());
        for operation in &packet.operations {
            match *operation {
                Operation::Zero => out.extend_from_slice(&ZERO_PAGE),
                Operation::Copy { slot } => out.extend_from_slice(self.filled(slot)?),
                Operation::Packed { into } => self.plain(packed.next(), into, out)?,
                Operation::Loose { into } => self.plain(loose.next(), into, out)?,
                Operation::Delta { slot, keep } => {
                    let cut_off = || corrupt("a delta is cut off".to_owned());
                    let (own, len) = delta::split_masks(&mut masks).ok_or_else(cut_off)?;
                    let (change, rest) = words.split_at_checked(len).ok_or_else(cut_off)?;
                    words = rest;
                    let base = self.filled(slot)?;
                    if keep {
                        delta::apply(base, own, change);
                        out.extend_from_slice(base);
                    } else {
                        let mut page = *base;
                        delta::apply(&mut page, own, change);
                        out.extend_from_slice(&page);
                    }
                }
            }
        }
        Ok(())
    }

    fn plain(
        &mut self,
        page: Option<&PageBytes>,
        into: Option<u32>,
        out: &mut Vec<u8>,
    ) -> Result<(), ReduceError> {
        let page = page.ok_or_else(|| corrupt("a plain page is missing".to_owned()))?;
        if let Some(slot) = into {
            let place = self.slots.get_mut(slot as usize).zip(self.filled.get_mut(slot as usize));
            let (place, filled) = place.ok_or_else(|| refused(slot))?;
            *place = *page;
            *filled = true;
        }
        out.extend_from_slice(page);
        Ok(())
    }

    fn filled(&mut self, slot: u32) -> Result<&mut PageBytes, ReduceError> {
        let filled = self.filled.get(slot as usize) == Some(&true);
        self.slots.get_mut(slot as usize).filter(|_| filled).ok_or_else(|| refused(slot))
    }
}

fn refused(slot: u32) -> ReduceError {
    let what = format!("slot {slot} is referred to, but is empty or does not exist");
    ReduceError::new(Kind::Refused, Op::DecodePages, what)
}
