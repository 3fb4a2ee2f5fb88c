//! What a caller chooses.

use std::net::IpAddr;
use std::time::Duration;

use crate::error::TunnelError;
use crate::identity::PeerName;

/// Most connections of one session. More than a few help nobody: each costs a thread and a share of the windows.
pub const MAX_CONNECTIONS: u8 = 8;

/// How bytes travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Transport {
    /// QUIC over UDP.
    Quic,
    /// TLS over TCP.
    Tcp,
    /// Within one process: nothing travels.
    Memory,
}

/// Which transport to dial with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TransportChoice {
    /// QUIC only.
    Quic,
    /// TCP only.
    Tcp,
    /// QUIC; TCP when nothing answers on UDP.
    #[default]
    Auto,
}

/// What kind of network lies between the hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Profile {
    /// Hardly any loss, perhaps jumbo frames: CUBIC.
    #[default]
    Lan,
    /// Loss that is not congestion, long round trips: BBR, because one lost packet in 10,000 at 50 ms takes CUBIC
    /// down to a tenth of the link. Quinn calls its BBR experimental; its window is capped by [`Windows::send`].
    Wan,
}

/// Flow-control windows in bytes, for all connections of a session together. A session moves data one way, and at
/// the default an agent commits 96 MiB in the worst case, both directions counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Windows {
    /// What the peer may send before it was read here.
    pub receive: u64,
    /// What may be sent without having been acknowledged by the peer's transport.
    pub send: u64,
}

/// Smallest and largest window that is accepted.
const WINDOW_RANGE: std::ops::RangeInclusive<u64> = (16 << 20)..=(256 << 20);

impl Default for Windows {
    fn default() -> Self {
        Self { receive: 48 << 20, send: 48 << 20 }
    }
}

impl Windows {
    /// Brought into the range of 16 to 256 MiB and divided by the number of connections.
    pub(crate) fn share(self, connections: u8) -> Self {
        let share = |window: u64| {
            window.clamp(*WINDOW_RANGE.start(), *WINDOW_RANGE.end()) / u64::from(connections.max(1))
        };
        Self { receive: share(self.receive), send: share(self.send) }
    }
}

/// After how long a migration's peer that is not heard is given up, unless an option says otherwise: a guest that waits
/// for its cut-over must not hang on a dead link as long as a copy may.
pub const CHANNEL_IDLE: Duration = Duration::from_secs(10);
/// Shortest and longest silence that can be chosen. Below two seconds a busy host would be taken for a dead one.
const CHANNEL_IDLE_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(2)..=Duration::from_secs(60);

fn check_idle(idle: Duration) -> Result<(), TunnelError> {
    if CHANNEL_IDLE_RANGE.contains(&idle) {
        return Ok(());
    }
    let what = format!("a migration's peer given up after {idle:?}: choose 2 to 60 seconds");
    Err(TunnelError::config(what))
}

/// How to dial.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// Name or address of the host.
    pub host: String,
    /// Its port, for UDP and TCP alike.
    pub port: u16,
    /// Refuse any other peer, though it may have a good certificate. Without it, any host of our CA is accepted.
    pub expect_peer: Option<PeerName>,
    /// Which transport.
    pub transport: TransportChoice,
    /// Which network.
    pub profile: Profile,
    /// Connections that carry data: 1 to [`MAX_CONNECTIONS`].
    pub connections: u8,
    /// Local addresses that the connections are bound to, in turn. Empty: the system chooses.
    pub via: Vec<IpAddr>,
    /// Payload bytes a second, both directions together. None: as fast as it goes.
    pub limit: Option<u64>,
    /// Flow-control windows.
    pub windows: Windows,
    /// Migrations only: after how long without a sign of life the tunnel is lost. 2 to 60 s. Over QUIC the shorter of
    /// both sides' counts.
    pub channel_idle: Duration,
}

impl DialOptions {
    /// QUIC or TCP to `host`, one connection, `lan`, no limit.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
            expect_peer: None,
            transport: TransportChoice::default(),
            profile: Profile::default(),
            connections: 1,
            via: Vec::new(),
            limit: None,
            windows: Windows::default(),
            channel_idle: CHANNEL_IDLE,
        }
    }

    pub(crate) fn check(&self) -> Result<(), TunnelError> {
        if self.connections == 0 || self.connections > MAX_CONNECTIONS {
            let what = format!("{} connections: choose 1 to {MAX_CONNECTIONS}", self.connections);
            return Err(TunnelError::config(what));
        }
        if self.limit == Some(0) {
            return Err(TunnelError::config("a limit of 0 bytes a second: leave it out or choose more"));
        }
        if self.host.is_empty() || self.port == 0 {
            return Err(TunnelError::config("the address has no host or no port"));
        }
        check_idle(self.channel_idle)
    }
}

/// How to listen.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Which network; what the dialler chose governs what the dialler sends.
    pub profile: Profile,
    /// Flow-control windows of each session.
    pub windows: Windows,
    /// Threads, each with a UDP and a TCP socket of its own on the port. 1 to 64.
    pub workers: u8,
    /// Payload bytes a second of each session, both directions together.
    pub limit: Option<u64>,
    /// As [`DialOptions::channel_idle`]; over QUIC the dialler's is what counts.
    pub channel_idle: Duration,
}

/// Most threads of a listener.
const MAX_WORKERS: u8 = 64;

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            profile: Profile::default(),
            windows: Windows::default(),
            workers: 1,
            limit: None,
            channel_idle: CHANNEL_IDLE,
        }
    }
}

impl ListenOptions {
    pub(crate) fn check(&self) -> Result<(), TunnelError> {
        if self.workers == 0 || self.workers > MAX_WORKERS {
            return Err(TunnelError::config(format!("{} workers: choose 1 to {MAX_WORKERS}", self.workers)));
        }
        if self.limit == Some(0) {
            return Err(TunnelError::config("a limit of 0 bytes a second: leave it out or choose more"));
        }
        check_idle(self.channel_idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_windows_stay_within_96_mib_a_session() {
        for connections in 1..=MAX_CONNECTIONS {
            let share = Windows::default().share(connections);
            assert!((share.receive + share.send) * u64::from(connections) <= 96 << 20);
            assert!(share.receive >= 6 << 20);
        }
        assert_eq!(
            Windows { receive: 0, send: u64::MAX }.share(1),
            Windows { receive: 16 << 20, send: 256 << 20 }
        );
    }
}
