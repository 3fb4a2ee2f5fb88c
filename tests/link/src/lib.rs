//! Link emulator: two network namespaces joined by a TUN pair.
//!
//! ```text
//!   namespace A                      this process                      namespace B
//!  ┌────────────┐   read   ┌───────────────────────────────┐  write  ┌────────────┐
//!  │ nf0        ├─────────►│ Channel A→B: queue, rate,     ├────────►│ nf0        │
//!  │ 10.83.0.1  │          │ loss, delay, jitter, …        │         │ 10.83.0.2  │
//!  │ fd83::1    │◄─────────┤ Channel B→A                   │◄────────┤ fd83::2    │
//!  └────────────┘   write  └───────────────────────────────┘  read   └────────────┘
//! ```
//!
//! Whole IP packets pass, so TCP, UDP and ICMP, IPv4 and IPv6 alike meet the same link. Nothing in the kernel beyond
//! TUN is needed (no netem). What happens to a packet is decided by [`Channel`], a pure state machine without I/O,
//! clock or global randomness: the same seed and the same packets give the same fates. [`Link`] drives two of them in
//! real time from one thread.
//!
//! Needs root (or `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`), `/dev/net/tun`, and the `ip` command.
//!
//! Not here: routing over several hops, and Ethernet (there are no MAC addresses on a TUN).

pub mod channel;
pub mod error;
mod forward;
mod link;
mod namespace;
mod packet;
mod random;
pub mod spec;
pub mod units;

pub use channel::{Channel, Counters};
pub use error::{Kind, LinkError};
pub use link::{DEVICE, DirectionStats, Link, LinkStats, Side};
pub use namespace::remove_stale;
pub use spec::{DirectionSpec, LinkSpec, Queue};
pub use units::{BitRate, Probability};
