//! What a caller wants, and what the listener's owner makes of it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::task::task_tracker::TaskTrackerToken;
use wire::{Call, Control, FailCode, Migrate, Open};

use super::accept::Worker;
use crate::channels::{self, ChannelTunnel};
use crate::core::{Core, ReceiveBuffers};
use crate::error::{CloseCode, TunnelError};
use crate::greeting::Link;
use crate::identity::PeerName;
use crate::options::{MAX_CONNECTIONS, Transport};
use crate::tunnel::{Event, Growth, Tunnel};
use crate::{profile, quic_lane, tcp_lane};

pub(super) async fn refuse(link: Link, code: FailCode, reason: &str) {
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

/// What a peer wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// To copy a volume: [`Incoming::accept`] takes it.
    Copy(&'a Open),
    /// To move a VM here: [`Incoming::accept_channels`] takes it.
    Migrate(&'a Migrate),
    /// That a VM moves to it: [`Incoming::accept_call`] takes it.
    Call(&'a Call),
}

pub(super) enum Wanted {
    Copy(Open),
    Migrate(Migrate),
    Call(Call),
}

/// A session or a migration that a peer wants. Dropping it refuses it.
pub struct Incoming {
    peer: PeerName,
    remote: SocketAddr,
    wanted: Wanted,
    waiting: Option<Waiting>,
    /// Keeps the listener's thread until the decision.
    _task: TaskTrackerToken,
}

impl Incoming {
    pub(super) fn new(
        peer: PeerName,
        remote: SocketAddr,
        wanted: Wanted,
        link: Link,
        worker: &Arc<Worker>,
    ) -> Self {
        let waiting = Some(Waiting { link, worker: worker.clone() });
        Self { peer, remote, wanted, waiting, _task: worker.tasks.token() }
    }

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
    pub fn request(&self) -> Request<'_> {
        match &self.wanted {
            Wanted::Copy(open) => Request::Copy(open),
            Wanted::Migrate(migrate) => Request::Migrate(migrate),
            Wanted::Call(call) => Request::Call(call),
        }
    }

    /// How it came.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.waiting.as_ref().map_or(Transport::Memory, |waiting| waiting.link.transport())
    }

    /// Takes a copy. The `Open` frame is the first event in the inbox.
    ///
    /// # Errors
    /// [`crate::TunnelErrorKind::Config`] when the buffers cannot hold a frame or it is no copy; the peer is refused
    /// then.
    pub fn accept(mut self, receive: ReceiveBuffers) -> Result<Tunnel, TunnelError> {
        receive.check()?;
        let Wanted::Copy(open) = &self.wanted else {
            self.refuse(FailCode::Unsupported, "only copies are taken here");
            return Err(TunnelError::config("the peer wants a migration, not a copy"));
        };
        let open = open.clone();
        let Some(Waiting { mut link, worker }) = self.waiting.take() else {
            return Err(TunnelError::config("the session was refused already"));
        };
        let shared = &worker.shared;
        let connections = open.lanes.clamp(1, MAX_CONNECTIONS);
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
        drop(core.events.try_send(Event::Control(Control::Open(open))));
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

    /// Takes a migration. No channel is let in before [`ChannelTunnel::register`].
    ///
    /// # Errors
    /// [`crate::TunnelErrorKind::Config`] when it is a copy: the peer is refused then. Others when the connection is gone.
    pub fn accept_channels(mut self) -> Result<ChannelTunnel, TunnelError> {
        let Wanted::Migrate(migrate) = &self.wanted else {
            self.refuse(FailCode::Unsupported, "only migrations are taken here");
            return Err(TunnelError::config("the peer wants a copy, not a migration"));
        };
        let migration = migrate.migration;
        let Some(Waiting { link, worker }) = self.waiting.take() else {
            return Err(TunnelError::config("the migration was refused already"));
        };
        let shared = &worker.shared;
        if let Link::Quic(link) = &link {
            profile::open_channels(&link.connection, shared.options.windows.share(1));
        }
        let _context = worker.runtime.enter();
        let (tunnel, work) = channels::accepted(channels::Accepted {
            link,
            peer: self.peer.clone(),
            remote: self.remote,
            migration,
            limit: shared.options.limit,
            idle: shared.options.channel_idle,
            registry: shared.registry.clone(),
        })?;
        worker.tasks.spawn_on(work, &worker.runtime);
        Ok(tunnel)
    }

    /// Takes the connection that a migration's destination opened: from then on it is as if this side had dialled.
    ///
    /// # Errors
    /// [`crate::TunnelErrorKind::Config`] when it is something else: the peer is refused then.
    pub fn accept_call(mut self) -> Result<ChannelTunnel, TunnelError> {
        let Wanted::Call(call) = &self.wanted else {
            self.refuse(FailCode::Unsupported, "only destinations that dial are taken here");
            return Err(TunnelError::config("the peer is no destination that dials"));
        };
        let migration = call.migration;
        let Some(Waiting { link: Link::Quic(link), worker }) = self.waiting.take() else {
            return Err(TunnelError::config("the call was refused already, or is not over QUIC"));
        };
        let shared = &worker.shared;
        profile::open_call(&link.connection, shared.options.windows.share(1));
        let _context = worker.runtime.enter();
        let (tunnel, work) = channels::called(channels::Called {
            link,
            peer: self.peer.clone(),
            remote: self.remote,
            migration,
            limit: shared.options.limit,
            idle: shared.options.channel_idle,
        });
        worker.tasks.spawn_on(work, &worker.runtime);
        Ok(tunnel)
    }

    /// Whether the peer has hung up meanwhile, as far as is known.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.waiting.as_ref().is_none_or(|waiting| match &waiting.link {
            Link::Quic(link) => link.connection.close_reason().is_some(),
            Link::Tcp(_) => false,
        })
    }

    /// Refuses it; the peer is told why.
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
