//! `novaferry`: the coordinator's service and its command line.

mod cli;
mod client;
mod failure;
mod follow;
mod output;
mod serve;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
