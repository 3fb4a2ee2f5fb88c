//! `link` and `site`: the networks between sites.

use clap::{Args, Subcommand};
use model::link::{Kind, Link, Price, schedule};
use serde_json::{Value, json};

use super::show::{list, said, text};
use super::units::{micros, rate};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Format};

#[derive(Debug, Subcommand)]
pub(super) enum LinkCommand {
    /// Says that there is a link between two sites.
    #[command(after_help = "\
Hosts have their address on a network in agent.toml: [coordinator] advertise = [\"mpls=10.9.0.5:7440\"].

Example:
  novaferry link add ber-par --between berlin,paris --kind vpn --network mpls --capacity 1Gbit \\
    --cost-per-gb 0.09 --currency USD --schedule \"Mon-Fri 20:00-06:00\"")]
    Add(AddArgs),
    /// Lists the links, with what was measured of them.
    List,
    /// Shows one link and its last measurements.
    Show {
        /// Which.
        link: model::Name,
    },
    /// Changes what is said of a link; what is not named stays.
    #[command(after_help = "Example:\n  novaferry link set ber-par --cap 200Mbit --schedule always")]
    Set(SetArgs),
    /// Forgets a link. Migrations that use it go over another.
    Remove {
        /// Which.
        link: model::Name,
    },
    /// Measures a link at once, its rate, too.
    Probe {
        /// Which.
        link: model::Name,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SiteCommand {
    /// Lists the sites that hosts and links name.
    List,
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// Its name.
    link: model::Name,
    /// The two sites; the same twice for the network within one.
    #[arg(long, value_name = "SITE,SITE", value_parser = between)]
    between: Between,
    #[command(flatten)]
    what: WhatArgs,
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// Which.
    link: model::Name,
    /// The two sites.
    #[arg(long, value_name = "SITE,SITE", value_parser = between)]
    between: Option<Between>,
    #[command(flatten)]
    what: WhatArgs,
}

/// Two sites.
#[derive(Clone, Debug)]
struct Between([model::Name; 2]);

/// A value, or the word that takes it away.
#[derive(Clone, Debug)]
enum Maybe<T> {
    None,
    Some(T),
}

impl<T> From<Maybe<T>> for Option<T> {
    fn from(maybe: Maybe<T>) -> Self {
        match maybe {
            Maybe::None => None,
            Maybe::Some(value) => Some(value),
        }
    }
}

fn maybe<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Maybe<T>, String> {
    if text == "none" { Ok(Maybe::None) } else { parse(text).map(Maybe::Some) }
}

#[derive(Debug, Args)]
struct WhatArgs {
    /// lan, internet, vpn, direct-connect, express-route, interconnect or fast-connect.
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
    /// The network that hosts' addresses on it are marked with, or `none` for those without a mark.
    #[arg(long, value_name = "NETWORK", value_parser = |text: &str| maybe(text, name))]
    network: Option<Maybe<model::Name>>,
    /// What it can carry, such as 1Gbit or 50MB (a second), or `none` if that is not known.
    #[arg(long, value_name = "RATE", value_parser = |text: &str| maybe(text, rate))]
    capacity: Option<Maybe<u64>>,
    /// What all migrations on it may use together, or `none`.
    #[arg(long, value_name = "RATE", value_parser = |text: &str| maybe(text, rate))]
    cap: Option<Maybe<u64>>,
    /// Price of each 10⁹ bytes, such as 0.09.
    #[arg(long, value_name = "AMOUNT", value_parser = micros)]
    cost_per_gb: Option<u64>,
    /// Price of each hour in which it is used, such as 1.50.
    #[arg(long, value_name = "AMOUNT", value_parser = micros)]
    cost_per_hour: Option<u64>,
    /// Of the prices, such as USD.
    #[arg(long, value_name = "CODE")]
    currency: Option<String>,
    /// When it may be used, in UTC, such as "Mon-Fri 20:00-06:00, Sat 00:00-24:00", or `always`.
    #[arg(long, value_name = "HOURS", value_parser = hours)]
    schedule: Option<Hours>,
    /// Migrations that may use it at once, or `none` for no limit.
    #[arg(long, value_name = "NUMBER", value_parser = |text: &str| maybe(text, number))]
    most_migrations: Option<Maybe<u32>>,
}

/// Windows of a schedule.
#[derive(Clone, Debug)]
struct Hours(Vec<model::link::Window>);

fn between(text: &str) -> Result<Between, String> {
    let (one, other) = text.split_once(',').ok_or("write two sites, such as berlin,paris")?;
    Ok(Between([name(one)?, name(other)?]))
}

fn name(text: &str) -> Result<model::Name, String> {
    text.trim().parse().map_err(|error: model::name::InvalidName| error.to_string())
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "write a number from 1, or none".to_owned())
}

fn hours(text: &str) -> Result<Hours, String> {
    if text == "always" {
        return Ok(Hours(Vec::new()));
    }
    schedule(text).map(Hours).map_err(|error| error.to_string())
}

impl WhatArgs {
    /// What is named, over what was said before.
    fn over(self, link: &mut Link) {
        let Self {
            kind,
            network,
            capacity,
            cap,
            cost_per_gb,
            cost_per_hour,
            currency,
            schedule,
            most_migrations,
        } = self;
        if let Some(kind) = kind {
            link.kind = kind;
        }
        if let Some(network) = network {
            link.network = network.into();
        }
        if let Some(capacity) = capacity {
            link.capacity = capacity.into();
        }
        if let Some(cap) = cap {
            link.cap = cap.into();
        }
        if let Some(Hours(windows)) = schedule {
            link.schedule = windows;
        }
        if let Some(most) = most_migrations {
            link.most_migrations = most.into();
        }
        let Price { currency: before, per_gb_micros, per_hour_micros } = link.price.clone();
        link.price = Price {
            currency: currency.unwrap_or(before),
            per_gb_micros: cost_per_gb.unwrap_or(per_gb_micros),
            per_hour_micros: cost_per_hour.unwrap_or(per_hour_micros),
        };
    }
}

pub(super) fn link(client: &Client, command: LinkCommand, format: Format) -> Result<(), Failure> {
    match command {
        LinkCommand::Add(AddArgs { link: name, between: Between(sites), what }) => {
            let mut link = Link::new(name, sites);
            what.over(&mut link);
            let added: Value = client.post("/v1/links", &link)?;
            said(format, &added, &format!("{} joins {} and {}", link.name, link.sites[0], link.sites[1]));
        }
        LinkCommand::List => {
            let links = client.list("/v1/links", None)?;
            let head =
                ["LINK", "BETWEEN", "KIND", "NETWORK", "STATE", "RTT", "LOSS", "RATE", "PRICE/GB", "OPEN"];
            list(format, &links, &head, row);
        }
        LinkCommand::Show { link } => {
            let shown: Value = client.get(&format!("/v1/links/{link}"))?;
            let probes = client.list(&format!("/v1/links/{link}/measurements"), Some(20))?;
            match format {
                Format::Json => {
                    let mut shown = shown;
                    shown["measurements"] = probes.into();
                    output::json(&shown);
                }
                Format::Text => {
                    let fields = shown.as_object().into_iter().flatten();
                    let plain = fields.filter(|(_, value)| !value.is_null());
                    output::table(
                        &["FIELD", "VALUE"],
                        plain.map(|(name, value)| vec![name.clone(), text(value)]),
                    );
                    list(format, &probes, &["AT", "RTT", "JITTER", "LOSS", "RATE"], |probe| {
                        let measured = &probe["measured"];
                        if measured.is_null() {
                            return vec![text(&probe["at"]), "nothing comes through".to_owned()];
                        }
                        let jitter = milliseconds(&measured["jitter_us"]);
                        let [rtt, loss, rate] = figures(measured);
                        vec![text(&probe["at"]), rtt, jitter, loss, rate]
                    });
                }
            }
        }
        LinkCommand::Set(SetArgs { link: name, between, what }) => {
            let path = format!("/v1/links/{name}");
            let shown: Value = client.get(&path)?;
            let mut link = declared(&shown)?;
            if let Some(Between(sites)) = between {
                link.sites = sites;
            }
            what.over(&mut link);
            let changed: Value = client.put(&path, &link)?;
            said(format, &changed, &format!("{name} is changed"));
        }
        LinkCommand::Remove { link } => {
            client.delete::<Value>(&format!("/v1/links/{link}"))?;
            said(format, &json!({ "removed": link }), &format!("{link} is removed"));
        }
        LinkCommand::Probe { link } => {
            let probed: Value = client.post(&format!("/v1/links/{link}/probe"), &json!({}))?;
            let [rtt, loss, rate] = figures(&probed["measured"]);
            let words = format!("{link} is {}: {rtt}, {loss} lost, {rate}", text(&probed["state"]));
            said(format, &probed, &words);
        }
    }
    Ok(())
}

pub(super) fn site(client: &Client, command: SiteCommand, format: Format) -> Result<(), Failure> {
    match command {
        SiteCommand::List => {
            let sites = client.list("/v1/sites", None)?;
            list(format, &sites, &["SITE", "HOSTS", "LINKS"], |site| {
                let links = site["links"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
                vec![text(&site["name"]), text(&site["hosts"]), links.join(", ")]
            });
        }
    }
    Ok(())
}

/// What operators said, out of all that is shown.
fn declared(shown: &Value) -> Result<Link, Failure> {
    let known = serde_json::to_value(Link::new(
        "x".parse().map_err(unlikely)?,
        ["x".parse().map_err(unlikely)?, "x".parse().map_err(unlikely)?],
    ));
    let known = known.map_err(unlikely)?;
    let fields = known.as_object().into_iter().flatten().map(|(name, _)| (name.clone(), shown[name].clone()));
    serde_json::from_value(Value::Object(fields.collect())).map_err(unlikely)
}

fn unlikely(error: impl std::fmt::Display) -> Failure {
    let what = format!("the answer is no link: {error}");
    Failure::new("answer", what, "use the same release of the coordinator and the command")
}

fn row(link: &Value) -> Vec<String> {
    let [rtt, loss, rate] = figures(&link["measured"]);
    let price = link["price"]["per_gb_micros"].as_u64().unwrap_or(0);
    let price = match price {
        0 => "-".to_owned(),
        micros => format!("{} {}", amount(micros), text(&link["price"]["currency"])),
    };
    let ends = link["sites"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    vec![
        text(&link["name"]),
        ends.join(","),
        text(&link["kind"]),
        text(&link["network"]),
        text(&link["state"]),
        rtt,
        loss,
        rate,
        price,
        if link["open"] == true { "yes" } else { "no" }.to_owned(),
    ]
}

fn figures(measured: &Value) -> [String; 3] {
    let loss =
        measured["loss_ppm"].as_u64().map(|ppm| format!("{}.{:02}%", ppm / 10_000, ppm % 10_000 / 100));
    let rate =
        measured["rate"].as_u64().map(|rate| format!("{}.{} MB/s", rate / 1_000_000, rate / 100_000 % 10));
    let dash = || "-".to_owned();
    [milliseconds(&measured["rtt_us"]), loss.unwrap_or_else(dash), rate.unwrap_or_else(dash)]
}

fn milliseconds(micros: &Value) -> String {
    let micros = micros.as_u64();
    micros.map_or_else(|| "-".to_owned(), |us| format!("{}.{:02} ms", us / 1000, us % 1000 / 10))
}

/// Millionths as an amount, without zeros at its end.
fn amount(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_shown_exactly() {
        for text in ["0.09", "12", "0.000001", "18446744073709.551615"] {
            assert_eq!(amount(micros(text).unwrap()), text);
        }
        assert_eq!(micros("0.10"), Ok(100_000));
        for bad in ["", ".", "1.", ".5", "0.0000001", "-1", "1,5", "1e3", "18446744073709.551616", "9e99"] {
            assert!(micros(bad).is_err(), "{bad}");
        }
        assert_eq!((rate("1Gbit"), rate("50MB"), rate("8000")), (Ok(125_000_000), Ok(50_000_000), Ok(8000)));
        for bad in ["0", "1", "x", "10Gbit/s/s", "-1MB", "99999999999999999Gbit"] {
            assert_eq!(rate(bad).is_err(), bad != "1", "{bad}");
        }
    }

    #[test]
    fn what_operators_said_is_found_again_in_what_is_shown() {
        let mut link = Link::new("l".parse().unwrap(), ["a".parse().unwrap(), "b".parse().unwrap()]);
        link.cap = Some(5);
        let mut shown = serde_json::to_value(&link).unwrap();
        shown["state"] = "up".into();
        shown["open"] = true.into();
        assert_eq!(declared(&shown).unwrap(), link);
    }
}
