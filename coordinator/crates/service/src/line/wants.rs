//! What is wanted of every host, worked out once for all lines: one change wakes them all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use control_api::v1;
use model::Name;
use model::migration::Wish;
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
    expected: HashMap<Name, Vec<v1::Expected>>,
}

/// What was worked out last.
#[derive(Debug, Default)]
pub(super) struct Wants(Mutex<Option<Arc<Wanted>>>);

impl Wanted {
    /// Of one host.
    pub(super) fn of(&self, host: &Name) -> &[v1::Migration] {
        self.hosts.get(host).map_or(&[], Vec::as_slice)
    }

    /// What comes to one host.
    pub(super) fn expected(&self, host: &Name) -> &[v1::Expected] {
        self.expected.get(host).map_or(&[], Vec::as_slice)
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
    let mut expected = HashMap::<_, Vec<_>>::new();
    for migration in &migrations {
        let share = shares.remove(&migration.id).unwrap_or_default();
        let comes = words::expected(migration, &share.share);
        expected.entry(migration.destination.clone()).or_default().push(comes);
        // Until a link opens, and the destination lets it in, the source does not hear of it; a host that says nothing of
        // itself is the source's to complain of.
        let may_begin = !share.waits && fleet.arrivals.may_begin(migration, share.expects);
        if may_begin || migration.at_source.is_some() || migration.wish != Wish::Arrive {
            let wanted = words::migration(migration, &share.share);
            hosts.entry(migration.source.clone()).or_default().push(wanted);
        }
    }
    Ok(Wanted { change, at, generation, hosts, expected })
}
