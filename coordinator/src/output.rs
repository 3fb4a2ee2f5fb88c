//! What is printed: tables for people, JSON or YAML for programs.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, Color, ContentArrangement, Table};
use serde::Serialize;

use crate::failure::Failure;

/// For whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people; nothing of it is promised to stay.
    #[default]
    Text,
    /// For programs: one JSON value a line, also of lists and of errors.
    Json,
    /// The same as YAML: one document a value.
    Yaml,
}

/// A line on stdout. A reader that is gone is none.
pub(crate) fn line(text: &str) {
    drop(writeln!(io::stdout(), "{text}"));
}

/// A remark for people, beside what was asked for.
pub(crate) fn remark(text: &str) {
    drop(writeln!(io::stderr(), "{}", plain(text)));
}

/// A value for programs; nothing for people.
pub(crate) fn value(format: Format, value: &impl Serialize) {
    match written(format, value) {
        Ok(Some(text)) => drop(io::stdout().write_all(text.as_bytes())),
        Ok(None) => {}
        Err(error) => remark(&format!("cannot print: {error}")),
    }
}

/// As it is printed: with its end of line.
fn written(format: Format, value: &impl Serialize) -> Result<Option<String>, String> {
    match format {
        Format::Text => Ok(None),
        Format::Json => {
            serde_json::to_string(value).map(|text| Some(text + "\n")).map_err(|error| error.to_string())
        }
        Format::Yaml => {
            let text = serde_saphyr::to_string(value).map_err(|error| error.to_string())?;
            Ok(Some(format!("---\n{}\n", text.trim_end_matches('\n'))))
        }
    }
}

/// Rows under their heads, as wide as the terminal at most. Control characters of names are shown as they are written,
/// not done.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    columns(head, rows, true);
}

/// The same, without its heads if so wished.
pub(crate) fn columns(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>, with_heads: bool) {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    if with_heads {
        table.set_header(head.iter().copied());
    }
    let coloured = colours(&io::stdout());
    for row in rows {
        table.add_row(row.iter().enumerate().map(|(at, text)| {
            let cell = Cell::new(plain(text));
            let is_state = head.get(at).is_some_and(|head| ["STATE", "OUTCOME"].contains(head));
            match colour(text).filter(|_| coloured && is_state) {
                Some(colour) => cell.fg(colour),
                None => cell,
            }
        }));
    }
    for text in table.lines() {
        line(text.trim_end());
    }
}

/// Whether colours are wanted there: on a terminal, unless NO_COLOR is set (<https://no-color.org>).
fn colours(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Of a state's name, if it is good or bad.
fn colour(state: &str) -> Option<Color> {
    match state {
        "connected" | "running" | "completed" | "done" | "up" | "ok" => Some(Color::Green),
        "away" | "queued" | "moving" | "cutting-over" | "proving" | "held" | "undoing" | "begun"
        | "stopping" | "degraded" => Some(Color::Yellow),
        "revoked" | "refused" | "failed" | "in-doubt" | "destination-lost" | "lost" | "blocked" | "down" => {
            Some(Color::Red)
        }
        _ => None,
    }
}

/// A text from outside as one line without control characters.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

pub(crate) fn failure(format: Format, failure: &Failure) {
    if format != Format::Text {
        return value(format, &serde_json::json!({ "error": failure }));
    }
    let (begin, end) = if colours(&io::stderr()) { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    drop(writeln!(io::stderr(), "{begin}error:{end} {}", plain(&failure.message)));
    if let Some(advice) = &failure.advice {
        remark(&format!("hint: {advice}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn yaml_reads_as_what_was_written() {
        for value in [
            json!({ "host": "no", "site": "1e3", "seen": "2026-01-01T00:00:00Z", "empty": "", "none": null }),
            json!({ "text": "two\nlines\n", "tabs": "\t", "bell": "\u{7}", "colon": "a: b # c", "dash": "- x" }),
            json!({ "number": 18_446_744_073_709_551_615_u64, "minus": -5, "part": 0.1, "true": true }),
            json!({ "list": [], "map": {}, "lists": [[1, 2], [{ "a": [null] }]] }),
            json!("~"),
            json!({ "as number": "0x1f", "as octal": "0o7", "old octal": "017", "as null": "Null", "as inf": ".inf" }),
            json!({ "quote": "\"'", "slash": "\\n", "html": "<b>&</b>", "end": "---", "wide": "\u{2028}\u{feff}é😀" }),
        ] {
            let text = written(Format::Yaml, &value).unwrap().unwrap();
            assert!(text.starts_with("---\n") && text.ends_with('\n') && !text.ends_with("\n\n"), "{text}");
            let read: Value = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(read, value, "{text}");
        }
    }

    #[test]
    fn json_is_a_line() {
        let text = written(Format::Json, &json!({ "a": "x\ny" })).unwrap().unwrap();
        assert_eq!(text, "{\"a\":\"x\\ny\"}\n");
    }

    #[test]
    fn names_do_nothing_to_a_terminal() {
        assert_eq!(plain("a\x1b[31mb\nc"), "a\u{fffd}[31mb\u{fffd}c");
    }
}
