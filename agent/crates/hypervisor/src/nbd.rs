//! NBD: a client with block status and pipelining, and a [`server`] that QEMU's mirror writes to. Both speak the fixed
//! newstyle handshake and structured replies.
//!
//! ```text
//! NbdVolume ── splits, aligns, falls back ──► Client ──► Connection ══ writer task ══► server
//! (Source, Sink)                              (1..N)      ▲  └ pending, by cookie
//!                                                         └════ reader task ◄═══════════╛
//! ```
//!
//! [`wire`] is the pure codec; nothing the other side says is allocated for before a named cap was checked. There is no
//! reconnect: a lost connection fails every outstanding request, because a new connection could hide unflushed
//! writes that the old server lost. TLS is not spoken: use a unix socket, or a tunnel.
//!
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

pub mod client;
mod connection;
mod coverage;
pub mod dirty;
mod negotiate;
pub mod server;
mod socket;
pub mod uri;
pub mod volume;
pub mod wire;

pub use self::client::{Address, Client, DirtyExtent, Extent};
pub use self::dirty::DirtyMap;
pub use self::uri::Uri;
pub use self::volume::{Access, NbdVolume};
