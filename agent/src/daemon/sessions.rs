//! The sessions of the daemon: each a task, counted by peer, refused when there are too many.

use std::collections::HashMap;
use std::sync::Arc;

use engine::EngineError;
use engine::process::Process;
use engine::progress::Progress;
use engine::receipt::{Receipt, ReceiptSigner};
use engine::receive::receive_buffers;
use engine::transfer::{Accepted, accept};
use tokio::task::{Id, JoinSet};
use tunnel::{Incoming, Request, TunnelErrorKind};
use wire::{Direction, FailCode};

use crate::config::Limits;
use crate::failure::code_of;

/// Sessions that may run at once: as many as are allowed, and have memory.
pub(super) fn most(limits: &Limits) -> usize {
    let fit = limits.total_memory.0 / limits.session_memory.0.max(1);
    usize::try_from(fit.min(u64::from(limits.sessions)).max(1)).unwrap_or(usize::MAX)
}

/// A session that runs.
#[derive(Debug)]
pub(super) struct Running {
    /// Whose it is.
    pub(super) peer: String,
    /// Which way, seen from the peer.
    pub(super) direction: Direction,
    /// Its counters.
    pub(super) progress: Arc<Progress>,
}

/// A session that ended.
#[derive(Debug)]
pub(super) struct End {
    /// Its task.
    pub(super) id: Id,
    /// What it was.
    pub(super) session: Running,
    /// The code of the error that ended it.
    pub(super) error: Option<String>,
}

/// All sessions.
pub(super) struct Sessions {
    with: Accepted,
    most: usize,
    most_of_peer: usize,
    tasks: JoinSet<Result<Option<Receipt>, EngineError>>,
    running: HashMap<Id, Running>,
}

impl Sessions {
    pub(super) fn new(with: Accepted, most: usize, most_of_peer: u32) -> Self {
        let most_of_peer = usize::try_from(most_of_peer).unwrap_or(usize::MAX);
        Self { with, most, most_of_peer, tasks: JoinSet::new(), running: HashMap::new() }
    }

    /// How many run.
    pub(super) fn count(&self) -> usize {
        self.running.len()
    }

    /// Those that run.
    pub(super) fn running(&self) -> &HashMap<Id, Running> {
        &self.running
    }

    /// Signs receipts of sessions that begin from now on.
    pub(super) fn sign_with(&mut self, signer: ReceiptSigner) {
        self.with.signer = Arc::new(signer);
    }

    /// Starts a session, or refuses it.
    pub(super) fn begin(&mut self, incoming: Incoming) {
        let peer = incoming.peer().as_str().to_owned();
        let Request::Copy(open) = incoming.request() else {
            incoming.refuse(FailCode::Internal, "a migration came where copies are taken; this is a bug");
            return;
        };
        let volume = format!("{}/{}", open.pool, open.name);
        tracing::info!(
            %peer, remote = %incoming.remote(), transport = ?incoming.transport(), session = %open.session,
            direction = ?open.direction, mode = ?open.mode, %volume, "session"
        );
        let of_peer = self.running.values().filter(|session| session.peer == peer).count();
        if self.running.len() >= self.most || of_peer >= self.most_of_peer {
            tracing::warn!(%peer, of_peer, sessions = self.running.len(), "refused: too many sessions");
            let reason = "too many sessions run here; wait for one to end, or raise [limits] there";
            incoming.refuse(FailCode::Overloaded, reason);
            return;
        }
        let progress = Arc::new(Progress::default());
        let session = Running { peer, direction: open.direction, progress: Arc::clone(&progress) };
        let with = self.with.clone();
        let task = self.tasks.spawn(async move {
            let disk = match start_disk(with.process.clone()).await {
                Ok(disk) => disk,
                Err(error) => {
                    incoming.refuse(error.fail_code(), &error.told());
                    return Err(error);
                }
            };
            let tunnel = incoming.accept(receive_buffers(&disk.pool, with.process.limits().buffers))?;
            accept(&with, tunnel, disk, progress).await
        });
        self.running.insert(task.id(), session);
    }

    /// The next session that ends; none when none runs. Cancel-safe.
    pub(super) async fn next_end(&mut self) -> Option<End> {
        loop {
            let joined = self.tasks.join_next_with_id().await?;
            let (id, result) = match joined {
                Ok((id, result)) => (id, Ok(result)),
                Err(error) => (error.id(), Err(error)),
            };
            let Some(session) = self.running.remove(&id) else { continue };
            let error = match result {
                Ok(Ok(receipt)) => {
                    said_done(&session, receipt.as_ref());
                    None
                }
                Ok(Err(error)) => Some(said_failed(&session, &error)),
                Err(error) => {
                    tracing::error!(peer = %session.peer, %error, "a session's task failed; this is a bug");
                    Some("panic".to_owned())
                }
            };
            return Some(End { id, session, error });
        }
    }
}

/// Buffers and ring: blocks while the kernel pins memory.
async fn start_disk(process: Process) -> Result<engine::process::SessionDisk, EngineError> {
    match tokio::task::spawn_blocking(move || process.session_disk()).await {
        Ok(disk) => disk,
        Err(error) => {
            Err(EngineError::Corrupt(format!("starting a session's disk backend panicked: {error}")))
        }
    }
}

fn said_done(session: &Running, receipt: Option<&Receipt>) {
    let counters = session.progress.snapshot();
    let volume = receipt.map(|receipt| receipt.body.volume.as_str());
    let root = receipt.map(|receipt| receipt.body.root.as_str());
    tracing::info!(
        peer = %session.peer, direction = ?session.direction, volume, root, logical_bytes = counters.size,
        wire_bytes = counters.wire_total(), "session done"
    );
}

/// Logs why a session ended, once: what the peer did or what the network did is a warning, what we could not do is an
/// error, and what somebody asked for is neither.
fn said_failed(session: &Running, error: &EngineError) -> String {
    let code = code_of(error);
    let (peer, direction, reason) = (&session.peer, session.direction, error.chain());
    match error {
        EngineError::Interrupted | EngineError::Cancelled => {
            tracing::info!(%peer, ?direction, %code, %reason, "session ended");
        }
        EngineError::Tunnel(tunnel) if matches!(tunnel.kind(), TunnelErrorKind::Closed(_)) => {
            tracing::info!(%peer, ?direction, %code, %reason, "session ended");
        }
        EngineError::Tunnel(_)
        | EngineError::Session(_)
        | EngineError::Reduce(_)
        | EngineError::Refused { .. } => {
            tracing::warn!(%peer, ?direction, %code, %reason, "session ended");
        }
        _ => tracing::error!(%peer, ?direction, %code, %reason, "session failed on this host"),
    }
    code
}
