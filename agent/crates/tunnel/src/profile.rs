//! The quinn configuration of each profile. Where the numbers come from is said at each constant.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::{EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::connection_id::WorkerConnectionIds;
use crate::credentials::Credentials;
use crate::error::TunnelError;
use crate::options::{Profile, Windows};

/// Window of one stream. Quinn closes a connection with more than 1,024 gaps in a stream ("too many gaps in stream
/// buffer"); a gap is a packet at least, so 1,024 packets of the smallest MTU are safe at any loss.
const STREAM_WINDOW: u64 = 1 << 20;
const MAX_GAPS: u64 = 1024;
/// Most streams that a peer may have open in a connection; the windows allow fewer by default.
const MAX_STREAMS: u64 = 256;
const MIN_STREAMS: u64 = 4;
/// What an unknown peer may send before it is routed: the prelude and one control frame fit.
const GREETING_WINDOW: u32 = 256 << 10;
/// The control stream, and nothing else.
const BIDIRECTIONAL_STREAMS: u32 = 1;
/// Channels that a migration may have open at once: the main one, at most 16 of memory, and one a disk.
pub const MAX_CHANNELS: u8 = 64;
/// Streams that a migration's peer may have open: the control stream, the channels, and a reserve, because quinn tells
/// the peer of streams that ended only when they are more than an eighth of all.
const CHANNEL_STREAMS: u32 = BIDIRECTIONAL_STREAMS + MAX_CHANNELS as u32 + 16;
/// Window of a migration's connection: every stream filled to its window. Reached only by a peer that has them all
/// open while nobody reads one.
const CHANNEL_WINDOW: u64 = CHANNEL_STREAMS as u64 * STREAM_WINDOW;
/// Signs of life in the time after which there is an end: three may be lost.
const SIGNS_OF_LIFE: u32 = 4;

const KEEP_ALIVE: Duration = Duration::from_secs(5);
const MAX_IDLE: Duration = Duration::from_secs(30);
/// At 1.6 Gbit/s one millisecond of reordering is 130 packets; quinn's 3 would take them for lost.
const WAN_PACKET_THRESHOLD: u32 = 128;

impl Profile {
    /// UDP payload of the first packets. 1,200 passes everywhere (RFC 9000, 14); a LAN has Ethernet's.
    pub(crate) fn initial_mtu(self) -> u16 {
        match self {
            Self::Wan => 1200,
            Self::Lan => 1452,
        }
    }

    /// Largest UDP payload that is probed for: Ethernet's 1,500 or jumbo's 9,000 without IPv6 and UDP headers.
    pub(crate) fn max_mtu(self) -> u16 {
        match self {
            Self::Wan => 1452,
            Self::Lan => 8952,
        }
    }
}

/// Streams that may be open at once: all of them filled to their window fit in the connection's, so that streams
/// that wait for a buffer can never starve those that have one.
pub(crate) fn streams(receive_window: u64) -> VarInt {
    let streams = (receive_window / STREAM_WINDOW).clamp(MIN_STREAMS, MAX_STREAMS);
    VarInt::from_u32(u32::try_from(streams).expect("clamped to 256"))
}

pub(crate) fn window(bytes: u64) -> VarInt {
    VarInt::from_u64(bytes).unwrap_or(VarInt::MAX)
}

/// Whose connection is configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// We dial: the windows are open from the start.
    Dial,
    /// Anybody may call: the windows are opened when the session is accepted.
    Listen,
    /// We dial for a migration: the peer opens no stream, and a dead link is noticed after this time.
    Channels(Duration),
}

/// How often a migration's connection says that it lives.
pub(crate) fn keep_alive(idle: Duration) -> Duration {
    KEEP_ALIVE.min(idle / SIGNS_OF_LIFE)
}

pub(crate) fn transport(profile: Profile, windows: Windows, side: Side) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let stream_window = STREAM_WINDOW.min(MAX_GAPS * u64::from(profile.initial_mtu()));
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(profile.max_mtu());
    config
        .stream_receive_window(window(stream_window))
        .send_window(windows.send)
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDIRECTIONAL_STREAMS))
        .datagram_receive_buffer_size(None)
        // Strict order: an extent is complete, and its buffers move on, before the next one starts.
        .send_fairness(false)
        .initial_mtu(profile.initial_mtu())
        .mtu_discovery_config(Some(discovery))
        .enable_segmentation_offload(true)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(MAX_IDLE.try_into().expect("30 s fit a QUIC timeout")));
    match side {
        Side::Dial => config
            .receive_window(window(windows.receive))
            .max_concurrent_uni_streams(streams(windows.receive)),
        Side::Listen => config
            .receive_window(VarInt::from_u32(GREETING_WINDOW))
            .max_concurrent_uni_streams(VarInt::from_u32(0)),
        Side::Channels(idle) => config
            .receive_window(window(windows.receive.max(CHANNEL_WINDOW)))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            // Channels are alike: one that always has something to say must not silence the others. A listener does
            // not know yet what its caller wants, and keeps the order that is best for copies; migrations send little
            // that way.
            .send_fairness(true)
            .keep_alive_interval(Some(keep_alive(idle)))
            .max_idle_timeout(Some(idle.try_into().expect("options hold it below 60 s"))),
    };
    match profile {
        Profile::Lan => config.congestion_controller_factory(Arc::new(CubicConfig::default())),
        Profile::Wan => config
            .congestion_controller_factory(Arc::new(BbrConfig::default()))
            .packet_threshold(WAN_PACKET_THRESHOLD),
    };
    Arc::new(config)
}

/// Opens the windows of a connection whose session was accepted.
pub(crate) fn open_windows(connection: &quinn::Connection, windows: Windows) {
    connection.set_send_window(windows.send);
    connection.set_receive_window(window(windows.receive));
    connection.set_max_concurrent_uni_streams(streams(windows.receive));
}

/// Opens the windows of a connection whose migration was accepted, and lets the peer open channels.
pub(crate) fn open_channels(connection: &quinn::Connection, windows: Windows) {
    connection.set_send_window(windows.send);
    connection.set_receive_window(window(windows.receive.max(CHANNEL_WINDOW)));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(CHANNEL_STREAMS));
}

/// Opens the windows of a connection that a destination dialled, on which we open the channels and the peer none.
pub(crate) fn open_call(connection: &quinn::Connection, windows: Windows) {
    connection.set_send_window(windows.send);
    connection.set_receive_window(window(windows.receive.max(CHANNEL_WINDOW)));
}

pub(crate) fn endpoint(
    profile: Profile,
    worker: u8,
    credentials: &Credentials,
) -> Result<EndpointConfig, TunnelError> {
    let mut config = EndpointConfig::new(credentials.reset_key());
    config
        .max_udp_payload_size(profile.max_mtu())
        .map_err(|error| TunnelError::config("configure the largest UDP payload").caused_by(error))?
        .cid_generator(move || Box::new(WorkerConnectionIds::new(worker)));
    Ok(config)
}
