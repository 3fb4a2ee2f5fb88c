//! The leaf table of a volume as a file: the chunk ids in order, sparse where the volume is zero.
//!
//! While a session runs, the table is a cache of the journal and is never flushed; it is flushed and named by its root
//! when the volume is sealed. The byte layout is `reduce::leaf_table`'s.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use reduce::leaf_table::{
    EXTENT_IDS_LEN, HEADER_LEN, HeaderV1, ID_LEN, TABLE_OFFSET, decode_ids, encode_ids, extent_offset,
    file_len,
};
use reduce::{HashKey, Root, RootBuilder};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;
use session::Change;
use volume::{ByteLen, CHUNKS_PER_EXTENT, ChunkId, ExtentIndex};

use crate::error::EngineError;
use crate::folder::{Folder, read_padded};

/// A leaf table.
#[derive(Debug)]
pub struct LeafFile {
    file: File,
    path: PathBuf,
    size: ByteLen,
}

impl LeafFile {
    /// An empty table (all zero) in place of any other of that name.
    pub fn create(folder: &Folder, name: &str, size: ByteLen) -> Result<Self, EngineError> {
        let file = File::from(folder.open_at(name, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC)?);
        let table = Self { file, path: folder.path().join(name), size };
        table.file.set_len(file_len(size).0).map_err(|error| table.fail("size", error))?;
        Ok(table)
    }

    /// Opens a sealed table, or `None` when there is none or its header is not intact.
    pub fn open_sealed(folder: &Folder, name: &str) -> Result<Option<(Self, HeaderV1)>, EngineError> {
        if !folder.has(name)? {
            return Ok(None);
        }
        let file = File::from(folder.open_at(name, OFlags::RDONLY)?);
        let mut table = Self { file, path: folder.path().join(name), size: ByteLen(0) };
        let mut bytes = [0; HEADER_LEN];
        read_padded(&table.file, &mut bytes, 0).map_err(|error| table.fail("read", error))?;
        match HeaderV1::decode(&bytes) {
            Ok(header) if header.root.is_some() => {
                table.size = header.size;
                Ok(Some((table, header)))
            }
            Ok(_) => Ok(None),
            Err(error) => {
                tracing::warn!(path = %table.path.display(), %error, "a leaf table is not usable");
                Ok(None)
            }
        }
    }

    fn fail(&self, op: &'static str, error: impl Into<std::io::Error>) -> EngineError {
        EngineError::sidecar(op, &self.path, error.into())
    }

    /// Length of the volume that the table describes.
    #[must_use]
    pub fn size(&self) -> ByteLen {
        self.size
    }

    fn chunks_in(&self, extent: ExtentIndex) -> usize {
        let len = extent.range(self.size).map_or(0, volume::ByteRange::len);
        usize::try_from(len.div_ceil(volume::CHUNK)).unwrap_or(CHUNKS_PER_EXTENT)
    }

    /// The ids of an extent; none past the end.
    pub fn ids(&self, extent: ExtentIndex) -> Result<Vec<ChunkId>, EngineError> {
        let mut bytes = [0; EXTENT_IDS_LEN];
        let part = &mut bytes[..self.chunks_in(extent) * ID_LEN];
        read_padded(&self.file, part, extent_offset(extent).0).map_err(|error| self.fail("read", error))?;
        Ok(decode_ids(part)?.collect())
    }

    /// Notes the ids of an extent.
    pub fn set_ids(&self, extent: ExtentIndex, ids: &[ChunkId]) -> Result<(), EngineError> {
        let mut bytes = [0; EXTENT_IDS_LEN];
        let part = &mut bytes[..ids.len().min(CHUNKS_PER_EXTENT) * ID_LEN];
        encode_ids(ids, part)?;
        self.file.write_all_at(part, extent_offset(extent).0).map_err(|error| self.fail("write", error))
    }

    /// Notes that a run of extents is zero.
    pub fn set_zero(&self, first: ExtentIndex, count: u64) -> Result<(), EngineError> {
        let end = file_len(self.size).0;
        let start = extent_offset(first).0.min(end);
        let past = extent_offset(ExtentIndex(first.0.saturating_add(count))).0.min(end);
        // What was never written is a hole already: do not ask the file system for each run of a sparse volume.
        if start >= past || self.next_data(start)?.is_none_or(|data| data >= past) {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, start, past - start) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let zeros = vec![0; 64 << 10];
                let mut at = start;
                while at < past {
                    let part = usize::try_from(past - at).unwrap_or(usize::MAX).min(zeros.len());
                    self.file.write_all_at(&zeros[..part], at).map_err(|error| self.fail("write", error))?;
                    at += part as u64;
                }
                Ok(())
            }
            Err(error) => Err(self.fail("punch a hole in", error)),
        }
    }

    /// Notes a change.
    pub fn apply(&self, change: &Change) -> Result<(), EngineError> {
        match change {
            Change::Extent { extent, ids } => self.set_ids(*extent, ids),
            Change::Zero { first, count } => self.set_zero(*first, *count),
            Change::Same { .. } => Ok(()),
        }
    }

    fn next_data(&self, at: u64) -> Result<Option<u64>, EngineError> {
        match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
            Ok(data) => Ok(Some(data)),
            Err(Errno::NXIO) => Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(at)),
            Err(error) => Err(self.fail("seek in", error)),
        }
    }

    /// The first extent at or after `from` that may have an id other than zero, or the number of extents.
    pub fn next_extent(&self, from: ExtentIndex) -> Result<ExtentIndex, EngineError> {
        let extents = self.size.extents();
        if from.0 >= extents {
            return Ok(ExtentIndex(extents));
        }
        let data = self.next_data(extent_offset(from).0)?;
        let extent = data.map_or(extents, |at| at.saturating_sub(TABLE_OFFSET) / EXTENT_IDS_LEN as u64);
        Ok(ExtentIndex(extent.clamp(from.0, extents)))
    }

    /// Computes the volume's root.
    pub fn root(&self, key: &HashKey) -> Result<Root, EngineError> {
        let mut builder = RootBuilder::new(key, self.size)?;
        let extents = self.size.extents();
        let mut at = 0;
        while at < extents {
            let data = self.next_extent(ExtentIndex(at))?.0;
            if data > at {
                builder.push_zero_extents(data - at)?;
                at = data;
                continue;
            }
            builder.push_extent(&self.ids(ExtentIndex(at))?)?;
            at += 1;
        }
        Ok(builder.finish()?)
    }

    /// Writes the header and makes the whole table durable.
    pub fn seal(&self, header: &HeaderV1) -> Result<(), EngineError> {
        self.file.write_all_at(&header.encode(), 0).map_err(|error| self.fail("write", error))?;
        self.file.sync_all().map_err(|error| self.fail("flush", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_tables_have_the_root_of_their_ids() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Folder::open(folder.path()).unwrap();
        let key = HashKey::from_bytes([3; 32]);
        let size = ByteLen((40 << 20) + 70_000);
        let table = LeafFile::create(&folder, "leaves", size).unwrap();
        let id = |n: u8| ChunkId([n; 32]);
        table.set_ids(ExtentIndex(3), &[id(1); 16]).unwrap();
        table.set_ids(ExtentIndex(7), &[id(2); 16]).unwrap();
        table.set_ids(ExtentIndex(40), &[id(3), id(4)]).unwrap();
        table.set_zero(ExtentIndex(7), 2).unwrap();
        let mut builder = RootBuilder::new(&key, size).unwrap();
        builder.push_zero_extents(3).unwrap();
        builder.push_extent(&[id(1); 16]).unwrap();
        builder.push_zero_extents(36).unwrap();
        builder.push_extent(&[id(3), id(4)]).unwrap();
        assert_eq!(table.root(&key).unwrap(), builder.finish().unwrap());
        assert_eq!(table.ids(ExtentIndex(40)).unwrap(), [id(3), id(4)]);
        assert_eq!(table.ids(ExtentIndex(41)).unwrap(), []);
    }
}
