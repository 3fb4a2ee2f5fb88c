//! `host` and `vm`: what the fleet has.

use clap::Subcommand;
use serde_json::{Value, json};

use super::plan::{DrainArgs, drain};
use super::show::{list, said, text};
use super::units::seconds;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Format;

#[derive(Debug, Subcommand)]
pub(super) enum HostCommand {
    /// Makes a one-time token by which a host joins.
    #[command(after_help = "Example:\n  novaferry host token --site berlin --expires 15m")]
    Token {
        /// The host's site.
        #[arg(long)]
        site: model::Name,
        /// The only host that may use it.
        #[arg(long)]
        host: Option<model::Name>,
        /// How long it is good, such as 15m or 2h.
        #[arg(long, value_parser = seconds, default_value = "1h", value_name = "DURATION")]
        expires: u64,
    },
    /// Lists the hosts.
    List,
    /// Moves all its VMs to other hosts; it takes none until `host uncordon`.
    #[command(
        after_help = "Examples:\n  novaferry host drain host-a --dry-run\n  novaferry host drain host-a --to berlin"
    )]
    Drain(DrainArgs),
    /// Makes a host take no VMs, unless somebody names it.
    Cordon {
        /// Which.
        host: model::Name,
    },
    /// Makes a host take VMs again.
    Uncordon {
        /// Which.
        host: model::Name,
    },
    /// Revokes a host's certificates: it loses its line, and no other host lets it in.
    #[command(after_help = "Example:\n  novaferry host revoke host-a")]
    Revoke {
        /// Which.
        host: model::Name,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum VmCommand {
    /// Lists the virtual machines of all hosts.
    List,
}

pub(super) fn host(client: &Client, command: HostCommand, format: Format) -> Result<(), Failure> {
    match command {
        HostCommand::Token { site, host, expires } => {
            let wanted = json!({ "site": site, "host": host, "expires_seconds": expires });
            let invited: Value = client.post("/v1/host-tokens", &wanted)?;
            // The token alone, for a pipe.
            said(format, &invited, &text(&invited["token"]));
        }
        HostCommand::List => {
            let hosts = client.list("/v1/hosts", None)?;
            list(format, &hosts, &["HOST", "SITE", "STATE", "VERSION", "VMS", "SEEN"], |host| {
                let state = match (&host["revoked"], &host["connected"]) {
                    (Value::String(_), _) => "revoked",
                    (_, Value::String(_)) => "connected",
                    _ => "away",
                };
                let observed = &host["observed"];
                let vms = observed["vms"].as_array().map_or(Value::Null, |vms| vms.len().into());
                vec![
                    text(&host["name"]),
                    text(&host["site"]),
                    state.to_owned(),
                    text(&observed["version"]),
                    text(&vms),
                    text(&host["seen"]),
                ]
            });
        }
        HostCommand::Drain(args) => return drain(client, args, format),
        HostCommand::Cordon { host } => cordon(client, &host, true, format)?,
        HostCommand::Uncordon { host } => cordon(client, &host, false, format)?,
        HostCommand::Revoke { host } => {
            client.post::<Value>(&format!("/v1/hosts/{host}/revoke"), &json!({}))?;
            said(format, &json!({ "revoked": host }), &format!("{host} is revoked"));
        }
    }
    Ok(())
}

fn cordon(client: &Client, host: &model::Name, cordoned: bool, format: Format) -> Result<(), Failure> {
    client.post::<Value>(&format!("/v1/hosts/{host}/cordon"), &json!({ "cordoned": cordoned }))?;
    let words = if cordoned { "takes no VMs now" } else { "takes VMs again" };
    said(format, &json!({ "host": host, "cordoned": cordoned }), &format!("{host} {words}"));
    Ok(())
}

pub(super) fn vm(client: &Client, command: VmCommand, format: Format) -> Result<(), Failure> {
    match command {
        VmCommand::List => {
            let vms = client.list("/v1/vms", None)?;
            list(format, &vms, &["HOST", "ID", "NAME", "STATE", "MOVES"], |vm| {
                let fields = ["host", "id", "name", "state", "access"];
                fields.map(|field| text(&vm[field])).to_vec()
            });
        }
    }
    Ok(())
}
