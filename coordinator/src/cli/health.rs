//! `health` and `version`: whether the coordinator runs, and which release.

use serde_json::{Value, json};

use super::show::{said, text};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Format};

/// This program's release.
const OURS: &str = env!("CARGO_PKG_VERSION");

/// What the coordinator says of itself, to anybody.
fn asked(client: &Client) -> Result<Value, Failure> {
    client.get("/v1/health")
}

pub(super) fn health(client: &Client, format: Format) -> Result<(), Failure> {
    let health = asked(client)?;
    let (status, version) = (text(&health["status"]), text(&health["version"]));
    let mut shown = health;
    shown["url"] = client.url().into();
    said(format, &shown, &format!("{}: {status}, release {version}", client.url()));
    warn(&version);
    if status == "ok" {
        return Ok(());
    }
    let what = format!("the coordinator is {status}");
    Err(Failure::new("unhealthy", what, "look into its log: journalctl -u novaferry-coordinator"))
}

/// Of both; without a coordinator its own is said all the same.
pub(super) fn version(client: Result<Client, Failure>, format: Format) {
    let asked = client.and_then(|client| asked(&client));
    let theirs = asked.as_ref().map(|health| text(&health["version"]));
    let shown = json!({
        "client": OURS,
        "coordinator": theirs.as_ref().ok(),
        "error": asked.as_ref().err(),
    });
    if format != Format::Text {
        return output::value(format, &shown);
    }
    output::line(&format!("client       {OURS}"));
    match &theirs {
        Ok(version) => {
            output::line(&format!("coordinator  {}", output::plain(version)));
            warn(version);
        }
        Err(failure) => {
            output::line("coordinator  -");
            output::remark(&format!("note: {}", failure.message));
        }
    }
}

/// Says so when the releases are too far from each other.
fn warn(theirs: &str) {
    if !near(OURS, theirs) {
        output::remark(&format!(
            "warning: the coordinator's release is {theirs}, this one is {OURS}; use releases that are one apart at most"
        ));
    }
}

/// Whether two releases are one apart at most. While the first number is 0, the second counts releases, and after that,
/// too; releases with different first numbers are apart.
pub(super) fn near(one: &str, other: &str) -> bool {
    let parts = |text: &str| -> Option<(u64, u64)> {
        let mut parts = text.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    match (parts(one), parts(other)) {
        (Some(one), Some(other)) => one.0 == other.0 && one.1.abs_diff(other.1) <= 1,
        _ => one == other,
    }
}
