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
    /// Packets that QUIC sent.
    pub sent_packets: u64,
    /// Packets of these that it declared lost.
    pub lost_packets: u64,
    /// QUIC's current UDP payload size in bytes.
    pub mtu: u16,
}

/// All connections of a tunnel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelStats {
    /// How it travels.
    pub transport: Transport,
    /// Payload bytes given to the transport: of extents, or of the channels of a migration.
    pub payload_sent: u64,
    /// Payload bytes taken from the transport: of extents that arrived whole, or of channels.
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
    /// Each lane, also those that ended. Of a migration over TCP, 0 is the control connection and 1 the sum of the
    /// channels' connections.
    pub lanes: Vec<LaneStats>,
}

impl TunnelStats {
    /// The sums over `lanes`. `payload` is what was sent and what was received.
    pub(crate) fn of(transport: Transport, payload: [u64; 2], lanes: Vec<LaneStats>) -> Self {
        let [payload_sent, payload_received] = payload;
        Self {
            transport,
            payload_sent,
            payload_received,
            wire_sent: lanes.iter().map(|lane| lane.wire_sent).sum(),
            wire_received: lanes.iter().map(|lane| lane.wire_received).sum(),
            lost_packets: lanes.iter().map(|lane| lane.lost_packets).sum(),
            rtt: lanes.iter().filter(|lane| lane.up).filter_map(|lane| lane.rtt).min(),
            congestion_window: lanes.iter().filter(|lane| lane.up).map(|lane| lane.congestion_window).sum(),
            lanes,
        }
    }
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
                    sent_packets: stats.path.sent_packets,
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
