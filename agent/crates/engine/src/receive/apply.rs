//! One extent frame on the receiving side: decode it, resolve what it refers to, verify every chunk by its id, and only
//! then write.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, try_join_all};
use futures_util::{StreamExt, stream};
use reduce::delta::PageMask;
use reduce::{ContentIndex, chunk_id, delta};
use session::Applied;
use tokio::sync::Semaphore;
use tunnel::ReceivedExtent;
use volume::{
    Buffer, BufferPool, ByteLen, ByteOffset, ByteRange, CHUNK, ChunkId, Op, Sink, Source, VolumeError,
    ZeroMode,
};
use wire::{ChunkEntry, Encoding, ExtentHead, NeedReason};

use crate::cpu::Cpu;
use crate::error::EngineError;
use crate::grain::CHUNK_LEN;
use crate::keyed::Keyed;

/// Chunks that one frame reads at once.
const READS: usize = 4;
/// Buffers of the pool that are not for received payload: frames are assembled in them, and the target is read into
/// them. Whoever needs some gets them all at once, so that nobody waits while holding a part.
const ASSEMBLY_BUFFERS: usize = 64;

/// That part of a pool of `buffers`: the other half at least is for received payload.
pub(super) fn assembly_buffers(buffers: usize) -> usize {
    ASSEMBLY_BUFFERS.min(buffers / 2)
}

/// What all frames of a session share.
pub(super) struct Applier {
    pub(super) sink: Arc<dyn Sink>,
    pub(super) size: ByteLen,
    pub(super) zeroed: bool,
    pub(super) key: Arc<Keyed>,
    pub(super) cpu: Cpu,
    pub(super) pool: Arc<dyn BufferPool>,
    /// As many permits as [`assembly_buffers`].
    pub(super) assembly: Arc<Semaphore>,
    /// Hints: a wrong place is found by hashing what is there. A mutex here guards no session state.
    pub(super) index: Mutex<ContentIndex>,
    pub(super) sources: Vec<Arc<File>>,
}

/// A frame that was applied, or not, and what of it the statistics want.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) applied: Applied,
    pub(super) written: u64,
    pub(super) referenced: u64,
}

/// Plain bytes of a frame, in payload order.
struct Decoded {
    buffers: Vec<Buffer>,
}

impl Decoded {
    /// Copies a range out; it may cross buffers.
    fn copy_to(&self, mut at: usize, out: &mut [u8]) {
        let mut done = 0;
        for buffer in &self.buffers {
            if at >= buffer.len() {
                at -= buffer.len();
                continue;
            }
            let part = (buffer.len() - at).min(out.len() - done);
            out[done..done + part].copy_from_slice(&buffer[at..at + part]);
            done += part;
            at = 0;
            if done == out.len() {
                return;
            }
        }
    }
}

/// A run of chunks with new content, in one buffer.
struct Run {
    at: u64,
    buffer: Buffer,
    chunks: Vec<(usize, Fill)>,
}

/// Where a chunk's new content comes from.
enum Fill {
    /// Payload bytes from this place on.
    Payload(usize),
    /// What the buffer holds already (read from the target), under these pages of the payload.
    Pages(u16, usize),
    /// What the buffer holds already.
    There,
}

impl Applier {
    fn index(&self) -> std::sync::MutexGuard<'_, ContentIndex> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes where committed chunks lie.
    pub(super) fn learn(&self, extent: volume::ExtentIndex, ids: &[ChunkId]) {
        let Some(volume) = reduce::VolumeSlot::new(0) else { return };
        let mut index = self.index();
        for (nth, id) in ids.iter().enumerate().filter(|(_, id)| **id != ChunkId::ZERO) {
            let chunk = volume::ChunkIndex(extent.first_chunk().0 + nth as u64);
            index.insert(id, reduce::Location { volume, chunk });
        }
    }

    /// Buffers that assembling this frame takes: those it is decoded into, and one for each run of chunks that get new
    /// content, four chunks at most.
    fn buffers_for(&self, head: &ExtentHead) -> u32 {
        let size = self.pool.buffer_size();
        let decoded = match head.encoding {
            Encoding::Raw => 0,
            Encoding::Zstd => (head.plain_len as usize).div_ceil(size),
        };
        let changed = |chunk: &ChunkEntry| !matches!(chunk, ChunkEntry::Zero | ChunkEntry::Same(_));
        let runs: usize = head
            .chunks
            .chunk_by(|a, b| changed(a) == changed(b))
            .filter(|run| changed(&run[0]))
            .map(|run| run.len().div_ceil(size / CHUNK_LEN))
            .sum();
        u32::try_from(decoded + runs).unwrap_or(u32::MAX)
    }

    /// Applies a frame whose head fits the volume. `declared` is what the target holds at this extent, as far as the
    /// sender was told; `zeroed` says that it still holds the zeros that it was created with.
    pub(super) async fn apply(
        &self,
        received: ReceivedExtent,
        declared: Option<Vec<ChunkId>>,
        zeroed: bool,
    ) -> Result<Outcome, EngineError> {
        let ReceivedExtent { head, payload, permit, .. } = received;
        let Some(range) = head.extent.range(self.size) else {
            return Err(EngineError::Session(session::SessionError::PastEnd));
        };
        if let Some(mask) = unsaid(&head, declared.as_deref()) {
            return Ok(Outcome {
                applied: Applied::Needs { mask, reason: NeedReason::Mismatch },
                written: 0,
                referenced: 0,
            });
        }
        let whole = head.chunks.iter().all(|chunk| matches!(chunk, ChunkEntry::Data(_)));
        let outcome = if whole && head.encoding == Encoding::Raw {
            self.write_whole(&head, range, payload).await
        } else {
            // Waits here hold received buffers only; the others come from the pool's other part.
            let wanted = self.buffers_for(&head);
            let held = self.assembly.acquire_many(wanted).await.map_err(|_closed| EngineError::Cancelled)?;
            let outcome = self.assemble(&head, range, payload, whole, zeroed).await;
            drop(held);
            outcome
        };
        drop(permit);
        outcome
    }

    /// The payload is the extent: verify it where it lies and write it from there.
    async fn write_whole(
        &self,
        head: &ExtentHead,
        range: ByteRange,
        payload: Vec<Buffer>,
    ) -> Result<Outcome, EngineError> {
        let ids: Vec<ChunkId> = head.chunks.iter().map(ChunkEntry::id).collect();
        let key = Arc::clone(&self.key);
        let (payload, wrong, ids) = self
            .cpu
            .run(move |_| {
                let mut wrong = 0_u16;
                let chunks = payload.iter().flat_map(|buffer| buffer.chunks(CHUNK_LEN));
                for (nth, (chunk, id)) in chunks.zip(&ids).enumerate() {
                    if chunk_id(key.key(), chunk) != *id {
                        wrong |= 1 << nth;
                    }
                }
                (payload, wrong, ids)
            })
            .await;
        if wrong != 0 {
            let applied = Applied::Needs { mask: wrong, reason: NeedReason::Mismatch };
            return Ok(Outcome { applied, written: 0, referenced: 0 });
        }
        let mut at = range.start;
        let writes = payload.into_iter().map(|buffer| {
            let place = at;
            at += buffer.len() as u64;
            async move { self.sink.write_at(ByteOffset(place), buffer).await.0 }
        });
        try_join_all(writes).await?;
        Ok(Outcome { applied: Applied::Written(ids), written: range.len(), referenced: 0 })
    }

    async fn assemble(
        &self,
        head: &ExtentHead,
        range: ByteRange,
        payload: Vec<Buffer>,
        whole: bool,
        zeroed: bool,
    ) -> Result<Outcome, EngineError> {
        let Some(decoded) = self.decode(head, payload).await? else {
            let mask = head.chunks.iter().enumerate().fold(0, |mask, (nth, chunk)| match chunk {
                ChunkEntry::Data(_) | ChunkEntry::Pages(..) => mask | 1 << nth,
                _ => mask,
            });
            let applied = Applied::Needs { mask, reason: NeedReason::Mismatch };
            return Ok(Outcome { applied, written: 0, referenced: 0 });
        };
        if whole {
            return self.write_whole(head, range, decoded.buffers).await;
        }
        let (mut runs, unknown) = self.gather(head, range).await?;
        if unknown != 0 {
            let applied = Applied::Needs { mask: unknown, reason: NeedReason::Unknown };
            return Ok(Outcome { applied, written: 0, referenced: 0 });
        }
        let key = Arc::clone(&self.key);
        let ids: Vec<ChunkId> = head.chunks.iter().map(ChunkEntry::id).collect();
        let (runs, wrong, ids) = self
            .cpu
            .run(move |_| {
                let mut wrong = 0_u16;
                for run in &mut runs {
                    for ((nth, fill), chunk) in run.chunks.iter().zip(run.buffer.chunks_mut(CHUNK_LEN)) {
                        let filled = match fill {
                            Fill::Payload(at) => {
                                decoded.copy_to(*at, chunk);
                                true
                            }
                            Fill::Pages(mask, at) => {
                                let len = PageMask(*mask).payload_len(chunk.len()).unwrap_or(0);
                                let mut pages = vec![0; len];
                                decoded.copy_to(*at, &mut pages);
                                delta::apply(chunk, PageMask(*mask), &pages).is_ok()
                            }
                            // Hashed when it was fetched.
                            Fill::There => continue,
                        };
                        if !filled || chunk_id(key.key(), chunk) != ids[*nth] {
                            wrong |= 1 << nth;
                        }
                    }
                }
                (runs, wrong, ids)
            })
            .await;
        if wrong != 0 {
            let applied = Applied::Needs { mask: wrong, reason: NeedReason::Mismatch };
            return Ok(Outcome { applied, written: 0, referenced: 0 });
        }
        let written = runs.iter().map(|run| run.buffer.len() as u64).sum();
        let zeros = zero_runs(head, range);
        let writes = runs
            .into_iter()
            .map(|run| async move { self.sink.write_at(ByteOffset(run.at), run.buffer).await.0 });
        try_join_all(writes).await?;
        if !zeroed {
            for zero in zeros {
                self.sink.zero(zero, ZeroMode::Deallocate).await?;
            }
        }
        let referenced = head
            .chunks
            .iter()
            .enumerate()
            .filter(|(_, chunk)| matches!(chunk, ChunkEntry::Reference(_)))
            .map(|(nth, _)| chunk_len(range, nth) as u64)
            .sum();
        Ok(Outcome { applied: Applied::Written(ids), written, referenced })
    }

    /// The plain payload, or `None` when it does not decode to what was declared.
    async fn decode(&self, head: &ExtentHead, payload: Vec<Buffer>) -> Result<Option<Decoded>, EngineError> {
        if head.encoding == Encoding::Raw {
            return Ok(Some(Decoded { buffers: payload }));
        }
        let plain = head.plain_len as usize;
        let size = self.pool.buffer_size();
        let mut buffers = Vec::with_capacity(plain.div_ceil(size));
        let mut left = plain;
        while left > 0 {
            let mut buffer = self.pool.acquire().await;
            buffer.set_len(left.min(size));
            left -= buffer.len();
            buffers.push(buffer);
        }
        let (result, buffers) = self
            .cpu
            .run(move |scratch| {
                scratch.frame.clear();
                payload.iter().for_each(|part| scratch.frame.extend_from_slice(part));
                let mut out: Vec<&mut [u8]> = buffers.iter_mut().map(|buffer| &mut **buffer).collect();
                let result = scratch.decompressor.decompress(&scratch.frame, &mut out);
                (result, buffers)
            })
            .await;
        match result {
            Ok(()) => Ok(Some(Decoded { buffers })),
            // TLS has verified the bytes: the peer encoded what it should not have. Bad memory there may do that too,
            // so it is asked once more before the ids decide.
            Err(error) => {
                tracing::warn!(%error, extent = head.extent.0, "a payload does not decode; asking for it again");
                Ok(None)
            }
        }
    }

    /// Buffers for the runs of chunks that get new content, with what must be read from somewhere read; and the mask
    /// of references that cannot be served.
    async fn gather(&self, head: &ExtentHead, range: ByteRange) -> Result<(Vec<Run>, u16), EngineError> {
        let per_buffer = self.pool.buffer_size() / CHUNK_LEN;
        let mut runs: Vec<Run> = Vec::new();
        let mut unknown = 0;
        let mut payload_at = 0;
        let mut previous: Option<usize> = None;
        let reads: Vec<BoxFuture<'_, Result<Option<Buffer>, EngineError>>> = head
            .chunks
            .iter()
            .enumerate()
            .map(|(nth, entry)| {
                let at = range.start + nth as u64 * CHUNK;
                Box::pin(self.content(entry, at, chunk_len(range, nth))) as BoxFuture<'_, _>
            })
            .collect();
        let mut contents = stream::iter(reads).buffered(READS);
        for (nth, entry) in head.chunks.iter().enumerate() {
            let found = contents.next().await.transpose()?.flatten();
            let len = chunk_len(range, nth);
            let at = range.start + nth as u64 * CHUNK;
            let fill = match entry {
                ChunkEntry::Zero | ChunkEntry::Same(_) => continue,
                ChunkEntry::Data(_) => Fill::Payload(payload_at),
                ChunkEntry::Pages(_, mask) => Fill::Pages(*mask, payload_at),
                ChunkEntry::Reference(_) => Fill::There,
            };
            payload_at += usize::try_from(entry.payload_len(len as u64)).unwrap_or(usize::MAX);
            let wanted = matches!(entry, ChunkEntry::Pages(..) | ChunkEntry::Reference(_));
            if wanted && found.is_none() {
                unknown |= 1 << nth;
            }
            if unknown != 0 {
                // Nothing of the frame will be written: only find out what else is missing.
                continue;
            }
            let joins = previous == nth.checked_sub(1)
                && previous.is_some()
                && runs.last().is_some_and(|run| run.chunks.len() < per_buffer);
            if !joins {
                let mut buffer = self.pool.acquire().await;
                buffer.set_len(0);
                runs.push(Run { at, buffer, chunks: Vec::new() });
            }
            previous = Some(nth);
            let Some(run) = runs.last_mut() else { continue };
            let start = run.buffer.len();
            run.buffer.set_len(start + len);
            if let Some(content) = found {
                run.buffer[start..].copy_from_slice(&content);
            }
            run.chunks.push((nth, fill));
        }
        Ok((runs, unknown))
    }

    /// What must be read for an entry: the target's chunk under pages, or what a reference names.
    async fn content(&self, entry: &ChunkEntry, at: u64, len: usize) -> Result<Option<Buffer>, EngineError> {
        match entry {
            ChunkEntry::Pages(..) => self.read(&*self.sink, at, len).await,
            ChunkEntry::Reference(id) => self.fetch(id, len).await,
            ChunkEntry::Zero | ChunkEntry::Same(_) | ChunkEntry::Data(_) => Ok(None),
        }
    }

    /// Reads a chunk; `None` when the source is too short or cannot be read there (a reference may be served by
    /// somebody else, or not at all).
    async fn read(&self, source: &dyn Source, at: u64, len: usize) -> Result<Option<Buffer>, EngineError> {
        let (result, buffer) = source.read_at(ByteOffset(at), Buffer::heap(len)).await;
        result?;
        Ok(Some(buffer))
    }

    /// Content by its id, from wherever the index says it is.
    async fn fetch(&self, id: &ChunkId, len: usize) -> Result<Option<Buffer>, EngineError> {
        let places: Vec<reduce::Location> = self.index().candidates(id).collect();
        for place in places {
            let at = place.chunk.offset().0;
            let read = match usize::from(place.volume.number()) {
                0 if at.saturating_add(len as u64) <= self.size.0 => self.read(&*self.sink, at, len).await,
                0 => continue,
                nth => match self.sources.get(nth - 1) {
                    Some(file) => read_file(Arc::clone(file), at, len).await,
                    None => continue,
                },
            };
            match read {
                Ok(Some(buffer)) => {
                    let key = Arc::clone(&self.key);
                    let wanted = *id;
                    let (buffer, good) = self
                        .cpu
                        .run(move |_| {
                            let good = chunk_id(key.key(), &buffer) == wanted;
                            (buffer, good)
                        })
                        .await;
                    if good {
                        return Ok(Some(buffer));
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(error = %error.chain(), "a reference is not served from there"),
            }
        }
        Ok(None)
    }
}

/// Reads a chunk of a sealed volume; `None` when it is not that long any more.
async fn read_file(file: Arc<File>, at: u64, len: usize) -> Result<Option<Buffer>, EngineError> {
    super::blocking(move || {
        let mut buffer = Buffer::heap(len);
        match file.read_exact_at(&mut buffer, at) {
            Ok(()) => Ok(Some(buffer)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(VolumeError::io(Op::Read, "a sealed volume of the pool", error).into()),
        }
    })
    .await
}

fn chunk_len(range: ByteRange, nth: usize) -> usize {
    usize::try_from((range.len() - nth as u64 * CHUNK).min(CHUNK)).unwrap_or(CHUNK_LEN)
}

/// Chunks that the sender calls the same although the target was not declared to hold that.
fn unsaid(head: &ExtentHead, declared: Option<&[ChunkId]>) -> Option<u16> {
    let mask = head.chunks.iter().enumerate().fold(0, |mask, (nth, chunk)| match chunk {
        ChunkEntry::Same(id) if declared.and_then(|ids| ids.get(nth)) != Some(id) => mask | 1 << nth,
        _ => mask,
    });
    (mask != 0).then_some(mask)
}

/// Runs of zero chunks as bytes.
fn zero_runs(head: &ExtentHead, range: ByteRange) -> Vec<ByteRange> {
    let mut runs: Vec<ByteRange> = Vec::new();
    for (nth, chunk) in head.chunks.iter().enumerate() {
        if *chunk != ChunkEntry::Zero {
            continue;
        }
        let start = range.start + nth as u64 * CHUNK;
        let end = start + chunk_len(range, nth) as u64;
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(ByteRange { start, end }),
        }
    }
    runs
}
