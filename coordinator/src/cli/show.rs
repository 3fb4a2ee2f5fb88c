//! Values as they are shown.

use serde_json::Value;

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
        Format::Json => values.iter().for_each(output::json),
        Format::Text => table(head, values.iter().map(row)),
    }
}

pub(super) fn said(format: Format, value: &Value, words: &str) {
    match format {
        Format::Json => output::json(value),
        Format::Text => output::line(words),
    }
}
