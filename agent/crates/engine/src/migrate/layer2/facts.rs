//! What the kernel tells of a bridge, in files that anybody may read: its addresses, its forwarding table, and the
//! host's routes and neighbours (proc_net(5), `struct __fdb_entry` of `linux/if_bridge.h`).

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::{Gateway, MAX_NEIGHBOURS, MAX_OWN, Mac, Prefix, Segment};

/// Longest table that is read, bytes: some thousand routes or neighbours; what follows is passed over.
const MAX_TABLE: u64 = 256 << 10;
/// Bytes of an entry of a bridge's forwarding table.
const FDB_ENTRY: usize = 16;
/// Longest name of an interface.
const MAX_INTERFACE: usize = 15;

/// What is known of a bridge of this host; none when it has no such interface.
#[must_use]
pub fn segment(bridge: &str) -> Option<Segment> {
    segment_below(Path::new("/"), bridge)
}

pub(super) fn segment_below(root: &Path, bridge: &str) -> Option<Segment> {
    let plain = !bridge.is_empty() && bridge.len() <= MAX_INTERFACE;
    if !plain || bridge.contains('/') || bridge.starts_with('.') {
        return None;
    }
    let device = root.join("sys/class/net").join(bridge);
    let address: Mac = table(&device.join("address"))?.trim().parse().ok()?;
    let mut found = Segment { bridge: bridge.to_owned(), ..Segment::default() };
    found.own.insert(address);
    for (mac, is_local) in forwarding(&bytes(&device.join("brforward")).unwrap_or_default()) {
        if is_local {
            found.own.insert(mac);
        } else {
            found.neighbours.insert(mac);
        }
    }
    let net = root.join("proc/self/net");
    let arp = table(&net.join("arp")).unwrap_or_default();
    found.neighbours.extend(neighbours(&arp, bridge).map(|(_, mac)| mac));
    let routes = table(&net.join("route")).unwrap_or_default();
    let addresses = table(&net.join("if_inet6")).unwrap_or_default();
    let networks = |interface: &str| {
        let all = connected(&routes, interface).chain(global(&addresses, interface));
        all.take(MAX_OWN).collect::<BTreeSet<_>>()
    };
    found.prefixes = networks(bridge);
    if let Some((interface, router)) = default_route(&routes) {
        found.host = networks(&interface);
        let answers = neighbours(&arp, bridge).find(|(address, _)| *address == router);
        found.gateway = answers.map(|(address, mac)| Gateway { address, mac });
    }
    // The lowest, whoever counts.
    found.own = found.own.into_iter().take(MAX_OWN).collect();
    found.neighbours = found.neighbours.difference(&found.own).copied().take(MAX_NEIGHBOURS).collect();
    Some(found)
}

fn bytes(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_TABLE).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn table(path: &Path) -> Option<String> {
    Some(String::from_utf8_lossy(&bytes(path)?).into_owned())
}

/// Addresses of a bridge's forwarding table, and whether each is the bridge's own.
pub(super) fn forwarding(table: &[u8]) -> impl Iterator<Item = (Mac, bool)> + '_ {
    table.chunks_exact(FDB_ENTRY).filter_map(|entry| {
        let (mac, rest) = entry.split_first_chunk::<6>()?;
        Some((Mac(*mac), *rest.get(1)? != 0))
    })
}

/// Neighbours of an interface that answered (`/proc/net/arp`).
pub(super) fn neighbours<'a>(arp: &'a str, interface: &'a str) -> impl Iterator<Item = (Ipv4Addr, Mac)> + 'a {
    arp.lines().skip(1).filter_map(move |line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [address, _, flags, mac, _, device] = words[..] else { return None };
        let complete = u32::from_str_radix(flags.strip_prefix("0x")?, 16).ok()? & 2 != 0;
        (complete && device == interface).then_some((address.parse().ok()?, mac.parse().ok()?))
    })
}

/// A line of `/proc/net/route`: interface, destination, gateway, mask.
fn route(line: &str) -> Option<(&str, [Ipv4Addr; 3])> {
    let words: Vec<&str> = line.split_whitespace().collect();
    // The kernel prints the address as a number of the machine's byte order.
    let address = |at: usize| {
        let number = u32::from_str_radix(words.get(at)?, 16).ok()?;
        Some(Ipv4Addr::from(number.to_ne_bytes()))
    };
    Some((words.first()?, [address(1)?, address(2)?, address(7)?]))
}

/// Networks that an interface is in, without those behind a router.
fn connected<'a>(routes: &'a str, interface: &'a str) -> impl Iterator<Item = Prefix> + 'a {
    routes.lines().skip(1).filter_map(route).filter_map(move |(name, [destination, gateway, mask])| {
        let here = name == interface && gateway.is_unspecified() && !mask.is_unspecified();
        let length = u8::try_from(mask.to_bits().leading_ones()).ok()?;
        here.then_some(Prefix { address: IpAddr::V4(destination), length })
    })
}

/// Networks of an interface's global addresses (`/proc/net/if_inet6`).
fn global<'a>(addresses: &'a str, interface: &'a str) -> impl Iterator<Item = Prefix> + 'a {
    addresses.lines().filter_map(move |line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [address, _, length, scope, _, name] = words[..] else { return None };
        let address = u128::from_str_radix(address, 16).ok()?;
        let length = u8::from_str_radix(length, 16).ok().filter(|length| *length <= 128)?;
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        let network = IpAddr::V6(Ipv6Addr::from_bits(address & mask));
        (scope == "00" && name == interface).then_some(Prefix { address: network, length })
    })
}

/// The interface and the router by which the host reaches the world.
fn default_route(routes: &str) -> Option<(String, Ipv4Addr)> {
    routes.lines().skip(1).filter_map(route).find_map(|(name, [destination, gateway, mask])| {
        let default = destination.is_unspecified() && mask.is_unspecified();
        default.then(|| (name.to_owned(), gateway))
    })
}
