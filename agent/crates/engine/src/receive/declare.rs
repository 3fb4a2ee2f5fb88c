//! What the target holds: told to the sender ahead of its reading, from the journal, from the sealed leaf table, or by
//! reading; and the read-back at the end, which is the same work compared with what was just written.

use std::sync::{Arc, Mutex};

use futures_util::{StreamExt, TryStreamExt, stream};
use reduce::extent_ids;
use session::ExtentSet;
use tokio::sync::Semaphore;
use volume::{
    Buffer, BufferPool, ByteLen, ByteOffset, CHUNKS_PER_EXTENT, ChunkId, EXTENT, ExtentIndex, Sink,
};
use wire::control::MAX_LEAVES;
use wire::{FailCode, Held};

use super::{blocking, locked};
use crate::cpu::Cpu;
use crate::error::EngineError;
use crate::keyed::Keyed;
use crate::target::Target;

/// Extents that are read at once: with four buffers each they stay well below the pool's assembling part.
const READS: usize = 4;

/// What was told of an extent.
#[derive(Debug)]
pub(super) enum Declared {
    /// These ids.
    Ids(Vec<ChunkId>),
    /// Zeros, for so many extents.
    Zero(u64),
}

pub(super) struct Describer {
    pub(super) target: Arc<Mutex<Target>>,
    /// Read what neither journal nor leaf table knows.
    pub(super) read: Option<Arc<dyn Sink>>,
    pub(super) pool: Arc<dyn BufferPool>,
    pub(super) cpu: Cpu,
    pub(super) key: Arc<Keyed>,
    pub(super) size: ByteLen,
    /// What is settled, or announced as durable: the sender skips it.
    pub(super) announced: ExtentSet,
    pub(super) assembly: Arc<Semaphore>,
}

enum Known {
    Ids(Vec<ChunkId>),
    Zero(u64),
    Nothing,
    /// Announced as durable: nothing is said, nothing is read.
    Skipped(u64),
}

impl Describer {
    /// Describes at least `count` extents from `first` on, as frames and as what to remember.
    pub(super) async fn describe(
        &self,
        first: ExtentIndex,
        count: u64,
    ) -> Result<(Vec<Held>, Vec<(u64, Declared)>), EngineError> {
        let target = Arc::clone(&self.target);
        let limit = self.size.extents();
        let end = (first.0 + count).min(limit);
        let announced = self.announced.clone();
        let known = blocking(move || {
            let target = locked(&target);
            let mut known = Vec::new();
            let mut at = first.0;
            while at < end {
                if announced.contains(at) {
                    let run = announced.first_missing(at) - at;
                    known.push((at, Known::Skipped(run)));
                    at += run;
                    continue;
                }
                let zeros = target.known_zero_run(ExtentIndex(at), u64::MAX)?;
                if zeros > 0 {
                    known.push((at, Known::Zero(zeros)));
                    at += zeros;
                    continue;
                }
                known.push((
                    at,
                    match target.known_ids(ExtentIndex(at))? {
                        Some(ids) => Known::Ids(ids),
                        None => Known::Nothing,
                    },
                ));
                at += 1;
            }
            Ok(known)
        })
        .await?;
        let filled: Vec<(u64, Known)> = stream::iter(known)
            .map(|(extent, known)| async move {
                let known = match (known, &self.read) {
                    (Known::Nothing, Some(sink)) => Known::Ids(
                        ids_of(
                            &**sink,
                            &*self.pool,
                            &self.cpu,
                            &self.key,
                            ExtentIndex(extent),
                            self.size,
                            &self.assembly,
                        )
                        .await?,
                    ),
                    (known, _) => known,
                };
                Ok::<_, EngineError>((extent, known))
            })
            .buffered(READS)
            .try_collect()
            .await?;
        Ok(self.frames(filled))
    }

    fn frames(&self, known: Vec<(u64, Known)>) -> (Vec<Held>, Vec<(u64, Declared)>) {
        let mut held: Vec<Held> = Vec::new();
        let mut declared = Vec::new();
        for (extent, known) in known {
            let chunks = |extents: u64| {
                let past = ExtentIndex(extent + extents).first_chunk().0.min(self.size.chunks());
                past - ExtentIndex(extent).first_chunk().0
            };
            match known {
                Known::Ids(ids) => {
                    let prefixes: Vec<[u8; 16]> = ids.iter().map(ChunkId::prefix).collect();
                    match held.last_mut() {
                        Some(Held::Prefixes(last)) if last.len() + CHUNKS_PER_EXTENT <= MAX_LEAVES => {
                            last.extend(prefixes);
                        }
                        _ => held.push(Held::Prefixes(prefixes)),
                    }
                    declared.push((extent, Declared::Ids(ids)));
                }
                Known::Zero(count) => {
                    held.push(Held::Zero(chunks(count)));
                    declared.push((extent, Declared::Zero(count)));
                }
                Known::Nothing | Known::Skipped(_) => {
                    let count = if let Known::Skipped(run) = known { run } else { 1 };
                    match held.last_mut() {
                        Some(Held::Unknown(last)) => *last += chunks(count),
                        _ => held.push(Held::Unknown(chunks(count))),
                    }
                }
            }
        }
        (held, declared)
    }
}

/// Reads an extent of the target and hashes it.
async fn ids_of(
    sink: &dyn Sink,
    pool: &dyn BufferPool,
    cpu: &Cpu,
    key: &Arc<Keyed>,
    extent: ExtentIndex,
    size: ByteLen,
    assembly: &Semaphore,
) -> Result<Vec<ChunkId>, EngineError> {
    let Some(range) = extent.range(size) else { return Ok(Vec::new()) };
    let data = sink.next_data(ByteOffset(range.start)).await?;
    if data.is_none_or(|data| data.start >= range.end) {
        let chunks = usize::try_from(range.len().div_ceil(volume::CHUNK)).unwrap_or(CHUNKS_PER_EXTENT);
        return Ok(vec![ChunkId::ZERO; chunks]);
    }
    let _held = assembly.acquire_many(4).await.map_err(|_closed| EngineError::Cancelled)?;
    let mut buffers: Vec<Buffer> = Vec::with_capacity(4);
    let mut at = range.start;
    while at < range.end {
        let mut buffer = pool.acquire().await;
        let len = (range.end - at).min(buffer.capacity() as u64);
        buffer.set_len(usize::try_from(len).unwrap_or(usize::MAX));
        let (result, buffer) = sink.read_at(ByteOffset(at), buffer).await;
        result?;
        at += len;
        buffers.push(buffer);
    }
    let key = Arc::clone(key);
    let ids = cpu
        .run(move |_| {
            let slices: Vec<&[u8]> = buffers.iter().map(|buffer| &**buffer).collect();
            extent_ids(key.key(), &slices).map(|ids| ids.to_vec())
        })
        .await?;
    Ok(ids)
}

/// Reads the whole target and compares it with the table of what was written.
pub(super) async fn read_back(
    target: &Arc<Mutex<Target>>,
    sink: &dyn Sink,
    pool: &Arc<dyn BufferPool>,
    cpu: &Cpu,
    key: &Arc<Keyed>,
    size: ByteLen,
    assembly: &Semaphore,
) -> Result<(), EngineError> {
    stream::iter(0..size.extents())
        .map(|extent| async move {
            let extent = ExtentIndex(extent);
            let found = ids_of(sink, &**pool, cpu, key, extent, size, assembly).await?;
            let of_table = Arc::clone(target);
            let written = blocking(move || locked(&of_table).built_ids(extent)).await?;
            if found != written {
                let at = extent.0 * EXTENT;
                let what = format!(
                    "reading back found other bytes than were written, in the MiB at {at}: the target's storage lies; replace it"
                );
                return Err(EngineError::refused(FailCode::Storage, what));
            }
            Ok(())
        })
        .buffer_unordered(READS)
        .try_collect()
        .await
}
