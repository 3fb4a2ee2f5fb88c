//! What is printed: tables for people, JSON for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;

use crate::failure::Failure;

/// For whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON value a line.
    Json,
}

/// A line on stdout. A reader that is gone is none.
pub(crate) fn line(text: &str) {
    drop(writeln!(io::stdout(), "{text}"));
}

pub(crate) fn json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => line(&text),
        Err(error) => drop(writeln!(io::stderr(), "cannot print: {error}")),
    }
}

/// Rows under their heads. Control characters of names are shown as they are written, not done.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(head.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| plain(cell)));
    }
    for text in table.lines() {
        line(text.trim_end());
    }
}

/// A text from outside as one line without control characters.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

pub(crate) fn failure(format: Format, failure: &Failure) {
    match format {
        Format::Json => json(&serde_json::json!({ "error": failure })),
        Format::Text => {
            drop(writeln!(io::stderr(), "error: {}", plain(&failure.message)));
            if let Some(advice) = &failure.advice {
                drop(writeln!(io::stderr(), "hint: {}", plain(advice)));
            }
        }
    }
}
