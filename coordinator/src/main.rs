//! `novaferry`: the coordinator's service and its command line.

mod cli;
mod client;
mod config;
mod failure;
mod follow;
mod output;
mod serve;
mod traces;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
