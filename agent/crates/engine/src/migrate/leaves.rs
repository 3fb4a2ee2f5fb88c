//! The leaf table of a disk that is written all the time: kept current write by write at both ends, so that comparing
//! two disks while the guest is paused costs milliseconds, not a pass over them.
//!
//! Two unlinked files: 32 bytes for each chunk (its id), 32 bytes for each extent (its Merkle node; zeros stand for an
//! extent of zeros). A write changes ids and marks the extent's node stale; stale nodes are made again in the
//! background, and the rest when the root is asked for. A write that covers a chunk in part leaves a chunk whose id is
//! not known: it must be read again ([`LiveLeaves::unread`]).
//!
//! The table begins as that of a disk of zeros. A mirror of the whole disk touches every chunk that is not zero.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use reduce::{HashKey, Root, RootBuilder, extent_node};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use volume::{ByteLen, CHUNK, CHUNKS_PER_EXTENT, ChunkId, ExtentIndex};

use crate::error::EngineError;

const ID: u64 = 32;
const ZERO_NODE: [u8; 32] = [0; 32];
/// Nodes that are made in one go before others get the lock.
const NODE_BATCH: usize = 256;

/// The table.
#[derive(Debug)]
pub struct LiveLeaves {
    size: ByteLen,
    key: HashKey,
    ids: File,
    nodes: File,
    marks: Mutex<Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    /// One bit an extent: its node is out of date.
    stale: Vec<u64>,
    stale_count: u64,
    /// Chunks whose id is not known.
    unread: BTreeSet<u64>,
}

impl LiveLeaves {
    /// The table of a disk of `size` zeros; its files are made in `folder` and have no name.
    ///
    /// # Errors
    /// When there is no room.
    pub fn new(folder: &Path, size: ByteLen, key: HashKey) -> Result<Self, EngineError> {
        let file = |len: u64| {
            let file = tempfile_in(folder)?;
            file.set_len(len)?;
            Ok::<_, std::io::Error>(file)
        };
        let fail = |error| EngineError::sidecar("make a leaf table in", folder, error);
        let extents = size.extents();
        let words = usize::try_from(extents.div_ceil(64)).unwrap_or(usize::MAX);
        Ok(Self {
            size,
            key,
            ids: file(size.chunks() * ID).map_err(fail)?,
            nodes: file(extents * ID).map_err(fail)?,
            marks: Mutex::new(Marks { stale: vec![0; words], ..Marks::default() }),
        })
    }

    /// Length of the disk.
    #[must_use]
    pub fn size(&self) -> ByteLen {
        self.size
    }

    /// Key of the ids.
    #[must_use]
    pub fn key(&self) -> &HashKey {
        &self.key
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(op: &'static str) -> impl Fn(std::io::Error) -> EngineError {
        move |error| EngineError::sidecar(op, "the leaf table of a migration".as_ref(), error)
    }

    /// The chunks that `offset..offset + len` covers whole, as a half-open range; the last chunk of the disk may be
    /// short.
    fn whole(&self, offset: u64, len: u64) -> (u64, u64) {
        let end = offset.saturating_add(len).min(self.size.0);
        let past = if end == self.size.0 { self.size.chunks() } else { end / CHUNK };
        (offset.div_ceil(CHUNK), past)
    }

    /// Notes a write: `ids` are those of the chunks that it covers whole, in order, as [`Self::ids_of`] gives them.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub fn note(&self, offset: u64, len: u64, ids: &[ChunkId]) -> Result<(), EngineError> {
        let (first, past) = self.whole(offset, len);
        if first < past {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.0).collect();
            self.ids.write_all_at(&bytes, first * ID).map_err(Self::fail("write"))?;
        }
        self.mark(offset, len, first, past);
        Ok(())
    }

    /// Notes that a range is zero now.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub fn note_zero(&self, offset: u64, len: u64) -> Result<(), EngineError> {
        let (first, past) = self.whole(offset, len);
        if first < past {
            punch(&self.ids, first * ID, (past - first) * ID).map_err(Self::fail("punch a hole in"))?;
        }
        self.mark(offset, len, first, past);
        Ok(())
    }

    fn mark(&self, offset: u64, len: u64, first: u64, past: u64) {
        if len == 0 {
            return;
        }
        let mut marks = self.marks();
        let touched_first = offset / CHUNK;
        let touched_past = offset.saturating_add(len).min(self.size.0).div_ceil(CHUNK);
        for chunk in touched_first..touched_past {
            if chunk >= first && chunk < past {
                marks.unread.remove(&chunk);
            } else {
                marks.unread.insert(chunk);
            }
        }
        let per = CHUNKS_PER_EXTENT as u64;
        for extent in touched_first / per..touched_past.div_ceil(per) {
            marks.set_stale(extent);
        }
    }

    /// The ids of the chunks that a write covers whole. Costs the hashing: for a CPU thread.
    #[must_use]
    pub fn ids_of(&self, offset: u64, data: &[u8]) -> Vec<ChunkId> {
        let (first, past) = self.whole(offset, data.len() as u64);
        (first..past)
            .map(|chunk| {
                let start = usize::try_from(chunk * CHUNK - offset).unwrap_or(usize::MAX);
                let end = data.len().min(start.saturating_add(usize::try_from(CHUNK).unwrap_or(usize::MAX)));
                reduce::chunk_id(&self.key, &data[start..end])
            })
            .collect()
    }

    /// Chunks that must be read again before there is a root, in order; at most `most` of them.
    #[must_use]
    pub fn unread(&self, most: usize) -> Vec<u64> {
        self.marks().unread.iter().copied().take(most).collect()
    }

    /// How many chunks must be read again, and how many extents' nodes made again.
    #[must_use]
    pub fn backlog(&self) -> (u64, u64) {
        let marks = self.marks();
        (marks.unread.len() as u64, marks.stale_count)
    }

    /// Makes some stale nodes again; false when there was none.
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub fn refresh(&self) -> Result<bool, EngineError> {
        let batch = self.marks().take_stale(NODE_BATCH);
        if batch.is_empty() {
            return Ok(false);
        }
        for extent in &batch {
            // The mark was taken first: a write that comes now marks it again, and the node is made once more.
            if let Err(error) = self.make_node(*extent) {
                let mut marks = self.marks();
                batch.iter().for_each(|extent| marks.set_stale(*extent));
                return Err(error);
            }
        }
        Ok(true)
    }

    fn make_node(&self, extent: u64) -> Result<(), EngineError> {
        let range = ExtentIndex(extent).range(self.size).map_or(0, volume::ByteRange::len);
        let chunks = usize::try_from(range.div_ceil(CHUNK)).unwrap_or(CHUNKS_PER_EXTENT);
        let mut bytes = [0; CHUNKS_PER_EXTENT * 32];
        let bytes = &mut bytes[..chunks * 32];
        let at = extent * CHUNKS_PER_EXTENT as u64 * ID;
        self.ids.read_exact_at(bytes, at).map_err(Self::fail("read"))?;
        let ids: Vec<ChunkId> = bytes
            .chunks_exact(32)
            .map(|id| {
                let mut out = [0; 32];
                out.copy_from_slice(id);
                ChunkId(out)
            })
            .collect();
        let node =
            if ids.iter().all(|id| *id == ChunkId::ZERO) { ZERO_NODE } else { extent_node(&self.key, &ids) };
        self.nodes.write_all_at(&node, extent * ID).map_err(Self::fail("write"))
    }

    /// The root of the disk as it was written. Nobody may write meanwhile.
    ///
    /// # Errors
    /// When a chunk must be read again first, or the table cannot be read.
    pub fn root(&self) -> Result<Root, EngineError> {
        while self.refresh()? {}
        let unread = self.marks().unread.len();
        if unread > 0 {
            return Err(EngineError::Corrupt(format!(
                "{unread} chunks of the disk were written in part and not read again"
            )));
        }
        let mut builder = RootBuilder::new(&self.key, self.size)?;
        let extents = self.size.extents();
        let mut buffer = vec![0; NODE_BATCH * 32];
        let mut at = 0;
        while at < extents {
            let count = (extents - at).min(NODE_BATCH as u64);
            let part = &mut buffer[..usize::try_from(count).unwrap_or(NODE_BATCH) * 32];
            self.nodes.read_exact_at(part, at * ID).map_err(Self::fail("read"))?;
            for node in part.chunks_exact(32) {
                let mut out = [0; 32];
                out.copy_from_slice(node);
                if out == ZERO_NODE {
                    builder.push_zero_extents(1)?;
                } else {
                    builder.push_extent_node(out)?;
                }
            }
            at += count;
        }
        Ok(builder.finish()?)
    }

    /// The chunk ids of an extent, for naming what differs.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn ids(&self, first_chunk: u64, count: usize) -> Result<Vec<ChunkId>, EngineError> {
        let left = usize::try_from(self.size.chunks().saturating_sub(first_chunk)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; count.min(left) * 32];
        self.ids.read_exact_at(&mut bytes, first_chunk * ID).map_err(Self::fail("read"))?;
        Ok(bytes
            .chunks_exact(32)
            .map(|id| {
                let mut out = [0; 32];
                out.copy_from_slice(id);
                ChunkId(out)
            })
            .collect())
    }
}

impl Marks {
    fn set_stale(&mut self, extent: u64) {
        let Ok(word) = usize::try_from(extent / 64) else { return };
        if let Some(word) = self.stale.get_mut(word) {
            let bit = 1 << (extent % 64);
            if *word & bit == 0 {
                *word |= bit;
                self.stale_count += 1;
            }
        }
    }

    fn take_stale(&mut self, most: usize) -> Vec<u64> {
        let mut taken = Vec::new();
        if self.stale_count == 0 {
            return taken;
        }
        for (index, word) in (0_u64..).zip(self.stale.iter_mut()) {
            while *word != 0 && taken.len() < most {
                let bit = word.trailing_zeros();
                *word &= *word - 1;
                taken.push(index * 64 + u64::from(bit));
            }
            if taken.len() == most {
                break;
            }
        }
        self.stale_count -= taken.len() as u64;
        taken
    }
}

fn tempfile_in(folder: &Path) -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)?))
}

fn punch(file: &File, at: u64, len: u64) -> std::io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, at, len) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let zeros = vec![0; 64 << 10];
            let mut done = 0;
            while done < len {
                let part = usize::try_from(len - done).unwrap_or(usize::MAX).min(zeros.len());
                file.write_all_at(&zeros[..part], at + done)?;
                done += part as u64;
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_of(disk: &[u8], key: &HashKey) -> Root {
        let mut builder = RootBuilder::new(key, ByteLen(disk.len() as u64)).unwrap();
        for extent in disk.chunks(1 << 20) {
            let ids: Vec<ChunkId> =
                extent.chunks(64 << 10).map(|chunk| reduce::chunk_id(key, chunk)).collect();
            builder.push_extent(&ids).unwrap();
        }
        builder.finish().unwrap()
    }

    #[test]
    fn the_root_follows_every_write() {
        let folder = tempfile::tempdir().unwrap();
        let key = HashKey::from_bytes([9; 32]);
        let mut disk = vec![0_u8; (5 << 20) + 70_000];
        let table =
            LiveLeaves::new(folder.path(), ByteLen(disk.len() as u64), HashKey::from_bytes([9; 32])).unwrap();
        assert_eq!(table.root().unwrap(), root_of(&disk, &key));
        let write = |disk: &mut Vec<u8>, at: usize, len: usize, byte: u8| {
            disk[at..at + len].fill(byte);
            if byte == 0 {
                table.note_zero(at as u64, len as u64).unwrap();
            } else {
                let data = disk[at..at + len].to_vec();
                let ids = table.ids_of(at as u64, &data);
                table.note(at as u64, len as u64, &ids).unwrap();
            }
        };
        write(&mut disk, 0, 1 << 20, 1);
        write(&mut disk, (2 << 20) + (64 << 10), 128 << 10, 2);
        write(&mut disk, 5 << 20, 70_000, 3); // the short last chunk, whole
        assert_eq!(table.root().unwrap(), root_of(&disk, &key));
        write(&mut disk, 64 << 10, 2 << 20, 0);
        assert_eq!(table.root().unwrap(), root_of(&disk, &key));
        // In part: no root until it was read again.
        write(&mut disk, (64 << 10) + 4096, 64 << 10, 5);
        assert!(table.root().is_err());
        assert_eq!(table.unread(9), [1, 2]);
        for chunk in table.unread(9) {
            let at = usize::try_from(chunk).unwrap() << 16;
            let data = disk[at..at + (64 << 10)].to_vec();
            let ids = table.ids_of(at as u64, &data);
            table.note(at as u64, data.len() as u64, &ids).unwrap();
        }
        assert_eq!(table.root().unwrap(), root_of(&disk, &key));
        assert_eq!(table.ids(1, 1).unwrap(), table.ids_of(64 << 10, &disk[64 << 10..128 << 10]));
    }
}
