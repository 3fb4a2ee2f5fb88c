//! The control stream of a migration at work: messages both ways, until the tunnel ends.
//!
//! Over QUIC the connection tells when the peer is dead. Over TCP the control connection pings, and one that was silent
//! for the chosen time is dead; the channels' connections, which may be idle for hours, are cut with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, SendStream};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tokio_rustls::TlsStream;
use wire::{Control, Fail};

use super::core::ChannelCore;
use super::ends::{Input, Output};
use super::hello;
use crate::error::{CloseCode, TunnelError, TunnelErrorKind};
use crate::frames::{self, Feed, PROGRESS, QuicFeed, TcpFeed};
use crate::greeting::Link;
use crate::profile;
use crate::quic_lane::{PONG_QUEUE, QuicLink, close_number, first_error};
use crate::stats::Counters;
use crate::tcp_lane::{self, Counted, TcpLink, detail, flatten};
use crate::translate;

/// How long a tunnel that is closed on purpose waits for the peer to have the last messages.
const LINGER: Duration = Duration::from_secs(3);

/// Who opens the channels: mostly who opened the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Dialler,
    Acceptor,
}

/// Runs a migration's tunnel to its end.
pub(super) async fn run(core: Arc<ChannelCore>, link: Link, role: Role) {
    match link {
        Link::Quic(link) => run_quic(&core, link, role).await,
        Link::Tcp(link) => run_tcp(&core, link).await,
    }
    core.finish();
}

/// Reads frames until the peer says no more. Waits while the inbox is full.
async fn read_messages<F: Feed>(
    core: &ChannelCore,
    feed: &mut F,
    idle: Option<Duration>,
    pongs: &async_channel::Sender<u64>,
    note_pong: impl Fn(u64),
) -> Result<(), TunnelError> {
    let patience = idle.unwrap_or(PROGRESS);
    while let Some(header) = frames::header(feed, idle, patience).await? {
        match frames::control(feed, header, patience).await? {
            Control::Message(body) => {
                if core.inbox.send(body).await.is_err() {
                    break;
                }
            }
            // The queue is full only when the peer floods us with pings.
            Control::Ping(nonce) => drop(pongs.try_send(nonce)),
            Control::Pong(nonce) => note_pong(nonce),
            Control::Fail(fail) => {
                let code = CloseCode::Failed(fail.code);
                return Err(TunnelError::peer_closed(code, fail.detail.as_bytes()));
            }
            other => return Err(TunnelError::unexpected_frame(other.tag())),
        }
    }
    Ok(())
}

// === QUIC ===

async fn run_quic(core: &Arc<ChannelCore>, link: QuicLink, role: Role) {
    let QuicLink { connection, send, receive, .. } = link;
    let (pongs, pongs_out) = async_channel::bounded(PONG_QUEUE);
    let mut parts = JoinSet::new();
    parts.spawn(read_quic(core.clone(), receive, pongs, connection.clone()));
    if role == Role::Acceptor {
        parts.spawn(accept_streams(core.clone(), connection.clone()));
    }
    let mut writer = tokio::spawn(write_quic(core.clone(), send, pongs_out));
    tokio::select! {
        error = first_error(&mut parts) => core.fail(error),
        _closing = core.ending.wait() => {
            // The writer drains the queue, which is closed, and waits for the peer to have it all.
            drop(timeout(LINGER, &mut writer).await);
        }
    }
    let closing = core.ending.wait().await;
    connection.close(close_number(closing.code), closing.reason.as_bytes());
    writer.abort();
    parts.shutdown().await;
}

async fn read_quic(
    core: Arc<ChannelCore>,
    mut feed: QuicFeed,
    pongs: async_channel::Sender<u64>,
    connection: Connection,
) -> Option<TunnelError> {
    match read_messages(&core, &mut feed, None, &pongs, |_nonce| {}).await {
        Err(error) => Some(error),
        Ok(()) => {
            // The peer has said all; its code follows.
            let closed = timeout(LINGER, connection.closed()).await;
            Some(closed.map_or_else(
                |late| {
                    TunnelError::new(TunnelErrorKind::TimedOut, "the peer ended its control stream")
                        .caused_by(late)
                },
                translate::connection_error,
            ))
        }
    }
}

async fn write_quic(core: Arc<ChannelCore>, mut send: SendStream, pongs: async_channel::Receiver<u64>) {
    let result: Result<(), TunnelError> = async {
        loop {
            let frame: Bytes = tokio::select! {
                message = core.outgoing.recv() => match message {
                    Ok(message) => message.encode(),
                    Err(_closed) => break,
                },
                Ok(nonce) = pongs.recv() => Control::Pong(nonce).encode(),
            };
            send.write_chunk(frame).await.map_err(translate::write_error)?;
        }
        if send.finish().is_ok() {
            // An error means that the connection is gone: its reader says so.
            drop(send.stopped().await);
        }
        Ok(())
    }
    .await;
    if let Err(error) = result {
        tracing::debug!(error = %error.chain(), "the control stream cannot be written");
    }
}

/// Greets the streams that the peer opens. One that never was a channel is let go; one that breaks the protocol ends
/// the tunnel.
async fn accept_streams(core: Arc<ChannelCore>, connection: Connection) -> Option<TunnelError> {
    // quinn's limit on open streams bounds the set.
    let mut greetings: JoinSet<Result<(), TunnelError>> = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok((send, receive)) => {
                    let core = core.clone();
                    greetings.spawn(async move {
                        hello::admit(&core, Input::Quic(receive), Output::quic(send)).await
                    });
                }
                // The control reader says why.
                Err(_lost) => return None,
            },
            Some(done) = greetings.join_next(), if !greetings.is_empty() => match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) if matches!(error.kind(), TunnelErrorKind::Protocol(_)) => return Some(error),
                Ok(Err(error)) => tracing::debug!(reason = %error.chain(), "a channel was not opened"),
                Err(panic) => {
                    let error = TunnelError::new(TunnelErrorKind::Lost, "the greeting of a channel failed");
                    return Some(error.caused_by(panic));
                }
            },
        }
    }
}

// === TCP ===

/// What reader and writer of the control connection share.
struct Line {
    core: Arc<ChannelCore>,
    counters: Arc<Counters>,
    started: Instant,
    /// The connection is dead: the writer must not wait for it.
    dead: Notify,
}

impl Line {
    fn now_micros(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Our pings carry the time at which they were sent. A nonce from the future is the peer's invention.
    fn note_pong(&self, sent: u64) {
        if let Some(rtt) = self.now_micros().checked_sub(sent) {
            self.counters.rtt_micros.store(rtt.max(1), Ordering::Relaxed);
        }
    }
}

async fn run_tcp(core: &Arc<ChannelCore>, link: TcpLink) {
    let TcpLink { mut stream, counters } = link;
    tcp_lane::enlarge(&mut stream);
    let (read, write) = tokio::io::split(stream);
    let line = Arc::new(Line { core: core.clone(), counters, started: Instant::now(), dead: Notify::new() });
    let (pongs, pongs_out) = async_channel::bounded(PONG_QUEUE);
    let mut reader = tokio::spawn(read_tcp(line.clone(), read, pongs));
    let mut writer = tokio::spawn(write_tcp(line.clone(), write, pongs_out));
    let error = tokio::select! {
        result = &mut reader => Some(flatten(result)),
        _closing = core.ending.wait() => None,
    };
    if let Some(error) = &error {
        core.fail(error.clone());
        if matches!(error.kind(), TunnelErrorKind::Lost | TunnelErrorKind::TimedOut) {
            core.cut();
            line.dead.notify_one();
        }
    }
    // The writer sends what is queued and says goodbye; it must not take for ever.
    let written = timeout(LINGER, &mut writer).await.is_ok();
    core.cut();
    if !written {
        line.dead.notify_one();
        if let Err(panic) = writer.await {
            tracing::error!(error = %panic, "the sender of a control connection failed");
        }
    } else if error.is_none() {
        // Leaving with unread bytes would make the kernel reset the connection and destroy our last frames.
        drop(timeout(LINGER, &mut reader).await);
    }
    reader.abort();
}

async fn read_tcp(
    line: Arc<Line>,
    read: ReadHalf<TlsStream<Counted>>,
    pongs: async_channel::Sender<u64>,
) -> TunnelError {
    let mut feed = TcpFeed(read);
    let idle = Some(line.core.idle);
    match read_messages(&line.core, &mut feed, idle, &pongs, |nonce| line.note_pong(nonce)).await {
        Err(error) => error,
        Ok(()) => TunnelError::peer_closed(CloseCode::Done, b""),
    }
}

async fn write_tcp(
    line: Arc<Line>,
    mut write: WriteHalf<TlsStream<Counted>>,
    pongs: async_channel::Receiver<u64>,
) {
    if let Err(error) = write_until_closed(&line, &mut write, &pongs).await {
        tracing::debug!(error = %error, "a control connection cannot be written");
    }
}

async fn write_until_closed(
    line: &Line,
    out: &mut WriteHalf<TlsStream<Counted>>,
    pongs: &async_channel::Receiver<u64>,
) -> std::io::Result<()> {
    let Line { core, dead, .. } = line;
    let every = profile::keep_alive(core.idle);
    let mut ticks = interval_at(tokio::time::Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let frame = tokio::select! {
            () = dead.notified() => return Err(std::io::ErrorKind::ConnectionAborted.into()),
            _ = ticks.tick() => Control::Ping(line.now_micros()),
            Ok(nonce) = pongs.recv() => Control::Pong(nonce),
            message = core.outgoing.recv() => match message {
                Ok(message) => message,
                Err(_closed) => break,
            },
        };
        tcp_lane::write(dead, out, frame.encode()).await?;
    }
    let closing = core.ending.wait().await;
    if let CloseCode::Failed(code) = closing.code {
        let fail = Control::Fail(Fail { code, detail: detail(&closing.reason) });
        tcp_lane::write(dead, out, fail.encode()).await?;
    }
    tokio::select! {
        result = out.shutdown() => result,
        () = dead.notified() => Err(std::io::ErrorKind::ConnectionAborted.into()),
    }
}
