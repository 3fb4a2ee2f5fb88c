//! Single values.

use sqlx::Row;

use crate::{Store, StoreError, Work};

const INTENT: &str = "intent-generation";

impl Store {
    /// A value by its name.
    ///
    /// # Errors
    /// When the database cannot be used; so for all that follow.
    pub async fn fact(&self, name: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT value FROM facts WHERE name = $1");
        let row = row.bind(name).fetch_optional(&self.readers).await?;
        Ok(row.map(|row| row.try_get("value")).transpose()?)
    }

    /// Keeps values, all or none; those that are there are replaced.
    pub async fn set_facts(&self, facts: &[(&str, &str)]) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        for (name, value) in facts {
            work.set_fact(name, value).await?;
        }
        work.commit().await
    }

    /// The newest generation of what is wanted of hosts.
    pub async fn intent_generation(&self) -> Result<u64, StoreError> {
        parse(self.fact(INTENT).await?.as_deref())
    }

    /// Goes beyond a generation that a host has seen: this database is then older than what was wanted of it.
    pub async fn pass_generation(&self, seen: u64) -> Result<u64, StoreError> {
        let mut work = self.work().await?;
        let next = work.intent_generation().await?.max(seen).saturating_add(1);
        work.set_fact(INTENT, &next.to_string()).await?;
        work.commit().await?;
        Ok(next)
    }
}

fn parse(value: Option<&str>) -> Result<u64, StoreError> {
    let value = value.unwrap_or("0");
    value
        .parse()
        .map_err(|error| StoreError::corrupt("the intent's generation is no number").caused_by(error))
}

impl Work<'_> {
    pub(crate) async fn set_fact(&mut self, name: &str, value: &str) -> Result<(), StoreError> {
        let text = "INSERT INTO facts (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        sqlx::query(text).bind(name).bind(value).execute(&mut *self.transaction).await?;
        Ok(())
    }

    async fn intent_generation(&mut self) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT value FROM facts WHERE name = $1").bind(INTENT);
        let row = row.fetch_optional(&mut *self.transaction).await?;
        let value: Option<String> = row.map(|row| row.try_get("value")).transpose()?;
        parse(value.as_deref())
    }

    /// Something else is wanted of a host from this transaction on.
    pub(crate) async fn next_intent(&mut self) -> Result<(), StoreError> {
        let next = self.intent_generation().await?.saturating_add(1);
        self.set_fact(INTENT, &next.to_string()).await
    }
}
