//! One thread of the listener: accepts connections, hears their greeting, and routes them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::task::TaskTracker;
use wire::{ChannelHello, Control, FailCode, LaneHello};

use super::Shared;
use super::incoming::{Incoming, Wanted, refuse};
use crate::channels;
use crate::core::SessionKey;
use crate::dial::{UNACKNOWLEDGED, prepare};
use crate::error::{CloseCode, TunnelError, TunnelErrorKind};
use crate::greeting::{self, FIRST_FRAME, HANDSHAKE, Link};
use crate::identity::PeerName;
use crate::options::{MAX_CONNECTIONS, Windows};
use crate::tcp_lane::{self, Counted, TcpLink};
use crate::tunnel::Event;
use crate::{profile, quic_lane, translate};

/// Connections whose greeting is not over, per thread and transport. More are refused.
pub(super) const MAX_GREETINGS: usize = 64;
/// From so many on, a QUIC caller must prove its address first (Retry), which costs it a round trip.
const RETRY_FROM: usize = 16;
/// How long closed connections may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long a failed TLS handshake is read on, so that the alert is not destroyed by a reset.
const ALERT_LINGER: Duration = Duration::from_secs(1);
/// Pause after accept() failed: the usual reason is that the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One thread's part of the listener.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) runtime: Handle,
    /// Greetings, waiting sessions and lanes: the thread ends after the last.
    pub(super) tasks: TaskTracker,
    /// Places for greetings, apart for each transport: idle TCP connections, which cost a stranger nothing, must not
    /// keep QUIC callers out.
    quic_greetings: Arc<Semaphore>,
    tcp_greetings: Arc<Semaphore>,
}

pub(super) fn serve(
    runtime: &Runtime,
    worker: Arc<Worker>,
    endpoint: quinn::Endpoint,
    tcp: std::net::TcpListener,
) {
    runtime.block_on(async {
        let stop = worker.shared.stop.clone();
        tokio::select! {
            () = accept_quic(&worker, &endpoint) => {}
            () = accept_tcp(&worker, tcp) => {}
            () = stop.cancelled() => {}
        }
        worker.tasks.close();
        worker.tasks.wait().await;
        if timeout(GOODBYE, endpoint.wait_idle()).await.is_err() {
            tracing::debug!("peers did not confirm the end of their connections");
        }
    });
}

async fn accept_quic(worker: &Arc<Worker>, endpoint: &quinn::Endpoint) {
    while let Some(caller) = endpoint.accept().await {
        let remote = caller.remote_address();
        let busy = MAX_GREETINGS - worker.quic_greetings.available_permits();
        if busy >= RETRY_FROM && !caller.remote_address_validated() && caller.may_retry() {
            if let Err(error) = caller.retry() {
                tracing::debug!(%remote, %error, "a caller could not be asked to prove its address");
            }
            continue;
        }
        let Ok(place) = worker.quic_greetings.clone().try_acquire_owned() else {
            caller.refuse();
            continue;
        };
        let work = worker.clone();
        worker.tasks.spawn(async move {
            let limit = HANDSHAKE + FIRST_FRAME;
            let greeted = timeout(limit, greet_quic(caller, work.shared.options.windows)).await;
            drop(place);
            work.greeted(remote, greeted.unwrap_or_else(|late| Err(slow(late)))).await;
        });
    }
    tracing::error!("the QUIC endpoint ended");
}

fn slow(late: tokio::time::error::Elapsed) -> TunnelError {
    TunnelError::new(TunnelErrorKind::TimedOut, "the caller does not finish the greeting").caused_by(late)
}

struct Greeted {
    link: Link,
    peer: PeerName,
    first: Control,
}

async fn greet_quic(caller: quinn::Incoming, windows: Windows) -> Result<Greeted, TunnelError> {
    let connecting = caller.accept().map_err(translate::connection_error)?;
    let connection = connecting.await.map_err(translate::connection_error)?;
    let guard = connection.clone();
    let work = async {
        let peer = greeting::quic_peer(&connection)?;
        let (send, receive) = connection.accept_bi().await.map_err(translate::connection_error)?;
        let send_window = windows.share(1).send;
        let mut link = greeting::quic_link(connection, send, receive, send_window)?;
        greeting::answer(&mut link).await?;
        let first = greeting::first_frame(&mut link).await?;
        Ok(Greeted { link, peer, first })
    };
    let result = work.await;
    if let Err(error) = &result {
        let error: &TunnelError = error;
        guard.close(quic_lane::close_number(error.close_code()), error.chain().as_bytes());
    }
    result
}

async fn accept_tcp(worker: &Arc<Worker>, listener: std::net::TcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "TCP connections cannot be accepted");
            return;
        }
    };
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a TCP connection cannot be accepted; raise LimitNOFILE if it is the descriptors");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = worker.tcp_greetings.clone().try_acquire_owned() else { continue };
        let work = worker.clone();
        let tls = worker.shared.tls.borrow().clone();
        worker.tasks.spawn(async move {
            let greeted = timeout(HANDSHAKE + FIRST_FRAME, greet_tcp(stream, tls)).await;
            drop(place);
            work.greeted(remote, greeted.unwrap_or_else(|late| Err(slow(late)))).await;
        });
    }
}

async fn greet_tcp(stream: TcpStream, tls: Arc<rustls::ServerConfig>) -> Result<Greeted, TunnelError> {
    prepare(&stream, UNACKNOWLEDGED)
        .map_err(|error| translate::tls_error(error, "prepare a TCP connection"))?;
    let (stream, counters) = Counted::new(stream);
    let stream = match TlsAcceptor::from(tls).accept(stream).into_fallible().await {
        Ok(stream) => stream,
        Err((error, stream)) => {
            linger(stream).await;
            return Err(translate::tls_error(error, "TLS handshake"));
        }
    };
    let peer = greeting::tls_peer(stream.get_ref().1)?;
    let mut link = Link::Tcp(TcpLink { stream: TlsStream::Server(stream), counters });
    let result = async {
        greeting::answer(&mut link).await?;
        greeting::first_frame(&mut link).await
    }
    .await;
    match (result, link) {
        (Ok(first), link) => Ok(Greeted { link, peer, first }),
        (Err(error), Link::Tcp(link)) => {
            if let CloseCode::Failed(code) = error.close_code() {
                tcp_lane::refuse(link, code, &error.chain()).await;
            }
            Err(error)
        }
        (Err(error), Link::Quic(_)) => Err(error),
    }
}

async fn linger(mut stream: Counted) {
    let goodbye = async {
        stream.shutdown().await?;
        let mut rest = tokio::io::AsyncReadExt::take(&mut stream, 64 << 10);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // Whether the stranger hangs up in good order is of no interest.
    drop(timeout(ALERT_LINGER, goodbye).await);
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, runtime: Handle) -> Self {
        Self {
            shared,
            runtime,
            tasks: TaskTracker::new(),
            quic_greetings: Arc::new(Semaphore::new(MAX_GREETINGS)),
            tcp_greetings: Arc::new(Semaphore::new(MAX_GREETINGS)),
        }
    }

    async fn greeted(self: &Arc<Self>, remote: SocketAddr, greeted: Result<Greeted, TunnelError>) {
        match greeted {
            Ok(Greeted { link, peer, first: Control::Open(open) }) => {
                self.offer(remote, link, peer, Wanted::Copy(open));
            }
            Ok(Greeted { link, peer, first: Control::Migrate(migrate) }) => {
                self.offer(remote, link, peer, Wanted::Migrate(migrate));
            }
            Ok(Greeted { link, peer, first: Control::Call(call) }) => match link {
                Link::Quic(_) => self.offer(remote, link, peer, Wanted::Call(call)),
                Link::Tcp(_) => {
                    refuse(link, FailCode::Unsupported, "a destination dials its source over QUIC only")
                        .await;
                }
            },
            Ok(Greeted { link, peer, first: Control::ChannelHello(hello) }) => {
                self.route_channel(remote, link, &peer, hello).await;
            }
            Ok(Greeted { link, peer, first: Control::LaneHello(hello) }) => {
                self.route(remote, link, &peer, hello).await;
            }
            Ok(Greeted { first, .. }) => {
                unreachable!("first_frame lets this pass: {:?}", first.tag())
            }
            Err(error) => {
                tracing::info!(%remote, reason = %error.chain(), "a connection was refused");
            }
        }
    }

    fn offer(self: &Arc<Self>, remote: SocketAddr, link: Link, peer: PeerName, wanted: Wanted) {
        let incoming = Incoming::new(peer, remote, wanted, link, self);
        if let Err(full) = self.shared.queue.try_send(incoming) {
            full.into_inner().refuse(FailCode::Overloaded, "too many sessions wait to be accepted");
        }
    }

    async fn route(self: &Arc<Self>, remote: SocketAddr, link: Link, peer: &PeerName, hello: LaneHello) {
        let lane = hello.lane;
        let key = SessionKey { session: hello.session, generation: hello.generation };
        let found = self.shared.registry.sessions.find(key, peer).and_then(|core| {
            if core.transport != link.transport() || lane > MAX_CONNECTIONS {
                return Err(FailCode::Protocol);
            }
            if link.attach(&core, lane) { Ok(core) } else { Err(FailCode::Busy) }
        });
        match found {
            Ok(core) => {
                self.widen(&link, core.connections());
                let token = core.workers.token();
                drop(core.events.send(Event::LaneUp { lane }).await); // fails when the inbox is gone
                link.run(core, lane).await;
                drop(token);
            }
            Err(code) => {
                tracing::info!(%remote, %peer, lane, ?code, "a further connection was refused");
                refuse(link, code, "no such session of yours, or not this generation").await;
            }
        }
    }

    /// Only over TCP: QUIC's channels are streams of the migration's own connection.
    async fn route_channel(&self, remote: SocketAddr, link: Link, peer: &PeerName, hello: ChannelHello) {
        let key = SessionKey { session: hello.migration, generation: hello.generation };
        let found = self.shared.registry.migrations.find(key, peer).and_then(|core| {
            if core.transport() != link.transport() {
                return Err(FailCode::Protocol);
            }
            core.admit(&hello).map(|slot| (core, slot))
        });
        match (found, link) {
            (Ok((core, slot)), Link::Tcp(link)) => {
                if let Err(error) = channels::routed(&core, slot, hello, link).await {
                    let reason = error.chain();
                    tracing::info!(%remote, %peer, channel = hello.channel, %reason, "a channel was not opened");
                }
            }
            (found, link) => {
                let code = found.err().unwrap_or(FailCode::Protocol);
                tracing::info!(%remote, %peer, channel = hello.channel, ?code, "a channel was refused");
                refuse(link, code, channels::REFUSED).await;
            }
        }
    }

    /// Gives a connection its share of the session's windows.
    pub(super) fn widen(&self, link: &Link, connections: u8) {
        if let Link::Quic(link) = link {
            profile::open_windows(&link.connection, self.shared.options.windows.share(connections));
        }
    }
}
