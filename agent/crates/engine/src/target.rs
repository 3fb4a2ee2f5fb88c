//! The receiving side's volume: where it lies, who owns it, what of it is durable, and how it becomes visible.
//!
//! Every volume has a *sidecar* folder:
//!
//! | file | what |
//! |---|---|
//! | `meta` | [`meta::Meta`]: owner, generation, size, state; replaced as a whole |
//! | `journal` | settled extents of the session that is under way ([`crate::journal`]) |
//! | `leaves` | leaf table of the last sealed content |
//! | `leaves.work` | leaf table that is being built |
//! | `data` | the volume itself while it is not sealed (files only) |
//! | `receipt` | the last receipt |
//! | `lock` | held while a session works on the volume |
//!
//! A file is visible under its own name only while it is sealed: it is built in the sidecar and renamed out when it is
//! sealed; a re-sync writes `meta` (receiving), renames it back in, and only then writes to it. `meta` is the commit
//! point of sealing; a rename that a crash left undone is made up for when the sidecar is next opened.

pub mod meta;
pub mod place;

use std::fs::File;
use std::sync::Arc;

use disk::{Disk, SinkOptions, SourceOptions};
use hypervisor::qemu_nbd;
use reduce::leaf_table;
use reduce::{HashKey, Root};
use rustix::fs::OFlags;
use session::{Change, ExtentSet};
use volume::{ByteLen, Content, ExtentIndex, Generation, KeyId, Sink};
use wire::{FailCode, Mode, VolumeFormat};

use crate::error::EngineError;
use crate::folder::Folder;
use crate::journal::{self, HeaderV1, Journal};
use crate::leaves::LeafFile;
use meta::{Format, Meta, Stamp, State};
pub use place::Home;
use place::Place;
use receipt::Receipt;

const META: &str = "meta";
const JOURNAL: &str = "journal";
const LEAVES: &str = "leaves";
const LEAVES_WORK: &str = "leaves.work";
const DATA: &str = "data";
const RECEIPT: &str = "receipt";

/// What a session asks of a target.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who will own it.
    pub owner: String,
    /// Which session.
    pub session: volume::SessionId,
    /// What the target may hold.
    pub mode: Mode,
    /// How it is to be stored.
    pub format: VolumeFormat,
    /// Length of the volume.
    pub size: ByteLen,
    /// Generation in which the sender last worked on this session; 0 for never.
    pub generation: Generation,
    /// Key of what the sender remembers, all zero for nothing.
    pub remembered_key: KeyId,
}

/// What the target holds at the start of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// Nothing: the volume is new.
    Nothing,
    /// What an earlier attempt journalled; nothing else is known.
    Journalled,
    /// An old copy whose sealed leaf table is believed for all that the journal does not know.
    Sealed,
    /// An old copy, or an interrupted re-sync: what the journal does not know must be read.
    Unread,
    /// The sealed volume that this very session made: only the receipt was lost.
    Done,
}

/// A target that is open for one attempt.
pub struct Target {
    home: Home,
    meta: Meta,
    key: HashKey,
    sink: Option<Arc<dyn Sink>>,
    export: Option<qemu_nbd::Export>,
    journal: Journal,
    leaves: LeafFile,
    old: Option<LeafFile>,
    durable: ExtentSet,
    before: Before,
    /// The journal is of the session that asks: what its sender remembers is about this target.
    own_journal: bool,
    zeroed: bool,
    _lock: File,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({}, {:?}, {:?})", self.home.label(), self.before, self.durable)
    }
}

fn corrupt(home: &Home, what: &str) -> EngineError {
    EngineError::Corrupt(format!("{what} in {}", home.sidecar().path().display()))
}

impl Target {
    /// Opens the target under a new generation and the lock, checks ownership, mode and size, and reads the journal.
    /// Blocks on the file system.
    fn prepare(home: Home, disk: &Disk, key: HashKey, request: &Request) -> Result<Prepared, EngineError> {
        let sidecar = home.sidecar();
        let Some(lock) = wait_for_lock(sidecar)? else {
            let what = format!("another session works on {}; wait for it or cancel it", home.label());
            return Err(EngineError::refused(FailCode::Busy, what));
        };
        home.finish_publishing()?;
        let old_meta = Meta::load(sidecar, META)?;
        let mut before = Self::judge(&home, old_meta.as_ref(), request, key.id())?;
        if let Some(meta) = &old_meta
            && meta.key_id != key.id().to_string()
        {
            return Err(corrupt(
                &home,
                "the volume was written under another hash key; there is a foreign sidecar",
            ));
        }
        let mut meta = old_meta.clone().unwrap_or_else(|| Meta::new(request, key.id()));
        meta.generation += 1;
        if before == Before::Done {
            meta.store(sidecar, META)?;
            let Some((leaves, _)) = LeafFile::open_sealed(sidecar, LEAVES)? else {
                return Err(corrupt(&home, "the leaf table of a sealed volume is missing"));
            };
            let mut durable = ExtentSet::new(request.size.extents());
            durable.insert_run(0, request.size.extents());
            let header = HeaderV1 { session: request.session, size: request.size, key_id: key.id() };
            let journal = Journal::create(sidecar, JOURNAL, &header)?;
            let (old, own_journal) = (None, true);
            return Ok(Prepared {
                home,
                meta,
                key,
                journal,
                leaves,
                old,
                durable,
                before,
                own_journal,
                lock,
            });
        }
        let old = match before {
            Before::Sealed => LeafFile::open_sealed(sidecar, LEAVES)?.map(|(table, _)| table),
            _ => None,
        };
        if before == Before::Sealed && old.is_none() {
            let what = "the sealed leaf table is missing or damaged; use --resync full";
            return Err(EngineError::refused(FailCode::NotTrusted, what));
        }
        // Whatever may still refuse comes before the volume is taken off the shelf.
        probe(&home, disk, request)?;

        // A journal beside a sealed volume is a left-over of the session that sealed it, and one whose data is gone
        // speaks of nothing: neither may ever be read again, so it goes before `meta` says `receiving`.
        let receiving = old_meta.as_ref().is_some_and(|meta| meta.state == State::Receiving);
        let device = old_meta.as_ref().and_then(|meta| meta.device.as_deref());
        let keep = receiving && home.holds_what_was_journalled(device)?;
        if !keep {
            sidecar.remove(JOURNAL)?;
            sidecar.sync()?;
            if before == Before::Journalled {
                before = if home.occupied()? { Before::Unread } else { Before::Nothing };
            }
        }
        meta.begin(request);
        meta.device = home.identity();
        meta.store(sidecar, META)?;
        home.hide()?;

        let leaves = LeafFile::create(sidecar, LEAVES_WORK, request.size)?;
        let mut durable = ExtentSet::new(request.size.extents());
        let resumed = if keep {
            Journal::open(sidecar, JOURNAL, |entry| journal::apply(&entry, &mut durable, &leaves))?
        } else {
            None
        };
        let header = HeaderV1 { session: request.session, size: request.size, key_id: key.id() };
        let journal = match resumed {
            Some((journal, old)) if old.size == header.size && old.key_id == header.key_id => journal,
            _ => {
                durable = ExtentSet::new(request.size.extents());
                Journal::create(sidecar, JOURNAL, &header)?
            }
        };
        let own_journal = old_meta.is_some_and(|meta| meta.session == request.session.to_string());
        Ok(Prepared { home, meta, key, journal, leaves, old, durable, before, own_journal, lock })
    }

    /// What the target holds, or why the session may not have it.
    fn judge(
        home: &Home,
        meta: Option<&Meta>,
        request: &Request,
        key_id: KeyId,
    ) -> Result<Before, EngineError> {
        let label = home.label();
        let Some(meta) = meta else {
            return match (home.occupied()?, request.mode, home.is_pool()) {
                (false, _, _) => Ok(Before::Nothing),
                (true, Mode::Create, _) => Err(EngineError::refused(
                    FailCode::Exists,
                    format!(
                        "{label} exists; use --resync full to bring it up to date, or choose another name"
                    ),
                )),
                (true, _, true) => Err(EngineError::refused(
                    FailCode::NotOwner,
                    format!(
                        "{label} was not put there by novaferry, so it has no owner; choose another name"
                    ),
                )),
                (true, Mode::ResyncTrusted, false) => Err(EngineError::refused(
                    FailCode::NotTrusted,
                    format!("{label} has no sealed leaf table; use --resync full"),
                )),
                (true, Mode::ResyncFull, false) => Ok(Before::Unread),
            };
        };
        if meta.owner != request.owner {
            return Err(EngineError::refused(
                FailCode::NotOwner,
                format!("{label} belongs to {}; choose another name", meta.owner),
            ));
        }
        if meta.format != request.format.into() {
            let what = format!("{label} is stored as {}; name the same format", meta.format.as_str());
            return Err(EngineError::refused(FailCode::Unsupported, what));
        }
        let same_session = meta.session == request.session.to_string();
        // A sender that slept while another session of its owner went over the volume (design rule 4).
        if !same_session && request.generation.0 != 0 && request.generation.0 < meta.generation {
            let what = format!(
                "{label} was written by a newer session meanwhile (generation {} here, {} there); start a new one",
                meta.generation, request.generation.0
            );
            return Err(EngineError::refused(FailCode::StaleGeneration, what));
        }
        let same_size = meta.size == request.size.0;
        if meta.format == Format::Qcow2 && !same_size {
            let what = format!(
                "{label} is a qcow2 image of {} bytes and the volume has {}; an image keeps its size, so choose another name",
                meta.size, request.size.0
            );
            return Err(EngineError::refused(FailCode::Unsupported, what));
        }
        // A volume that this very session sealed, if the sender can only have lost the receipt: it remembers what it
        // sent, or it wants what could be made only once.
        let asks_again = same_session
            && same_size
            && (request.mode == Mode::Create || request.remembered_key == key_id)
            && home.stamp()? == meta.stamp;
        match (meta.state, request.mode) {
            (State::Sealed, _) if asks_again => Ok(Before::Done),
            (State::Sealed, Mode::Create) => Err(EngineError::refused(
                FailCode::Exists,
                format!(
                    "{label} exists and is sealed; use --resync trusted to bring it up to date, or choose another name"
                ),
            )),
            (State::Sealed, Mode::ResyncTrusted) => {
                // Devices and exports have no stamp: nobody can say who wrote to them meanwhile.
                if meta.stamp.is_none() || home.stamp()? != meta.stamp {
                    let what =
                        format!("{label} may have been changed after it was sealed; use --resync full");
                    return Err(EngineError::refused(FailCode::NotTrusted, what));
                }
                Ok(Before::Sealed)
            }
            (State::Sealed, Mode::ResyncFull) => Ok(Before::Unread),
            // An unfinished volume of the same owner: what its journal knows is worth keeping, whichever session
            // wrote it. What was begun as a re-sync holds old bytes everywhere else.
            (State::Receiving, _) if !same_size => Ok(Before::Unread),
            (State::Receiving, _) if meta.resync => Ok(Before::Unread),
            (State::Receiving, _) => Ok(Before::Journalled),
        }
    }

    /// Opens the target for one attempt.
    pub async fn open(home: Home, disk: &Disk, key: HashKey, request: &Request) -> Result<Self, EngineError> {
        let (asked, of_disk) = (request.clone(), disk.clone());
        let prepared = tokio::task::spawn_blocking(move || Self::prepare(home, &of_disk, key, &asked))
            .await
            .map_err(|error| EngineError::Corrupt(format!("opening the target panicked: {error}")))??;
        let Prepared { home, meta, key, journal, leaves, old, durable, mut before, own_journal, lock } =
            prepared;
        let mut export = None;
        let mut zeroed = false;
        let sink: Option<Arc<dyn Sink>> = if before == Before::Done {
            None
        } else {
            let opened = open_sink(&home, disk, request).await?;
            export = opened.export;
            // An interrupted first attempt may have left anything where its journal is silent.
            zeroed = opened.sink.content() == Content::Zero && before == Before::Nothing;
            if opened.sink.geometry().size < request.size {
                let what = format!(
                    "{} has {} bytes and the volume {}; give a target that is at least as large",
                    home.label(),
                    opened.sink.geometry().size.0,
                    request.size.0
                );
                return Err(EngineError::refused(FailCode::TooSmall, what));
            }
            if before == Before::Nothing && !zeroed && request.mode != Mode::Create {
                before = Before::Unread;
            }
            Some(opened.sink)
        };
        Ok(Self {
            home,
            meta,
            key,
            sink,
            export,
            journal,
            leaves,
            old,
            durable,
            before,
            own_journal,
            zeroed,
            _lock: lock,
        })
    }

    /// Where it is, for people.
    #[must_use]
    pub fn label(&self) -> &str {
        self.home.label()
    }

    /// This attempt's generation.
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation(self.meta.generation)
    }

    /// The owner's hash key.
    #[must_use]
    pub fn key(&self) -> &HashKey {
        &self.key
    }

    /// What the target holds at the start.
    #[must_use]
    pub fn before(&self) -> Before {
        self.before
    }

    /// The journal is of the session that asks.
    #[must_use]
    pub fn is_own_journal(&self) -> bool {
        self.own_journal
    }

    /// Reads as zero wherever nothing was written.
    #[must_use]
    pub fn is_zeroed(&self) -> bool {
        self.zeroed
    }

    /// What the journal knows as durable.
    #[must_use]
    pub fn durable(&self) -> &ExtentSet {
        &self.durable
    }

    /// The volume to write to; `None` when it is sealed already.
    #[must_use]
    pub fn sink(&self) -> Option<Arc<dyn Sink>> {
        self.sink.clone()
    }

    /// The journal's ids of a durable extent, or the sealed table's of any.
    pub fn known_ids(&self, extent: ExtentIndex) -> Result<Option<Vec<volume::ChunkId>>, EngineError> {
        if self.durable.contains(extent.0) {
            return self.leaves.ids(extent).map(Some);
        }
        match &self.old {
            Some(old) => {
                let ids = old.ids(extent)?;
                let wanted =
                    extent.range(ByteLen(self.meta.size)).map_or(0, |r| r.len().div_ceil(volume::CHUNK));
                let tail_moved = old.size().0 != self.meta.size && extent.0 + 1 >= old.size().extents();
                Ok((ids.len() as u64 == wanted && !tail_moved).then_some(ids))
            }
            None => Ok(None),
        }
    }

    /// Length of the run of extents from `extent` on, of at most `limit`, that are all zero in the sealed table.
    pub fn known_zero_run(&self, extent: ExtentIndex, limit: u64) -> Result<u64, EngineError> {
        let Some(old) = &self.old else { return Ok(0) };
        if old.size().0 != self.meta.size {
            return Ok(0);
        }
        let data = old.next_extent(extent)?.0.min(self.durable.first_present(extent.0));
        Ok((data - extent.0).min(limit))
    }

    /// Makes changes durable: call after the data was flushed. Blocks.
    pub fn commit(&mut self, changes: &[Change]) -> Result<(), EngineError> {
        // The sealed table says it already; the root will tell whether the sender agrees.
        if self.before == Before::Done {
            return Ok(());
        }
        for change in changes {
            self.leaves.apply(change)?;
        }
        self.journal.append(changes)?;
        self.journal.sync()
    }

    /// Takes back what the journal says of these extents, durably: call before they are overwritten. Blocks.
    pub fn mark_dirty(&mut self, first: ExtentIndex, count: u64) -> Result<(), EngineError> {
        self.journal.append_dirty(first, count)?;
        self.journal.sync()
    }

    /// Forgets what the journal says: the volume's root is not the source's, and no one knows which extent is to blame.
    /// Blocks.
    pub fn distrust(&mut self) -> Result<(), EngineError> {
        let session = self.meta.session.parse().map_err(|error| {
            corrupt(&self.home, &format!("the session in the metadata is damaged ({error})"))
        })?;
        let header = HeaderV1 { session, size: ByteLen(self.meta.size), key_id: self.key.id() };
        self.journal = Journal::create(self.home.sidecar(), JOURNAL, &header)?;
        Ok(())
    }

    /// Length of the journal in bytes.
    pub fn journal_len(&self) -> Result<u64, EngineError> {
        self.journal.bytes()
    }

    /// The root of what the target holds. Blocks.
    pub fn root(&self) -> Result<Root, EngineError> {
        self.leaves.root(&self.key)
    }

    /// Ids of an extent of the table that is being built.
    pub fn built_ids(&self, extent: ExtentIndex) -> Result<Vec<volume::ChunkId>, EngineError> {
        self.leaves.ids(extent)
    }

    /// The receipt of a volume that this session has sealed already.
    pub fn existing_receipt(&self) -> Result<Option<Receipt>, EngineError> {
        Ok(self.home.sidecar().read(RECEIPT)?.map(|bytes| Receipt::parse(&bytes)).transpose()?)
    }

    /// Seals the volume: leaf table, receipt and `meta` become durable, then the file gets its name. The target must
    /// have been flushed.
    pub async fn seal(mut self, root: Root, receipt: &Receipt) -> Result<(), EngineError> {
        // The exporter must have closed the image before it is renamed and stamped.
        drop(self.sink.take());
        if let Some(export) = self.export.take() {
            let label = self.home.label().to_owned();
            export.close().await.map_err(|error| error.in_volume(volume::Op::Close, label, None))?;
        }
        let json = receipt.to_json();
        tokio::task::spawn_blocking(move || {
            let sidecar = self.home.sidecar();
            self.leaves.seal(&leaf_table::HeaderV1 {
                size: ByteLen(self.meta.size),
                key_id: self.key.id(),
                generation: Generation(self.meta.generation),
                root: Some(root),
            })?;
            sidecar.rename(LEAVES_WORK, sidecar, LEAVES)?;
            sidecar.replace(RECEIPT, &json)?;
            self.meta.seal(root, self.home.stamp()?);
            self.meta.store(sidecar, META)?;
            self.home.finish_publishing()?;
            sidecar.remove(JOURNAL)
        })
        .await
        .map_err(|error| EngineError::Corrupt(format!("sealing panicked: {error}")))?
    }
}

/// Opens a file as a source and as a sink, and lets go of it: finds out who else has it while it can still stay as it is.
fn probe(home: &Home, disk: &Disk, request: &Request) -> Result<(), EngineError> {
    let Some(readable) = home.open_file(OFlags::RDONLY)? else { return Ok(()) };
    if request.format == VolumeFormat::Qcow2 {
        // qemu-nbd locks images itself.
        return Ok(());
    }
    drop(disk.source_from(readable, home.label(), SourceOptions::default())?);
    if let Some(writable) = home.open_file(OFlags::RDWR)? {
        drop(disk.sink_from(writable, home.label(), SinkOptions::default())?);
    }
    Ok(())
}

/// Tries for the lock as long as a session whose tunnel was lost may take to finish the commit that it is in.
fn wait_for_lock(sidecar: &Folder) -> Result<Option<File>, EngineError> {
    const TRIES: u32 = 100;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
    for _ in 0..TRIES {
        if let Some(lock) = sidecar.lock()? {
            return Ok(Some(lock));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(None)
}

struct Prepared {
    home: Home,
    meta: Meta,
    key: HashKey,
    journal: Journal,
    leaves: LeafFile,
    old: Option<LeafFile>,
    durable: ExtentSet,
    before: Before,
    own_journal: bool,
    lock: File,
}

struct Opened {
    sink: Arc<dyn Sink>,
    export: Option<qemu_nbd::Export>,
}

/// Opens, and makes where it is not there, what the home names.
async fn open_sink(home: &Home, disk: &Disk, request: &Request) -> Result<Opened, EngineError> {
    let label = home.label().to_owned();
    match home.place() {
        Place::Device { path } => {
            let options = SinkOptions { size: Some(request.size), fresh: false };
            Ok(Opened { sink: Arc::new(disk.open_sink(path, options)?), export: None })
        }
        Place::Nbd { uri } => {
            let options = hypervisor::nbd::client::Options::default();
            let volume = hypervisor::nbd::NbdVolume::open(uri, hypervisor::nbd::Access::ReadWrite, &options)
                .await
                .map_err(|error| error.in_volume(volume::Op::Open, label, None))?;
            Ok(Opened { sink: Arc::new(volume), export: None })
        }
        Place::File { .. } => {
            let sidecar = home.sidecar();
            let there = sidecar.has(DATA)?;
            if request.format == VolumeFormat::Qcow2 {
                return open_qcow2(home, request, there).await;
            }
            if there {
                // As a source first: refused when somebody else has it open for writing.
                let look = sidecar.open_at(DATA, OFlags::RDONLY)?;
                drop(disk.source_from(look, label.clone(), SourceOptions::default())?);
            }
            let flags = if there { OFlags::RDWR } else { OFlags::RDWR | OFlags::CREATE | OFlags::EXCL };
            let descriptor = sidecar.open_at(DATA, flags)?;
            let options = SinkOptions { size: Some(request.size), fresh: !there };
            let sink = disk.sink_from(descriptor, label, options)?;
            sidecar.sync()?;
            Ok(Opened { sink: Arc::new(sink), export: None })
        }
    }
}

async fn open_qcow2(home: &Home, request: &Request, there: bool) -> Result<Opened, EngineError> {
    let fail =
        |error: hypervisor::Error| EngineError::from(error.in_volume(volume::Op::Open, home.label(), None));
    let path = home.sidecar().path().join(DATA);
    let exporter = if there {
        qemu_nbd::Exporter::writable(&path, "qcow2")
    } else {
        qemu_nbd::Exporter::create_qcow2(&path, request.size.0).await.map_err(fail)?
    };
    let export = exporter.start().await.map_err(fail)?;
    let volume = export.volume().await.map_err(fail)?;
    let volume = if there { volume } else { volume.freshly_created() };
    Ok(Opened { sink: Arc::new(volume), export: Some(export) })
}

/// The stamp of a file: what changes when somebody writes to it after it was sealed.
fn stamp_of(file: &File) -> std::io::Result<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata()?;
    Ok(Stamp {
        inode: metadata.ino(),
        size: metadata.size(),
        modified: metadata.mtime(),
        modified_nanos: metadata.mtime_nsec(),
    })
}
