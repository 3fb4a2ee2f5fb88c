//! All hosts in memory, for whoever looks through the fleet: a thousand inventories are not read and parsed each time.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::Name;
use model::host::Host;
use tokio::sync::Mutex;

use crate::{Store, StoreError, StoreErrorKind};

/// Everything is read anew after so long, whatever changed.
const OLDEST: Duration = Duration::from_secs(60);
/// With more changes than these everything is read anew.
const FEW: usize = 100;

/// Hosts by name, as they are shared.
pub type Hosts = Arc<Vec<Arc<Host>>>;

/// What was read last, and what changed since.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    last: Mutex<Option<(Instant, Hosts)>>,
    changed: std::sync::Mutex<Changes>,
}

/// Hosts that changed, and by which of all changes last.
#[derive(Clone, Debug, Default)]
struct Changes {
    count: u64,
    hosts: BTreeMap<Name, u64>,
}

/// Hosts that change as long as this lives. They are read anew after that, also when the change is given up half-way.
#[derive(Debug)]
pub(crate) struct Changing<'a>(&'a Roster, Vec<Name>);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut changes = self.0.changes();
        for name in self.1.drain(..) {
            changes.count += 1;
            let count = changes.count;
            changes.hosts.insert(name, count);
        }
    }
}

impl Roster {
    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hold it while these are written.
    pub(crate) fn changing<'a>(&'a self, hosts: impl IntoIterator<Item = &'a Name>) -> Changing<'a> {
        Changing(self, hosts.into_iter().cloned().collect())
    }
}

impl Store {
    /// All hosts by name, with everything that was written before this was called. What is given is shared: it is not to
    /// be asked for one host alone.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn roster(&self) -> Result<Hosts, StoreError> {
        let mut last = self.roster.last.lock().await;
        // Before the database is read: what changes meanwhile is read the next time.
        let changes = self.roster.changes().clone();
        let (at, hosts) = match last.as_ref().filter(|(at, _)| at.elapsed() < OLDEST) {
            Some((_, hosts)) if changes.hosts.is_empty() => return Ok(Arc::clone(hosts)),
            Some((at, hosts)) if changes.hosts.len() <= FEW => {
                let mut hosts = hosts.to_vec();
                for name in changes.hosts.keys() {
                    self.renewed(&mut hosts, name).await?;
                }
                (*at, hosts)
            }
            _ => {
                let at = Instant::now();
                let mut hosts: Vec<_> = self.hosts().await?.into_iter().map(Arc::new).collect();
                // A database may have an order of its own.
                hosts.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                (at, hosts)
            }
        };
        let hosts = Arc::new(hosts);
        *last = Some((at, Arc::clone(&hosts)));
        self.roster.changes().hosts.retain(|name, count| changes.hosts.get(name) != Some(count));
        Ok(hosts)
    }

    async fn renewed(&self, hosts: &mut Vec<Arc<Host>>, name: &Name) -> Result<(), StoreError> {
        let now = match self.host(name).await {
            Ok(host) => Some(Arc::new(host)),
            Err(error) if error.kind() == StoreErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        match (hosts.binary_search_by(|host| host.name.cmp(name)), now) {
            (Ok(nth), Some(host)) => hosts[nth] = host,
            (Err(nth), Some(host)) => hosts.insert(nth, host),
            (Ok(nth), None) => drop(hosts.remove(nth)),
            (Err(_), None) => {}
        }
        Ok(())
    }
}
