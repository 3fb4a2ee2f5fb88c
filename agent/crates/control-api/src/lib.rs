//! The line between an agent and its coordinator: the messages ([`v1`], made from `proto/control.proto`), the tokens by
//! which hosts join ([`JoinToken`]), and how an agent dials ([`dial`]).
//!
//! Agents dial, so they may stand behind NAT. The coordinator's certificate carries the name [`SERVER_NAME`] whatever
//! address it is reached at, so an address may change without new certificates.

mod dial;
mod token;

pub use dial::{Client, DialError, dial, mutual, pinned};
pub use token::{InvalidJoinToken, JoinToken, fingerprint};

/// The messages and the service.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    clippy::use_self,
    clippy::or_fun_call,
    reason = "made by a program; the documentation stands in the .proto file"
)]
pub mod v1 {
    tonic::include_proto!("novaferry.control.v1");
}

/// Newest version of the messages' meaning.
pub const PROTOCOL: u32 = 1;
/// Oldest that is still spoken.
pub const PROTOCOL_LEAST: u32 = 1;
/// Port at which a coordinator listens for agents.
pub const PORT: u16 = 7444;
/// The DNS name in every coordinator's certificate.
pub const SERVER_NAME: &str = "coordinator.novaferry.internal";
/// Longest message, either way, bytes: a host with 16,384 VMs.
pub const MAX_MESSAGE: usize = 16 << 20;
