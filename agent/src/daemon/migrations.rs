//! The migrations of the daemon, out and in: each a task that carries itself out; here is who starts them, hands
//! tunnels and commands to them, and remembers how they ended.
//!
//! One task owns all of it. Others reach it through a [`Desk`]. At its start it goes on with every migration that an
//! earlier daemon left undecided.

mod desk;
mod job;
mod meter;
mod taking_back;
mod words;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use engine::EngineError;
use engine::migrate::cutover::Cutover;
use engine::migrate::record::{Record, Records, Role};
use engine::migrate::source::{Calls, Job, Way, Ways};
use engine::migrate::status::{Command, DestinationState, Handle, Live, SourceState, Status};
use engine::migrate::{destination, source};
use engine::pool::Pool;
use engine::process::Process;
use engine::receipt::ReceiptSigner;
use hypervisor::inventory::{Entry, Places};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tunnel::{ChannelTunnel, CloseCode, Credentials, Incoming, PeerName, Request};
use volume::SessionId;
use wire::FailCode;

use crate::config::Config;
use crate::config::vms::{MigrateIn, Vms};
use crate::failure::Failure;
use crate::output::migration::short;

pub use desk::Desk;

/// Errands that wait for the owner: clients of the control socket, and peers that dial.
const ERRANDS: usize = 64;
/// Commands that wait for one migration.
const COMMANDS: usize = 8;
/// Tunnels that wait for one migration: a source has one, and dials again when it is lost.
const CONTACTS: usize = 4;
/// Ended migrations whose last figures are kept in memory; the records on disk are kept longer.
const ENDED: usize = 64;
/// How often gauges are set.
const TICK: Duration = Duration::from_secs(2);

/// What this host shows to others and signs with.
#[derive(Clone, Debug)]
pub(super) struct Shows {
    /// For TLS.
    pub credentials: Credentials,
    /// For receipts.
    pub signer: Arc<ReceiptSigner>,
}

/// What others ask of the owner.
#[derive(Debug)]
enum Errand {
    /// A peer wants to move a VM here, or to ask about one; or it is the destination of one that leaves.
    Incoming(Box<Incoming>),
    /// The source of a migration took the connection that this host opened.
    Called(SessionId, Box<ChannelTunnel>),
    /// A VM is to leave.
    Start {
        job: Box<Job>,
        record: Box<Record>,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// How do they stand?
    Statuses(oneshot::Sender<Statuses>),
    /// Other addresses of one's destination, or another limit.
    Ways {
        migration: SessionId,
        to: Vec<Way>,
        limit: Option<u64>,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Cutover {
        migration: SessionId,
        cutover: Cutover,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// A command for one.
    Command {
        migration: SessionId,
        command: Command,
        reply: oneshot::Sender<Result<(), String>>,
    },
}

/// How they stand.
#[derive(Debug, Default)]
struct Statuses {
    running: Vec<Status>,
    ended: Vec<Status>,
}

/// A migration that runs.
#[derive(Debug)]
struct Running {
    handle: Handle,
    /// At a destination: takes further tunnels.
    contacts: Option<mpsc::Sender<ChannelTunnel>>,
    /// At a source: changes where the destination is reached.
    ways: Option<watch::Sender<Ways>>,
    /// At a source: takes connections of this destination.
    calls: Option<(PeerName, Calls)>,
}

impl Running {
    fn status(&self) -> Status {
        self.handle.status.borrow().clone()
    }
}

/// What migrations are made of on this host.
#[derive(Clone, Debug)]
pub(super) struct With {
    /// CPU threads.
    pub(super) process: Process,
    /// Pools that disks may be put into.
    pub(super) pools: Arc<Vec<Pool>>,
    /// What this host shows, kept current.
    pub(super) shows: watch::Receiver<Shows>,
    /// The process is to end.
    pub(super) stop: CancellationToken,
}

/// All migrations.
#[derive(Debug)]
pub(super) struct Migrations {
    with: With,
    records: Records,
    vms: Vms,
    policy: Arc<destination::Policy>,
    /// This host's port, for advice.
    port: u16,
    most: usize,
    errands: mpsc::Receiver<Errand>,
    tasks: JoinSet<()>,
    ids: HashMap<Id, SessionId>,
    running: HashMap<SessionId, Running>,
    /// Tunnels of migrations whose task was just ending.
    waiting: HashMap<SessionId, ChannelTunnel>,
    ended: VecDeque<Status>,
}

impl Migrations {
    /// Opens the records. Nothing runs before [`Self::run`].
    pub(super) fn open(config: &Config, with: With) -> Result<(Self, Desk), Failure> {
        let records = Records::open(&config.state)?;
        let (sender, errands) = mpsc::channel(ERRANDS);
        let policy = Arc::new(policy(&config.migrate_in));
        let desk = Desk::new(
            sender,
            records.clone(),
            places(&config.vms),
            policy.arrivals.clone(),
            Some(with.shows.clone()),
        );
        let migrations = Self {
            with,
            records,
            vms: config.vms.clone(),
            policy,
            port: config.listen.port(),
            most: usize::try_from(config.limits.migrations).unwrap_or(usize::MAX),
            errands,
            tasks: JoinSet::new(),
            ids: HashMap::new(),
            running: HashMap::new(),
            waiting: HashMap::new(),
            ended: VecDeque::new(),
        };
        Ok((migrations, desk))
    }

    /// Goes on with what was left, and then serves until the daemon stops and every task has put away its state.
    pub(super) async fn run(mut self) {
        self.resume();
        let stop = self.with.stop.clone();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(errand) = self.errands.recv() => self.errand(errand),
                Some(joined) = self.tasks.join_next_with_id() => self.ended(joined),
                _ = ticks.tick() => meter::look(self.running.values().map(Running::status)),
            }
        }
        self.errands.close();
        while let Some(joined) = self.tasks.join_next_with_id().await {
            self.ended(joined);
        }
    }

    /// Every migration whose record says that something is left to do.
    fn resume(&mut self) {
        let records = self.records.forget_old().and_then(|()| self.records.all());
        let records = match records {
            Ok(records) => records,
            Err(error) => {
                tracing::error!(error = %error.chain(), "the records of migrations cannot be read");
                return;
            }
        };
        for record in records {
            let Ok(migration) = record.migration.parse() else { continue };
            match self.is_left(&record) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(error) => {
                    tracing::error!(%migration, error = %error.chain(), "a migration's folder cannot be read");
                    continue;
                }
            }
            tracing::info!(%migration, vm = %record.vm, state = record.state_name(), "a migration is taken up again");
            match record.role {
                Role::Source { .. } => match job::of_record(migration, &record) {
                    Ok(job) => self.begin_source(job, record, true),
                    Err(why) => tracing::error!(%migration, %why, "a migration's record makes no sense"),
                },
                Role::Destination { .. } => self.begin_destination(migration, Some(record), None),
            }
        }
    }

    /// A source goes on telling that it gave its copy up, until the destination has heard it.
    fn is_left(&self, record: &Record) -> Result<bool, EngineError> {
        match &record.role {
            Role::Source { state: SourceState::Finalised, .. } => {
                self.records.is_acknowledged(record).map(|heard| !heard)
            }
            _ => Ok(!record.is_final()),
        }
    }

    fn errand(&mut self, errand: Errand) {
        // Whoever asked may be gone.
        match errand {
            Errand::Incoming(incoming) => self.incoming(*incoming),
            Errand::Called(migration, tunnel) => self.called(migration, *tunnel),
            Errand::Start { job, record, reply } => drop(reply.send(self.start(*job, *record))),
            Errand::Statuses(reply) => {
                let running = self.running.values().map(Running::status).collect();
                drop(reply.send(Statuses { running, ended: self.ended.iter().cloned().collect() }));
            }
            Errand::Command { migration, command, reply } => {
                drop(reply.send(self.command(migration, command)));
            }
            Errand::Ways { migration, to, limit, reply } => {
                let change = |ways: &mut Ways| (ways.to, ways.limit) = (to, limit);
                drop(reply.send(self.steer(migration, change)));
            }
            Errand::Cutover { migration, cutover, reply } => {
                drop(reply.send(self.steer(migration, |ways| ways.cutover = cutover)));
            }
        }
    }

    /// How many move data now. Those that wait for somebody cost nothing.
    fn busy(&self) -> usize {
        self.running.values().filter(|running| moves(&running.handle.status.borrow().record.role)).count()
    }

    fn start(&mut self, job: Job, record: Record) -> Result<(), String> {
        for running in self.running.values() {
            let status = running.handle.status.borrow();
            if status.record.vm == job.vm && holds(&status.record.role) {
                return Err(format!(
                    "migration {} of VM {} is not over ({}); `novaferry-agent migration status {}` shows it: cancel, \
                     finalise or resolve it first",
                    status.record.migration,
                    job.vm,
                    status.record.state_name(),
                    short(&status.record.migration),
                ));
            }
        }
        let busy = self.busy();
        if busy >= self.most {
            return Err(format!(
                "{busy} migrations run here; wait for one to end, or raise `migrations` of [limits] in agent.toml"
            ));
        }
        let dry_run = job.options.dry_run;
        tracing::info!(migration = %job.migration, vm = %job.vm, to = job.to.first().map(tracing::field::display), dry_run, "a migration begins");
        self.begin_source(job, record, false);
        Ok(())
    }

    fn begin_source(&mut self, mut job: Job, record: Record, resumed: bool) {
        let calls = Calls::default();
        let context = source::Context {
            records: self.records.clone(),
            credentials: self.with.shows.borrow().credentials.clone(),
            cpu: self.with.process.cpu().clone(),
            runtime: self.vms.runtime.clone(),
            vmd: self.vms.vmd.clone(),
            calls: calls.clone(),
            stop: self.with.stop.clone(),
        };
        let migration = job.migration;
        // Whoever else dials for it is turned away.
        let calls = job.dial.expect_peer.clone().map(|peer| (peer, calls));
        let (handle, commands, status) = handle(&record);
        let (ways, current) = watch::channel(job.ways());
        let span = tracing::info_span!("migration", %migration, vm = job.vm, role = "source", resumed);
        job.traceparent = trace::hand_on(&span, job.traceparent.as_deref());
        let work = async move {
            source::run(context, job, record, resumed, commands, current, status).await;
        };
        let task = self.tasks.spawn(tracing::Instrument::instrument(work, span));
        self.ids.insert(task.id(), migration);
        self.running.insert(migration, Running { handle, contacts: None, ways: Some(ways), calls });
    }

    fn begin_destination(
        &mut self,
        migration: SessionId,
        record: Option<Record>,
        tunnel: Option<ChannelTunnel>,
    ) {
        let shows = self.with.shows.borrow().clone();
        let context = destination::Context {
            records: self.records.clone(),
            cpu: self.with.process.cpu().clone(),
            pools: Arc::clone(&self.with.pools),
            vmd: self.vms.vmd.clone(),
            policy: Arc::clone(&self.policy),
            signer: shows.signer,
            stop: self.with.stop.clone(),
        };
        let (contacts, inbox) = mpsc::channel(CONTACTS);
        let peer = tunnel.as_ref().map_or("", |tunnel| tunnel.peer().as_str());
        let shown = record.clone().unwrap_or_else(|| destination::new_record(migration, peer));
        let (handle, commands, status) = handle(&shown);
        if let Some(tunnel) = tunnel {
            // Before the task begins: one that is decided already ends when nobody waits for it.
            hand_over(&contacts, tunnel);
        }
        let task = self.tasks.spawn(async move {
            destination::run(context, migration, record, inbox, commands, status).await;
        });
        self.ids.insert(task.id(), migration);
        self.running.insert(migration, Running { handle, contacts: Some(contacts), ways: None, calls: None });
    }

    /// A peer dialled: for a migration that it begins, or for one that it wants to know about.
    fn incoming(&mut self, incoming: Incoming) {
        let migration = match incoming.request() {
            Request::Migrate(migrate) => migrate.migration,
            Request::Call(call) => return self.call(call.migration, incoming),
            Request::Copy(_) => {
                incoming.refuse(FailCode::Internal, "a copy came where migrations are taken; this is a bug");
                return;
            }
        };
        let peer = incoming.peer().as_str().to_owned();
        match self.admit(migration, &peer) {
            Err((code, reason)) => {
                tracing::warn!(%peer, remote = %incoming.remote(), %migration, %reason, "a migration is refused");
                incoming.refuse(code, &reason);
            }
            Ok(record) => {
                tracing::info!(%peer, remote = %incoming.remote(), transport = ?incoming.transport(), %migration, "migration");
                let tunnel = match incoming.accept_channels() {
                    Ok(tunnel) => tunnel,
                    Err(error) => {
                        tracing::warn!(%peer, %migration, %error, "a migration's tunnel cannot be opened");
                        return;
                    }
                };
                self.arrived(migration, record, tunnel);
            }
        }
    }

    fn arrived(&mut self, migration: SessionId, record: Option<Record>, tunnel: ChannelTunnel) {
        match self.running.get(&migration).map(|running| &running.contacts) {
            Some(Some(contacts)) => {
                if let Some(tunnel) = hand_over(contacts, tunnel) {
                    self.waiting.insert(migration, tunnel);
                }
            }
            _ => self.begin_destination(migration, record, Some(tunnel)),
        }
    }

    /// A source took the connection that this host opened: as if the source had dialled.
    fn called(&mut self, migration: SessionId, tunnel: ChannelTunnel) {
        let peer = tunnel.peer().as_str().to_owned();
        match self.admit(migration, &peer) {
            Ok(record) => {
                tracing::info!(%peer, remote = %tunnel.remote(), %migration, "migration, over a connection from here");
                self.arrived(migration, record, tunnel);
            }
            Err((code, reason)) => {
                tracing::warn!(%peer, remote = %tunnel.remote(), %migration, %reason, "a migration is refused");
                tunnel.close(CloseCode::Failed(code), &reason);
            }
        }
    }

    /// A destination dialled. It does so from when it is told of the migration, which may be before this host is.
    fn call(&self, migration: SessionId, incoming: Incoming) {
        let calls = self.running.get(&migration).and_then(|running| running.calls.as_ref());
        match calls.filter(|(peer, _)| peer == incoming.peer()) {
            Some((_, calls)) => {
                tracing::info!(peer = %incoming.peer(), remote = %incoming.remote(), %migration, "its destination dialled");
                calls.put(incoming);
            }
            None => incoming.refuse(FailCode::NotFound, "no such migration leaves this host for yours"),
        }
    }

    /// Whether a peer may talk about a migration; with its record when none of that id runs.
    fn admit(&self, migration: SessionId, peer: &str) -> Result<Option<Record>, (FailCode, String)> {
        let anothers = || (FailCode::NotAuthorised, "this migration belongs to another host".to_owned());
        let away = || (FailCode::NotAuthorised, "this migration's VM leaves this host".to_owned());
        if let Some(running) = self.running.get(&migration) {
            let status = running.handle.status.borrow();
            return match status.record.role {
                Role::Source { .. } => Err(away()),
                Role::Destination { .. } if status.record.peer == peer => Ok(None),
                Role::Destination { .. } => Err(anothers()),
            };
        }
        let record = self.records.load(migration).map_err(|error| (error.fail_code(), error.told()))?;
        match record {
            Some(Record { role: Role::Source { .. }, .. }) => Err(away()),
            Some(record) if record.peer != peer => Err(anothers()),
            Some(record) => Ok(Some(record)),
            None if !self.policy.hears(peer) => Err((FailCode::NotAuthorised, destination::stranger(peer))),
            None if self.busy() >= self.most => Err((
                FailCode::Overloaded,
                "too many migrations run here; wait for one to end, or raise `migrations` of [limits] there"
                    .to_owned(),
            )),
            None => Ok(None),
        }
    }

    /// What is told again changes nothing.
    fn steer(&self, migration: SessionId, change: impl FnOnce(&mut Ways)) -> Result<(), String> {
        let running = self.running.get(&migration).ok_or_else(|| format!("migration {migration} is over"))?;
        let current = running.ways.as_ref().ok_or("only the source of a migration can be told that")?;
        current.send_if_modified(|current| {
            let before = current.clone();
            change(current);
            *current != before
        });
        Ok(())
    }

    fn command(&self, migration: SessionId, command: Command) -> Result<(), String> {
        let running = self.running.get(&migration).ok_or_else(|| format!("migration {migration} is over"))?;
        let status = running.status();
        if !words::fits(command, &status.record.role) {
            let host = self.with.shows.borrow().signer.name().to_owned();
            return Err(words::why_not(command, &status.record, &host, self.port));
        }
        if command == Command::TakeBack {
            let host = self.with.shows.borrow().signer.name().to_owned();
            let known = self.records.generation(&status.record.vm).map_err(|error| error.chain())?;
            if let Some(objection) = taking_back::objection(&status.record, known, &host, self.port) {
                return Err(objection);
            }
        }
        if command == Command::Finalise && status.live.postcopy.is_some() {
            return Err(words::memory_follows(&status.record));
        }
        tracing::info!(%migration, ?command, state = status.record.state_name(), "asked through the control socket");
        running.handle.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                "it has not looked at earlier commands yet; try again".to_owned()
            }
            mpsc::error::TrySendError::Closed(_) => format!("migration {migration} is over"),
        })
    }

    fn ended(&mut self, joined: Result<(Id, ()), JoinError>) {
        let id = match &joined {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let Some(migration) = self.ids.remove(&id) else { return };
        let Some(running) = self.running.remove(&migration) else { return };
        let status = running.status();
        let record = &status.record;
        match joined {
            Ok(_) => tracing::info!(
                %migration, vm = %record.vm, peer = %record.peer, state = record.state_name(), "a migration's task ended"
            ),
            Err(error) => {
                tracing::error!(%migration, %error, "a migration's task failed; this is a bug; restart the agent to go on");
            }
        }
        // A destination that refused, or only looked, made nothing.
        if !record.vm.is_empty() {
            meter::ended(&status);
            if self.ended.len() >= ENDED {
                self.ended.pop_front();
            }
            self.ended.retain(|earlier| earlier.record.migration != record.migration);
            self.ended.push_back(status);
        }
        if let Some(tunnel) = self.waiting.remove(&migration) {
            match self.records.load(migration) {
                Ok(record) => self.begin_destination(migration, record, Some(tunnel)),
                Err(error) => {
                    tracing::error!(%migration, error = %error.chain(), "a migration's record cannot be read");
                    tunnel.close(CloseCode::Failed(error.fail_code()), &error.told());
                }
            }
        }
    }
}

/// Gives a tunnel to a migration's task. One whose task is just ending comes back.
fn hand_over(contacts: &mpsc::Sender<ChannelTunnel>, tunnel: ChannelTunnel) -> Option<ChannelTunnel> {
    match contacts.try_send(tunnel) {
        Ok(()) => None,
        Err(mpsc::error::TrySendError::Full(tunnel)) => {
            tunnel.close(
                CloseCode::Failed(FailCode::Overloaded),
                "this migration has not looked at earlier tunnels",
            );
            None
        }
        Err(mpsc::error::TrySendError::Closed(tunnel)) => Some(tunnel),
    }
}

fn handle(record: &Record) -> (Handle, mpsc::Receiver<Command>, watch::Sender<Status>) {
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let status = Status { record: record.clone(), live: Live::default(), findings: Vec::new() };
    let (shows, status) = watch::channel(status);
    (Handle { commands, status }, inbox, shows)
}

/// Data moves.
fn moves(role: &Role) -> bool {
    use SourceState as S;
    match role {
        Role::Source { state, .. } => matches!(
            state,
            S::Preparing | S::Mirroring | S::PreCopy | S::Paused | S::Fencing | S::Permitting | S::Undoing(_)
        ),
        Role::Destination { state, .. } => {
            matches!(state, DestinationState::Waiting { .. } | DestinationState::Permitted { .. })
        }
    }
}

/// The VM cannot be moved from here while this stands.
fn holds(role: &Role) -> bool {
    match role {
        Role::Source { state, .. } => !state.is_final(),
        Role::Destination { state, .. } => !state.is_final() && *state != DestinationState::Running,
    }
}

fn places(vms: &Vms) -> Places {
    let entries = vms.named.iter().map(|vm| Entry {
        name: vm.name.clone(),
        qmp: vm.qmp.clone(),
        folder: vm.folder.clone(),
        tenant: vm.tenant.clone(),
        labels: vm.labels.clone(),
    });
    Places { entries: entries.collect(), novacron: Some(vms.folder.clone()) }
}

fn policy(from: &MigrateIn) -> destination::Policy {
    let slots = from.slots();
    let MigrateIn { allow, pool, default_bridge, bridges, boot, firmware, ram_cache: _ } = from.clone();
    destination::Policy {
        allow: allow.iter().map(ToString::to_string).collect(),
        arrivals: destination::Arrivals::default(),
        pool: pool.map(|pool| pool.to_string()),
        bridges,
        default_bridge,
        boot,
        firmware,
        max_slots: slots,
    }
}
