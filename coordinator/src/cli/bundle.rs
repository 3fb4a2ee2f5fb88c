//! `support bundle`: what somebody who helps needs to see, without secrets.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};

use super::show::said;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Format};

/// Of long lists, so many of the newest.
const MOST: usize = 1000;
/// In place of a secret.
const REMOVED: &str = "[removed]";

#[derive(Debug, Subcommand)]
pub(super) enum SupportCommand {
    /// Gathers it into an archive, without secrets.
    Bundle(BundleArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
It holds what the API says of the coordinator, hosts (with what their agents say of them), VMs,
links, plans, migrations and the end of the audit log, and no tokens, keys or passwords. It does
hold the names and addresses of hosts, VMs and people: read it before you give it away. What the
token may not see is left out, and the manifest says so.
The coordinator's log is not in it: journalctl -u novaferry-coordinator --since -1h

Example:
  novaferry support bundle bundle.tar.gz")]
pub(super) struct BundleArgs {
    /// The file to make; it must not be there.
    #[arg(value_name = "FILE.tar.gz")]
    file: PathBuf,
}

/// A part: its name, where the API has it, and how it is read.
const PARTS: &[(&str, &str, Read)] = &[
    ("health", "/v1/health", Read::One),
    ("hosts", "/v1/hosts", Read::All),
    ("vms", "/v1/vms", Read::All),
    ("sites", "/v1/sites", Read::All),
    ("links", "/v1/links", Read::All),
    ("plans", "/v1/plans", Read::Newest),
    ("migrations", "/v1/migrations", Read::Newest),
    ("accuracy", "/v1/reports/accuracy", Read::One),
    ("audit-check", "/v1/audit/check", Read::One),
    ("audit", "/v1/audit", Read::End),
];

#[derive(Clone, Copy, Debug)]
enum Read {
    One,
    All,
    /// Of a list that begins with the newest.
    Newest,
    /// The newest of the audit log, which begins with the oldest.
    End,
}

impl Read {
    fn part(self, client: &Client, path: &str) -> Result<Value, Failure> {
        match self {
            Self::One => client.get(path),
            Self::All => client.list(path, None).map(Value::from),
            Self::Newest => client.list(path, Some(MOST)).map(Value::from),
            Self::End => {
                let check: Value = client.get("/v1/audit/check")?;
                let last = check["entries"].as_u64().unwrap_or(0);
                let after = last.saturating_sub(MOST as u64);
                client.list_after(path, Some(after.to_string()), Some(MOST)).map(Value::from)
            }
        }
    }
}

pub(super) fn bundle(client: &Client, args: BundleArgs, format: Format) -> Result<(), Failure> {
    let BundleArgs { file } = args;
    // First of all: what is gathered must have somewhere to go.
    let target = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
    let target = target.map_err(|error| failed(&file, &error, "name a file that is not there"))?;
    let gathered = gather(client);
    let written = gathered.and_then(|(manifest, parts)| {
        pack(target, &manifest, &parts)
            .map_err(|error| failed(&file, &error, "make room, or name another file"))
            .map(|()| manifest)
    });
    let manifest = written.inspect_err(|_failure| {
        // A part of a bundle is none.
        drop(std::fs::remove_file(&file));
    })?;
    let missing: Vec<_> = manifest["parts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|part| {
            Some(format!("{}: {}", part["name"].as_str()?, part["error"]["message"].as_str()?))
        })
        .collect();
    for part in missing {
        output::remark(&format!("left out: {part}"));
    }
    let words = format!("{} is made; read it before you give it away", file.display());
    said(format, &json!({ "file": file, "manifest": manifest }), &words);
    Ok(())
}

fn failed(file: &Path, error: &std::io::Error, advice: &str) -> Failure {
    Failure::new("files", format!("cannot write {}: {error}", file.display()), advice)
}

/// The manifest, and the parts that there are. Without the first, the coordinator does not answer at all.
fn gather(client: &Client) -> Result<(Value, Vec<(String, Value)>), Failure> {
    let (mut parts, mut said) = (Vec::new(), Vec::new());
    for (name, path, read) in PARTS {
        let part = match read.part(client, path) {
            Ok(part) => part,
            Err(failure) if parts.is_empty() => return Err(failure),
            Err(failure) => {
                said.push(json!({ "name": name, "error": failure }));
                continue;
            }
        };
        said.push(json!({ "name": name, "items": part.as_array().map(Vec::len) }));
        parts.push((format!("{name}.json"), clean(part)));
    }
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let at = model::Timestamp::from_second(i64::try_from(seconds).unwrap_or(i64::MAX)).ok();
    let manifest = json!({
        "made": at, "by": concat!("novaferry ", env!("CARGO_PKG_VERSION")), "url": client.url(), "parts": said,
    });
    Ok((clean(manifest), parts))
}

fn pack(file: std::fs::File, manifest: &Value, parts: &[(String, Value)]) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let first = ("manifest.json".to_owned(), manifest.clone());
    for (name, part) in std::iter::once(&first).chain(parts) {
        let mut text = serde_json::to_vec_pretty(part)?;
        text.push(b'\n');
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(seconds);
        archive.append_data(&mut header, format!("novaferry-support/{name}"), &text[..])?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.flush()?;
    file.sync_all()
}

/// The value without secrets. The API tells none; what people wrote into names and reasons may hold some.
pub(super) fn clean(value: Value) -> Value {
    const NAMES: &[&str] = &["token", "secret", "password", "passwd", "private_key", "authorization"];
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(name, value)| {
                    let lower = name.to_lowercase();
                    let secret =
                        NAMES.iter().any(|known| lower == *known || lower.ends_with(&format!("_{known}")));
                    let value = if secret && !value.is_null() { REMOVED.into() } else { clean(value) };
                    (name, value)
                })
                .collect::<Map<_, _>>(),
        ),
        Value::Array(items) => items.into_iter().map(clean).collect(),
        Value::String(text) => cut(&text).into(),
        other => other,
    }
}

/// The text without what looks like tokens, keys, or passwords of addresses.
fn cut(text: &str) -> String {
    if text.contains("PRIVATE KEY") {
        return REMOVED.to_owned();
    }
    let in_token = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(in_token) {
        let (before, from) = rest.split_at(at);
        let (word, after) = from.split_at(from.find(|c| !in_token(c)).unwrap_or(from.len()));
        out.push_str(before);
        let jwt = word.contains("eyJ") && word.matches('.').count() >= 2;
        let token = ["nfa1_", "nfj1_"].iter().any(|prefix| word.contains(prefix));
        out.push_str(if jwt || token { REMOVED } else { word });
        rest = after;
    }
    out.push_str(rest);
    without_password(&out)
}

/// `scheme://user:password@host` without the password, in which any character may be that is no space or quote.
fn without_password(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, from)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        let end = from.find(|c: char| c.is_whitespace() || "\"'".contains(c)).unwrap_or(from.len());
        let (authority, after) = from.split_at(end);
        match authority.rsplit_once('@') {
            Some((user, host)) if user.contains(':') => {
                let name = user.split(':').next().unwrap_or_default();
                out.push_str(&format!("{name}:{REMOVED}@{host}"));
            }
            _ => out.push_str(authority),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_cut_out_wherever_they_are() {
        let secret = "nfa1_abcDEF-123";
        let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl";
        for text in [
            secret.to_owned(),
            format!("Bearer {secret}"),
            format!("token={secret}, and more"),
            format!("it was {jwt}."),
            format!("jwt:{jwt}"),
            "-----BEGIN PRIVATE KEY-----\nnfa1_\n".to_owned(),
        ] {
            let cut = clean(json!([{ "reason": text }])).to_string();
            assert!(cut.contains(REMOVED) && !cut.contains("abcDEF") && !cut.contains("eyJ"), "{cut}");
            assert!(!cut.contains("BEGIN"), "{cut}");
        }
        for url in ["postgres://u:hush@db/x", "at postgres://u:hu/hush@db?x", "nbd://u:h#hush@db/a, 'x'"] {
            let cut = clean(url.into()).to_string();
            assert!(cut.contains("u:[removed]@db") && !cut.contains("hush"), "{cut}");
        }
        let named =
            json!({ "token": "x", "api_token": 5, "Auth_Secret": ["x"], "password": null, "tokens": 3 });
        let cut = json!({
            "token": REMOVED, "api_token": REMOVED, "Auth_Secret": REMOVED, "password": null, "tokens": 3
        });
        assert_eq!(clean(named), cut);
    }

    #[test]
    fn all_else_stays_as_it_is() {
        let value = json!({
            "name": "web-1.example", "at": "2026-05-01T06:00:00Z", "size": 5, "none": null, "yes": true,
            "url": "https://coordinator.example:7443/v1", "by": "admin@example.com", "text": "a: b, ünï – 1.2.3",
        });
        assert_eq!(clean(value.clone()), value);
    }
}
