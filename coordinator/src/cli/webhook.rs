//! `webhook`: whom to tell what happens.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use model::webhook::Webhook;
use serde_json::{Value, json};

use super::detail::fields;
use super::near::{Among, suggest};
use super::show::{Column, ListArgs, said, text};
use super::units::when;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Format};

#[derive(Debug, Subcommand)]
pub(super) enum WebhookCommand {
    /// Adds one, and shows its secret this once.
    #[command(after_help = "\
Each event is a POST of JSON with the fields type, timestamp and data, signed as Standard Webhooks 1 says
(https://www.standardwebhooks.com), until the receiver answers with a status of 200 to 299. An event may come twice,
with the same webhook-id. `novaferry webhook topics` shows what is told.

Examples:
  novaferry webhook add chat --to https://hooks.example/novaferry --on migration.completed,host.lost
  novaferry webhook add all --to https://receiver.internal:8443/ --receiver-ca internal-ca.pem")]
    Add(AddArgs),
    /// Lists them.
    #[command(after_help = "Example:\n  novaferry webhook list --columns name,failing,error")]
    List(ListArgs),
    /// Shows one, and how its deliveries go.
    Show {
        /// Which.
        webhook: model::Name,
    },
    /// Changes one; what is not named stays. What waits is tried at once.
    #[command(after_help = "Example:\n  novaferry webhook set chat --on all --resume")]
    Set(SetArgs),
    /// Sends an event of the type webhook.test at once.
    Test {
        /// Which.
        webhook: model::Name,
    },
    /// Gives one another secret, and shows it this once. For a day events are signed under both.
    Rotate {
        /// Which.
        webhook: model::Name,
    },
    /// Forgets one, and what it is owed.
    Remove {
        /// Which.
        webhook: model::Name,
    },
    /// Lists what is told.
    Topics,
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// Its name.
    webhook: model::Name,
    /// Where events are posted.
    #[arg(long, value_name = "URL")]
    to: String,
    #[command(flatten)]
    what: WhatArgs,
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// Which.
    webhook: model::Name,
    /// Where events are posted.
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    #[command(flatten)]
    what: WhatArgs,
}

#[derive(Debug, Args)]
struct WhatArgs {
    /// What it is told, divided by commas, such as migration,host.lost, or `all`.
    #[arg(long, value_name = "TOPICS", value_delimiter = ',')]
    on: Option<Vec<String>>,
    /// File with the receiver's CA (PEM), if it is none of the public ones, or `public`.
    #[arg(long, value_name = "FILE")]
    receiver_ca: Option<PathBuf>,
    /// Send nothing until it is resumed; the newest 100,000 events wait meanwhile.
    #[arg(long, conflicts_with = "resume")]
    pause: bool,
    /// Send again.
    #[arg(long)]
    resume: bool,
}

impl WhatArgs {
    /// What is named, over what was said before.
    fn over(self, webhook: &mut Webhook) -> Result<(), Failure> {
        let Self { on, receiver_ca, pause, resume } = self;
        if let Some(on) = on {
            webhook.on = if on == ["all"] { Vec::new() } else { on };
        }
        if let Some(path) = receiver_ca {
            webhook.ca = if path.as_os_str() == "public" { None } else { Some(read(&path)?) };
        }
        webhook.paused = (webhook.paused || pause) && !resume;
        Ok(())
    }
}

fn read(path: &std::path::Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| {
        let what = format!("cannot read {}: {error}", path.display());
        Failure::new("usage", what, "name a file with the receiver's CA as PEM").usage()
    })
}

const WEBHOOKS: &[Column] = &[
    Column::new("NAME", |webhook| webhook["name"].clone()),
    Column::new("URL", |webhook| webhook["url"].clone()),
    Column::new("ON", |webhook| topics(webhook).into()),
    Column::new("STATE", |webhook| state(webhook).into()),
    Column::new("WAITING", |webhook| webhook["waiting"].clone()),
    Column::new("DELIVERED", |webhook| webhook["delivered"].clone()).shown(when),
    Column::new("FAILING", |webhook| webhook["failing"].clone()).shown(when),
    Column::new("ERROR", |webhook| webhook["error"].clone()),
];

fn topics(webhook: &Value) -> String {
    let topics: Vec<_> = webhook["on"].as_array().into_iter().flatten().map(text).collect();
    if topics.is_empty() { "all".to_owned() } else { topics.join(",") }
}

fn state(webhook: &Value) -> &'static str {
    match (webhook["paused"] == true, webhook["failing"].is_null()) {
        (true, _) => "paused",
        (false, true) => "good",
        (false, false) => "failing",
    }
}

/// Webhooks with names like one that there is not.
fn missing(client: &Client, webhook: &model::Name) -> impl Fn(Failure) -> Failure {
    move |failure| suggest(client, failure, &[(Among::Webhooks, webhook.as_str())])
}

pub(super) fn webhook(client: &Client, command: WebhookCommand, format: Format) -> Result<(), Failure> {
    match command {
        WebhookCommand::Add(AddArgs { webhook: name, to: url, what }) => {
            let mut webhook = Webhook { name, url, on: Vec::new(), ca: None, paused: false };
            what.over(&mut webhook)?;
            let added: Value = client.post("/v1/webhooks", &webhook)?;
            said(format, &added, &text(&added["secret"]));
        }
        WebhookCommand::List(shape) => shape.print(format, client.list("/v1/webhooks", None)?, WEBHOOKS)?,
        WebhookCommand::Show { webhook } => {
            let shown: Value =
                client.get(&format!("/v1/webhooks/{webhook}")).map_err(missing(client, &webhook))?;
            match format {
                Format::Text => show(&shown),
                _ => output::value(format, &shown),
            }
        }
        WebhookCommand::Set(SetArgs { webhook: name, to, what }) => {
            let path = format!("/v1/webhooks/{name}");
            let shown: Value = client.get(&path).map_err(missing(client, &name))?;
            let mut webhook = declared(&shown)?;
            if let Some(url) = to {
                webhook.url = url;
            }
            what.over(&mut webhook)?;
            let changed: Value = client.put(&path, &webhook)?;
            said(format, &changed, &format!("{name} is changed"));
        }
        WebhookCommand::Test { webhook } => {
            let path = format!("/v1/webhooks/{webhook}/test");
            let tested: Value = client.post(&path, &json!({})).map_err(missing(client, &webhook))?;
            if tested["taken"] != true {
                let what = format!("{webhook}'s receiver did not take it: {}", text(&tested["error"]));
                return Err(Failure::new("webhook", what, "see `novaferry webhook set --help`"));
            }
            said(format, &tested, &format!("{webhook}'s receiver took it"));
        }
        WebhookCommand::Rotate { webhook } => {
            let path = format!("/v1/webhooks/{webhook}/rotate");
            let rotated: Value = client.post(&path, &json!({})).map_err(missing(client, &webhook))?;
            said(format, &rotated, &text(&rotated["secret"]));
        }
        WebhookCommand::Remove { webhook } => {
            client.delete::<Value>(&format!("/v1/webhooks/{webhook}")).map_err(missing(client, &webhook))?;
            said(format, &json!({ "removed": webhook }), &format!("{webhook} is removed"));
        }
        WebhookCommand::Topics => {
            for topic in model::webhook::topics() {
                said(format, &json!({ "topic": topic }), &topic);
            }
        }
    }
    Ok(())
}

/// What operators said, of what is shown.
fn declared(shown: &Value) -> Result<Webhook, Failure> {
    let of = ["name", "url", "on", "ca", "paused"].map(|field| (field.to_owned(), shown[field].clone()));
    serde_json::from_value(Value::Object(of.into_iter().collect())).map_err(|error| {
        Failure::new("answer", format!("the coordinator's answer makes no sense: {error}"), "is it older?")
    })
}

/// A webhook for people.
fn show(webhook: &Value) {
    let mut all = vec![
        ("name", text(&webhook["name"])),
        ("url", text(&webhook["url"])),
        ("on", topics(webhook)),
        ("state", state(webhook).to_owned()),
        ("waiting", text(&webhook["waiting"])),
    ];
    let times = ["delivered", "failing", "retry"];
    all.extend(times.into_iter().filter(|of| !webhook[*of].is_null()).map(|of| (of, when(&webhook[of]))));
    let rest = ["failures", "error", "lost"];
    let some = |of: &&str| !webhook[*of].is_null() && webhook[*of] != 0;
    all.extend(rest.into_iter().filter(some).map(|of| (of, text(&webhook[of]))));
    if !webhook["ca"].is_null() {
        all.push(("ca", "its own".to_owned()));
    }
    fields(&all);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_operators_said_is_found_again_in_what_is_shown() {
        let webhook = Webhook {
            name: "chat".parse().unwrap(),
            url: "https://example.org".to_owned(),
            on: vec!["plan".to_owned()],
            ca: None,
            paused: true,
        };
        let mut shown = serde_json::to_value(&webhook).unwrap();
        shown["failing"] = "2026-01-01T00:00:00Z".into();
        shown["waiting"] = 3.into();
        assert_eq!(declared(&shown).unwrap(), webhook);
        assert_eq!((state(&shown), topics(&shown)), ("paused", "plan".to_owned()));
    }
}
