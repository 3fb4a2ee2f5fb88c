//! Which ways lead from one host to another, best first.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Name;
use crate::host::Host;
use crate::link::{Standing, State};

/// What makes one way better than another. One that is degraded comes after all that are not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = RouteOrder))]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The highest rate, then the shortest round trip, then the lowest price.
    #[default]
    Fastest,
    /// The lowest price for each byte, then for each hour, then the highest rate. Currencies are not converted.
    Cheapest,
}

/// An address of a host, `HOST:PORT`, and the network that it is marked with.
#[must_use]
pub fn marked(address: &str) -> (Option<&str>, &str) {
    match address.split_once('=') {
        Some((network, address)) => (Some(network), address),
        None => (None, address),
    }
}

/// One way from a host to another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The link, when there is one for it.
    pub link: Option<Name>,
    /// `HOST:PORT` of the host that is dialled.
    pub address: String,
    /// The destination dials the source: it has no address there itself.
    pub called: bool,
}

/// The ways to a host, the fastest first: see [`routes_by`].
#[must_use]
pub fn routes(source: &Host, destination: &Host, links: &[Standing], now: Timestamp) -> Vec<Route> {
    routes_by(source, destination, links, Order::Fastest, now)
}

/// The ways to a host, best first.
///
/// A link counts when it joins both hosts' sites, something comes through, it may be used now, and the destination has an
/// address on its network; or else the source, where the destination dials it. Addresses that are marked with no network
/// come last, without a link, unless a link is declared for them: then it decides whether they are used.
#[must_use]
pub fn routes_by(
    source: &Host,
    destination: &Host,
    links: &[Standing],
    order: Order,
    now: Timestamp,
) -> Vec<Route> {
    let joins = |standing: &&Standing| standing.link.joins(&source.site, &destination.site);
    let mut usable: Vec<_> = links.iter().filter(joins).filter(|standing| standing.is_usable(now)).collect();
    usable.sort_by_cached_key(|standing| rank(standing, order));
    let mut routes = Vec::new();
    for Standing { link, .. } in usable {
        let network = link.network.as_ref().map(Name::as_str);
        routes.extend(on_network(source, destination, network, Some(&link.name)));
    }
    if !links.iter().filter(joins).any(|standing| standing.link.network.is_none()) {
        routes.extend(on_network(source, destination, None, None));
    }
    routes
}

/// The ways on one network: who can be dialled there is dialled.
fn on_network(source: &Host, destination: &Host, network: Option<&str>, link: Option<&Name>) -> Vec<Route> {
    let route =
        |called| move |address: &str| Route { link: link.cloned(), address: address.to_owned(), called };
    let direct: Vec<_> = addresses_on(destination, network).map(route(false)).collect();
    if !direct.is_empty() || !can_call(source, destination) {
        return direct;
    }
    addresses_on(source, network).map(route(true)).collect()
}

fn addresses_on<'a>(host: &'a Host, network: Option<&'a str>) -> impl Iterator<Item = &'a str> {
    let addresses = host.observed.iter().flat_map(|observed| &observed.addresses).map(|a| marked(a));
    addresses.filter(move |(marked, _)| *marked == network).map(|(_, address)| address)
}

/// Both agents know how a destination dials its source.
fn can_call(source: &Host, destination: &Host) -> bool {
    [source, destination]
        .into_iter()
        .all(|host| host.observed.as_ref().is_some_and(|observed| observed.calls))
}

/// Whether either of two hosts has an address at which the other may reach it, at whatever time.
#[must_use]
pub fn is_reached(source: &Host, destination: &Host) -> bool {
    let has = |host: &Host| host.observed.as_ref().is_some_and(|observed| !observed.addresses.is_empty());
    has(destination) || (has(source) && can_call(source, destination))
}

/// What one migration may use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Share {
    /// Its ways, best first.
    pub routes: Vec<Route>,
    /// Bytes a second, when its link has a cap.
    pub limit: Option<u64>,
}

/// Divides links among migrations: those that come first choose first. A link with as many as it may have is left out for
/// those after them, and a cap is shared in equal parts by those that use the link first of all.
#[must_use]
pub fn shares(ways: Vec<Vec<Route>>, links: &[Standing]) -> Vec<Share> {
    let mut used: BTreeMap<Name, u64> = BTreeMap::new();
    let find = |name: &Name| links.iter().map(|standing| &standing.link).find(|link| link.name == *name);
    let mut shares = Vec::with_capacity(ways.len());
    for mut routes in ways {
        routes.retain(|Route { link, .. }| {
            let link = link.as_ref().and_then(&find);
            let most = link.and_then(|link| link.most_migrations.map(|most| (&link.name, u64::from(most))));
            most.is_none_or(|(name, most)| used.get(name).copied().unwrap_or(0) < most)
        });
        if let Some(Route { link: Some(name), .. }) = routes.first() {
            *used.entry(name.clone()).or_default() += 1;
        }
        shares.push(Share { routes, limit: None });
    }
    for share in &mut shares {
        let Some(Route { link: Some(name), .. }) = share.routes.first() else { continue };
        let cap = find(name).and_then(|link| link.cap);
        let users = used.get(name).copied().unwrap_or(1).max(1);
        share.limit = cap.map(|cap| (cap / users).max(1));
    }
    shares
}

/// Lower is better. Ends with the name, so that the order is always the same.
type Rank = (bool, [u64; 4], Name);

fn rank(standing: &Standing, order: Order) -> Rank {
    let Standing { link, state, measured, .. } = standing;
    let slowness = u64::MAX - standing.rate().unwrap_or(0);
    let round_trip = measured.as_ref().map_or(u64::MAX, |measured| measured.rtt_us);
    let (per_gb, per_hour) = (link.price.per_gb_micros, link.price.per_hour_micros);
    let keys = match order {
        Order::Fastest => [slowness, round_trip, per_gb, per_hour],
        Order::Cheapest => [per_gb, per_hour, slowness, round_trip],
    };
    (*state == State::Degraded, keys, link.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Observed;
    use crate::link::{Link, Measured, Price, Window};

    fn host(site: &str, addresses: &[&str]) -> Host {
        let addresses = addresses.iter().map(|&address| address.to_owned()).collect();
        Host {
            name: "host-a".parse().unwrap(),
            site: site.parse().unwrap(),
            joined: Timestamp::UNIX_EPOCH,
            revoked: None,
            seen: None,
            observed: Some(Observed { addresses, ..Observed::default() }),
        }
    }

    fn link(name: &str, sites: [&str; 2], network: Option<&str>) -> Standing {
        let sites = sites.map(|site| site.parse().unwrap());
        let mut link = Link::new(name.parse().unwrap(), sites);
        link.network = network.map(|network| network.parse().unwrap());
        Standing { link, state: State::Up, since: None, measured: None }
    }

    fn names(routes: &[Route]) -> Vec<(&str, &str)> {
        routes.iter().map(|one| (one.link.as_ref().map_or("-", Name::as_str), one.address.as_str())).collect()
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn a_fleet_without_links_uses_every_unmarked_address() {
        let (a, b) = (host("berlin", &[]), host("paris", &["b:1", "mpls=10.0.0.2:1", "b:2"]));
        assert_eq!(names(&routes(&a, &b, &[], NOW)), [("-", "b:1"), ("-", "b:2")]);
        let elsewhere = link("x", ["berlin", "rome"], None);
        assert_eq!(routes(&a, &b, &[elsewhere], NOW).len(), 2);
    }

    #[test]
    fn links_lead_to_the_addresses_of_their_network_and_unmarked_ones_come_last() {
        let (a, b) = (host("berlin", &[]), host("paris", &["b:1", "mpls=10.0.0.2:1"]));
        let mpls = link("mpls", ["paris", "berlin"], Some("mpls"));
        let other = link("other", ["paris", "berlin"], Some("sat"));
        assert_eq!(
            names(&routes(&a, &b, &[mpls.clone(), other], NOW)),
            [("mpls", "10.0.0.2:1"), ("-", "b:1")]
        );
        // The link that is declared for them decides.
        let mut open = link("open", ["berlin", "paris"], None);
        assert_eq!(
            routes(&a, &b, &[mpls.clone(), open.clone()], NOW)[1].link.as_ref().unwrap().as_str(),
            "open"
        );
        open.state = State::Down;
        assert_eq!(names(&routes(&a, &b, &[mpls, open], NOW)), [("mpls", "10.0.0.2:1")]);
    }

    #[test]
    fn who_has_no_address_dials_who_has_one() {
        let calling = |site: &str, addresses: &[&str]| {
            let mut host = host(site, addresses);
            host.observed.as_mut().unwrap().calls = true;
            host
        };
        let (open, hidden) = (calling("berlin", &["a:1", "mpls=10.0.0.1:1"]), calling("paris", &[]));
        let way = |from: &Host, to: &Host, links: &[Standing]| {
            let routes = routes(from, to, links, NOW);
            routes.into_iter().map(|one| (one.link.is_some(), one.address, one.called)).collect::<Vec<_>>()
        };
        assert_eq!(way(&hidden, &open, &[]), [(false, "a:1".to_owned(), false)]);
        assert_eq!(way(&open, &hidden, &[]), [(false, "a:1".to_owned(), true)]);
        let mpls = link("mpls", ["paris", "berlin"], Some("mpls"));
        let both = [(true, "10.0.0.1:1".to_owned(), true), (false, "a:1".to_owned(), true)];
        assert_eq!(way(&open, &hidden, std::slice::from_ref(&mpls)), both);
        // On that network it can be dialled.
        let half = calling("paris", &["mpls=10.0.0.2:1"]);
        let mixed = [(true, "10.0.0.2:1".to_owned(), false), (false, "a:1".to_owned(), true)];
        assert_eq!(way(&open, &half, &[mpls]), mixed);
        assert!(is_reached(&open, &hidden) && is_reached(&hidden, &open) && !is_reached(&hidden, &hidden));
        // An older agent does not know how.
        let old = host("paris", &[]);
        assert!(way(&open, &old, &[]).is_empty() && !is_reached(&open, &old));
    }

    #[test]
    fn caps_are_shared_and_full_links_are_left_to_those_before() {
        let mut capped = link("capped", ["s", "s"], Some("n"));
        (capped.link.cap, capped.link.most_migrations) = (Some(1000), Some(3));
        let links = [capped, link("other", ["s", "s"], None)];
        let way = |name: &str| Route {
            link: Some(name.parse().unwrap()),
            address: format!("{name}:1"),
            called: false,
        };
        let both = || vec![way("capped"), way("other")];
        let only = || vec![way("capped")];
        let shared =
            shares(vec![both(), only(), vec![way("other"), way("capped")], both(), both(), only()], &links);
        let limits: Vec<_> = shared.iter().map(|share| share.limit).collect();
        assert_eq!(limits, [Some(333), Some(333), None, Some(333), None, None]);
        assert_eq!(shared[2].routes.len(), 2);
        assert_eq!(shared[4].routes, [way("other")], "the fourth on the link is one too many");
        assert_eq!(shared[5], Share::default());
    }

    #[test]
    fn the_order_is_as_asked_and_what_cannot_be_used_is_left_out() {
        let (a, b) = (host("s", &[]), host("s", &["n1=b:1", "n2=b:2", "n3=b:3", "n4=b:4"]));
        let mut links: Vec<_> = ["n1", "n2", "n3", "n4"].map(|n| link(n, ["s", "s"], Some(n))).into();
        let price = |per_gb_micros| Price { currency: "USD".to_owned(), per_gb_micros, per_hour_micros: 0 };
        let measured =
            |rate| Some(Measured { at: NOW, rtt_us: 1, jitter_us: 0, loss_ppm: 0, rate: Some(rate) });
        (links[0].link.price, links[0].measured) = (price(10), measured(500));
        (links[1].link.price, links[1].measured) = (price(90), measured(900));
        // What is measured may not be used whole.
        (links[2].link.cap, links[2].measured) = (Some(100), measured(9000));
        links[3].state = State::Down;
        let by = |links: &[Standing], order| {
            let routes = routes_by(&a, &b, links, order, NOW);
            routes.into_iter().map(|one| one.address).collect::<Vec<_>>()
        };
        assert_eq!(by(&links, Order::Fastest), ["b:2", "b:1", "b:3"]);
        assert_eq!(by(&links, Order::Cheapest), ["b:3", "b:1", "b:2"]);
        links[1].state = State::Degraded;
        assert_eq!(by(&links, Order::Fastest), ["b:1", "b:3", "b:2"]);
        // 1970 began on a Thursday.
        links[0].link.schedule = vec![Window { from: 0, to: 1440 }];
        assert_eq!(by(&links, Order::Fastest), ["b:3", "b:2"]);
    }
}
