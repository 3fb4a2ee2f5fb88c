//! The ways from one host to another: the links of their sites that can be used, or the destination's own address.
use crate::host::Host;
use crate::link::{Standing, State};
use crate::{Name, Timestamp};

/// The links that can be used now, each with the address at which the destination is dialled; without any link between
/// the two sites, the destination's first address.
#[must_use]
pub fn routes(
    source: &Host,
    destination: &Host,
    links: &[Standing],
    _now: Timestamp,
) -> Vec<(Option<Name>, String)> {
    let joins = |one: &&Standing| {
        let [a, b] = &one.link.sites;
        (*a == source.site && *b == destination.site) || (*b == source.site && *a == destination.site)
    };
    let address = destination.observed.iter().flat_map(|observed| &observed.addresses).next();
    let Some(address) = address else { return Vec::new() };
    if !links.iter().any(|one| joins(&one)) {
        return vec![(None, address.clone())];
    }
    let usable = links.iter().filter(joins).filter(|one| one.state != State::Down);
    usable.map(|one| (Some(one.link.name.clone()), address.clone())).collect()
}
