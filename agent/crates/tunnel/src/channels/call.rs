//! A destination that its source cannot dial: it dials, and waits for the source to begin.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use volume::SessionId;
#[cfg(doc)]
use wire::FailCode;
use wire::{Call, Control, Migrate};

use super::control::{self, Role};
use super::{ChannelTunnel, Growth, start};
use crate::credentials::Credentials;
use crate::dial::{self, Established, Purpose};
use crate::error::{TunnelError, TunnelErrorKind};
use crate::greeting::Link;
use crate::identity::PeerName;
use crate::options::{DialOptions, TransportChoice};
use crate::profile;
use crate::quic_lane::{QuicLink, close_number};

/// Connects to the host that a VM comes from, for destinations that it cannot dial, and waits until it takes the connection,
/// however long that is. From then on this is the accepting side, as if the source had dialled. Over QUIC, whatever the
/// options say: over TCP each channel would have to be dialled by the side that does not open it.
///
/// # Errors
/// See [`TunnelErrorKind`]. [`TunnelErrorKind::PeerClosed`] with [`FailCode::NotFound`] when nothing waits for it there.
pub async fn call_source(
    options: &DialOptions,
    credentials: &Credentials,
    migration: SessionId,
) -> Result<ChannelTunnel, TunnelError> {
    options.check()?;
    let options = DialOptions { transport: TransportChoice::Quic, ..options.clone() };
    let credentials = credentials.clone();
    let (report, reported) = oneshot::channel();
    dial::spawn("tunnel-call", move || async move {
        let mut report = report;
        let dialled = tokio::select! {
            dialled = dial::first(&options, &credentials, Purpose::Channels) => dialled,
            () = report.closed() => return, // the caller gave up
        };
        let Established { mut link, peer, remote, endpoint } = match dialled {
            Ok(established) => established,
            Err(error) => {
                drop(report.send(Err(error))); // fails when the caller gave up
                return;
            }
        };
        let taken = tokio::select! {
            taken = offer_call(&mut link, migration) => taken,
            () = report.closed() => Err(TunnelError::config("the call is not wanted any more")),
        };
        let (Link::Quic(quic), Ok(())) = (&link, &taken) else {
            let error = taken.err().unwrap_or_else(|| TunnelError::config("a call goes over QUIC only"));
            if let Link::Quic(link) = &link {
                link.connection.close(close_number(error.close_code()), error.chain().as_bytes());
            }
            drop(report.send(Err(error)));
            drop(link);
            dial::goodbye(endpoint).await;
            return;
        };
        profile::open_channels(&quic.connection, options.windows.share(1));
        let (core, ends) = start(&link, peer, remote, migration, options.limit, options.channel_idle);
        let token = core.workers.token();
        // A tunnel that nobody takes is dropped here, which ends it at once.
        drop(report.send(Ok(ChannelTunnel::new(&core, ends, Growth::Listen(Arc::default())))));
        control::run(core, link, Role::Acceptor).await;
        dial::goodbye(endpoint).await;
        drop(token);
    })?;
    reported.await.map_err(|error| {
        TunnelError::new(TunnelErrorKind::Lost, "the connection's thread ended").caused_by(error)
    })?
}

/// Says what the connection is for, and waits until it is taken.
async fn offer_call(link: &mut Link, migration: SessionId) -> Result<(), TunnelError> {
    link.write(&Control::Call(Call { migration }).encode()).await?;
    match link.answer().await? {
        Control::Migrate(migrate) if migrate.migration == migration => Ok(()),
        other => Err(TunnelError::unexpected_frame(other.tag())),
    }
}

/// What the listener knows of a destination that dialled, and whose migration takes its connection.
pub(crate) struct Called {
    pub(crate) link: QuicLink,
    pub(crate) peer: PeerName,
    pub(crate) remote: SocketAddr,
    pub(crate) migration: SessionId,
    pub(crate) limit: Option<u64>,
    pub(crate) idle: Duration,
}

/// The tunnel of a migration whose destination dialled, and what drives it. Must be called on the listener's runtime.
pub(crate) fn called(called: Called) -> (ChannelTunnel, impl Future<Output = ()> + Send + 'static) {
    let Called { link, peer, remote, migration, limit, idle } = called;
    let connection = link.connection.clone();
    let mut link = Link::Quic(link);
    let (core, ends) = start(&link, peer, remote, migration, limit, idle);
    let token = core.workers.token();
    let tunnel = ChannelTunnel::new(&core, ends, Growth::Quic(connection));
    let work = async move {
        match link.write(&Control::Migrate(Migrate { migration }).encode()).await {
            Ok(()) => control::run(core, link, Role::Dialler).await,
            Err(error) => {
                core.fail(error);
                core.finish();
            }
        }
        drop(token);
    };
    (tunnel, work)
}
