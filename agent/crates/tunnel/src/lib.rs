//! Layer 2: the connections of one session between two agents, or of one migration ([`dial_channels`]).
//!
//! A *tunnel* carries control frames ([`wire::Control`]) both ways on one bidirectional stream, and extent frames on
//! many unidirectional ones. It travels over QUIC on one or several connections ("lanes"), each with its own socket
//! and thread; over TLS on TCP where UDP is blocked, control and data on connections of their own; or within one
//! process ([`memory_pair`]). What the ends look like and how they behave is the same.
//!
//! ```text
//!  DataSender ─► queue ─► lane 0 ═ QUIC ═ lane 0 ─► queue ─► DataReceiver      TunnelHandle ─► control ─► Inbox
//!                      └► lane 1 ═ QUIC ═ lane 1 ─┘                                 Inbox ◄─ control ◄─ TunnelHandle
//! ```
//!
//! - **Identity**: TLS 1.3 with certificates of one CA on both sides, revocation lists enforced (an expired list
//!   refuses everybody), Ed25519 only; the peer is the one host name in its certificate.
//! - **Bounds**: every queue has a length; payload is received into the caller's buffers, and a frame gets the right
//!   to all of its buffers at once or waits; windows and streams are shared so that waiting frames cannot starve
//!   those that have buffers. A peer that is not known may send 256 KiB.
//! - **Endings**: the loss of a further lane is an event ([`Event::LaneDown`], after the [`Event::LaneTook`] of all
//!   that it carried). The end of lane 0, a broken protocol on any lane, and [`TunnelHandle::close`] end the tunnel:
//!   [`Event::Closed`]. Frames that were sent before a close arrive.
//! - **What it does not do**: it knows no volume and no session, acknowledges nothing and sends nothing again.

mod channels;
mod connection_id;
mod core;
mod credentials;
mod dial;
mod ending;
mod error;
mod frames;
mod greeting;
mod identity;
mod limit;
mod listen;
mod memory;
mod options;
mod profile;
mod quic_lane;
mod registry;
mod reset;
mod socket;
mod stats;
mod tcp_lane;
mod translate;
mod tunnel;
mod verify;

pub use channels::{
    Channel, ChannelReader, ChannelTunnel, ChannelWriter, Watcher, call_source, dial_channels,
};
pub use connection_id::{CONNECTION_ID_LEN, WORKER_BYTE};
pub use credentials::Credentials;
pub use dial::dial;
pub use error::{CloseCode, Closed, Refusal, TunnelError, TunnelErrorKind};
pub use identity::{HOST_URI_PREFIX, InvalidPeerName, PeerName};
pub use listen::{Incoming, Listener, Request};
pub use memory::memory_pair;
pub use options::{
    CHANNEL_IDLE, DialOptions, ListenOptions, MAX_CONNECTIONS, Profile, Transport, TransportChoice, Windows,
};
pub use profile::MAX_CHANNELS;
pub use stats::{LaneStats, TunnelStats};
pub use tunnel::{
    DataReceiver, DataSender, Event, Inbox, OutgoingExtent, ReceivedExtent, Tunnel, TunnelHandle,
};

pub use crate::core::{Permit, ReceiveBuffers};
