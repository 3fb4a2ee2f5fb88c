//! SQLite in a folder.

use std::fs::File;
use std::path::Path;

use sqlx::Executor;
use sqlx::any::AnyPoolOptions;
use tokio_util::sync::CancellationToken;

use super::{Hold, Opened, READERS};
use crate::{StoreError, StoreErrorKind};

/// Name of the database in its folder.
const DATABASE: &str = "coordinator.db";
const LOCK: &str = "lock";

pub(super) async fn open(folder: &Path) -> Result<Opened, StoreError> {
    let lock = lock(folder)?;
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
    let hold = Hold::Folder { _lock: lock };
    Ok(Opened { readers, writer, hold, lost: CancellationToken::new(), shared: false })
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
