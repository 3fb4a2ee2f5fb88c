//! What the coordinator knows and decides upon, as values: no I/O, no clock, no randomness.

pub mod access;
pub mod audit;
pub mod host;
pub mod link;
pub mod migration;
pub mod name;
pub mod plan;
pub mod route;
pub mod webhook;

pub use jiff::Timestamp;
pub use name::Name;
