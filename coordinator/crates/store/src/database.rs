//! Which database, and how it is opened so that one process alone has it.

mod postgres;
mod sqlite;

use std::fs::File;
use std::path::PathBuf;

use sqlx::AnyPool;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::StoreError;

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
    Folder { _lock: File },
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
