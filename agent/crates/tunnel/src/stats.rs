//! What a tunnel did so far.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::options::Transport;

/// One connection. Zero where the transport does not tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LaneStats {
    /// Its number; 0 carries the control frames.
    pub lane: u8,
    /// Whether it is in use.
    pub up: bool,
    /// Bytes sent: UDP payload, or TLS records.
    pub wire_sent: u64,
    /// Bytes received.
    pub wire_received: u64,
    /// Round trip: smoothed for QUIC; the last ping's for TCP.
    pub rtt: Option<Duration>,
    /// QUIC's congestion window in bytes.
    pub congestion_window: u64,
    /// Packets that QUIC declared lost.
    pub lost_packets: u64,
    /// QUIC's current UDP payload size in bytes.
    pub mtu: u16,
}

/// All connections of a tunnel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelStats {
    /// How it travels.
    pub transport: Transport,
    /// Payload bytes of extents given to the transport.
    pub payload_sent: u64,
    /// Payload bytes of extents received whole.
    pub payload_received: u64,
    /// Sum over the lanes.
    pub wire_sent: u64,
    /// Sum over the lanes.
    pub wire_received: u64,
    /// Sum over the lanes.
    pub lost_packets: u64,
    /// The shortest of the lanes that are up.
    pub rtt: Option<Duration>,
    /// Sum over the lanes that are up, in bytes.
    pub congestion_window: u64,
    /// Each lane, also those that ended.
    pub lanes: Vec<LaneStats>,
}

/// What a TCP connection counts by itself.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    /// Last round trip in microseconds, 0 when there was none.
    pub(crate) rtt_micros: AtomicU64,
}

/// Where a lane's statistics come from.
#[derive(Debug)]
pub(crate) enum Meter {
    Quic(quinn::Connection),
    Counted(Arc<Counters>),
    Down(LaneStats),
}

impl Meter {
    pub(crate) fn is_up(&self) -> bool {
        !matches!(self, Self::Down(_))
    }

    pub(crate) fn read(&self, lane: u8) -> LaneStats {
        match self {
            Self::Quic(connection) => {
                let stats = connection.stats();
                LaneStats {
                    lane,
                    up: true,
                    wire_sent: stats.udp_tx.bytes,
                    wire_received: stats.udp_rx.bytes,
                    rtt: Some(stats.path.rtt),
                    congestion_window: stats.path.cwnd,
                    lost_packets: stats.path.lost_packets,
                    mtu: stats.path.current_mtu,
                }
            }
            Self::Counted(counters) => {
                let micros = counters.rtt_micros.load(Ordering::Relaxed);
                LaneStats {
                    lane,
                    up: true,
                    wire_sent: counters.sent.load(Ordering::Relaxed),
                    wire_received: counters.received.load(Ordering::Relaxed),
                    rtt: (micros > 0).then(|| Duration::from_micros(micros)),
                    ..LaneStats::default()
                }
            }
            Self::Down(stats) => *stats,
        }
    }
}
