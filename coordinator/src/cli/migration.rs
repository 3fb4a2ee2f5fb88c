//! `migration`: VMs that move.

use clap::{Subcommand, ValueEnum};
use model::Timestamp;
use model::migration::{Migration, Proven, Wish};
use serde_json::{Value, json};

use super::detail;
use super::pick::pick;
use super::plan::deadline;
use super::show::{Column, ListArgs, said, text};
use super::units::{bytes, when};
use crate::client::Client;
use crate::failure::Failure;
use crate::follow::{follow, short, waits_for};
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
        #[command(flatten)]
        shape: ListArgs,
    },
    /// Shows one: both ends, progress, expectations and figures, findings.
    Show {
        /// Its id, or the first digits of it.
        id: String,
    },
    /// Follows one to its end.
    #[command(after_help = "\
For people it says the phase, what of disks and memory is there, the rate, the expected pause, and
the time to go at this rate; for programs, the migration each time its state changes. It may be left
and taken up at any time.

Exit codes: 0 the VM runs at the destination (also when the source's copy is held), or a rehearsal
found nothing against it; 1 it was refused, undone, or lost, or nobody answers; 2 it is in doubt, or
the destination is lost: see `novaferry migration resolve`.

Example:
  novaferry migration watch 4f2a")]
    Watch {
        /// Its id, or the first digits of it.
        id: String,
    },
    /// Shows what the destination signed for: each disk, and its Merkle root.
    #[command(after_help = "\
With --output json it is the receipts as they were signed; one of them in a file can be held against
the disk by `novaferry-agent verify`.

Example:
  novaferry migration receipts 4f2a --output json")]
    Receipts {
        /// Its id, or the first digits of it.
        id: String,
    },
    /// Lets a guest leave whose disks are kept in step (`migrate --seed-now`), or changes when it may.
    #[command(
        after_help = "Examples:\n  novaferry migration cutover 4f2a\n  novaferry migration cutover 4f2a --at 2026-05-01T22:00:00Z"
    )]
    Cutover {
        /// Its id, or the first digits of it.
        id: String,
        /// Not at once, but from then on: a time such as 2026-05-01T22:00:00Z, or from now, such as 2h.
        #[arg(long, value_parser = deadline, value_name = "TIME")]
        at: Option<Timestamp>,
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
    pick(client, id, "migration", "/v1/migrations")
}

const COLUMNS: &[Column] = &[
    Column::new("ID", |one| one["id"].clone()).shown(|id| short(&text(id)).to_owned()),
    Column::new("VM", |one| one["vm"].clone()),
    Column::new("FROM", |one| one["source"].clone()),
    Column::new("TO", |one| one["destination"].clone()),
    Column::new("STATE", |one| one["state"].clone()),
    Column::new("BEGUN", |one| one["created"].clone()).shown(when),
];

pub(super) fn migration(client: &Client, command: MigrationCommand, format: Format) -> Result<(), Failure> {
    let wish = |id: &str, wish: Wish, sure: bool| -> Result<(), Failure> {
        let id = find(client, id)?;
        let body = json!({ "wish": wish, "other_side_is_off": sure });
        let migration: Value = client.post(&format!("/v1/migrations/{id}/wish"), &body)?;
        said(format, &migration, &format!("asked; `novaferry migration watch {}` follows it", short(&id)));
        Ok(())
    };
    match command {
        MigrationCommand::List { limit, shape } => {
            shape.print(format, client.list("/v1/migrations", usize::try_from(limit).ok())?, COLUMNS)
        }
        MigrationCommand::Show { id } => {
            let path = format!("/v1/migrations/{}", find(client, &id)?);
            match format {
                Format::Text => {
                    let migration: Migration = client.get(&path)?;
                    detail::migration(&migration, waits_for(client, &migration)?.as_deref());
                }
                // As the coordinator says it, also what a newer one says.
                _ => output::value(format, &client.get::<Value>(&path)?),
            }
            Ok(())
        }
        MigrationCommand::Receipts { id } => receipts(client, &find(client, &id)?, format),
        MigrationCommand::Watch { id } => follow(client, &find(client, &id)?, format),
        MigrationCommand::Cutover { id, at } => {
            let id = find(client, &id)?;
            let path = format!("/v1/migrations/{id}/cutover");
            let migration: Value = client.post(&path, &json!({ "at": at }))?;
            let id = short(&id);
            said(format, &migration, &format!("asked; `novaferry migration watch {id}` follows it"));
            Ok(())
        }
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

fn receipts(client: &Client, id: &str, format: Format) -> Result<(), Failure> {
    let migration: Migration = client.get(&format!("/v1/migrations/{id}"))?;
    let signed = migration.at_destination.and_then(|end| end.receipts);
    match (format, migration.proof, signed) {
        (Format::Text, Some(proof), _) => {
            let row = |disk: Proven| {
                let how = if disk.read_back { "read back" } else { "as it arrived" };
                vec![disk.disk, bytes(disk.bytes), disk.root, how.to_owned()]
            };
            output::table(&["DISK", "SIZE", "ROOT", "CHECKED"], proof.disks.into_iter().map(row));
            Ok(())
        }
        (Format::Text, None, Some(_)) => {
            let why =
                migration.unproven.unwrap_or_else(|| "the source has not said its disks yet".to_owned());
            Err(Failure::new("migration-unproven", plain(&why), "see what was signed with --output json"))
        }
        (_, _, Some(signed)) => {
            output::value(format, &signed);
            Ok(())
        }
        (_, _, None) => Err(Failure::new(
            "migration-unsigned",
            format!("{} has signed nothing yet", migration.destination),
            "it does once the VM is its own for good, if its release is not an older one",
        )),
    }
}
