//! `novaferry-agent`: see [`novaferry_agent::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    novaferry_agent::cli::run()
}
