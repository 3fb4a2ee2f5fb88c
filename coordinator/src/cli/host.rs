//! `host` and `vm`: what the fleet has.

use clap::Subcommand;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::detail::{self, stands};
use super::near::{Among, suggest};
use super::plan::{DrainArgs, drain};
use super::show::{Column, ListArgs, said, text};
use super::units::{bytes, seconds, when};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Format};

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
    #[command(
        after_help = "Examples:\n  novaferry host list --sort -vms\n  novaferry host list --columns host,state --no-headers"
    )]
    List(ListArgs),
    /// Shows one: what its agent says of it, its pools and its VMs.
    Show {
        /// Which.
        host: model::Name,
    },
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
    List(ListArgs),
    /// Shows one.
    #[command(after_help = "Example:\n  novaferry vm show web-1")]
    Show {
        /// Its id or name.
        vm: String,
        /// Where it is, if its name does not say.
        #[arg(long)]
        host: Option<model::Name>,
    },
}

const HOSTS: &[Column] = &[
    Column::new("HOST", |host| host["name"].clone()),
    Column::new("SITE", |host| host["site"].clone()),
    Column::new("STATE", |host| stands(host).into()),
    Column::new("VERSION", |host| host["observed"]["version"].clone()),
    Column::new("VMS", |host| host["observed"]["vms"].as_array().map(Vec::len).into()),
    Column::new("MEMORY", |host| host["observed"]["memory_bytes"].clone()).shown(size),
    Column::new("FREE", |host| host["observed"]["memory_available_bytes"].clone()).shown(size),
    Column::new("SEEN", |host| host["seen"].clone()).shown(when),
];

const VMS: &[Column] = &[
    Column::new("HOST", |vm| vm["host"].clone()),
    Column::new("ID", |vm| vm["id"].clone()),
    Column::new("NAME", |vm| vm["name"].clone()),
    Column::new("STATE", |vm| vm["state"].clone()),
    Column::new("MEMORY", |vm| vm["memory_bytes"].clone()).shown(size),
    Column::new("PROCESSORS", |vm| vm["processors"].clone()).shown(count),
    Column::new("DISKS", |vm| vm["disk_bytes"].clone()).shown(size),
    Column::new("MOVES", |vm| vm["access"].clone()),
];

/// Bytes for people; what is not known is said to be nothing by an older agent.
fn size(value: &Value) -> String {
    value.as_u64().filter(|size| *size > 0).map_or_else(|| "-".to_owned(), bytes)
}

/// As [`size`].
fn count(value: &Value) -> String {
    value.as_u64().filter(|count| *count > 0).map_or_else(|| "-".to_owned(), |count| count.to_string())
}

/// Hosts with names like one that there is not.
fn missing(client: &Client, host: &model::Name) -> impl Fn(Failure) -> Failure {
    move |failure| suggest(client, failure, &[(Among::Hosts, host.as_str())])
}

/// What the coordinator says, as this release understands it.
fn read<T: DeserializeOwned>(said: &Value) -> Result<T, Failure> {
    T::deserialize(said).map_err(|error| {
        let what = format!("the answer is not one to what was asked: {error}");
        Failure::new("answer", what, "use the same release of the coordinator and the command")
    })
}

/// The one VM of this id or name.
fn one_of(vms: Vec<Value>, name: &str, host: Option<&model::Name>) -> Result<Value, Failure> {
    let fits = |vm: &Value| {
        (vm["id"] == name || vm["name"] == name) && host.is_none_or(|host| vm["host"] == host.as_str())
    };
    let mut found: Vec<_> = vms.into_iter().filter(fits).collect();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Failure::told("not-found", &format!("no host has a VM {name:?}"))),
        _ => {
            let each = found.iter().map(|vm| format!("{} on {}", text(&vm["id"]), text(&vm["host"])));
            let what = format!("several VMs are called {name}: {}", each.collect::<Vec<_>>().join(", "));
            Err(Failure::new("conflict", what, "name one by its id and --host"))
        }
    }
}

pub(super) fn host(client: &Client, command: HostCommand, format: Format) -> Result<(), Failure> {
    match command {
        HostCommand::Token { site, host, expires } => {
            let wanted = json!({ "site": site, "host": host, "expires_seconds": expires });
            let invited: Value = client.post("/v1/host-tokens", &wanted)?;
            // The token alone, for a pipe.
            said(format, &invited, &text(&invited["token"]));
        }
        HostCommand::List(shape) => {
            shape.print(format, client.list("/v1/hosts", None)?, HOSTS)?;
        }
        HostCommand::Show { host } => {
            let said: Value = client.get(&format!("/v1/hosts/{host}")).map_err(missing(client, &host))?;
            if format == Format::Text {
                detail::host(&read(&said)?, &said);
            } else {
                output::value(format, &said);
            }
        }
        HostCommand::Drain(args) => return drain(client, args, format),
        HostCommand::Cordon { host } => cordon(client, &host, true, format)?,
        HostCommand::Uncordon { host } => cordon(client, &host, false, format)?,
        HostCommand::Revoke { host } => {
            client
                .post::<Value>(&format!("/v1/hosts/{host}/revoke"), &json!({}))
                .map_err(missing(client, &host))?;
            said(format, &json!({ "revoked": host }), &format!("{host} is revoked"));
        }
    }
    Ok(())
}

fn cordon(client: &Client, host: &model::Name, cordoned: bool, format: Format) -> Result<(), Failure> {
    client
        .post::<Value>(&format!("/v1/hosts/{host}/cordon"), &json!({ "cordoned": cordoned }))
        .map_err(missing(client, host))?;
    let words = if cordoned { "takes no VMs now" } else { "takes VMs again" };
    said(format, &json!({ "host": host, "cordoned": cordoned }), &format!("{host} {words}"));
    Ok(())
}

pub(super) fn vm(client: &Client, command: VmCommand, format: Format) -> Result<(), Failure> {
    match command {
        VmCommand::List(shape) => {
            shape.print(format, client.list("/v1/vms", None)?, VMS)?;
        }
        VmCommand::Show { vm, host } => {
            let said = one_of(client.list("/v1/vms", None)?, &vm, host.as_ref()).map_err(|failure| {
                let host = host.as_ref().map(|host| (Among::Hosts, host.as_str()));
                suggest(
                    client,
                    failure,
                    &[(Among::Vms, vm.as_str())].into_iter().chain(host).collect::<Vec<_>>(),
                )
            })?;
            if format == Format::Text {
                detail::vm(&read(&said)?, &text(&said["host"]));
            } else {
                output::value(format, &said);
            }
        }
    }
    Ok(())
}
