//! Links: the network paths between two sites; what operators say of them, and what was measured.

mod health;
mod schedule;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Name;
pub use schedule::{InvalidSchedule, schedule};

/// What a link is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = LinkKind))]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A network within a site, or between sites of one owner.
    Lan,
    /// The internet.
    #[default]
    Internet,
    /// A VPN over the internet.
    Vpn,
    /// AWS Direct Connect.
    DirectConnect,
    /// Azure ExpressRoute.
    ExpressRoute,
    /// Google Cloud Interconnect.
    Interconnect,
    /// Oracle Cloud FastConnect.
    FastConnect,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Lan,
        Self::Internet,
        Self::Vpn,
        Self::DirectConnect,
        Self::ExpressRoute,
        Self::Interconnect,
        Self::FastConnect,
    ];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Internet => "internet",
            Self::Vpn => "vpn",
            Self::DirectConnect => "direct-connect",
            Self::ExpressRoute => "express-route",
            Self::Interconnect => "interconnect",
            Self::FastConnect => "fast-connect",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A kind of link that there is not.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a link is lan, internet, vpn, direct-connect, express-route, interconnect or fast-connect")]
pub struct InvalidKind;

impl FromStr for Kind {
    type Err = InvalidKind;

    fn from_str(text: &str) -> Result<Self, InvalidKind> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(InvalidKind)
    }
}

/// What the use of a link costs. Millionths of the currency, so that sums are exact.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = LinkPrice))]
#[serde(default, deny_unknown_fields)]
pub struct Price {
    /// ISO 4217, such as `USD`; empty when it costs nothing.
    pub currency: String,
    /// Millionths for each 10⁹ bytes.
    pub per_gb_micros: u64,
    /// Millionths for each hour in which it is used.
    pub per_hour_micros: u64,
}

/// Minutes of a week in which a link may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = LinkWindow))]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// First minute, counted from Monday 00:00 UTC: 0 to 10,079.
    pub from: u16,
    /// The minute after the last: 1 to 10,080, more than `from`.
    pub to: u16,
}

/// What operators say of a link.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Its name.
    pub name: Name,
    /// What it is.
    #[serde(default)]
    pub kind: Kind,
    /// What it joins; the same site twice for the network within one.
    pub sites: [Name; 2],
    /// The network that hosts' addresses on it are marked with (`NETWORK=HOST:PORT`); addresses without a mark if none.
    #[serde(default)]
    pub network: Option<Name>,
    /// What it can carry, bytes a second.
    #[serde(default)]
    pub capacity: Option<u64>,
    /// What all migrations on it may use together, bytes a second.
    #[serde(default)]
    pub cap: Option<u64>,
    /// What it costs.
    #[serde(default)]
    pub price: Price,
    /// When it may be used; always if empty.
    #[serde(default)]
    pub schedule: Vec<Window>,
    /// Migrations that may use it at once; no limit if none.
    #[serde(default)]
    pub most_migrations: Option<u32>,
}

/// Longest schedule: a window for every hour of a week.
const MOST_WINDOWS: usize = 168;

/// A link that cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidLink {
    /// A window that is none.
    #[error("minutes {from} to {to} are no window of a week; from is 0 to 10079, and to is more than it, at most 10080", from = .0.from, to = .0.to)]
    Window(Window),
    /// Too many of them.
    #[error("a schedule has {MOST_WINDOWS} windows at most")]
    Windows,
    /// Nothing could use it.
    #[error("{0} is 0: leave it out if there is no limit, or remove the link")]
    Zero(&'static str),
    /// A currency that is none.
    #[error("a currency is three capital letters, such as USD")]
    Currency,
    /// A price without a currency.
    #[error("a price needs its currency, such as USD")]
    NoCurrency,
}

impl Link {
    /// A link of which nothing is known but what it joins.
    #[must_use]
    pub fn new(name: Name, sites: [Name; 2]) -> Self {
        Self {
            name,
            kind: Kind::default(),
            sites,
            network: None,
            capacity: None,
            cap: None,
            price: Price::default(),
            schedule: Vec::new(),
            most_migrations: None,
        }
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), InvalidLink> {
        let Self { capacity, cap, price, schedule, most_migrations, .. } = self;
        if schedule.len() > MOST_WINDOWS {
            return Err(InvalidLink::Windows);
        }
        if let Some(window) = schedule.iter().find(|window| !window.is_valid()) {
            return Err(InvalidLink::Window(*window));
        }
        let numbers =
            [("capacity", *capacity), ("cap", *cap), ("most_migrations", most_migrations.map(u64::from))];
        if let Some((name, _)) = numbers.into_iter().find(|(_, number)| *number == Some(0)) {
            return Err(InvalidLink::Zero(name));
        }
        let free = price.per_gb_micros == 0 && price.per_hour_micros == 0;
        match price.currency.as_str() {
            "" if free => Ok(()),
            "" => Err(InvalidLink::NoCurrency),
            code if code.len() == 3 && code.bytes().all(|c| c.is_ascii_uppercase()) => Ok(()),
            _ => Err(InvalidLink::Currency),
        }
    }

    /// Whether it joins these two sites, in whatever order.
    #[must_use]
    pub fn joins(&self, one: &Name, other: &Name) -> bool {
        let [a, b] = &self.sites;
        (a, b) == (one, other) || (a, b) == (other, one)
    }
}

/// What a probe found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = LinkMeasured))]
pub struct Measured {
    /// When.
    pub at: Timestamp,
    /// Median round trip, microseconds.
    pub rtt_us: u64,
    /// Mean deviation of round trips, microseconds.
    pub jitter_us: u64,
    /// Lost of a million.
    pub loss_ppm: u32,
    /// What went through, bytes a second; none when it was not tried.
    pub rate: Option<u64>,
}

/// Whether a link can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = LinkState))]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nothing was measured yet.
    #[default]
    Unknown,
    /// As it should be.
    Up,
    /// Slower or lossier than it was.
    Degraded,
    /// Nothing comes through.
    Down,
}

impl State {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// A link as it stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = LinkStanding))]
pub struct Standing {
    /// What operators say.
    #[serde(flatten)]
    pub link: Link,
    /// Whether it can be used.
    pub state: State,
    /// Since when.
    pub since: Option<Timestamp>,
    /// What was measured last.
    pub measured: Option<Measured>,
}

impl Standing {
    /// Something comes through, and it may be used now.
    #[must_use]
    pub fn is_usable(&self, now: Timestamp) -> bool {
        self.state != State::Down && self.link.is_open(now)
    }

    /// What one migration can expect, bytes a second: what was measured, or else what it can carry, and no more than the
    /// cap. None if nobody knows.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        let known = self.measured.as_ref().and_then(|measured| measured.rate).or(self.link.capacity);
        match (known, self.link.cap) {
            (Some(known), Some(cap)) => Some(known.min(cap)),
            (known, cap) => known.or(cap),
        }
    }
}
