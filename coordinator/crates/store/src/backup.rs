//! Copies of a SQLite database while it is used, and what a restored database must know of itself.

use std::path::Path;

use model::Timestamp;
use model::audit::Deed;
use sqlx::Row;

use crate::{Certificate, Store, StoreError};

/// Name of a SQLite database in its folder.
pub const DATABASE: &str = "coordinator.db";
/// When the backup was made that this database came from, and when it was restored; milliseconds.
const MADE: &str = "restored-from";
const RESTORED: &str = "restored-at";

impl Store {
    /// Whether others may come to use this database: then it is a server's, and has backups of its own.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.term.is_some()
    }

    /// Writes a copy as of this instant into a new file, without holding anybody up. It is not flushed. For SQLite alone.
    ///
    /// # Errors
    /// When the file is there, or cannot be written.
    pub async fn copy_into(&self, file: &Path) -> Result<(), StoreError> {
        let path = file.to_str().ok_or_else(|| StoreError::unusable("the copy's path is not UTF-8"))?;
        let copied = sqlx::query("VACUUM INTO $1").bind(path).execute(&self.readers).await;
        copied.map_err(|error| StoreError::unusable("the database cannot be copied").caused_by(error))?;
        Ok(())
    }

    /// Notes that this database came from a backup, before anybody uses it: join tokens that it knows as unused may have
    /// been used since, so they are no good.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn restored(&self, made: Timestamp, deed: Deed) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        let now = deed.at.as_millisecond();
        work.set_fact(MADE, &made.as_millisecond().to_string()).await?;
        work.set_fact(RESTORED, &now.to_string()).await?;
        sqlx::query("UPDATE join_tokens SET expires = $1 WHERE used IS NULL AND expires > $1")
            .bind(now)
            .execute(&mut *work.transaction)
            .await?;
        work.audit(deed).await?;
        work.commit().await
    }

    /// Makes all API tokens no good.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn revoke_api_tokens(&self, deed: Deed) -> Result<u64, StoreError> {
        let mut work = self.work().await?;
        let done = sqlx::query("UPDATE api_tokens SET revoked = $1 WHERE revoked IS NULL")
            .bind(deed.at.as_millisecond())
            .execute(&mut *work.transaction)
            .await?;
        work.audit(deed).await?;
        work.commit().await?;
        Ok(done.rows_affected())
    }

    /// Takes a certificate into the book that this database should have known: of a host of the fleet that was not revoked,
    /// issued after the backup that the database came from, and before it was restored. Whether it did.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn adopt(
        &self,
        certificate: &Certificate,
        issued: Timestamp,
        deed: Deed,
    ) -> Result<bool, StoreError> {
        let Some((made, restored)) = self.restoration().await? else { return Ok(false) };
        // Certificates count in seconds.
        if issued.as_second() < made.as_second() || issued > restored {
            return Ok(false);
        }
        let mut work = self.work().await?;
        let host = sqlx::query("SELECT revoked FROM hosts WHERE name = $1").bind(certificate.host.as_str());
        let host = host.fetch_optional(&mut *work.transaction).await?;
        let known = sqlx::query("SELECT 1 AS known FROM certificates WHERE serial = $1");
        let known = known.bind(&certificate.serial).fetch_optional(&mut *work.transaction).await?;
        let good = match host {
            Some(row) => row.try_get::<Option<i64>, _>("revoked")?.is_none(),
            None => false,
        };
        if !good || known.is_some() {
            return Ok(false);
        }
        work.add_certificate(certificate).await?;
        work.audit(deed).await?;
        work.commit().await?;
        Ok(true)
    }

    /// When the backup was made that this database came from, and when it was restored, if it ever was.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn restoration(&self) -> Result<Option<(Timestamp, Timestamp)>, StoreError> {
        let moment = |text: Option<String>| {
            let text = text.map(|text| text.parse::<i64>()).transpose();
            let time = text.map_err(|error| StoreError::corrupt("a time is no number").caused_by(error))?;
            time.map(crate::audit::moment).transpose()
        };
        let (made, restored) = (moment(self.fact(MADE).await?)?, moment(self.fact(RESTORED).await?)?);
        Ok(made.zip(restored))
    }
}
