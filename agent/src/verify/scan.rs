//! Computes a volume's root by reading it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::EngineError;
use engine::ends::LocalVolume;
use engine::process::Process;
use engine::progress::Progress;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use reduce::{HashKey, RootBuilder};
use volume::{Buffer, BufferPool, ByteLen, ByteOffset, ChunkId, ExtentIndex, Source};
use wire::VolumeFormat;

use crate::failure::Failure;

/// Extents that are read and hashed at once: what keeps a disk and the CPU threads of a small host busy.
const PARALLEL: usize = 4;

/// Reads the volume and answers its root, hexadecimal.
pub(super) async fn root(
    process: &Process,
    volume: &LocalVolume,
    key: HashKey,
    size: u64,
    counters: &Progress,
) -> Result<String, Failure> {
    let disk = process.session_disk()?;
    let opened = volume.open(&disk.disk, true).await?;
    let found = opened.volume().geometry().size;
    counters.size.store(size, Ordering::Relaxed);
    // A device or an export may be larger than the volume that was copied onto it; a file or an image may not.
    let may_be_larger = match volume {
        LocalVolume::Path { path, format: VolumeFormat::Raw } => !path.is_file(),
        LocalVolume::Path { .. } => false,
        LocalVolume::Nbd(_) => true,
    };
    let differs = found.0 < size || (found.0 > size && !may_be_larger);
    let result = if differs {
        Err(Failure::new(
            "differs",
            format!("{} has {} bytes, the receipt states {size}", volume.label()?, found.0),
            "name the volume that the receipt is about",
        ))
    } else {
        read(process, opened.volume(), &disk.pool, key, ByteLen(size), counters).await.map_err(Failure::from)
    };
    opened.close().await?;
    result
}

async fn read(
    process: &Process,
    source: &dyn Source,
    pool: &Arc<dyn BufferPool>,
    key: HashKey,
    size: ByteLen,
    counters: &Progress,
) -> Result<String, EngineError> {
    let extents = size.extents();
    let key = Arc::new(key);
    let mut builder = RootBuilder::new(&key, size)?;
    let mut jobs = FuturesOrdered::new();
    let mut at = 0;
    let mut pushed = 0;
    loop {
        while at < extents && jobs.len() < PARALLEL {
            let from = ByteOffset(at << EXTENT_SHIFT);
            let data = source.next_data(from).await?;
            let next = data.map_or(extents, |data| data.start >> EXTENT_SHIFT).max(at);
            if next >= extents {
                at = extents;
                break;
            }
            jobs.push_back(extent(process, source, pool, Arc::clone(&key), ExtentIndex(next), size));
            at = next + 1;
        }
        let Some(done) = jobs.next().await else { break };
        let (extent, ids) = done?;
        builder.push_zero_extents(extent.0 - pushed)?;
        builder.push_extent(&ids)?;
        pushed = extent.0 + 1;
        counters.settled.store((pushed << EXTENT_SHIFT).min(size.0), Ordering::Relaxed);
    }
    builder.push_zero_extents(extents - pushed)?;
    counters.settled.store(size.0, Ordering::Relaxed);
    Ok(builder.finish()?.to_string())
}

/// An extent has 2^20 bytes.
const EXTENT_SHIFT: u32 = 20;

async fn extent(
    process: &Process,
    source: &dyn Source,
    pool: &Arc<dyn BufferPool>,
    key: Arc<HashKey>,
    index: ExtentIndex,
    size: ByteLen,
) -> Result<(ExtentIndex, Vec<ChunkId>), EngineError> {
    let Some(range) = index.range(size) else { return Ok((index, Vec::new())) };
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let mut buffer = pool.acquire().await;
        let part = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(pool.buffer_size());
        buffer.set_len(part);
        let (result, buffer) = source.read_at(ByteOffset(at), buffer).await;
        result?;
        buffers.push(buffer);
        at += part as u64;
    }
    let ids = process
        .cpu()
        .run(move |_scratch| {
            let slices: Vec<&[u8]> = buffers.iter().map(AsRef::as_ref).collect();
            reduce::extent_ids(&key, &slices).map(|ids| ids.to_vec())
        })
        .await?;
    Ok((index, ids))
}
