//! SQLite in a folder.

use std::path::Path;

use sqlx::Executor;
use sqlx::any::AnyPoolOptions;
use tokio_util::sync::CancellationToken;

use super::{FolderLock, Hold, Opened, READERS};
use crate::{DATABASE, StoreError};

pub(super) async fn open(folder: &Path) -> Result<Opened, StoreError> {
    let lock = FolderLock::take(folder)?;
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
