//! The journal of one session on one side: which extents are settled, and what they hold.
//!
//! Append-only. On the receiver a record is written and flushed after the data that it speaks of was flushed, and only
//! then acknowledged; on the sender it is written when the acknowledgement comes. After a crash it is replayed up to
//! the first record that is torn, corrupt or out of chain, and cut there: what follows was never acknowledged.
//!
//! One journal instead of a journal plus a separately flushed leaf table: the ids ride in the records (0.05 % of the
//! volume), so a commit costs one fdatasync for the data and one for the journal, and the leaf table is rebuilt from
//! here after a crash.

mod record;

use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom, Write};

use rustix::fs::OFlags;
use session::Change;

pub use record::{Entry, HEADER_LEN, HeaderV1, Replay, ReplayEnd, encode_change, encode_dirty, replay};
use volume::ExtentIndex;

use crate::error::EngineError;
use crate::folder::Folder;

/// A journal that is open for appending.
#[derive(Debug)]
pub struct Journal {
    file: File,
    name: String,
    /// Checksum of the last record: the next one is chained to it.
    chain: u64,
    buffer: Vec<u8>,
}

impl Journal {
    /// Starts an empty journal, durably, in place of any other of that name.
    pub fn create(folder: &Folder, name: &str, header: &HeaderV1) -> Result<Self, EngineError> {
        let bytes = header.encode();
        folder.replace(name, &bytes)?;
        let fail = |error| EngineError::sidecar("open", &folder.path().join(name), error);
        let mut file = File::from(folder.open_at(name, OFlags::RDWR)?);
        file.seek(SeekFrom::End(0)).map_err(fail)?;
        Ok(Self {
            file,
            name: folder.path().join(name).display().to_string(),
            chain: header.chain(),
            buffer: Vec::new(),
        })
    }

    /// Opens a journal to append, cut after its last whole record; `take` gets each whole record, oldest first. `None`
    /// when there is none, or its header is not intact: then nothing in it counts.
    pub fn open(
        folder: &Folder,
        name: &str,
        take: impl FnMut(Entry) -> Result<(), EngineError>,
    ) -> Result<Option<(Self, HeaderV1)>, EngineError> {
        if !folder.has(name)? {
            return Ok(None);
        }
        let fail = |op| {
            let path = folder.path().join(name);
            move |error| EngineError::sidecar(op, &path, error)
        };
        let mut file = File::from(folder.open_at(name, OFlags::RDWR)?);
        let mut take = take;
        let mut failed = None;
        let replayed = replay(BufReader::with_capacity(256 << 10, &file), |entry| {
            if failed.is_none() {
                failed = take(entry).err();
            }
        })
        .map_err(fail("read"))?;
        if let Some(error) = failed {
            return Err(error);
        }
        let Some(Replay { header, end }) = replayed else {
            tracing::warn!(path = %folder.path().display(), "the journal's header is torn; starting again");
            return Ok(None);
        };
        if end.torn {
            tracing::info!(
                kept = end.len,
                "the journal ends in a torn record; what follows was never acknowledged"
            );
            file.set_len(end.len).map_err(fail("cut"))?;
        }
        file.seek(SeekFrom::Start(end.len)).map_err(fail("seek in"))?;
        let name = folder.path().join(name).display().to_string();
        Ok(Some((Self { file, name, chain: end.chain, buffer: Vec::new() }, header)))
    }

    /// Appends records. They are with the kernel when this returns: they survive the process, not yet the host.
    pub fn append(&mut self, changes: &[Change]) -> Result<(), EngineError> {
        self.buffer.clear();
        for change in changes {
            self.chain = encode_change(change, self.chain, &mut self.buffer);
        }
        self.write()
    }

    /// Appends the record that nothing is known of these extents any more.
    pub fn append_dirty(&mut self, first: ExtentIndex, count: u64) -> Result<(), EngineError> {
        self.buffer.clear();
        self.chain = encode_dirty(first, count, self.chain, &mut self.buffer);
        self.write()
    }

    fn write(&mut self) -> Result<(), EngineError> {
        self.file
            .write_all(&self.buffer)
            .map_err(|error| EngineError::sidecar("append to", self.name.as_ref(), error))
    }

    /// Makes what was appended durable.
    pub fn sync(&self) -> Result<(), EngineError> {
        self.file.sync_data().map_err(|error| EngineError::sidecar("flush", self.name.as_ref(), error))
    }

    /// Length in bytes.
    pub fn bytes(&self) -> Result<u64, EngineError> {
        let metadata = self.file.metadata();
        Ok(metadata.map_err(|error| EngineError::sidecar("look at", self.name.as_ref(), error))?.len())
    }
}

/// Carries a replayed record over to a set of settled extents and a leaf table.
pub(crate) fn apply(
    entry: &Entry,
    settled: &mut session::ExtentSet,
    leaves: &crate::leaves::LeafFile,
) -> Result<(), EngineError> {
    match entry {
        Entry::Settled(change) => {
            match change {
                Change::Extent { extent, .. } => {
                    settled.insert(extent.0);
                }
                Change::Zero { first, count } => settled.insert_run(first.0, *count),
                Change::Same { .. } => {}
            }
            leaves.apply(change)
        }
        Entry::Dirty { first, count } => {
            for extent in first.0..first.0 + count {
                settled.remove(extent);
            }
            Ok(())
        }
    }
}
