//! The tunnel of a migration: messages on a control stream, and beside it channels, each of them raw bytes both ways with
//! a flow control of its own.
//!
//! ```text
//!  ChannelTunnel ─ messages ═ control stream ═ messages ─ ChannelTunnel
//!  Channel       ═══════════ stream 1 (RAM) ════════════  Channel        QUIC: one connection, a stream each
//!  Channel       ═══════════ stream 2 (disk) ═══════════  Channel        TCP: a TLS connection each
//! ```
//!
//! - **Independence**: a channel that is not read stops no other and no message. QUIC's windows of all streams together
//!   fit the connection's; over TCP they share nothing. Messages overtake the channels.
//! - **Bounds**: 64 channels, 1 MiB of window each, queues of 64 messages each way. The limit of the options counts the
//!   bytes of channels, not of messages.
//! - **Endings**: a direction of a channel is finished, or broken off. When the control stream ends or nothing was heard
//!   for the chosen time, the tunnel ends with all channels; everybody is told the same reason.
//! - **Who dials**: mostly the source, which opens the channels. A source that cannot dial its destination is dialled by it
//!   ([`call_source`]); all else stays as it is.
//! - **What it does not do**: it opens nothing again, and knows nothing of what the channels carry.

mod call;
mod channel;
mod control;
mod core;
mod ends;
mod hello;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::timeout;
use volume::{Generation, SessionId};
use wire::control::MAX_MESSAGE;
use wire::{ChannelHello, Control, FailCode, Migrate};

pub use self::call::call_source;
pub(crate) use self::call::{Called, called};
pub use self::channel::{Channel, ChannelReader, ChannelWriter};
pub(crate) use self::core::{ChannelCore, Slot};
pub(crate) use self::hello::REFUSED;

use self::control::Role;
use self::core::{Ends, Setting};
use self::ends::{Input, Output, TcpChannel};
use crate::credentials::Credentials;
use crate::dial::{self, Established, Purpose};
use crate::ending::Closing;
use crate::error::{CloseCode, Refusal, TunnelError, TunnelErrorKind};
use crate::greeting::{FIRST_FRAME, Link};
use crate::identity::PeerName;
use crate::options::{DialOptions, Transport};
use crate::registry::Registry;
use crate::stats::{Meter, TunnelStats};
use crate::tcp_lane::TcpLink;
use crate::translate;

/// Connects to a host to move a VM there: TLS, ALPN, versions and identity are agreed when this returns, and `Migrate`
/// is sent. `connections` of the options means nothing here.
///
/// # Errors
/// See [`TunnelErrorKind`]. That the peer does not want the migration shows later, in [`ChannelTunnel::recv_message`].
pub async fn dial_channels(
    options: &DialOptions,
    credentials: &Credentials,
    migration: SessionId,
) -> Result<ChannelTunnel, TunnelError> {
    options.check()?;
    let (options, credentials) = (options.clone(), credentials.clone());
    let (report, reported) = oneshot::channel();
    dial::spawn("tunnel-channels", move || async move {
        let mut report = report;
        let established = tokio::select! {
            established = establish(&options, &credentials, migration) => established,
            () = report.closed() => return, // the caller gave up
        };
        let Established { link, peer, remote, endpoint } = match established {
            Ok(established) => established,
            Err(error) => {
                drop(report.send(Err(error))); // fails when the caller gave up
                return;
            }
        };
        let (limit, idle) = (options.limit, options.channel_idle);
        let (core, ends) = start(&link, peer, remote, migration, limit, idle);
        let token = core.workers.token();
        let growth = match &link {
            Link::Quic(link) => Growth::Quic(link.connection.clone()),
            Link::Tcp(_) => Growth::Tcp(Arc::new((options, credentials))),
        };
        // A tunnel that nobody takes is dropped here, which ends it at once.
        drop(report.send(Ok(ChannelTunnel::new(&core, ends, growth))));
        control::run(core, link, Role::Dialler).await;
        dial::goodbye(endpoint).await;
        drop(token);
    })?;
    reported.await.map_err(|error| {
        TunnelError::new(TunnelErrorKind::Lost, "the connection's thread ended").caused_by(error)
    })?
}

async fn establish(
    options: &DialOptions,
    credentials: &Credentials,
    migration: SessionId,
) -> Result<Established, TunnelError> {
    let mut established = dial::first(options, credentials, Purpose::Channels).await?;
    established.link.write(&Control::Migrate(Migrate { migration }).encode()).await?;
    Ok(established)
}

/// The shared state of a tunnel whose greeting is over. Must be called on the runtime that drives its sockets.
fn start(
    link: &Link,
    peer: PeerName,
    remote: SocketAddr,
    migration: SessionId,
    limit: Option<u64>,
    idle: std::time::Duration,
) -> (Arc<ChannelCore>, Ends) {
    let meter = match link {
        Link::Quic(link) => Meter::Quic(link.connection.clone()),
        Link::Tcp(link) => Meter::Counted(link.counters.clone()),
    };
    let transport = link.transport();
    let home = tokio::runtime::Handle::current();
    ChannelCore::new(Setting { peer, remote, transport, migration, limit, idle, home }, meter)
}

/// What the listener knows of a migration that its owner accepts.
pub(crate) struct Accepted {
    pub(crate) link: Link,
    pub(crate) peer: PeerName,
    pub(crate) remote: SocketAddr,
    pub(crate) migration: SessionId,
    pub(crate) limit: Option<u64>,
    pub(crate) idle: std::time::Duration,
    pub(crate) registry: Arc<Registry>,
}

/// The tunnel of a migration that came in, and what drives it. Must be called on the listener's runtime.
pub(crate) fn accepted(
    accepted: Accepted,
) -> Result<(ChannelTunnel, impl Future<Output = ()> + Send + 'static), TunnelError> {
    let Accepted { link, peer, remote, migration, limit, idle, registry } = accepted;
    if let Link::Tcp(link) = &link {
        link.give_up_after(idle)
            .map_err(|error| translate::tls_error(error, "prepare a migration's connection"))?;
    }
    let (core, ends) = start(&link, peer, remote, migration, limit, idle);
    let token = core.workers.token();
    let tunnel = ChannelTunnel::new(&core, ends, Growth::Listen(registry));
    let work = async move {
        control::run(core, link, Role::Acceptor).await;
        drop(token);
    };
    Ok((tunnel, work))
}

/// A channel that came to the listener on a connection of its own, and has its number.
pub(crate) async fn routed(
    core: &Arc<ChannelCore>,
    slot: Slot,
    hello: ChannelHello,
    link: TcpLink,
) -> Result<(), TunnelError> {
    let (input, output) = tcp_ends(core, link)?;
    hello::answer(core, slot, hello, input, output).await
}

fn tcp_ends(core: &ChannelCore, link: TcpLink) -> Result<(Input, Output), TunnelError> {
    let channel = TcpChannel::new(link, core)
        .map_err(|error| translate::tls_error(error, "prepare a channel's connection"))?;
    Ok((Input::tcp(channel.clone()), Output::tcp(channel)))
}

impl ChannelCore {
    /// How it travels.
    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }
}

/// Where channels come from.
#[derive(Clone)]
enum Growth {
    /// We open streams.
    Quic(quinn::Connection),
    /// We dial connections.
    Tcp(Arc<(DialOptions, Credentials)>),
    /// They come to us; over TCP through the registry.
    Listen(Arc<Registry>),
}

/// Closes the tunnel when the last handle is dropped.
struct Presence(Arc<ChannelCore>);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.close(Closing::abandoned("migration"));
    }
}

/// The tunnel of one migration. Clones are handles of the same tunnel; dropping the last closes it, and its channels
/// with it.
#[derive(Clone)]
pub struct ChannelTunnel {
    core: Arc<ChannelCore>,
    messages: async_channel::Sender<Control>,
    inbox: async_channel::Receiver<Vec<u8>>,
    growth: Growth,
    _presence: Arc<Presence>,
}

impl ChannelTunnel {
    fn new(core: &Arc<ChannelCore>, ends: Ends, growth: Growth) -> Self {
        let Ends { messages, inbox } = ends;
        let _presence = Arc::new(Presence(core.clone()));
        Self { core: core.clone(), messages, inbox, growth, _presence }
    }

    /// Who is on the other side, by certificate.
    #[must_use]
    pub fn peer(&self) -> &PeerName {
        &self.core.peer
    }

    /// The peer's address.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.core.remote
    }

    /// How it travels.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.core.transport
    }

    /// What was done so far, all channels included.
    #[must_use]
    pub fn stats(&self) -> TunnelStats {
        self.core.stats()
    }

    /// Bytes a second that its channels may move from now on, both directions together; 0 counts as 1.
    pub fn set_limit(&self, limit: Option<u64>) {
        self.core.set_limit(limit);
    }

    /// Queues a message of at most [`MAX_MESSAGE`] bytes; waits while the queue is full. Messages arrive whole and in
    /// order, before channel bytes that wait to be sent.
    ///
    /// # Errors
    /// [`TunnelErrorKind::Config`] when it is too long, otherwise why the tunnel is over.
    pub async fn send_message(&self, body: Vec<u8>) -> Result<(), TunnelError> {
        if body.len() > MAX_MESSAGE {
            let what = format!("a message of {} bytes: {MAX_MESSAGE} is the most", body.len());
            return Err(TunnelError::config(what));
        }
        match self.messages.send(Control::Message(body)).await {
            Ok(()) => Ok(()),
            // The error holds the message that was not sent.
            Err(_closed) => Err(self.closed().await),
        }
    }

    /// The next message. It must be called all the time: over TCP the peer's pings wait behind a full inbox.
    /// Cancel-safe.
    ///
    /// # Errors
    /// Why the tunnel is over, once all messages that came before were taken.
    pub async fn recv_message(&self) -> Result<Vec<u8>, TunnelError> {
        match self.inbox.recv().await {
            Ok(body) => Ok(body),
            Err(_closed) => Err(self.closed().await),
        }
    }

    /// Accepting side: lets channels of this generation in, and no longer those of an older one.
    pub fn register(&self, generation: Generation) {
        self.core.register(generation);
        if let Growth::Listen(registry) = &self.growth
            && self.core.transport == Transport::Tcp
        {
            registry.migrations.register(self.core.key(generation), &self.core);
        }
    }

    /// Dialling side: opens a channel. It is up, and the peer has its other end, when this returns.
    ///
    /// # Errors
    /// [`TunnelErrorKind::Config`] when this is the accepting side, the hello names another migration, the number is
    /// taken, or 64 channels are open. [`TunnelErrorKind::PeerClosed`] with the code when the peer refuses it: the
    /// tunnel goes on unless [`Self::closed`] says otherwise. Else why the channel or the tunnel was lost.
    pub async fn open_channel(&self, hello: ChannelHello) -> Result<Channel, TunnelError> {
        if hello.migration != self.core.migration {
            return Err(TunnelError::config(format!("a channel of migration {}", hello.migration)));
        }
        let slot = self.core.take(hello.channel).map_err(|code| {
            let why = if code == FailCode::Busy { "it is open" } else { "too many are open" };
            TunnelError::config(format!("open channel {}: {why}", hello.channel))
        })?;
        let opened = tokio::select! {
            biased;
            closing = self.core.ending.wait() => return Err(closing.error),
            opened = async {
                match &self.growth {
                    Growth::Quic(connection) => open_stream(&self.core, connection, slot, hello).await,
                    Growth::Tcp(with) => open_connection(&self.core, with.clone(), slot, hello).await,
                    Growth::Listen(_) => Err(TunnelError::config("the accepting side opens no channel")),
                }
            } => opened,
        };
        opened.map_err(|error| self.core.explain(error))
    }

    /// Accepting side: the next channel that the peer opened. Cancel-safe.
    ///
    /// # Errors
    /// [`TunnelErrorKind::Config`] on the dialling side, otherwise why the tunnel is over.
    pub async fn accept_channel(&self) -> Result<(ChannelHello, Channel), TunnelError> {
        if !matches!(self.growth, Growth::Listen(_)) {
            return Err(TunnelError::config("the dialling side accepts no channel"));
        }
        match self.core.arrived.recv().await {
            Ok(arrival) => Ok(arrival),
            Err(_closed) => Err(self.closed().await),
        }
    }

    /// Ends the tunnel. Messages that were queued before are still sent, and the code and the reason after them. The
    /// channels end at once, whatever is on its way in them.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.core.close(Closing::here(code, reason));
    }

    /// Waits until the tunnel is over, and says why. Cancel-safe.
    pub async fn closed(&self) -> TunnelError {
        self.core.ending.wait().await.error
    }

    /// What sees its end without being a handle.
    #[must_use]
    pub fn watcher(&self) -> Watcher {
        Watcher(self.core.clone())
    }

    /// Waits until the tunnel is over and everything that worked for it has ended.
    pub async fn ended(&self) {
        self.core.ending.wait().await;
        self.core.workers.wait().await;
    }
}

/// Sees a tunnel's end, and may end it. No handle: it keeps the tunnel from nothing.
#[derive(Clone)]
pub struct Watcher(Arc<ChannelCore>);

impl Watcher {
    /// As [`ChannelTunnel::close`].
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.0.close(Closing::here(code, reason));
    }

    /// As [`ChannelTunnel::closed`].
    pub async fn closed(&self) -> TunnelError {
        self.0.ending.wait().await.error
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watcher(of {:?})", self.0)
    }
}

async fn open_stream(
    core: &Arc<ChannelCore>,
    connection: &quinn::Connection,
    slot: Slot,
    hello: ChannelHello,
) -> Result<Channel, TunnelError> {
    // Waits while the peer still counts streams that are over here.
    let opened = timeout(FIRST_FRAME, connection.open_bi()).await.map_err(|late| {
        TunnelError::new(TunnelErrorKind::ChannelLost, "the peer takes no more channels").caused_by(late)
    })?;
    let (send, receive) = opened.map_err(translate::connection_error)?;
    hello::ask(core, slot, hello, Input::Quic(receive), Output::quic(send)).await
}

/// On the tunnel's own runtime, which drives the socket from then on.
async fn open_connection(
    core: &Arc<ChannelCore>,
    with: Arc<(DialOptions, Credentials)>,
    slot: Slot,
    hello: ChannelHello,
) -> Result<Channel, TunnelError> {
    let work = core.clone();
    let opening = core.home.spawn(async move {
        let (options, credentials) = &*with;
        let nth = u8::try_from(hello.channel % u16::from(u8::MAX)).unwrap_or(0);
        let Established { link, peer, .. } =
            dial::tcp(options, credentials, work.remote, nth, Purpose::Channels).await?;
        if peer != work.peer {
            let what = format!("a channel reached {peer}, not {}", work.peer);
            return Err(TunnelError::new(TunnelErrorKind::Refused(Refusal::WrongPeer), what));
        }
        let Link::Tcp(link) = link else {
            return Err(TunnelError::config("a channel's connection is not over TCP"));
        };
        let (input, output) = tcp_ends(&work, link)?;
        hello::ask(&work, slot, hello, input, output).await
    });
    opening.await.unwrap_or_else(|error| {
        Err(TunnelError::new(TunnelErrorKind::Lost, "the tunnel's thread ended").caused_by(error))
    })
}

impl fmt::Debug for ChannelTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChannelTunnel(to {} over {:?})", self.core.peer, self.core.transport)
    }
}
