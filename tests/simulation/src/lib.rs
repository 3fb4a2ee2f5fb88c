//! What is left after a power cut at any moment of a copy.
//!
//! A real [`session::Sender`] and [`session::Receiver`] copy a small volume to one simulated disk, with the engine's
//! journal on a second one; one seed decides the order of everything. Then the power fails at every write and flush:
//! each unflushed write is absent, complete or torn, in any order, on both disks. From each such state the journal is
//! replayed, what it claims is compared with the disk, and a new attempt completes the copy.
//!
//! The driver in [`attempt`] follows the order of `engine::receive`: flush the data, append to the journal, flush the
//! journal, acknowledge. [`attempt::CommitStep`] makes that order an argument, so that tests prove that the harness
//! finds every wrong one.

pub mod attempt;
pub mod content;
pub mod crash;
mod sender;

use std::task::{Context, Poll, Waker};

/// Runs a future of a simulated disk, which never waits, unless a stall holds it: then `stalled` must let it go.
///
/// # Panics
/// When the future still waits after that.
pub fn run<T>(future: impl Future<Output = T>, stalled: impl FnOnce()) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
        return output;
    }
    stalled();
    match future.as_mut().poll(&mut context) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a simulated disk waits for something that was not released"),
    }
}
