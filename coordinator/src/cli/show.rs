//! Values as they are shown.

use clap::Args;
use serde_json::Value;

use super::near;
use crate::failure::Failure;
use crate::output::{self, Format, table};

pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

pub(super) fn list(format: Format, values: &[Value], head: &[&str], row: impl Fn(&Value) -> Vec<String>) {
    match format {
        Format::Text => table(head, values.iter().map(row)),
        _ => values.iter().for_each(|value| output::value(format, value)),
    }
}

pub(super) fn said(format: Format, value: &Value, words: &str) {
    match format {
        Format::Text => output::line(words),
        _ => output::value(format, value),
    }
}

/// How a list is shown.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ListArgs {
    /// Leave the heads out.
    #[arg(long, help_heading = "Table")]
    no_headers: bool,
    /// The columns to show, by their heads, divided by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Table")]
    columns: Vec<String>,
    /// The column to sort by, in every format; with `-` before its head from the greatest down.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, help_heading = "Table")]
    sort: Option<String>,
}

/// A column of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    head: &'static str,
    /// What is sorted by, and shown.
    value: fn(&Value) -> Value,
    /// For people.
    text: fn(&Value) -> String,
}

impl Column {
    /// What is in the field of this name.
    pub(super) const fn new(head: &'static str, value: fn(&Value) -> Value) -> Self {
        Self { head, value, text }
    }

    /// The same, shown so.
    pub(super) const fn shown(self, text: fn(&Value) -> String) -> Self {
        Self { text, ..self }
    }
}

impl ListArgs {
    /// Prints a list.
    pub(super) fn print(
        &self,
        format: Format,
        mut values: Vec<Value>,
        all: &[Column],
    ) -> Result<(), Failure> {
        let named = |name: &str| {
            let fits = |column: &&Column| column.head.eq_ignore_ascii_case(name.trim());
            all.iter().find(fits).ok_or_else(|| unknown(name, all))
        };
        let chosen = match &self.columns[..] {
            [] => all.iter().collect(),
            names => names.iter().map(|name| named(name)).collect::<Result<Vec<_>, _>>()?,
        };
        if let Some(sort) = &self.sort {
            let (name, down) = sort.strip_prefix('-').map_or((sort.as_str(), false), |name| (name, true));
            let by = named(name)?.value;
            values.sort_by(|one, other| {
                let order = compare(&by(one), &by(other));
                if down { order.reverse() } else { order }
            });
        }
        if format != Format::Text {
            values.iter().for_each(|value| output::value(format, value));
            return Ok(());
        }
        let head: Vec<_> = chosen.iter().map(|column| column.head).collect();
        let row = |value: &Value| chosen.iter().map(|column| (column.text)(&(column.value)(value))).collect();
        output::columns(&head, values.iter().map(row), !self.no_headers);
        Ok(())
    }
}

/// Numbers by their size, all else as text; nothing comes first. Of several values the first counts.
fn compare(one: &Value, other: &Value) -> std::cmp::Ordering {
    let first = |value: &'_ Value| value.get(0).unwrap_or(value).clone();
    let (one, other) = (&first(one), &first(other));
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one.total_cmp(&other),
        _ => (!one.is_null(), text(one)).cmp(&(!other.is_null(), text(other))),
    }
}

fn unknown(name: &str, all: &[Column]) -> Failure {
    let heads: Vec<_> = all.iter().map(|column| column.head).collect();
    let near = near::to(&name.to_uppercase(), heads.iter().copied());
    let advice = near.map_or_else(|| format!("they are {}", heads.join(", ")), |near| near.question());
    Failure::new("usage", format!("there is no column {name}"), advice).usage()
}
