//! The agent as its users run it: real processes, real sockets, real signals. What one process does alone is tested
//! beside its code; here is what only shows between processes: exit codes, crashes, restarts, devices, networks.
//!
//! `NOVAFERRY_ROUNDS=n` kills n times instead of 30; `NOVAFERRY_SEED=n` begins with that seed.
#![expect(clippy::print_stdout, reason = "seeds, figures and skips are for the reader of the test's output")]

mod commands;
mod devices;
mod faults;
mod fleet;
mod guests;
mod harness;
mod identities;
mod kill;
mod network;
mod resources;
mod signals;
