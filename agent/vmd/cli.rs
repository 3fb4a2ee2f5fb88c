//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, FileConfig};
use crate::keeper::Keeper;
use crate::{launch, server};

const EXAMPLES: &str = "\
Examples:
  # As the unit novaferry-vmd.service does
  novaferry-vmd serve --config /etc/novaferry/vmd.toml

  # Without a file; VMs may use disks below both folders
  novaferry-vmd serve --agent-user novaferry --agent-group novaferry \\
      --disk-folder /var/lib/novacron/vms --disk-folder /srv/novaferry

Without root, VMs run as the user that started vmd, who must be the agent's, and cannot use bridges.
Exit codes: 0 ended, 1 failed, 64 wrong usage.";

/// Starts virtual machines for the novaferry agent, each as a user of its own, and keeps the fences of this host.
#[derive(Debug, Parser)]
#[command(name = "novaferry-vmd", version, after_long_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer requests on a Unix socket
    #[command(after_long_help = EXAMPLES)]
    Serve(Serve),
    /// Start one process apart from this one; used by `serve` itself
    #[command(hide = true)]
    Launch(Launch),
}

#[derive(Debug, Args)]
struct Serve {
    /// Configuration file; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: FileConfig,
}

/// See [`launch`].
#[derive(Debug, Args)]
pub(crate) struct Launch {
    /// Where the process's stderr is appended
    #[arg(long)]
    pub(crate) log: PathBuf,
    /// The process's folder
    #[arg(long)]
    pub(crate) folder: PathBuf,
    /// What is run
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// Runs what was asked for.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { 64 } else { 0 };
            // A closed terminal is no reason to say something else.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let done = match cli.command {
        Command::Launch(arguments) => launch::detach(&arguments).map_err(|error| (1, error.to_string())),
        Command::Serve(arguments) => serve(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            eprintln!("novaferry-vmd: {message}");
            ExitCode::from(code)
        }
    }
}

fn serve(arguments: Serve) -> Result<(), (u8, String)> {
    let file = arguments.config.as_deref().map(FileConfig::read).transpose().map_err(|error| (64, error))?;
    let config = Config::new(arguments.flags.over(file.unwrap_or_default())).map_err(|error| (64, error))?;
    let subscriber = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).finish();
    tracing::subscriber::set_global_default(subscriber).map_err(|error| (1, error.to_string()))?;
    if !config.is_root() {
        tracing::warn!("not root: VMs run as this user, without users of their own and without bridges");
    }
    let keeper = Keeper::open(config).map_err(|refusal| (1, refusal.message))?;
    server::serve(keeper).map_err(|error| (1, format!("cannot serve: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_helpful() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("novaferry-vmd serve --config /etc/novaferry/vmd.toml"), "{help}");
        assert!(!help.contains("launch"), "{help}");
    }
}
