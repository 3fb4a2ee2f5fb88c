//! What the coordinator remembers: a SQLite database beside it, or PostgreSQL for several coordinators.
//!
//! Everything that changes something is one transaction with its entry in the audit log: neither is there without the
//! other. One process has the database at a time: it holds a lock on the folder of a SQLite database, and an advisory
//! lock of PostgreSQL. Whoever has lost that lock without knowing it yet cannot write: each transaction looks whether a
//! newer leader has begun.

mod audit;
mod backup;
mod claims;
mod counts;
mod database;
mod error;
mod facts;
mod hosts;
mod links;
mod migrations;
mod plans;
mod roster;
mod tokens;
mod webhooks;

use std::sync::Arc;
use std::time::Instant;

use sqlx::{Any, AnyPool, Row, Transaction};
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

pub use backup::DATABASE;
pub use claims::{Answer, Claim, Claimed, answers, within};
pub use counts::Counts;
pub use database::{Database, FolderLock};
use database::{Hold, Opened};
pub use error::{StoreError, StoreErrorKind};
pub use hosts::{Certificate, RevokedCertificate};
pub use links::{LinkProbe, MOST_PROBES};
pub use migrations::Page;
pub use roster::Hosts;
pub use tokens::{ApiToken, JoinGrant};
pub use webhooks::{KeptWebhook, MOST_EVENTS, MOST_WEBHOOKS};

/// The fact that says how often the lead has changed hands.
const TERM: &str = "leader-term";

/// The database, open.
#[derive(Debug)]
pub struct Store {
    readers: AnyPool,
    writer: AnyPool,
    /// A transaction that waits for another here gets its turn in order, and never meets a busy database.
    turn: Mutex<()>,
    /// How often the lead had changed hands when it came to this process; none of a database that has one user anyway.
    term: Option<String>,
    lost: CancellationToken,
    roster: roster::Roster,
    _hold: Arc<Hold>,
}

/// Histogram: seconds from asking for a turn to write until the transaction is durable.
pub const TRANSACTION_SECONDS: &str = "novaferry_coordinator_store_transaction_seconds";

/// A transaction, and its turn. Dropped without [`Work::commit`] it changes nothing.
#[derive(Debug)]
struct Work<'a> {
    transaction: Transaction<'a, Any>,
    _turn: MutexGuard<'a, ()>,
    begun: Instant,
}

impl Work<'_> {
    async fn commit(self) -> Result<(), StoreError> {
        self.transaction.commit().await?;
        metrics::histogram!(TRANSACTION_SECONDS).record(self.begun.elapsed());
        Ok(())
    }
}

impl Store {
    /// Opens a database; makes it, or brings it up to this release's schema. Of a PostgreSQL database that another
    /// coordinator leads it waits until that one is gone.
    ///
    /// # Errors
    /// [`StoreErrorKind::Busy`] when another coordinator uses a SQLite database; [`StoreErrorKind::Newer`] when a newer
    /// release has used it; what the file system or the database says.
    pub async fn open(database: &Database) -> Result<Self, StoreError> {
        let Opened { readers, writer, hold, lost, shared } = database.open().await?;
        let (turn, roster) = (Mutex::new(()), roster::Roster::default());
        let mut store = Self { readers, writer, turn, term: None, lost, roster, _hold: Arc::new(hold) };
        if shared {
            store.term = Some(store.begin_term().await?);
        }
        Ok(store)
    }

    /// Ends when another process may have the database: nothing can be changed any more.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Waits for what runs and closes the database.
    pub async fn close(&self) {
        let _turn = self.turn.lock().await;
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn begin_term(&self) -> Result<String, StoreError> {
        let mut work = self.work().await?;
        let row = sqlx::query("SELECT value FROM facts WHERE name = $1").bind(TERM);
        let row = row.fetch_optional(&mut *work.transaction).await?;
        let before: Option<String> = row.map(|row| row.try_get("value")).transpose()?;
        let before: u64 = before.and_then(|text| text.parse().ok()).unwrap_or(0);
        let term = before.saturating_add(1).to_string();
        work.set_fact(TERM, &term).await?;
        work.commit().await?;
        Ok(term)
    }

    async fn work(&self) -> Result<Work<'_>, StoreError> {
        let begun = Instant::now();
        let turn = self.turn.lock().await;
        let mut work = Work { transaction: self.writer.begin().await?, _turn: turn, begun };
        if let Some(term) = &self.term {
            // The row stays locked until the transaction ends, so a new leader's term begins before it or after it.
            let row = sqlx::query("SELECT value FROM facts WHERE name = $1 FOR UPDATE").bind(TERM);
            let row = row.fetch_optional(&mut *work.transaction).await?;
            let now: Option<String> = row.map(|row| row.try_get("value")).transpose()?;
            if now.as_ref() != Some(term) {
                self.lost.cancel();
                return Err(StoreError::new(StoreErrorKind::Busy, "another coordinator leads now"));
            }
        }
        Ok(work)
    }
}

#[cfg(test)]
mod tests;
