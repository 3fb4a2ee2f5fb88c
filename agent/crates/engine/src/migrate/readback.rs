//! `--verify readback`: the root of a disk as QEMU reads it from the medium, while the guest is paused. It costs a pass
//! over the disk in the pause; the leaf tables cost milliseconds, and believe what was written.

use std::path::Path;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use hypervisor::nbd::client::Options;
use hypervisor::nbd::{Address, Client};
use reduce::{HashKey, Root, RootBuilder};
use volume::{Buffer, ByteLen, ChunkId, EXTENT, ExtentIndex};

use super::source::chain;
use crate::cpu::Cpu;

/// Extents that are read and hashed at once.
const AHEAD: usize = 8;

/// Reads an export of QEMU whole and computes its root.
pub(super) async fn root_of_export(
    socket: &Path,
    export: &str,
    key: &HashKey,
    cpu: &Cpu,
) -> Result<Root, String> {
    let options = Options { contexts: Vec::new(), ..Options::default() };
    let client = Client::connect(&Address::Unix(socket.to_owned()), export, &options)
        .await
        .map_err(|error| chain(&error))?;
    let client = Arc::new(client);
    let size = ByteLen(client.size());
    let mut root = RootBuilder::new(key, size).map_err(|error| error.to_string())?;
    let extents = stream::iter(0..size.extents()).map(|extent| {
        let (client, cpu, key) = (Arc::clone(&client), cpu.clone(), HashKey::from_bytes(*key.as_bytes()));
        async move {
            let range = ExtentIndex(extent).range(size).ok_or("an extent past the end")?;
            let len = usize::try_from(range.len().min(EXTENT)).unwrap_or(0);
            let (read, buffer) = client.read(range.start, Buffer::heap(len)).await;
            read.map_err(|error| chain(&error))?;
            let ids = cpu.run(move |_| reduce::extent_ids(&key, &[&buffer[..]])).await;
            ids.map(|ids| ids.to_vec()).map_err(|error| error.to_string())
        }
    });
    let mut extents = extents.buffered(AHEAD);
    while let Some(ids) = extents.try_next().await? {
        let ids: Vec<ChunkId> = ids;
        root.push_extent(&ids).map_err(|error| error.to_string())?;
    }
    root.finish().map_err(|error| error.to_string())
}
