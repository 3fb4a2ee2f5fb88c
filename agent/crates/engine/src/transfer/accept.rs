//! The side that is dialled: what an agent does with a tunnel that a peer opened.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tunnel::Tunnel;
use volume::{Fingerprint, Generation, SessionId};
use wire::{Control, Direction, FailCode, Mode, Offer, Open};

use super::dialled::{close, tell};
use super::grant::{grant, known};
use super::{next_control, say};
use crate::clock::process_cpu;
use crate::ends::{OpenSource, open_qcow2};
use crate::error::EngineError;
use crate::pool::{Pool, PoolContent};
use crate::process::{Process, SessionDisk};
use crate::progress::{Progress, Snapshot};
use crate::receive::{ReceiveAttempt, ReceiveEnds, receive};
use crate::send::{SendAttempt, SendEnds, SenderState, send};
use crate::target::meta::Format;
use crate::target::{Request, Target};
use receipt::{Receipt, ReceiptSigner};

/// What an agent brings to a session that a peer opened.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The process.
    pub process: Process,
    /// Its pools.
    pub pools: Arc<Vec<Pool>>,
    /// Where senders keep what survives them.
    pub state: std::path::PathBuf,
    /// Who signs.
    pub signer: Arc<ReceiptSigner>,
    /// Sessions that run.
    pub registry: Registry,
    /// The agent is stopping.
    pub stop: CancellationToken,
}

/// A session as it is listed.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Its id.
    pub session: SessionId,
    /// Its generation; 0 until it is granted.
    pub generation: u64,
    /// Who opened it.
    pub peer: String,
    /// `POOL/NAME`.
    pub volume: String,
    /// Which way, seen from the peer.
    pub direction: Direction,
    /// Since when.
    pub since: Instant,
    /// Its counters.
    pub counters: Snapshot,
}

struct Entry {
    peer: String,
    volume: String,
    direction: Direction,
    generation: u64,
    since: Instant,
    progress: Arc<Progress>,
    cancel: CancellationToken,
}

/// Sessions that run, bounded in number.
#[derive(Clone, Default)]
pub struct Registry {
    sessions: Arc<Mutex<BTreeMap<SessionId, Entry>>>,
    most: usize,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registry({} of {})", self.lock().len(), self.most)
    }
}

/// Takes the session off the list when it ends, however it ends.
struct Listed<'a>(&'a Registry, SessionId);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl Registry {
    /// At most so many sessions at once.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { sessions: Arc::default(), most }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SessionId, Entry>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, session: SessionId, entry: Entry) -> Result<Listed<'_>, EngineError> {
        let mut sessions = self.lock();
        if sessions.len() >= self.most {
            let what =
                format!("{} sessions run already; wait, or raise `sessions` under [limits] there", self.most);
            return Err(EngineError::refused(FailCode::Overloaded, what));
        }
        // The same session again: its peer lost the tunnel and came back before we noticed. The old one gives way.
        if let Some(old) = sessions.get(&session) {
            if old.peer != entry.peer {
                return Err(EngineError::refused(FailCode::NotAuthorised, "this session is another peer's"));
            }
            old.cancel.cancel();
            return Err(EngineError::refused(
                FailCode::Overloaded,
                "the session's old tunnel is being closed; dial again",
            ));
        }
        sessions.insert(session, entry);
        Ok(Listed(self, session))
    }

    fn granted(&self, session: SessionId, generation: Generation) {
        if let Some(entry) = self.lock().get_mut(&session) {
            entry.generation = generation.0;
        }
    }

    /// All sessions that run.
    #[must_use]
    pub fn list(&self) -> Vec<SessionInfo> {
        self.lock()
            .iter()
            .map(|(session, entry)| SessionInfo {
                session: *session,
                generation: entry.generation,
                peer: entry.peer.clone(),
                volume: entry.volume.clone(),
                direction: entry.direction,
                since: entry.since,
                counters: entry.progress.snapshot(),
            })
            .collect()
    }

    /// Cancels a session; false when there is none of that id.
    #[must_use]
    pub fn cancel(&self, session: SessionId) -> bool {
        self.lock().get(&session).is_some_and(|entry| {
            entry.cancel.cancel();
            true
        })
    }
}

/// Serves one session from its first frame to its end. The result is for the agent's log and metrics, and so is what
/// is counted in `progress`; the peer has been told.
pub async fn accept(
    with: &Accepted,
    tunnel: Tunnel,
    disk: SessionDisk,
    progress: Arc<Progress>,
) -> Result<Option<Receipt>, EngineError> {
    let peer = tunnel.peer().as_str().to_owned();
    let (handle, data, inbox, received) = tunnel.split();
    let result = async {
        let open = match next_control(&inbox, &with.stop).await? {
            Control::Open(open) => open,
            other => return Err(session::SessionError::Unexpected(other.tag()).into()),
        };
        let cancel = CancellationToken::new();
        let entry = Entry {
            peer: peer.clone(),
            volume: format!("{}/{}", open.pool, open.name),
            direction: open.direction,
            generation: 0,
            since: Instant::now(),
            progress: Arc::clone(&progress),
            cancel: cancel.clone(),
        };
        let session = open.session;
        let entered = with.registry.enter(session, entry);
        let _listed = match entered {
            Ok(listed) => listed,
            Err(error) => {
                tell(&handle, &error).await;
                return Err(error);
            }
        };
        let one = One { with, peer: &peer, open: &open, disk: &disk, progress: &progress, cancel: &cancel };
        match open.direction {
            Direction::Push => {
                let offer = match next_control(&inbox, &with.stop).await? {
                    Control::Offer(offer) => offer,
                    other => return Err(session::SessionError::Unexpected(other.tag()).into()),
                };
                let ends = ReceiveEnds { handle: handle.clone(), data: received, inbox };
                one.receive(&ends, &offer).await.map(Some)
            }
            Direction::Pull => {
                let ends = SendEnds { handle: handle.clone(), data, inbox };
                one.send(&ends).await.map(|()| None)
            }
        }
    }
    .await;
    close(&handle, result.as_ref().err()).await;
    result
}

struct One<'a> {
    with: &'a Accepted,
    peer: &'a str,
    open: &'a Open,
    disk: &'a SessionDisk,
    progress: &'a Progress,
    cancel: &'a CancellationToken,
}

impl One<'_> {
    fn pool(&self) -> Result<&Pool, EngineError> {
        self.with.pools.iter().find(|pool| pool.name() == self.open.pool).ok_or_else(|| {
            let what =
                format!("there is no pool {:?} here; see [[pool]] in agent.toml there", self.open.pool);
            EngineError::refused(FailCode::NotFound, what)
        })
    }

    async fn receive(&self, ends: &ReceiveEnds, offer: &Offer) -> Result<Receipt, EngineError> {
        let cpu_at_start = process_cpu();
        Progress::set(&self.progress.size, offer.size.0);
        let (target, content, grant) = match self.open_target(offer).await {
            Ok(opened) => opened,
            Err(error) => {
                tell(&ends.handle, &error).await;
                return Err(error);
            }
        };
        let session = self.open.session;
        self.with.registry.granted(session, grant.generation);
        ends.handle.register(session, grant.generation);
        say(&ends.handle, &ends.inbox, Control::Grant(grant)).await?;
        if grant.known {
            for frame in known(&content, offer.size.chunks()) {
                say(&ends.handle, &ends.inbox, frame).await?;
            }
        }
        let span = tracing::info_span!("session", session = %session, generation = grant.generation.0, peer = self.peer);
        let attempt = ReceiveAttempt {
            target,
            size: offer.size,
            grant,
            content,
            session,
            owner: self.peer.to_owned(),
            mode: self.open.mode,
            readback: self.open.readback,
            signer: Some(&self.with.signer),
            receiver_name: self.with.signer.name().to_owned(),
            pool: &self.disk.pool,
            cpu: self.with.process.cpu(),
            progress: self.progress,
            stop: &self.with.stop,
            cancel: self.cancel,
            cpu_at_start,
            buffers: self.with.process.limits().buffers,
        };
        tracing::Instrument::instrument(receive(ends, attempt), span).await
    }

    async fn open_target(&self, offer: &Offer) -> Result<(Target, PoolContent, wire::Grant), EngineError> {
        let pool = self.pool()?.clone();
        pool.allow_push(self.peer)?;
        let admission = pool.admission().await;
        let limits = self.with.process.limits();
        let request = Request {
            owner: self.peer.to_owned(),
            session: self.open.session,
            mode: self.open.mode,
            format: self.open.format,
            size: offer.size,
            generation: offer.generation,
            remembered_key: offer.remembered_key,
        };
        let (name, mode) = (self.open.name.clone(), self.open.mode);
        let asked = request.clone();
        let (home, key) = tokio::task::spawn_blocking(move || {
            Ok::<_, EngineError>((pool.home(&name, &asked)?, pool.keys()?.of_owner(&asked.owner)?))
        })
        .await
        .map_err(|error| EngineError::Corrupt(format!("opening the pool panicked: {error}")))??;
        let target = Target::open(home, &self.disk.disk, key, &request).await?;
        drop(admission);
        let (pool, key_id) = (self.pool()?.clone(), target.key().id());
        let content = tokio::task::spawn_blocking(move || {
            if mode == Mode::Create {
                pool.content(&request, key_id, limits.dedup_memory)
            } else {
                Ok(PoolContent::of_session_only(limits.dedup_memory))
            }
        })
        .await
        .map_err(|error| EngineError::Corrupt(format!("reading leaf tables panicked: {error}")))??;
        let grant = grant(&target, offer, self.open.mode, &content, limits)?;
        Ok((target, content, grant))
    }

    async fn send(&self, ends: &SendEnds) -> Result<(), EngineError> {
        let (source, fingerprint, mut state) = match self.open_source().await {
            Ok(opened) => opened,
            Err(error) => {
                tell(&ends.handle, &error).await;
                return Err(error);
            }
        };
        let volume = source.volume();
        let size = volume.geometry().size;
        Progress::set(&self.progress.size, size.0);
        let offer = Offer { size, remembered_key: state.offered_key(), generation: state.generation() };
        say(&ends.handle, &ends.inbox, Control::Offer(offer)).await?;
        let grant = match next_control(&ends.inbox, &self.with.stop).await? {
            Control::Grant(grant) => grant,
            other => return Err(session::SessionError::Unexpected(other.tag()).into()),
        };
        let session = self.open.session;
        self.with.registry.granted(session, grant.generation);
        ends.handle.register(session, grant.generation);
        let span = tracing::info_span!("session", session = %session, generation = grant.generation.0, peer = self.peer);
        let limits = self.with.process.limits();
        let attempt = SendAttempt {
            source: volume,
            size,
            fingerprint,
            grant,
            state: &mut state,
            pool: &self.disk.pool,
            cpu: self.with.process.cpu(),
            level: reduce::Mode::Auto,
            dedup_memory: limits.dedup_memory,
            progress: self.progress,
            stop: &self.with.stop,
            cancel: self.cancel,
            buffers: limits.buffers,
        };
        tracing::Instrument::instrument(send(ends, attempt), span).await?;
        state.forget()?;
        source.close().await
    }

    async fn open_source(&self) -> Result<(OpenSource, Option<Fingerprint>, SenderState), EngineError> {
        let pool = self.pool()?;
        pool.allow_pull(self.peer)?;
        let (meta, root) = pool.sealed(&self.open.name)?;
        let source = match meta.format {
            Format::Raw => OpenSource::from(pool.open_raw(&self.disk.disk, &self.open.name)?),
            Format::Qcow2 => {
                // Beneath the pool and no link: qemu-nbd gets a path, so this is looked at first.
                drop(root.open_at(&self.open.name, OFlags::RDONLY)?);
                open_qcow2(&root.path().join(&self.open.name), false).await?
            }
        };
        let volume = source.volume();
        let size = volume.geometry().size;
        let fingerprint = volume.fingerprint().await?;
        let label = format!("{}/{}", self.open.pool, self.open.name);
        // The session is in the name: two pulls of one volume by one peer are two sessions.
        let destination = format!("{} {}", self.peer, self.open.session);
        let state = SenderState::open_as(
            &self.with.state,
            &label,
            &destination,
            size,
            fingerprint,
            self.open.session,
        )?;
        Ok((source, fingerprint, state))
    }
}
