//! This host's coordinator: joining it ([`join`]), and the line to it ([`Line`]).
//!
//! The daemon dials out and stays connected. What the coordinator wants comes as a whole, with a generation; what this
//! host sees goes back. Everything that runs here goes on when the coordinator is away.

mod calls;
mod join;
mod line;
mod look;
mod probe;
mod qemu;
mod wishes;

pub use join::{Joined, Settings as JoinSettings, run as join};
pub use line::Line;
