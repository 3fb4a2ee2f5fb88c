//! Which database, and how it is opened so that one process alone has it.

mod postgres;
mod sqlite;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sqlx::AnyPool;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::{StoreError, StoreErrorKind};

/// Connections that read at once.
const READERS: u32 = 4;

/// Where the coordinator remembers.
#[derive(Clone, PartialEq, Eq)]
pub enum Database {
    /// A SQLite database in this folder, for one coordinator.
    Folder(PathBuf),
    /// A PostgreSQL database, `postgres://…`, for several coordinators of which one leads. It may hold a password.
    Postgres(String),
}

/// A password is nobody's business.
impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(folder) => f.debug_tuple("Folder").field(folder).finish(),
            Self::Postgres(_) => f.write_str("Postgres(..)"),
        }
    }
}

/// A database that this process has for itself.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) readers: AnyPool,
    pub(crate) writer: AnyPool,
    pub(crate) hold: Hold,
    /// Ends when the hold is lost.
    pub(crate) lost: CancellationToken,
    /// Others may come to have it while this process lives.
    pub(crate) shared: bool,
}

/// What keeps others out while it lives.
#[derive(Debug)]
pub(crate) enum Hold {
    Folder { _lock: FolderLock },
    Postgres { watch: AbortHandle },
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Self::Postgres { watch } = self {
            watch.abort();
        }
    }
}

impl Database {
    pub(crate) async fn open(&self) -> Result<Opened, StoreError> {
        sqlx::any::install_default_drivers();
        match self {
            Self::Folder(folder) => sqlite::open(folder).await,
            Self::Postgres(url) => postgres::open(url).await,
        }
    }
}

/// A state folder that this process has for itself, until it is dropped.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

/// Its file.
const LOCK: &str = "lock";

impl FolderLock {
    /// Locks a folder; does not wait. A file that root makes for it belongs to the folder's owner.
    ///
    /// # Errors
    /// [`StoreErrorKind::Busy`] when a coordinator uses it; [`StoreErrorKind::Unusable`].
    pub fn take(folder: &Path) -> Result<Self, StoreError> {
        let open = || {
            let file = File::create(folder.join(LOCK))?;
            let owner = std::fs::metadata(folder)?;
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
            }
            Ok(file)
        };
        let file = open().map_err(|error: std::io::Error| {
            StoreError::unusable(format!("cannot lock the folder {}", folder.display())).caused_by(error)
        })?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            StoreError::new(StoreErrorKind::Busy, "another coordinator uses this state folder; stop it first")
                .caused_by(std::io::Error::from(error))
        })?;
        Ok(Self { _file: file })
    }
}
