//! What needs only a processor: one thread, measured by its own CPU clock.

use std::hint::black_box;

use anyhow::{Result, ensure};
use reduce::{
    Compressor, ContentIndex, Decompressor, HashKey, KnownChunks, Location, Outcome, VolumeSlot, chunk_id,
    is_zero,
};
use volume::conformance::Dice;
use volume::{CHUNK, ChunkId, ChunkIndex};

use super::{ROUNDS, median, timed};
use crate::machine::thread_cpu;
use crate::model::{Level, Rate};

/// Bytes in a chunk and a batch as lengths in memory.
const CHUNK_LEN: usize = 64 << 10;
const _: () = assert!(CHUNK_LEN as u64 == CHUNK);
const BATCH: usize = 1 << 20;
/// Levels that the controller chooses from when the link is fast.
const LEVELS: [i32; 4] = [-5, -1, 1, 3];
/// Chunks that go through the tables: 6.5 GB of data, more than the processor's caches hold of tables.
const INDEXED: u64 = 100_000;

/// The median of some runs over `bytes`.
fn rounds(bytes: usize, mut work: impl FnMut()) -> Result<Rate> {
    median((0..ROUNDS).map(|_| timed(thread_cpu, &mut work).0.rate(bytes as u64)).collect())
}

/// Memory that is there: pages that were never written would all be the kernel's one page of zeros.
fn touched(len: usize, value: u8) -> Vec<u8> {
    let mut bytes = vec![0xff; len];
    black_box(&mut bytes).fill(value);
    bytes
}

pub(super) fn memcpy(len: usize) -> Result<Rate> {
    let (from, mut to) = (touched(len, 1), touched(len, 2));
    rounds(len, || {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
    })
}

pub(super) fn zero(len: usize) -> Result<Rate> {
    let zeros = touched(len, 0);
    rounds(len, || {
        for chunk in zeros.chunks(CHUNK_LEN) {
            black_box(is_zero(black_box(chunk)));
        }
    })
}

pub(super) fn hash(len: usize) -> Result<Rate> {
    let mut data = vec![0; len];
    Dice::new(1).fill(&mut data);
    let key = HashKey::from_bytes([1; 32]);
    rounds(len, || {
        for chunk in data.chunks(CHUNK_LEN) {
            black_box(chunk_id(&key, black_box(chunk)));
        }
    })
}

/// Both tables: the sender's question and note, the receiver's note, for each chunk.
pub(super) fn index() -> Result<Rate> {
    let mut dice = Dice::new(2);
    let ids: Vec<ChunkId> = (0..INDEXED)
        .map(|_| {
            let mut id = [0; 32];
            dice.fill(&mut id);
            ChunkId(id)
        })
        .collect();
    let volume = VolumeSlot::new(0).ok_or_else(|| anyhow::anyhow!("the first volume has a slot"))?;
    let bytes = usize::try_from(INDEXED * CHUNK)?;
    rounds(bytes, || {
        let (mut known, mut index) = (KnownChunks::new(64 << 20), ContentIndex::new(64 << 20));
        for (id, nth) in ids.iter().zip(0..) {
            if !known.contains(id) {
                known.insert(id);
            }
            index.insert(id, Location { volume, chunk: ChunkIndex(nth) });
        }
        black_box((&known, &index));
    })
}

pub(super) fn levels(real: &[u8]) -> Result<Vec<Level>> {
    LEVELS.into_iter().map(|level| one_level(level, real)).collect()
}

fn one_level(level: i32, real: &[u8]) -> Result<Level> {
    let (mut compressor, mut decompressor) = (Compressor::new()?, Decompressor::new()?);
    let mut frame = vec![0; BATCH];
    let mut frames: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut raw = 0;
    let (took, result) = timed(thread_cpu, || -> Result<()> {
        for batch in real.chunks(BATCH) {
            match compressor.compress(level, &[batch], &mut frame)? {
                Outcome::Compressed(len) => frames.push((batch.len(), frame[..len].to_vec())),
                Outcome::DoesNotPay => raw += batch.len(),
            }
        }
        Ok(())
    });
    result?;
    let compressed: usize = frames.iter().map(|(_, frame)| frame.len()).sum();
    let plain: usize = frames.iter().map(|(plain, _)| plain).sum();
    ensure!(plain > 0, "real files compress at level {level}");
    let mut back = vec![0; BATCH];
    let (decoded, result) = timed(thread_cpu, || -> Result<()> {
        for (plain, frame) in &frames {
            decompressor.decompress(frame, &mut [&mut back[..*plain]])?;
        }
        Ok(())
    });
    result?;
    let mut decompress = decoded.rate(plain as u64);
    // Batches that went raw are not decompressed: per GB of all bytes that is so much less.
    decompress.cpu *= plain as f64 / real.len() as f64;
    Ok(Level {
        level,
        compress: took.rate(real.len() as u64),
        decompress,
        ratio: real.len() as f64 / (compressed + raw) as f64,
    })
}
