//! Which host takes a VM, and why the others do not.

use std::fmt;

use model::Name;
use model::host::{Host, Needs, Observed, Vm};
use model::plan::Rejected;
use model::route::Order;

use crate::fleet::{Fleet, Place, Way};

/// Label of VMs that must not share a host: all of one value stay apart.
pub const APART: &str = "novaferry.anti-affinity";
/// Label of VMs that belong together: each goes where most of its value are.
pub const TOGETHER: &str = "novaferry.affinity";

/// Where a VM may go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// This host and no other.
    Host(Name),
    /// Any host of this site.
    Site(Name),
    /// Any other host.
    Anywhere,
}

/// What is asked of the way.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Along {
    /// The only link to use.
    pub link: Option<Name>,
    /// By what one is chosen.
    pub prefer: Order,
}

/// What speaks against a host.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Against {
    ItIsThere,
    Revoked,
    Away,
    Cordoned,
    SaidNothing,
    Memory { needs: u64, free: u64 },
    Disk { needs: u64, free: u64 },
    Processors { needs: u32, has: u32 },
    NoKvm,
    OtherProcessor { source: String, here: String },
    OlderQemu { source: String, here: String },
    ApartFrom(String),
    NoLink(Option<Name>),
}

impl fmt::Display for Against {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: &u64| bytes.div_ceil(1 << 20);
        match self {
            Self::ItIsThere => f.write_str("the VM is there already"),
            Self::Revoked => f.write_str("it was revoked"),
            Self::Away => f.write_str("its agent has no line to the coordinator"),
            Self::Cordoned => f.write_str("it is cordoned: it takes no VMs"),
            Self::SaidNothing => f.write_str("its agent has not said what it has"),
            Self::Memory { needs, free } => {
                write!(f, "memory: {} MiB are needed and {} MiB are free", mib(needs), free >> 20)
            }
            Self::Disk { needs, free } => {
                write!(f, "disk: {} MiB are needed and its roomiest pool has {} MiB", mib(needs), free >> 20)
            }
            Self::Processors { needs, has } => write!(f, "the VM has {needs} processors and the host {has}"),
            Self::NoKvm => f.write_str("the VM runs on KVM and the host has none"),
            Self::OtherProcessor { source, here } => {
                write!(f, "the VM sees the host's processor as it is ({source}); here it is {here}")
            }
            Self::OlderQemu { source, here } => {
                write!(f, "its QEMU {here} is older than the {source} that the VM runs on")
            }
            Self::ApartFrom(vm) => write!(f, "the VM must not share a host with {vm} ({APART})"),
            Self::NoLink(Some(link)) => write!(f, "link {link} does not lead there now"),
            Self::NoLink(None) => {
                f.write_str("no link leads there now; `novaferry link list` shows their states")
            }
        }
    }
}

impl Target {
    /// Whether this host is asked for. A fleet has a thousand others, of which nobody needs to hear.
    fn means(&self, host: &Host) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Host(name) => host.name == *name,
            Self::Site(site) => host.site == *site,
        }
    }
}

/// Where a VM goes.
#[derive(Clone, PartialEq, Debug)]
pub struct Placed {
    /// The host, with the ways to it, best first; none when no host can take it.
    pub chosen: Option<(Name, Vec<Way>)>,
    /// The other hosts that were asked for, each with what speaks against it; those that were merely not the best say so.
    pub rejected: Vec<Rejected>,
}

/// Chooses among all hosts of the fleet. Of those that can take the VM: the one with most of its friends, then the best
/// way there, then the most memory left, then by name.
#[must_use]
pub fn place(fleet: &Fleet, source: &Place, vm: &Vm, target: &Target, along: &Along) -> Placed {
    let mut good = Vec::new();
    let mut rejected = Vec::new();
    for place in fleet.places.iter().filter(|place| target.means(&place.host)) {
        let name = &place.host.name;
        let ways = ways(fleet, source, place, along);
        let against = against(source, place, vm, target, along, &ways);
        if against.is_empty() {
            good.push((place, ways));
        } else {
            let why = against.iter().map(ToString::to_string).collect();
            rejected.push(Rejected { host: name.clone(), why });
        }
    }
    good.sort_by_key(|(place, ways)| {
        let friends = vms(place).filter(|other| shares(vm, other, TOGETHER)).count();
        let way = ways.first().map(|way| match along.prefer {
            Order::Fastest => (0, std::cmp::Reverse(way.rate.map_or(0, |(rate, _)| rate))),
            Order::Cheapest => {
                (way.price.per_gb_micros, std::cmp::Reverse(way.rate.map_or(0, |(rate, _)| rate)))
            }
        });
        let left = free_memory(place).saturating_sub(vm.needs.memory_bytes);
        (std::cmp::Reverse(friends), way, std::cmp::Reverse(left), place.host.name.clone())
    });
    let mut good = good.into_iter();
    let chosen = good.next().map(|(place, ways)| (place.host.name.clone(), ways));
    if let Some((best, _)) = &chosen {
        let other = |(place, _): (&Place, _)| Rejected {
            host: place.host.name.clone(),
            why: vec![format!("{best} suits as well or better")],
        };
        rejected.extend(good.map(other));
    }
    rejected.sort_by(|a, b| a.host.cmp(&b.host));
    Placed { chosen, rejected }
}

fn ways(fleet: &Fleet, source: &Place, place: &Place, along: &Along) -> Vec<Way> {
    let mut ways = fleet.ways(&source.host, &place.host, along.prefer);
    if let Some(link) = &along.link {
        ways.retain(|way| way.link.as_ref() == Some(link));
    }
    ways
}

fn against(
    source: &Place,
    place: &Place,
    vm: &Vm,
    target: &Target,
    along: &Along,
    ways: &[Way],
) -> Vec<Against> {
    let host = &place.host;
    let mut found = Vec::new();
    if host.name == source.host.name {
        return vec![Against::ItIsThere];
    }
    if host.revoked.is_some() {
        return vec![Against::Revoked];
    }
    if !place.connected {
        found.push(Against::Away);
    }
    // Whoever names a host means it.
    if place.cordoned && !matches!(target, Target::Host(_)) {
        found.push(Against::Cordoned);
    }
    let Some(observed) = &host.observed else {
        found.push(Against::SaidNothing);
        return found;
    };
    room(place, observed, &vm.needs, &mut found);
    machine(&source.host, observed, &vm.needs, &mut found);
    let resident = vms(place).map(|other| other.id.as_str());
    let apart = vms(place).find(|other| shares(vm, other, APART)).map(|other| other.id.clone());
    let apart = apart.or_else(|| {
        let group = vm.needs.labels.get(APART)?;
        let coming = place.arriving.iter().find(|(_, needs)| needs.labels.get(APART) == Some(group))?;
        Some(coming.0.clone())
    });
    // A copy of itself that is off lies where it once was.
    if let Some(other) = apart.filter(|other| *other != vm.id || resident.clone().all(|id| id != vm.id)) {
        found.push(Against::ApartFrom(other));
    }
    if ways.is_empty() {
        found.push(Against::NoLink(along.link.clone()));
    }
    found
}

fn vms(place: &Place) -> impl Iterator<Item = &Vm> + Clone {
    let vms = place.host.observed.iter().flat_map(|observed| &observed.vms);
    vms.filter(|vm| vm.state == "running")
}

fn shares(vm: &Vm, other: &Vm, label: &str) -> bool {
    let group = vm.needs.labels.get(label);
    other.id != vm.id && group.is_some() && other.needs.labels.get(label) == group
}

/// What is free once those that are on their way have arrived.
fn free_memory(place: &Place) -> u64 {
    let free = place.host.observed.as_ref().map_or(0, |observed| observed.memory_available_bytes);
    place.arriving.iter().fold(free, |free, (_, needs)| free.saturating_sub(needs.memory_bytes))
}

fn room(place: &Place, observed: &Observed, needs: &Needs, found: &mut Vec<Against>) {
    let free = free_memory(place);
    if needs.memory_bytes > free {
        found.push(Against::Memory { needs: needs.memory_bytes, free });
    }
    let roomiest = observed.pools.iter().map(|pool| pool.free_bytes).max().unwrap_or(0);
    let promised = place.arriving.iter().fold(0_u64, |sum, (_, needs)| sum.saturating_add(needs.disk_bytes));
    let free = roomiest.saturating_sub(promised);
    if needs.disk_bytes > free {
        found.push(Against::Disk { needs: needs.disk_bytes, free });
    }
    if needs.processors > observed.processors {
        found.push(Against::Processors { needs: needs.processors, has: observed.processors });
    }
}

fn machine(source: &Host, observed: &Observed, needs: &Needs, found: &mut Vec<Against>) {
    let from = source.observed.as_ref();
    if needs.kvm && !observed.kvm {
        found.push(Against::NoKvm);
    }
    let model = needs.cpu.split(',').next().unwrap_or_default();
    let from_processor = from.map_or("", |from| from.processor.as_str());
    let known = !from_processor.is_empty() && !observed.processor.is_empty();
    // `host` and `max` under KVM show the guest what the processor has.
    if needs.kvm && matches!(model, "host" | "max") && known && from_processor != observed.processor {
        found.push(Against::OtherProcessor {
            source: from_processor.to_owned(),
            here: observed.processor.clone(),
        });
    }
    let from_qemu = from.map_or("", |from| from.qemu.as_str());
    if let (Some(there), Some(here)) = (version(from_qemu), version(&observed.qemu))
        && here < there
    {
        found.push(Against::OlderQemu { source: from_qemu.to_owned(), here: observed.qemu.clone() });
    }
}

/// A version's numbers, the first two of which decide about machine types.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}
