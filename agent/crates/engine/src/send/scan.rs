//! One extent on the sending side: hash it, compare it with what the target holds, encode what differs.
//!
//! Pure CPU work on buffers that it owns; runs on a CPU thread.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reduce::delta::{PageSums, SumSeed};
use reduce::{Choice, HashKey, KnownChunks, Outcome, PayHint, delta, extent_ids};
use session::OldExtent;
use volume::{Buffer, ChunkId, PAGES_PER_CHUNK};
use wire::{ChunkEntry, Encoding};

use crate::cpu::Scratch;
use crate::error::EngineError;
use crate::grain::{CHUNK_LEN, PAGE_LEN};

/// What all scans of one session share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) key: HashKey,
    pub(super) seed: SumSeed,
    /// A filter whose wrong answer costs bandwidth: a mutex here guards no session state.
    pub(super) known: Mutex<KnownChunks>,
    pub(super) hint: Mutex<PayHint>,
}

/// An extent in memory: up to four buffers, each full but the last, and its ids.
#[derive(Debug)]
pub(super) struct Plain {
    pub(super) buffers: Vec<Buffer>,
    pub(super) ids: Vec<ChunkId>,
    pub(super) old: OldExtent,
}

/// An extent frame without its sequence.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) chunks: Vec<ChunkEntry>,
    pub(super) encoding: Encoding,
    pub(super) plain_len: u32,
    pub(super) payload: Vec<Bytes>,
    pub(super) cost: Cost,
}

impl Encoded {
    pub(super) fn wire_len(&self) -> u32 {
        self.payload.iter().map(|piece| u32::try_from(piece.len()).unwrap_or(u32::MAX)).sum()
    }
}

/// What encoding took, for the controller.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    pub(super) compress_in: u64,
    pub(super) compress_out: u64,
    pub(super) compress_time: Duration,
    pub(super) cpu_time: Duration,
}

#[derive(Debug)]
pub(super) enum Verdict {
    Zero,
    Same,
    /// These chunks differ from something that is there: ask for its page sums, then [`encode`].
    Query(u16, Plain),
    Frame(Encoded),
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plain {
    fn chunk(&self, nth: usize) -> &[u8] {
        let mut at = nth * CHUNK_LEN;
        for buffer in &self.buffers {
            if at < buffer.len() {
                return &buffer[at..buffer.len().min(at + CHUNK_LEN)];
            }
            at -= buffer.len();
        }
        &[]
    }

    fn old_prefix(&self, nth: usize) -> Option<[u8; 16]> {
        match &self.old {
            OldExtent::Unknown => None,
            OldExtent::Zero => Some([0; 16]),
            OldExtent::Prefixes(prefixes) => prefixes.get(nth).copied(),
        }
    }

    fn is_same(&self, nth: usize) -> bool {
        self.old_prefix(nth) == Some(self.ids[nth].prefix())
    }
}

/// Hashes and compares; encodes unless page sums are needed first.
pub(super) fn scan(
    scratch: &mut Scratch,
    shared: &Shared,
    buffers: Vec<Buffer>,
    old: OldExtent,
    full: bool,
    choice: Choice,
) -> Result<(Vec<ChunkId>, Verdict), EngineError> {
    let begun = Instant::now();
    let slices: Vec<&[u8]> = buffers.iter().map(|buffer| &**buffer).collect();
    let ids = extent_ids(&shared.key, &slices)?.to_vec();
    let plain = Plain { buffers, ids: ids.clone(), old };
    let count = ids.len();
    if (0..count).all(|nth| plain.is_same(nth)) {
        return Ok((ids, Verdict::Same));
    }
    if ids.iter().all(|id| *id == ChunkId::ZERO) {
        return Ok((ids, Verdict::Zero));
    }
    if !full {
        let known = locked(&shared.known);
        let query = (0..count).filter(|nth| {
            let id = &ids[*nth];
            let over_old = plain.old_prefix(*nth).is_some_and(|old| old != [0; 16]);
            over_old && *id != ChunkId::ZERO && !plain.is_same(*nth) && !known.contains(id)
        });
        let mask = query.fold(0, |mask, nth| mask | 1 << nth);
        drop(known);
        if mask != 0 {
            return Ok((ids, Verdict::Query(mask, plain)));
        }
    }
    let mut frame = encode(scratch, shared, plain, None, full, choice)?;
    frame.cost.cpu_time = begun.elapsed();
    Ok((ids, Verdict::Frame(frame)))
}

/// Encodes an extent; with the page sums of the chunks that were asked for.
pub(super) fn encode(
    scratch: &mut Scratch,
    shared: &Shared,
    plain: Plain,
    sums: Option<&wire::PageSums>,
    full: bool,
    choice: Choice,
) -> Result<Encoded, EngineError> {
    let begun = Instant::now();
    let mut chunks = Vec::with_capacity(plain.ids.len());
    {
        let known = locked(&shared.known);
        for (nth, id) in plain.ids.iter().enumerate() {
            chunks.push(if plain.is_same(nth) {
                ChunkEntry::Same(*id)
            } else if *id == ChunkId::ZERO {
                ChunkEntry::Zero
            } else if let Some(old) = sums.and_then(|sums| sums_of(sums, nth)) {
                pages(shared.seed, &plain, nth, old)?
            } else if !full && known.contains(id) {
                ChunkEntry::Reference(*id)
            } else {
                ChunkEntry::Data(*id)
            });
        }
    }
    let pieces = pieces(&plain, &chunks);
    let plain_len: usize = pieces.iter().map(|(_, range)| range.len()).sum();
    let mut cost = Cost::default();
    let mut compressed = None;
    if let Choice::Level(level) = choice
        && plain_len > 0
    {
        let segments: Vec<&[u8]> =
            pieces.iter().map(|(buffer, range)| &plain.buffers[*buffer][range.clone()]).collect();
        if locked(&shared.hint).worth_trying(&segments) {
            scratch.frame.resize(wire::MAX_PAYLOAD, 0);
            let compress_begun = Instant::now();
            let outcome = scratch.compressor.compress(level, &segments, &mut scratch.frame)?;
            cost.compress_in = plain_len as u64;
            cost.compress_time = compress_begun.elapsed();
            let paid = match outcome {
                Outcome::Compressed(len) => {
                    compressed = Some(Bytes::copy_from_slice(&scratch.frame[..len]));
                    len
                }
                Outcome::DoesNotPay => plain_len,
            };
            cost.compress_out = paid as u64;
            locked(&shared.hint).record(compressed.is_some());
        }
    }
    let (encoding, payload) = match compressed {
        Some(frame) => (Encoding::Zstd, vec![frame]),
        None => {
            let buffers: Vec<Bytes> = plain.buffers.into_iter().map(Bytes::from_owner).collect();
            (Encoding::Raw, pieces.into_iter().map(|(buffer, range)| buffers[buffer].slice(range)).collect())
        }
    };
    cost.cpu_time = begun.elapsed();
    let plain_len = u32::try_from(plain_len).expect("an extent has 1 MiB");
    Ok(Encoded { chunks, encoding, plain_len, payload, cost })
}

/// The sums of one chunk out of an answer that covers several.
fn sums_of(sums: &wire::PageSums, nth: usize) -> Option<&[u64]> {
    if sums.mask & (1 << nth) == 0 {
        return None;
    }
    let before = (sums.mask & ((1 << nth) - 1)).count_ones() as usize;
    sums.sums.get(before * PAGES_PER_CHUNK..(before + 1) * PAGES_PER_CHUNK)
}

fn pages(seed: SumSeed, plain: &Plain, nth: usize, old: &[u64]) -> Result<ChunkEntry, EngineError> {
    let chunk = plain.chunk(nth);
    let count = chunk.len().div_ceil(PAGE_LEN);
    let old = PageSums::from_slice(&old[..count])?;
    let mask = delta::diff(seed, chunk, &old)?;
    let id = plain.ids[nth];
    // No page differs although the chunk does (its leaf is stale, or sums collide), or all do: send it whole.
    Ok(if mask.is_empty() || mask.count() as usize == count {
        ChunkEntry::Data(id)
    } else {
        ChunkEntry::Pages(id, mask.0)
    })
}

/// The payload as ranges of the buffers, neighbours joined.
fn pieces(plain: &Plain, chunks: &[ChunkEntry]) -> Vec<(usize, std::ops::Range<usize>)> {
    let mut pieces: Vec<(usize, std::ops::Range<usize>)> = Vec::new();
    let mut add = |buffer: usize, range: std::ops::Range<usize>| match pieces.last_mut() {
        Some((of, last)) if *of == buffer && last.end == range.start => last.end = range.end,
        _ => pieces.push((buffer, range)),
    };
    let mut nth = 0;
    for (buffer, bytes) in plain.buffers.iter().enumerate() {
        let mut at = 0;
        while at < bytes.len() {
            let end = bytes.len().min(at + CHUNK_LEN);
            match chunks[nth] {
                ChunkEntry::Data(_) => add(buffer, at..end),
                ChunkEntry::Pages(_, mask) => {
                    for page in (0..PAGES_PER_CHUNK).filter(|page| mask & (1 << page) != 0) {
                        let start = at + page * PAGE_LEN;
                        add(buffer, start..end.min(start + PAGE_LEN));
                    }
                }
                ChunkEntry::Zero | ChunkEntry::Same(_) | ChunkEntry::Reference(_) => {}
            }
            nth += 1;
            at = end;
        }
    }
    pieces
}
