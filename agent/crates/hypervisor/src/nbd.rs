//! An NBD client: fixed newstyle handshake, structured replies, block status, pipelining.
//!
//! ```text
//! NbdVolume ── splits, aligns, falls back ──► Client ──► Connection ══ writer task ══► server
//! (Source, Sink)                              (1..N)      ▲  └ pending, by cookie
//!                                                         └════ reader task ◄═══════════╛
//! ```
//!
//! [`wire`] is the pure codec; nothing a server says is allocated for before a named cap was checked. There is no
//! reconnect: a lost connection fails every outstanding request, because a new connection could hide unflushed
//! writes that the old server lost. TLS is not spoken: use a unix socket, or a tunnel.
//!
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

pub mod client;
mod connection;
mod coverage;
mod negotiate;
mod socket;
pub mod uri;
pub mod volume;
pub mod wire;

pub use self::client::{Address, Client, Extent};
pub use self::uri::Uri;
pub use self::volume::{Access, NbdVolume};
