//! Where clients of the control socket and the listener leave their errands for the owner of the migrations.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use engine::migrate::cutover::Cutover;
use engine::migrate::destination::Arrivals;
use engine::migrate::record::{Record, Records};
use engine::migrate::status::{Command, Live, Status};
use engine::receipt::ReceiptSigner;
use hypervisor::inventory::{Access, Inventory, Places, Sizes, State, Vm};
use tokio::sync::{mpsc, oneshot, watch};
use tunnel::{ChannelTunnel, Credentials, Incoming};
use volume::SessionId;
use wire::FailCode;

use super::{Errand, Shows, Statuses, job};
use crate::control::migration::{ListedAccess, ListedMigration, ListedNeeds, ListedVm, Migrate, Shown};
use crate::failure::with_causes;
use crate::output::migration::short;

/// Longest id, in hexadecimal digits.
const ID_DIGITS: usize = 32;
/// Names that an answer about an ambiguous one lists.
const NAMED: usize = 4;
/// What is said when the owner is gone.
const STOPPING: &str = "the daemon is stopping; ask again when it runs";

/// The way to the migrations. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Desk {
    errands: mpsc::Sender<Errand>,
    records: Records,
    inventory: Arc<Mutex<Inventory>>,
    sizes: Arc<tokio::sync::Mutex<Sizes>>,
    arrivals: Arrivals,
    /// Signs receipts; none behind which nobody works.
    shows: Option<watch::Receiver<Shows>>,
}

/// A migration that is remembered.
struct Known {
    shown: Shown,
    /// On the disk, too: a rehearsal is not.
    on_record: bool,
}

impl Desk {
    pub(super) fn new(
        errands: mpsc::Sender<Errand>,
        records: Records,
        places: Places,
        arrivals: Arrivals,
        shows: Option<watch::Receiver<Shows>>,
    ) -> Self {
        Self {
            errands,
            records,
            inventory: Arc::new(Mutex::new(Inventory::new(places))),
            sizes: Arc::default(),
            arrivals,
            shows,
        }
    }

    /// One behind which nobody works.
    #[cfg(test)]
    pub(crate) fn closed(state: &std::path::Path) -> Self {
        let (errands, _nobody) = mpsc::channel(1);
        Self::new(errands, Records::open(state).unwrap(), Places::default(), Arrivals::default(), None)
    }

    /// Who may come because the coordinator says so.
    pub(crate) fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    /// Whom this host signs receipts as now.
    pub(crate) fn signer(&self) -> Option<Arc<ReceiptSigner>> {
        Some(Arc::clone(&self.shows.as_ref()?.borrow().signer))
    }

    /// Hands a peer's request over.
    pub(in crate::daemon) fn take(&self, incoming: Incoming) {
        match self.errands.try_send(Errand::Incoming(Box::new(incoming))) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(Errand::Incoming(incoming))) => {
                tracing::warn!(peer = %incoming.peer(), "a migration is refused: too many wait to be looked at");
                incoming.refuse(FailCode::Overloaded, "too many requests wait here; dial again later");
            }
            // Whoever is dropped is refused.
            Err(error) => tracing::debug!(%error, "a migration came while the daemon stops"),
        }
    }

    /// Whom this host is shown as now; none behind which nobody works.
    pub(crate) fn credentials(&self) -> Option<Credentials> {
        Some(self.shows.as_ref()?.borrow().credentials.clone())
    }

    /// Hands a connection over that this host opened to the source of a migration.
    pub(crate) async fn called(&self, migration: SessionId, tunnel: ChannelTunnel) {
        // Fails when the daemon stops: the tunnel is dropped then.
        drop(self.errands.send(Errand::Called(migration, Box::new(tunnel))).await);
    }

    async fn ask<T>(&self, errand: impl FnOnce(oneshot::Sender<T>) -> Errand) -> Result<T, String> {
        let (reply, answer) = oneshot::channel();
        self.errands.send(errand(reply)).await.map_err(|_closed| STOPPING.to_owned())?;
        answer.await.map_err(|_dropped| STOPPING.to_owned())
    }

    /// The virtual machines of this host.
    ///
    /// # Errors
    /// As for all that follow: for people, what and what to do.
    pub async fn list_vms(&self) -> Result<Vec<ListedVm>, String> {
        let vms = self.vms().await?;
        let sizes = self.sizes.lock().await.of(&vms).await;
        Ok(vms.into_iter().zip(sizes).map(|(vm, disk_bytes)| listed(vm, disk_bytes)).collect())
    }

    async fn vms(&self) -> Result<Vec<Vm>, String> {
        let inventory = Arc::clone(&self.inventory);
        // What a look that failed left is whole: it remembers processes one by one.
        let find = move || inventory.lock().unwrap_or_else(PoisonError::into_inner).find();
        let found = tokio::task::spawn_blocking(find).await;
        let found = found.map_err(|error| format!("looking for VMs failed: {error}"))?;
        found.map_err(|error| with_causes(&error))
    }

    /// Begins to move a VM; gives the migration's id.
    ///
    /// # Errors
    /// When it cannot be moved, or not now.
    pub async fn migrate(&self, asked: &Migrate) -> Result<SessionId, String> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|error| format!("the kernel gives no random numbers: {error}; check its settings"))?;
        let migration = SessionId(id);
        self.migrate_as(migration, asked).await?;
        Ok(migration)
    }

    /// As [`Self::migrate`], under an id that somebody else chose, who has made sure that it is new here.
    ///
    /// # Errors
    /// As for [`Self::migrate`].
    pub async fn migrate_as(&self, migration: SessionId, asked: &Migrate) -> Result<(), String> {
        let vms = self.vms().await?;
        let vm = choose(&vms, &asked.vm)?;
        let (job, record) = job::of_request(migration, asked, vm)?;
        let (job, record) = (Box::new(job), Box::new(record));
        self.ask(|reply| Errand::Start { job, record, reply }).await?
    }

    /// Everything that is remembered, newest first: what runs, and what is on record.
    async fn all(&self) -> Result<Vec<Known>, String> {
        let Statuses { running, ended } = self.ask(Errand::Statuses).await?;
        let records = self.records.clone();
        let recorded = tokio::task::spawn_blocking(move || records.all()).await;
        let recorded = recorded.map_err(|error| format!("reading the records failed: {error}"))?;
        let recorded = recorded.map_err(|error| error.chain())?;
        let mut known = BTreeMap::new();
        for record in recorded {
            let status = Status { record, live: Live::default(), findings: Vec::new() };
            let id = status.record.migration.clone();
            known.insert(id, Known { shown: Shown { status, over: true }, on_record: true });
        }
        // Newer than what was recorded: the last figures, and findings.
        let ended = ended.into_iter().map(|status| Shown { status, over: true });
        let running = running.into_iter().map(|status| Shown { status, over: false });
        for shown in ended.chain(running) {
            let id = shown.status.record.migration.clone();
            let on_record = known.contains_key(&id);
            known.insert(id, Known { shown, on_record });
        }
        let mut known: Vec<_> = known.into_values().collect();
        known.sort_by_key(|known| std::cmp::Reverse(known.shown.status.record.began));
        Ok(known)
    }

    /// All migrations that run or are on record, newest first. What was only rehearsed is not.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn list(&self) -> Result<Vec<ListedMigration>, String> {
        let all = self.all().await?;
        let listed = all.iter().filter(|one| one.on_record || !one.shown.over);
        let listed = listed.map(|one| ListedMigration::new(&one.shown.status.record, one.shown.over));
        Ok(listed.collect())
    }

    /// Everything that is remembered, with all that is known of it, newest first.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn shown(&self) -> Result<Vec<Shown>, String> {
        Ok(self.all().await?.into_iter().map(|known| known.shown).collect())
    }

    /// The migration of this whole id, if it is remembered.
    ///
    /// # Errors
    /// When the records cannot be read: then nobody knows whether it is.
    pub async fn known(&self, id: &str) -> Result<Option<Shown>, String> {
        Ok(self.shown().await?.into_iter().find(|shown| shown.status.record.migration == id))
    }

    /// The one migration whose id begins so.
    ///
    /// # Errors
    /// When there is none or there are several.
    pub async fn find(&self, id: &str) -> Result<Shown, String> {
        let digits = id.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
        if id.is_empty() || id.len() > ID_DIGITS || !digits {
            return Err("a migration is named by its hexadecimal digits, or the first of them; `novaferry-agent migration list` shows them".to_owned());
        }
        if id.len() == ID_DIGITS {
            // Who follows a migration asks often: no need to read all records for it.
            let Statuses { running, ended } = self.ask(Errand::Statuses).await?;
            let running = running.into_iter().map(|status| Shown { status, over: false });
            let mut known = running.chain(ended.into_iter().map(|status| Shown { status, over: true }));
            if let Some(shown) = known.find(|shown| shown.status.record.migration == id) {
                return Ok(shown);
            }
        }
        let mut found: Vec<_> = self.all().await?.into_iter().map(|known| known.shown).collect();
        found.retain(|shown| shown.status.record.migration.starts_with(id));
        match found.len() {
            0 => Err(format!(
                "there is no migration {id} here; `novaferry-agent migration list` shows those that are known"
            )),
            1 => Ok(found.remove(0)),
            _ => {
                let ids = found.iter().take(NAMED).map(|shown| shown.status.record.migration.as_str());
                Err(format!(
                    "{id} begins several migrations: {}; write more digits",
                    ids.collect::<Vec<_>>().join(", ")
                ))
            }
        }
    }

    /// Says where the destination of a migration that runs is reached from now on, and how fast it may go. Addresses are
    /// `novaferry://HOST:PORT`, the best first, and `called` when it dials this host; with none, they stay.
    ///
    /// # Errors
    /// When an address is none, or the migration is over.
    pub async fn steer(
        &self,
        migration: SessionId,
        to: &[String],
        called: bool,
        limit: Option<u64>,
    ) -> Result<(), String> {
        let to = job::ways(to, called)?;
        if to.is_empty() {
            return Ok(());
        }
        self.ask(|reply| Errand::Ways { migration, to, limit, reply }).await?
    }

    /// Says when a migration may switch over, while it waits for that; its whole id comes back.
    ///
    /// # Errors
    /// When it does not wait.
    pub async fn cutover(&self, id: &str, cutover: Cutover) -> Result<String, String> {
        let migration = self.running(id).await?;
        self.ask(|reply| Errand::Cutover { migration, cutover, reply }).await??;
        Ok(migration.to_string())
    }

    /// The id of a migration that is not over.
    async fn running(&self, id: &str) -> Result<SessionId, String> {
        let Shown { status, over } = self.find(id).await?;
        let Record { migration, .. } = &status.record;
        if over {
            return Err(format!("migration {} is over ({})", short(migration), status.record.state_name()));
        }
        migration.parse().map_err(|_none| format!("the record of migration {migration} is damaged"))
    }

    /// Gives a migration a command; its whole id comes back. What comes of it shows in its state.
    ///
    /// # Errors
    /// When it has no place in the migration's state.
    pub async fn command(&self, id: &str, command: Command) -> Result<String, String> {
        let migration = self.running(id).await?;
        self.ask(|reply| Errand::Command { migration, command, reply }).await??;
        Ok(migration.to_string())
    }
}

/// The VM of this id, or else of this name.
fn choose<'a>(vms: &'a [Vm], wanted: &str) -> Result<&'a Vm, String> {
    if let Some(vm) = vms.iter().find(|vm| vm.id == wanted) {
        return Ok(vm);
    }
    let shortened: String = wanted.chars().take(128).collect();
    let mut named = vms.iter().filter(|vm| vm.name == wanted);
    match (named.next(), named.next()) {
        (Some(vm), None) => Ok(vm),
        (None, _) => Err(format!(
            "there is no VM {shortened:?} here; `novaferry-agent vm list` shows those that are, and [vms] and [[vm]] in \
             agent.toml say where to look"
        )),
        (Some(_), Some(_)) => {
            let ids: Vec<_> =
                vms.iter().filter(|vm| vm.name == wanted).take(NAMED).map(|vm| vm.id.as_str()).collect();
            Err(format!("several VMs have the name {shortened:?}; name one by its id: {}", ids.join(", ")))
        }
    }
}

fn listed(vm: Vm, disk_bytes: u64) -> ListedVm {
    let pid = vm.pid();
    let Vm { id, name, folder, process: _, state, access, config: _, needs, findings } = vm;
    ListedVm {
        id,
        name,
        state: match state {
            State::Running => "running",
            State::Suspended => "suspended",
            State::Stopped => "stopped",
        }
        .to_owned(),
        access: match access {
            Access::Live { qmp } => ListedAccess::Live { qmp: qmp.display().to_string() },
            Access::ColdOrWarmOnly { reason, fix } => ListedAccess::ColdOrWarmOnly { reason, fix },
            Access::NotYet { reason } => ListedAccess::NotYet { reason },
            Access::Stopped => ListedAccess::Stopped,
        },
        pid,
        folder: folder.map(|folder| folder.display().to_string()),
        needs: ListedNeeds {
            memory_bytes: needs.memory_bytes,
            processors: needs.processors,
            disk_bytes,
            cpu: needs.cpu,
            machine: needs.machine,
            kvm: needs.kvm,
            tenant: needs.tenant,
            labels: needs.labels,
        },
        findings,
    }
}
