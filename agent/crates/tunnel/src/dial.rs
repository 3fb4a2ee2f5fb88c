//! The dialling side: each connection has its own socket, endpoint, thread and runtime, so that a connection's
//! packets, its cryptography and its streams stay on one core.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use quinn::crypto::rustls::QuicClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::{TcpSocket, lookup_host};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};

use crate::core::{Core, ReceiveBuffers, SessionKey};
use crate::credentials::Credentials;
use crate::error::{TunnelError, TunnelErrorKind};
use crate::greeting::{self, FIRST_FRAME, HANDSHAKE, Link};
use crate::identity::PeerName;
use crate::options::{DialOptions, Transport, TransportChoice};
use crate::profile::{self, Side};
use crate::socket::{self, TunnelSocket};
use crate::tcp_lane::{Counted, TcpLink};
use crate::tunnel::{Event, Growth, Tunnel};
use crate::{quic_lane, tcp_lane, translate};

/// How long `auto` waits for an answer over UDP before it tries TCP.
const AUTO_PATIENCE: Duration = Duration::from_secs(3);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;
/// TLS wants a server name; ours are checked by certificate, and this one is never sent.
const SERVER_NAME: &str = "novaferry.invalid";
/// How long TCP may go unacknowledged before it is dead.
pub(crate) const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// How long a closed endpoint may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// Connects to a host: TLS, ALPN, versions and identity are agreed when this returns; nothing else was said.
///
/// # Errors
/// See [`TunnelErrorKind`].
pub async fn dial(
    options: &DialOptions,
    credentials: &Credentials,
    receive: ReceiveBuffers,
) -> Result<Tunnel, TunnelError> {
    options.check()?;
    receive.check()?;
    let (options, credentials) = (options.clone(), credentials.clone());
    let (report, reported) = oneshot::channel();
    spawn("tunnel-lane-0", move || async move {
        let mut report = report;
        let established = tokio::select! {
            established = first(&options, &credentials, Purpose::Lane) => established,
            () = report.closed() => return, // the caller gave up
        };
        let Established { link, peer, remote, endpoint } = match established {
            Ok(established) => established,
            Err(error) => {
                drop(report.send(Err(error))); // fails when the caller gave up
                return;
            }
        };
        let transport = link.transport();
        let (core, ends) = Core::new(peer, transport, receive, options.limit);
        let token = core.workers.token();
        link.attach(&core, 0);
        let dialler = Arc::new(Dialler { options, credentials, remote, transport });
        let tunnel = Tunnel::new(&core, ends, Growth::Dial(dialler), Some(remote));
        // A tunnel that nobody takes is dropped here, which ends the lane at once.
        drop(report.send(Ok(tunnel)));
        link.run(core, 0).await;
        goodbye(endpoint).await;
        drop(token);
    })?;
    reported.await.map_err(|error| {
        TunnelError::new(TunnelErrorKind::Lost, "the connection's thread ended").caused_by(error)
    })?
}

/// Runs a future on a thread and a runtime of its own.
pub(crate) fn spawn<F, W>(name: &str, work: W) -> Result<(), TunnelError>
where
    W: FnOnce() -> F + Send + 'static,
    F: Future<Output = ()>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| TunnelError::config("start a runtime for a connection").caused_by(error))?;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || runtime.block_on(work()))
        .map(drop)
        .map_err(|error| TunnelError::config("start a thread for a connection").caused_by(error))
}

pub(crate) async fn goodbye(endpoint: Option<quinn::Endpoint>) {
    if let Some(endpoint) = endpoint
        && timeout(GOODBYE, endpoint.wait_idle()).await.is_err()
    {
        tracing::debug!("the peer did not confirm the end of a connection");
    }
}

impl Link {
    pub(crate) fn transport(&self) -> Transport {
        match self {
            Self::Quic(_) => Transport::Quic,
            Self::Tcp(_) => Transport::Tcp,
        }
    }

    pub(crate) fn attach(&self, core: &Core, lane: u8) -> bool {
        match self {
            Self::Quic(link) => quic_lane::attach(core, lane, link),
            Self::Tcp(link) => tcp_lane::attach(core, lane, link),
        }
    }

    pub(crate) async fn run(self, core: Arc<Core>, lane: u8) {
        match self {
            Self::Quic(link) => quic_lane::run(core, lane, link).await,
            Self::Tcp(link) => tcp_lane::run(core, lane, link).await,
        }
    }
}

/// A connection whose greeting is over.
pub(crate) struct Established {
    pub(crate) link: Link,
    pub(crate) peer: PeerName,
    pub(crate) remote: SocketAddr,
    /// Over QUIC, to say goodbye in the end.
    pub(crate) endpoint: Option<quinn::Endpoint>,
}

/// What a connection is dialled for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// A lane of a copy.
    Lane,
    /// A migration, or one of its channels.
    Channels,
}

/// What is needed to dial the further connections of a tunnel.
pub(crate) struct Dialler {
    options: DialOptions,
    credentials: Credentials,
    remote: SocketAddr,
    transport: Transport,
}

impl Dialler {
    pub(crate) async fn open_lanes(
        self: &Arc<Self>,
        core: &Arc<Core>,
        key: SessionKey,
    ) -> Result<u8, TunnelError> {
        // Over QUIC lane 0 carries data too.
        let count = match self.transport {
            Transport::Tcp => self.options.connections,
            Transport::Quic | Transport::Memory => self.options.connections - 1,
        };
        let attempts = (1..=count).map(|lane| self.open_lane(core, key, lane));
        let mut up = 0;
        let mut first_error = None;
        for (lane, result) in (1..=count).zip(join_all(attempts).await) {
            match result {
                Ok(()) => up += 1,
                Err(error) => {
                    first_error.get_or_insert_with(|| error.clone());
                    // Fails when the inbox is gone: then nobody needs the lane either.
                    drop(core.events.send(Event::LaneDown { lane, error }).await);
                }
            }
        }
        match first_error {
            Some(error) if up == 0 && self.transport == Transport::Tcp => Err(error),
            _ => Ok(up),
        }
    }

    async fn open_lane(
        self: &Arc<Self>,
        core: &Arc<Core>,
        key: SessionKey,
        lane: u8,
    ) -> Result<(), TunnelError> {
        let (report, reported) = oneshot::channel();
        let (dialler, core) = (self.clone(), core.clone());
        let token = core.workers.token();
        spawn(&format!("tunnel-lane-{lane}"), move || async move {
            let joined = tokio::select! {
                joined = dialler.join(&core, key, lane) => joined,
                closing = core.closing() => Err(closing.error),
            };
            match joined {
                Ok((link, endpoint)) if link.attach(&core, lane) => {
                    drop(core.events.send(Event::LaneUp { lane }).await); // fails when the inbox is gone
                    drop(report.send(Ok(()))); // fails when the caller gave up; the lane is of use all the same
                    link.run(core, lane).await;
                    goodbye(endpoint).await;
                }
                Ok(_) => {
                    let error =
                        TunnelError::config(format!("lane {lane} is open already, or the tunnel is over"));
                    drop(report.send(Err(error)));
                }
                Err(error) => drop(report.send(Err(error))),
            }
            drop(token);
        })?;
        reported.await.map_err(|error| {
            TunnelError::new(TunnelErrorKind::Lost, "the connection's thread ended").caused_by(error)
        })?
    }

    async fn join(
        &self,
        core: &Core,
        key: SessionKey,
        lane: u8,
    ) -> Result<(Link, Option<quinn::Endpoint>), TunnelError> {
        let established = match self.transport {
            Transport::Tcp => tcp(&self.options, &self.credentials, self.remote, lane, Purpose::Lane).await?,
            Transport::Quic | Transport::Memory => {
                quic(&self.options, &self.credentials, self.remote, lane, HANDSHAKE, Purpose::Lane).await?
            }
        };
        let Established { mut link, peer, endpoint, .. } = established;
        if peer != core.peer {
            let what = format!("a further connection reached {peer}, not {}", core.peer);
            return Err(TunnelError::new(TunnelErrorKind::Refused(crate::error::Refusal::WrongPeer), what));
        }
        greeting::join(&mut link, lane, key).await?;
        Ok((link, endpoint))
    }
}

pub(crate) async fn first(
    options: &DialOptions,
    credentials: &Credentials,
    purpose: Purpose,
) -> Result<Established, TunnelError> {
    let what = format!("resolve {}", options.host);
    let found = lookup_host((options.host.as_str(), options.port))
        .await
        .map_err(|error| TunnelError::new(TunnelErrorKind::Unreachable, what.clone()).caused_by(error))?;
    let via = via(options, 0);
    let addresses: Vec<_> = found
        .filter(|address| via.is_none_or(|via| via.is_ipv4() == address.is_ipv4()))
        .take(MAX_ADDRESSES)
        .collect();
    let mut last =
        TunnelError::new(TunnelErrorKind::Unreachable, format!("{what}: no address of the right family"));
    for remote in addresses {
        let result = match options.transport {
            TransportChoice::Quic => quic(options, credentials, remote, 0, HANDSHAKE, purpose).await,
            TransportChoice::Tcp => tcp(options, credentials, remote, 0, purpose).await,
            TransportChoice::Auto => either(options, credentials, remote, purpose).await,
        };
        match result {
            Err(error) if nobody_there(&error) => last = error,
            other => return other,
        }
    }
    Err(last)
}

fn nobody_there(error: &TunnelError) -> bool {
    use TunnelErrorKind as K;
    matches!(error.kind(), K::Unreachable | K::TimedOut | K::Lost)
}

async fn either(
    options: &DialOptions,
    credentials: &Credentials,
    remote: SocketAddr,
    purpose: Purpose,
) -> Result<Established, TunnelError> {
    match quic(options, credentials, remote, 0, AUTO_PATIENCE, purpose).await {
        Err(udp) if nobody_there(&udp) => {
            tracing::info!(%remote, reason = %udp.chain(), "no QUIC; trying TCP");
            tcp(options, credentials, remote, 0, purpose).await.map_err(|tcp| TunnelError::both(&udp, tcp))
        }
        other => other,
    }
}

fn via(options: &DialOptions, lane: u8) -> Option<IpAddr> {
    let nth = usize::from(lane).checked_rem(options.via.len())?;
    options.via.get(nth).copied()
}

fn local(options: &DialOptions, lane: u8, remote: SocketAddr) -> Result<SocketAddr, TunnelError> {
    let address = via(options, lane).unwrap_or_else(|| socket::wildcard(&remote));
    if address.is_ipv4() != remote.is_ipv4() {
        let what = format!("{address} cannot reach {remote}: one is IPv4 and the other IPv6");
        return Err(TunnelError::config(what));
    }
    Ok(SocketAddr::new(address, 0))
}

fn cannot_bind(local: SocketAddr) -> impl Fn(std::io::Error) -> TunnelError {
    move |error| {
        TunnelError::config(format!("bind a connection to {}", local.ip()))
            .advise("choose an address of this host with a route to the peer")
            .caused_by(error)
    }
}

async fn quic(
    options: &DialOptions,
    credentials: &Credentials,
    remote: SocketAddr,
    lane: u8,
    patience: Duration,
    purpose: Purpose,
) -> Result<Established, TunnelError> {
    let config = |what: &'static str| move |error: std::io::Error| TunnelError::config(what).caused_by(error);
    let local = local(options, lane, remote)?;
    let (tls, verifier) = credentials.client(options.expect_peer.clone())?;
    let crypto = QuicClientConfig::try_from(tls)
        .map_err(|error| TunnelError::config("configure TLS for QUIC").caused_by(error))?;
    let (windows, side) = match purpose {
        Purpose::Lane => (options.windows.share(options.connections), Side::Dial),
        Purpose::Channels => (options.windows.share(1), Side::Channels(options.channel_idle)),
    };
    let mut client = quinn::ClientConfig::new(Arc::new(crypto));
    client.transport_config(profile::transport(options.profile, windows, side));
    let udp = socket::udp(local, Some(remote), false).map_err(cannot_bind(local))?;
    let (socket, refused) =
        TunnelSocket::new(udp, options.profile.max_mtu()).map_err(config("use a UDP socket"))?;
    let endpoint = quinn::Endpoint::new_with_abstract_socket(
        profile::endpoint(options.profile, lane, credentials)?,
        None,
        socket,
        Arc::new(quinn::TokioRuntime),
    )
    .map_err(config("start QUIC"))?;
    let connecting = endpoint
        .connect_with(client, remote, SERVER_NAME)
        .map_err(|error| TunnelError::config(format!("dial {remote} over QUIC")).caused_by(error))?;
    let unreachable = |kind, why: &str| TunnelError::new(kind, format!("dial {remote} over QUIC: {why}"));
    let work = async {
        let connection = tokio::select! {
            connection = connecting => connection.map_err(translate::connection_error)?,
            () = refused.notified() => {
                return Err(unreachable(TunnelErrorKind::Unreachable, "nobody listens there"));
            }
            () = tokio::time::sleep(patience) => {
                return Err(unreachable(TunnelErrorKind::TimedOut, "no answer"));
            }
        };
        let peer = greeting::quic_peer(&connection)?;
        let (send, receive) = connection.open_bi().await.map_err(translate::connection_error)?;
        let guard = connection.clone();
        let mut link = greeting::quic_link(connection, send, receive, windows.send)?;
        match greeting::offer(&mut link).await {
            Ok(()) => Ok((link, peer)),
            Err(error) => {
                // Before the link is dropped, which would close the connection without a code.
                guard.close(quic_lane::close_number(error.close_code()), error.chain().as_bytes());
                Err(error)
            }
        }
    };
    match bounded(patience + FIRST_FRAME, work).await {
        Ok((link, peer)) => Ok(Established { link, peer, remote, endpoint: Some(endpoint) }),
        Err(error) => {
            // So that the peer learns it at once.
            endpoint.close(quic_lane::close_number(error.close_code()), error.chain().as_bytes());
            goodbye(Some(endpoint)).await;
            Err(verifier.verdict().unwrap_or(error))
        }
    }
}

async fn bounded<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, TunnelError>>,
) -> Result<T, TunnelError> {
    timeout(limit, work).await.unwrap_or_else(|late| {
        Err(TunnelError::new(TunnelErrorKind::TimedOut, "the peer does not finish the greeting")
            .caused_by(late))
    })
}

pub(crate) async fn tcp(
    options: &DialOptions,
    credentials: &Credentials,
    remote: SocketAddr,
    lane: u8,
    purpose: Purpose,
) -> Result<Established, TunnelError> {
    let local = local(options, lane, remote)?;
    let (tls, verifier) = credentials.client(options.expect_peer.clone())?;
    let unacknowledged = match purpose {
        Purpose::Lane => UNACKNOWLEDGED,
        Purpose::Channels => options.channel_idle,
    };
    let name = ServerName::try_from(SERVER_NAME)
        .map_err(|error| TunnelError::config("configure TLS").caused_by(error))?;
    let work = async {
        let socket = if remote.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.map_err(cannot_bind(local))?;
        socket.bind(local).map_err(cannot_bind(local))?;
        let failed = |error| {
            let error: std::io::Error = error;
            let inner = translate::tls_error(error, "connect");
            TunnelError::new(inner.kind(), format!("dial {remote} over TCP")).caused_by(inner)
        };
        let stream = socket.connect(remote).await.map_err(failed)?;
        prepare(&stream, unacknowledged).map_err(failed)?;
        let (stream, counters) = Counted::new(stream);
        let stream = TlsConnector::from(Arc::new(tls))
            .connect(name, stream)
            .await
            .map_err(|error| translate::tls_error(error, "TLS handshake"))?;
        let peer = greeting::tls_peer(stream.get_ref().1)?;
        let mut link = Link::Tcp(TcpLink { stream: TlsStream::Client(stream), counters });
        greeting::offer(&mut link).await?;
        Ok((link, peer))
    };
    match bounded(HANDSHAKE + FIRST_FRAME, work).await {
        Ok((link, peer)) => Ok(Established { link, peer, remote, endpoint: None }),
        Err(error) => Err(verifier.verdict().unwrap_or(error)),
    }
}

/// No delay for small frames, and an end for a peer that acknowledges nothing.
pub(crate) fn prepare(stream: &tokio::net::TcpStream, unacknowledged: Duration) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(unacknowledged))
}
