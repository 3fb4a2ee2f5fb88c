//! Whether a bridge of the source and one of the destination are the same layer-2 network: only then does the guest's
//! announcement reach its neighbours after the move, and its connections go on.
//!
//! Nothing is sent to find out: a frame that a bridge does not carry proves nothing, and one that it does carry disturbs.
//! The two hosts compare what they know already ([`Segment`]):
//!
//! - the same, when one bridge has seen the other's own addresses, or both have seen the same neighbour;
//! - different, when the bridges have addresses in different networks, or the gateway of one address is two machines;
//! - otherwise it cannot be told, and people are told that.
//!
//! Addresses that software makes up (locally administered, virtual routers) prove nothing about a neighbour: the same one
//! is in many networks.

mod facts;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use hypervisor::specification::{NetworkBackend, NetworkDevice};
use serde::{Deserialize, Serialize};

use super::preflight::Finding;

pub use facts::segment;

/// Most bridges that a source describes; cards in others cannot be told about.
pub const MAX_SEGMENTS: usize = 8;
/// Most neighbours of one bridge. The lowest addresses are kept, so that both hosts keep the same ones.
pub const MAX_NEIGHBOURS: usize = 64;
/// Most networks and own addresses of one bridge.
const MAX_OWN: usize = 8;
/// Most of either that a finding names.
const MAX_NAMED: usize = 4;

/// An Ethernet address, `aa:bb:cc:dd:ee:ff`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Given to one card by its maker, so that two who saw it saw the same card. Not the addresses of virtual routers
    /// (RFC 5798), which have a maker's number.
    fn names_a_card(self) -> bool {
        let group_or_local = self.0[0] & 0b11;
        group_or_local == 0 && self.0[..3] != [0x00, 0x00, 0x5e] && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut octets = [0; 6];
        let mut groups = text.split(':');
        for octet in &mut octets {
            let group = groups.next().filter(|group| group.len() == 2);
            *octet = group
                .and_then(|group| u8::from_str_radix(group, 16).ok())
                .ok_or("an Ethernet address has six octets, aa:bb:cc:dd:ee:ff")?;
        }
        groups.next().map_or(Ok(Self(octets)), |_more| Err("an Ethernet address has six octets".to_owned()))
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// A network of the internet protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Prefix {
    /// An address in it.
    pub address: IpAddr,
    /// Bits that its addresses have in common.
    pub length: u8,
}

impl Prefix {
    /// Whether one contains the other; none when they are of different protocols.
    fn overlaps(self, other: Self) -> Option<bool> {
        let length = u32::from(self.length.min(other.length));
        let differing = match (self.address, other.address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            _ => return None,
        };
        Some(differing >= length)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// The router of a bridge's host, on that bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gateway {
    /// Its address.
    pub address: Ipv4Addr,
    /// Which card answers for it.
    pub mac: Mac,
}

/// What a host knows of one of its bridges without asking anybody.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Segment {
    /// Its name at that host.
    pub bridge: String,
    /// Networks that the host has an address of on it.
    pub prefixes: BTreeSet<Prefix>,
    /// Networks of the interface by which the host reaches the world: for people.
    pub host: BTreeSet<Prefix>,
    /// The host's router, when it is on the bridge.
    pub gateway: Option<Gateway>,
    /// The bridge's own addresses and its ports'.
    pub own: BTreeSet<Mac>,
    /// Who was seen on it.
    pub neighbours: BTreeSet<Mac>,
}

/// Whether two bridges are one network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// They are.
    Same,
    /// They are not: why.
    Differs(String),
    /// Nothing says so or otherwise: what is known.
    Unknown(String),
}

/// Compares what the source knows of its bridge with what this host knows of its own.
#[must_use]
pub fn judge(there: &Segment, here: &Segment) -> Verdict {
    let met = |one: &Segment, other: &Segment| {
        one.own.intersection(&other.neighbours).next().is_some()
            || one.own.intersection(&other.own).next().is_some()
    };
    let known_to_both = there.neighbours.intersection(&here.neighbours).any(|mac| mac.names_a_card());
    if met(there, here) || met(here, there) || known_to_both {
        return Verdict::Same;
    }
    let pairs = there.prefixes.iter().flat_map(|a| here.prefixes.iter().map(|b| a.overlaps(*b)));
    let overlaps: Vec<bool> = pairs.flatten().collect();
    if !overlaps.is_empty() && !overlaps.contains(&true) {
        return Verdict::Differs(format!(
            "{} there is in {}, {} here in {}",
            there.bridge,
            named(&there.prefixes),
            here.bridge,
            named(&here.prefixes)
        ));
    }
    if let (Some(a), Some(b)) = (there.gateway, here.gateway)
        && a.address == b.address
        && a.mac != b.mac
    {
        return Verdict::Differs(format!("the gateway {} is {} there and {} here", a.address, a.mac, b.mac));
    }
    Verdict::Unknown(format!(
        "{} there (in {}; its host in {}; {} neighbours) and {} here (in {}; its host in {}; {} neighbours) have seen \
         nobody in common",
        there.bridge,
        named(&there.prefixes),
        named(&there.host),
        there.neighbours.len(),
        here.bridge,
        named(&here.prefixes),
        named(&here.host),
        here.neighbours.len()
    ))
}

/// Some networks for people.
fn named(prefixes: &BTreeSet<Prefix>) -> String {
    let mut words: Vec<String> = prefixes.iter().take(MAX_NAMED).map(Prefix::to_string).collect();
    if prefixes.len() > MAX_NAMED {
        words.push("others".to_owned());
    }
    if words.is_empty() { "no network that is known".to_owned() } else { words.join(", ") }
}

/// What stands against each card's announcement. `bridges` and `default` are this host's bridges by the source's names;
/// `here` says what is known of one of them, or none when it is not there.
pub fn findings<'a>(
    cards: impl Iterator<Item = &'a NetworkDevice>,
    segments: &[Segment],
    bridges: &BTreeMap<String, String>,
    default: Option<&String>,
    here: impl Fn(&str) -> Option<Segment>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for card in cards {
        let (name, bridge) = match &card.backend {
            NetworkBackend::Bridge { name } => (Some(name), bridges.get(name).or(default)),
            NetworkBackend::Tap {} => (None, default),
            // QEMU's own NAT is a finding of its own, and a card without a cable needs no network.
            NetworkBackend::User {} | NetworkBackend::Disconnected {} => continue,
        };
        // That no bridge stands for it is a finding, too.
        let Some(bridge) = bridge else { continue };
        let Some(here) = here(bridge) else {
            findings.push(Finding::blocking(
                "bridge",
                format!("this host has no bridge {bridge}, which network card {} is mapped to", card.id),
                "make it, or map the card's bridge to another one in [migrate_in.bridges] here",
            ));
            continue;
        };
        let there = segments.iter().take(MAX_SEGMENTS).find(|segment| name == Some(&segment.bridge));
        let verdict = match there {
            Some(there) => judge(there, &here),
            None => Verdict::Unknown("the source does not know the bridge of its tap device".to_owned()),
        };
        let (evidence, fix) = match verdict {
            Verdict::Same => continue,
            Verdict::Differs(why) => (
                format!(
                    "network card {} comes to another layer-2 network: {why}; the guest's announcement cannot reach its \
                     neighbours, and its connections end",
                    card.id
                ),
                "stretch the VLAN to this host and map the card to its bridge, or give the guest an address of the \
                 network here after the move, or route its address to this host",
            ),
            Verdict::Unknown(why) => (
                format!(
                    "whether network card {} stays in its layer-2 network cannot be told: {why}",
                    card.id
                ),
                "make sure that both bridges are in the same VLAN; if they are not, the announcement reaches nobody: \
                 stretch the VLAN, give the guest a new address after the move, or route its address to this host",
            ),
        };
        findings.push(Finding::warning("layer-2", evidence, fix));
    }
    findings
}
