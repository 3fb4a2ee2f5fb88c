//! The driver of transfers: it joins volumes, reduction, sessions and tunnels.

pub mod clock;
pub mod cpu;
pub mod ends;
pub mod error;
pub mod folder;
mod grain;
pub mod journal;
pub mod keyed;
pub mod keys;
pub mod leaves;
pub mod migrate;
pub mod pool;
pub mod process;
pub mod progress;
pub mod receive;
pub mod send;
pub mod target;
pub mod transfer;

pub use error::EngineError;
// What this crate issues and hands out.
pub use receipt;
