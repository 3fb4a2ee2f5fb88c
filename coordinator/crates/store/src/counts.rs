//! What there is, in numbers: for those who watch.

use std::collections::BTreeMap;

use model::Timestamp;
use model::migration::State;
use serde::Deserialize;
use sqlx::Row;

use crate::audit::{count, moment};
use crate::tokens::named;
use crate::{Store, StoreError};

/// How many there are of what is kept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Names of the hosts that are not revoked.
    pub hosts: Vec<model::Name>,
    /// Hosts that are.
    pub revoked_hosts: u64,
    /// Migrations that have not ended, by state.
    pub open: BTreeMap<&'static str, u64>,
    /// When the state of the oldest migration in doubt became so, or of one whose destination is lost.
    pub undecided_since: Option<Timestamp>,
    /// Entries of the audit log.
    pub audit_entries: u64,
}

/// What is needed of a migration.
#[derive(Deserialize)]
struct Brief {
    state: State,
    changed: Timestamp,
}

impl Store {
    /// Counts.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn counts(&self) -> Result<Counts, StoreError> {
        let mut counts = Counts::default();
        let rows = sqlx::query("SELECT name, revoked FROM hosts ORDER BY name");
        for row in rows.fetch_all(&self.readers).await? {
            match row.try_get::<Option<i64>, _>("revoked")?.map(moment).transpose()? {
                Some(_) => counts.revoked_hosts += 1,
                None => counts.hosts.push(named(row.try_get("name")?)?),
            }
        }
        let rows = sqlx::query("SELECT body FROM migrations WHERE ended = 0 ORDER BY created, id");
        for row in rows.fetch_all(&self.readers).await? {
            let body: String = row.try_get("body")?;
            let Brief { state, changed } = serde_json::from_str(&body)
                .map_err(|error| StoreError::corrupt("a migration").caused_by(error))?;
            *counts.open.entry(state.as_str()).or_default() += 1;
            if matches!(state, State::InDoubt | State::DestinationLost) {
                let since = counts.undecided_since.map_or(changed, |since| since.min(changed));
                counts.undecided_since = Some(since);
            }
        }
        let last = sqlx::query("SELECT number FROM audit ORDER BY number DESC LIMIT 1");
        if let Some(row) = last.fetch_optional(&self.readers).await? {
            counts.audit_entries = count(row.try_get("number")?)?;
        }
        Ok(counts)
    }
}
