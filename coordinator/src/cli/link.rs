//! `link` and `site`: the networks between sites.

use clap::{Args, Subcommand};
use model::link::{Kind, Link, Price, schedule};
use serde_json::{Value, json};

use super::detail::fields;
use super::near::{Among, suggest};
use super::show::{Column, ListArgs, list, said, text};
use super::units::{micros, rate, speed, when};
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
    #[command(after_help = "Example:\n  novaferry link list --sort rtt --columns link,state,rtt,rate")]
    List(ListArgs),
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
    List(ListArgs),
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

const LINKS: &[Column] = &[
    Column::new("LINK", |link| link["name"].clone()),
    Column::new("BETWEEN", |link| ends(link).into()),
    Column::new("KIND", |link| link["kind"].clone()),
    Column::new("NETWORK", |link| link["network"].clone()),
    Column::new("STATE", |link| link["state"].clone()),
    Column::new("RTT", |link| link["measured"]["rtt_us"].clone()).shown(milliseconds),
    Column::new("LOSS", |link| link["measured"]["loss_ppm"].clone()).shown(percents),
    Column::new("RATE", |link| link["measured"]["rate"].clone()).shown(carried),
    Column::new("PRICE/GB", |link| json!([link["price"]["per_gb_micros"], link["price"]["currency"]]))
        .shown(price),
    Column::new("OPEN", |link| if link["open"] == true { "yes" } else { "no" }.into()),
];

const SITES: &[Column] = &[
    Column::new("SITE", |site| site["name"].clone()),
    Column::new("HOSTS", |site| site["hosts"].clone()),
    Column::new("LINKS", |site| {
        let links = site["links"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
        links.join(", ").into()
    }),
];

/// Links with names like one that there is not.
fn missing(client: &Client, link: &model::Name) -> impl Fn(Failure) -> Failure {
    move |failure| suggest(client, failure, &[(Among::Links, link.as_str())])
}

pub(super) fn link(client: &Client, command: LinkCommand, format: Format) -> Result<(), Failure> {
    match command {
        LinkCommand::Add(AddArgs { link: name, between: Between(sites), what }) => {
            let mut link = Link::new(name, sites);
            what.over(&mut link);
            let added: Value = client.post("/v1/links", &link)?;
            said(format, &added, &format!("{} joins {} and {}", link.name, link.sites[0], link.sites[1]));
        }
        LinkCommand::List(shape) => shape.print(format, client.list("/v1/links", None)?, LINKS)?,
        LinkCommand::Show { link } => {
            let mut shown: Value =
                client.get(&format!("/v1/links/{link}")).map_err(missing(client, &link))?;
            let probes = client.list(&format!("/v1/links/{link}/measurements"), Some(20))?;
            if format == Format::Text {
                show(&shown, &probes);
            } else {
                shown["measurements"] = probes.into();
                output::value(format, &shown);
            }
        }
        LinkCommand::Set(SetArgs { link: name, between, what }) => {
            let path = format!("/v1/links/{name}");
            let shown: Value = client.get(&path).map_err(missing(client, &name))?;
            let mut link = declared(&shown)?;
            if let Some(Between(sites)) = between {
                link.sites = sites;
            }
            what.over(&mut link);
            let changed: Value = client.put(&path, &link)?;
            said(format, &changed, &format!("{name} is changed"));
        }
        LinkCommand::Remove { link } => {
            client.delete::<Value>(&format!("/v1/links/{link}")).map_err(missing(client, &link))?;
            said(format, &json!({ "removed": link }), &format!("{link} is removed"));
        }
        LinkCommand::Probe { link } => {
            let probed: Value = client
                .post(&format!("/v1/links/{link}/probe"), &json!({}))
                .map_err(missing(client, &link))?;
            let [rtt, loss, rate] = figures(&probed["measured"]);
            let words = format!("{link} is {}: {rtt}, {loss} lost, {rate}", text(&probed["state"]));
            said(format, &probed, &words);
        }
    }
    Ok(())
}

/// A link for people, and its last measurements.
fn show(link: &Value, probes: &[Value]) {
    let plain = link.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let all: Vec<_> = plain.map(|(name, value)| (name.as_str(), text(value))).collect();
    fields(&all);
    if probes.is_empty() {
        return;
    }
    output::line("");
    list(Format::Text, probes, &["AT", "RTT", "JITTER", "LOSS", "RATE"], |probe| {
        let measured = &probe["measured"];
        if measured.is_null() {
            return vec![when(&probe["at"]), "nothing comes through".to_owned()];
        }
        let jitter = milliseconds(&measured["jitter_us"]);
        let [rtt, loss, rate] = figures(measured);
        vec![when(&probe["at"]), rtt, jitter, loss, rate]
    });
}

pub(super) fn site(client: &Client, command: SiteCommand, format: Format) -> Result<(), Failure> {
    match command {
        SiteCommand::List(shape) => shape.print(format, client.list("/v1/sites", None)?, SITES),
    }
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

/// The sites that it joins.
fn ends(link: &Value) -> String {
    link["sites"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(",")
}

fn figures(measured: &Value) -> [String; 3] {
    [milliseconds(&measured["rtt_us"]), percents(&measured["loss_ppm"]), carried(&measured["rate"])]
}

fn percents(millionths: &Value) -> String {
    let part = millionths.as_u64();
    part.map_or_else(|| "-".to_owned(), |ppm| format!("{}.{:02}%", ppm / 10_000, ppm % 10_000 / 100))
}

/// Of an amount and its currency.
fn price(price: &Value) -> String {
    match price[0].as_u64() {
        None | Some(0) => "-".to_owned(),
        Some(micros) => format!("{} {}", amount(micros), text(&price[1])),
    }
}

fn carried(rate: &Value) -> String {
    rate.as_u64().map_or_else(|| "-".to_owned(), speed)
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
