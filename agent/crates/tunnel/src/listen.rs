//! The listening side: QUIC and TLS on one port, on one thread or several, each with its own sockets.
//!
//! Whoever connects is judged by TLS first. Then the greeting is read within a deadline, and the first frame decides:
//! `Open` becomes an [`Incoming`] for the owner of the listener, `LaneHello` is routed to the tunnel that the same
//! peer opened. Until then a connection may send no stream but the greeting's and no more than 256 KiB.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::{Control, FailCode, LaneHello, Open};

use crate::core::{Core, ReceiveBuffers, lock};
use crate::credentials::Credentials;
use crate::dial::prepare;
use crate::error::{CloseCode, TunnelError, TunnelErrorKind};
use crate::greeting::{self, FIRST_FRAME, HANDSHAKE, Link};
use crate::identity::PeerName;
use crate::options::{ListenOptions, MAX_CONNECTIONS, Transport, Windows};
use crate::profile::{self, Side};
use crate::registry::Registry;
use crate::socket::{self, TunnelSocket};
use crate::tcp_lane::{self, Counted, TcpLink};
use crate::tunnel::{Event, Growth, Tunnel};
use crate::{quic_lane, translate};

/// Connections whose greeting is not over, per thread and transport. More are refused.
const MAX_GREETINGS: usize = 64;
/// From so many on, a QUIC caller must prove its address first (Retry), which costs it a round trip.
const RETRY_FROM: usize = 16;
/// Sessions that wait to be accepted.
const INCOMING_QUEUE: usize = 64;
/// Connections that wait in the kernel.
const BACKLOG: i32 = 128;
/// Ports that are tried when any will do and the one for UDP is taken for TCP.
const PORT_ATTEMPTS: usize = 16;
/// How long closed connections may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long a failed TLS handshake is read on, so that the alert is not destroyed by a reset.
const ALERT_LINGER: Duration = Duration::from_secs(1);
/// Pause after accept() failed: the usual reason is that the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts tunnels. Dropping it stops listening; the tunnels that it accepted go on, and its threads end with them.
pub struct Listener {
    local: SocketAddr,
    incoming: async_channel::Receiver<Incoming>,
    shared: Arc<Shared>,
    threads: TaskTracker,
}

struct Shared {
    options: ListenOptions,
    tls: watch::Sender<Arc<rustls::ServerConfig>>,
    endpoints: Mutex<Vec<quinn::Endpoint>>,
    registry: Arc<Registry>,
    queue: async_channel::Sender<Incoming>,
    stop: CancellationToken,
}

/// One thread's part of the listener.
struct Worker {
    shared: Arc<Shared>,
    runtime: Handle,
    /// Greetings, waiting sessions and lanes: the thread ends after the last.
    tasks: TaskTracker,
    /// Places for greetings, apart for each transport: idle TCP connections, which cost a stranger nothing, must not
    /// keep QUIC callers out.
    quic_greetings: Arc<Semaphore>,
    tcp_greetings: Arc<Semaphore>,
}

impl Listener {
    /// Listens on UDP and TCP. Port 0 chooses one that is free for both.
    ///
    /// # Errors
    /// [`TunnelErrorKind::Config`] when the port is taken or the credentials cannot be used.
    pub fn bind(
        address: SocketAddr,
        credentials: &Credentials,
        options: ListenOptions,
    ) -> Result<Self, TunnelError> {
        options.check()?;
        let tls = Arc::new(credentials.server()?);
        let quic = quic_config(&tls, &options)?;
        let failed = |error: std::io::Error| {
            TunnelError::config(format!("listen on {address}"))
                .advise("choose a free port (UDP and TCP) and an address of this host")
                .caused_by(error)
        };
        let sockets = bind_all(address, options.workers).map_err(failed)?;
        let local = sockets.local;
        let (queue, incoming) = async_channel::bounded(INCOMING_QUEUE);
        let shared = Arc::new(Shared {
            options,
            tls: watch::Sender::new(tls),
            endpoints: Mutex::new(Vec::new()),
            registry: Arc::default(),
            queue,
            stop: CancellationToken::new(),
        });
        // From here on a failure drops the listener, which ends the threads that run already.
        let listener = Self { local, incoming, shared: shared.clone(), threads: TaskTracker::new() };
        for (number, (udp, tcp)) in (0..).zip(sockets.pairs) {
            let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
            let endpoint = {
                let _context = runtime.enter();
                let mtu = shared.options.profile.max_mtu();
                let (socket, _refused) = TunnelSocket::new(udp, mtu).map_err(failed)?;
                let config = profile::endpoint(shared.options.profile, number, credentials)?;
                let quinn_runtime = Arc::new(quinn::TokioRuntime);
                quinn::Endpoint::new_with_abstract_socket(config, Some(quic.clone()), socket, quinn_runtime)
                    .map_err(failed)?
            };
            lock(&shared.endpoints).push(endpoint.clone());
            let worker = Arc::new(Worker {
                shared: shared.clone(),
                runtime: runtime.handle().clone(),
                tasks: TaskTracker::new(),
                quic_greetings: Arc::new(Semaphore::new(MAX_GREETINGS)),
                tcp_greetings: Arc::new(Semaphore::new(MAX_GREETINGS)),
            });
            let token = listener.threads.token();
            std::thread::Builder::new()
                .name(format!("tunnel-listen-{number}"))
                .spawn(move || {
                    serve(&runtime, worker, endpoint, tcp);
                    drop(runtime);
                    drop(token);
                })
                .map_err(failed)?;
        }
        Ok(listener)
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The next session that a peer wants; `None` after [`Self::close`]. Cancel-safe.
    pub async fn accept(&self) -> Option<Incoming> {
        self.incoming.recv().await.ok()
    }

    /// Uses other credentials from the next connection on. Tunnels that are up stay up.
    ///
    /// # Errors
    /// When the credentials cannot be used; the old ones stay in force.
    pub fn reload(&self, credentials: &Credentials) -> Result<(), TunnelError> {
        let tls = Arc::new(credentials.server()?);
        let quic = quic_config(&tls, &self.shared.options)?;
        for endpoint in lock(&self.shared.endpoints).iter() {
            endpoint.set_server_config(Some(quic.clone()));
        }
        self.shared.tls.send_replace(tls);
        Ok(())
    }

    /// Stops listening: no new session and no new connection of an old one. Sessions that were accepted go on.
    pub fn close(&self) {
        self.shared.stop.cancel();
        self.incoming.close();
        for endpoint in lock(&self.shared.endpoints).drain(..) {
            endpoint.set_server_config(None);
        }
        // Waiting sessions hold their connections: let them go.
        while let Ok(incoming) = self.incoming.try_recv() {
            incoming.refuse(FailCode::Overloaded, "this agent is shutting down");
        }
        self.threads.close();
    }

    /// Waits until the threads have ended: after [`Self::close`], when the last tunnel is over.
    pub async fn ended(&self) {
        self.threads.wait().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({})", self.local)
    }
}

fn quic_config(
    tls: &Arc<rustls::ServerConfig>,
    options: &ListenOptions,
) -> Result<quinn::ServerConfig, TunnelError> {
    let crypto = QuicServerConfig::try_from(tls.clone())
        .map_err(|error| TunnelError::config("configure TLS for QUIC").caused_by(error))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    // The share of a session with one connection; it is divided when the session says how many it wants.
    let windows = options.windows.share(1);
    config
        .transport_config(profile::transport(options.profile, windows, Side::Listen))
        .migration(false)
        .max_incoming(MAX_GREETINGS);
    Ok(config)
}

struct Sockets {
    local: SocketAddr,
    pairs: Vec<(std::net::UdpSocket, std::net::TcpListener)>,
}

fn bind_all(address: SocketAddr, workers: u8) -> std::io::Result<Sockets> {
    let shared = workers > 1;
    let mut attempt = 0;
    let (local, first) = loop {
        attempt += 1;
        let udp = socket::udp(address, None, shared)?;
        let local = udp.local_addr()?;
        match tcp(local, shared) {
            Ok(tcp) => break (local, (udp, tcp)),
            Err(error)
                if address.port() == 0
                    && error.kind() == std::io::ErrorKind::AddrInUse
                    && attempt < PORT_ATTEMPTS => {}
            Err(error) => return Err(error),
        }
    };
    let mut pairs = vec![first];
    for _ in 1..workers {
        pairs.push((socket::udp(local, None, shared)?, tcp(local, shared)?));
    }
    Ok(Sockets { local, pairs })
}

fn tcp(address: SocketAddr, shared: bool) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // A restarted agent must not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn serve(runtime: &Runtime, worker: Arc<Worker>, endpoint: quinn::Endpoint, tcp: std::net::TcpListener) {
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
    prepare(&stream).map_err(|error| translate::tls_error(error, "prepare a TCP connection"))?;
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
    async fn greeted(self: &Arc<Self>, remote: SocketAddr, greeted: Result<Greeted, TunnelError>) {
        match greeted {
            Ok(Greeted { link, peer, first: Control::Open(open) }) => self.offer(remote, link, peer, open),
            Ok(Greeted { link, peer, first: Control::LaneHello(hello) }) => {
                self.route(remote, link, &peer, hello).await;
            }
            Ok(Greeted { first, .. }) => {
                unreachable!("first_frame lets only Open and LaneHello pass, not {:?}", first.tag())
            }
            Err(error) => {
                tracing::info!(%remote, reason = %error.chain(), "a connection was refused");
            }
        }
    }

    fn offer(self: &Arc<Self>, remote: SocketAddr, link: Link, peer: PeerName, open: Open) {
        let incoming = Incoming {
            peer,
            remote,
            open,
            waiting: Some(Waiting { link, worker: self.clone() }),
            _task: self.tasks.token(),
        };
        if let Err(full) = self.shared.queue.try_send(incoming) {
            full.into_inner().refuse(FailCode::Overloaded, "too many sessions wait to be accepted");
        }
    }

    async fn route(self: &Arc<Self>, remote: SocketAddr, link: Link, peer: &PeerName, hello: LaneHello) {
        let lane = hello.lane;
        let found = self.shared.registry.find(&hello, peer).and_then(|core| {
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

    /// Gives a connection its share of the session's windows.
    fn widen(&self, link: &Link, connections: u8) {
        if let Link::Quic(link) = link {
            profile::open_windows(&link.connection, self.shared.options.windows.share(connections));
        }
    }
}

async fn refuse(link: Link, code: FailCode, reason: &str) {
    match link {
        Link::Quic(link) => {
            link.connection.close(quic_lane::close_number(CloseCode::Failed(code)), reason.as_bytes());
        }
        Link::Tcp(link) => tcp_lane::refuse(link, code, reason).await,
    }
}

struct Waiting {
    link: Link,
    worker: Arc<Worker>,
}

/// A session that a peer wants. Dropping it refuses it.
pub struct Incoming {
    peer: PeerName,
    remote: SocketAddr,
    open: Open,
    waiting: Option<Waiting>,
    /// Keeps the listener's thread until the decision.
    _task: tokio_util::task::task_tracker::TaskTrackerToken,
}

impl Incoming {
    /// Who wants it, by certificate.
    #[must_use]
    pub fn peer(&self) -> &PeerName {
        &self.peer
    }

    /// Where from.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// What for.
    #[must_use]
    pub fn open(&self) -> &Open {
        &self.open
    }

    /// How it came.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.waiting.as_ref().map_or(Transport::Memory, |waiting| waiting.link.transport())
    }

    /// Takes the session. The `Open` frame is the first event in the inbox.
    ///
    /// # Errors
    /// [`TunnelErrorKind::Config`] when the buffers cannot hold a frame; the peer is refused then.
    pub fn accept(mut self, receive: ReceiveBuffers) -> Result<Tunnel, TunnelError> {
        receive.check()?;
        let Some(Waiting { mut link, worker }) = self.waiting.take() else {
            return Err(TunnelError::config("the session was refused already"));
        };
        let shared = &worker.shared;
        let connections = self.open.lanes.clamp(1, MAX_CONNECTIONS);
        let (core, ends) = Core::with_connections(
            self.peer.clone(),
            link.transport(),
            receive,
            shared.options.limit,
            connections,
        );
        worker.widen(&link, connections);
        if let Link::Quic(link) = &mut link {
            link.send_window = shared.options.windows.share(connections).send;
        }
        link.attach(&core, 0);
        // The queue is new and empty.
        drop(core.events.try_send(Event::Control(Control::Open(self.open.clone()))));
        let growth = Growth::Listen(shared.registry.clone());
        let tunnel = Tunnel::new(&core, ends, growth, Some(self.remote));
        let token = core.workers.token();
        worker.tasks.spawn_on(
            async move {
                link.run(core, 0).await;
                drop(token);
            },
            &worker.runtime,
        );
        Ok(tunnel)
    }

    /// Refuses the session; the peer is told why.
    pub fn refuse(mut self, code: FailCode, reason: &str) {
        self.refuse_inner(code, reason.to_owned());
    }

    fn refuse_inner(&mut self, code: FailCode, reason: String) {
        if let Some(Waiting { link, worker }) = self.waiting.take() {
            worker.tasks.spawn_on(async move { refuse(link, code, &reason).await }, &worker.runtime);
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.refuse_inner(FailCode::Overloaded, "nobody took the session".to_owned());
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incoming(from {} at {})", self.peer, self.remote)
    }
}
