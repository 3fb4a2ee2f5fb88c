//! Files through the disk crate: 256 KiB operations, registered buffers, as deep a queue as a session keeps.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use disk::{BUFFER_SIZE, Disk, Options, SourceOptions};
use tokio::task::JoinSet;
use volume::conformance::Dice;
use volume::{ByteLen, ByteOffset, Sink, Source, VolumeError};

use super::Took;
use crate::machine::process_cpu;
use crate::model::Rate;

/// Operations at once: what fills a fast disk, and less than a session may have.
const DEPTH: u64 = 16;

/// Cost of reading and writing.
pub(super) struct Storage {
    pub(super) read: Rate,
    pub(super) write: Rate,
    pub(super) direct: bool,
}

/// Writes a new file of about `sample` bytes in `folder` and reads it.
pub(super) async fn measure(folder: &Path, sample: u64) -> Result<Storage> {
    let step = BUFFER_SIZE as u64;
    let size = sample.next_multiple_of(step);
    let folder =
        tempfile::tempdir_in(folder).with_context(|| format!("make a folder in {}", folder.display()))?;
    let path = folder.path().join("calibrate");
    let disk = Disk::start(&Options::default())?;
    let mut dice = Dice::new(3);
    // Some disks have a short way with zeros.
    let mut buffers = Vec::new();
    while let Some(mut buffer) = disk.buffers().try_acquire() {
        dice.fill(&mut buffer);
        buffers.push(buffer);
    }
    drop(buffers);
    let sink = Arc::new(disk.create_sink(&path, ByteLen(size))?);
    let direct = sink.is_direct();
    let (begun, before) = (Instant::now(), process_cpu());
    sweep(&disk, size, {
        let sink = Arc::clone(&sink);
        move |at, buffer| {
            let sink = Arc::clone(&sink);
            Box::pin(async move { sink.write_at(at, buffer).await.0 })
        }
    })
    .await?;
    sink.flush().await?;
    let write = Took { cpu: process_cpu().saturating_sub(before), wall: begun.elapsed() };
    drop(sink);
    let source = Arc::new(disk.open_source(&path, SourceOptions::default())?);
    let (begun, before) = (Instant::now(), process_cpu());
    sweep(&disk, size, move |at, buffer| {
        let source = Arc::clone(&source);
        Box::pin(async move { source.read_at(at, buffer).await.0 })
    })
    .await?;
    let read = Took { cpu: process_cpu().saturating_sub(before), wall: begun.elapsed() };
    Ok(Storage { read: read.rate(size), write: write.rate(size), direct })
}

/// Moves the whole file, some operations at a time.
async fn sweep<F>(disk: &Disk, size: u64, operate: F) -> Result<(), VolumeError>
where
    F: Fn(ByteOffset, volume::Buffer) -> volume::Io<'static, Result<(), VolumeError>>
        + Clone
        + Send
        + Sync
        + 'static,
{
    let mut lanes = JoinSet::new();
    for first in 0..DEPTH {
        let (pool, operate) = (disk.buffers(), operate.clone());
        lanes.spawn(async move {
            let mut at = first * BUFFER_SIZE as u64;
            while at < size {
                operate(ByteOffset(at), pool.acquire().await).await?;
                at += DEPTH * BUFFER_SIZE as u64;
            }
            Ok(())
        });
    }
    lanes.join_all().await.into_iter().collect()
}
