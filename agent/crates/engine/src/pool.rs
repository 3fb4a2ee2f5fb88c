//! Pools: folders of volumes that peers may push to and pull from.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use disk::{Disk, FileSource, SourceOptions};
use reduce::ContentIndex;
use reduce::dedup::{Location, VolumeSlot};
use rustix::fs::OFlags;
use volume::{ChunkId, ChunkIndex, ExtentIndex, KeyId};
use wire::{FailCode, VolumeFormat};

use crate::error::EngineError;
use crate::folder::Folder;
use crate::keys::Keys;
use crate::leaves::LeafFile;
use crate::target::meta::{Format, Meta, State};
use crate::target::place::{POOL_SIDECARS, check_name};
use crate::target::{Home, Request};

/// Folder of the disks of VMs. No volume's name begins with a dot.
const POOL_VMS: &str = ".vms";

/// Insertions into a full index after which no further leaf table is read.
const REFUSALS: u64 = 4096;
/// Most volumes that one session dedups against.
const MAX_DEDUP_VOLUMES: usize = 1024;

/// A pool.
#[derive(Clone, Debug)]
pub struct Pool {
    name: String,
    root: Folder,
    quota: Option<u64>,
    push: Vec<String>,
    pull: Vec<String>,
    /// Held from the check of the quota until the new volume counts in it.
    admission: Arc<tokio::sync::Mutex<()>>,
}

/// A sealed volume of a pool, as it is listed.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its record.
    pub meta: Meta,
}

impl Pool {
    /// Opens a pool's folder (which must be there) and makes up for what a crash left undone.
    pub fn open(
        name: &str,
        path: &Path,
        quota: Option<u64>,
        push: Vec<String>,
        pull: Vec<String>,
    ) -> Result<Self, EngineError> {
        let pool = Self {
            name: name.to_owned(),
            root: Folder::open(path)?,
            quota,
            push,
            pull,
            admission: Arc::default(),
        };
        for volume in pool.sidecars()?.folders()? {
            // One damaged sidecar does not keep the others from being served; whoever opens it is told the same.
            let published =
                Home::in_pool(&pool.root, name, &volume).and_then(|home| home.finish_publishing());
            if let Err(error) = published {
                tracing::error!(pool = name, %volume, error = %error.chain(), "a volume of the pool is passed over");
            }
        }
        Ok(pool)
    }

    /// The right to admit a volume: held from [`Self::home`] until its target is open, so that two sessions do not
    /// both fit into what is left of the quota.
    pub async fn admission(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.admission).lock_owned().await
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn sidecars(&self) -> Result<Folder, EngineError> {
        self.root.make_folder(POOL_SIDECARS)?.make_folder("volumes")
    }

    /// The folder for the disks of a VM that comes to run here, made when it is not there. They are no volumes: a disk
    /// that a guest writes to is never sealed. Others may pass through: each VM's QEMU is a user of its own.
    pub fn vm_folder(&self, vm: &str) -> Result<std::path::PathBuf, EngineError> {
        check_name(vm)?;
        let all = self.root.make_folder(POOL_VMS)?;
        all.open_to_pass()?;
        let folder = all.make_folder(vm)?;
        folder.open_to_pass()?;
        Ok(folder.path().to_owned())
    }

    /// The pool's hash keys.
    pub fn keys(&self) -> Result<Keys, EngineError> {
        Ok(Keys::new(self.root.make_folder(POOL_SIDECARS)?.make_folder("keys")?))
    }

    /// Refuses peers that may not push.
    pub fn allow_push(&self, peer: &str) -> Result<(), EngineError> {
        self.allow(&self.push, peer, "push to")
    }

    /// Refuses peers that may not pull.
    pub fn allow_pull(&self, peer: &str) -> Result<(), EngineError> {
        self.allow(&self.pull, peer, "pull from")
    }

    fn allow(&self, peers: &[String], peer: &str, what: &str) -> Result<(), EngineError> {
        if peers.iter().any(|allowed| allowed == peer) {
            return Ok(());
        }
        let list = what.split(' ').next().unwrap_or(what);
        let detail = format!(
            "{peer} may not {what} pool {}; add it to `{list}` of that pool in agent.toml there",
            self.name
        );
        Err(EngineError::refused(FailCode::NotAuthorised, detail))
    }

    /// All volumes that have a record, sealed or not.
    pub fn volumes(&self) -> Result<Vec<Listed>, EngineError> {
        let sidecars = self.sidecars()?;
        let mut listed = Vec::new();
        for name in sidecars.folders()? {
            match Meta::load(&sidecars.folder(&name)?, "meta") {
                Ok(Some(meta)) => listed.push(Listed { name, meta }),
                Ok(None) => {}
                Err(error) => tracing::warn!(volume = %name, %error, "a volume of the pool is passed over"),
            }
        }
        Ok(listed)
    }

    /// The home of a volume that is to be written, if the quota allows its logical size.
    pub fn home(&self, name: &str, request: &Request) -> Result<Home, EngineError> {
        check_name(name)?;
        if let Some(quota) = self.quota {
            let others: u64 =
                self.volumes()?.iter().filter(|other| other.name != name).map(|other| other.meta.size).sum();
            if others.saturating_add(request.size.0) > quota {
                let what = format!(
                    "pool {} has a quota of {quota} bytes, of which {others} are taken, and the volume has {}; raise `quota` in agent.toml there or remove volumes",
                    self.name, request.size.0
                );
                return Err(EngineError::refused(FailCode::Quota, what));
            }
        }
        Home::in_pool(&self.root, &self.name, name)
    }

    /// Opens a sealed volume to read. The format tells how.
    pub fn sealed(&self, name: &str) -> Result<(Meta, Folder), EngineError> {
        check_name(name)?;
        let missing = || {
            let what = format!("pool {} has no sealed volume {name}", self.name);
            EngineError::refused(FailCode::NotFound, what)
        };
        let sidecars = self.sidecars()?;
        if !sidecars.has(name)? {
            return Err(missing());
        }
        let meta = Meta::load(&sidecars.folder(name)?, "meta")?.ok_or_else(missing)?;
        if meta.state != State::Sealed {
            return Err(missing());
        }
        Ok((meta, self.root.clone()))
    }

    /// Opens a sealed raw volume to read.
    pub fn open_raw(&self, disk: &Disk, name: &str) -> Result<FileSource, EngineError> {
        check_name(name)?;
        let descriptor = self.root.open_at(name, OFlags::RDONLY)?;
        let label = format!("{}/{name}", self.name);
        Ok(disk.source_from(descriptor, label, SourceOptions::default())?)
    }

    /// Indexes the owner's sealed raw volumes: what the receiver can serve to itself.
    pub fn content(
        &self,
        request: &Request,
        key_id: KeyId,
        max_bytes: usize,
    ) -> Result<PoolContent, EngineError> {
        let mut content = PoolContent { index: ContentIndex::new(max_bytes), sources: Vec::new() };
        if request.format != VolumeFormat::Raw {
            return Ok(content);
        }
        let sidecars = self.sidecars()?;
        for Listed { name, meta } in self.volumes()? {
            let ours = meta.owner == request.owner && meta.key_id == key_id.to_string();
            if !ours || meta.state != State::Sealed || meta.format != Format::Raw {
                continue;
            }
            let number = content.sources.len() + 1;
            let slot = u16::try_from(number).ok().and_then(VolumeSlot::new);
            let Some(slot) = slot.filter(|_| number <= MAX_DEDUP_VOLUMES) else { break };
            let Some((table, _)) = LeafFile::open_sealed(&sidecars.folder(&name)?, "leaves")? else {
                continue;
            };
            // Without any lock: what is read here is hashed before it is used, and a volume that serves others must
            // not be kept from its own re-sync.
            let source = match self.root.open_at(&name, OFlags::RDONLY) {
                Ok(descriptor) => Arc::new(File::from(descriptor)),
                Err(error) => {
                    tracing::debug!(volume = %name, %error, "not used for dedup");
                    continue;
                }
            };
            let extents = table.size().extents();
            let mut at = table.next_extent(ExtentIndex(0))?;
            while at.0 < extents && content.index.refused() < REFUSALS {
                for (nth, id) in table.ids(at)?.iter().enumerate() {
                    if *id != ChunkId::ZERO {
                        let chunk = ChunkIndex(at.first_chunk().0 + nth as u64);
                        // A full index only costs bandwidth.
                        content.index.insert(id, Location { volume: slot, chunk });
                    }
                }
                at = table.next_extent(ExtentIndex(at.0 + 1))?;
            }
            content.sources.push(source);
        }
        Ok(content)
    }
}

/// What a receiver can serve to itself. Slot 0 is the volume that is being received; slot n the nth source.
#[derive(Debug)]
pub struct PoolContent {
    /// Where which chunk lies.
    pub index: ContentIndex,
    /// The sealed volumes.
    pub sources: Vec<Arc<File>>,
}

impl PoolContent {
    /// Nothing but what this session brings.
    #[must_use]
    pub fn of_session_only(max_bytes: usize) -> Self {
        Self { index: ContentIndex::new(max_bytes), sources: Vec::new() }
    }
}
