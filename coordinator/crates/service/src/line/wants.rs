//! What is wanted of every host, worked out once for all lines: one change wakes them all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use control_api::v1;
use model::Name;
use store::StoreError;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::words;
use crate::fleet::Fleet;
use crate::links;

/// How long it serves lines that open. What nobody is woken for, such as a host's new address, is seen after that.
const FRESH: Duration = Duration::from_secs(1);

/// What is wanted, as it was after some change.
#[derive(Debug)]
pub(super) struct Wanted {
    change: u64,
    at: Instant,
    pub(super) generation: u64,
    hosts: HashMap<Name, Vec<v1::Migration>>,
}

/// What was worked out last.
#[derive(Debug, Default)]
pub(super) struct Wants(Mutex<Option<Arc<Wanted>>>);

impl Wanted {
    /// Of one host.
    pub(super) fn of(&self, host: &Name) -> &[v1::Migration] {
        self.hosts.get(host).map_or(&[], Vec::as_slice)
    }
}

impl Wants {
    /// What is wanted now. It never goes back: what comes later has this generation or a newer one.
    pub(super) async fn now(&self, fleet: &Fleet) -> Result<Arc<Wanted>, StoreError> {
        let mut last = self.0.lock().await;
        // Before the database is read: what changes meanwhile is another change.
        let (change, at) = (fleet.change(), Instant::now());
        if let Some(last) = last.as_ref().filter(|last| last.change == change && last.at + FRESH > at) {
            return Ok(Arc::clone(last));
        }
        let wanted = Arc::new(work_out(fleet, change, at).await?);
        *last = Some(Arc::clone(&wanted));
        Ok(wanted)
    }

    /// The generation has changed without a change.
    pub(super) async fn forget(&self) {
        *self.0.lock().await = None;
    }
}

async fn work_out(fleet: &Fleet, change: u64, at: Instant) -> Result<Wanted, StoreError> {
    let (generation, migrations) = fleet.store.intent().await?;
    let mut shares = links::given(fleet, &migrations).await?;
    let mut hosts = HashMap::<_, Vec<_>>::new();
    for migration in &migrations {
        let share = shares.remove(&migration.id).unwrap_or_default();
        // Until a link opens nobody hears of it; a host that says nothing of itself is the source's to complain of.
        if !share.waits || migration.at_source.is_some() {
            let wanted = words::migration(migration, &share.share);
            hosts.entry(migration.source.clone()).or_default().push(wanted);
        }
    }
    Ok(Wanted { change, at, generation, hosts })
}
