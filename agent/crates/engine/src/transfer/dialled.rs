//! The side that dials: push, pull, and a copy between two volumes of this host.

use std::time::Duration;

use reduce::HashKey;
use tokio::time::Instant;
use tunnel::{CloseCode, Credentials, DialOptions, PeerName, Transport, Tunnel, memory_pair};
use volume::{ByteLen, Fingerprint, Generation, SessionId};
use wire::{Control, Direction, FailCode, Offer, Open};

use super::grant::grant;
use super::{Context, LocalTarget, RemoteVolume, Summary, next_control, say};
use crate::clock::process_cpu;
use crate::ends::{LocalVolume, OpenSource};
use crate::error::EngineError;
use crate::folder::Folder;
use crate::keys::Keys;
use crate::pool::PoolContent;
use crate::process::SessionDisk;
use crate::progress::{Progress, Snapshot};
use crate::receive::{ReceiveAttempt, ReceiveEnds, receive, receive_buffers};
use crate::send::{SendAttempt, SendEnds, SenderState, random_session, send};
use crate::target::{Request, Target};
use receipt::Receipt;

/// Pauses between attempts after a lost tunnel; the last one repeats.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// How to reach the other host.
#[derive(Clone, Debug)]
pub struct Dialler {
    /// Where and how.
    pub options: DialOptions,
    /// Who we are.
    pub credentials: Credentials,
}

/// Waits before the next attempt, or gives up: after `patience` without any progress, or when asked to stop.
struct Patience {
    lost_at: Option<Instant>,
    settled: u64,
    pauses: usize,
}

impl Patience {
    async fn wait(&mut self, context: &Context, error: EngineError) -> Result<(), EngineError> {
        context.progress.end_attempt();
        if !error.is_resumable() || context.stop.is_cancelled() || context.cancel.is_cancelled() {
            return Err(error);
        }
        let settled = context.progress.snapshot().settled;
        if settled != self.settled {
            *self = Self { lost_at: None, settled, pauses: 0 };
        }
        let lost_at = *self.lost_at.get_or_insert_with(Instant::now);
        if lost_at.elapsed() >= context.options.patience {
            return Err(error);
        }
        let pause = PAUSES[self.pauses.min(PAUSES.len() - 1)];
        self.pauses += 1;
        tracing::warn!(error = %error.chain(), pause_ms = pause.as_millis(), "the tunnel was lost; dialling again");
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = context.stop.cancelled() => Err(EngineError::Interrupted),
            () = context.cancel.cancelled() => Err(EngineError::Cancelled),
        }
    }

    fn new() -> Self {
        Self { lost_at: None, settled: 0, pauses: 0 }
    }
}

async fn dial(context: &Context, dialler: &Dialler, disk: &SessionDisk) -> Result<Tunnel, EngineError> {
    Progress::add(&context.progress.attempts, 1);
    let buffers = receive_buffers(&disk.pool, context.process.limits().buffers);
    tokio::select! {
        tunnel = tunnel::dial(&dialler.options, &dialler.credentials, buffers) => Ok(tunnel?),
        () = context.stop.cancelled() => Err(EngineError::Interrupted),
        () = context.cancel.cancelled() => Err(EngineError::Cancelled),
    }
}

/// Copies a volume of this host into a pool of another.
pub async fn push(
    context: &Context,
    source: &LocalVolume,
    dialler: &Dialler,
    remote: &RemoteVolume,
) -> Result<Summary, EngineError> {
    push_and_keep(context, source, dialler, remote, |_| Ok(())).await
}

/// Like [`push`]. `keep` puts the receipt where it survives this process; the session is forgotten only afterwards, so
/// that after a crash or a failure the same call gets the same receipt again.
pub async fn push_and_keep<E: From<EngineError>>(
    context: &Context,
    source: &LocalVolume,
    dialler: &Dialler,
    remote: &RemoteVolume,
    keep: impl FnOnce(&Summary) -> Result<(), E>,
) -> Result<Summary, E> {
    let (summary, state, opened) = push_until_sealed(context, source, dialler, remote).await?;
    keep(&summary)?;
    state.forget()?;
    opened.close().await?;
    Ok(summary)
}

async fn push_until_sealed(
    context: &Context,
    source: &LocalVolume,
    dialler: &Dialler,
    remote: &RemoteVolume,
) -> Result<(Summary, SenderState, OpenSource), EngineError> {
    let begun = Begun::now();
    let disk = context.process.session_disk()?;
    let opened = source.open(&disk.disk, context.options.drop_snapshots).await?;
    let destination = format!(
        "novaferry://{}:{}/{}/{}",
        dialler.options.host, dialler.options.port, remote.pool, remote.name
    );
    let size = opened.volume().geometry().size;
    let fingerprint = opened.volume().fingerprint().await?;
    let mut state =
        SenderState::open(&context.options.state, &source.label()?, &destination, size, fingerprint)?;
    // A session that was remembered but never granted (refused, nobody there) had not begun.
    let resumed = state.is_resumed() && state.generation() > Generation(0);
    Progress::set(&context.progress.size, size.0);
    let mut patience = Patience::new();
    let sealed = loop {
        let attempt = push_once(context, (&opened, fingerprint), dialler, remote, &disk, &mut state).await;
        match attempt {
            Ok(sealed) => break sealed,
            Err(error) if makes_memory_useless(&error) => {
                state.forget()?;
                return Err(error);
            }
            Err(error) => patience.wait(context, error).await?,
        }
    };
    let (sealed, key, met) = sealed;
    let receipt = Receipt::parse(&sealed.receipt)?;
    check_receipt(&receipt, size, &key, &state)?;
    // The key is what the receipt can be checked with later, against the source or a copy of it.
    Keys::new(Folder::open_or_create(&context.options.state.join("keys"))?).remember(&key)?;
    let cpu_rx = Some(Duration::from_micros(sealed.cpu_micros));
    let summary =
        begun.summary(receipt, context.progress.snapshot(), Some(begun.cpu()), cpu_rx, resumed, met);
    Ok((summary, state, opened))
}

/// After these the session cannot go on; run again, the same command begins a new one.
fn makes_memory_useless(error: &EngineError) -> bool {
    matches!(
        error.peer_code().unwrap_or_else(|| error.fail_code()),
        FailCode::StaleGeneration | FailCode::RootMismatch
    )
}

/// A receipt must state what was sent, in this session; its signature is for the caller to check.
fn check_receipt(
    receipt: &Receipt,
    size: ByteLen,
    key: &HashKey,
    state: &SenderState,
) -> Result<(), EngineError> {
    let body = &receipt.body;
    let sent = [
        ("size", size.0.to_string(), body.size.to_string()),
        ("root", state.root(key)?.to_string(), body.root.clone()),
        ("key_id", key.id().to_string(), body.key_id.clone()),
        ("session", state.session().to_string(), body.session.clone()),
    ];
    match sent.into_iter().find(|(_, ours, theirs)| ours != theirs) {
        None => Ok(()),
        Some((field, ours, theirs)) => {
            let what = format!(
                "the receipt states {field} {theirs}, but {ours} was sent: the receiver is faulty or dishonest; do not rely on that copy"
            );
            Err(EngineError::refused(FailCode::RootMismatch, what))
        }
    }
}

async fn push_once(
    context: &Context,
    // The fingerprint from before the first attempt: what was settled since then is of that source.
    (source, fingerprint): (&OpenSource, Option<Fingerprint>),
    dialler: &Dialler,
    remote: &RemoteVolume,
    disk: &SessionDisk,
    state: &mut SenderState,
) -> Result<(wire::Sealed, HashKey, Met), EngineError> {
    let volume = source.volume();
    let size = volume.geometry().size;
    let (handle, data, inbox, _received) = dial(context, dialler, disk).await?.split();
    let met = Met::over(&handle, state.session());
    let open = open_frame(context, state.session(), Direction::Push, dialler, remote);
    let offer = Offer { size, remembered_key: state.offered_key(), generation: state.generation() };
    let granted = async {
        say(&handle, &inbox, Control::Open(open)).await?;
        say(&handle, &inbox, Control::Offer(offer)).await?;
        match next_control(&inbox, &context.stop).await? {
            Control::Grant(grant) => Ok(grant),
            other => Err(session::SessionError::Unexpected(other.tag()).into()),
        }
    };
    let result = match granted.await {
        Ok(grant) => {
            handle.open_lanes(state.session(), grant.generation).await?;
            let span =
                tracing::info_span!("session", session = %state.session(), generation = grant.generation.0);
            let ends = SendEnds { handle: handle.clone(), data, inbox };
            let attempt = SendAttempt {
                source: volume,
                size,
                fingerprint,
                grant,
                state,
                pool: &disk.pool,
                cpu: context.process.cpu(),
                level: context.options.level,
                dedup_memory: context.process.limits().dedup_memory,
                progress: &context.progress,
                stop: &context.stop,
                cancel: &context.cancel,
                buffers: context.process.limits().buffers,
            };
            let key = HashKey::from_bytes(attempt.grant.key.0);
            let sealed = tracing::Instrument::instrument(send(&ends, attempt), span).await;
            sealed.map(|sealed| (sealed, key, met))
        }
        Err(error) => Err(error),
    };
    close(&handle, result.as_ref().err()).await;
    result
}

/// Copies a volume of another host's pool onto this host.
pub async fn pull(
    context: &Context,
    dialler: &Dialler,
    remote: &RemoteVolume,
    target: &LocalTarget,
) -> Result<Summary, EngineError> {
    let begun = Begun::now();
    let disk = context.process.session_disk()?;
    let home = target.volume.home(&context.options.state)?;
    let session = match home.last_session()? {
        Some(session) => session,
        None => random_session()?,
    };
    let mut resumed = false;
    let mut patience = Patience::new();
    let (receipt, met) = loop {
        match pull_once(context, dialler, remote, target, &disk, session, &mut resumed).await {
            Ok(received) => break received,
            Err(error) => patience.wait(context, error).await?,
        }
    };
    Ok(begun.summary(receipt, context.progress.snapshot(), None, Some(begun.cpu()), resumed, met))
}

async fn pull_once(
    context: &Context,
    dialler: &Dialler,
    remote: &RemoteVolume,
    target: &LocalTarget,
    disk: &SessionDisk,
    session: SessionId,
    resumed: &mut bool,
) -> Result<(Receipt, Met), EngineError> {
    let (handle, _data, inbox, received) = dial(context, dialler, disk).await?.split();
    let met = Met::over(&handle, session);
    let open = open_frame(context, session, Direction::Pull, dialler, remote);
    let result = async {
        say(&handle, &inbox, Control::Open(open)).await?;
        let offer = match next_control(&inbox, &context.stop).await? {
            Control::Offer(offer) => offer,
            other => return Err(session::SessionError::Unexpected(other.tag()).into()),
        };
        Progress::set(&context.progress.size, offer.size.0);
        let ends = ReceiveEnds { handle: handle.clone(), data: received, inbox };
        let result = receive_locally(context, &ends, target, disk, session, &offer).await;
        match result {
            Ok((receipt, was_resumed)) => {
                *resumed |= was_resumed;
                Ok((receipt, met))
            }
            Err(error) => Err(error),
        }
    }
    .await;
    close(&handle, result.as_ref().err()).await;
    result
}

/// The receiving half on this host: of a pull, or of a local copy.
async fn receive_locally(
    context: &Context,
    ends: &ReceiveEnds,
    target: &LocalTarget,
    disk: &SessionDisk,
    session: SessionId,
    offer: &Offer,
) -> Result<(Receipt, bool), EngineError> {
    let options = &context.options;
    let cpu_at_start = process_cpu();
    let request = Request {
        owner: target.owner.clone(),
        session,
        mode: options.mode,
        format: options.format,
        size: offer.size,
        generation: offer.generation,
        remembered_key: offer.remembered_key,
    };
    let home = target.volume.home(&options.state)?;
    let keys = Keys::new(Folder::open_or_create(&options.state.join("keys"))?);
    let opened = async {
        let key = keys.of_owner(&target.owner)?;
        let target = Target::open(home, &disk.disk, key, &request).await?;
        let content = PoolContent::of_session_only(context.process.limits().dedup_memory);
        let grant = grant(&target, offer, options.mode, &content, context.process.limits())?;
        Ok::<_, EngineError>((target, content, grant))
    };
    let (opened_target, content, grant) = match opened.await {
        Ok(opened) => opened,
        Err(error) => {
            tell(&ends.handle, &error).await;
            return Err(error);
        }
    };
    let was_resumed = opened_target.durable().count() > 0;
    say(&ends.handle, &ends.inbox, Control::Grant(grant)).await?;
    ends.handle.open_lanes(session, grant.generation).await?;
    let span = tracing::info_span!("session", session = %session, generation = grant.generation.0);
    let attempt = ReceiveAttempt {
        target: opened_target,
        size: offer.size,
        grant,
        content,
        session,
        owner: target.owner.clone(),
        mode: options.mode,
        readback: options.readback,
        signer: context.signer.as_deref(),
        receiver_name: target.receiver.clone(),
        pool: &disk.pool,
        cpu: context.process.cpu(),
        progress: &context.progress,
        stop: &context.stop,
        cancel: &context.cancel,
        cpu_at_start,
        buffers: context.process.limits().buffers,
    };
    let receipt = tracing::Instrument::instrument(receive(ends, attempt), span).await?;
    Ok((receipt, was_resumed))
}

/// Copies between two volumes of this host: both halves in this process, with the same journal, verification and
/// receipt as over a network.
pub async fn copy_locally(
    context: &Context,
    source: &LocalVolume,
    target: &LocalTarget,
) -> Result<Summary, EngineError> {
    copy_locally_and_keep(context, source, target, |_| Ok(())).await
}

/// Like [`copy_locally`], with `keep` as in [`push_and_keep`].
pub async fn copy_locally_and_keep<E: From<EngineError>>(
    context: &Context,
    source: &LocalVolume,
    target: &LocalTarget,
    keep: impl FnOnce(&Summary) -> Result<(), E>,
) -> Result<Summary, E> {
    let (summary, state, opened) = copy_until_sealed(context, source, target).await?;
    keep(&summary)?;
    state.forget()?;
    opened.close().await?;
    Ok(summary)
}

async fn copy_until_sealed(
    context: &Context,
    source: &LocalVolume,
    target: &LocalTarget,
) -> Result<(Summary, SenderState, OpenSource), EngineError> {
    let begun = Begun::now();
    let (send_disk, receive_disk) = (context.process.session_disk()?, context.process.session_disk()?);
    let opened = source.open(&send_disk.disk, context.options.drop_snapshots).await?;
    let size = opened.volume().geometry().size;
    Progress::set(&context.progress.size, size.0);
    let fingerprint = opened.volume().fingerprint().await?;
    let (from, to) = (source.label()?, target.volume.label()?);
    if from == to {
        let what = format!("{from} is both source and target; name two volumes");
        return Err(EngineError::refused(FailCode::Unsupported, what));
    }
    let mut state = SenderState::open(&context.options.state, &from, &to, size, fingerprint)?;
    let session = state.session();
    let buffers = context.process.limits().buffers;
    let (left, right) =
        memory_pair(receive_buffers(&send_disk.pool, buffers), receive_buffers(&receive_disk.pool, buffers))?;
    Progress::add(&context.progress.attempts, 1);
    let (send_handle, data, send_inbox, _) = left.split();
    let (receive_handle, _, receive_inbox, received) = right.split();
    let offer = Offer { size, remembered_key: state.offered_key(), generation: state.generation() };
    // Both halves would count the same bytes: the receiver's counters are its own.
    let receiving = Context { progress: std::sync::Arc::default(), ..context.clone() };
    let receive_ends = ReceiveEnds { handle: receive_handle.clone(), data: received, inbox: receive_inbox };
    let receiver = async {
        let result = receive_locally(&receiving, &receive_ends, target, &receive_disk, session, &offer).await;
        close(&receive_handle, result.as_ref().err()).await;
        result
    };
    let sender = async {
        let grant = match next_control(&send_inbox, &context.stop).await {
            Ok(Control::Grant(grant)) => Ok(grant),
            Ok(other) => Err(session::SessionError::Unexpected(other.tag()).into()),
            Err(error) => Err(error),
        };
        let result = match grant {
            Ok(grant) => {
                let ends = SendEnds { handle: send_handle.clone(), data, inbox: send_inbox };
                let attempt = SendAttempt {
                    source: opened.volume(),
                    size,
                    fingerprint,
                    grant,
                    state: &mut state,
                    pool: &send_disk.pool,
                    cpu: context.process.cpu(),
                    // Within one host nothing is gained by making it smaller.
                    level: reduce::Mode::Off,
                    dedup_memory: context.process.limits().dedup_memory,
                    progress: &context.progress,
                    stop: &context.stop,
                    cancel: &context.cancel,
                    buffers,
                };
                send(&ends, attempt).await
            }
            Err(error) => Err(error),
        };
        close(&send_handle, result.as_ref().err()).await;
        result
    };
    let (sent, got) = tokio::join!(sender, receiver);
    // Of two errors the one that is not the other side's echo says more.
    let (receipt, was_resumed) = match (sent, got) {
        (Ok(_), Ok(got)) => got,
        (_, Err(error)) if error.peer_code().is_none() && !matches!(error, EngineError::Tunnel(_)) => {
            return Err(error);
        }
        (Err(error), _) | (Ok(_), Err(error)) => return Err(error),
    };
    let cpu = begun.cpu();
    let met = Met { transport: Transport::Memory, peer: None, session };
    let summary = begun.summary(receipt, context.progress.snapshot(), Some(cpu), Some(cpu), was_resumed, met);
    Ok((summary, state, opened))
}

fn open_frame(
    context: &Context,
    session: SessionId,
    direction: Direction,
    dialler: &Dialler,
    remote: &RemoteVolume,
) -> Open {
    let options = &context.options;
    Open {
        session,
        direction,
        mode: options.mode,
        format: options.format,
        readback: options.readback,
        lanes: dialler.options.connections,
        pool: remote.pool.clone(),
        name: remote.name.clone(),
    }
}

/// Tells the peer why nothing comes of it.
pub(super) async fn tell(handle: &tunnel::TunnelHandle, error: &EngineError) {
    let fail = wire::Fail { code: error.fail_code(), detail: error.told() };
    // When the tunnel is over, nobody is there to be told.
    let _over = handle.send(Control::Fail(fail)).await;
}

/// Closes the tunnel and waits until its threads have ended.
pub(super) async fn close(handle: &tunnel::TunnelHandle, error: Option<&EngineError>) {
    match error {
        None => handle.close(CloseCode::Done, "done"),
        Some(error) => handle.close(CloseCode::Failed(error.fail_code()), &error.told()),
    }
    handle.ended().await;
}

/// Whom the last attempt met, and how.
struct Met {
    transport: Transport,
    peer: Option<PeerName>,
    session: SessionId,
}

impl Met {
    fn over(handle: &tunnel::TunnelHandle, session: SessionId) -> Self {
        Self { transport: handle.transport(), peer: Some(handle.peer().clone()), session }
    }
}

struct Begun {
    at: Instant,
    cpu: Duration,
}

impl Begun {
    fn now() -> Self {
        Self { at: Instant::now(), cpu: process_cpu() }
    }

    fn cpu(&self) -> Duration {
        process_cpu().saturating_sub(self.cpu)
    }

    fn summary(
        &self,
        receipt: Receipt,
        counters: Snapshot,
        cpu_tx: Option<Duration>,
        cpu_rx: Option<Duration>,
        resumed: bool,
        met: Met,
    ) -> Summary {
        let Met { transport, peer, session } = met;
        let elapsed = self.at.elapsed();
        Summary { receipt, counters, elapsed, cpu_tx, cpu_rx, resumed, transport, peer, session }
    }
}
