//! `serve`: the daemon that takes volumes into its pools and gives them out.
//!
//! One task owns everything: it accepts sessions and starts a task for each, notices those that end, keeps the identity
//! current, and sets the metrics. Migrations have an owner of their own. When it is asked to stop it closes the listener, lets sessions make durable what is
//! in flight, and ends.

mod identity;
mod meter;
mod migrations;
mod sessions;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::pool::Pool;
use engine::process::{Process, SessionLimits};
use engine::send::SenderState;
use engine::transfer::{Accepted, Registry};
use sd_notify::NotifyState;
use tokio::signal::unix::SignalKind;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tunnel::{ListenOptions, Listener, Request};

use crate::config::{self, Config};
use crate::control::server::ControlSocket;
use crate::coordinator::Line;
use crate::failure::Failure;
use crate::observe::prometheus::{self, Endpoint, Health, HealthState};
use crate::{credentials, signals, state};
use meter::Meter;
use migrations::{Migrations, Shows, With};
use pki::{Identity, IdentityWatcher};
use sessions::Sessions;

pub use migrations::Desk;

/// How often metrics are set and the identity's files looked at.
const TICK: Duration = Duration::from_secs(2);
/// How long sessions may take to make durable what is in flight: below `TimeoutStopSec=` of the unit (180 s), with room
/// for what follows.
const DRAIN: Duration = Duration::from_secs(150);
/// How long connections may take to say goodbye after that.
const GOODBYE: Duration = Duration::from_secs(5);
/// Age at which what a sender remembers of an unfinished session is dropped at the next start; the session would begin
/// again from what the receiver still holds.
const FORGET: Duration = Duration::from_secs(30 * 24 * 3600);
/// Buffers of the engine.
const BUFFER: u64 = 256 << 10;

/// Checks what `serve` would need, and changes nothing: the identity, and that every pool's folder is there.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(config: &Config) -> Result<(), Failure> {
    credentials::of(&Identity::load_from(&config.identity, SystemTime::now())?)?;
    for pool in &config.pools {
        check_folder(pool)?;
    }
    Ok(())
}

fn check_folder(pool: &config::Pool) -> Result<(), Failure> {
    let wrong = |why: String| {
        Failure::new(
            "pool",
            format!("the folder {} of pool {} {why}", pool.path.display(), pool.name),
            "make the folder for the agent's user, or correct `path` of that [[pool]]",
        )
    };
    match std::fs::metadata(&pool.path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(wrong("is no folder".to_owned())),
        Err(error) => Err(wrong(format!("cannot be used: {error}"))),
    }
}

/// The name in this host's certificate.
///
/// # Errors
/// When the identity cannot be loaded.
pub fn host_name(config: &Config) -> Result<String, Failure> {
    Ok(Identity::load_from(&config.identity, SystemTime::now())?.name().to_string())
}

fn open_pools(config: &Config) -> Result<Vec<Pool>, Failure> {
    let names = |peers: &[pki::PeerName]| peers.iter().map(ToString::to_string).collect();
    let mut pools = Vec::with_capacity(config.pools.len());
    for pool in &config.pools {
        check_folder(pool)?;
        let config::Pool { name, path, quota, push, pull } = pool;
        let quota = quota.map(|quota| quota.0);
        pools.push(Pool::open(name.as_str(), path, quota, names(push), names(pull))?);
    }
    Ok(pools)
}

fn session_limits(limits: &config::Limits) -> SessionLimits {
    let count = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let default = SessionLimits::default();
    SessionLimits {
        buffers: count(limits.session_memory.0 / BUFFER),
        dedup_memory: limits.dedup_memory.map_or(0, |bytes| count(bytes.0)),
        window_bytes: default.window_bytes.min(limits.session_memory.0),
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When something that is needed at the start is not there. What goes wrong later is logged.
pub async fn run(config: Config) -> Result<(), Failure> {
    let now = SystemTime::now();
    let watcher = IdentityWatcher::new(config.identity.clone(), now)?;
    let credentials = credentials::of(watcher.current())?;
    state::make(&config.state)?;
    let pools = Arc::new(open_pools(&config)?);
    let forgotten = SenderState::forget_older_than(&config.state, FORGET)?;
    if forgotten > 0 {
        tracing::info!(forgotten, "sessions that nobody came back for are forgotten");
    }
    let process = Process::start(session_limits(&config.limits), disk::Backend::Auto)?;

    // Signals before anything that others can see: one that comes early must not kill.
    let mut terminate = signals::listen(SignalKind::terminate())?;
    let mut interrupt = signals::listen(SignalKind::interrupt())?;
    let mut hangup = signals::listen(SignalKind::hangup())?;

    let health = Health::new();
    let stop = CancellationToken::new();
    let ended = CancellationToken::new();
    let scrape = prometheus::install()?;
    let mut helpers = tokio::task::JoinSet::new();
    if let Some(address) = config.metrics {
        let endpoint = Endpoint::bind(address).await?;
        tracing::info!(address = %endpoint.address(), "metrics");
        helpers.spawn(endpoint.serve(scrape, health.clone(), ended.clone().cancelled_owned()));
    }
    let most = sessions::most(&config.limits);
    let registry = Registry::new(most);
    make_parent(&config.control)?;
    let signer = Arc::new(credentials::signer(watcher.current()));
    let (shows, shown) =
        watch::channel(Shows { credentials: credentials.clone(), signer: Arc::clone(&signer) });
    let with = With { process: process.clone(), pools: Arc::clone(&pools), shows: shown, stop: stop.clone() };
    let (migrations, desk) = Migrations::open(&config, with)?;
    let control = ControlSocket::bind(&config.control)?;
    helpers.spawn(control.serve(registry.clone(), desk.clone(), ended.clone()));

    let options = ListenOptions {
        limit: config.limits.rate.map(config::units::Rate::bytes_per_second),
        ..ListenOptions::default()
    };
    let listener = Listener::bind(config.listen, &credentials, options)?;
    let accepted = Accepted {
        process,
        pools,
        state: config.state.clone(),
        signer,
        registry: registry.clone(),
        stop: stop.clone(),
    };
    let mut moving = tokio::spawn(migrations.run());
    if let Some(coordinator) = config.coordinator.clone() {
        let line = Line::new(&config, coordinator, listener.local_addr(), desk.clone());
        helpers.spawn(line.run(ended.clone()));
    }
    let mut keeper = identity::Keeper::new(watcher, config.coordinator.is_some());
    let mut sessions = Sessions::new(accepted, most, config.limits.sessions_per_peer);
    let mut meter = Meter::new(config.limits.session_memory.0);
    keeper.warn(now);
    meter.identity(keeper.current());
    health.set(HealthState::Ready);
    notify(&[NotifyState::Ready]);
    tracing::info!(
        address = %listener.local_addr(),
        host = %keeper.current().name(),
        pools = config.pools.len(),
        sessions = most,
        "ready"
    );

    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                let reloading = NotifyState::monotonic_usec_now();
                match reloading {
                    Ok(since) => notify(&[NotifyState::Reloading, since]),
                    Err(error) => tracing::debug!(%error, "no monotonic clock for systemd"),
                }
                keeper.reload(&listener, &mut sessions, &shows, &meter, SystemTime::now());
                notify(&[NotifyState::Ready]);
            }
            _ = ticks.tick() => {
                keeper.poll(&listener, &mut sessions, &shows, &meter, SystemTime::now());
                meter.look(sessions.running());
            }
            incoming = listener.accept() => match incoming {
                Some(incoming) => match incoming.request() {
                    Request::Migrate(_) | Request::Call(_) => desk.take(incoming),
                    Request::Copy(_) => sessions.begin(incoming),
                },
                None => break,
            },
            Some(end) = sessions.next_end() => meter.ended(end),
        }
    }

    health.set(HealthState::Draining);
    notify(&[NotifyState::Stopping]);
    tracing::info!(sessions = sessions.count(), "stopping: sessions make durable what is in flight");
    listener.close();
    stop.cancel();
    let drained = async {
        while let Some(end) = sessions.next_end().await {
            meter.ended(end);
        }
        if let Err(error) = (&mut moving).await {
            tracing::error!(%error, "the owner of the migrations failed; this is a bug");
        }
    };
    tokio::select! {
        drained = timeout(DRAIN, drained) => if drained.is_err() {
            tracing::warn!("sessions did not drain in time; what they acknowledged is durable, they can be resumed");
        },
        _ = terminate.recv() => tracing::warn!("stopping at once"),
        _ = interrupt.recv() => tracing::warn!("stopping at once"),
    }
    moving.abort();
    if timeout(GOODBYE, listener.ended()).await.is_err() {
        tracing::debug!("connections did not say goodbye in time");
    }
    ended.cancel();
    while let Some(helper) = helpers.join_next().await {
        if let Err(error) = helper {
            tracing::error!(%error, "a helper task failed; this is a bug");
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Makes the control socket's folder for systems where nobody else does.
fn make_parent(socket: &Path) -> Result<(), Failure> {
    match socket.parent() {
        Some(parent) => state::make(parent),
        None => Ok(()),
    }
}

/// Tells systemd, if it is there.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be told");
    }
}
