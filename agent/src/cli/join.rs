//! `join`: this host becomes one of a coordinator's fleet.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;

use super::{OutputArg, interactive};
use crate::coordinator;
use crate::failure::Failure;
use crate::output::{self, Format};

#[derive(Debug, Args)]
#[command(after_help = "\
The token is good once, and for a while. Read it from stdin where others can see the arguments of processes.

Examples:
  novaferry-agent join coordinator.example nfj1_... --identity /var/lib/novaferry/identity
  novaferry-agent join coordinator.example:7444 - --name host-a < token")]
pub(super) struct JoinArgs {
    /// The coordinator: HOST or HOST:PORT; the default port is 7444.
    coordinator: String,
    /// The token that `novaferry host token` printed, or - for stdin.
    token: String,
    /// This host's name; by default what the system calls it.
    #[arg(long, value_name = "NAME")]
    name: Option<pki::PeerName>,
    /// Folder to make for this host's identity. The daemon renews it, so its user must be able to write beside it.
    #[arg(long, value_name = "DIR", default_value = JOINED_IDENTITY)]
    identity: PathBuf,
    /// What to print.
    #[arg(long, value_enum, default_value_t)]
    output: OutputArg,
}

/// Where `join` puts the identity: in the daemon's own state, because it is renewed.
const JOINED_IDENTITY: &str = "/var/lib/novaferry/identity";
/// Longest token on stdin, bytes.
const MAX_TOKEN: u64 = 1024;

impl JoinArgs {
    fn settings(self) -> Result<coordinator::JoinSettings, Failure> {
        let Self { coordinator, token, name, identity, output: _ } = self;
        let token = if token == "-" {
            let mut text = String::new();
            std::io::stdin().take(MAX_TOKEN).read_to_string(&mut text).map_err(|error| {
                Failure::new("join-token", format!("cannot read the token: {error}"), "write it to stdin")
            })?;
            text
        } else {
            token
        };
        let usage = |error: &dyn std::fmt::Display| match error.to_string().split_once("; ") {
            Some((what, advice)) => Failure::usage(what, advice),
            None => Failure::usage(error.to_string(), "see `novaferry-agent join --help`"),
        };
        let token = token.parse().map_err(|error| usage(&error))?;
        let name = match name {
            Some(name) => name,
            None => rustix::system::uname().nodename().to_string_lossy().to_lowercase().parse().map_err(
                |error: pki::InvalidPeerName| Failure::usage(error.to_string(), "choose another with --name"),
            )?,
        };
        let has_port = coordinator.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let coordinator = if has_port { coordinator } else { format!("{coordinator}:{}", control_api::PORT) };
        Ok(coordinator::JoinSettings { coordinator, token, name, folder: identity })
    }
}

/// Joins, and says what is next.
pub(super) fn run(args: JoinArgs) -> (Format, Result<(), Failure>) {
    let format = Format::from(args.output);
    (format, args.settings().and_then(|settings| interactive(format, join(settings, format))))
}

async fn join(settings: coordinator::JoinSettings, format: Format) -> Result<(), Failure> {
    let joined = coordinator::join(settings).await?;
    match format {
        Format::Json => output::json(&joined),
        Format::Text => output::line(&joined.to_string()),
    }
    Ok(())
}
