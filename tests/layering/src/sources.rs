//! The files: conventions that no lint knows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::code::{code_only, words};
use crate::table::{self, CRATES};

/// Longest file of Rust. Nobody keeps more in the head; there are no exceptions.
pub const MOST_LINES: usize = 800;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["common", "helper", "helpers", "misc", "util", "utils"];

/// What a pure crate's own `clippy.toml` must ban: the nearest file wins over the root's.
const PURE_BANS: &[&str] = &["std::time::Instant::now", "std::time::SystemTime::now", "std::fs::File::open"];

/// What every `clippy.toml` must ban.
const BANS: &[&str] = &["std::sync::mpsc::channel"];

/// What the root's `clippy.toml` must ban beside that: the pure crates cannot even name these.
const ROOT_BANS: &[&str] = &["tokio::sync::mpsc::unbounded_channel", "async_channel::unbounded"];

/// A file of Rust.
#[derive(Debug)]
pub struct Source {
    /// Path from the root of the workspace.
    pub path: PathBuf,
    /// What is in it.
    pub text: String,
}

/// Every file of Rust below `root`, in order; build output and hidden folders are left out.
///
/// # Errors
/// If a folder or a file cannot be read.
pub fn read_all(root: &Path) -> io::Result<Vec<Source>> {
    let mut paths = BTreeSet::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let kind = entry.file_type()?;
            if kind.is_dir() && name != "target" && !name.as_encoded_bytes().starts_with(b".") {
                folders.push(entry.path());
            } else if kind.is_file() && entry.path().extension().is_some_and(|extension| extension == "rs") {
                paths.insert(entry.path());
            }
        }
    }
    let source = |path: PathBuf| {
        let text = fs::read_to_string(&path)?;
        let path = path.strip_prefix(root).map_or_else(|_| path.clone(), Path::to_path_buf);
        Ok(Source { path, text })
    };
    paths.into_iter().map(source).collect()
}

/// Files that are too long.
#[must_use]
pub fn too_long(sources: &[Source]) -> Vec<String> {
    sources
        .iter()
        .map(|source| (source, source.text.lines().count()))
        .filter(|&(_, lines)| lines > MOST_LINES)
        .map(|(source, lines)| {
            format!("{} has {lines} lines: split it (at most {MOST_LINES})", source.path.display())
        })
        .collect()
}

/// Files whose name hides what they hold, or that hide in their folder's name.
#[must_use]
pub fn badly_named(sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    for Source { path, .. } in sources {
        let is = |part: &std::ffi::OsStr| EMPTY_NAMES.iter().any(|name| part == *name);
        if path.file_name().is_some_and(|name| name == "mod.rs") {
            findings.push(format!("{}: write `foo.rs` beside `foo/`, not `foo/mod.rs`", path.display()));
        }
        if path.file_stem().is_some_and(is) || path.iter().any(is) {
            findings.push(format!("{}: name it after what it holds", path.display()));
        }
    }
    findings
}

/// `unsafe` code outside the one crate that may have it. Even a test of another crate has none.
#[must_use]
pub fn unsafe_elsewhere(sources: &[Source]) -> Vec<String> {
    let Some(home) = CRATES.iter().find(|row| row.name == table::UNSAFE) else {
        return vec![format!("there is no row for {}, the crate that may be unsafe", table::UNSAFE)];
    };
    let mut findings = Vec::new();
    for Source { path, text } in sources.iter().filter(|source| !source.path.starts_with(home.folder)) {
        let code = code_only(text);
        findings.extend(words(&code).filter(|&(_, word)| word == "unsafe" || word == "unsafe_code").map(
            |(line, word)| {
                format!("{}:{line}: `{word}`: move it to {} or use a safe crate", path.display(), home.folder)
            },
        ));
    }
    findings
}

/// Channels without a bound: they turn a slow consumer into an exhausted memory.
#[must_use]
pub fn unbounded_channels(sources: &[Source]) -> Vec<String> {
    const NAMES: &[&str] = &["unbounded", "unbounded_channel", "UnboundedReceiver", "UnboundedSender"];
    let mut findings = Vec::new();
    for Source { path, text } in sources {
        let code = code_only(text);
        let named = words(&code).filter(|(_, word)| NAMES.contains(word));
        let std = code.lines().enumerate().filter(|(_, line)| makes_std_channel(line));
        findings.extend(
            named
                .map(|(line, _)| line)
                .chain(std.map(|(line, _)| line + 1))
                .map(|line| format!("{}:{line}: a channel without a bound: give it one", path.display())),
        );
    }
    findings
}

/// `mpsc::channel()` with or without a type; tokio's of the same name takes a bound.
fn makes_std_channel(line: &str) -> bool {
    line.split("mpsc::channel").skip(1).any(|rest| {
        let rest = rest.trim_start();
        let call =
            if rest.starts_with("::<") { rest.split_once(">(").map_or("", |(_, after)| after) } else { rest };
        call.trim_start_matches('(').starts_with(')')
    })
}

/// Manifests that do not inherit the workspace's lints.
///
/// # Errors
/// If a manifest cannot be read.
pub fn without_lints(root: &Path, folders: &[PathBuf]) -> io::Result<Vec<String>> {
    let mut findings = Vec::new();
    for folder in folders {
        let path = folder.join("Cargo.toml");
        if !inherits_lints(&read_toml(&root.join(&path))?) {
            findings.push(format!("{}: add `[lints] workspace = true`", path.display()));
        }
    }
    Ok(findings)
}

fn inherits_lints(manifest: &toml::Table) -> bool {
    let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace"));
    inherits.and_then(toml::Value::as_bool) == Some(true)
}

/// `clippy.toml` files that miss a ban. The nearest file replaces the root's, so each repeats what it needs.
///
/// # Errors
/// If a file cannot be read; a pure crate without one is a finding.
pub fn missing_bans(root: &Path, folders: &[PathBuf]) -> io::Result<Vec<String>> {
    let mut findings = Vec::new();
    for folder in folders.iter().map(PathBuf::as_path).chain([Path::new("")]) {
        let pure = CRATES.iter().any(|row| row.pure && folder == Path::new(row.folder));
        let own = match (pure, folder.as_os_str().is_empty()) {
            (true, _) => PURE_BANS,
            (_, true) => ROOT_BANS,
            _ => &[],
        };
        let path = folder.join("clippy.toml");
        if !root.join(&path).exists() {
            if !own.is_empty() {
                findings.push(format!("{}: is missing; it must ban {own:?}", path.display()));
            }
            continue;
        }
        let rules = read_toml(&root.join(&path))?;
        let banned = banned(&rules);
        let missing = BANS.iter().chain(own).filter(|ban| !banned.contains(ban));
        findings.extend(missing.map(|ban| format!("{}: ban {ban} in disallowed-methods", path.display())));
    }
    Ok(findings)
}

fn banned(rules: &toml::Table) -> Vec<&str> {
    let methods = rules.get("disallowed-methods").and_then(toml::Value::as_array);
    methods.into_iter().flatten().filter_map(|method| method.get("path").unwrap_or(method).as_str()).collect()
}

fn read_toml(path: &Path) -> io::Result<toml::Table> {
    let wrong = |error| io::Error::other(format!("{}: {error}", path.display()));
    fs::read_to_string(path)?.parse().map_err(wrong)
}

#[cfg(test)]
mod tests;
