//! `report`: how expectations fared, and what was spent.

use clap::{Subcommand, ValueEnum};
use serde_json::Value;

use super::show::{list, text};
use super::units::{bytes, money, span};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Format};

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum By {
    /// Each migration by itself.
    #[default]
    Migration,
    /// Whose the VMs are.
    Tenant,
    /// The links.
    Link,
}

#[derive(Debug, Subcommand)]
pub(super) enum ReportCommand {
    /// Shows what was expected of migrations beside what they took.
    Accuracy,
    /// Shows what migrations have cost, by the prices of their links.
    #[command(
        after_help = "Examples:\n  novaferry report cost --by link\n  novaferry report cost --by tenant --csv"
    )]
    Cost {
        /// By what it is summed.
        #[arg(long, value_enum, default_value_t)]
        by: By,
        /// Print it as CSV with the columns of FOCUS.
        #[arg(long)]
        csv: bool,
    },
}

pub(super) fn report(client: &Client, command: ReportCommand, format: Format) -> Result<(), Failure> {
    match command {
        ReportCommand::Accuracy => accuracy(client, format),
        ReportCommand::Cost { by, csv } => {
            let by = match by {
                By::Migration => "migration",
                By::Tenant => "tenant",
                By::Link => "link",
            };
            if csv {
                let text = client.text(&format!("/v1/reports/cost?by={by}&as=csv"))?;
                text.lines().for_each(output::line);
                return Ok(());
            }
            let charges: Vec<Value> = client.get(&format!("/v1/reports/cost?by={by}"))?;
            list(format, &charges, &["VM", "TENANT", "LINK", "MIGRATIONS", "DATA", "COST"], |charge| {
                let number = |name: &str| charge[name].as_u64().unwrap_or(0);
                let currency = charge["currency"].as_str().unwrap_or_default();
                vec![
                    text(&charge["vm"]),
                    text(&charge["tenant"]),
                    text(&charge["link"]),
                    text(&charge["migrations"]),
                    bytes(number("bytes")),
                    money(number("cost_micros"), currency),
                ]
            });
            Ok(())
        }
    }
}

fn accuracy(client: &Client, format: Format) -> Result<(), Failure> {
    let accuracy: Value = client.get("/v1/reports/accuracy")?;
    if format != Format::Text {
        output::value(format, &accuracy);
        return Ok(());
    }
    let all = accuracy["migrations"].as_array().cloned().unwrap_or_default();
    let head = ["MIGRATION", "VM", "LINK", "BY", "TIME", "TOOK", "PAUSE", "TOOK", "DATA", "TOOK"];
    let rows = all.iter().flat_map(|one| {
        let number = |of: &Value, name: &str| of[name].as_u64().unwrap_or(0);
        ["planned", "measured"].into_iter().filter(|by| one[*by].is_object()).map(move |by| {
            let (expected, took) = (&one[by], &one["took"]);
            vec![
                crate::follow::short(&text(&one["migration"])).to_owned(),
                text(&one["vm"]),
                text(&one["link"]),
                by.to_owned(),
                span(number(expected, "duration_ms")),
                span(number(took, "duration_ms")),
                span(number(expected, "downtime_ms")),
                took["downtime_ms"].as_u64().map_or_else(|| "-".to_owned(), span),
                bytes(number(expected, "bytes")),
                bytes(number(took, "bytes")),
            ]
        })
    });
    output::table(&head, rows);
    for (by, whose) in [("planned", "plans"), ("measured", "the hosts' measurements")] {
        let held = &accuracy[by];
        output::line(&format!(
            "of {} expectations of {whose}: time within 20 % {}, data within 10 % {}, pause within 25 % or 20 ms {}",
            held["of"], held["duration"], held["bytes"], held["downtime"]
        ));
    }
    Ok(())
}
