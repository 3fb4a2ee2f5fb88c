//! Migrations.

use model::audit::Deed;
use model::migration::{Migration, State};
use model::webhook::Happening;
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::{Store, StoreError, StoreErrorKind, Work};

/// Which migrations to give, newest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// Only those that are older than the one with this time (milliseconds) and id.
    pub before: Option<(i64, String)>,
    /// At most so many.
    pub most: u32,
}

pub(crate) fn read(row: &AnyRow) -> Result<Migration, StoreError> {
    let body: String = row.try_get("body")?;
    serde_json::from_str(&body).map_err(|error| StoreError::corrupt("a migration").caused_by(error))
}

fn write(migration: &Migration) -> Result<String, StoreError> {
    serde_json::to_string(migration)
        .map_err(|error| StoreError::corrupt("write a migration").caused_by(error))
}

/// A rehearsal touches nothing, so others may go on beside it.
fn holds_vm(migration: &Migration) -> i64 {
    i64::from(!migration.state.is_final() && !migration.options.dry_run)
}

impl Work<'_> {
    async fn migration(&mut self, id: &str) -> Result<Migration, StoreError> {
        let row = sqlx::query("SELECT body FROM migrations WHERE id = $1").bind(id);
        row.fetch_optional(&mut *self.transaction).await?.as_ref().map_or_else(|| Err(no_migration()), read)
    }

    /// A new one, in the transaction.
    pub(crate) async fn insert_migration(&mut self, migration: &Migration) -> Result<(), StoreError> {
        let text = "INSERT INTO migrations (id, vm, source, destination, holds_vm, ended, created, body) \
                    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        let added = sqlx::query(text)
            .bind(&migration.id)
            .bind(&migration.vm)
            .bind(migration.source.as_str())
            .bind(migration.destination.as_str())
            .bind(holds_vm(migration))
            .bind(i64::from(migration.state.is_final()))
            .bind(migration.created.as_millisecond())
            .bind(write(migration)?)
            .execute(&mut *self.transaction)
            .await;
        added.map_err(StoreError::from).map_err(|error| match error.kind() {
            StoreErrorKind::Conflict => {
                let why = format!(
                    "VM {} of {} is being moved already; wait for that migration or cancel it",
                    migration.vm, migration.source
                );
                StoreError::new(StoreErrorKind::Conflict, why).caused_by(error)
            }
            _ => error,
        })?;
        self.happened(Happening::migration(migration, None)).await
    }

    async fn put(&mut self, migration: &Migration, before: State) -> Result<(), StoreError> {
        sqlx::query("UPDATE migrations SET holds_vm = $1, ended = $2, body = $3 WHERE id = $4")
            .bind(holds_vm(migration))
            .bind(i64::from(migration.state.is_final()))
            .bind(write(migration)?)
            .bind(&migration.id)
            .execute(&mut *self.transaction)
            .await?;
        if migration.state != before {
            self.happened(Happening::migration(migration, Some(before))).await?;
        }
        Ok(())
    }
}

impl Store {
    /// A new migration; its hosts are to be told.
    ///
    /// # Errors
    /// [`StoreErrorKind::Conflict`] when the VM is moved by another one already, or the id is taken.
    pub async fn add_migration(&self, migration: &Migration, deed: Deed) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        work.insert_migration(migration).await?;
        work.next_intent().await?;
        work.audit(deed).await?;
        work.commit().await
    }

    /// Changes a migration by what somebody wishes, in one step with reading it; its hosts are to be told.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`]; what `change` refuses with, as [`StoreErrorKind::Conflict`].
    pub async fn change_migration(
        &self,
        id: &str,
        deed: Deed,
        change: impl FnOnce(&mut Migration) -> Result<(), String> + Send,
    ) -> Result<Migration, StoreError> {
        let mut work = self.work().await?;
        let mut migration = work.migration(id).await?;
        let before = migration.state;
        change(&mut migration).map_err(|why| StoreError::new(StoreErrorKind::Conflict, why))?;
        work.put(&migration, before).await?;
        work.next_intent().await?;
        work.audit(deed).await?;
        work.commit().await?;
        Ok(migration)
    }

    /// Takes in what hosts say of a migration, in one step with reading it. None when nothing changed.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn update_migration(
        &self,
        id: &str,
        update: impl FnOnce(&mut Migration) + Send,
    ) -> Result<Option<Migration>, StoreError> {
        let mut work = self.work().await?;
        let before = work.migration(id).await?;
        let mut migration = before.clone();
        update(&mut migration);
        if migration == before {
            return Ok(None);
        }
        work.put(&migration, before.state).await?;
        if migration.state.is_final() && !before.state.is_final() {
            work.next_intent().await?;
        }
        work.commit().await?;
        Ok(Some(migration))
    }

    /// One migration.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn migration(&self, id: &str) -> Result<Migration, StoreError> {
        let row = sqlx::query("SELECT body FROM migrations WHERE id = $1").bind(id);
        row.fetch_optional(&self.readers).await?.as_ref().map_or_else(|| Err(no_migration()), read)
    }

    /// What is wanted of hosts: the migrations that have not ended, oldest first, and the generation of that.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn intent(&self) -> Result<(u64, Vec<Migration>), StoreError> {
        // The generation first: what is added in between is told again with the next.
        let generation = self.intent_generation().await?;
        Ok((generation, self.open_migrations().await?))
    }

    /// Migrations that have not ended, oldest first.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn open_migrations(&self) -> Result<Vec<Migration>, StoreError> {
        let rows = sqlx::query("SELECT body FROM migrations WHERE ended = 0 ORDER BY created, id");
        rows.fetch_all(&self.readers).await?.iter().map(read).collect()
    }

    /// Migrations that have ended, newest first.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn ended_migrations(&self, most: u32) -> Result<Vec<Migration>, StoreError> {
        let text = "SELECT body FROM migrations WHERE ended = 1 ORDER BY created DESC, id DESC LIMIT $1";
        let rows = sqlx::query(text).bind(i64::from(most));
        rows.fetch_all(&self.readers).await?.iter().map(read).collect()
    }

    /// A page of migrations, newest first.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn migrations(&self, page: &Page) -> Result<Vec<Migration>, StoreError> {
        let (created, id) = page.before.clone().unwrap_or((i64::MAX, String::new()));
        let text = "SELECT body FROM migrations WHERE created < $1 OR (created = $1 AND id < $2) \
                    ORDER BY created DESC, id DESC LIMIT $3";
        let rows = sqlx::query(text).bind(created).bind(id).bind(i64::from(page.most));
        let rows = rows.fetch_all(&self.readers).await?;
        rows.iter().map(read).collect()
    }
}

fn no_migration() -> StoreError {
    StoreError::new(StoreErrorKind::NotFound, "there is no such migration")
}
