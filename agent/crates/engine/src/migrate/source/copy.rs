//! Copying what a map marks from an export to the destination: the byte path of warm and cold.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use hypervisor::nbd::client::ALLOCATION;
use hypervisor::nbd::{Access, Address, Client, DirtyMap, NbdVolume, Uri, client};
use hypervisor::specification::SourceDisk;
use reduce::HashKey;
use volume::{Buffer, ByteLen, ByteOffset, CHUNK, Generation, Source};
use wire::{ChannelHello, ChannelKind};

use super::{DiskRun, Owner, chain};
use crate::migrate::disk::MirrorTarget;
use crate::migrate::disk::frame::MAX_WRITE;
use crate::migrate::leaves::LiveLeaves;
use crate::migrate::readback::root_of_export;

/// Disks' channels are numbered from here; RAM's from 1.
pub(super) const FIRST_CHANNEL: u16 = 256;
/// Pieces of a disk on their way at once: as many as the destination works on.
const IN_FLIGHT: usize = 16;

/// An export that a disk can be read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Readable {
    pub(super) address: Address,
    pub(super) export: String,
}

impl Readable {
    pub(super) async fn open(&self, contexts: Vec<String>) -> Result<NbdVolume, String> {
        let uri = Uri { address: self.address.clone(), export: self.export.clone() };
        let options = client::Options { in_flight: IN_FLIGHT, contexts, ..client::Options::default() };
        NbdVolume::open(&uri, Access::ReadOnly, &options).await.map_err(|error| chain(&error))
    }
}

/// What has content, in chunks.
pub(super) async fn allocated(readable: &Readable) -> Result<(NbdVolume, DirtyMap), String> {
    let volume = readable.open(vec![ALLOCATION.to_owned()]).await?;
    let size = volume.client().size();
    let mut map = DirtyMap::new(ByteLen(size), CHUNK).map_err(|error| chain(&error))?;
    let mut at = 0;
    while let Some(range) = volume.next_data(ByteOffset(at)).await.map_err(|error| chain(&error))? {
        map.mark(range);
        at = range.end;
        if at >= size {
            break;
        }
    }
    Ok((volume, map))
}

/// Whole chunks of what a map marks, in pieces that fit a write of the channel: offset and length.
fn pieces(map: &DirtyMap) -> impl Iterator<Item = (u64, u64)> + '_ {
    map.ranges().flat_map(|range| {
        let starts = (range.start..range.end).step_by(usize::try_from(MAX_WRITE).unwrap_or(usize::MAX));
        starts.map(move |start| (start, (range.end - start).min(MAX_WRITE)))
    })
}

/// Copies what `map` marks; answers with how many bytes that were.
pub(super) async fn copy(client: &Client, map: &DirtyMap, target: &MirrorTarget) -> Result<u64, String> {
    let work = stream::iter(pieces(map)).map(|(offset, len)| async move {
        let buffer = Buffer::heap(usize::try_from(len).unwrap_or(0)); // at most MAX_WRITE
        let (read, buffer) = client.read(offset, buffer).await;
        read.map_err(|error| chain(&error))?;
        match target.write(offset, Bytes::from_owner(buffer), false).await {
            0 => Ok(len),
            errno => Err(format!("the destination did not take the disk at {offset}: errno {errno}")),
        }
    });
    work.buffer_unordered(IN_FLIGHT).try_fold(0, |sum, len| async move { Ok(sum + len) }).await
}

impl Owner {
    /// Opens the channel of each disk, in the specification's order.
    pub(super) fn open_targets(&mut self) -> Result<Vec<SourceDisk>, String> {
        let derived = self.derived.clone().ok_or("the VM was not described")?;
        let disks = derived.disks;
        for (channel, disk) in (FIRST_CHANNEL..).zip(&disks) {
            let target = self.open_target(channel, disk.size)?;
            self.disks.push(DiskRun {
                id: disk.id.clone(),
                node: disk.node.clone(),
                size: disk.size,
                target,
            });
        }
        Ok(disks)
    }

    /// Opens the channel of one disk.
    pub(super) fn open_target(&mut self, channel: u16, size: u64) -> Result<Arc<MirrorTarget>, String> {
        let key = self.key.ok_or("the destination gave no key")?;
        let generation = Generation(self.record.generation);
        let folder = self.context.records.folder(self.job.migration).map_err(|error| error.chain())?;
        let hello =
            ChannelHello { migration: self.job.migration, generation, channel, kind: ChannelKind::Disk };
        let leaves = LiveLeaves::new(folder.path(), ByteLen(size), HashKey::from_bytes(key))
            .map_err(|error| error.chain())?;
        let (target, work) =
            MirrorTarget::start(self.contact.channels(hello, 0), Arc::new(leaves), self.context.cpu.clone());
        self.carry("a disk's channel", async move { work.await.map_err(|error| error.chain()) });
        self.keep_leaves_fresh(&target);
        Ok(target)
    }

    /// Reads the disks back from where they were copied from, and compares them with what was sent.
    pub(super) async fn read_back_copied(&self) -> Result<(), String> {
        for (disk, readable) in self.disks.iter().zip(&self.copying.readable) {
            let Address::Unix(socket) = &readable.address else { continue };
            let leaves = Arc::clone(disk.target.leaves());
            let read = root_of_export(socket, &readable.export, leaves.key(), &self.context.cpu).await?;
            let sent = self.context.cpu.run(move |_| leaves.root()).await.map_err(|error| error.chain())?;
            if read != sent {
                return Err(format!("disk {} here is not what was copied", disk.id));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use volume::ByteRange;

    #[test]
    fn pieces_are_whole_chunks_of_a_writes_size() {
        let size = (4 << 20) + 512;
        let mut map = DirtyMap::new(ByteLen(size), CHUNK).unwrap();
        map.mark(ByteRange { start: 70_000, end: 70_001 });
        map.mark(ByteRange { start: 1 << 20, end: (3 << 20) + 1 });
        map.mark(ByteRange { start: size - 1, end: size });
        let found: Vec<_> = pieces(&map).collect();
        let mib = 1 << 20;
        assert_eq!(found, [(65_536, 65_536), (mib, mib), (2 * mib, mib), (3 * mib, 65_536), (4 * mib, 512)]);
        assert_eq!(pieces(&DirtyMap::new(ByteLen(size), CHUNK).unwrap()).count(), 0);
    }
}
