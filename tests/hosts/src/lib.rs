//! Simulated hosts, for tests that need a fleet and no VMs. None of them moves a byte: what they say to a coordinator is
//! what agents say, in the same order, over the same line.
//!
//! [`Host`] says what it is told to say, and waits for what a test wants to hear. [`Fleet`] is many hosts that behave by
//! themselves: they dial again when the coordinator is gone, and carry migrations out with the agents' own machines of
//! the cut-over ([`session::cutover`]), so that what they hold in the end is a truth to compare the coordinator with.
//! [`Coordinator`] is `novaferry serve` as a process that can be killed, and [`Api`] asks it.

mod api;
mod capability;
mod coordinator;
mod fleet;
mod host;
mod line;
mod random;

pub use api::{Answer, Api};
pub use capability::have;
pub use control_api::v1::{Intent, Progress, Vm};
pub use coordinator::Coordinator;
pub use fleet::{Fleet, Moved, Pace, Truth};
pub use host::Host;
pub use random::Random;

use std::time::Duration;

/// Far beyond what anything takes here.
const PATIENCE: Duration = Duration::from_secs(30);
/// Release that simulated agents claim to be.
const VERSION: &str = "0.1.0";
