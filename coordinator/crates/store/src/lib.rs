//! What the coordinator remembers: a SQLite database beside it.
//!
//! Everything that changes something is one transaction with its entry in the audit log: neither is there without the
//! other. SQLite has one writer; so has [`Store`], and it holds a lock on the folder while it lives.

mod audit;
mod error;
mod facts;
mod hosts;
mod links;
mod migrations;
mod tokens;

use std::fs::File;
use std::path::Path;

use sqlx::any::AnyPoolOptions;
use sqlx::{Any, AnyPool, Executor, Transaction};
use tokio::sync::{Mutex, MutexGuard};

pub use error::{StoreError, StoreErrorKind};
pub use hosts::{Certificate, RevokedCertificate};
pub use links::{LinkProbe, MOST_PROBES};
pub use migrations::Page;
pub use tokens::{ApiToken, JoinGrant};

/// Connections that read at once.
const READERS: u32 = 4;
/// Name of the database in its folder.
const DATABASE: &str = "coordinator.db";
const LOCK: &str = "lock";

/// The database, open.
#[derive(Debug)]
pub struct Store {
    readers: AnyPool,
    writer: AnyPool,
    /// A transaction that waits for another here gets its turn in order, and never meets a busy database.
    turn: Mutex<()>,
    _lock: File,
}

/// A transaction, and its turn. Dropped without [`Work::commit`] it changes nothing.
#[derive(Debug)]
struct Work<'a> {
    transaction: Transaction<'a, Any>,
    _turn: MutexGuard<'a, ()>,
}

impl Work<'_> {
    async fn commit(self) -> Result<(), StoreError> {
        Ok(self.transaction.commit().await?)
    }
}

impl Store {
    /// Opens the database in a folder; makes it, or brings it up to this release's schema.
    ///
    /// # Errors
    /// [`StoreErrorKind::Busy`] when another coordinator uses it; [`StoreErrorKind::Newer`] when a newer release has
    /// used it; what the file system or SQLite says.
    pub async fn open(folder: &Path) -> Result<Self, StoreError> {
        let lock = lock(folder)?;
        sqlx::any::install_default_drivers();
        let path = folder.join(DATABASE);
        let path = path.to_str().ok_or_else(|| StoreError::unusable("the database's path is not UTF-8"))?;
        let options = |most: u32| {
            AnyPoolOptions::new().max_connections(most).min_connections(1).after_connect(|connection, _| {
                // WAL survives a killed process at any rate; FULL survives a lost host, too.
                Box::pin(async move {
                    for pragma in [
                        "PRAGMA journal_mode = WAL",
                        "PRAGMA synchronous = FULL",
                        "PRAGMA foreign_keys = ON",
                        "PRAGMA busy_timeout = 10000",
                    ] {
                        connection.execute(pragma).await?;
                    }
                    Ok(())
                })
            })
        };
        let writer = options(1).connect(&format!("sqlite://{path}?mode=rwc")).await?;
        sqlx::migrate!("./migrations").run(&writer).await?;
        let readers = options(READERS).connect(&format!("sqlite://{path}?mode=rw")).await?;
        Ok(Self { readers, writer, turn: Mutex::new(()), _lock: lock })
    }

    /// Waits for what runs and closes the database.
    pub async fn close(&self) {
        let _turn = self.turn.lock().await;
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn work(&self) -> Result<Work<'_>, StoreError> {
        let turn = self.turn.lock().await;
        Ok(Work { transaction: self.writer.begin().await?, _turn: turn })
    }
}

fn lock(folder: &Path) -> Result<File, StoreError> {
    let file = File::create(folder.join(LOCK))
        .map_err(|error| StoreError::unusable("lock the folder").caused_by(error))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        StoreError::new(StoreErrorKind::Busy, "another coordinator uses this state folder")
            .caused_by(std::io::Error::from(error))
    })?;
    Ok(file)
}

#[cfg(test)]
mod tests;
