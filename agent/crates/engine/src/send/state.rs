//! What a sender remembers of a session, so that it goes on where it stopped: across lost tunnels in memory, across
//! crashes of the process in a folder.
//!
//! | file | what |
//! |---|---|
//! | `session` | session id, source, destination, the source's fingerprint, key id (JSON, version 1) |
//! | `journal` | extents that the receiver acknowledged, with their ids ([`crate::journal`]) |
//! | `leaves` | ids of everything read so far |
//! | `sent` | one bit an extent that was sent at least once: only for the count of bytes sent again |
//! | `lock` | held by the process that sends |
//!
//! What is remembered counts only while the source is provably the same (equal fingerprints) and the receiver uses the
//! same key; otherwise the receiver declares what it holds and everything is read again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use reduce::{HashKey, Root};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use session::{Change, ExtentSet};
use volume::{ByteLen, ChunkId, ExtentIndex, Fingerprint, Generation, KeyId, SessionId};
use wire::Grant;

use crate::error::EngineError;
use crate::folder::Folder;
use crate::journal::{self, HeaderV1, Journal};
use crate::leaves::LeafFile;
use crate::progress::Progress;

const RECORD: &str = "session";
const JOURNAL: &str = "journal";
const LEAVES: &str = "leaves";
const SENT: &str = "sent";

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    session: String,
    source: String,
    destination: String,
    size: u64,
    fingerprint: Option<Evidence>,
    key_id: Option<String>,
    generation: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Evidence {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl From<Fingerprint> for Evidence {
    fn from(print: Fingerprint) -> Self {
        let Fingerprint { device, inode, size, modified_ns, changed_ns } = print;
        Self { device, inode, size, modified_ns, changed_ns }
    }
}

/// A sender's memory of one session.
#[derive(Debug)]
pub struct SenderState {
    folder: Folder,
    record: Record,
    session: SessionId,
    /// What is settled under `key_id`, with ids in `leaves`.
    settled: ExtentSet,
    key_id: Option<KeyId>,
    journal: Option<Journal>,
    leaves: LeafFile,
    sent: File,
    resumed: bool,
    _lock: File,
}

impl SenderState {
    /// Opens the memory of copying `source` to `destination`, or starts one. `base` is where senders keep theirs.
    pub fn open(
        base: &Path,
        source: &str,
        destination: &str,
        size: ByteLen,
        fingerprint: Option<Fingerprint>,
    ) -> Result<Self, EngineError> {
        Self::open_with(base, source, destination, size, fingerprint, None)
    }

    /// Like [`Self::open`], for a session that the peer has named.
    pub fn open_as(
        base: &Path,
        source: &str,
        destination: &str,
        size: ByteLen,
        fingerprint: Option<Fingerprint>,
        session: SessionId,
    ) -> Result<Self, EngineError> {
        Self::open_with(base, source, destination, size, fingerprint, Some(session))
    }

    fn open_with(
        base: &Path,
        source: &str,
        destination: &str,
        size: ByteLen,
        fingerprint: Option<Fingerprint>,
        given: Option<SessionId>,
    ) -> Result<Self, EngineError> {
        let name = xxhash_rust::xxh3::xxh3_128(format!("{source}\0{destination}").as_bytes());
        let folder = Folder::open_or_create(&base.join("sending").join(format!("{name:032x}")))?;
        let Some(lock) = folder.lock()? else {
            let what = format!("another process copies {source} to {destination}; wait for it or stop it");
            return Err(EngineError::refused(wire::FailCode::Busy, what));
        };
        let evidence = fingerprint.map(Evidence::from);
        let old: Option<Record> = folder.read(RECORD)?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let old = old.filter(|old: &Record| {
            old.version == 1 && old.source == source && old.destination == destination && old.size == size.0
        });
        let session = match given.or_else(|| old.as_ref().and_then(|old| old.session.parse().ok())) {
            Some(session) => session,
            None => random_session()?,
        };
        let mut settled = ExtentSet::new(size.extents());
        let leaves = LeafFile::create(&folder, LEAVES, size)?;
        let mut journal = None;
        let mut key_id = None;
        if let Some(old) = &old
            && old.fingerprint.is_some()
            && old.fingerprint == evidence
        {
            let opened =
                Journal::open(&folder, JOURNAL, |entry| journal::apply(&entry, &mut settled, &leaves))?;
            match opened {
                Some((opened, header)) if header.session == session && header.size == size => {
                    key_id = Some(header.key_id);
                    journal = Some(opened);
                }
                _ => settled = ExtentSet::new(size.extents()),
            }
        }
        let resumed = old.is_some();
        let flags = if resumed {
            OFlags::RDWR | OFlags::CREATE
        } else {
            OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC
        };
        let sent = File::from(folder.open_at(SENT, flags)?);
        let record = Record {
            version: 1,
            session: session.to_string(),
            source: source.to_owned(),
            destination: destination.to_owned(),
            size: size.0,
            fingerprint: evidence,
            key_id: key_id.map(|id: KeyId| id.to_string()),
            generation: old.as_ref().map_or(0, |old| old.generation),
        };
        let state =
            Self { folder, record, session, settled, key_id, journal, leaves, sent, resumed, _lock: lock };
        state.store()?;
        Ok(state)
    }

    fn store(&self) -> Result<(), EngineError> {
        let bytes = serde_json::to_vec_pretty(&self.record).expect("a record has only strings and numbers");
        self.folder.replace(RECORD, &bytes)
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// An earlier process began it.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Key of what is remembered, all zero for nothing: what is offered to the receiver.
    #[must_use]
    pub fn offered_key(&self) -> KeyId {
        self.key_id.unwrap_or(KeyId([0; 16]))
    }

    /// The last generation that was granted.
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation(self.record.generation)
    }

    /// What is settled, if it was made with this key.
    pub(crate) fn remembered(&self, key: KeyId, size: ByteLen) -> ExtentSet {
        if self.key_id == Some(key) { self.settled.clone() } else { ExtentSet::new(size.extents()) }
    }

    /// An attempt begins under a grant.
    pub(crate) fn begin(&mut self, grant: &Grant) -> Result<(), EngineError> {
        // What the receiver lost, or compares anew, is settled again when it says so.
        if self.key_id != Some(grant.key_id) || self.journal.is_none() || !grant.resumed {
            let size = ByteLen(self.record.size);
            self.settled = ExtentSet::new(size.extents());
            let header = HeaderV1 { session: self.session, size, key_id: grant.key_id };
            self.journal = Some(Journal::create(&self.folder, JOURNAL, &header)?);
            self.key_id = Some(grant.key_id);
        }
        self.record.key_id = Some(grant.key_id.to_string());
        self.record.generation = grant.generation.0;
        self.store()
    }

    /// Notes that an extent goes out; counts it when it went out before.
    pub(crate) fn count_sent(
        &self,
        extent: ExtentIndex,
        bytes: u64,
        progress: &Progress,
    ) -> Result<(), EngineError> {
        let mut byte = [0];
        let (at, bit) = (extent.0 / 8, 1 << (extent.0 % 8));
        let fail = |error| EngineError::sidecar("note in", &self.folder.path().join(SENT), error);
        self.sent.read_at(&mut byte, at).map_err(fail)?;
        Progress::add(&progress.payload, bytes);
        if byte[0] & bit != 0 {
            Progress::add(&progress.resent, bytes);
            return Ok(());
        }
        byte[0] |= bit;
        self.sent.write_all_at(&byte, at).map_err(fail)
    }

    /// Notes what an extent holds.
    pub(crate) fn note_ids(&self, extent: ExtentIndex, ids: &[ChunkId]) -> Result<(), EngineError> {
        self.leaves.set_ids(extent, ids)
    }

    /// Notes that the receiver has made something durable.
    pub(crate) fn settle(&mut self, change: &Change) -> Result<(), EngineError> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        match change {
            Change::Extent { extent, .. } => {
                self.settled.insert(extent.0);
                journal.append(std::slice::from_ref(change))
            }
            Change::Zero { first, count } => {
                self.settled.insert_run(first.0, *count);
                self.leaves.set_zero(*first, *count)?;
                journal.append(std::slice::from_ref(change))
            }
            Change::Same { first, count } => {
                self.settled.insert_run(first.0, *count);
                for extent in first.0..first.0 + count {
                    let extent = ExtentIndex(extent);
                    let ids = self.leaves.ids(extent)?;
                    journal.append(&[Change::Extent { extent, ids }])?;
                }
                Ok(())
            }
        }
    }

    /// The root of what was read.
    pub(crate) fn root(&self, key: &HashKey) -> Result<Root, EngineError> {
        self.leaves.root(key)
    }

    /// Forgets sessions that nobody came back for: those whose record is older than `age`. Sessions that a process
    /// works on are left alone. Call it at start.
    pub fn forget_older_than(base: &Path, age: std::time::Duration) -> Result<u64, EngineError> {
        let sending = Folder::open_or_create(&base.join("sending"))?;
        let mut forgotten = 0;
        for name in sending.folders()? {
            let folder = sending.folder(&name)?;
            let Some(_lock) = folder.lock()? else { continue };
            let old = match folder.modified(RECORD)? {
                Some(time) => time.elapsed().is_ok_and(|since| since > age),
                // No record: forgotten before, or never begun.
                None => false,
            };
            if old {
                folder.clear(&[RECORD, JOURNAL, LEAVES, SENT])?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    /// The volume is sealed: nothing needs to be remembered any more.
    pub fn forget(self) -> Result<(), EngineError> {
        // The record first: without it the rest means nothing.
        self.folder.clear(&[RECORD, JOURNAL, LEAVES, SENT])
    }
}

/// A new session's id.
pub(crate) fn random_session() -> Result<SessionId, EngineError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| {
        EngineError::sidecar("draw random bytes for", "a session id".as_ref(), error.into())
    })?;
    Ok(SessionId(id))
}
