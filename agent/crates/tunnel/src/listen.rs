//! The listening side: QUIC and TLS on one port, on one thread or several, each with its own sockets.
//!
//! Whoever connects is judged by TLS first. Then the greeting is read within a deadline, and the first frame decides:
//! `Open` and `Migrate` become an [`Incoming`] for the owner of the listener, `LaneHello` and `ChannelHello` are routed to
//! the tunnel that the same peer opened. Until then a connection may send no stream but the greeting's and no more than 256 KiB.

mod accept;
mod incoming;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use quinn::crypto::rustls::QuicServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::FailCode;

use self::accept::{MAX_GREETINGS, Worker, serve};
pub use self::incoming::{Incoming, Request};
use crate::core::lock;
use crate::credentials::Credentials;
use crate::error::TunnelError;
use crate::options::ListenOptions;
use crate::profile::{self, Side};
use crate::registry::Registry;
use crate::socket::{self, TunnelSocket};

/// Sessions that wait to be accepted.
const INCOMING_QUEUE: usize = 64;
/// Connections that wait in the kernel.
const BACKLOG: i32 = 128;
/// Ports that are tried when any will do and the one for UDP is taken for TCP.
const PORT_ATTEMPTS: usize = 16;
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

impl Listener {
    /// Listens on UDP and TCP. Port 0 chooses one that is free for both.
    ///
    /// # Errors
    /// [`crate::TunnelErrorKind::Config`] when the port is taken or the credentials cannot be used.
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
            let worker = Arc::new(Worker::new(shared.clone(), runtime.handle().clone()));
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
