//! `migrate` and `migration`: VMs that move.

use clap::{Args, Subcommand, ValueEnum};
use model::migration::{Migration, Mode, Options, Wish};
use serde_json::{Value, json};

use super::show::{list, said, text};
use super::units::milliseconds;
use crate::client::Client;
use crate::failure::Failure;
use crate::follow::{follow, short};
use crate::output::{self, Format, plain};

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum ModeArg {
    /// It runs on while its disks and its memory travel.
    #[default]
    Live,
    /// Its disks travel while it runs; then it is shut down and boots there.
    Warm,
    /// It is off, and stays off.
    Cold,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The hosts carry the move out: whoever follows may go away at any time, and so may the coordinator.

Examples:
  novaferry migrate web-1 --to host-b --dry-run
  novaferry migrate web-1 --to host-b --max-downtime 200ms
  novaferry migrate web-1 --to host-b --mode warm --limit 50000000 --detach")]
pub(super) struct MigrateArgs {
    /// The VM's id or name.
    vm: String,
    /// The destination.
    #[arg(long, value_name = "HOST")]
    to: model::Name,
    /// Where the VM is, if its name does not say.
    #[arg(long, value_name = "HOST")]
    from: Option<model::Name>,
    /// How.
    #[arg(long, value_enum, default_value_t)]
    mode: ModeArg,
    /// Longest pause of the guest, such as 300ms or 2s.
    #[arg(long, value_parser = milliseconds, value_name = "DURATION")]
    max_downtime: Option<u64>,
    /// Highest rate, bytes a second.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Keep the source's copy until `migration finalise`.
    #[arg(long)]
    hold: bool,
    /// Find out what stands against it, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Come back as soon as it is asked for.
    #[arg(long)]
    detach: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Keep {
    /// The source's copy.
    Source,
    /// The destination's copy.
    Destination,
}

#[derive(Debug, Subcommand)]
pub(super) enum MigrationCommand {
    /// Lists migrations, newest first.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
    /// Shows all that is known of one, as JSON.
    Show {
        /// Its id, or the first digits of it.
        id: String,
    },
    /// Follows one to its end.
    Watch {
        /// Its id, or the first digits of it.
        id: String,
    },
    /// Undoes one, while that is possible.
    Cancel {
        /// Its id, or the first digits of it.
        id: String,
    },
    /// Gives the source's copy up.
    Finalise {
        /// Its id, or the first digits of it.
        id: String,
    },
    /// Ends the guest at the destination and resumes the source's copy as it was at the cut-over.
    Rollback {
        /// Its id, or the first digits of it.
        id: String,
        /// What the guest did at the destination is lost.
        #[arg(long, required = true)]
        discard_destination: bool,
    },
    /// Ends doubt, when the hosts cannot reach each other.
    #[command(after_help = "Example:\n  novaferry migration resolve 4f2a --keep source --other-side-is-off")]
    Resolve {
        /// Its id, or the first digits of it.
        id: String,
        /// Whose copy is to live.
        #[arg(long, value_enum)]
        keep: Keep,
        /// You have made sure of it: else the VM may run twice.
        #[arg(long, required = true)]
        other_side_is_off: bool,
    },
}

pub(super) fn migrate(client: &Client, args: MigrateArgs, format: Format) -> Result<(), Failure> {
    let MigrateArgs { vm, to, from, mode, max_downtime, limit, hold, dry_run, detach } = args;
    let mode = match mode {
        ModeArg::Live => Mode::Live,
        ModeArg::Warm => Mode::Warm,
        ModeArg::Cold => Mode::Cold,
    };
    let options = Options { mode, max_downtime_ms: max_downtime, limit, hold, dry_run };
    let begun: Migration =
        client.post("/v1/migrations", &json!({ "vm": vm, "to": to, "from": from, "options": options }))?;
    if detach {
        match format {
            Format::Json => output::json(&begun),
            Format::Text => {
                let id = &begun.id;
                output::line(&format!(
                    "{id} is asked for; `novaferry migration watch {}` follows it",
                    short(id)
                ));
            }
        }
        return Ok(());
    }
    follow(client, &begun.id, format)
}

/// The one migration whose id begins so.
fn find(client: &Client, id: &str) -> Result<String, Failure> {
    let digits = !id.is_empty() && id.len() <= 32 && id.bytes().all(|c| c.is_ascii_hexdigit());
    if !digits {
        let advice = "`novaferry migration list` shows the ids";
        return Err(Failure::new(
            "usage",
            "a migration is named by its digits, or the first of them",
            advice,
        )
        .usage());
    }
    if id.len() == 32 {
        return Ok(id.to_owned());
    }
    let page: Value = client.get("/v1/migrations?limit=500")?;
    let ids = page["migrations"].as_array().into_iter().flatten().filter_map(|one| one["id"].as_str());
    let found: Vec<_> = ids.filter(|known| known.starts_with(id)).collect();
    match found[..] {
        [one] => Ok(one.to_owned()),
        [] => Err(Failure::new(
            "not-found",
            format!("none of the last 500 migrations begins with {id}"),
            "write all its digits",
        )),
        _ => {
            Err(Failure::new("conflict", format!("several migrations begin with {id}"), "write more digits"))
        }
    }
}

pub(super) fn migration(client: &Client, command: MigrationCommand, format: Format) -> Result<(), Failure> {
    let wish = |id: &str, wish: Wish, sure: bool| -> Result<(), Failure> {
        let id = find(client, id)?;
        let body = json!({ "wish": wish, "other_side_is_off": sure });
        let migration: Value = client.post(&format!("/v1/migrations/{id}/wish"), &body)?;
        said(format, &migration, &format!("asked; `novaferry migration watch {}` follows it", short(&id)));
        Ok(())
    };
    match command {
        MigrationCommand::List { limit } => {
            let page: Value = client.get(&format!("/v1/migrations?limit={limit}"))?;
            let all = page["migrations"].as_array().cloned().unwrap_or_default();
            list(format, &all, &["ID", "VM", "FROM", "TO", "STATE", "BEGUN"], |one| {
                let id = text(&one["id"]);
                let mut row = vec![short(&id).to_owned()];
                row.extend(
                    ["vm", "source", "destination", "state", "created"].map(|field| text(&one[field])),
                );
                row
            });
            Ok(())
        }
        MigrationCommand::Show { id } => {
            let migration: Value = client.get(&format!("/v1/migrations/{}", find(client, &id)?))?;
            match format {
                Format::Json => output::json(&migration),
                Format::Text => {
                    let pretty = serde_json::to_string_pretty(&migration).unwrap_or_default();
                    pretty.lines().for_each(|line| output::line(&plain(line)));
                }
            }
            Ok(())
        }
        MigrationCommand::Watch { id } => follow(client, &find(client, &id)?, format),
        MigrationCommand::Cancel { id } => wish(&id, Wish::Cancel, false),
        MigrationCommand::Finalise { id } => wish(&id, Wish::Finalise, false),
        MigrationCommand::Rollback { id, discard_destination: _ } => wish(&id, Wish::TakeBack, false),
        MigrationCommand::Resolve { id, keep, other_side_is_off } => {
            let keep = match keep {
                Keep::Source => Wish::KeepSource,
                Keep::Destination => Wish::KeepDestination,
            };
            wish(&id, keep, other_side_is_off)
        }
    }
}
