//! The audit log.

use model::Timestamp;
use model::audit::{Deed, Entry, ORIGIN, verify};
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::{Store, StoreError, Work};

/// Entries that are checked at a time.
const BATCH: i64 = 1000;

pub(crate) fn moment(milliseconds: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(milliseconds)
        .map_err(|error| StoreError::corrupt("a time is out of range").caused_by(error.to_string()))
}

pub(crate) fn count(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number)
        .map_err(|error| StoreError::corrupt("a number is negative").caused_by(error.to_string()))
}

impl Work<'_> {
    /// Puts a deed at the end of the log. If a request with a key asked for it, the key is used up by it.
    pub(crate) async fn audit(&mut self, deed: Deed) -> Result<(), StoreError> {
        if deed.outcome == "done" {
            self.settle().await?;
        }
        let last = sqlx::query("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1");
        let last = last.fetch_optional(&mut *self.transaction).await?;
        let (number, previous) = match last {
            Some(row) => (count(row.try_get("number")?)?, row.try_get("hash")?),
            None => (0, ORIGIN.to_owned()),
        };
        let Entry { number, deed, previous, hash } = Entry::new(number + 1, &previous, deed);
        let text = "INSERT INTO audit (number, at, actor, action, subject, outcome, detail, previous, hash) \
                    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
        sqlx::query(text)
            .bind(i64::try_from(number).unwrap_or(i64::MAX))
            .bind(deed.at.as_millisecond())
            .bind(deed.actor)
            .bind(deed.action)
            .bind(deed.subject)
            .bind(deed.outcome)
            .bind(deed.detail)
            .bind(previous)
            .bind(hash)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }
}

fn entry(row: &AnyRow) -> Result<Entry, StoreError> {
    Ok(Entry {
        number: count(row.try_get("number")?)?,
        deed: Deed {
            at: moment(row.try_get("at")?)?,
            actor: row.try_get("actor")?,
            action: row.try_get("action")?,
            subject: row.try_get("subject")?,
            outcome: row.try_get("outcome")?,
            detail: row.try_get("detail")?,
        },
        previous: row.try_get("previous")?,
        hash: row.try_get("hash")?,
    })
}

impl Store {
    /// Notes something that changed nothing else, such as a refusal.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn note(&self, deed: Deed) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        work.audit(deed).await?;
        work.commit().await
    }

    /// Entries after a number, oldest first.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn audit_after(&self, number: u64, most: u32) -> Result<Vec<Entry>, StoreError> {
        let rows = sqlx::query("SELECT * FROM audit WHERE number > $1 ORDER BY number LIMIT $2")
            .bind(i64::try_from(number).unwrap_or(i64::MAX))
            .bind(i64::from(most))
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(entry).collect()
    }

    /// Checks the whole log; gives how many entries there are and the last hash.
    ///
    /// # Errors
    /// [`StoreErrorKind::Corrupt`](crate::StoreErrorKind::Corrupt) with the first entry that does not fit.
    pub async fn verify_audit(&self) -> Result<(u64, String), StoreError> {
        let (mut number, mut hash) = (0, ORIGIN.to_owned());
        loop {
            let entries = self.audit_after(number, u32::try_from(BATCH).unwrap_or(u32::MAX)).await?;
            let Some(last) = entries.last() else { return Ok((number, hash)) };
            hash = verify(number + 1, &hash, &entries)
                .map_err(|broken| StoreError::corrupt(broken.to_string()))?;
            number = last.number;
        }
    }
}
