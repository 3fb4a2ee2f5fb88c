//! The connection between the two hosts as a byte path sees it: it may be lost, and come back as another one.
//!
//! Each connection is an *epoch*: the caches of both ends begin empty with it, and what the other end has not
//! acknowledged is sent again. A byte path asks for its channel with [`Channels::next`], and asks again when that one
//! broke; when the connection will not come back, it is told so and fails.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tunnel::{Channel, ChannelReader, ChannelTunnel, ChannelWriter, CloseCode};
use wire::{ChannelHello, FailCode};

/// Channels of one number that wait for their byte path: the next replaces one that broke.
const ARRIVALS: usize = 4;

/// How long a broken channel's reason may take to come, before the whole connection is ended for it.
const GRACE: Duration = Duration::from_secs(3);

/// Where a byte path gets its channel from, and another one after that broke.
pub trait Channels: Send {
    /// The direction that comes.
    type Read: AsyncRead + Send + Unpin;
    /// The direction that goes.
    type Write: AsyncWrite + Send + Unpin + 'static;

    /// The next channel, and the number of its epoch, which rises. `broken` says how the last one ended. `None` when
    /// there will be no other.
    fn next(
        &mut self,
        broken: Option<&io::Error>,
    ) -> impl Future<Output = Option<(u64, Self::Read, Self::Write)>> + Send;
}

/// Why a channel's use ended before its end.
#[derive(Debug)]
pub enum Broken {
    /// The channel broke: another one goes on where it stopped.
    Channel(io::Error),
    /// QEMU hung up, or the peer broke the protocol: there is nothing to go on with.
    Path(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Path(error)
    }
}

/// What a byte path fails with when there will be no other channel.
#[must_use]
pub fn given_up(broken: Option<io::Error>) -> io::Error {
    broken.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection is gone"))
}

#[derive(Debug)]
struct State {
    /// Number of the connection, from 1.
    epoch: u64,
    tunnel: Option<ChannelTunnel>,
    /// When it is lost, another one is waited for.
    returns: bool,
}

/// The connection at the source, which opens the channels.
#[derive(Clone, Debug)]
pub(super) struct Contact(watch::Sender<State>);

impl Default for Contact {
    fn default() -> Self {
        Self(watch::Sender::new(State { epoch: 0, tunnel: None, returns: true }))
    }
}

impl Contact {
    /// There is a connection, and the destination is ready for its channels.
    pub(super) fn up(&self, tunnel: ChannelTunnel) {
        self.0.send_modify(|state| {
            state.epoch += 1;
            state.tunnel = Some(tunnel);
        });
    }

    /// The connection is lost.
    pub(super) fn down(&self) {
        self.0.send_modify(|state| state.tunnel = None);
    }

    /// From now on a connection that is lost is not waited for: a byte path whose channel breaks fails.
    pub(super) fn no_return(&self) {
        self.0.send_modify(|state| state.returns = false);
    }

    /// The channels of this hello, one after the other. Over QUIC those of a lower priority are sent after others.
    pub(super) fn channels(&self, hello: ChannelHello, priority: i32) -> Opened {
        Opened { contact: self.0.subscribe(), hello, priority, epoch: 0 }
    }
}

/// Channels that the source opens.
#[derive(Debug)]
pub(super) struct Opened {
    contact: watch::Receiver<State>,
    hello: ChannelHello,
    priority: i32,
    /// Of the last channel.
    epoch: u64,
}

impl Opened {
    /// Ends the connection of the last channel, if it is still there: all of them begin again together.
    fn end_epoch(&self, why: &str) {
        let state = self.contact.borrow();
        if let Some(tunnel) = state.tunnel.as_ref().filter(|_| state.epoch == self.epoch && state.returns) {
            tracing::debug!(channel = self.hello.channel, why, "a channel broke");
            tunnel.close(CloseCode::Failed(FailCode::Internal), "a channel broke");
        }
    }
}

impl Channels for Opened {
    type Read = ChannelReader;
    type Write = ChannelWriter;

    async fn next(&mut self, broken: Option<&io::Error>) -> Option<(u64, ChannelReader, ChannelWriter)> {
        if let Some(error) = broken {
            let epoch = self.epoch;
            let told = |state: &State| state.epoch > epoch || state.tunnel.is_none() || !state.returns;
            // Mostly the connection is lost, too, or the destination has a reason, and says so in a moment.
            if timeout(GRACE, self.contact.wait_for(told)).await.is_err() {
                self.end_epoch(&error.to_string());
            }
        }
        loop {
            let last = self.epoch;
            let fresh = |state: &State| state.epoch > last && state.tunnel.is_some();
            // Fails when the owner is gone.
            drop(self.contact.wait_for(|state| fresh(state) || !state.returns).await.ok()?);
            let tunnel = {
                let state = self.contact.borrow();
                let tunnel = state.tunnel.clone().filter(|_| state.epoch > last);
                self.epoch = state.epoch;
                tunnel
            };
            let Some(tunnel) = tunnel else {
                // It was lost again meanwhile, or none comes.
                if self.contact.borrow().returns {
                    continue;
                }
                return None;
            };
            match tunnel.open_channel(self.hello).await {
                Ok(Channel { read, write }) => {
                    write.set_priority(self.priority);
                    return Some((self.epoch, read, write));
                }
                Err(error) => self.end_epoch(&error.chain()),
            }
        }
    }
}

/// Channels that come to the destination.
#[derive(Debug)]
pub(super) struct Arrivals {
    first: Option<(u64, Channel)>,
    rest: mpsc::Receiver<(u64, Channel)>,
}

/// What gives them to their byte path. Without it there will be no other.
pub(super) type Arrived = mpsc::Sender<(u64, Channel)>;

/// The channels of one number, of which the first is there.
pub(super) fn arrivals(first: (u64, Channel)) -> (Arrived, Arrivals) {
    let (arrived, rest) = mpsc::channel(ARRIVALS);
    (arrived, Arrivals { first: Some(first), rest })
}

impl Channels for Arrivals {
    type Read = ChannelReader;
    type Write = ChannelWriter;

    async fn next(&mut self, _broken: Option<&io::Error>) -> Option<(u64, ChannelReader, ChannelWriter)> {
        let next = match self.first.take() {
            Some(first) => first,
            None => self.rest.recv().await?,
        };
        let (epoch, Channel { read, write }) = next;
        Some((epoch, read, write))
    }
}

/// One channel and no other.
#[derive(Debug)]
pub(super) struct Single(pub(super) Option<Channel>);

impl Channels for Single {
    type Read = ChannelReader;
    type Write = ChannelWriter;

    async fn next(&mut self, _broken: Option<&io::Error>) -> Option<(u64, ChannelReader, ChannelWriter)> {
        let Channel { read, write } = self.0.take()?;
        Some((1, read, write))
    }
}
