//! What all parts of the coordinator share: the store, the CA, who is connected, and the news that wake lines up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::audit::Deed;
use model::migration::{Migration, Progress};
use model::webhook::Reach;
use model::{Name, Timestamp};
use store::{Database, Store, StoreError, StoreErrorKind};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::arrivals::Arrivals;
use crate::authority::Authority;
use crate::ca_key::KeySource;
use crate::error::ServiceError;
use crate::events::Hub;
use crate::links::Probes;
use crate::proof;

/// How soon it is noted when a host was heard of last whose line is closed.
const GONE_NOTED: Duration = Duration::from_secs(1);
/// How often it is noted of all.
const ALL_NOTED: Duration = Duration::from_secs(60);
/// Hosts in one transaction: others wait for it.
const NOTED_AT_ONCE: usize = 200;

/// The fleet.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) store: Store,
    pub(crate) authority: Arc<Authority>,
    /// Folder of the CA's key.
    pub(crate) state: PathBuf,
    /// Whose turn it is to make a backup.
    pub(crate) backups: Arc<tokio::sync::Mutex<()>>,
    /// Probes of links.
    pub(crate) probes: Probes,
    /// What destinations let in.
    pub(crate) arrivals: Arrivals,
    /// What changes.
    pub(crate) events: Hub,
    /// Where webhooks may be sent.
    pub(crate) webhooks: Reach,
    lines: Mutex<BTreeMap<Name, Connected>>,
    /// When hosts were heard of last whose lines are closed, and that is not noted yet.
    gone: Mutex<BTreeMap<Name, Timestamp>>,
    /// Something else is wanted of some host.
    wanted: watch::Sender<u64>,
    /// Somebody was revoked.
    revoked: watch::Sender<u64>,
}

/// A host's line.
#[derive(Debug)]
struct Connected {
    since: Timestamp,
    seen: Timestamp,
    /// How far its clock was ahead of ours, milliseconds.
    ahead_ms: i64,
    /// Ends the line: a newer one has taken its place.
    end: CancellationToken,
}

/// Now, as the store keeps it.
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let milliseconds = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::MAX)
}

impl Fleet {
    pub(crate) async fn open(
        folder: &Path,
        source: &KeySource,
        database: &Database,
        names: Vec<String>,
        webhooks: Reach,
    ) -> Result<Arc<Self>, ServiceError> {
        let store = Store::open(database).await?;
        let authority = Authority::open(folder, source, &store, names).await?;
        let (wanted, revoked) = (watch::Sender::new(0), watch::Sender::new(0));
        let (probes, arrivals, events, lines) =
            (Probes::default(), Arrivals::default(), Hub::default(), Mutex::default());
        let (state, backups, gone) = (folder.to_owned(), Arc::default(), Mutex::default());
        Ok(Arc::new(Self {
            store,
            authority,
            state,
            backups,
            probes,
            arrivals,
            events,
            webhooks,
            lines,
            gone,
            wanted,
            revoked,
        }))
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<Name, Connected>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host's line is open. What comes back ends it.
    pub(crate) fn connected(&self, host: &Name, clock_ms: i64) -> CancellationToken {
        let (end, now) = (CancellationToken::new(), now());
        let ahead_ms = clock_ms.saturating_sub(now.as_millisecond());
        let new = Connected { since: now, seen: now, ahead_ms, end: end.clone() };
        if let Some(older) = self.lines().insert(host.clone(), new) {
            older.end.cancel();
        }
        self.events.note();
        end
    }

    /// A host said something.
    pub(crate) fn saw(&self, host: &Name) {
        if let Some(line) = self.lines().get_mut(host) {
            line.seen = now();
        }
    }

    /// A line is closed; false when a newer line has taken its place.
    pub(crate) fn disconnected(&self, host: &Name, end: &CancellationToken) -> bool {
        if end.is_cancelled() {
            return false;
        }
        if let Some(line) = self.lines().remove(host) {
            self.gone().insert(host.clone(), line.seen);
        }
        self.arrivals.forget(host);
        self.events.note();
        true
    }

    fn gone(&self) -> MutexGuard<'_, BTreeMap<Name, Timestamp>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes when hosts were heard of last, until it is to stop: those that are gone at once, and all now and then, so
    /// that a coordinator that is killed knows it within a minute. Together, because a site may lose all its lines at once.
    pub(crate) async fn note_seen(&self, stop: CancellationToken) {
        let mut all = Instant::now();
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(GONE_NOTED) => {}
            }
            if stop.is_cancelled() || all.elapsed() >= ALL_NOTED {
                all = Instant::now();
                let seen: Vec<_> =
                    self.lines().iter().map(|(name, line)| (name.clone(), line.seen)).collect();
                self.gone().extend(seen);
            }
            let gone: Vec<_> = std::mem::take(&mut *self.gone()).into_iter().collect();
            for some in gone.chunks(NOTED_AT_ONCE) {
                if let Err(error) = self.store.saw(some).await {
                    tracing::warn!(%error, "cannot note when hosts were heard of last");
                }
            }
        }
    }

    /// Since when hosts are connected, and when they were heard of last.
    pub(crate) fn connections(&self) -> BTreeMap<Name, (Timestamp, Timestamp)> {
        self.lines().iter().map(|(name, line)| (name.clone(), (line.since, line.seen))).collect()
    }

    /// How far a connected host's clock was ahead of ours when it connected, milliseconds.
    pub(crate) fn clock_ahead_ms(&self, host: &Name) -> Option<i64> {
        self.lines().get(host).map(|line| line.ahead_ms)
    }

    pub(crate) fn wanted(&self) -> watch::Receiver<u64> {
        self.wanted.subscribe()
    }

    /// How often something else was wanted of some host.
    pub(crate) fn change(&self) -> u64 {
        *self.wanted.borrow()
    }

    pub(crate) fn revoked(&self) -> watch::Receiver<u64> {
        self.revoked.subscribe()
    }

    /// Wakes the lines up to tell their hosts what is wanted now.
    pub(crate) fn tell(&self) {
        self.events.note();
        self.wanted.send_modify(|count| *count += 1);
    }

    /// Revokes a host: its line ends, and all others get the new list.
    pub(crate) async fn revoke(&self, host: &Name, deed: Deed) -> Result<(), StoreError> {
        self.store.revoke_host(host, deed).await?;
        self.revoked.send_modify(|count| *count += 1);
        self.events.note();
        Ok(())
    }

    /// Takes in what a host says of a migration. What is not known here was begun on the host itself.
    pub(crate) async fn moved(
        &self,
        host: &Name,
        id: &str,
        role: &str,
        progress: Progress,
    ) -> Result<Option<Migration>, StoreError> {
        self.update(id, |migration| match role {
            "source" if migration.source == *host => migration.at_source = Some(progress),
            "destination" if migration.destination == *host => migration.at_destination = Some(progress),
            _ => tracing::warn!(%host, id, role, "a host speaks of a migration that is none of its own"),
        })
        .await
    }

    /// The source would not begin.
    pub(crate) async fn refused(
        &self,
        host: &Name,
        id: &str,
        why: String,
    ) -> Result<Option<Migration>, StoreError> {
        self.update(id, |migration| {
            if migration.source == *host && migration.at_source.is_none() {
                migration.refusal = Some(why);
            }
        })
        .await
    }

    async fn update(
        &self,
        id: &str,
        change: impl FnOnce(&mut Migration) + Send,
    ) -> Result<Option<Migration>, StoreError> {
        let updated = self.store.update_migration(id, |migration| {
            if migration.state.is_final() {
                return;
            }
            change(migration);
            proof::judge(migration, self.authority.trust());
            let state = migration.read();
            if state != migration.state {
                migration.state = state;
                migration.changed = now();
            }
        });
        let updated = match updated.await {
            Err(error) if error.kind() == StoreErrorKind::NotFound => return Ok(None),
            updated => updated?,
        };
        self.events.note();
        if let Some(migration) = updated.as_ref().filter(|migration| migration.state.is_final()) {
            crate::metrics::ended(migration.state);
            self.tell();
        }
        Ok(updated)
    }
}
