//! `migration`: VMs that move.

use clap::{Subcommand, ValueEnum};
use model::migration::Wish;
use serde_json::{Value, json};

use super::show::{list, said, text};
use crate::client::Client;
use crate::failure::Failure;
use crate::follow::{follow, short};
use crate::output::{self, Format, plain};

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
    let page = client.list("/v1/migrations", Some(500))?;
    let ids = page.iter().filter_map(|one| one["id"].as_str());
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
            let all = client.list("/v1/migrations", usize::try_from(limit).ok())?;
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
